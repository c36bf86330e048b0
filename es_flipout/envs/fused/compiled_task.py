"""The hooks of one task as compiled functions over all envs, checked against the hooks themselves."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from es_flipout.compilation import compiled, source_module
from es_flipout.envs.fused.operations import OPERATIONS, ROUNDED_ELSEWHERE
from es_flipout.envs.fused.source import HEADER, Writer
from es_flipout.envs.fused.traced import Graph, NotTraceableError
from es_flipout.envs.mujoco.checked_task import NOISE, CheckedTask
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
"""What a step computes, [N, ...] each, besides the state; the last is read, too, as it was before."""
OWN = "own_"
"""How the names of arguments begin that are no MjData fields: the entries of the state, and noise."""
INPUT = "input_"
"""How the names of what `control` computes begin."""


class NotFusedError(Exception):
    """A task's hooks cannot be compiled; the message says why."""


class Bound(NamedTuple):
    """Compiled functions of a mask, bool [N], over certain arrays: only rows in which it is True are written.

    Attributes:
        observe: observes and locates envs.
        step: computes everything about a step.
        control: computes what the physics gets for a step; None if that is the actions.
    """

    observe: Callable[[Array], None]
    step: Callable[[Array], None]
    control: Callable[[Array], None] | None


class CompiledTask:
    """Functions that fill arrays of N envs from the fields of these envs.

    Attributes:
        is_exact: whether they equal, to the last bit, hooks that add up in NumPy's order.
        inputs: names of what the task gives to the physics itself; none if that is the actions.
    """

    def __init__(self, task: CheckedTask, fields: Fields, dtype: torch.dtype) -> None:
        """Compiles the hooks, or finds them compiled.

        Numbers that a hook reads from the task are those of this moment, as in a CUDA graph.

        Args:
            task: the task.
            fields: all that hooks may read (`CheckedTask.field_names`), in some envs at the start of an
                episode, [M, ...].
            dtype: of observations.

        Raises:
            NotFusedError: if a hook does what cannot be compiled, or what was compiled disagrees with it.
        """
        self._dtype, self._state = dtype, task.state
        try:
            # Hooks may keep what they are given.
            task = CheckedTask(copy.deepcopy(task.task), randomize=task.is_randomized)
            source = _source(task, fields, dtype)
            if _source(task, fields, dtype).text != source.text:
                raise NotTraceableError("the hooks do something else at each call")
            module = source_module(source.text)
            self.is_exact, self.inputs, self._arguments = source.is_exact, source.inputs, source.arguments
            self._functions = {name: compiled(getattr(module, name)) for name in self._arguments}
            self._check(task, fields)
        except NotFusedError:
            raise
        except FOREIGN as error:  # of the task, or of numba
            raise NotFusedError(error_text(error)) from error

    def bind(
        self, fields: Mapping[str, Array], arrays: Mapping[str, Array], inputs: Mapping[str, Array] = {}
    ) -> Bound:
        """Returns the functions over arrays that all have as many rows.

        Args:
            fields: all that hooks may read; entries of the state are written, too.
            arrays: `actions` [N, A], and `RESULTS`: observations; rewards, float64; terminated, bool;
                located, float64 [N, ...].
            inputs: where `control` writes, by name.
        """
        named = {self._argument(name): values for name, values in fields.items()}
        named |= {**arrays, **{INPUT + name: values for name, values in inputs.items()}}
        functions = {
            name: functools.partial(function, *(named[each] for each in self._arguments[name]))
            for name, function in self._functions.items()
        }
        return Bound(functions["observe"], functions["step"], functions.get("control"))

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
        actions = torch.randn(CHECKED_ROWS, len(task.action_range[0]), generator=generator)
        before = task.locate({name: around(values) for name, values in fields.items()}).clone()
        inputs = dict(task.control(some, actions)) if task.has_controls else {}
        observed = task.observe(some, self._dtype)
        expected, state = _called(task, some, before, actions, self._dtype)
        expected = {name: value.clone() for name, value in expected.items()}  # not views of entries
        found = {name: torch.zeros_like(value) for name, value in expected.items()}
        found["located"] = before
        given = {name: torch.zeros(value.shape, dtype=torch.float64) for name, value in inputs.items()}
        bound = self.bind(*map(_arrays, (some, {**found, "actions": actions}, given)))
        everywhere = np.ones(CHECKED_ROWS, np.bool_)
        if bound.control is not None:
            bound.control(everywhere)
            _compare(given, {name: value.double() for name, value in inputs.items()})
        kept = before.clone()
        bound.observe(everywhere)
        _compare(found, {"observations": observed, "located": expected["located"]})
        before.copy_(kept)
        bound.step(everywhere)
        _compare(found, expected)
        _compare(some, state)

    def _argument(self, name: str) -> str:
        return _argument_name(name, self._state)


class _Source(NamedTuple):
    """A module's text, the arguments of its functions, whether these are exact, and what `control` gives."""

    text: str
    arguments: dict[str, tuple[str, ...]]
    is_exact: bool
    inputs: tuple[str, ...]


def _argument_name(name: str, state: Mapping[str, Any]) -> str:
    return OWN + name if name in state or name == NOISE else name


def _called(
    task: CheckedTask, fields: Fields, before: Tensor, actions: Tensor, dtype: torch.dtype
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns what the hooks say of a step: `RESULTS`, and the entries of the state that change."""
    located = task.locate(fields).clone()
    rewards, _ = task.reward(before, located, fields, actions)
    terminated, state = task.terminated(fields), task.update_state(fields, actions)
    values = task.observe({**fields, **state}, dtype), rewards.double(), terminated, located
    return dict(zip(RESULTS, values, strict=True)), state


@torch.inference_mode(False)  # in which torch does not take composite operations apart
def _source(task: CheckedTask, fields: Fields, dtype: torch.dtype) -> _Source:
    """Writes the functions."""
    graph = Graph()
    rows = torch.arange(TRACED_ROWS) % len(fields["qpos"])

    def argument(name: str, values: Tensor) -> Tensor:
        return graph.argument(name, values[rows].clone())

    before = argument("located", task.locate(fields))
    actions = argument("actions", torch.zeros(len(rows), len(task.action_range[0])))
    traced = {name: argument(_argument_name(name, task.state), each) for name, each in fields.items()}
    with graph.noting():
        inputs = task.control(traced, actions) if task.has_controls else {}
        observed, located = task.observe(traced, dtype), task.locate(traced).clone()
        called, state = _called(task, traced, before, actions, dtype)
    functions = {
        "observe": {"observations": observed, "located": located},
        "step": {**called, **{OWN + name: value for name, value in state.items()}},
    }
    if task.has_controls:
        functions["control"] = {INPUT + name: value for name, value in inputs.items()}
    parts, arguments, is_exact = [HEADER], {}, True
    for name, results in functions.items():
        writer = Writer(TRACED_ROWS, OPERATIONS, ROUNDED_ELSEWHERE, prefix=name)
        nodes = {each: graph.node_of(value) for each, value in results.items()}
        text, arguments[name] = writer.write(graph, nodes, name)
        parts.append("\n".join([*writer.constants, "", text]))
        is_exact &= writer.is_exact
    return _Source("\n\n".join(parts) + "\n", arguments, is_exact, tuple(inputs))


def _spaced(values: Tensor) -> Tensor:
    """Returns values that are not contiguous, for which numba would otherwise compile once more."""
    wide = values.new_zeros(*values.shape[:-1], values.shape[-1] + 1)
    wide[..., :-1] = values
    return wide[..., :-1]


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    return {name: value.numpy() for name, value in tensors.items()}


def _compare(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name, values in expected.items():
        tolerance = TOLERANCE.get(values.dtype, 0.0)
        if not torch.allclose(found[name], values, rtol=tolerance, atol=tolerance, equal_nan=True):
            raise NotFusedError(f"{name} as compiled differ from the hook's")
