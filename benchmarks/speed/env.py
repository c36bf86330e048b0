"""How fast an environment is stepped: raw physics, natively, by Gymnasium, and by the training loop."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from benchmarks.speed.replay import PhysicsCalls
from benchmarks.speed.timing import turns
from benchmarks.speed.training import record_physics, training
from es_flipout.cli.option_types import keyword_arguments
from es_flipout.cli.results import Results
from es_flipout.cli.throughput import ENV_STEPS
from es_flipout.envs import MujocoVectorEnv, make_env, make_vec
from es_flipout.run.config import Config, EnvConfig, ESConfig, EvaluationConfig, PolicyConfig

WARMUP_STEPS = 3
RAW_RANDOM = "raw physics, random actions"
NATIVE = "native vector environment"
SYNC = "Gymnasium SyncVectorEnv"
ASYNC = "Gymnasium AsyncVectorEnv"
ASYNC_1 = "Gymnasium AsyncVectorEnv, 1 env per core"
ASYNC_8 = "Gymnasium AsyncVectorEnv, 8 envs per core"
RAW_POLICY = "raw physics, the policies' actions"
LOOP = "training loop"
DEFAULTS = {"rounds": 3, "seconds": 5.0}


@dataclass(frozen=True)
class Rate:
    """Live env steps, and the seconds that they took."""

    env_steps: int
    seconds: float

    @property
    def per_second(self) -> float:
        """Live env steps per second."""
        return self.env_steps / self.seconds


def measure_native(config: Config, seconds: float, seed: int) -> tuple[Rate, Rate]:
    """Measures the native vector environment under uniform random actions, then the raw physics of it.

    Ended envs are reset at once. The environment returns no info, as in training. The raw physics is
    `mujoco.batch` repeating the very same steps and resets, without observations, rewards or contact forces
    on bodies.

    Returns:
        The rates of the environment and of its raw physics.
    """
    with closing(_make_native(config, config.env.num_envs)) as env:
        calls = PhysicsCalls.record(env.engine)
        low, high = torch.from_numpy(env.task.model.actuator_ctrlrange).float().unbind(dim=1)
        generator = torch.Generator().manual_seed(seed)
        start = time.perf_counter()
        env.reset(seed=seed)
        while not calls.steps or time.perf_counter() - start < seconds:
            random = torch.rand(env.num_envs, len(low), generator=generator)
            _, _, terminated, truncated, _ = env.step(torch.lerp(low, high, random))
            ended = terminated | truncated
            if ended.any():
                env.reset(options={"reset_mask": ended})
        elapsed = time.perf_counter() - start
        model = env.task.model
    return Rate(calls.env_steps, elapsed), Rate(calls.env_steps, calls.replay(model, config.threads))


def measure_training(config: Config, seconds: float) -> tuple[Rate, Rate]:
    """Measures whole generations of training, all but the first, then the raw physics of one.

    Everything that es-train does is in it but the scoring: policy, observations, statistics, resets, update,
    metrics, checkpoints. The raw physics is `mujoco.batch` repeating the steps and resets of a generation,
    all envs in one batch.

    Returns:
        The rates of the loop and of its raw physics.
    """
    with training(config) as (trainer, train_one):
        train_one()
        before, start = trainer.env_steps, time.perf_counter()
        while trainer.env_steps == before or time.perf_counter() - start < seconds:
            train_one()
        loop = Rate(trainer.env_steps - before, time.perf_counter() - start)
    calls, model = record_physics(config)
    return loop, Rate(calls.env_steps, calls.replay(model, config.threads))


def _make_native(config: Config, num_envs: int) -> MujocoVectorEnv:
    env = make_vec(
        config.env.id,
        num_envs,
        engine=config.env.engine,
        threads=config.threads,
        info=False,
        **config.env.kwargs,
    )
    if not isinstance(env, MujocoVectorEnv):
        env.close()
        raise ValueError(f"{config.env.id} is not a native task: it has no raw physics to compare with")
    return env


class GymnasiumContestant:
    """One of Gymnasium's vector environments under uniform random actions.

    It resets in the same step, so that every step of every env is live.
    """

    def __init__(self, kind: str, config: Config, num_envs: int, seed: int) -> None:
        def make() -> gym.Env[Any, Any]:
            return make_env(config.env.id, config.env.wrappers, disable_env_checker=True, **config.env.kwargs)

        vectorize = {"sync": SyncVectorEnv, "async": AsyncVectorEnv}[kind]
        self.env = vectorize([make] * num_envs, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)
        self.env.reset(seed=seed)
        self._rng = np.random.default_rng(seed)
        self._space = self.env.single_action_space
        for _ in range(WARMUP_STEPS):
            self._step()

    def _step(self) -> None:
        shape, space = self.env.action_space.shape, self._space
        self.env.step(self._rng.uniform(space.low, space.high, shape).astype(space.dtype))

    def measure(self, seconds: float) -> Rate:
        """Steps for about so many seconds."""
        steps, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds or steps == 0:
            self._step()
            steps += 1
        return Rate(steps * self.env.num_envs, elapsed)

    def close(self) -> None:
        """Closes the environments."""
        self.env.close()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this bench."""
    option = parser.add_argument
    option("--env", default="Humanoid-v5", help="a native task")
    option("--env-kwargs", type=keyword_arguments, default={}, help="its keyword arguments, as YAML")
    option("--num-envs", type=int, default=256, help="envs stepped together")
    option("--population-size", type=int, default=1024, help="members per generation of training")
    option("--hidden-sizes", type=int, nargs="*", default=[64, 64], help="of the MLP")


def measure(options: argparse.Namespace, results: Results) -> None:
    """Measures all contestants, one after the other, in alternating rounds.

    Raises:
        ValueError: if the environment is no native task.
    """
    threads, seconds, num_envs = options.threads, options.seconds, options.num_envs
    torch.set_num_threads(1)  # as es-train has it
    config = Config(
        env=EnvConfig(options.env, options.env_kwargs, num_envs),
        policy=PolicyConfig(hidden_sizes=options.hidden_sizes),
        es=ESConfig(population_size=options.population_size),
        evaluation=EvaluationConfig(interval=0),
        seed=options.seed,
        device="cpu",
        threads=threads,
    )

    def native(index: int) -> dict[str, Rate]:
        environment, physics = measure_native(config, seconds, seed=index)
        return {RAW_RANDOM: physics, NATIVE: environment}

    def of_gymnasium(name: str, kind: str, size: int, index: int) -> dict[str, Rate]:
        # Made anew each time: hundreds of idle processes would slow the others down.
        with closing(GymnasiumContestant(kind, config, size, seed=index)) as contestant:
            return {name: contestant.measure(seconds)}

    def loop(index: int) -> dict[str, Rate]:
        trained, physics = measure_training(config, seconds)
        return {RAW_POLICY: physics, LOOP: trained}

    contestants: dict[str, Callable[[int], dict[str, Rate]]] = {
        NATIVE: native,
        SYNC: partial(of_gymnasium, SYNC, "sync", num_envs),
        ASYNC: partial(of_gymnasium, ASYNC, "async", num_envs),
        ASYNC_1: partial(of_gymnasium, ASYNC_1, "async", threads),
        ASYNC_8: partial(of_gymnasium, ASYNC_8, "async", 8 * threads),
        LOOP: loop,
    }
    for index, name in turns(contestants, options.rounds):
        for contestant, rate in contestants[name](index).items():
            results.add(index, contestant, {ENV_STEPS: rate.per_second})
