"""The keys of a perturbed module's state dict: those of the module itself, and NAME_rho."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    def renamed(key: str) -> str:
        if key.startswith(_MODULE):
            return key.removeprefix(_MODULE)
        return key.removeprefix(_RHO).replace("/", ".") if key.startswith(_RHO) else key

    _rename(state, prefix, renamed)


def from_module_keys(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Undoes `to_module_keys` in a state dict that is about to be loaded."""
    rho = {key.replace("/", "."): _RHO + key for key in module.rho}  # type: ignore[union-attr]
    _rename(state, prefix, lambda key: rho.get(key, _MODULE + key))


def _rename(state: dict[str, Any], prefix: str, renamed: Callable[[str], str]) -> None:
    """Renames what comes after `prefix`: all at once, as a new key may be the old one of another tensor."""
    keys = [key for key in state if key.startswith(prefix)]
    state.update([(prefix + renamed(key.removeprefix(prefix)), state.pop(key)) for key in keys])
