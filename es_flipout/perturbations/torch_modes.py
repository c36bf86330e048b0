"""Functions that look at the caller's torch modes, or step out of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Method = TypeVar("Method", bound=Callable[..., Any])


def untracked(method: Method) -> Method:
    """Runs a method without autograd, and outside inference mode because its tensors outlive that mode."""
    return torch.inference_mode(mode=False)(torch.no_grad()(method))


def tracked(*tensors: Tensor) -> bool:
    """Returns whether autograd records what is done with one of some tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def eagerly(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls a function that torch.compile leaves out; compilation continues after it."""
    if torch.compiler.is_compiling():
        return torch.compiler.disable(function)(*args, **kwargs)  # type: ignore[no-untyped-call]
    return function(*args, **kwargs)
