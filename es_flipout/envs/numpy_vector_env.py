"""A `TorchVectorEnv` for users of Gymnasium's vector API: NumPy arrays, and info in Gymnasium's form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from es_flipout.envs.contract import FailureReason, Mask, TorchVectorEnv

Array = NDArray[Any]


class NumpyVectorEnv(VectorEnv[Array, Array, Array]):
    """What `gymnasium.make_vec("es_flipout/...")` returns, so that Gymnasium's vector wrappers work on it.

    As in Gymnasium, an env whose episode has ended is reset by the next step, and an info entry comes with a
    mask of the envs that it is of, bool [N], under its name with an underscore before. If an env has failed,
    `failure` says why. Players use the environment inside.

    Attributes:
        env: the environment inside, of torch tensors.
    """

    def __init__(
        self, env: TorchVectorEnv, autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP
    ) -> None:
        """Takes the environment, and closes it when it is closed.

        Args:
            env: the environment inside.
            autoreset_mode: NEXT_STEP as in Gymnasium, or DISABLED: an env that has ended stays as it is until
                `reset(options={"reset_mask": mask})` starts a new episode in it.

        Raises:
            ValueError: if the mode is neither.
        """
        mode = AutoresetMode(autoreset_mode)
        if mode is AutoresetMode.SAME_STEP:
            raise ValueError("autoreset_mode must be NEXT_STEP or DISABLED, got SAME_STEP")
        self.env = env
        self.metadata = {**env.metadata, "autoreset_mode": mode}
        self.num_envs = env.num_envs
        self.single_observation_space = env.single_observation_space
        self.single_action_space = env.single_action_space
        self.observation_space = env.observation_space
        self.action_space = env.action_space
        self._resets_itself = mode is AutoresetMode.NEXT_STEP
        self._ended = np.ones(self.num_envs, dtype=np.bool_)

    @override
    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Starts new episodes; see `TorchVectorEnv.reset`."""
        observations, info = self.env.reset(seed=seed, options=options)
        mask = np.asarray((options or {}).get("reset_mask", np.ones(self.num_envs, dtype=np.bool_)))
        self._ended = self._ended & ~mask
        return _numpy(observations), _numpy_info(info, mask)

    @override
    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Advances every env whose episode is running, and resets the others or leaves them as they are."""
        ended = self._ended
        observations, rewards, *ends, info = self.env.step(torch.tensor(np.asarray(actions)))
        terminated, truncated = (_numpy(each) for each in ends)
        found = _numpy_info(info, ~ended)
        if self._resets_itself and ended.any():
            observations, info = self.env.reset(options={"reset_mask": ended})
            terminated[ended] = truncated[ended] = False
            _add_info(found, _numpy_info(info, ended), ended)
        self._ended = terminated | truncated
        return _numpy(observations), _numpy(rewards).astype(np.float64), terminated, truncated, found

    @override
    def close_extras(self, **kwargs: Any) -> None:
        self.env.close(**kwargs)


def _numpy(values: Tensor) -> Array:
    array: Array = values.cpu().numpy()
    return array


def _numpy_info(info: dict[str, Any], mask: Mask) -> dict[str, Any]:
    """Returns the info in Gymnasium's form; its entries are of the envs in `mask`."""
    found: dict[str, Any] = {}
    for name, value in info.items():
        if isinstance(value, Tensor) and mask.any():
            array = _numpy(value)
            array[~mask] = 0
            found |= {name: array, f"_{name}": mask.copy()}
    if "failed" in info:
        reasons = np.full(len(mask), None, dtype=object)
        reasons[info["failed"]] = [FailureReason(each) for each in info["failures"]]
        found |= {"failure": reasons, "_failure": info["failed"].copy()}
    return found


def _add_info(info: dict[str, Any], more: dict[str, Any], mask: Mask) -> None:
    """Adds the info of the envs in `mask`, in place, to that of the others."""
    for name, value in more.items():
        if name in info:
            info[name][mask] = value[mask]
        else:
            info[name] = value
