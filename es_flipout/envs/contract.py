"""The contract of the vector environments that a player uses: envs that start and end independently."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

Mask = NDArray[np.bool_]
OWN_INFO = ("failed", "failures", "started")
"""Info entries of a `TorchVectorEnv` that are not the environment's."""


class TorchVectorEnv(VectorEnv[Tensor, Tensor, Tensor]):
    """A `gymnasium.vector.VectorEnv` of torch tensors whose N envs start and end independently.

    - Autoreset is disabled. An env whose episode has ended is frozen: it is not stepped, its observation and
      flags stay, and its reward is 0, until `reset(options={"reset_mask": mask})` starts a new episode in
      it. Before its first reset an env counts as ended.
    - An env that fails (the physics blew up, the environment raised, its process died) ends like a
      terminated one, with reward 0, and can be reset like any other. The info of that call holds `failed`,
      bool array [N], and `failures`, a list with one line per failed env.
    - `reset` may be unable to start an env at once. Its info then holds `started`, bool array [N]; the
      others stay ended, and the caller asks again after the next step. If no env is live, at least one of
      the requested envs starts.

    Attributes:
        device: device of the tensors that `reset` and `step` return.
        dtype: floating dtype of observations.
        restarts_anytime: whether an env can be reset or retired before its episode has ended.
        default_limit: env steps after which episodes are cut off because the environment has no limit of its
            own (see `make_vec`); None if it has one, was asked for none, or does not say.
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012 - Gymnasium's own declaration
    device: torch.device
    dtype: torch.dtype
    restarts_anytime: bool = True
    default_limit: int | None = None

    @override
    @abstractmethod
    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Starts new episodes.

        Args:
            seed: an int gives env i the seed `seed + i`; a sequence gives one per env (None: that env keeps
                its random generator).
            options: `{"reset_mask": mask}`, bool [N], selects the envs that start; all of them if absent.

        Returns:
            Observations of all envs [N, ...], and the info.

        Raises:
            ValueError: if the mask or the sequence of seeds does not fit N.
        """

    @override
    @abstractmethod
    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Advances every env whose episode is running.

        Args:
            actions: actions [N, ...]; ignored in frozen envs.

        Returns:
            Observations [N, ...], rewards, float64 [N], terminated and truncated, bool [N], and the info.

        Raises:
            ValueError: if the actions do not have the shape of `action_space`, or are floats and the space is
                of integers.
        """

    @abstractmethod
    def retire(self, mask: Mask) -> None:
        """Ends the episodes of the envs in `mask`, bool [N], which stay frozen until they are reset."""

    def _reset_mask(self, options: dict[str, Any] | None) -> Mask:
        """Returns the envs that a call of `reset` selects: all of them without a mask."""
        if options is None or "reset_mask" not in options:
            return np.ones(self.num_envs, dtype=np.bool_)
        mask = np.asarray(torch.as_tensor(options["reset_mask"]).cpu())
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
            raise ValueError(f"reset_mask must be bool [{self.num_envs}], got {mask.dtype} {mask.shape}")
        return mask

    def _env_seeds(self, seed: int | Sequence[int | None] | None) -> Sequence[int | None]:
        """Returns one seed per env: an int counts up, None lets each env keep its random generator."""
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int | np.integer):
            return range(int(seed), int(seed) + self.num_envs)
        if len(seed) != self.num_envs:
            raise ValueError(f"{len(seed)} seeds for {self.num_envs} environments")
        return seed

    def _check_actions(self, actions: Tensor) -> None:
        if actions.shape != self.action_space.shape:
            raise ValueError(f"actions must be {self.action_space.shape}, got {tuple(actions.shape)}")
        wanted = self._action_dtype
        if actions.dtype is not wanted and not torch.can_cast(actions.dtype, wanted):
            raise ValueError(
                f"actions must be {wanted}, as action_space is, got {actions.dtype}, which would be cut off"
            )

    @functools.cached_property
    def _action_dtype(self) -> torch.dtype:
        return torch_dtype(self.action_space)


def check_num_envs(num_envs: Any) -> None:
    """Checks a number of envs: an environment without any would keep a player waiting for ever.

    Raises:
        ValueError: if it is not a positive integer.
    """
    if not isinstance(num_envs, int | np.integer) or isinstance(num_envs, bool) or num_envs < 1:
        raise ValueError(f"num_envs must be an integer >= 1, got {num_envs!r}")


class FailureReason(str):
    """Why an episode has failed, as the info entry `failure` of ours: that of others may mean anything."""

    __slots__ = ()


def failure_info(failures: Mapping[int, str], num_envs: int) -> dict[str, Any]:
    """Returns the info entries `failed` and `failures`, given what went wrong by env; none if nothing did."""
    if not failures:
        return {}
    ids = sorted(failures)
    failed = np.zeros(num_envs, dtype=np.bool_)
    failed[ids] = True
    return {"failed": failed, "failures": [failures[i] for i in ids]}


@functools.cache
def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """Returns the NumPy dtype that equals a torch dtype."""
    return torch.empty(0, dtype=dtype).numpy().dtype


def torch_dtype(space: gym.Space[Any]) -> torch.dtype:
    """Returns the torch dtype that equals a space's dtype.

    Raises:
        ValueError: if there is none.
    """
    try:
        return torch.from_numpy(np.empty(0, space.dtype)).dtype
    except TypeError as error:
        raise ValueError(f"{space} has a dtype that torch does not know: {space.dtype}") from error


def observation_box(shape: tuple[int, ...], dtype: torch.dtype) -> gym.spaces.Box:
    """Returns an unbounded observation space, given a shape and a torch dtype."""
    return gym.spaces.Box(-np.inf, np.inf, shape, numpy_dtype(dtype).type)
