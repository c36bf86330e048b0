"""SB3-contrib: ARS with AsyncEval, a process for each core, observations normalized by VecNormalize."""

from __future__ import annotations

import time
from contextlib import closing, suppress
from functools import partial
from typing import Any

import gymnasium as gym
import torch
from sb3_contrib import ARS
from sb3_contrib.common.vec_env import AsyncEval
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from torch import nn

from benchmarks.peers.contestant import (
    HIDDEN,
    LEARNING_RATE,
    MAX_EPISODE_STEPS,
    SIGMA,
    Job,
    Measurement,
    cores,
    main,
)

BEST = {"processes": cores()}


class _MeasuredError(Exception):
    """Ends ARS.learn, which ignores what a callback returns."""


class TimedRollouts(BaseCallback):
    """Times from the start of the second rollout to the start of the first one after `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.env_steps = self.episodes = self.generations = self.rollouts = 0
        self.started = self.elapsed = 0.0

    def _on_rollout_start(self) -> None:
        self.rollouts += 1
        if self.rollouts == 2:
            self.started = time.perf_counter()
        if self.rollouts > 2:
            self.generations += 1
            self.elapsed = time.perf_counter() - self.started
            if self.elapsed >= self.seconds:
                raise _MeasuredError

    def _on_rollout_end(self) -> None:
        if self.rollouts >= 2:
            lengths = [info["l"] for info in self.model.ep_info_buffer]
            self.env_steps += int(sum(lengths))
            self.episodes += len(lengths)

    def _on_step(self) -> bool:
        return True


def make_env(task: str, seed: int) -> VecEnv:
    """Makes an environment that normalizes its observations."""

    def make() -> gym.Env[Any, Any]:
        env = gym.make(task, max_episode_steps=MAX_EPISODE_STEPS, disable_env_checker=True)
        env.reset(seed=seed)
        return env

    torch.set_num_threads(1)
    return VecNormalize(DummyVecEnv([make]), norm_reward=False)


def measure(job: Job) -> Measurement:
    """Measures ARS of SB3-contrib."""
    settings = job.settings(BEST)
    env = make_env(job.task, job.seed)
    model = ARS(
        "MlpPolicy",
        env,
        n_delta=job.population_size // 2,
        learning_rate=LEARNING_RATE,
        delta_std=SIGMA,
        zero_policy=False,
        policy_kwargs={"net_arch": [HIDDEN, HIDDEN], "activation_fn": nn.Tanh},
        seed=job.seed,
        device="cpu",
    )
    workers = [partial(make_env, job.task, job.seed + 1 + index) for index in range(settings["processes"])]
    callback = TimedRollouts(job.seconds)
    with closing(AsyncEval(workers, model.policy)) as evaluation, suppress(_MeasuredError):
        model.learn(2**62, callback, log_interval=1, async_eval=evaluation)
    return Measurement(
        callback.env_steps, callback.episodes, callback.elapsed, callback.generations, settings
    )


if __name__ == "__main__":
    packages = ["sb3-contrib", "stable-baselines3", "torch", "gymnasium", "mujoco", "numpy"]
    main(measure, packages)
