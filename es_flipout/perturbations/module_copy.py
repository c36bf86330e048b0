"""Copies of modules and their states: the one place where policies are copied, or refused by name."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from es_flipout.error_text import error_text
from es_flipout.perturbations.torch_modes import Instead

T = TypeVar("T")


def deep_copy(value: T, memo: dict[int, Any] | None = None) -> T:
    """Returns a deep copy, in which a tensor that was computed becomes a constant of the same value."""
    with Instead(Tensor.__deepcopy__, _copy_of_tensor):
        return copy.deepcopy(value, memo)


def _copy_of_tensor(tensor: Tensor, memo: dict[int, Any]) -> Any:
    """Copies computed tensors (cached activations, pruned weights) by value; torch refuses to copy them."""
    if tensor.is_leaf:
        return Tensor.__deepcopy__(tensor, memo)  # type: ignore[no-untyped-call]
    if id(tensor) not in memo:
        memo[id(tensor)] = tensor.detach().clone()
    return memo[id(tensor)]


def copy_module(module: nn.Module, memo: Mapping[int, Any] | None = None) -> nn.Module:
    """Returns a deep copy of a module.

    Args:
        module: the module.
        memo: what stands for some objects in the copy, by their id.

    Raises:
        TypeError: if a part of it cannot be copied.
    """
    try:
        return deep_copy(module, dict(memo or {}))
    except Exception as error:  # a user's __deepcopy__ may raise anything
        parts = {id(part): part for part in module.modules()}
        raise TypeError(f"{_culprit(module, parts)} cannot be copied: {error_text(error)}") from error


def copy_state(state: Any) -> Any:
    """Returns a copy of a state dict, or of a container of some: much faster than a deep copy."""
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, list):
        return [copy_state(value) for value in state]
    if not isinstance(state, dict):
        return deep_copy(state)
    twin = copy.copy(state)  # with the attributes that torch gives a module's
    for key, value in state.items():
        twin[key] = copy_state(value)
    return twin


def _culprit(module: nn.Module, memo: Mapping[int, Any]) -> str:
    """Returns the name of the first attribute that cannot be copied by itself."""
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            try:
                deep_copy(value, dict(memo))
            except Exception:
                place = f"{path}.{name}" if path else name
                return (
                    f"the policy runs in copies, so keep {place!r} out of the module "
                    f"{type(part).__qualname__} or give the module a __deepcopy__: {value!r:.80}"
                )
    return f"the module {type(module).__qualname__}"
