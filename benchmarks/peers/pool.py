"""Episodes of a population in Gymnasium environments on all cores: what libraries without one are given.

Each worker process steps a few environments of its own, each in an episode of one member, and runs the
policies of these members in one batched call. An environment whose episode ends takes the next member that
waits, whichever worker is first; once none is left, it is not stepped any more. So no process waits for
another before the generation is over, and no physics is spent on an episode that has ended. What crosses
between processes is the population and the returns, in shared memory.

Environments are those of `gymnasium.make` without its wrappers: the pool counts the steps itself.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

VARIANCE_FLOOR = 1e-2
Floats = NDArray[np.float32]


class Policies(Protocol):
    """The policies of one worker's envs, each with the weights of a member."""

    def load(self, place: int, weights: Floats) -> None:
        """Gives an env the weights of another member, [D]."""

    def move(self, source: int, target: int) -> None:
        """Gives env `target` the weights of env `source`."""

    def normalize(self, mean: Floats, scale: Floats) -> None:
        """Observations are from now on (observation - mean) * scale, cut off at 10; both are [O]."""

    def act(self, observations: Floats, live: int) -> Floats:
        """Returns actions of at least the first `live` envs for observations [num_envs, O] of all."""


MakePolicies = Callable[[gym.Space[Any], gym.Space[Any], int], Policies]
"""From observation space, action space and number of envs; workers get it, so it must be importable."""


class Moments:
    """Running mean and variance of observations."""

    def __init__(self, size: int) -> None:
        self.count = 0
        self.total = np.zeros(size)
        self.squares = np.zeros(size)

    def add(self, rows: Floats) -> None:
        """Counts rows [N, O] in."""
        self.count += len(rows)
        self.total += rows.sum(axis=0, dtype=np.float64)
        self.squares += np.einsum("no,no->o", rows, rows, dtype=np.float64)

    def merge(self, other: Moments) -> None:
        """Counts in all that `other` has seen."""
        self.count += other.count
        self.total += other.total
        self.squares += other.squares

    def mean_and_scale(self) -> tuple[Floats, Floats]:
        """Returns the mean and one over the standard deviation, [O]; 0 and 1 before any row."""
        if self.count == 0:
            return np.zeros(len(self.total), np.float32), np.ones(len(self.total), np.float32)
        mean = self.total / self.count
        variance = np.maximum(self.squares / self.count - mean**2, VARIANCE_FLOOR)
        return mean.astype(np.float32), (variance**-0.5).astype(np.float32)


@dataclass(frozen=True)
class Shared:
    """What the workers and the pool have in common, as shared memory.

    Attributes:
        population: weights of all members, float32 [P, D].
        returns: of the members' episodes, float64 [P].
        lengths: in env steps, int64 [P].
        next_member: the one that is to start next, behind a lock.
    """

    population: Any
    returns: Any
    lengths: Any
    next_member: Any

    def arrays(self, population_size: int) -> tuple[Floats, NDArray[np.float64], NDArray[np.int64]]:
        """Returns population, returns and lengths as arrays upon the shared memory."""
        population = np.frombuffer(self.population, np.float32).reshape(population_size, -1)
        return population, np.frombuffer(self.returns, np.float64), np.frombuffer(self.lengths, np.int64)

    def claim(self) -> int:
        """Returns the next member that waits; P and beyond if none does."""
        with self.next_member.get_lock():
            member: int = self.next_member.value
            self.next_member.value = member + 1
        return member


class EpisodePool:
    """Runs one episode of each member of a population.

    Attributes:
        moments: of all observations on which a policy acted.
    """

    def __init__(
        self,
        task: str,
        max_episode_steps: int,
        make_policies: MakePolicies,
        *,
        population_size: int,
        num_weights: int,
        processes: int,
        num_envs: int,
        seed: int,
    ) -> None:
        """Starts the workers.

        Args:
            task: Gymnasium id.
            max_episode_steps: env steps after which an episode is cut off.
            make_policies: makes the policies of a worker's envs.
            population_size: P.
            num_weights: D.
            processes: number of workers.
            num_envs: environments of each worker.
            seed: of the environments' start states.
        """
        context = multiprocessing.get_context("spawn")
        self._shared = Shared(
            context.RawArray(ctypes.c_float, population_size * num_weights),
            context.RawArray(ctypes.c_double, population_size),
            context.RawArray(ctypes.c_int64, population_size),
            context.Value(ctypes.c_int64, population_size),
        )
        self._population, self._returns, self._lengths = self._shared.arrays(population_size)
        env = gym.make(task)
        self.moments = Moments(np.prod(env.observation_space.shape, dtype=int))
        env.close()
        self._connections: list[Connection] = []
        self._workers = []
        num_envs = min(num_envs, -(-population_size // processes))
        for index in range(processes):
            ours, theirs = context.Pipe()
            seeds = range(seed + index * num_envs, seed + (index + 1) * num_envs)
            worker = context.Process(
                target=_work,
                args=(theirs, self._shared, population_size, task, max_episode_steps, make_policies, seeds),
                daemon=True,
            )
            worker.start()
            theirs.close()
            self._connections.append(ours)
            self._workers.append(worker)

    def evaluate(self, population: Floats) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Runs an episode of each member of [P, D]; returns their returns [P] and lengths [P].

        Observations are normalized by the moments of the evaluations before this one.

        Raises:
            RuntimeError: if a worker fails.
        """
        np.copyto(self._population, population)
        self._shared.next_member.value = 0
        statistics = self.moments.mean_and_scale()
        for connection in self._connections:
            connection.send(statistics)
        waiting = list(self._connections)
        while waiting:
            for connection in wait(waiting):
                try:
                    answer = connection.recv()  # type: ignore[union-attr]
                except EOFError:
                    raise RuntimeError("a worker has died") from None
                if not isinstance(answer, Moments):
                    raise RuntimeError(f"a worker failed:\n{answer}")
                self.moments.merge(answer)
                waiting.remove(connection)  # type: ignore[arg-type]
        return self._returns.copy(), self._lengths.copy()

    def close(self) -> None:
        """Ends the workers."""
        for connection in self._connections:
            connection.close()
        for worker in self._workers:
            worker.join(5)
            if worker.is_alive():
                worker.kill()
                worker.join()

    def __enter__(self) -> EpisodePool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _work(
    connection: Connection,
    shared: Shared,
    population_size: int,
    task: str,
    max_episode_steps: int,
    make_policies: MakePolicies,
    seeds: range,
) -> None:
    """A worker: a generation for every message, until the pool is closed or gone."""
    try:
        envs = make_envs(task, seeds)
        policies = make_policies(envs[0].observation_space, envs[0].action_space, len(envs))
        gc.collect()
        gc.freeze()
        while True:
            policies.normalize(*connection.recv())
            connection.send(_run_generation(shared, population_size, max_episode_steps, envs, policies))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass
    except Exception:
        connection.send(traceback.format_exc())
    os._exit(0)  # at once, whatever threads a library has left


def make_envs(task: str, seeds: range) -> list[gym.Env[Any, Any]]:
    """Makes an environment for each seed, without wrappers, and seeds it."""
    envs = [gym.make(task, disable_env_checker=True).unwrapped for _ in seeds]
    for env, seed in zip(envs, seeds, strict=True):
        env.reset(seed=seed)
    return envs


def _run_generation(
    shared: Shared,
    population_size: int,
    max_episode_steps: int,
    envs: list[gym.Env[Any, Any]],
    policies: Policies,
) -> Moments:
    """Runs episodes until no member waits; returns the moments of the observations.

    The first `live` envs are running. One that has nothing more to run trades places with the last of them.
    """
    population, returns, lengths = shared.arrays(population_size)
    members: list[int] = []
    observations = np.zeros((len(envs), *envs[0].observation_space.shape), np.float32)
    for place, env in enumerate(envs):
        if (member := shared.claim()) >= population_size:
            break
        members.append(member)
        policies.load(place, population[member])
        observations[place] = env.reset()[0]
    live = len(members)
    totals, counts = [0.0] * live, [0] * live
    moments = Moments(observations.shape[1])
    while live:
        moments.add(observations[:live])
        actions = policies.act(observations, live)
        for place in range(live - 1, -1, -1):  # backwards: whoever moves up has been stepped
            observation, reward, terminated, _, _ = envs[place].step(actions[place])
            totals[place] += reward
            counts[place] += 1
            if not terminated and counts[place] < max_episode_steps:
                observations[place] = observation
                continue
            returns[members[place]], lengths[members[place]] = totals[place], counts[place]
            if (member := shared.claim()) < population_size:
                members[place], totals[place], counts[place] = member, 0.0, 0
                policies.load(place, population[member])
                observations[place] = envs[place].reset()[0]
                continue
            live -= 1
            if place < live:
                envs[place], envs[live] = envs[live], envs[place]
                members[place], totals[place], counts[place] = members[live], totals[live], counts[live]
                observations[place] = observations[live]
                policies.move(live, place)
    return moments
