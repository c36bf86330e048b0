"""What a worker process does: draw the noise of a population again, and play shares of its episodes."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Protocol

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from es_flipout.envs.contract import TorchVectorEnv
from es_flipout.error_text import error_text
from es_flipout.population import NoiseOrigin, Population
from es_flipout.processes import SharedMemory, use_one_thread
from es_flipout.rollout.episodes import Episodes
from es_flipout.rollout.make_loop import loop_of_members
from es_flipout.rollout.mlp_rows import rows_are_independent
from es_flipout.rollout.step_loop import observation_size


class SharedTensors:
    """Named tensors in memory that processes share."""

    def __init__(self, like: Mapping[str, Tensor]) -> None:
        """Has room for tensors of the shapes and dtypes of `like`."""
        self._layout = {name: (value.shape, value.dtype) for name, value in like.items()}
        self._memory = SharedMemory(
            [shape.numel() * dtype.itemsize for shape, dtype in self._layout.values()]
        )

    def tensors(self) -> dict[str, Tensor]:
        """Returns views of the memory."""
        return {
            name: torch.frombuffer(block, dtype=dtype).view(shape)
            if block
            else torch.empty(shape, dtype=dtype)
            for (name, (shape, dtype)), block in zip(self._layout.items(), self._memory.blocks(), strict=True)
        }


@dataclass(frozen=True)
class Work:
    """A share of episodes, and the population they belong to.

    Attributes:
        number: counts up whenever the center in shared memory, or the noise, has changed.
        origin: what the members' noise follows from, a pickled `NoiseOrigin`.
        sigma: its standard deviation.
        share: what to play.
    """

    number: int
    origin: bytes
    sigma: float
    share: Episodes


class InboxClosedError(EOFError):
    """Nobody is at the other end of the connection."""


class Inbox:
    """Where a worker finds shares of one population's episodes, and puts those that have been played."""

    def __init__(self, connection: Connection, first: Work) -> None:
        self._connection = connection
        self._number = first.number
        self._next: Work | None = first

    def take(self, *, wait: bool) -> Episodes | None:
        """Returns a share.

        Args:
            wait: whether to wait if there is none at the moment.

        Returns:
            None if there is none, or (having waited) if the next work is not of this population.
        """
        if self._next is None and (wait or self._connection.poll()):
            try:
                self._next = self._connection.recv()
            except (EOFError, OSError) as error:
                raise InboxClosedError from error
        if self._next is None or self._next.number != self._number:
            return None
        share, self._next = self._next.share, None
        return share

    def ask(self, room: int) -> None:
        """Asks for another share.

        Args:
            room: envs that are free.
        """
        self._send((self._number, room))

    def put(self, played: Episodes) -> None:
        """Hands back a share of which all episodes have been played."""
        self._send(played)

    def _send(self, message: object) -> None:
        try:
            self._connection.send(message)
        except OSError as error:
            raise InboxClosedError from error

    def following(self) -> Work | None:
        """Returns the first work of another population; None if no more will come."""
        return self._next


class WorkerLoop(Protocol):
    """Plays episodes in a worker, for which it has a first share and asks for others.

    Attributes:
        observation_size: features of which moments are kept; None if observations are not vectors.
        num_envs: episodes that it plays at a time.
    """

    observation_size: int | None
    num_envs: int

    def play(self, population: Population, inbox: Inbox) -> None:
        """Plays shares of a population's episodes until there are no more."""

    def close(self) -> None:
        """Is called once, at the end."""


class EnvsInWorker(WorkerLoop):
    """Plays episodes side by side, in the envs of a worker."""

    def __init__(self, make_env: Callable[[], TorchVectorEnv]) -> None:
        """Makes the environment."""
        self._env = make_env()
        self.num_envs = self._env.num_envs
        self.observation_size = observation_size(self._env)

    @override
    def play(self, population: Population, inbox: Inbox) -> None:
        loop = loop_of_members(self._env, population)
        begins_anew = not rows_are_independent(population.policy)  # nothing must be left of another company
        shares: list[Episodes] = []
        reported, has_asked = 0, False
        while True:
            while room := loop.num_lacking:
                share = inbox.take(wait=False)
                if share is None:
                    if not has_asked:
                        inbox.ask(room)
                        has_asked = True
                    if loop.is_playing:
                        break
                    share = inbox.take(wait=True)
                    if share is None:
                        return
                if begins_anew and not loop.is_playing:
                    loop, reported = loop_of_members(self._env, population), 0
                has_asked = False
                share.observation_size = self.observation_size
                shares.append(share)
                loop.add(share)
            loop.step()
            for share in [each for each in shares if not each.unplayed]:
                # Of all steps since the last answer; envs that had nothing to do are in there, too.
                share.spent_steps, reported = loop.spent_steps - reported, loop.spent_steps
                shares.remove(share)
                inbox.put(share)

    @override
    def close(self) -> None:
        self._env.close()


def serve(connection: Connection, policy: bytes, make_loop: bytes, center: SharedTensors) -> None:
    """Answers `Work` until it gets None.

    First it sends its observation size and number of envs. A string, at any time, says what went wrong.
    """
    use_one_thread()
    np.seterr(all="ignore")  # a member whose numbers overflow fails by itself
    try:
        loop: WorkerLoop = cloudpickle.loads(make_loop)()
        module: nn.Module = cloudpickle.loads(policy)
    except Exception as error:
        connection.send(error_text(error))
        return
    state = center.tensors()
    with contextlib.closing(loop):
        connection.send((loop.observation_size, loop.num_envs))
        work: Work | None = connection.recv()
        while work is not None:
            try:
                module.load_state_dict(state)
                origin: NoiseOrigin = cloudpickle.loads(work.origin)
                population = Population(module, origin.draw(module), work.sigma, origin)
                inbox = Inbox(connection, work)
                loop.play(population, inbox)
            except InboxClosedError:
                raise
            except Exception as error:
                connection.send(f"{traceback.format_exc()}{error_text(error)}")
                work = connection.recv()
                continue
            work = inbox.following()
