"""Files of the previous version: configurations, metrics and checkpoints are read, and a run continues.

data/format3_run was stopped by Ctrl-C after 3 of 5 generations, the third of which had not been scored yet.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from es_flipout.cli import eval, train
from es_flipout.cli.arguments import UsageError, load_config, parse_train
from es_flipout.run import checkpoint
from es_flipout.run.errors import RunError
from es_flipout.run.run_directory import RunDirectory

ROOT = Path(__file__).parents[2]
OLD_RUN = Path(__file__).parent / "data" / "format3_run"
OLD_RUNS = [
    OLD_RUN,
    *sorted((ROOT / "pretrained").iterdir()),
    ROOT / "benchmarks" / "results" / "humanoid_long_run",
]
OLD_METRICS = [json.loads(line) for line in (OLD_RUN / "metrics.jsonl").read_text().splitlines()]


def renamed(figures: dict) -> dict:
    """Returns old figures under their new names."""
    figures = dict(figures)
    figures["timing"] = {**figures["timing"], "live_share": figures.pop("live_share")}
    for old, new in (
        ("score", "score"),
        ("score_std", "score_std"),
        ("episode_length", "score_episode_length"),
    ):
        figures[new] = figures.pop(f"centre_{old}")
    return figures


@pytest.fixture
def old_run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(shutil.copytree(OLD_RUN, tmp_path / "run"))


@pytest.mark.parametrize("path", OLD_RUNS, ids=lambda path: path.name)
def test_an_old_run_directory_is_read(path):
    run = RunDirectory.open(path)
    content = yaml.safe_load(run.config.read_text())
    config = load_config(run.config)
    assert config.env.num_envs == content["env"].get("num_slots", content["env"].get("num_envs"))
    assert config.es.sigma == content["es"]["sigma"]
    saved = torch.load(run.last, weights_only=True)
    state = checkpoint.load(run.last)
    assert state["generation"] == saved["generation"]
    assert all(torch.equal(state["policy"][name], value) for name, value in saved["policy"].items())


@pytest.mark.parametrize("path", [OLD_RUN, OLD_RUNS[-1]], ids=lambda path: path.name)
def test_old_metrics_are_read_under_their_new_names(path):
    old = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert RunDirectory(path).read_metrics() == [renamed(line) for line in old]


def test_an_old_run_is_resumed_and_reaches_its_budget(old_run):
    assert train.main(["--resume", str(old_run.path)]) == 0
    found = old_run.read_metrics()
    assert [line["generation"] for line in found] == [1, 2, 3, 4, 5]
    assert found[:2] == [renamed(line) for line in OLD_METRICS]
    waiting = torch.load(OLD_RUN / "checkpoints" / "last.pt", weights_only=True)["unscored"]["metrics"]
    kept = {name: value for name, value in renamed(waiting).items() if not name.startswith("score")}
    assert {name: found[2][name] for name in kept} == kept
    assert all(line["score"] is not None and "centre_score" not in line for line in found)
    assert torch.load(old_run.last, weights_only=True)["format"] == checkpoint.FORMAT
    env = yaml.safe_load(old_run.config.read_text())["env"]
    assert env["num_envs"] == 4
    assert "num_slots" not in env


def test_an_old_run_is_scored(capsys):
    assert eval.main([str(ROOT / "pretrained" / "reacher"), "--episodes", "1"]) == 0
    assert "Reacher-v5" in capsys.readouterr().out


def test_a_users_file_with_old_names_is_read():
    Path("mine.yaml").write_text("env: {id: 'scripts.recall:Recall-v0', num_slots: 6}\n")
    env = parse_train(["--config", "mine.yaml"]).config.env
    assert (env.id, env.num_envs) == ("examples.recall:Recall-v0", 6)


def test_an_option_under_both_names_is_refused():
    Path("mine.yaml").write_text("env: {num_envs: 4, num_slots: 6}\n")
    message = "config file mine.yaml: env.num_slots is the old name of env.num_envs; give only env.num_envs"
    with pytest.raises(UsageError, match=f"^{message}$"):
        parse_train(["--config", "mine.yaml"])


@pytest.mark.parametrize("options", [["--env.num_slots", "4"], ["--env.num_slots=4"]], ids=str)
@pytest.mark.parametrize("env_id", ["scripts.recall:Recall-v0", "examples.recall:Recall-v0"])
def test_an_old_command_line_is_read(options, env_id):
    for arguments in (["--env.id", env_id, *options], [*options, f"--env.id={env_id}"]):
        env = parse_train(arguments).config.env
        assert (env.id, env.num_envs) == ("examples.recall:Recall-v0", 4)


def test_an_old_key_within_an_option_is_told_its_new_name():
    with pytest.raises(UsageError) as caught:
        parse_train(["--env={num_slots: 4}"])
    message = "unknown key env.num_slots in --env; it is called env.num_envs now"
    assert str(caught.value) == message


def test_an_older_or_newer_format_is_refused(old_run):
    for version in (2, checkpoint.FORMAT + 1):
        torch.save({"format": version, "policy": {}}, old_run.last)
        with pytest.raises(RunError, match=f"has format {version}; this version reads formats 3 and 4"):
            checkpoint.load(old_run.last)


@pytest.mark.parametrize("unscored", [None, 3, {}, {"metrics": None}])
def test_an_old_checkpoint_that_makes_no_sense_is_refused(old_run, unscored):
    state = torch.load(old_run.last, weights_only=True)
    torch.save({**state, "unscored": unscored}, old_run.last)
    with pytest.raises(RunError, match=r"last.pt cannot be read: it is damaged"):
        checkpoint.load(old_run.last)
