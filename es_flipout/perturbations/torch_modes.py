"""Functions that step out of the caller's torch modes: autograd, inference mode, compilation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Method = TypeVar("Method", bound=Callable[..., Any])


def untracked(method: Method) -> Method:
    """Runs a method without autograd, and outside inference mode because its tensors outlive that mode."""
    return torch.inference_mode(mode=False)(torch.no_grad()(method))


def eagerly(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls a function that torch.compile leaves out; compilation continues after it."""
    if torch.compiler.is_compiling():
        return torch.compiler.disable(function)(*args, **kwargs)  # type: ignore[no-untyped-call]
    return function(*args, **kwargs)
