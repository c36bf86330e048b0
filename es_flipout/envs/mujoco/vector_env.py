"""N copies of a MuJoCo task as one `gymnasium.vector.VectorEnv` of torch tensors."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import seeding
from gymnasium.vector.utils import batch_space
from torch import Tensor

from es_flipout.envs.batch import BatchEngine
from es_flipout.envs.contract import Mask, TorchVectorEnv, failure_info, observation_box
from es_flipout.envs.engine import Ids, PhysicsEngine
from es_flipout.envs.mjdata_pool import MjDataPoolEngine
from es_flipout.envs.mujoco.task import Fields, MujocoTask
from es_flipout.envs.transfer import to_device, to_host
from es_flipout.envs.warp import WarpEngine

ENGINES = ("batch", "mjdata_pool", "warp")
"""Every physics engine, by name."""


def cpu_engine(task: MujocoTask) -> Literal["batch", "mjdata_pool"]:
    """Returns the fastest engine on the CPU that can run a task."""
    return "mjdata_pool" if task.needs_contact_forces else "batch"


class MujocoVectorEnv(TorchVectorEnv):
    """A batch of one MuJoCo task, on all cores or on a GPU; see `TorchVectorEnv` for what its rows do."""

    def __init__(
        self,
        task: MujocoTask,
        num_envs: int,
        *,
        max_episode_steps: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        engine: Literal["auto", "batch", "mjdata_pool", "warp"] = "auto",
        engine_kwargs: Mapping[str, Any] | None = None,
        threads: int | None = None,
        info: bool = True,
    ) -> None:
        """Creates the environments.

        Args:
            task: what is simulated, observed and rewarded.
            num_envs: number of rows N.
            max_episode_steps: env steps after which an episode is truncated; None for no limit.
            device: device of the tensors that `reset` and `step` return.
            dtype: floating dtype of observations and rewards; the physics is float64 whatever it is, but
                float32 with engine "warp".
            engine: "batch"; "mjdata_pool"; "auto", which is the latter if the task needs contact forces (on
                the CPU only it provides them), else the former, which is faster; or "warp", on `device`.
            engine_kwargs: keyword arguments of `WarpEngine`, such as njmax.
            threads: physics threads; every available core if None.
            info: whether `reset` and `step` return the task's info entries; without, they are faster.

        Raises:
            ValueError: if the engine cannot run the task.
        """
        if engine == "auto":
            engine = cpu_engine(task)
        self.task = task
        self.num_envs = num_envs
        self.max_episode_steps = max_episode_steps
        self.device = torch.device(device)
        self.dtype = dtype
        self._with_info = info
        fields = dict.fromkeys(["qpos", *task.fields, *(task.info_fields if info else ())])
        self.engine = _make_engine(
            engine, task, num_envs, list(fields), threads, self.device, dict(engine_kwargs or {})
        )

        low, high = task.model.actuator_ctrlrange.astype(np.float32).T
        self.single_observation_space = observation_box((self._observe(self.engine.fields).shape[1],), dtype)
        self.single_action_space = gym.spaces.Box(low, high, dtype=np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

        self._rngs: list[np.random.Generator | None] = [None] * num_envs
        self._observations = self._observe(self.engine.fields)
        self._located = task.locate(self.engine.fields).clone()
        self._terminated = np.ones(num_envs, dtype=np.bool_)
        self._truncated = np.zeros(num_envs, dtype=np.bool_)
        self._elapsed = np.zeros(num_envs, dtype=np.int64)
        self._live_ids: Ids | None = np.empty(0, np.int32)  # None if every row is live
        self._started = False

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
            Observations of all rows [N, O], and the task's info entries, [N, ...] each.

        Raises:
            ValueError: if the mask or the sequence of seeds does not fit N.
        """
        ids = np.flatnonzero(self._reset_mask(options)).astype(np.int32)
        seeds = self._row_seeds(seed)
        states = [self.task.initial_state(self._rng(i, seeds[i])) for i in ids.tolist()]
        info: dict[str, Any] = {}
        if states:
            self._started = True
            self.engine.reset(ids, np.stack([qpos for qpos, _ in states]), np.stack([v for _, v in states]))
            self._elapsed[ids] = 0
            self._terminated[ids] = self._truncated[ids] = False
            info = self._end_failed()
            self._update_live()
            self._look_at(torch.from_numpy(ids).long().to(self.engine.device))
        return self._given(self._observations), info | self._info({})

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Advances every row whose episode runs.

        Args:
            actions: [N, A], torch or numpy, float16, float32 or float64; those of frozen rows are ignored.

        Returns:
            Observations [N, O], rewards [N], terminated [N] and truncated [N] (bool), and the task's
            info entries, [N, ...] each (meaningless in frozen rows).

        Raises:
            gymnasium.error.ResetNeeded: before the first reset.
            ValueError: if the actions are not [N, A].
        """
        if not self._started:
            raise gym.error.ResetNeeded("call reset before step")
        actions = torch.as_tensor(actions).detach()
        self._check_actions(actions)
        on_host = self.engine.device.type == "cpu"
        actions = to_host(actions) if on_host else actions.to(self.engine.device)
        task, fields, live_ids = self.task, self.engine.fields, self._live_ids
        self.engine.step(actions, task.frame_skip, live_ids)
        before, self._located = self._located, task.locate(fields).clone()
        rewards, terms = task.reward(before, self._located, fields, actions)
        terminated = task.terminated(fields).cpu().numpy()
        self._elapsed += 1
        if live_ids is None:
            self._terminated = terminated.copy()
            if self.max_episode_steps is not None:
                self._truncated = self._elapsed >= self.max_episode_steps
        else:
            live = ~(self._terminated | self._truncated)
            rewards = torch.where(torch.from_numpy(live).to(rewards.device), rewards, 0.0)
            self._terminated |= terminated & live
            if self.max_episode_steps is not None:
                self._truncated |= (self._elapsed >= self.max_episode_steps) & live
        info = self._end_failed()
        if info:
            rewards = torch.where(torch.from_numpy(info["failed"]).to(rewards.device), 0.0, rewards)
        self._update_live()
        self._observations = self._observe(self.engine.fields)
        return (
            self._given(self._observations),
            self._given(rewards.to(self.dtype)),
            torch.from_numpy(self._terminated.copy()).to(self.device),
            torch.from_numpy(self._truncated.copy()).to(self.device),
            info | self._info(terms),
        )

    def retire(self, mask: Mask) -> None:
        """See `TorchVectorEnv.retire`."""
        self._terminated |= mask & ~self._truncated
        self._update_live()

    def close_extras(self, **kwargs: Any) -> None:
        """Closes the engine."""
        self.engine.close()

    def _given(self, values: Tensor) -> Tensor:
        """Returns a copy of a tensor of the engine's, where the caller wants it."""
        if self.engine.device.type == "cpu":
            return to_device(values, self.device)
        return values.to(self.device, copy=True)

    def _update_live(self) -> None:
        live = np.flatnonzero(~(self._terminated | self._truncated)).astype(np.int32)
        self._live_ids = None if len(live) == self.num_envs else live

    def _end_failed(self) -> dict[str, Any]:
        """Ends the rows whose simulation failed in the engine's last call; returns their info entries."""
        info = failure_info(self.engine.failures, self.num_envs)
        if info:
            self._terminated |= info["failed"]
        return info

    def _observe(self, fields: Fields) -> Tensor:
        return self.task.observation(fields, self.dtype)

    def _look_at(self, rows: Tensor) -> None:
        """Observes and locates rows that have been reset; those of the others are known."""
        fields = {name: value[rows] for name, value in self.engine.fields.items()}
        self._observations[rows] = self._observe(fields)
        self._located[rows] = self.task.locate(fields)

    def _info(self, terms: dict[str, Tensor]) -> dict[str, Any]:
        if not self._with_info:
            return {}
        info = self.task.state_info(self.engine.fields) | terms
        return {name: self._given(value) for name, value in info.items()}

    def _rng(self, row: int, seed: int | None) -> np.random.Generator:
        rng = self._rngs[row]
        if rng is None or seed is not None:
            rng = seeding.np_random(None if seed is None else int(seed))[0]
            self._rngs[row] = rng
        return rng


def _make_engine(
    name: str,
    task: MujocoTask,
    num_envs: int,
    fields: Sequence[str],
    threads: int | None,
    device: torch.device,
    kwargs: Mapping[str, Any],
) -> PhysicsEngine:
    parameters = inspect.signature(WarpEngine).parameters if name == "warp" else {}
    allowed = {key: each for key, each in parameters.items() if each.kind is each.KEYWORD_ONLY}
    for key, value in kwargs.items():
        if key not in allowed:
            of = f"allowed: {', '.join(allowed)}" if allowed else "only engine 'warp' has any"
            raise ValueError(f"engine {name!r} has no keyword argument {key!r} ({of})")
        if isinstance(allowed[key].default, bool):
            if not isinstance(value, bool):
                raise ValueError(f"{key} of engine {name!r} must be true or false, got {value!r}")
        elif type(value) is not int or value < 1:
            raise ValueError(f"{key} of engine {name!r} must be an integer >= 1, got {value!r}")
    if name == "warp":
        return WarpEngine(task.model, num_envs, fields, device, **kwargs)
    if name == "mjdata_pool":
        return MjDataPoolEngine(task.model, num_envs, fields, threads)
    if task.needs_contact_forces:
        raise ValueError("engine 'batch' has no contact forces (cfrc_ext), which the task reads")
    return BatchEngine(task.model, num_envs, fields, threads)
