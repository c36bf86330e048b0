"""benchmarks/compare_engines: a policy trained on engine warp scores as much in the official environment."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import replace

import pytest

from benchmarks import compare_engines
from es_flipout.cli.arguments import load_config
from es_flipout.cli.results import Results
from es_flipout.run.run_directory import RunDirectory
from es_flipout.run.trainer import Trainer


@pytest.mark.slow
def test_a_policy_trained_on_warp_scores_as_much_officially(tiny_config, tmp_path, monkeypatch):
    config = load_config(tiny_config)
    config = replace(config, env=replace(config.env, engine="warp"), device="cpu", out=str(tmp_path / "run"))
    run = RunDirectory.create(config)
    with closing(Trainer(config)) as trainer:
        trainer.train(run)
    file = tmp_path / "engines.json"
    arguments = [run.path, "--episodes", 20, "--device", "cpu", "--json", file]
    monkeypatch.setattr(sys, "argv", ["compare_engines", *map(str, arguments)])
    compare_engines.main()
    results = Results.read(file)
    (official, _, failed), (warp, _, also_failed) = (
        compare_engines.summary(results, engine) for engine in ("official environment", "engine warp")
    )
    assert failed == also_failed == 0
    assert official > 15  # an untrained policy falls at once
    assert warp == pytest.approx(official, abs=1)
    # Episode by episode: no contacts, so that float32 is all that is different.
    returns = [results.by_round(engine, "return") for engine in results.column("contestant")]
    assert returns[0] == pytest.approx(returns[1], abs=1)
