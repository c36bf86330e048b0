"""Plays episodes without leaving the device: physics, policies and bookkeeping.

A step is two graphs, replayed one after the other on one stream: Warp's, of the physics, and torch's, of all
that is between two steps (`DeviceLoop.between_steps`). They are two because each library records only what
it allocates itself. The physics is recorded once; the rest once per generation, whose noise lies elsewhere in
memory. After every step the host checks whether any episode is left; on a GPU it looks one step behind the
one that it has handed over, so that the device never waits for it.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from es_flipout.envs.engines.warp import WarpEngine
from es_flipout.envs.engines.warp_faults import fault_text
from es_flipout.envs.mujoco.task_error import TaskError
from es_flipout.envs.mujoco.vector_env import MujocoVectorEnv
from es_flipout.envs.transfer import collector_paused, current_stream, new_stream, working_on
from es_flipout.population import Population
from es_flipout.rollout.claims import Claims
from es_flipout.rollout.device_loop import NOT_FINITE_BIT, DeviceLoop, SeededStates, Starts
from es_flipout.rollout.episodes import NOT_FINITE, Episodes
from es_flipout.rollout.host import HostPlayer
from es_flipout.rollout.player import (
    Player,
    PlayError,
    PlayStoppedError,
    check_members,
    never,
    nothing,
)

if TYPE_CHECKING:
    from es_flipout.rollout.action_noise import DeviceActionNoise


class DevicePlayer(Player):
    """Plays episodes in the envs of one environment on engine "warp".

    Independent noise is drawn row by row by the host, which then steps the envs, too; it also does so for a
    policy that is on another device than the environment.
    """

    def __init__(self, env: MujocoVectorEnv, *, cuda_graphs: bool = True) -> None:
        """Takes the environment.

        Args:
            env: on engine "warp".
            cuda_graphs: whether, on a GPU, what is between the steps of the physics is recorded as a graph.

        Raises:
            ValueError: if the engine is another.
        """
        if not isinstance(env.engine, WarpEngine):
            raise ValueError("a DevicePlayer needs an environment on engine 'warp'")
        self.env = env
        self._engine = env.engine
        self._on_gpu = env.engine.device.type == "cuda"
        self._cuda_graphs = cuda_graphs and self._on_gpu
        self._stream = new_stream(env.engine.device)  # nothing is recorded on the one that torch begins with
        self._graph: torch.cuda.CUDAGraph | None = None
        self._pool = torch.cuda.graph_pool_handle() if self._cuda_graphs else None
        self._host = HostPlayer(env)
        self._beside = ThreadPoolExecutor(1, "states")
        self._last: SeededStates | None = None
        self._expected: deque[tuple[NDArray[np.int64], Future[SeededStates]]] = deque()

    @classmethod
    def of(cls, env: MujocoVectorEnv) -> DevicePlayer:
        """Returns the player of an environment, always the same one: it keeps a stream and memory."""
        kept: DevicePlayer | None = getattr(env, "_device_player", None)
        if kept is None:
            kept = env._device_player = cls(env)  # type: ignore[attr-defined]
        return kept

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
        if not population.noise.is_stored or population.noise.device != self._engine.device:
            return self._host.play(
                population, episodes, claims=claims, should_stop=should_stop, meanwhile=meanwhile
            )
        if claims is not None:
            raise ValueError("a DevicePlayer must know from the start what it plays")
        check_members(population, episodes)
        _check_groups(population, episodes)
        if self.env.num_envs % population.noise.num_bases:
            raise ValueError(
                f"{self.env.num_envs} envs cannot be shared out among {population.noise.num_bases} bases: "
                "their number must be a multiple of it"
            )
        limits = [each for each in (self.env.max_episode_steps, episodes.limit) if each is not None]
        engine, task, states = self._engine, self.env.checked_task, self._states(episodes.reset_seed)
        try:
            with working_on(self._stream, after=current_stream(engine.device)):
                starts = self._starts(states)
                limit = min(limits) if limits else None
                noise = self._action_noise(episodes)
                loop = DeviceLoop(engine, task, population, starts, episodes.member, limit, noise)
                steps = self._play(loop, should_stop, meanwhile)
                _record(episodes, loop, states)
        except (RuntimeError, TaskError) as error:
            if not _is_of_memory(error):
                if isinstance(error, TaskError):
                    raise PlayError(str(error)) from error
                raise
            raise PlayError(
                f"out of memory with {self.env.num_envs} envs and {population.size} members (lower "
                f"env.num_envs or es.population_size): {_first_line(error)}"
            ) from error
        episodes.spent_steps += steps * self.env.num_envs
        return episodes

    def _action_noise(self, episodes: Episodes) -> DeviceActionNoise | None:
        """Returns the noise on the actions of a generation; None if there is none."""
        if not episodes.action_noise:
            return None
        from es_flipout.rollout.action_noise import DeviceActionNoise  # which imports numba

        return DeviceActionNoise(
            episodes.action_noise, self.env.single_action_space, episodes.reset_seed, self._engine.device
        )

    def _states(self, seeds: NDArray[np.int64]) -> SeededStates:
        """Returns the states that episodes start from."""
        if self._last is None or not np.array_equal(self._last.seeds, seeds):
            drawn = (future for known, future in self._expected if np.array_equal(known, seeds))
            future = next(drawn, None)
            self._last = (
                SeededStates.draw(self.env.checked_task, seeds) if future is None else future.result()
            )
        return self._last

    @override
    def needs_fixed_share(self, population: Population) -> bool:
        return True

    @override
    def prefetch(self, reset_seeds: NDArray[np.int64]) -> None:
        seeds = reset_seeds.ravel()
        known = [each for each, _ in self._expected]
        if self._last is not None:
            known.append(self._last.seeds)
        if any(np.array_equal(each, seeds) for each in known):
            return
        self._expected.append((seeds, self._beside.submit(SeededStates.draw, self.env.checked_task, seeds)))
        if len(self._expected) > 2:  # one that is about to be played, and one that comes after it
            self._expected.popleft()[1].cancel()

    def _play(self, loop: DeviceLoop, should_stop: Callable[[], bool], meanwhile: Callable[[], None]) -> int:
        """Steps until every episode has ended; returns the number of steps."""
        num_substeps = self.env.task.frame_skip
        self._engine.advance(num_substeps)
        meanwhile()
        loop.between_steps()  # not recorded: this loads and sets up whatever there is to
        between_steps = self._recorded(loop) if self._cuda_graphs else loop.between_steps
        steps, looks = 1, deque([_Look(loop.live)])
        steps_ahead = 1 if self._on_gpu else 0
        while len(looks) <= steps_ahead or looks.popleft().anyone():
            if should_stop():
                raise PlayStoppedError
            self._engine.advance(num_substeps)
            between_steps()
            steps += 1
            looks.append(_Look(loop.live))
        return steps

    def prepare(self) -> None:
        """Compiles and records all of the physics, which the first population would wait for.

        Raises:
            PlayError: if the model cannot run on the device.
        """
        with working_on(self._stream, after=current_stream(self._engine.device)), _warp_errors_told():
            self._engine.compile(self.env.task.frame_skip)

    def _starts(self, states: SeededStates) -> Starts:
        """Returns what episodes begin with; the first time, all of the physics is recorded."""
        engine, task = self._engine, self.env.checked_task
        with _warp_errors_told():
            engine.compile(self.env.task.frame_skip)
            return Starts.compute(engine, task, states, self.env.dtype)

    def _recorded(self, loop: DeviceLoop) -> Callable[[], None]:
        """Returns `loop.between_steps` as a graph."""
        try:
            try:
                graph = self._record(loop)
            except (RuntimeError, TaskError) as error:
                if not _is_of_memory(error):
                    raise
                torch.cuda.empty_cache()  # within a recording torch must not do so
                graph = self._record(loop)
        except (RuntimeError, TaskError) as error:
            if _is_of_memory(error):
                raise
            raise PlayError(
                "the policy, or the task, cannot be recorded as a CUDA graph (they must not look at values "
                f"on the GPU; env.engine batch or mjdata_pool runs them anyway): {_first_line(error)}"
            ) from error
        # The previous graph is freed only now, so that its memory pool stays alive.
        self._graph = graph
        return graph.replay

    def _record(self, loop: DeviceLoop) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        assert self._stream is not None
        self._stream.synchronize()
        try:
            with collector_paused():
                # Not torch.cuda.graph, which collects garbage and empties torch's caches each time.
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    loop.between_steps()
                except BaseException:
                    with contextlib.suppress(RuntimeError):  # that something went wrong before
                        graph.capture_end()
                    raise
                graph.capture_end()
        except BaseException:
            self._pool = torch.cuda.graph_pool_handle()  # the recording in the old one may never have ended
            raise
        return graph

    @override
    def close(self) -> None:
        self._beside.shutdown(cancel_futures=True)
        self.env.close()


def _check_groups(population: Population, episodes: Episodes) -> None:
    """Checks that a table has as many episodes for each base, one base after the other.

    Raises:
        ValueError: if it has not.
    """
    noise = population.noise
    members = torch.from_numpy(episodes.member).to(noise.device)
    bases, count = noise.base_of(members).cpu().numpy(), noise.num_bases
    if not np.array_equal(bases, np.repeat(np.arange(count), len(episodes) // count)):
        raise ValueError(
            f"engine 'warp' needs as many episodes for each of the {count} bases, in their order"
        )


def _is_of_memory(error: RuntimeError | TaskError) -> bool:
    """Returns whether an error of torch, of cuBLAS or of Warp says that memory is short."""
    text = str(error)
    if "memory pools are not supported" in text:  # no matter how much memory is free
        return False
    said = ("out of memory", "Failed to allocate", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(each in text for each in said)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


@contextlib.contextmanager
def _warp_errors_told() -> Iterator[None]:
    """Turns what Warp says of a model that it cannot run into a `PlayError`; a lack of memory stays one."""
    try:
        yield
    except RuntimeError as error:
        if _is_of_memory(error):
            raise
        raise PlayError(f"mujoco_warp cannot run the model here: {_first_line(error)}") from error


class _Look:
    """Whether any env is live, asked at some point of the stream and answered when that is reached."""

    def __init__(self, live: Tensor) -> None:
        self._answer = live.any()
        self._reached: torch.cuda.Event | None = None
        if live.device.type == "cuda":
            pinned = torch.empty((), dtype=torch.bool, pin_memory=True)
            self._answer = pinned.copy_(self._answer, non_blocking=True)
            self._reached = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._reached.record()

    def anyone(self) -> bool:
        if self._reached is not None:
            self._reached.synchronize()
        return bool(self._answer)


def _record(episodes: Episodes, loop: DeviceLoop, states: SeededStates) -> None:
    """Fills in the table of a generation that has been played."""
    returns, lengths, codes = (
        values[:-1].cpu().numpy() for values in (loop.returns, loop.lengths, loop.faults)
    )
    failed = np.flatnonzero(codes).tolist()
    faults = {
        row: states.fault(row) or fault_text(int(codes[row]) & ~NOT_FINITE_BIT) or NOT_FINITE
        for row in failed
    }
    episodes.record_all(returns, lengths, faults, loop.statistics())
