"""Linear maps, padded so that a row's result does not depend on the other rows.

A member's return must not depend on its env or on its neighbors. BLAS libraries do not guarantee that: for
some shapes they choose kernels whose order of summation depends on the number of rows or a row's position.
With the padding here, products on the CPU showed no such dependence: in float32 up to 2,048 inputs and
outputs, in float64 below 256 outputs (measured for the MKL that torch ships, on processors with AVX2 and with
AVX-512; the tests check it on the machine they run on).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from es_flipout.perturbations.torch_modes import tracked

MIN_OUTPUTS = 16
"""Smallest number of outputs of a product."""
MULTIPLE = 4
"""The number of rows, and in float64 also that of inputs, is rounded up to a multiple of this."""
MIN_ROWS, MANY_INPUTS = 16, 64
"""Smallest number of rows of a product with `MANY_INPUTS` inputs or more."""


def padded_sizes(
    num_rows: int, num_inputs: int, num_outputs: int, dtype: torch.dtype
) -> tuple[int, int, int]:
    """Returns the padded numbers of rows, inputs and outputs of a product on the CPU."""
    inputs_too = dtype == torch.float64
    least_rows = MIN_ROWS if num_inputs >= MANY_INPUTS else 0
    return (
        max(num_rows + -num_rows % MULTIPLE, least_rows),
        num_inputs + (-num_inputs % MULTIPLE if inputs_too else 0),
        max(num_outputs, MIN_OUTPUTS),
    )


def padded_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns F.linear; without autograd, each row's result is independent of the other rows to the last bit.

    Args:
        inputs: [N, ..., I].
        weight: [J, I].
        bias: [J].
    """
    (num_outputs, num_inputs), num_rows = weight.shape, inputs.shape[:-1].numel()
    # Under autograd, rows need not be independent. Without rows, F.pad raises before torch 2.7.
    if inputs.device.type != "cpu" or not num_rows or tracked(inputs, weight):
        return F.linear(inputs.contiguous(), weight, bias)  # autocast casts all three, or the inputs alone
    rows, ins, outs = padded_sizes(num_rows, num_inputs, num_outputs, inputs.dtype)
    more_rows, more_inputs, more_outputs = rows - num_rows, ins - num_inputs, outs - num_outputs
    if more_outputs or more_inputs:
        weight = F.pad(weight, (0, more_inputs, 0, more_outputs))
    if more_outputs and bias is not None:
        bias = F.pad(bias, (0, more_outputs))
    shape, inputs = inputs.shape[:-1], inputs.contiguous()  # alignment matters too
    if more_rows or more_inputs:
        inputs = F.pad(inputs.reshape(num_rows, inputs.shape[-1]), (0, more_inputs, 0, more_rows))
    outputs = F.linear(inputs, weight, bias)
    if more_rows or more_inputs:
        outputs = outputs[:num_rows].view(*shape, outputs.shape[-1])
    return outputs[..., :num_outputs] if more_outputs else outputs
