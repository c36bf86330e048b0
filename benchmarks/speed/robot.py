"""A task of a robot against a plain loop of mj_step, and what its randomization costs, in CPU time.

The actions of a policy are noted once. Then the native environment takes them again (controls, observation,
reward, termination and the state of each episode), and a plain Python loop of `mj_step`, one MjData at a
time, repeats the same episodes under the same controls, with nothing around it. Both run on one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import closing

import mujoco
import torch
from torch import Tensor, nn

from benchmarks.speed.replay import Episode, PhysicsCalls
from benchmarks.speed.timing import turns
from es_flipout.cli.arguments import load_config
from es_flipout.cli.results import Results
from es_flipout.cli.throughput import ENV_STEPS
from es_flipout.envs import MujocoVectorEnv, make_vec
from es_flipout.run import checkpoint
from es_flipout.run.build import make_policy
from es_flipout.run.run_directory import RunDirectory

NATIVE, LOOP, RANDOMIZED = "native environment", "plain loop of mj_step", "native environment, randomized"
DEFAULTS = {"rounds": 7, "seconds": 2.0}


class Player:
    """Plays the same episodes again and again."""

    def __init__(self, env: MujocoVectorEnv, policy: nn.Module, seed: int) -> None:
        """Plays them once, and notes the actions.

        Args:
            env: all of its envs play one episode.
            policy: the actions are its.
            seed: reset seed of the first episode; that of env i is seed + i.
        """
        self._env, self._seed = env, seed
        self._actions: list[Tensor] = []
        self.calls = PhysicsCalls.record(env.engine)
        observations, _ = env.reset(seed=seed)
        with torch.no_grad():
            while not env.ended.all():
                self._actions.append(policy(observations))
                observations, *_ = env.step(self._actions[-1])
        del env.engine.reset, env.engine.step  # what notes the calls
        self.env_steps = self.calls.env_steps

    def play(self) -> int:
        """Plays; returns the live env steps."""
        self._env.reset(seed=self._seed)
        for actions in self._actions:
            self._env.step(actions)
        return self.env_steps


def plain_loop(model: mujoco.MjModel, episodes: Sequence[Episode], num_substeps: int) -> int:
    """Steps one simulation after the other; returns the env steps."""
    data = mujoco.MjData(model)
    return sum(episode.play(model, data, num_substeps) for episode in episodes)


def cpu_rate(play: Callable[[], int], seconds: float) -> float:
    """Returns live env steps per second of CPU time."""
    steps, start = 0, time.process_time()
    while not steps or time.process_time() - start < seconds:
        steps += play()
    return steps / (time.process_time() - start)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this bench."""
    parser.add_argument("--run", required=True, help="run directory of a policy for the task")
    parser.add_argument("--num-envs", type=int, default=32, help="envs stepped together")


def measure(options: argparse.Namespace, results: Results) -> None:
    """Measures all contestants in alternating rounds."""
    torch.set_num_threads(1)  # as es-train has it
    run = RunDirectory.open(options.run)
    config = load_config(run.config)

    def make(randomize: bool) -> MujocoVectorEnv:
        env = make_vec(
            config.env.id,
            options.num_envs,
            threads=1,
            info=False,
            randomize=randomize,
            **config.env.kwargs,
        )
        if not isinstance(env, MujocoVectorEnv):
            raise ValueError(f"{config.env.id} is not a native task")
        return env

    with closing(make(False)) as nominal, closing(make(True)) as randomized:
        policy = make_policy(config.policy, nominal.single_observation_space, nominal.single_action_space)
        path = run.best if run.best.exists() else run.last
        checkpoint.load_policy(policy, checkpoint.load(path), path)
        native, varied = (Player(env, policy, options.seed) for env in (nominal, randomized))
        episodes, model, num_substeps = native.calls.episodes(), nominal.task.model, nominal.task.frame_skip
        contestants: dict[str, Callable[[], int]] = {
            NATIVE: native.play,
            LOOP: lambda: plain_loop(model, episodes, num_substeps),
            RANDOMIZED: varied.play,
        }
        for index, name in turns(contestants, options.rounds):
            results.add(index, name, {ENV_STEPS: cpu_rate(contestants[name], options.seconds)})
