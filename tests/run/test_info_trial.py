"""Metrics from info in a run: refused at the start if they cannot be, and reported wherever scores are."""

from __future__ import annotations

import io
import json
from contextlib import closing
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from rich.console import Console

from es_flipout.cli import eval as es_eval
from es_flipout.cli.arguments import load_config
from es_flipout.run.config import Config, EnvConfig, EvaluationConfig
from es_flipout.run.info_trial import check_info
from es_flipout.run.reporters.contract import RunInfo
from es_flipout.run.reporters.jsonl import JsonLines
from es_flipout.run.reporters.tensorboard import TensorBoard
from es_flipout.run.run_directory import RunDirectory
from es_flipout.run.terminal import Terminal
from es_flipout.run.trainer import Trainer


class Arm(gym.Env):
    """An episode of ten steps, whose last says whether it succeeded."""

    observation_space = action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {"start": 1.0}

    def step(self, action):
        self.steps += 1
        info = {"force": float(action[0]), "phase": "reach"}
        if self.steps == 10:
            info |= {"is_success": bool(self.np_random.integers(2)), "pose": np.zeros(3)}
        return np.zeros(1, np.float32), float(action[0]), self.steps == 10, False, info


gym.register("Arm-v0", Arm)


def check(info, env_id="Arm-v0", **kwargs):
    lines = []
    check_info(Config(EnvConfig(env_id, kwargs), evaluation=EvaluationConfig(info=info)), lines.append)
    return lines


def test_entries_that_are_there_are_accepted():
    assert check([]) == []
    assert check(["force", "mean:force", "is_success"]) == []
    assert check(["x_velocity", "max:reward_ctrl"], "HalfCheetah-v5") == []


@pytest.mark.parametrize(
    ("info", "env_id", "message"),
    [
        (["succes"], "Arm-v0", "Arm-v0 has no info entry 'succes' by the end of an episode; it has force, "),
        (["start"], "Arm-v0", "it has force, is_success, phase, pose$"),
        (["mean:speed"], "Hopper-v5", "it has reward_ctrl, .*, x_velocity, z_distance_from_origin$"),
        (
            ["x"],
            "CartPole-v1",
            "CartPole-v1 has no info entry 'x' by the end of an episode; its info is empty$",
        ),
        (["phase"], "Arm-v0", "the info entry 'phase' is 'reach', a number is needed$"),
        (["max:pose"], "Arm-v0", r"'pose' is a NumPy array of shape \(3,\) and .*, a number is needed$"),
    ],
)
def test_others_are_refused_in_one_line(info, env_id, message):
    with pytest.raises(ValueError, match=rf"^evaluation\.info: .*{message}"):
        check(info, env_id)


def test_what_a_long_episode_has_at_its_end_cannot_be_known():
    (line,) = check(["is_success"], "HalfCheetah-v5", max_episode_steps=2000)
    assert line.startswith(
        "evaluation.info: HalfCheetah-v5 has no info entry 'is_success' in the first 1,000"
    )


@pytest.mark.parametrize("info", [["x", "x"], ["mean:"], ["failures"]])
def test_a_configuration_with_names_that_mean_nothing_is_refused(info):
    with pytest.raises(ValueError, match=r"^evaluation\.info: '"):
        EvaluationConfig(info=info)


def configured(tiny_config, env_id, info) -> Config:
    config = load_config(tiny_config)
    evaluation = replace(config.evaluation, info=info, episodes=6)
    return replace(config, env=EnvConfig(env_id, num_envs=8), evaluation=evaluation, generations=4)


def test_a_refused_run_writes_nothing(tiny_config):
    with pytest.raises(ValueError, match="has no info entry 'nothing'"):
        Trainer(configured(tiny_config, "Hopper-v5", ["nothing"]))


def test_metrics_are_reported_everywhere_and_after_a_resumption(tiny_config, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    info = ["is_success", "mean:force"]
    config = configured(tiny_config, "Arm-v0", info)
    run = RunDirectory.create(replace(config, out="run"))
    screen = Console(file=io.StringIO(), width=200)
    for generations in (3, 1):  # the score of the second generation is under way when the first call ends
        with closing(Trainer(config)) as trainer:
            trainer.restore(run)
            with (
                closing(JsonLines(run.metrics)) as lines,
                closing(TensorBoard(RunInfo(run.path, config))) as board,
                closing(Terminal(screen, None)) as terminal,
            ):
                trainer.train(run, [lines, board, terminal], max_generations=generations)
    found = [line["score_info"] for line in run.read_metrics()]
    assert (found[0], found[2]) == ({}, {})
    assert list(found[1]) == list(found[3]) == info
    assert found[1]["is_success"] == found[3]["is_success"]  # the same seeds decide it
    assert 0 < found[1]["is_success"] < 1
    assert found[1]["mean:force"] != found[3]["mean:force"]
    assert f"is_success   {found[1]['is_success']:.3f}  mean:force" in screen.file.getvalue()
    events = EventAccumulator(str(run.path))
    events.Reload()
    logged = [event.value for event in events.Scalars("score_info/mean:force")]
    assert logged == pytest.approx([found[1]["mean:force"], found[3]["mean:force"]])

    seed = str(config.evaluation.seed)
    arguments = ["run", "--episodes", "6", "--seed", seed, "--checkpoint", "last"]
    capsys.readouterr()
    assert es_eval.main([*arguments, "--json"]) == 0
    score = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["info"]
    assert score["is_success"]["mean"] == found[3]["is_success"]
    assert sorted(set(score["is_success"]["values"])) == [0, 1]
    assert score["mean:force"]["mean"] == found[3]["mean:force"]
    assert es_eval.main(arguments) == 0
    assert "is_success  mean 0." in (text := capsys.readouterr().out)
    assert "min 0.0  max 1.0\nmean:force  mean" in text


def test_what_no_episode_has_is_null(tiny_config, capsys, monkeypatch):
    config = configured(tiny_config, "Arm-v0", ["is_success"])
    run = RunDirectory.create(replace(config, out="run"))
    with closing(Trainer(config)) as trainer:
        trainer.train(run, max_generations=0)
    arguments = ["run", "--episodes", "2"]
    config = run.config.read_text().replace("is_success", "max:start")
    run.config.write_text(config)
    assert es_eval.main([*arguments, "--json"]) == 0
    score = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["info"]
    assert score == {"max:start": {"mean": None, "values": [None, None]}}
    assert es_eval.main(arguments) == 0
    assert "max:start  none: no episode has this entry of info\n" in capsys.readouterr().out
