"""How fast engine warp steps by itself: the bound of a generation on the device."""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import torch

from es_flipout.bench.report import Figures
from es_flipout.envs.engines.warp import WarpEngine
from es_flipout.envs.native import native_maker
from es_flipout.rollout.device_envs import SeededStates, Starts
from es_flipout.run.config import Config

CONTROLS = 16
"""Different controls, taken in turns."""
STEPS_A_LOOK = 16
"""Env steps between two looks at the clock."""


class PhysicsAlone:
    """The engine of a configuration, all its simulations live and under random controls.

    Now and then all of them begin anew, so that they are in states like those of episodes: humanoids that lie
    on the ground have more contacts, and are slower, than those that walk.
    """

    def __init__(self, name: str, config: Config, episode_length: int) -> None:
        """Builds the engine and compiles its kernels.

        Args:
            name: of the figure.
            config: environment, slots and device; on engine "warp".
            episode_length: env steps after which all simulations begin anew.

        Raises:
            ValueError: if it cannot be run as configured.
        """
        env = config.env
        make = partial(native_maker(env.id, **env.kwargs), engine="warp", engine_kwargs=env.engine_kwargs)
        self._name, self._episode_length = name, episode_length
        self._env = make(env.num_envs, device=config.device, info=False)
        assert isinstance(self._env.engine, WarpEngine)
        self._engine = self._env.engine
        self._engine.compile(self._env.task.frame_skip)
        seeds = np.arange(env.num_envs).reshape(-1, 1)
        states = SeededStates.draw(self._env.task, seeds)
        self._starts = Starts.compute(self._engine, self._env.task, states, torch.float32)
        self._everyone = torch.ones(env.num_envs, dtype=torch.bool, device=self._engine.device)
        low, high = torch.from_numpy(self._env.task.model.actuator_ctrlrange).float().unbind(dim=1)
        random = torch.rand(CONTROLS, *self._engine.ctrl.shape, generator=torch.Generator().manual_seed(0))
        self._controls = torch.lerp(low, high, random).to(self._engine.device)
        self._steps = 0

    def measure(self, least_seconds: float) -> Figures:
        """Steps for about so many seconds."""
        done = 0
        self._wait()
        start = time.perf_counter()
        while (seconds := time.perf_counter() - start) < least_seconds or not done:
            for _ in range(STEPS_A_LOOK):
                if self._steps % self._episode_length == 0:
                    self._engine.restart(self._everyone, self._starts.qpos, self._starts.qvel)
                self._engine.ctrl.copy_(self._controls[self._steps % CONTROLS])
                self._engine.advance(self._env.task.frame_skip)
                self._steps += 1
            done += STEPS_A_LOOK
            self._wait()
        return {self._name: done * self._env.num_envs / seconds}

    def _wait(self) -> None:
        if self._engine.device.type == "cuda":
            torch.cuda.synchronize(self._engine.device)

    def close(self) -> None:
        """Frees the engine."""
        self._env.close()
