"""Plays episodes in worker processes.

A worker gets the center through shared memory, and rows of the table of episodes; it draws the members'
noise again from its seed, plays the episodes, and sends the rows back.

Between two steps of physics a single process would leave the other cores idle. Workers, each with envs of its
own, never wait for each other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import wait

import cloudpickle  # type: ignore[import-untyped]
import torch
from torch import Tensor, nn
from typing_extensions import override

from es_flipout.envs.contract import TorchVectorEnv
from es_flipout.error_text import error_text
from es_flipout.parameters import trained_parameters
from es_flipout.population import Population
from es_flipout.processes import Worker, WorkerDiedError, end_workers
from es_flipout.rollout.claims import Claims
from es_flipout.rollout.episodes import Episodes
from es_flipout.rollout.mlp_rows import rows_are_independent
from es_flipout.rollout.moments import Ints
from es_flipout.rollout.player import (
    Player,
    PlayError,
    PlayStoppedError,
    check_members,
    company_size,
    never,
    nothing,
)
from es_flipout.rollout.shares import Shares
from es_flipout.rollout.worker_main import EnvsInWorker, SharedTensors, Work, WorkerLoop, serve

MAX_DEATHS_IN_A_ROW = 5
"""Consecutive deaths allowed per worker before the player gives up."""
POLL_SECONDS = 0.1
"""How long a request to stop may go unnoticed while nothing else happens."""


@dataclass
class _Seat:
    """A worker, and what it has been given to do.

    Attributes:
        num_envs: episodes that it plays at a time; 0 until it has said that it is ready.
        room: envs that it has said are free, minus what it has been given since.
        shares: rows of the table and the share made of them, not answered yet.
    """

    worker: Worker
    num_envs: int = 0
    room: int = 0
    is_asking: bool = True
    shares: list[tuple[Ints, Episodes]] = field(default_factory=list)


class WorkerPlayer(Player):
    """Plays episodes of one policy's populations in worker processes, which live until `close`."""

    def __init__(self, policy: nn.Module, make_loop: Callable[[], WorkerLoop], num_workers: int) -> None:
        """Starts the workers.

        Args:
            policy: the policy whose populations are to be played, on the CPU. Workers get a copy; of later
                changes they see those of parameters and buffers.
            make_loop: called once in every worker; pickled by cloudpickle.
            num_workers: how many processes.

        Raises:
            PlayError: if a worker cannot start; the message says why.
            ValueError: if the policy cannot be sent to processes (its state is not all tensors on the CPU, or
                it cannot be pickled), or `num_workers` is less than 1.
        """
        if num_workers < 1:
            raise ValueError(f"num_workers must be >= 1, got {num_workers}")
        state = policy.state_dict()
        if not all(isinstance(value, Tensor) and value.device.type == "cpu" for value in state.values()):
            raise ValueError("worker processes need a policy whose state is tensors on the CPU")
        shared = SharedTensors(state)
        self._center = shared.tensors()
        self._trained = list(trained_parameters(policy))
        try:
            self._arguments = cloudpickle.dumps(policy), cloudpickle.dumps(make_loop), shared
        except Exception as error:  # whatever a user's class may raise
            raise ValueError(
                f"worker processes need a policy that can be pickled: {error_text(error)}"
            ) from error
        self._number = 0
        self._deaths_in_a_row, self._has_played = 0, False
        self._policy = policy
        self._observation_size: int | None = None
        self._num_envs = 0  # of each worker, once it has said so
        self._seats: list[_Seat] = []
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            for _ in range(num_workers):
                self._seats.append(self._start())
            for seat in self._seats:
                try:
                    self._greet(seat, seat.worker.receive())
                except WorkerDiedError as error:
                    raise PlayError(str(error)) from error
            stack.pop_all()

    @classmethod
    def of_envs(
        cls, policy: nn.Module, make_env: Callable[[], TorchVectorEnv], num_workers: int
    ) -> WorkerPlayer:
        """Starts workers that play side by side in the envs of an environment each.

        Args:
            policy: see the class.
            make_env: makes the environment of one worker, which steps it on its own; pickled by cloudpickle.
            num_workers: how many processes.

        Raises:
            PlayError: as the constructor does.
            ValueError: as the constructor does.
        """
        return cls(policy, partial(EnvsInWorker, make_env), num_workers)

    @property
    def num_workers(self) -> int:
        """How many processes there are."""
        return len(self._seats)

    @override
    def play(
        self,
        population: Population,
        episodes: Episodes,
        *,
        claims: Claims | None = None,
        should_stop: Callable[[], bool] = never,
        meanwhile: Callable[[], None] = nothing,
    ) -> Episodes:
        if not self._seats:
            raise ValueError("the player is closed")
        check_members(population, episodes)
        episodes.observation_size = self._observation_size
        shares = self._shares(episodes, claims or Claims(episodes))
        origin = self._announce(population)
        try:
            self._revive()
            while not shares.is_empty or any(seat.shares for seat in self._seats):
                if should_stop():
                    raise PlayStoppedError
                for seat in self._seats:
                    self._hand_out(seat, episodes, shares, origin, population.sigma)
                meanwhile()
                meanwhile = nothing
                self._receive(episodes, shares, should_stop)
        except BaseException:
            # What is under way is of no use any more, and may be long; `_revive` replaces the workers.
            for seat in self._seats:
                if seat.shares:
                    seat.worker.kill()
            raise
        return episodes

    def _shares(self, episodes: Episodes, claims: Claims) -> Shares:
        """Returns how the rows of a table are handed out.

        If torch may round a row of this policy's forward differently in other company, it must not depend on
        who is free when: companies are always the same, and a worker plays one at a time.
        """
        company = None
        if self._num_envs > 1 and not rows_are_independent(self._policy):
            company = company_size(self._num_envs, episodes)
        return Shares(episodes, claims, len(self._seats), company=company)

    def _hand_out(self, seat: _Seat, episodes: Episodes, shares: Shares, origin: bytes, sigma: float) -> None:
        """Gives a worker what it asks for, as far as there is anything."""
        while seat.num_envs and seat.is_asking:
            if any(shares.is_suspect(rows) for rows, _ in seat.shares):
                return
            rows = shares.next(seat.room, seat.num_envs, is_idle=not seat.shares)
            if rows is None:
                return
            share = episodes.take(rows)
            seat.shares.append((rows, share))
            seat.room = max(seat.room - len(rows), 0)
            seat.is_asking = seat.room > 0
            seat.worker.send(Work(self._number, origin, sigma, share))

    def _announce(self, population: Population) -> bytes:
        """Writes the center to the shared memory, and returns what the noise of its members follows from."""
        state = population.policy.state_dict()
        if _layout(state) != _layout(self._center):
            raise ValueError("the population is not of the policy that the workers have")
        if population.trained != self._trained:
            raise ValueError("the population's policy trains other parameters than the workers' policy")
        if population.origin is None:
            raise ValueError(
                "the population's noise cannot be drawn again elsewhere: its origin is not known"
            )
        for name, value in self._center.items():
            value.copy_(state[name])
        self._number += 1
        for seat in self._seats:
            seat.room, seat.is_asking = seat.num_envs, True
        origin: bytes = cloudpickle.dumps(population.origin)
        return origin

    def _start(self) -> _Seat:
        return _Seat(Worker(serve, *self._arguments))

    def _greet(self, seat: _Seat, message: object) -> None:
        """Takes the first message of a worker."""
        if isinstance(message, str):
            raise _play_error(message)
        assert isinstance(message, tuple)
        self._observation_size, seat.num_envs = message
        self._num_envs = seat.room = seat.num_envs

    def _revive(self) -> None:
        """Replaces workers that died, or were killed, since the last call of `play`."""
        for index, seat in enumerate(self._seats):
            if seat.shares or not seat.worker.process.is_alive():
                end_workers([seat.worker])
                self._seats[index] = self._start()
        self._deaths_in_a_row, self._has_played = 0, False

    def _receive(self, episodes: Episodes, shares: Shares, should_stop: Callable[[], bool]) -> None:
        """Waits for messages of workers, and handles them.

        Raises:
            PlayStoppedError: if a worker has died, and this process was asked to stop, perhaps by the same
                signal.
        """
        ready = wait([seat.worker.connection for seat in self._seats], timeout=POLL_SECONDS)
        for index, seat in enumerate(self._seats):
            if seat.worker.connection not in ready:
                continue
            try:
                message = seat.worker.receive()
            except WorkerDiedError as error:
                if should_stop():
                    raise PlayStoppedError from None
                self._seats[index] = self._replace(seat, shares, str(error))
                continue
            if isinstance(message, Episodes):
                self._put(seat, message, episodes)
            elif seat.num_envs == 0 or isinstance(message, str):
                self._greet(seat, message)
            elif message[0] == self._number:  # not of an earlier population
                seat.room, seat.is_asking = message[1], True

    def _put(self, seat: _Seat, played: Episodes, episodes: Episodes) -> None:
        """Writes down what came of a share."""
        for index, (rows, share) in enumerate(seat.shares):
            if share.ids[0] == played.ids[0]:
                episodes.put(rows, played)
                del seat.shares[index]
                break
        self._has_played, self._deaths_in_a_row = True, 0

    def _replace(self, seat: _Seat, shares: Shares, reason: str) -> _Seat:
        """Starts another worker for one that died; its unfinished shares are queued again."""
        end_workers([seat.worker])
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row >= MAX_DEATHS_IN_A_ROW * len(self._seats):
            raise PlayError(f"{self._deaths_in_a_row} times in a row {reason}")
        for rows, _ in seat.shares:
            if shares.lose(rows, reason) and self._has_played:  # it is known who is to blame
                self._deaths_in_a_row = 0
        return self._start()

    @override
    def close(self) -> None:
        for seat in self._seats:
            if seat.shares:
                seat.worker.kill()
            seat.worker.send(None)
        end_workers([seat.worker for seat in self._seats])
        self._seats = []


def _layout(state: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype, torch.device]]:
    return {name: (value.shape, value.dtype, value.device) for name, value in state.items()}


def _play_error(message: str) -> PlayError:
    """Returns the error for what a worker said: its last line, and all of it in the notes."""
    *trace, line = message.strip().splitlines()
    error = PlayError(line)
    if trace:
        error.add_note(message)
    return error
