"""Any Gymnasium environment as rows of a `TorchVectorEnv`, in this process or shared out over several."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from es_flipout.envs.contract import Mask, TorchVectorEnv, failure_info
from es_flipout.envs.engine import available_cores
from es_flipout.envs.env_processes import EnvProcesses
from es_flipout.envs.env_rows import EnvRows, RowArrays
from es_flipout.envs.mujoco.model_warnings import deprecations_silenced
from es_flipout.policies import box, make_action_head


def make_env(env_id: str, wrappers: Sequence[str] = (), **kwargs: Any) -> gym.Env[Any, Any]:
    """Makes one official environment and puts it into wrappers.

    Args:
        env_id: Gymnasium id, MODULE:ID to import a module that registers it first.
        wrappers: innermost first; each a name in gymnasium.wrappers, or MODULE:CLASS.
        **kwargs: keyword arguments of `gymnasium.make`.

    Raises:
        ValueError: if a wrapper does not exist.
        gymnasium.error.Error: if Gymnasium does not know the id.
    """
    with deprecations_silenced():
        env = gym.make(env_id, **kwargs)
    for name in wrappers:
        env = _find_wrapper(name)(env)
    return env


REMEMBERING_WRAPPERS = ("NormalizeObservation", "NormalizeReward")
"""Wrappers that keep something from one episode to the next, so that a return would depend on the slot."""


def _find_wrapper(name: str) -> Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]:
    module, _, attribute = name.rpartition(":")
    if attribute in REMEMBERING_WRAPPERS:
        raise ValueError(
            f"wrapper {name!r} keeps statistics from one episode to the next; policy.normalize_observations "
            "and es.fitness_shaping do its work"
        )
    try:
        wrapper: Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]] = getattr(
            import_module(module or "gymnasium.wrappers"), attribute
        )
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"wrapper {name!r} does not exist: give a name in gymnasium.wrappers, or MODULE:CLASS"
        ) from error
    return wrapper


class RowStepper(Protocol):
    """Runs the environments behind the rows; both calls return what went wrong, by row."""

    arrays: RowArrays

    def reset(self, seeds: Mapping[int, int | None]) -> dict[int, str]:
        """Resets rows, each with its seed, and writes their observations."""

    def step(self, rows: Sequence[int]) -> dict[int, str]:
        """Steps rows by the actions in the arrays, and writes what comes of it."""

    def close(self) -> None:
        """Closes the environments."""


def step_rows(
    make: Callable[[], gym.Env[Any, Any]], num_rows: int, first: gym.Env[Any, Any], processes: int | None
) -> RowStepper:
    """Makes environments in this process (`processes` = 0; `first` is then row 0) or in others.

    Args:
        make: makes one environment.
        num_rows: how many there are.
        first: one that has been made already; its spaces are those of all.
        processes: how many processes share them; None for one a core.

    Raises:
        ValueError: if observations or actions are of a kind that cannot be handled.
    """
    try:
        observations, actions = box(first.observation_space), first.action_space
        make_action_head(actions, "clip")
    except ValueError as error:
        first.close()
        raise ValueError(f"{first.spec.id if first.spec else first}: {error}") from error
    if processes == 0:
        return EnvRows(make, RowArrays.local(num_rows, observations, actions), first)
    return EnvProcesses(make, num_rows, observations, actions, min(processes or available_cores(), num_rows))


class GymnasiumVectorEnv(TorchVectorEnv):
    """N copies of a Gymnasium environment; only rows whose episode runs are stepped.

    An environment that raises is replaced by a new one, a process that dies by a new process; the episodes
    that were lost have failed. Info of the single environments is not passed on.
    """

    def __init__(
        self,
        make: Callable[[], gym.Env[Any, Any]],
        num_envs: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        processes: int | None = 0,
        first: gym.Env[Any, Any] | None = None,
    ) -> None:
        """Makes the environments.

        Args:
            make: makes one environment; with processes it must be picklable (by cloudpickle).
            num_envs: number of rows N.
            device: device of the tensors that `reset` and `step` return.
            dtype: floating dtype of observations and rewards.
            processes: how many processes share the rows: 0 for none but this one, None for one a core.
                They start by multiprocessing's forkserver, so a script needs its
                `if __name__ == "__main__":`.

        Raises:
            ValueError: if observations or actions are of a kind that cannot be handled.
        """
        env = make() if first is None else first
        self._rows = step_rows(make, num_envs, env, processes)
        if processes != 0:
            env.close()
        observations, actions = env.observation_space, env.action_space
        self.num_envs = num_envs
        self.device = torch.device(device)
        self.dtype = dtype
        self.single_observation_space = observations
        self.single_action_space = actions
        self.observation_space = batch_space(observations, num_envs)
        self.action_space = batch_space(actions, num_envs)
        self._terminated = np.ones(num_envs, dtype=np.bool_)
        self._truncated = np.zeros(num_envs, dtype=np.bool_)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Starts new episodes in the rows of `options["reset_mask"]` (all without); see `TorchVectorEnv`."""
        mask, seeds = self._reset_mask(options), self._row_seeds(seed)
        self._terminated[mask] = False
        self._truncated[mask] = False
        named = {row: seeds[row] for row in np.flatnonzero(mask).tolist()}
        failures = self._rows.reset({row: None if each is None else int(each) for row, each in named.items()})
        return self._observe(), self._end_failed(failures, ~self._terminated & ~self._truncated)

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Advances every row whose episode runs; see `TorchVectorEnv`.

        Raises:
            ValueError: if the actions are not of the shape of `action_space`.
        """
        self._check_actions(actions)
        arrays, live = self._rows.arrays, ~(self._terminated | self._truncated)
        arrays.actions[:] = torch.as_tensor(actions).cpu().numpy()
        info = self._end_failed(self._rows.step(np.flatnonzero(live).tolist()), live)
        stepped = live & ~info.get("failed", np.zeros_like(live))
        self._terminated |= stepped & arrays.terminated
        self._truncated |= stepped & arrays.truncated
        rewards = np.where(stepped, arrays.rewards, 0.0)
        return (
            self._observe(),
            torch.from_numpy(rewards).to(self.device, self.dtype),
            torch.from_numpy(self._terminated.copy()).to(self.device),
            torch.from_numpy(self._truncated.copy()).to(self.device),
            info,
        )

    def retire(self, mask: Mask) -> None:
        """See `TorchVectorEnv.retire`."""
        self._terminated |= mask & ~self._truncated

    def close_extras(self, **kwargs: Any) -> None:
        """Closes the environments and ends the processes."""
        self._rows.close()

    def _observe(self) -> Tensor:
        return torch.from_numpy(self._rows.arrays.observations).to(self.device, self.dtype, copy=True)

    def _end_failed(self, failures: Mapping[int, str], live: NDArray[np.bool_]) -> dict[str, Any]:
        """Ends the live rows among those that failed; returns their info entries."""
        info = failure_info({row: text for row, text in failures.items() if live[row]}, self.num_envs)
        if info:
            self._terminated |= info["failed"]
        return info
