"""Commands on environments of every form: parts, pixels, vector rewards, wrappers with arguments."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml
from gymnasium import spaces
from torch import nn

from es_flipout.cli import eval as es_eval
from es_flipout.cli import train as es_train
from es_flipout.envs import known_ids
from es_flipout.run import checkpoint

TINY = ["--es.population_size", 8, "--env.num_envs", 4, "--threads", 1, "--generations", 2, "--out", "run"]
TINY += ["--policy.hidden_sizes", "[4]", "--evaluation.episodes", 2, "--logging.reporters", "[jsonl]"]
STACK = {"name": "FrameStackObservation", "stack_size": 3}


class Sees(gym.Env):
    """Shows a dot in a picture, and a vector; is paid for naming the side that it is on."""

    observation_space = spaces.Dict(
        image=spaces.Box(0, 255, (8, 8, 3), np.uint8), vector=spaces.Box(-1, 1, (4,), np.float32)
    )
    action_space = spaces.Discrete(2)

    def _observe(self):
        image = np.zeros((8, 8, 3), np.uint8)
        self.side = int(self.np_random.integers(2))
        image[self.np_random.integers(8), 4 * self.side + self.np_random.integers(4)] = 255
        return {"image": image, "vector": self.np_random.uniform(-1, 1, 4).astype(np.float32)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action):
        reward = float(action == self.side)
        return self._observe(), reward, False, False, {}


class Seer(nn.Module):
    """Convolutions over the image, and a layer over both."""

    def __init__(self, observation_space, action_space, width=3):
        super().__init__()
        channels = observation_space["image"].shape[-1]
        self.convolution = nn.Conv2d(channels, width, 4, stride=4)
        self.output = nn.Linear(4 * width + observation_space["vector"].shape[0], int(action_space.n))

    def forward(self, observations):
        seen = self.convolution(observations["image"].movedim(-1, -3) / 255).flatten(1)
        return self.output(torch.cat([seen, observations["vector"]], dim=1)).argmax(dim=-1)


class Small(gym.ObservationWrapper):
    """Every n-th pixel."""

    def __init__(self, env, every: int):
        super().__init__(env)
        self.every = every
        shape = env.observation_space.low[::every, ::every].shape
        self.observation_space = spaces.Box(0, 255, shape, np.uint8)

    def observation(self, observation):
        return observation[:: self.every, :: self.every]


class Paid(gym.Env):
    """Is paid for its action, and minus its square."""

    observation_space = action_space = spaces.Box(-2.0, 2.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        return np.ones(1, np.float32), {}

    def step(self, action):
        return np.ones(1, np.float32), np.array([action[0], -(action[0] ** 2)]), False, False, {}


class Plain(gym.Env):
    """Lasts for five steps; observes and acts in the spaces that it is given."""

    def __init__(self, observations=None, actions=None, lasts=5, trouble=None):
        self.observation_space = observations or spaces.Box(-1.0, 1.0, (3,), np.float32)
        self.action_space = actions or spaces.Discrete(2)
        self.lasts, self.trouble = lasts, trouble

    def reset(self, *, seed=None, options=None):
        if self.trouble:
            raise self.trouble
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(self.observation_space.shape, np.float32), {}

    def step(self, action):
        self.steps += 1
        is_over = self.steps >= self.lasts
        observation = np.zeros(self.observation_space.shape, np.float32)
        return observation, 1.0, is_over, False, {"is_success": is_over}


TEXT = spaces.Text(5)
PLAIN = {
    "Asks-v0": {"observations": spaces.Dict(image=spaces.Box(0, 1, (3,)), mission=TEXT)},
    "Unlimited-v0": {"lasts": np.inf},
    "Flags-v0": {"actions": spaces.MultiBinary(2)},
    "Free-v0": {"actions": spaces.Box(-np.inf, np.inf, (2,), np.float32)},
    "Locked-v0": {"trouble": RuntimeError("no license")},
    "Short-v0": {},
    "Squares-v0": {"observations": spaces.Box(-1, 1, (5, 5))},
    "Talks-v0": {"observations": TEXT},
}

for _env_id, _kwargs in PLAIN.items():
    gym.register(_env_id, Plain, max_episode_steps=None, kwargs=_kwargs)
gym.register("Sees-v0", Sees, max_episode_steps=6)
gym.register("Paid-v0", Paid, max_episode_steps=3)


@pytest.fixture
def run(capsys):
    """Runs a command in this process; returns status, standard output and standard error."""

    def run_here(command, *arguments):
        status = {"train": es_train, "eval": es_eval}[command].main(list(map(str, arguments)))
        return status, *capsys.readouterr()

    return run_here


@pytest.mark.parametrize("engine", ["gymnasium", "gymnasium_processes"])
def test_observations_with_parts_are_flattened_and_that_is_said(run, engine):
    status, out, err = run("train", "--env.id", f"{__name__}:Sees-v0", "--env.engine", engine, *TINY)
    assert status == 0, err
    assert "Sees-v0: observations Dict(image, vector) are flattened to 196 numbers" in " ".join(out.split())
    status, out, err = run("eval", "run", "--episodes", 2)
    assert status == 0, err


def test_a_policy_of_ones_own_gets_the_parts(run):
    policy = ["--policy.kind", f"{__name__}:Seer", "--policy.kwargs", "{width: 2}"]
    status, out, err = run("train", "--env.id", f"{__name__}:Sees-v0", *policy, *TINY)
    assert status == 0, err
    assert "flattened" not in out
    keys = checkpoint.load(Path("run/checkpoints/last.pt"))["policy"].keys()
    assert all(key.startswith("policy.") for key in keys)
    status, out, err = run("train", "--resume", "run", "--generations", 3)
    assert status == 0, err
    status, out, err = run("eval", "run", "--episodes", 2)
    assert status == 0, err
    assert "Sees-v0, run/checkpoints/best.pt" in out


def test_wrappers_with_arguments_survive_file_and_resume(run):
    Path("some.yaml").write_text(
        yaml.safe_dump({"env": {"id": "Pendulum-v1", "wrappers": [STACK, "FlattenObservation"]}})
    )
    limit = ["--env.kwargs.max_episode_steps", 5]
    status, _, err = run("train", "--config", "some.yaml", *limit, *TINY)
    assert status == 0, err
    assert yaml.safe_load(Path("run/config.yaml").read_text())["env"]["wrappers"] == [
        STACK,
        "FlattenObservation",
    ]
    assert checkpoint.load(Path("run/checkpoints/last.pt"))["policy"]["network.0.weight"].shape == (4, 9)
    status, _, err = run("train", "--resume", "run", "--generations", 3)
    assert status == 0, err
    status, _, err = run("eval", "run", "--episodes", 1)
    assert status == 0, err


def test_wrappers_with_arguments_on_the_command_line(run):
    wrappers = "[{name: FrameStackObservation, stack_size: 2}, FlattenObservation]"
    arguments = ["--env.id", "Pendulum-v1", "--env.wrappers", wrappers, "--env.kwargs.max_episode_steps", 5]
    status, _, err = run("train", *arguments, *TINY)
    assert status == 0, err
    assert checkpoint.load(Path("run/checkpoints/last.pt"))["policy"]["network.0.weight"].shape == (4, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--env.wrappers", "[{stack_size: 4}]"],
            "env.wrappers: wrapper {'stack_size': 4} needs a name, as in",
        ),
        (
            ["--env.wrappers", "[{name: ClipAction, 3: 4}]"],
            "env.wrappers: a wrapper's keyword arguments have n",
        ),
        (
            ["--env.wrappers", "[{name: ClipAction, low: 4}]"],
            "unexpected keyword argument 'low'; it takes no a",
        ),
        (
            ["--env.wrappers", "[{name: nowhere:Some}]"],
            "env.wrappers nowhere:Some: No module named 'nowhere'",
        ),
        (["--env.wrappers", "[ClipAction, 3]"], "env.wrappers: a wrapper must be a name or a mapping like"),
        (
            ["--env.kwargs.render_mode", "human"],
            "env.kwargs.render_mode must not be human, which opens windows",
        ),
        (["--env.kwargs.reward_weights", "[1]"], "env.kwargs must not contain 'reward_weights'"),
        (
            ["--env.id", f"{__name__}:Paid-v0"],
            "Paid-v0: the reward is an array of shape (2,), a number is need",
        ),
        (
            ["--env.id", f"{__name__}:Paid-v0", "--env.reward_weights", "[1]"],
            "the reward has 2 parts, so it needs",
        ),
        (["--env.id", f"{__name__}:Paid-v0", "--env.reward_weights", "[a]"], "env.reward_weights must be"),
        (["--env.id", f"{__name__}:Paid-v0", "--env.reward_weights", "[.nan]"], "must be finite numbers"),
        (["--env.reward_weights", "[1, 2]"], "reward_weights are for rewards that are vectors"),
        (
            ["--env.id", "Pendulum-v1", "--env.reward_weights", "[1]"],
            "the reward is a number, so it needs no",
        ),
    ],
)
def test_a_mistake_is_told_in_one_line(run, arguments, message):
    status, _, err = run("train", *arguments, *TINY)
    assert message in err
    assert status == 2
    assert err.count("\n") == 1


PAGE = Path(__file__).parents[2] / "docs" / "environments.md"
DOCUMENTED = [
    "--env.id Hoper-v5",
    "--env.id MiniGrid-Empty-5x5-v0",
    "--env.id my_robots:Arm-v0",
    "--env.id Hopper-v5 --env.kwargs.healthy 1",
    "--env.id Locked-v0",
    "--env.id Talks-v0",
    "--env.id Asks-v0",
    "--env.id Squares-v0",
    "--env.id Paid-v0",
    "--env.id Paid-v0 --env.reward_weights [1]",
    "--env.id Pendulum-v1 --env.reward_weights [1]",
    "--env.id CartPole-v1 --env.wrappers [FrameStack]",
    "--env.id CartPole-v1 --env.wrappers '[{name: ClipReward, max: 1}]'",
    "--env.id CartPole-v1 --env.wrappers [NormalizeReward]",
    "--env.id Hopper-v5 --env.engine batch --env.wrappers [FlattenObservation]",
    "--env.id CartPole-v1 --env.engine batch",
    "--env.id Flags-v0",
    "--env.id Free-v0",
    "--env.id CartPole-v1 --rollout.action_noise 0.1",
    "--env.id Short-v0 --evaluation.info [is_sucess]",
    "--env.id Unlimited-v0 --env.num_envs 2 --es.population_size 2 --es.num_bases 1",
]
"""Mistakes, one for each row of the table in `PAGE`."""


def documented_lines():
    """Returns the lines of the table of mistakes, as regular expressions."""
    table = PAGE.read_text().split("## What is refused")[1].split("\n## ")[0]
    lines = re.findall(r"^\|[^|]+\| `([^|]*)` \|$", table, flags=re.MULTILINE)
    return [re.escape(line).replace(r"\.\.\.", ".*") for line in lines]


@pytest.mark.parametrize(
    ("line", "mistake"), list(zip(documented_lines(), DOCUMENTED, strict=True)), ids=DOCUMENTED
)
def test_the_documented_line_is_what_a_mistake_gives(run, monkeypatch, line, mistake):
    monkeypatch.setattr(known_ids, "find_spec", lambda module: None)  # whatever is installed here
    status, _, err = run("train", *TINY, *shlex.split(mistake))
    assert status == 2
    assert re.fullmatch(f"es-train: {line}\n", err)


@pytest.mark.parametrize("backend", ["vectorized", "process_pool"])
def test_a_vector_reward_is_weighted_in_training_and_scores(run, backend):
    arguments = ["--env.id", f"{__name__}:Paid-v0", "--env.reward_weights", "[0, 1]", "--backend", backend]
    status, _, err = run("train", *arguments, *TINY)
    assert status == 0, err
    assert "env.reward_weights" not in err
    status, out, err = run("eval", "run", "--episodes", 1)
    assert status == 0, err
    assert "-" in out  # minus the square of an action


def test_pixels_are_learned_from_scored_and_filmed(run):
    wrappers = f"[AddRenderObservation, {{name: '{__name__}:Small', every: 8}}]"
    view = "{render_mode: rgb_array, width: 128, height: 128, max_episode_steps: 4}"
    policy = ["--policy.kind", "cnn", "--policy.conv_layers", "[[4, 3, 2, 1]]"]
    arguments = ["--env.id", "InvertedPendulum-v5", "--env.kwargs", view, "--env.wrappers", wrappers, *policy]
    status, out, err = run("train", *arguments, *TINY)
    assert status == 0, err
    status, out, err = run("eval", "run", "--episodes", 1, "--video", "film.gif")
    assert status == 0, err
    assert "5 frames" in out
    assert Path("film.gif").stat().st_size > 0


def test_a_render_mode_changes_nothing_for_a_native_task(run):
    scores = []
    for more in ([], ["--env.kwargs.render_mode", "rgb_array"]):
        limit = ["--env.id", "InvertedPendulum-v5", "--env.kwargs.max_episode_steps", 20, *more]
        out = f"run{len(more)}"
        status, _, err = run("train", *limit, *TINY, "--out", out)
        assert status == 0, err
        lines = Path(f"{out}/metrics.jsonl").read_text().splitlines()
        scores.append([yaml.safe_load(line)["fitness_mean"] for line in lines])
    assert scores[0] == scores[1]
