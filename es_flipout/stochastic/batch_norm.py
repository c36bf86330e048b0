"""Batch normalization over the whole mini-batch, in a module that otherwise sees one example at a time."""

from __future__ import annotations

from torch import Tensor, unflatten
from torch.nn import functional as F

from es_flipout.perturbations.member_context import MemberContext
from es_flipout.perturbations.rules.elementwise import affine
from es_flipout.perturbations.torch_modes import Instead


def whole_batch_norm(num_examples: int) -> Instead:
    """Returns a mode in which F.batch_norm in training uses the statistics of all examples, as usual.

    Args:
        num_examples: N, which the current torch.vmap hides.
    """

    def batch_norm(
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """Normalizes inputs of one example, [1, channels, ...]."""
        if not training:
            return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
        context = MemberContext.inside_vmap(num_examples)
        rows = context.physical(input)
        outputs = F.batch_norm(
            rows.flatten(0, 1), running_mean, running_var, training=True, momentum=momentum, eps=eps
        )
        logical = context.logical(unflatten(outputs, 0, rows.shape[:2]))
        return affine(F.batch_norm, logical, weight, bias, by_channel=True)

    return Instead(F.batch_norm, batch_norm)
