"""Choosing rows of tensors by a mask without reading it, which a CUDA graph requires."""

from __future__ import annotations

import torch
from torch import Tensor


def where_rows(mask: Tensor, these: Tensor, others: Tensor) -> Tensor:
    """Returns `these` in the rows where the mask is True, and `others` in the rest.

    Args:
        mask: which rows, bool [N].
        these: [N, ...], or [1, ...] for the same row everywhere.
        others: [N, ...].
    """
    return torch.where(mask.view(-1, *(1,) * (others.ndim - 1)), these, others)
