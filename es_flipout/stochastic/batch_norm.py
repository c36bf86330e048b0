"""Batch normalization over the whole mini-batch, in a module that otherwise sees one example at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from es_flipout.perturbations.member_context import MemberContext
from es_flipout.perturbations.rules.elementwise import affine


class WholeBatchNorm(TorchFunctionMode):
    """Runs F.batch_norm in training mode on all examples: their statistics are those of the mini-batch."""

    def __init__(self, num_examples: int) -> None:
        super().__init__()
        self._num_examples = num_examples

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.batch_norm:
            return self._batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """Normalizes inputs of one example, [1, channels, ...], by the statistics of all of them."""
        if not training:
            return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
        context = MemberContext.inside_vmap(self._num_examples)
        rows = context.physical(input)
        outputs = F.batch_norm(
            rows.flatten(0, 1), running_mean, running_var, training=True, momentum=momentum, eps=eps
        )
        logical = context.logical(torch.unflatten(outputs, 0, rows.shape[:2]))
        return affine(F.batch_norm, logical, weight, bias, by_channel=True)
