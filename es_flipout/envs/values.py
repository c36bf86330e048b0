"""What environments return, checked: observations, rewards and flags, of one env or of N.

This is the border to code that others wrote. Every function takes whatever came, returns it in the one form
that the rest of the package works with, and raises an `EnvFault` for anything that would lose its meaning on
the way. NaN and infinity are numbers here; the table of episodes counts them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from es_flipout.described import described
from es_flipout.envs.array_kinds import shared_tensor
from es_flipout.envs.contract import numpy_dtype
from es_flipout.error_text import OneLineError, error_text

OLD_API = "this is the API before Gymnasium 0.26"
_NUMBERS = (float, np.floating, int, np.integer, Real, Decimal)  # those that come most often first
_FLAGS = (bool, np.bool_)
_INFOS = (dict, Mapping, type(None))


class EnvFault(OneLineError, ValueError):  # noqa: N818 - a fault, as of an episode
    """What is wrong with a user's environment."""


# What a method returns as a whole.


def reset_result(result: Any) -> tuple[Any, Mapping[str, Any]]:
    """Returns the observation and the info that `reset` returned."""
    if isinstance(result, tuple | list) and len(result) == 2 and isinstance(result[1], _INFOS):
        return result[0], result[1] or {}
    raise EnvFault(
        f"reset returned {described(result)}, but must return (observation, info); "
        f"if it is an observation alone, {OLD_API}: return observation, {{}}"
    )


def step_result(result: Any) -> tuple[Any, Any, Any, Any, Mapping[str, Any]]:
    """Returns the five values that `step` returned."""
    needed = "(observation, reward, terminated, truncated, info)"
    if not isinstance(result, tuple | list) or len(result) != 5:
        old = isinstance(result, tuple | list) and len(result) == 4
        raise EnvFault(
            f"step returned {described(result)}, but must return {needed}"
            f"{f': {OLD_API}, whose done is now terminated or truncated' if old else ''}"
        )
    observation, reward, terminated, truncated, info = result
    if not isinstance(info, _INFOS):
        raise EnvFault(f"step returned {described(info)} as its info, a dict is needed: return {needed}")
    return observation, reward, terminated, truncated, info or {}


# Values of one env.


def observation_array(
    value: Any,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    method: str,
    name: str = "an observation",
) -> NDArray[Any]:
    """Returns an observation as an array of a space's shape and dtype; it may be the one that came.

    Args:
        value: what `method` returned.
        shape: of the space.
        dtype: of the space. Floats may be rounded to a narrower type, integers must fit.
        method: reset or step.
        name: what the value is called in messages.
    """
    array = _array(value)
    _check_observation(value, array.shape, _kind(array.dtype), shape, dtype, f"{method} returned {name}")
    if array.dtype == dtype:
        return array
    cast = _narrowed(array, dtype)
    if dtype.kind != "f" and not np.array_equal(cast, array):
        raise EnvFault(
            f"{method} returned {name} of {array.dtype} with values that {dtype} cannot hold, which "
            "observation_space declares: correct its dtype"
        )
    return cast


def number(value: Any) -> float:
    """Returns a reward as a float: any real number, or an array or tensor of exactly one."""
    try:
        if isinstance(value, _NUMBERS):
            return float(value)
    except (OverflowError, ValueError) as error:
        raise EnvFault(f"the reward is no float: {error_text(error)}") from error
    array = _array(value)
    if array.size == 1 and _kind(array.dtype):
        return float(array.item())
    if _kind(array.dtype):
        raise EnvFault(
            f"the reward is an array of shape {array.shape}, a number is needed: set env.reward_weights "
            f"(reward_weights in Python) to {array.size} weights, whose sum it becomes"
        )
    raise EnvFault(f"the reward is {described(value)}, a number is needed")


def vector(value: Any) -> NDArray[np.float64] | None:
    """Returns a reward of several parts, float64 [K]; None if it is a single number."""
    array = _array(value)
    if array.ndim == 0 and _kind(array.dtype):
        return None
    if array.ndim != 1 or not _kind(array.dtype):
        raise EnvFault(f"the reward is {described(value)}, a vector of numbers is needed for reward_weights")
    return array.astype(np.float64)


def flag(value: Any, name: str) -> bool:
    """Returns `terminated` or `truncated` as a bool: of a bool, 0 or 1, or an array of one of these."""
    if isinstance(value, _FLAGS):
        return bool(value)
    array = _array(value)
    if array.size == 1 and array.dtype.kind in "biu" and (found := array.item()) in (0, 1):
        return bool(found)
    raise EnvFault(f"{name} is {described(value)}, a bool is needed")


def info_number(value: Any, name: str) -> float:
    """Returns an info entry as a float: any real number or bool, an array of exactly one, NaN for None."""
    if value is None:
        return math.nan
    array = _array(value)
    if array.size == 1 and _kind(array.dtype):
        return float(array.item())
    if isinstance(value, _NUMBERS):  # one that NumPy does not know
        return number(value)
    raise EnvFault(f"the info entry {name!r} is {described(value)}, a number is needed")


# Values of N envs.


def observation_tensor(
    value: Any,
    shape: tuple[int, ...],
    space_dtype: np.dtype[Any],
    method: str,
    name: str = "an observation",
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Returns the observations of N envs as a new tensor, on a device and of a floating dtype.

    Args:
        value: what `method` returned: an array or tensor of any library, or lists of numbers.
        shape: of the batched space, (N, ...).
        space_dtype: of the space.
        method: reset or step.
        name: what the value is called in messages.
        device: where the tensor is to be.
        dtype: of which dtype.
    """
    what = f"{method} returned {name}"
    if (tensor := shared_tensor(value)) is not None:
        _check_observation(value, tuple(tensor.shape), _tensor_kind(tensor), shape, space_dtype, what)
        return tensor.to(device, dtype, copy=True)
    array = _array(value)
    _check_observation(value, array.shape, _kind(array.dtype), shape, space_dtype, what)
    target = np.dtype(np.float32) if dtype == torch.bfloat16 else numpy_dtype(dtype)
    copy = array.astype(target) if array.dtype.itemsize <= target.itemsize else _narrowed(array, target)
    return torch.from_numpy(copy).to(device, dtype)


def numbers(value: Any, count: int, device: torch.device) -> Tensor:
    """Returns the rewards of N envs, float64 [N] on a device; a column [N, 1] is taken as its numbers."""
    tensor = shared_tensor(value)
    if tensor is None:
        array = _array(value)
        kind = _kind(array.dtype)
        tensor = torch.from_numpy(array.astype(np.float64)) if kind else torch.empty(0)
    else:
        kind = _tensor_kind(tensor)
    if tensor.shape not in ((count,), (count, 1)) or not kind:
        raise EnvFault(f"the rewards are {described(value)}, {count} numbers are needed, one per env")
    return tensor.reshape(count).to(device, torch.float64)


def flags(value: Any, count: int, name: str) -> NDArray[np.bool_]:
    """Returns `terminated` or `truncated` of N envs, bool [N]."""
    array = _array(value)
    if array.dtype == np.bool_ and array.shape == (count,):
        return array
    fits = array.shape in ((count,), (count, 1)) and array.dtype.kind in "biu"
    if not fits or not ((array == 0) | (array == 1)).all():
        raise EnvFault(f"{name} is {described(value)}, {count} bools are needed, one per env")
    return array.reshape(count).astype(np.bool_)


def _array(value: Any) -> NDArray[Any]:
    """Returns anything as an array: of objects, if it is not numbers."""
    if isinstance(value, np.ndarray):
        return value
    try:
        if (tensor := shared_tensor(value)) is not None:
            tensor = tensor.cpu()
            value = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        array: NDArray[Any] = np.asarray(value)
        return array
    except Exception:  # lists of unequal lengths; anything, from objects that turn themselves into arrays
        return np.full((), None, dtype=object)


def _narrowed(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Returns a copy of a dtype to which not every number may fit, without a warning about those."""
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(dtype)


def _kind(dtype: np.dtype[Any]) -> str:
    """Returns b for bool, i for integers, f for floats; nothing for what is no real number."""
    kind = dtype.kind
    return kind if kind in "bif" else "i" if kind == "u" else ""


def _tensor_kind(value: Tensor) -> str:
    if value.is_complex():
        return ""
    return "f" if value.is_floating_point() else "b" if value.dtype == torch.bool else "i"


def _check_observation(
    value: Any,
    its_shape: tuple[int, ...],
    its_kind: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    what: str,
) -> None:
    """Checks what kind of numbers an observation has, and its shape.

    Raises:
        EnvFault: if it is not numbers, of another shape than the space, or floats for a space of integers.
    """
    if not its_kind:
        raise EnvFault(
            f"{what} that is not an array of numbers but {described(value)}; "
            f"observation_space declares shape {shape} and dtype {dtype}"
        )
    if its_shape != shape:
        raise EnvFault(
            f"{what} of shape {its_shape}, but observation_space declares {shape}: "
            "return an array of that shape, or correct observation_space"
        )
    if its_kind == "f" and dtype.kind != "f":
        raise EnvFault(
            f"{what} of floats, but observation_space declares {dtype}, which cuts "
            "them off: correct its dtype, or convert them"
        )
