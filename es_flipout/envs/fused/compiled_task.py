"""The hooks of one task as compiled functions over all envs, checked against the hooks themselves."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from es_flipout.compilation import compiled, source_module
from es_flipout.envs.fused.operations import OPERATIONS, ROUNDED_ELSEWHERE
from es_flipout.envs.fused.source import HEADER, Writer
from es_flipout.envs.fused.traced import Graph, NotTraceableError
from es_flipout.envs.mujoco.checked_task import CheckedTask
from es_flipout.envs.mujoco.task import Fields
from es_flipout.error_text import FOREIGN, error_text

TRACED_ROWS = 13
"""Envs in a trace: a number that no dimension of a task is likely to have."""
CHECKED_ROWS = 16
"""Envs in which the compiled functions are compared with the hooks."""
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
"""Relative difference allowed for sums in another order, and for another library's sines."""

Array = NDArray[Any]
RESULTS = ("observations", "rewards", "terminated", "located")
"""What a step computes, [N, ...] each; the last is read, too, as it was before the step."""


class NotFusedError(Exception):
    """A task's hooks cannot be compiled; the message says why."""


class CompiledTask:
    """Functions that fill arrays of N envs from the fields of these envs.

    Attributes:
        is_exact: whether they equal, to the last bit, hooks that add up in NumPy's order.
    """

    def __init__(self, task: CheckedTask, fields: Fields, dtype: torch.dtype) -> None:
        """Compiles the hooks, or finds them compiled.

        Numbers that a hook reads from the task are those of this moment, as in a CUDA graph.

        Args:
            task: the task.
            fields: those that it declares, in some envs at the start of an episode, [M, ...].
            dtype: of observations.

        Raises:
            NotFusedError: if a hook does what cannot be compiled, or what was compiled disagrees with it.
        """
        self._dtype = dtype
        try:
            # Hooks may keep what they are given.
            task = CheckedTask(copy.deepcopy(task.task))
            source, self._arguments, self.is_exact = _source(task, fields, dtype)
            if _source(task, fields, dtype)[0] != source:
                raise NotTraceableError("the hooks do something else at each call")
            module = source_module(source)
            self._functions = {name: compiled(getattr(module, name)) for name in self._arguments}
            self._check(task, fields)
        except NotFusedError:
            raise
        except FOREIGN as error:  # of the task, or of numba
            raise NotFusedError(error_text(error)) from error

    def bind(self, arrays: Mapping[str, Array]) -> tuple[Callable[[Array], None], Callable[[Array], None]]:
        """Returns what observes and locates envs, and what computes everything about a step.

        Args:
            arrays: the fields, `actions` [N, A], and `RESULTS`, all with as many rows: observations,
                rewards, float64; terminated, bool; located, float64 [N, ...].

        Returns:
            Two functions of a mask, bool [N]: only rows in which it is True are written.
        """
        observe, step = (
            functools.partial(self._functions[name], *(arrays[each] for each in self._arguments[name]))
            for name in ("observe", "step")
        )
        return observe, step

    def _check(self, task: CheckedTask, fields: Fields) -> None:
        """Compares with the hooks in envs around those of `fields`."""
        generator = torch.Generator().manual_seed(0)
        rows = torch.arange(CHECKED_ROWS) % len(fields["qpos"])
        noise = torch.linspace(0, 1, CHECKED_ROWS).double()

        def around(of_env: Tensor) -> Tensor:
            values = of_env[rows]
            scale = noise.view(-1, *(1,) * (values.ndim - 1))
            values += scale * torch.randn(values.shape, generator=generator, dtype=values.dtype)
            return values if of_env.is_contiguous() else _spaced(values)

        some = {name: around(values) for name, values in fields.items()}
        actions = torch.randn(CHECKED_ROWS, task.task.model.nu, generator=generator)
        before = task.locate({name: around(values) for name, values in fields.items()}).clone()
        expected = _called(task, some, before, actions, self._dtype)
        found = {name: torch.zeros_like(value) for name, value in expected.items()}
        found["located"] = before
        arrays = {name: value.numpy() for name, value in {**some, **found, "actions": actions}.items()}
        observe, step = self.bind(arrays)
        everywhere = np.ones(CHECKED_ROWS, np.bool_)
        step(everywhere)
        _compare(found, expected)
        found["observations"].zero_(), found["located"].zero_()
        observe(everywhere)
        _compare(found, expected)


def _called(
    task: CheckedTask, fields: Fields, before: Tensor, actions: Tensor, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Returns what the hooks say of a step: `RESULTS`."""
    located = task.locate(fields).clone()
    rewards, _ = task.reward(before, located, fields, actions)
    values = task.observe(fields, dtype), rewards.double(), task.terminated(fields), located
    return dict(zip(RESULTS, values, strict=True))


@torch.inference_mode(False)  # in which torch does not take composite operations apart
def _source(
    task: CheckedTask, fields: Fields, dtype: torch.dtype
) -> tuple[str, dict[str, tuple[str, ...]], bool]:
    """Returns the source of both functions, the names of their arguments, and whether they are exact."""
    graph = Graph()
    rows = torch.arange(TRACED_ROWS) % len(fields["qpos"])

    def argument(name: str, values: Tensor) -> Tensor:
        return graph.argument(name, values[rows].clone())

    before = argument("located", task.locate(fields))
    actions = argument("actions", torch.zeros(len(rows), task.task.model.nu))
    traced = {name: argument(name, values) for name, values in fields.items()}
    with graph.noting():
        called = _called(task, traced, before, actions, dtype)
    results = {name: graph.node_of(value) for name, value in called.items()}
    parts, arguments, is_exact = [HEADER], {}, True
    for name, wanted in (("observe", ("observations", "located")), ("step", RESULTS)):
        writer = Writer(TRACED_ROWS, OPERATIONS, ROUNDED_ELSEWHERE)
        text, arguments[name] = writer.write(graph, {each: results[each] for each in wanted}, name)
        parts.append("\n".join([*writer.constants, "", text]))
        is_exact &= writer.is_exact
    return "\n\n".join(parts) + "\n", arguments, is_exact


def _spaced(values: Tensor) -> Tensor:
    """Returns values that are not contiguous, for which numba would otherwise compile once more."""
    wide = values.new_zeros(*values.shape[:-1], values.shape[-1] + 1)
    wide[..., :-1] = values
    return wide[..., :-1]


def _compare(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name, values in expected.items():
        tolerance = TOLERANCE.get(values.dtype, 0.0)
        if not torch.allclose(found[name], values, rtol=tolerance, atol=tolerance, equal_nan=True):
            raise NotFusedError(f"{name} as compiled differ from the hook's")
