"""What a worker process does: draw the noise of a population again, and play episodes of its members."""

from __future__ import annotations

import contextlib
import math
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Protocol

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from es_flipout.population import NoiseOrigin, Population
from es_flipout.processes import CONTEXT, use_one_thread

ALIGNMENT = 64
"""Bytes; each tensor in shared memory starts at a multiple of it."""


class SharedTensors:
    """Named tensors in memory that processes share."""

    def __init__(self, like: Mapping[str, Tensor]) -> None:
        """Has room for tensors of the shapes and dtypes of `like`."""
        self._layout = {name: (value.shape, value.dtype) for name, value in like.items()}
        sizes = [shape.numel() * dtype.itemsize for shape, dtype in self._layout.values()]
        self._memory = CONTEXT.RawArray("b", max(sum(math.ceil(x / ALIGNMENT) * ALIGNMENT for x in sizes), 1))

    def tensors(self) -> dict[str, Tensor]:
        """Returns views of the memory."""
        return dict(self._views())

    def _views(self) -> Iterator[tuple[str, Tensor]]:
        offset = 0
        for name, (shape, dtype) in self._layout.items():
            if shape.numel():
                flat = torch.frombuffer(self._memory, dtype=dtype, count=shape.numel(), offset=offset)
                yield name, flat.view(shape)
            else:
                yield name, torch.empty(shape, dtype=dtype)
            offset += math.ceil(shape.numel() * dtype.itemsize / ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Chunk:
    """Some members for a worker to evaluate.

    Attributes:
        generation: counts up whenever the center in shared memory, or what follows here, has changed.
        origin: what the members' noise follows from, a pickled `NoiseOrigin`.
        sigma: its standard deviation.
        episode_limit: env steps after which an episode is cut off; None for no limit.
        members: which, M of them.
        seeds: reset seeds of the E episodes of each, int64 [M, E].
    """

    generation: int
    origin: bytes
    sigma: float
    episode_limit: int | None
    members: list[int]
    seeds: NDArray[np.int64]


@dataclass
class Answer:
    """What came of a chunk; episode e is the (e % E)-th of its member e // E.

    Attributes:
        returns: of each episode, float64 [M E]; NaN for one that failed.
        lengths: env steps of each, int64 [M E].
        moments: of what was observed in each, as `EpisodeMoments.add` takes them, float64 [3, M E, O]; None
            if observations are not counted.
        failures: why episodes failed, by index.
        slot_steps: env steps that were spent, live or not.
    """

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    moments: NDArray[np.float64] | None
    failures: dict[int, str]
    slot_steps: int

    @classmethod
    def of(cls, num_episodes: int, observation_size: int | None) -> Answer:
        """Returns room for so many episodes, none of which has been played."""
        size = observation_size
        moments = None if size is None else np.zeros((3, num_episodes, size))
        return cls(np.full(num_episodes, np.nan), np.zeros(num_episodes, np.int64), moments, {}, 0)


class Player(Protocol):
    """Plays the episodes of members, in a worker.

    Attributes:
        observation_size: features of which moments are returned; None for none.
    """

    observation_size: int | None

    def play(self, population: Population, chunk: Chunk) -> Answer:
        """Plays the episodes of a chunk of members of a population of this process's own."""

    def close(self) -> None:
        """Is called once, at the end."""


def serve(connection: Connection, policy: bytes, make_player: bytes, center: SharedTensors) -> None:
    """Answers every `Chunk` until it gets None.

    First it sends the player's observation size in a tuple. A string, at any time, says what went wrong.
    """
    use_one_thread()
    np.seterr(all="ignore")  # a member whose numbers overflow fails by itself
    try:
        player: Player = cloudpickle.loads(make_player)()
        module: nn.Module = cloudpickle.loads(policy)
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")
        return
    state, generation = center.tensors(), -1
    with contextlib.closing(player):
        connection.send((player.observation_size,))
        while (chunk := connection.recv()) is not None:
            try:
                if chunk.generation != generation:
                    module.load_state_dict(state)
                    origin: NoiseOrigin = cloudpickle.loads(chunk.origin)
                    population = Population(module, origin.draw(module), chunk.sigma, origin)
                    generation = chunk.generation
                connection.send(player.play(population, chunk))
            except Exception:
                connection.send(traceback.format_exc())
