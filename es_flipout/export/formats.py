"""The formats of exported policies: how each is written, and how it is run."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from es_flipout.choices import ExportFormat
from es_flipout.error_text import error_text
from es_flipout.export.metadata import KEY
from es_flipout.export.module import ExportedModule
from es_flipout.run.errors import RunError, writing

Array = NDArray[Any]
Run = Callable[[list[Array]], list[Array]]
"""Runs an exported policy: from its inputs, each [N, ...], to its outputs, each [N, ...]."""

_OPSET = 18
"""Version of ONNX's operators: ONNX Runtime has it since 1.14 (2023)."""


def write(module: ExportedModule, metadata: Mapping[str, Any], format: ExportFormat, path: Path) -> None:
    """Writes a policy as one file.

    Raises:
        RunError: if the format lacks an operation of the policy, a package is missing, or the file cannot be
            written.
    """
    text = json.dumps(metadata, allow_nan=False)
    with _silenced():
        try:
            (_write_onnx if format == "onnx" else _write_torch)(module, text, path)
        except OSError as error:
            with writing(path):
                raise error
        except ImportError as error:
            raise RunError(f"{format} needs {error.name}: pip install 'es-flipout[export]'") from error
        except Exception as error:  # of a user's policy: torch has many types for what it cannot translate
            name = type(module.policy).__name__
            raise RunError(f"policy {name} cannot be exported to {format}: {error_text(error)}") from error


def open_exported(format: ExportFormat, path: Path) -> Run:
    """Returns what runs an exported policy from its file alone."""
    return _open_onnx(path) if format == "onnx" else _open_torch(path)


def _examples(module: ExportedModule) -> tuple[Tensor, ...]:
    """Returns inputs of two rows: one row would be taken for a constant."""
    parts = [torch.zeros(2, *each.shape, dtype=each.dtype) for each in module.observations]
    return (*parts, *(leaf.expand(2, *leaf.shape[1:]).contiguous() for leaf in module.initial_state))


def _exported(module: ExportedModule) -> torch.export.ExportedProgram:
    examples = _examples(module)
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        module(*examples)  # a normalizer computes its constants at the first call
        return torch.export.export(
            module.eval(), examples, dynamic_shapes=(tuple({0: batch} for _ in examples),)
        )


def _write_torch(module: ExportedModule, metadata: str, path: Path) -> None:
    torch.export.save(_exported(module), path, extra_files={KEY: metadata})


def _open_torch(path: Path) -> Run:
    program = torch.export.load(path).module()

    def run(inputs: list[Array]) -> list[Array]:
        with torch.no_grad():
            return [each.numpy() for each in program(*map(torch.from_numpy, inputs))]

    return run


def _write_onnx(module: ExportedModule, metadata: str, path: Path) -> None:
    import onnx
    import onnxruntime  # noqa: F401 # checks the file, later
    import onnxscript  # noqa: F401 # torch.onnx imports it, and would say less

    exported = torch.onnx.export(
        _exported(module),
        input_names=module.input_names,
        output_names=module.output_names,
        opset_version=_OPSET,
        dynamo=True,
        verbose=False,
    )
    assert exported is not None
    model = exported.model_proto
    onnx.helper.set_model_props(model, {KEY: metadata})
    model.producer_name = "es_flipout"
    onnx.checker.check_model(model)
    onnx.save_model(model, path)


def _open_onnx(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(inputs: list[Array]) -> list[Array]:
        outputs: list[Array] = session.run(None, dict(zip(names, inputs, strict=True)))
        return [np.asarray(each) for each in outputs]

    return run


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Silences what exporters say about themselves."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
