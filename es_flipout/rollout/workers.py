"""Plays episodes in worker processes.

A worker gets the center through shared memory, and rows of the table of episodes; it draws the members'
noise again from its seed, plays the episodes, and sends the rows back.

Python runs one thread at a time, and a step of a population is some hundred calls: one process would leave
cores idle while it makes them. Workers, each with envs of its own, never wait for each other.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import wait

import cloudpickle  # type: ignore[import-untyped]
import torch
from torch import Tensor, nn
from typing_extensions import override

from es_flipout.envs.contract import TorchVectorEnv
from es_flipout.population import Population, trained_parameters
from es_flipout.processes import Worker, WorkerDiedError, end_workers
from es_flipout.rollout.episodes import Episodes
from es_flipout.rollout.host_loop import HostLoop, observation_size
from es_flipout.rollout.mlp_rows import member_rows
from es_flipout.rollout.player import Player, PlayError, PlayStoppedError, check_members, never
from es_flipout.rollout.shares import Shares
from es_flipout.rollout.worker_main import Desk, SharedTensors, Work, WorkerSide, serve

MAX_DEATHS_IN_A_ROW = 5
"""How many workers may die for each that there is, with no episode played in between, before we give up."""
POLL_SECONDS = 0.1
"""How long a request to stop may go unnoticed while nothing else happens."""


@dataclass
class _Seat:
    """A worker, and what it has been given to do."""

    worker: Worker
    num_envs: int = 0  # 0 until it has said that it is ready
    shares: deque[Episodes] = field(default_factory=deque)


class WorkerPlayer(Player):
    """Plays episodes of one policy's populations in worker processes, which live until `close`."""

    def __init__(self, policy: nn.Module, make_side: Callable[[], WorkerSide], num_workers: int) -> None:
        """Starts the workers.

        Args:
            policy: the policy whose populations are to be played, on the CPU. Workers get a copy; of later
                changes they see those of parameters and buffers.
            make_side: called once in every worker; pickled by cloudpickle.
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
            self._arguments = cloudpickle.dumps(policy), cloudpickle.dumps(make_side), shared
        except Exception as error:  # whatever a user's class may raise
            raise ValueError(
                f"worker processes need a policy that can be pickled: {type(error).__name__}: {error}"
            ) from error
        self._number = 0
        self._deaths_in_a_row = 0
        self._observation_size: int | None = None
        self._seats: list[_Seat] = []
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            self._seats = [self._start() for _ in range(num_workers)]
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
            ValueError: as well.
        """
        return cls(policy, partial(EnvsInWorker, make_env), num_workers)

    @property
    def num_workers(self) -> int:
        """How many processes there are."""
        return len(self._seats)

    @override
    def play(
        self, population: Population, episodes: Episodes, *, should_stop: Callable[[], bool] = never
    ) -> Episodes:
        if not self._seats:
            raise ValueError("the player is closed")
        check_members(population, episodes)
        episodes.observation_size = self._observation_size
        shares = Shares(episodes, len(self._seats))
        origin = self._announce(population)
        try:
            self._revive()
            while not shares.done:
                if should_stop():
                    raise PlayStoppedError
                for seat in self._seats:
                    while seat.num_envs and (share := shares.next(seat.shares, seat.num_envs)) is not None:
                        seat.shares.append(share)
                        seat.worker.send(Work(self._number, origin, population.sigma, share))
                self._receive(shares, should_stop)
        except BaseException:
            # What is under way is of no use any more, and may be long; `_revive` replaces the workers.
            for seat in self._seats:
                if seat.shares:
                    seat.worker.kill()
            raise
        return episodes

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

    def _revive(self) -> None:
        """Replaces workers that died, or were killed, since the last call of `play`."""
        for index, seat in enumerate(self._seats):
            if seat.shares or not seat.worker.process.is_alive():
                end_workers([seat.worker])
                self._seats[index] = self._start()
        self._deaths_in_a_row = 0

    def _receive(self, shares: Shares, should_stop: Callable[[], bool]) -> None:
        """Waits for messages of workers, and sees to them.

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
            if not isinstance(message, Episodes):
                self._greet(seat, message)
                continue
            seat.shares = deque(each for each in seat.shares if each.ids[0] != message.ids[0])
            shares.put(message)
            self._deaths_in_a_row = 0

    def _replace(self, seat: _Seat, shares: Shares, reason: str) -> _Seat:
        """Starts another worker for one that died; what that had in hand waits again."""
        end_workers([seat.worker])
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row >= MAX_DEATHS_IN_A_ROW * len(self._seats):
            raise PlayError(f"{self._deaths_in_a_row} times in a row {reason}")
        playing = 0
        for share in seat.shares:
            if playing and playing + len(share) > seat.num_envs:  # it had not begun with this one
                shares.give_back(share)
            else:
                shares.lose(share, reason)
            playing += len(share)
        return self._start()

    @override
    def close(self) -> None:
        for seat in self._seats:
            if seat.shares:
                seat.worker.kill()
            seat.worker.send(None)
        end_workers([seat.worker for seat in self._seats])
        self._seats = []


class EnvsInWorker:
    """Plays episodes side by side, in the envs of a worker; see `WorkerSide`."""

    def __init__(self, make_env: Callable[[], TorchVectorEnv]) -> None:
        self._env = make_env()
        self.num_envs = self._env.num_envs
        self.observation_size = observation_size(self._env)

    def play(self, population: Population, desk: Desk) -> None:
        """Keeps the envs busy as long as shares come in."""
        loop = HostLoop(self._env, population.policy, member_rows(population))
        shares: list[Episodes] = []
        steps = 0
        while True:
            while loop.lacks_episodes:
                share = desk.take(wait=not loop.is_playing)
                if share is None:
                    break
                share.observation_size = self.observation_size
                shares.append(share)
                loop.add(share)
            if not loop.is_playing:
                return
            loop.step()
            if not all(share.unplayed for share in shares):
                for share in [each for each in shares if not each.unplayed]:
                    # What was spent since the last answer; steps on behalf of nobody are in there, too.
                    share.spent_steps, steps = loop.spent_steps - steps, loop.spent_steps
                    shares.remove(share)
                    desk.put(share)

    def close(self) -> None:
        """Closes the environment."""
        self._env.close()


def _layout(state: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype, torch.device]]:
    return {name: (value.shape, value.dtype, value.device) for name, value in state.items()}


def _play_error(message: str) -> PlayError:
    """Returns the error for what a worker said: its last line, and all of it in the notes."""
    *trace, line = message.strip().splitlines()
    error = PlayError(line)
    if trace:
        error.add_note(message)
    return error
