"""Objects between ranks: from all of them to rank 0, and from rank 0 to all.

torch.distributed's own functions for objects begin with an all-gather of their sizes, in which every rank
sends a message for every other. Here the ranks other than 0 send one each, two if an object is large.
"""

from __future__ import annotations

import pickle
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

FIRST_BYTES = 1024
"""Size of a first message: the length of the pickled object, and the object itself if it fits."""
LENGTH_BYTES = 8
"""Size of the length."""


def gather(value: object, group: dist.ProcessGroup | None, rank: int, size: int) -> list[Any] | None:
    """Returns what each rank has given, on rank 0, and None on the others.

    Args:
        value: what this rank gives; it is pickled.
        group: of gloo, which rank 0 is in.
        rank: of this process.
        size: of the group.
    """
    content = pickle.dumps(value)
    firsts = _gather(_first(content), group, rank, size)
    most = torch.tensor([max((_length(each) for each in firsts), default=0)])
    dist.broadcast(most, src=0, group=group)
    if _fits(int(most)):
        return [pickle.loads(_content(each)) for each in firsts] if rank == 0 else None
    whole = _gather(_padded(content, int(most)), group, rank, size)
    return [_loads(each, _length(first)) for each, first in zip(whole, firsts, strict=True)] or None


def spread(value: object, group: dist.ProcessGroup | None) -> Any:
    """Returns what rank 0 has given, on all ranks.

    Args:
        value: what rank 0 gives; it is pickled. On the others it is ignored.
        group: of gloo, which rank 0 is in.
    """
    content = pickle.dumps(value)
    first = _first(content)
    dist.broadcast(first, src=0, group=group)
    length = _length(first)
    if _fits(length):
        return pickle.loads(_content(first))
    whole = _padded(content[:length], length)
    dist.broadcast(whole, src=0, group=group)
    return _loads(whole, length)


def _gather(mine: Tensor, group: dist.ProcessGroup | None, rank: int, size: int) -> list[Tensor]:
    """Returns the tensors of all ranks, on rank 0; none on the others."""
    all_of_them = [torch.empty_like(mine) for _ in range(size)] if rank == 0 else []
    dist.gather(mine, all_of_them or None, dst=0, group=group)
    return all_of_them


def _first(content: bytes) -> Tensor:
    length = len(content).to_bytes(LENGTH_BYTES, "little")
    return _padded(length + (content if _fits(len(content)) else b""), FIRST_BYTES)


def _fits(length: int) -> bool:
    return length <= FIRST_BYTES - LENGTH_BYTES


def _length(first: Tensor) -> int:
    return int.from_bytes(first[:LENGTH_BYTES].numpy().tobytes(), "little")


def _content(first: Tensor) -> bytes:
    return first[LENGTH_BYTES : LENGTH_BYTES + _length(first)].numpy().tobytes()


def _padded(content: bytes, size: int) -> Tensor:
    padded = torch.zeros(size, dtype=torch.uint8)
    padded[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return padded


def _loads(content: Tensor, length: int) -> Any:
    return pickle.loads(content[:length].numpy().tobytes())
