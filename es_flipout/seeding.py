"""Named random streams: every draw of a run is a pure function of (seed, generation, purpose, index).

No generator outlives a generation, so a resumed run needs no random state to continue exactly, and a draw
does not change when another part of the program draws more.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from numpy.typing import NDArray


def stream_seed(seed: int, generation: int, purpose: str, index: int = 0, *, bits: int = 63) -> int:
    """Returns the seed of a named stream.

    Args:
        seed: the run's seed, >= 0.
        generation: the generation that draws, >= 0.
        purpose: what the stream is for, for example "perturbation" or "reset".
        index: which of several streams with the same purpose, >= 0.
        bits: size of the seed, at most 63; every environment accepts 31.
    """
    entropy = (seed, generation, zlib.crc32(purpose.encode()), index)
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> (64 - bits))


def stream_seeds(seed: int, generation: int, purpose: str, index: int, count: int) -> NDArray[np.int64]:
    """Returns many seeds of 31 bits from one named stream, int64 [count]; see `stream_seed`.

    One `SeedSequence` gives them all: 8,192 take a millisecond. More of them begin with the same ones.
    """
    entropy = (seed, generation, zlib.crc32(purpose.encode()), index)
    return (np.random.SeedSequence(entropy).generate_state(count, np.uint32) >> 1).astype(np.int64)


def torch_generator(
    seed: int, generation: int, purpose: str, index: int = 0, *, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Returns a torch generator on `device`, at the start of a named stream."""
    generator = torch.Generator(device)
    generator.manual_seed(stream_seed(seed, generation, purpose, index))
    return generator
