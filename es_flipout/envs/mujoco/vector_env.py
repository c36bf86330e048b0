"""N copies of a MuJoCo task as one `gymnasium.vector.VectorEnv` of torch tensors."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from es_flipout.envs.batch import BatchEngine
from es_flipout.envs.engine import PhysicsEngine
from es_flipout.envs.mjdata_pool import MjDataPoolEngine
from es_flipout.envs.mujoco.task import MujocoTask


class MujocoVectorEnv(VectorEnv[Tensor, Tensor, Tensor]):
    """A batch of one MuJoCo task, stepped on all cores.

    Autoreset is disabled: a row whose episode has ended is frozen (no physics is spent on it, its
    observation and flags stay, its reward is 0) until `reset(options={"reset_mask": mask})` starts a
    new episode in it. Before their first reset all rows count as ended.
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012 - Gymnasium's own declaration

    def __init__(
        self,
        task: MujocoTask,
        num_envs: int,
        *,
        max_episode_steps: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        threads: int | None = None,
    ) -> None:
        """Creates the environments.

        Args:
            task: what is simulated, observed and rewarded.
            num_envs: number of rows N.
            max_episode_steps: env steps after which an episode is truncated; None for no limit.
            device: device of the tensors that `reset` and `step` return.
            dtype: floating dtype of observations and rewards; the physics is float64 whatever it is.
            threads: physics threads; every available core if None.
        """
        self.task = task
        self.num_envs = num_envs
        self.max_episode_steps = max_episode_steps
        self.device = torch.device(device)
        self.dtype = dtype
        engine = MjDataPoolEngine if task.needs_contact_forces else BatchEngine
        self.engine: PhysicsEngine = engine(task.model, num_envs, task.fields, threads)

        numpy_dtype = torch.empty(0, dtype=dtype).numpy().dtype
        size = self._observe().shape[1]
        low, high = task.model.actuator_ctrlrange.astype(np.float32).T
        self.single_observation_space = gym.spaces.Box(-np.inf, np.inf, (size,), numpy_dtype.type)
        self.single_action_space = gym.spaces.Box(low, high, dtype=np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

        self._rngs: list[np.random.Generator | None] = [None] * num_envs
        self._elapsed = torch.zeros(num_envs, dtype=torch.int64)
        self._terminated = torch.ones(num_envs, dtype=torch.bool)
        self._truncated = torch.zeros(num_envs, dtype=torch.bool)
        self._started = torch.zeros(num_envs, dtype=torch.bool)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Starts new episodes.

        Args:
            seed: an int gives row i the seed `seed + i`; a sequence gives one a row (None: that row draws
                on). A seeded row starts as `gymnasium.make(id).reset(seed=...)` does.
            options: `{"reset_mask": mask}`, bool [N], names the rows that start; all of them if absent.

        Returns:
            Observations of all rows [N, O] and an empty info.

        Raises:
            ValueError: if the mask or the sequence of seeds does not fit N.
        """
        mask = self._reset_mask(options)
        seeds = self._seeds(seed)
        ids = np.flatnonzero(mask).astype(np.int32)
        states = [self.task.initial_state(self._rng(i, seeds[i])) for i in ids.tolist()]
        if states:
            self.engine.reset(ids, np.stack([qpos for qpos, _ in states]), np.stack([v for _, v in states]))
        for tensor, value in (
            (self._elapsed, 0),
            (self._terminated, False),
            (self._truncated, False),
            (self._started, True),
        ):
            tensor[torch.from_numpy(ids).long()] = value
        return self._observe().to(self.device), {}

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Advances every row whose episode runs.

        Args:
            actions: [N, A], torch or numpy, any floating dtype; those of frozen rows are ignored.

        Returns:
            Observations [N, O], rewards [N], terminated [N] and truncated [N] (bool), and an info of the
            reward's terms, [N] each (meaningless in frozen rows).

        Raises:
            gymnasium.error.ResetNeeded: before the first reset.
            ValueError: if the actions are not [N, A].
        """
        if not self._started.any():
            raise gym.error.ResetNeeded("call reset before step")
        actions = torch.as_tensor(actions).detach().to("cpu")
        if actions.shape != self.action_space.shape:
            raise ValueError(f"actions must be {self.action_space.shape}, got {tuple(actions.shape)}")
        live = ~(self._terminated | self._truncated)
        all_live = bool(live.all())
        fields = self.engine.fields
        before = self.task.locate(fields)
        self.engine.step(
            actions.to(torch.float64).numpy(),
            self.task.frame_skip,
            None if all_live else np.flatnonzero(live.numpy()).astype(np.int32),
        )
        rewards, info = self.task.reward(before, self.task.locate(fields), fields, actions)
        if not all_live:
            rewards = torch.where(live, rewards, 0.0)
        self._terminated |= live & self.task.terminated(fields)
        self._elapsed += live
        if self.max_episode_steps is not None:
            self._truncated |= self._elapsed >= self.max_episode_steps
        return (
            self._observe().to(self.device),
            rewards.to(self.device, self.dtype),
            self._terminated.to(self.device, copy=True),
            self._truncated.to(self.device, copy=True),
            {name: value.to(self.device) for name, value in info.items()},
        )

    def close_extras(self, **kwargs: Any) -> None:
        """Ends the engine's threads."""
        self.engine.close()

    def _observe(self) -> Tensor:
        parts = self.task.observe(self.engine.fields)
        return torch.cat([part.to(self.dtype).reshape(self.num_envs, -1) for part in parts], dim=1)

    def _reset_mask(self, options: dict[str, Any] | None) -> np.ndarray[Any, np.dtype[np.bool_]]:
        if options is None or "reset_mask" not in options:
            return np.ones(self.num_envs, dtype=np.bool_)
        mask = np.asarray(torch.as_tensor(options["reset_mask"]).cpu())
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
            raise ValueError(f"reset_mask must be bool [{self.num_envs}], got {mask.dtype} {mask.shape}")
        return mask

    def _seeds(self, seed: int | Sequence[int | None] | None) -> Sequence[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, Sequence | np.ndarray):
            if len(seed) != self.num_envs:
                raise ValueError(f"{len(seed)} seeds for {self.num_envs} environments")
            return [None if one is None else operator.index(one) for one in seed]
        first = operator.index(seed)
        return range(first, first + self.num_envs)

    def _rng(self, row: int, seed: int | None) -> np.random.Generator:
        rng = self._rngs[row]
        if rng is None or seed is not None:
            rng = seeding.np_random(seed)[0]
            self._rngs[row] = rng
        return rng
