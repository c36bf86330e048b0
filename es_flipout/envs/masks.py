"""Rows of tensors that are chosen by a mask, without looking at it."""

from __future__ import annotations

import torch
from torch import Tensor


def where_rows(mask: Tensor, these: Tensor, others: Tensor) -> Tensor:
    """Returns `these` in the rows where the mask holds, and `others` in the rest.

    Args:
        mask: which rows, bool [N].
        these: [N, ...], or [1, ...] for one row that is put in all of them.
        others: [N, ...].
    """
    return torch.where(mask.view(-1, *(1,) * (others.ndim - 1)), these, others)
