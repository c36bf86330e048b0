"""From `logging.reporters` to reporters: which class each name is, and where it does its work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

from es_flipout.dotted_path import import_class
from es_flipout.named_spec import NamedSpec, check_kwargs, spec_kwargs
from es_flipout.run.reporters.beside import ReporterBeside
from es_flipout.run.reporters.contract import Reporter, RunInfo
from es_flipout.run.reporters.guarded import Announce, GuardedReporter
from es_flipout.run.reporters.jsonl import JsonLines
from es_flipout.run.reporters.mlflow import MLflow
from es_flipout.run.reporters.names import JSONL, TENSORBOARD, reporter_name
from es_flipout.run.reporters.tensorboard import TensorBoard
from es_flipout.run.reporters.wandb import WandB
from es_flipout.run.run_directory import RunDirectory

OPTION = "logging.reporters"
PACKAGES = {"mlflow": MLflow, "wandb": WandB}
"""Reporters that need a package, whose name is also that of the extra."""


@dataclass(frozen=True)
class FoundReporter:
    """A reporter that exists, with keyword arguments that it takes."""

    name: str
    kind: Callable[..., Any]
    kwargs: dict[str, Any]

    def make(self, run: RunInfo, announce: Announce) -> Reporter:
        """Makes the reporter of a run.

        Args:
            run: the run.
            announce: is told if the reporter fails. Only the run's own record ends a run.

        Raises:
            RunBrokenError: if the run's own record cannot be written.
        """
        if self.kind is JsonLines:
            return JsonLines(RunDirectory(run.path).metrics)
        make: Callable[[], Reporter] = partial(self.kind, run, **self.kwargs)
        if self.kind is TensorBoard:  # which takes no time
            return GuardedReporter(self.name, make, announce)
        return ReporterBeside(self.name, make, announce)


def find_reporters(reporters: Sequence[NamedSpec]) -> list[FoundReporter]:
    """Finds reporters and checks their keyword arguments; makes none.

    Raises:
        ValueError: if one does not exist, lacks its package, or takes other keyword arguments.
    """
    return [_found(reporter_name(each), spec_kwargs(each)) for each in reporters]


def _found(name: str, kwargs: dict[str, Any]) -> FoundReporter:
    kind: Callable[..., Any]
    if name == JSONL:
        kind = JsonLines
    elif name == TENSORBOARD:
        kind = TensorBoard
    elif name in PACKAGES:
        if find_spec(name) is None:
            raise ValueError(f"{OPTION} {name} needs a package: pip install 'es-flipout[{name}]'")
        kind = PACKAGES[name]
    else:
        kind = import_class(name, Reporter, OPTION)
    if kind is JsonLines and kwargs:
        raise ValueError(f"{OPTION} {name} takes no keyword arguments, got {', '.join(kwargs)}")
    check_kwargs(OPTION, name, kind, kwargs)
    return FoundReporter(name, kind, kwargs)
