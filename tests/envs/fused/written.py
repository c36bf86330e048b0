"""How tests write what torch functions do as one function over the rows, and run it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace

import numba
import numpy as np
import pytest
import torch
from torch import Tensor

from es_flipout.envs.fused import source
from es_flipout.envs.fused.operations import OPERATIONS
from es_flipout.envs.fused.source import HEADER, Writer
from es_flipout.envs.fused.traced import Graph

N = 31
Function = Callable[[SimpleNamespace], Tensor]


class Written:
    """Functions of the same inputs, [N, ...] each, in one text.

    Attributes:
        packets: which operations of torch each of them was made of.
        source: Python.
    """

    def __init__(self, functions: Sequence[Function], inputs: Mapping[str, Tensor]) -> None:
        graph = Graph()
        self.inputs = dict(inputs)
        arguments = SimpleNamespace(**{name: graph.argument(name, each) for name, each in inputs.items()})
        results, self.packets, self._outputs = {}, [], {}
        for number, function in enumerate(functions):
            before = len(graph.nodes)
            with graph.noting():
                result = function(arguments)
            self.packets.append({node.operation.overloadpacket for node in graph.nodes[before:]})
            results[f"result{number}"] = graph.node_of(result)
            self._outputs[f"result{number}"] = np.zeros(
                result.shape, str(result.dtype).removeprefix("torch.")
            )
        writer = Writer(N, OPERATIONS)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(source, "MAX_NODES", 10_000)
            text, self._arguments = writer.write(graph, results, "function")
        self.source = "\n".join([HEADER, *writer.constants, text])

    def compiled(self) -> list[Tensor]:
        """Returns what numba makes of it."""
        namespace: dict = {}
        exec(self.source, namespace)
        return self._run(numba.njit(error_model="numpy")(namespace["function"]))

    def interpreted(self) -> list[Tensor]:
        """Returns what Python makes of it, with NumPy's functions of numbers, which do not raise."""
        namespace: dict = {}
        exec(self.source, namespace)
        of_numpy = {name: getattr(np, name) for name in dir(np) if hasattr(math, name)}
        namespace |= {"total": namespace["total"].py_func, "math": SimpleNamespace(**of_numpy)}
        with np.errstate(all="ignore"):
            return self._run(namespace["function"])

    def _run(self, function: Callable[..., None]) -> list[Tensor]:
        arrays = {name: each.numpy() for name, each in self.inputs.items()} | self._outputs
        function(*(arrays[name] for name in self._arguments), np.ones(N, np.bool_))
        return [torch.from_numpy(each) for each in self._outputs.values()]


def special(shape: Sequence[int], dtype: torch.dtype, seed: int) -> Tensor:
    """Returns random numbers, among them NaN, infinities, both zeros, 1 and 0.5."""
    generator = torch.Generator().manual_seed(seed)
    values = 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)
    known = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, 0.5], dtype=torch.float64)
    drawn = known[torch.randint(len(known), tuple(shape), generator=generator)]
    return torch.where(torch.rand(*shape, generator=generator) < 0.4, drawn, values).to(dtype)
