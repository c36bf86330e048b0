"""N copies of a MuJoCo task as one `gymnasium.vector.VectorEnv` of torch tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import seeding
from gymnasium.vector.utils import batch_space
from torch import Tensor
from typing_extensions import override

from es_flipout.envs.contract import Mask, TorchVectorEnv, check_num_envs, failure_info, observation_box
from es_flipout.envs.engines.contract import Ids
from es_flipout.envs.masks import where_rows
from es_flipout.envs.mujoco.checked_task import CheckedTask
from es_flipout.envs.mujoco.env_state import EnvState
from es_flipout.envs.mujoco.hook_calls import HookCalls
from es_flipout.envs.mujoco.make_engine import cpu_engine, make_engine
from es_flipout.envs.mujoco.start import Start, StartBatch
from es_flipout.envs.mujoco.task import MujocoTask
from es_flipout.envs.mujoco.task_error import TaskError
from es_flipout.envs.mujoco.task_trial import try_task
from es_flipout.envs.transfer import to_device, to_host

if TYPE_CHECKING:
    from es_flipout.envs.mujoco.fused_step import FusedStep


class MujocoVectorEnv(TorchVectorEnv):
    """N envs of one MuJoCo task, on all cores or on a GPU.

    A seeded env starts as `gymnasium.make(id).reset(seed=...)` does. The info holds the task's entries,
    [N, ...] each, meaningless in frozen envs. An env for which the task raises, or returns what it must not,
    has failed; the info of that step lacks the task's entries. `step` also takes NumPy actions, and raises
    `gymnasium.error.ResetNeeded` before the first reset.

    Attributes:
        task: the task as given.
        checked_task: the same, to be called through.
        engine: the physics.
        fused: the compiled task, with the environment's arrays; None if it is not compiled.
        not_fused: why it could not be.
    """

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
        fused: bool = True,
        randomize: bool = False,
    ) -> None:
        """Creates the envs.

        Args:
            task: the model, and what is observed and rewarded.
            num_envs: number of envs N.
            max_episode_steps: env steps after which an episode is truncated; None for no limit.
            device: device of the tensors that `reset` and `step` return.
            dtype: floating dtype of observations. It does not affect the physics, which is
                float64, or float32 with engine "warp".
            engine: "batch", the fastest on the CPU; "mjdata_pool", which also computes contact forces;
                "auto", the one of these two that the task needs; or "warp", on `device`.
            engine_kwargs: keyword arguments of `WarpEngine`, such as njmax.
            threads: number of physics threads; one per available core if None.
            info: whether `reset` and `step` return the task's info entries; they are faster without.
            fused: whether the task's hooks are compiled if they can be: on the CPU, without info, for
                float32 actions.
            randomize: whether episodes are randomized, by the task's hook `randomize` and its noise; a task
                without randomization is the same either way.

        Raises:
            ValueError: if there are no envs, the engine cannot run the task, or a trial shows its mistakes.
        """
        check_num_envs(num_envs)
        if max_episode_steps is not None and max_episode_steps < 1:
            raise ValueError(f"max_episode_steps must be >= 1 or None, got {max_episode_steps}")
        self.checked_task = CheckedTask(task, randomize=randomize)
        if engine == "auto":
            engine = cpu_engine(task)
        self.task = task
        self.num_envs = num_envs
        self.max_episode_steps = max_episode_steps
        self.device = torch.device(device)
        self.dtype = dtype
        self._with_info = info
        fields = dict.fromkeys([*self.checked_task.fields, *(self.checked_task.info_fields if info else ())])
        self.engine = make_engine(
            engine,
            task,
            num_envs,
            list(fields),
            device=self.device,
            threads=threads,
            kwargs=engine_kwargs or {},
            varied=self.checked_task.varied,
        )

        self._state = EnvState(self.checked_task, self.engine.fields, num_envs)
        try_task(self.checked_task, self.engine, self._state, info=info)
        self._hooks = HookCalls(self.checked_task, self._state, dtype, info=info)
        self._observations = self._hooks.observations
        self._inputs: dict[str, Tensor] = {}

        low, high = self.checked_task.action_range
        self.single_observation_space = observation_box(tuple(self._observations.shape[1:]), dtype)
        self.single_action_space = gym.spaces.Box(low, high, dtype=np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

        self._rngs: list[np.random.Generator | None] = [None] * num_envs
        self._terminated = np.ones(num_envs, dtype=np.bool_)
        self._truncated = np.zeros(num_envs, dtype=np.bool_)
        self._elapsed = np.zeros(num_envs, dtype=np.int64)
        self._live_ids: Ids | None = np.empty(0, np.int32)  # None if every env is live
        self._live = np.zeros(num_envs, dtype=np.bool_)
        self._started = False
        self.fused: FusedStep | None = None
        self.not_fused = ""
        if fused and not info and engine != "warp":
            self._fuse()

    def _fuse(self) -> None:
        from es_flipout.envs.mujoco.fused_step import FusedStep, NotFusedError

        try:
            self.fused = FusedStep(
                self.checked_task, self.engine, self._state, self._observations, self._hooks.located
            )
        except NotFusedError as error:
            self.not_fused = str(error)

    @override
    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        ids, seeds = np.flatnonzero(self._reset_mask(options)).astype(np.int32), self._env_seeds(seed)
        info = self._end_failed(self._start(ids, seeds) if len(ids) else {})
        if self._with_info:
            with contextlib.suppress(TaskError):  # of an env that ended long ago
                info |= self._given_all(self._hooks.info())
        return self._given(self._observations), info

    def _start(self, ids: Ids, seeds: Sequence[int | None]) -> dict[int, str]:
        """Starts an episode in each of some envs, [M]; returns what went wrong, by env."""
        self._started = True
        self._elapsed[ids] = 0
        self._terminated[ids] = self._truncated[ids] = False
        drawn: dict[int, Start] = {}
        failures: dict[int, str] = {}
        for i in ids.tolist():
            try:
                drawn[i] = self.checked_task.start(self._rng(i, seeds[i]))
            except TaskError as error:
                failures[i] = str(error)
        if not drawn:
            return failures
        begun, starts = np.array(list(drawn), dtype=np.int32), StartBatch.of(list(drawn.values()))
        self.engine.reset(begun, starts.qpos, starts.qvel, starts.model)
        self._state.begin(begun, starts)
        failures.update(self.engine.failures)
        if self.fused is not None:
            self.fused.observe(begun)
            return failures
        return self._hooks.look_at(begun) | failures

    @override
    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        if not self._started:
            raise gym.error.ResetNeeded("call reset before step")
        actions = torch.as_tensor(actions).detach()
        self._check_actions(actions)
        if self.fused is not None and actions.dtype == torch.float32:
            self.fused.actions[:] = self.fused.controls[:] = to_host(actions).numpy()
            info = self.advance()[1]
            return self._given_step(torch.from_numpy(self.fused.rewards), info)
        on_host = self.engine.device.type == "cpu"
        actions = to_host(actions) if on_host else actions.to(self.engine.device)
        live_ids = self._live_ids
        live_list = range(self.num_envs) if live_ids is None else live_ids.tolist()
        inputs, failures = self._hooks.control(actions, live_list)
        self._hand_over(inputs)
        self.engine.step(None, self.task.frame_skip, live_ids)
        live = torch.from_numpy(~self.ended).to(self.engine.device)
        if self._state.draws:
            self._state.draw(live, torch.from_numpy(self._elapsed + 1).to(self.engine.device))
        outcome, raised = self._hooks.outcome(actions, live_list)
        failures = {**raised, **failures, **self.engine.failures}
        rewards, observations = outcome.rewards, outcome.observations
        if live_ids is not None:  # `update_state` has moved on in frozen envs, too
            observations = where_rows(live, observations, self._observations)
        self._hooks.located.copy_(outcome.located)
        self._observations.copy_(observations)
        terminated = outcome.terminated.cpu().numpy()
        self._elapsed += 1
        if live_ids is None:
            self._terminated[:] = terminated
            if self.max_episode_steps is not None:
                self._truncated[:] = self._elapsed >= self.max_episode_steps
        else:
            mask = ~self.ended
            rewards = torch.where(live, rewards, 0.0)
            self._terminated |= terminated & mask
            if self.max_episode_steps is not None:
                self._truncated |= (self._elapsed >= self.max_episode_steps) & mask
        info = self._end_failed(failures)
        if info:
            rewards = torch.where(torch.from_numpy(info["failed"]).to(rewards.device), 0.0, rewards)
        given = self._given_step(rewards.double(), info | self._given_all(outcome.info))
        # Last, because rewards and info may be views of entries, as they were before the step.
        self._state.keep(outcome.state, None if live_ids is None else live)
        return given

    def _hand_over(self, inputs: Mapping[str, Tensor]) -> None:
        """Gives the physics its inputs for a step, [N, ...] each; forces that are missing are 0."""
        for name in inputs:
            if name not in self._inputs:
                self._inputs[name] = self.engine.input(name)
        for name, values in self._inputs.items():
            if name in inputs:
                values.copy_(inputs[name])
            else:
                values.zero_()

    def _given_step(
        self, rewards: Tensor, info: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        return (
            self._given(self._observations),
            self._given(rewards),
            torch.from_numpy(self._terminated.copy()).to(self.device),
            torch.from_numpy(self._truncated.copy()).to(self.device),
            info,
        )

    @property
    def ended(self) -> Mask:
        """Which episodes have ended, bool [N]."""
        return self._terminated | self._truncated

    def advance(self) -> tuple[int, dict[str, Any]]:
        """Steps live envs under the actions of `fused`.

        Its `controls` must equal them, unless the task makes controls of actions itself. What comes of it is
        where `fused` has it.

        Returns:
            How many episodes have ended, and the info entries about those that failed.
        """
        assert self.fused is not None
        if self.fused.control is not None:
            self.fused.control(self._live)
        self.engine.step(None, self.task.frame_skip, self._live_ids)
        self._state.draw_fused(self._live, self._elapsed)
        self.fused.step(self._live)
        num_ended = self.fused.end(
            self._live,
            self._elapsed,
            self.max_episode_steps or 0,
            self._terminated,
            self._truncated,
        )
        info: dict[str, Any] = {}
        if num_ended or self.engine.failures:
            info = self._end_failed(self.engine.failures)
            if info:
                self.fused.rewards[info["failed"]] = 0.0
                num_ended = max(num_ended, 1)
        return num_ended, info

    @override
    def retire(self, mask: Mask) -> None:
        self._terminated |= mask & ~self._truncated
        self._update_live()

    @override
    def close_extras(self, **kwargs: Any) -> None:
        self._inputs = {}
        self._state.close()
        self.engine.close()

    def _given(self, values: Tensor) -> Tensor:
        """Returns a copy of one of the engine's tensors on the caller's device."""
        if self.engine.device.type == "cpu":
            return to_device(values, self.device)
        return values.to(self.device, copy=True)

    def _update_live(self) -> None:
        np.logical_not(self._terminated | self._truncated, out=self._live)
        live = np.flatnonzero(self._live).astype(np.int32)
        self._live_ids = None if len(live) == self.num_envs else live

    def _end_failed(self, failures: Mapping[int, str]) -> dict[str, Any]:
        """Ends the envs that failed, and notes which are live; returns the info entries of the former."""
        info = failure_info(failures, self.num_envs)
        if info:
            self._terminated |= info["failed"]
        self._update_live()
        return info

    def _given_all(self, info: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self._given(value) for name, value in info.items()}

    def _rng(self, i: int, seed: int | None) -> np.random.Generator:
        rng = self._rngs[i]
        if rng is None or seed is not None:
            rng = seeding.np_random(None if seed is None else int(seed))[0]
            self._rngs[i] = rng
        return rng
