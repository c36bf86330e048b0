"""The keys of a perturbed module's state dict: those of the module itself, and NAME_rho."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

_MODULE, _RHO = "module.", "rho."


def check_names(module: nn.Module, names: Sequence[str]) -> None:
    """Raises a ValueError if a state dict could not tell rho from what the module has."""
    taken = set(module.state_dict()) & {f"{name}_rho" for name in names}
    if taken:
        raise ValueError(f"the module has a {min(taken)!r} of its own: rename it")


def rho_key(name: str) -> str:
    """Returns the name of a parameter's rho in a ParameterDict, whose names have no dots."""
    return name.replace(".", "/") + "_rho"


def to_module_keys(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Renames module.NAME to NAME, and rho.NAME_rho to NAME_rho, in a state dict that was just made."""
    for key in [key for key in state if key.startswith(prefix)]:
        rest = key.removeprefix(prefix)
        if rest.startswith(_MODULE):
            state[prefix + rest.removeprefix(_MODULE)] = state.pop(key)
        elif rest.startswith(_RHO):
            state[prefix + rest.removeprefix(_RHO).replace("/", ".")] = state.pop(key)


def from_module_keys(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Undoes `to_module_keys` in a state dict that is about to be loaded."""
    rho = {prefix + key.replace("/", "."): f"{prefix}{_RHO}{key}" for key in module.rho}  # type: ignore[union-attr]
    for key in [key for key in state if key.startswith(prefix)]:
        state[rho.get(key, f"{prefix}{_MODULE}{key.removeprefix(prefix)}")] = state.pop(key)
