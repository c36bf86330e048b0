"""torch's modes: what looks at the caller's, what steps out of them, and a mode of our own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

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


class Instead(TorchFunctionMode):
    """Runs another function in the place of one of torch's, as long as the mode lasts."""

    def __init__(self, function: Callable[..., Any], other: Callable[..., Any]) -> None:
        """Takes torch's function and the one that is called with its arguments, outside of this mode."""
        super().__init__()
        self._function, self._other = function, other

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        run = self._other if func is self._function else func
        return run(*args, **(kwargs or {}))
