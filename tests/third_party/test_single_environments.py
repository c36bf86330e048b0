"""Environments of other packages, trained and scored; docs/environments.md has the versions."""

from __future__ import annotations

import pytest

from es_flipout.cli import eval as es_eval
from es_flipout.cli import train as es_train

pytestmark = [pytest.mark.third_party, pytest.mark.filterwarnings("default")]

TINY = ["--es.population_size", "4", "--env.num_envs", "2", "--threads", "2", "--generations", "2"]
TINY += ["--policy.hidden_sizes", "[4]", "--evaluation.episodes", "1", "--logging.reporters", "[jsonl]"]
CNN = ["--policy.kind", "cnn", "--policy.conv_layers", "[[4, 8, 4, 0]]"]
ATARI = (
    "[{name: AtariPreprocessing, terminal_on_life_loss: true}, {name: FrameStackObservation, stack_size: 4}]"
)
WORKS = {
    "ALE/Breakout-v5": ["--env.kwargs", "{frameskip: 1}", "--env.wrappers", ATARI, *CNN],
    "MiniGrid-Empty-5x5-v0": [
        "--env.wrappers",
        "[{name: FilterObservation, filter_keys: [direction, image]}]",
    ],
    "MiniGrid-Empty-6x6-v0": ["--env.wrappers", "['minigrid.wrappers:ImgObsWrapper']", *CNN[:2]],
    "highway-fast-v0": ["--env.wrappers", "[FlattenObservation]"],
    "PandaReach-v3": [],
    "HopperBulletEnv-v0": [],
    "PointMaze_UMaze-v3": [],
    "AntMaze_UMaze-v5": [],
    "AdroitHandDoor-v1": [],
    "deep-sea-treasure-v0": ["--env.reward_weights", "[1, 0.1]"],
    "mo-hopper-v5": ["--env.reward_weights", "[1, 0, 0.5]"],
}
"""Ids, and the options that they need."""
REFUSED = {
    "dm_control/cartpole-balance-v0": "'MjModel' object has no attribute 'flex_vertedge'",
    "FetchReach-v4": "FetchReach-v4: AssertionError",
    "MiniGrid-Empty-5x5-v0": "no flat form of MissionSpace, the entry ['mission'] of the observations",
    "deep-sea-treasure-v0": "the reward is an array of shape (2,), a number is needed: set env.rew",
}
"""Ids that cannot be made without options, or at all, and what the line says."""


def steps(env_id):
    return ["--env.id", env_id, "--env.kwargs.max_episode_steps", "20"]


@pytest.mark.parametrize("env_id", WORKS)
def test_it_is_trained_and_scored(capfd, env_id):
    status = es_train.main([*WORKS[env_id], *steps(env_id), *TINY, "--out", "run"])
    assert status == 0, capfd.readouterr().err
    status = es_eval.main(["run", "--episodes", "1"])
    out, err = capfd.readouterr()
    assert status == 0, err
    assert "return  mean" in out


def test_worker_processes_find_the_module_too(capfd):
    arguments = ["--env.engine", "gymnasium_processes", *steps("PandaReach-v3"), *TINY, "--out", "run"]
    assert es_train.main(arguments) == 0, capfd.readouterr().err
    assert "flattened to 12 numbers" in capfd.readouterr().out


@pytest.mark.parametrize("env_id", REFUSED)
def test_it_is_refused_in_one_line(capfd, env_id):
    assert es_train.main([*steps(env_id), *TINY, "--out", "run"]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert REFUSED[env_id] in lines[-1]


def test_pixels_of_classic_control(capfd):
    wrappers = "[AddRenderObservation, {name: ResizeObservation, shape: [40, 60]}, "
    wrappers += "{name: GrayscaleObservation, keep_dim: true}]"
    more = ["--env.kwargs.render_mode", "rgb_array", "--env.wrappers", wrappers, *CNN]
    assert es_train.main([*more, *steps("CartPole-v1"), *TINY, "--out", "run"]) == 0, capfd.readouterr().err
    assert es_eval.main(["run", "--episodes", "1", "--video", "film.gif"]) == 0
    assert "frames" in capfd.readouterr().out
