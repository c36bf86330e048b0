"""A digest of a run's state, by which ranks see that they have the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

DIGEST_BYTES = 8


def digest(state: Any) -> bytes:
    """Returns 8 bytes that depend on every bit of a state: tensors, numbers, text, and containers of them."""
    found = blake2b(digest_size=DIGEST_BYTES)
    for part in _parts(state):
        found.update(part)
    return found.digest()


def _parts(state: Any) -> Iterator[bytes]:
    if isinstance(state, Tensor):
        yield f"{state.dtype} {tuple(state.shape)}".encode()
        values = state.detach().cpu().contiguous().view(-1)
        yield values.view(torch.uint8).numpy().tobytes() if values.numel() else b""
    elif isinstance(state, Mapping):
        for key, value in state.items():
            yield repr(key).encode()
            yield from _parts(value)
    elif isinstance(state, list | tuple):
        yield f"{len(state)}".encode()
        for value in state:
            yield from _parts(value)
    else:
        yield repr(state).encode()
