"""Any Gymnasium environment as a `TorchVectorEnv`, in this process or distributed over several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from torch import Tensor
from typing_extensions import override

from es_flipout.envs.contract import Mask, TorchVectorEnv, check_num_envs, failure_info, torch_dtype
from es_flipout.envs.env_processes import EnvProcesses
from es_flipout.envs.guarded_env import MakeEnv, close_env, spaces_of
from es_flipout.envs.local_envs import EnvArrays, LocalEnvs
from es_flipout.envs.time_limit import default_limit
from es_flipout.policies import make_action_head
from es_flipout.processes import available_cores


class EnvStepper(Protocol):
    """Resets and steps N envs; both methods return what went wrong, by env."""

    arrays: EnvArrays

    def reset(self, seeds: Mapping[int, int | None]) -> dict[int, str]:
        """Resets envs, each with its seed, and writes their observations."""

    def step(self, ids: Sequence[int]) -> dict[int, str]:
        """Steps envs by their actions in the arrays, and writes the results."""

    def close(self) -> None:
        """Closes the environments."""


class GymnasiumVectorEnv(TorchVectorEnv):
    """N copies of a Gymnasium environment; only envs whose episode is running are stepped.

    An environment that raises, or returns what it must not, is replaced by a new one, and a process that dies
    by a new process; the episodes that were lost have failed. Of the info of the single environments, `step`
    keeps the entries that are asked for, each a tensor float64 [N], NaN where an environment has none.
    Observations that are no Box are flattened; see `FlatBox`.
    """

    def __init__(
        self,
        make: MakeEnv,
        num_envs: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        processes: int | None = 0,
        first: gym.Env[Any, Any] | None = None,
        info: Sequence[str] = (),
    ) -> None:
        """Makes the environments.

        Args:
            make: makes one environment; with processes it must be picklable (by cloudpickle).
            num_envs: number of envs N.
            device: device of the tensors that `reset` and `step` return.
            dtype: floating dtype of observations. In float64 they are exactly what the environment returned.
            processes: number of processes that share the envs: 0 for this process alone, None for one per
                core.
            first: an environment made already, for example one that renders. It becomes env 0, or with
                processes only provides the spaces; in either case it is closed here.
            info: names of the info entries that are kept. An env in which one is not a number has failed.

        Raises:
            ValueError: if there are no envs, or observations or actions are of a kind that is not supported.
            RuntimeError: if a process cannot make its environments.
        """
        check_num_envs(num_envs)
        first = make() if first is None else first
        observations, actions = _checked_spaces(first)
        self._envs = _make_stepper(make, num_envs, first, observations, actions, processes, info)
        self._info = info
        self.num_envs = num_envs
        self.device = torch.device(device)
        self.dtype = dtype
        self.default_limit = default_limit(first)
        self.single_observation_space = observations
        self.single_action_space = actions
        self.observation_space = batch_space(observations, num_envs)
        self.action_space = batch_space(actions, num_envs)
        self._terminated = np.ones(num_envs, dtype=np.bool_)
        self._truncated = np.zeros(num_envs, dtype=np.bool_)

    @override
    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        mask, seeds = self._reset_mask(options), self._env_seeds(seed)
        self._terminated[mask] = False
        self._truncated[mask] = False
        selected = {i: seeds[i] for i in np.flatnonzero(mask).tolist()}
        failures = self._envs.reset({i: None if each is None else int(each) for i, each in selected.items()})
        return self._observe(), self._end_failed(failures, ~self._terminated & ~self._truncated)

    @override
    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        actions = torch.as_tensor(actions)
        self._check_actions(actions)
        arrays, live = self._envs.arrays, ~(self._terminated | self._truncated)
        arrays.actions[:] = actions.detach().to("cpu", self._action_dtype).numpy()
        info = self._end_failed(self._envs.step(np.flatnonzero(live).tolist()), live)
        stepped = live & ~info.get("failed", np.zeros_like(live))
        self._terminated |= stepped & arrays.terminated
        self._truncated |= stepped & arrays.truncated
        rewards = np.where(stepped, arrays.rewards, 0.0)
        return (
            self._observe(),
            torch.from_numpy(rewards).to(self.device),
            torch.from_numpy(self._terminated.copy()).to(self.device),
            torch.from_numpy(self._truncated.copy()).to(self.device),
            info | self._kept_info(),
        )

    @override
    def retire(self, mask: Mask) -> None:
        self._terminated |= mask & ~self._truncated

    @override
    def close_extras(self, **kwargs: Any) -> None:
        self._envs.close()

    def _observe(self) -> Tensor:
        return torch.from_numpy(self._envs.arrays.observations).to(self.device, self.dtype, copy=True)

    def _kept_info(self) -> dict[str, Tensor]:
        values = self._envs.arrays.info
        return {
            name: torch.from_numpy(values[:, k].copy()).to(self.device) for k, name in enumerate(self._info)
        }

    def _end_failed(self, failures: Mapping[int, str], live: Mask) -> dict[str, Any]:
        """Ends the live envs among those that failed; returns their info entries."""
        info = failure_info({i: text for i, text in failures.items() if live[i]}, self.num_envs)
        if info:
            self._terminated |= info["failed"]
        return info


def _checked_spaces(env: gym.Env[Any, Any]) -> tuple[spaces.Box, gym.Space[Any]]:
    """Returns the spaces of observations, flattened, and of actions; closes the environment if it is refused.

    Raises:
        ValueError: if no policy can observe the former or act in the latter.
    """
    try:
        observations, actions = spaces_of(env)
        make_action_head(actions, "clip")  # refuses spaces that no policy can act in
        for space in (observations, actions):
            torch_dtype(space)
    except ValueError as error:
        close_env(env)
        raise ValueError(f"{env.spec.id if env.spec else env}: {error}") from error
    return observations, actions


def _make_stepper(
    make: MakeEnv,
    num_envs: int,
    first: gym.Env[Any, Any],
    observations: spaces.Box,
    actions: gym.Space[Any],
    processes: int | None,
    info: Sequence[str],
) -> EnvStepper:
    if processes == 0:
        return LocalEnvs(make, EnvArrays.local(num_envs, observations, actions, len(info)), info, first)
    close_env(first)
    processes = min(processes or available_cores(), num_envs)
    return EnvProcesses(make, num_envs, observations, actions, processes, info)
