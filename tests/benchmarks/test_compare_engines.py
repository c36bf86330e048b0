"""scripts/compare_engines: a policy trained on engine warp scores as much in the official environment."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from dataclasses import replace

import pytest

from es_flipout.cli.arguments import load_config
from es_flipout.run.checkpoint import RunDirectory
from es_flipout.run.trainer import Trainer
from scripts import compare_engines


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
    official, warp = json.loads(file.read_text())["engines"].values()
    assert official["failed"] == warp["failed"] == 0
    assert official["mean"] > 15  # an untrained policy falls at once
    # Episode by episode: no contacts, so that float32 is all that is different.
    assert warp["returns"] == pytest.approx(official["returns"], abs=1)
