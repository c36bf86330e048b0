"""Linear maps whose rows do not feel each other.

Which slot a member runs in, and beside whom, must not change its return. BLAS libraries do not promise
that: for some shapes they choose kernels whose order of summation depends on the number of rows, or on a
row's place among them. Padded as here, products on the CPU have not been seen to (measured for the MKL that
torch ships; the tests check it on the machine they run on).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MIN_OUTPUTS = 16
"""Least number of outputs of a product."""
MULTIPLE = 4
"""What the number of rows, and in float64 also that of inputs, is rounded up to a multiple of."""


def rowwise_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns F.linear with every row's result independent, to the last bit, of the rows around it.

    Args:
        inputs: [N, ..., I].
        weight: [J, I].
        bias: [J].
    """
    if inputs.device.type != "cpu":
        return F.linear(inputs, weight, bias)
    num_outputs, num_rows = weight.shape[0], inputs.shape[:-1].numel()
    more_outputs = max(MIN_OUTPUTS - num_outputs, 0)
    more_inputs = -weight.shape[1] % MULTIPLE if inputs.dtype == torch.float64 else 0
    more_rows = -num_rows % MULTIPLE
    if more_outputs or more_inputs:
        weight = F.pad(weight, (0, more_inputs, 0, more_outputs))
    if more_outputs and bias is not None:
        bias = F.pad(bias, (0, more_outputs))
    shape, inputs = inputs.shape[:-1], inputs.contiguous()  # alignment matters, too
    if more_rows or more_inputs:
        inputs = F.pad(inputs.reshape(num_rows, inputs.shape[-1]), (0, more_inputs, 0, more_rows))
    outputs = F.linear(inputs, weight, bias)
    if more_rows or more_inputs:
        outputs = outputs[:num_rows].view(*shape, outputs.shape[-1])
    return outputs[..., :num_outputs] if more_outputs else outputs
