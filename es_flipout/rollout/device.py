"""Evaluates a population without leaving its device: physics, policies and bookkeeping.

A step is two graphs, replayed one after the other on one stream: Warp's, of the physics, and torch's, of all
that is between two steps (`DeviceSlots.between_steps`). They are two because each library records only what
it allocates itself. The physics is recorded once; the rest once a generation, whose noise lies elsewhere in
memory. After every step the host looks whether any episode is left; on a GPU it looks one step behind the one
that it has handed over, so that the device never waits for it.
"""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from es_flipout.envs.engines.warp import WarpEngine
from es_flipout.envs.engines.warp_faults import fault_text
from es_flipout.envs.mujoco.vector_env import MujocoVectorEnv
from es_flipout.envs.transfer import collector_paused, current_stream, new_stream, working_on
from es_flipout.population import Population
from es_flipout.rollout import episodes as results
from es_flipout.rollout.device_envs import NOT_FINITE, DeviceSlots, SeededStates, Starts
from es_flipout.rollout.episodes import Evaluation, EvaluationStoppedError, Results
from es_flipout.rollout.host import VectorizedEvaluator


class DeviceError(RuntimeError):
    """A generation cannot run on the device; the message is one line and says what can be done."""


class OnDeviceEvaluator:
    """Runs the episodes of a population in the slots of one environment on engine "warp"."""

    def __init__(self, env: MujocoVectorEnv, *, cuda_graphs: bool = True) -> None:
        """Takes the environment.

        Args:
            env: on engine "warp".
            cuda_graphs: whether, on a GPU, what is between the steps of the physics is recorded as a graph.

        Raises:
            ValueError: if the engine is another.
        """
        if not isinstance(env.engine, WarpEngine):
            raise ValueError("an OnDeviceEvaluator needs an environment on engine 'warp'")
        self.env = env
        self._engine = env.engine
        self._on_gpu = env.engine.device.type == "cuda"
        self._cuda_graphs = cuda_graphs and self._on_gpu
        self._stream = new_stream(env.engine.device)  # nothing is recorded on the one that torch begins with
        self._graph: torch.cuda.CUDAGraph | None = None
        self._pool = torch.cuda.graph_pool_handle() if self._cuda_graphs else None
        self._by_host = VectorizedEvaluator(env)
        self._beside = ThreadPoolExecutor(1, "states")
        self._last: SeededStates | None = None
        self._expected: Future[SeededStates] | None = None

    @classmethod
    def of(cls, env: MujocoVectorEnv) -> OnDeviceEvaluator:
        """Returns the evaluator of an environment, always the same one: it keeps a stream and memory."""
        kept: OnDeviceEvaluator | None = getattr(env, "_on_device_evaluator", None)
        if kept is None:
            kept = env._on_device_evaluator = cls(env)  # type: ignore[attr-defined]
        return kept

    def evaluate(
        self,
        population: Population,
        reset_seeds: Sequence[int] | Sequence[Sequence[int]],
        *,
        episode_limit: int | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        next_seeds: Callable[[], Sequence[Sequence[int]]] | None = None,
    ) -> Evaluation:
        """Rolls every member out for its episodes.

        Independent noise is drawn row by row by the host, which then runs the slots, too; and so it does for
        a policy that is on another device than the environment.

        Args:
            population: the members.
            reset_seeds: see `VectorizedEvaluator.evaluate`.
            episode_limit: as well.
            should_stop: is asked before every step but the first.
            next_seeds: returns the seeds of a later evaluation, whose states the host then draws beside this
                one. If that never comes, nothing is lost.

        Raises:
            DeviceError: if the physics or the policy cannot be recorded as a CUDA graph, or memory is short.
            EvaluationStoppedError: if `should_stop` said so.
            ValueError: if there are not as many seeds for each member, or the slots cannot be shared out
                evenly among the bases.
        """
        if not population.noise.is_stored or population.noise.device != self._engine.device:
            return self._by_host.evaluate(
                population, reset_seeds, episode_limit=episode_limit, should_stop=should_stop
            )
        if self.env.num_envs % population.noise.num_bases:
            raise ValueError(
                f"{self.env.num_envs} slots cannot be shared out among {population.noise.num_bases} bases: "
                "their number must be a multiple of it"
            )
        seeds = Results.of(reset_seeds, population.size, observation_size=None).seeds
        limits = [each for each in (self.env.max_episode_steps, episode_limit) if each is not None]
        engine, task, states = self._engine, self.env.task, self._states(seeds, next_seeds)
        try:
            with working_on(self._stream, after=current_stream(engine.device)):
                starts = self._starts(states)
                slots = DeviceSlots(engine, task, population, starts, min(limits) if limits else None)
                steps = self._play(slots, should_stop)
                return _evaluation(slots, seeds.shape, steps * self.env.num_envs)
        except RuntimeError as error:
            if not _is_of_memory(error):
                raise
            raise DeviceError(
                f"out of memory with {self.env.num_envs} slots and {population.size} members (lower "
                f"env.num_envs or es.population_size): {_first_line(error)}"
            ) from error

    def _states(
        self, seeds: NDArray[np.int64], next_seeds: Callable[[], Sequence[Sequence[int]]] | None
    ) -> SeededStates:
        """Returns the states that are wanted now, and begins with those that will be."""
        task, last, expected = self.env.task, self._last, self._expected
        if last is not None and np.array_equal(last.seeds, seeds):
            states = last
        elif expected is not None and np.array_equal(expected.result().seeds, seeds):
            states = expected.result()
        else:
            states = SeededStates.draw(task, seeds)
        self._last = states
        if next_seeds is not None:
            if expected is not None:
                expected.cancel()
            self._expected = self._beside.submit(
                lambda: SeededStates.draw(task, np.array(next_seeds(), dtype=np.int64))
            )
        return states

    def _play(self, slots: DeviceSlots, should_stop: Callable[[], bool]) -> int:
        """Steps until every episode has ended; returns the number of steps."""
        num_substeps = self.env.task.frame_skip
        self._engine.advance(num_substeps)
        slots.between_steps()  # not recorded: this loads and sets up whatever there is to
        between_steps = self._recorded(slots) if self._cuda_graphs else slots.between_steps
        steps, looks = 1, deque([_Look(slots.live)])
        steps_ahead = 1 if self._on_gpu else 0
        while len(looks) <= steps_ahead or looks.popleft().anyone():
            if should_stop():
                raise EvaluationStoppedError
            self._engine.advance(num_substeps)
            between_steps()
            steps += 1
            looks.append(_Look(slots.live))
        return steps

    def _starts(self, states: SeededStates) -> Starts:
        """Returns what episodes begin with; the first time, all of the physics is recorded."""
        engine, task = self._engine, self.env.task
        try:
            engine.compile(task.frame_skip)
            return Starts.compute(engine, task, states, self.env.dtype)
        except RuntimeError as error:
            if _is_of_memory(error):
                raise
            raise DeviceError(f"mujoco_warp cannot run the model here: {_first_line(error)}") from error

    def _recorded(self, slots: DeviceSlots) -> Callable[[], None]:
        """Returns `slots.between_steps` as a graph."""
        try:
            try:
                graph = self._record(slots)
            except RuntimeError as error:
                if not _is_of_memory(error):
                    raise
                torch.cuda.empty_cache()  # within a recording torch must not do so
                graph = self._record(slots)
        except RuntimeError as error:
            if _is_of_memory(error):
                raise
            raise DeviceError(
                "the policy, or the task, cannot be recorded as a CUDA graph (they must not look at values "
                f"on the GPU; env.engine batch or mjdata_pool runs them anyway): {_first_line(error)}"
            ) from error
        # The previous graph is freed only now, so that its memory pool stays alive.
        self._graph = graph
        return graph.replay

    def _record(self, slots: DeviceSlots) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        assert self._stream is not None
        self._stream.synchronize()
        try:
            with collector_paused():
                # Not torch.cuda.graph, which collects garbage and empties torch's caches each time.
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    slots.between_steps()
                except BaseException:
                    with contextlib.suppress(RuntimeError):  # that something went wrong before
                        graph.capture_end()
                    raise
                graph.capture_end()
        except BaseException:
            self._pool = torch.cuda.graph_pool_handle()  # the recording in the old one may never have ended
            raise
        return graph

    def close(self) -> None:
        """Closes the environment."""
        self._beside.shutdown(cancel_futures=True)
        self.env.close()


def _is_of_memory(error: RuntimeError) -> bool:
    """Returns whether an error of torch, of cuBLAS or of Warp says that memory is short."""
    text = str(error)
    if "memory pools are not supported" in text:  # no matter how much memory is free
        return False
    said = ("out of memory", "Failed to allocate", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(each in text for each in said)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


class _Look:
    """Whether any slot is live, asked at some point of the stream and answered when that is reached."""

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


def _evaluation(slots: DeviceSlots, shape: tuple[int, ...], slot_steps: int) -> Evaluation:
    returns, lengths, faults = (
        values[:-1].cpu().view(shape) for values in (slots.returns, slots.lengths, slots.faults)
    )
    failures: Counter[str] = Counter()
    for code, count in Counter(faults[faults != 0].tolist()).items():
        failures[fault_text(code & ~NOT_FINITE) or results.NOT_FINITE] += count
    return Evaluation(
        torch.where(faults == 0, returns, torch.nan), lengths, slot_steps, slots.statistics(), failures
    )
