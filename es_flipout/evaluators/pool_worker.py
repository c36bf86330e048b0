"""What a worker of the process pool does: rebuild a member from its seed, and play its episodes."""

from __future__ import annotations

import contextlib
import math
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection

import cloudpickle  # type: ignore[import-untyped]
import mujoco
import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from es_flipout.evaluators.rollout import Episode, Rollout
from es_flipout.population import NoiseOrigin, trained_parameters
from es_flipout.processes import CONTEXT

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
        generation: counts up whenever the centre in shared memory, or what follows here, has changed.
        origin: what the members' noise follows from, a pickled `NoiseOrigin`.
        sigma: its standard deviation.
        episode_limit: env steps after which an episode is cut off; None for no limit.
        members: which, M of them.
        seeds: reset seeds of the E episodes of each, [M][E].
    """

    generation: int
    origin: bytes
    sigma: float
    episode_limit: int | None
    members: list[int]
    seeds: list[list[int]]


Answer = list[list[Episode]]
"""The episodes of a chunk, [M][E]."""


class Members:
    """A policy that becomes one member after the other."""

    def __init__(self, policy: nn.Module, centre: Mapping[str, Tensor]) -> None:
        """Takes a policy of this process's own, and the state of the centre in shared memory."""
        self._policy = policy
        self._centre = centre
        self._trained = [(name, value.data) for name, value in trained_parameters(policy).items()]
        self._generation = -1

    @torch.no_grad()
    def become(self, member: int, chunk: Chunk) -> nn.Module:
        """Returns the policy with the weights of a member: centre + sigma noise."""
        if chunk.generation != self._generation:
            self._policy.load_state_dict(self._centre)
            origin: NoiseOrigin = cloudpickle.loads(chunk.origin)
            self._noise, self._direction = origin.draw(self._policy), -1
            self._generation = chunk.generation
        direction, orientation = (int(each) for each in self._noise.directions(torch.tensor([member])))
        if direction != self._direction:  # the other member of an antithetic pair has the same, negated
            self._dense = self._noise.member(member)
            self._direction, self._orientation = direction, orientation
        scale = chunk.sigma * orientation * self._orientation
        for name, values in self._trained:
            torch.add(self._centre[name], self._dense[name], alpha=scale, out=values)
        return self._policy


def serve(connection: Connection, policy: bytes, make_rollout: bytes, centre: SharedTensors) -> None:
    """Answers every `Chunk` until it gets None.

    First it sends the rollouts' observation size in a tuple. A string, at any time, says what went wrong.
    """
    torch.set_num_threads(1)
    threadpool_limits(1)
    np.seterr(all="ignore")  # a member whose numbers overflow fails by itself
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        rollout: Rollout = cloudpickle.loads(make_rollout)()
        members = Members(cloudpickle.loads(policy), centre.tensors())
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")
        return
    with contextlib.closing(rollout):
        connection.send((rollout.observation_size,))
        while (chunk := connection.recv()) is not None:
            try:
                connection.send(_play(chunk, members, rollout))
            except Exception:
                connection.send(traceback.format_exc())


def _play(chunk: Chunk, members: Members, rollout: Rollout) -> Answer:
    answer: Answer = []
    for member, seeds in zip(chunk.members, chunk.seeds, strict=True):
        policy = members.become(member, chunk)
        with torch.inference_mode():
            answer.append([rollout(policy, seed, chunk.episode_limit) for seed in seeds])
    return answer
