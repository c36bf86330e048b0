"""Traces: what is noted, what is refused, and that nothing else happens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from written import N, Written

from es_flipout.envs import make_vec
from es_flipout.envs.fused.compiled_task import CompiledTask
from es_flipout.envs.fused.traced import Graph, NotTraceableError


def traced(function, *, shape=(N, 3)):
    """Returns the graph of a function of one argument, and its result's node."""
    graph = Graph()
    x = graph.argument("x", torch.ones(*shape))
    with graph.noting():
        result = function(x)
    return graph, graph.node_of(result)


def test_operations_are_noted_in_order():
    graph, node = traced(lambda x: (x[:, 0] * 2).sin())
    assert [each.operation and each.operation._schema.name for each in graph.nodes] == [
        None,
        "aten::select",
        "aten::mul",
        "aten::sin",
    ]
    assert node is graph.nodes[-1]
    assert (node.args[0], node.shape, node.dtype) == (graph.nodes[-2], (N,), torch.float32)
    assert graph.nodes[2].args[1] == 2


def test_results_are_what_torch_computes_and_stay_tensors():
    graph, x = Graph(), torch.randn(N, 3)
    with graph.noting():
        result = graph.argument("x", x).exp().sum(dim=1)
    assert torch.equal(result, x.exp().sum(dim=1))
    assert type(result) is torch.Tensor


def test_several_results_of_an_operation_know_their_place():
    graph, _ = traced(lambda x: x.unbind(1)[2])
    assert [each.index for each in graph.nodes] == [0, 0, 1, 2]


def test_what_does_not_depend_on_an_argument_is_a_constant():
    graph, node = traced(lambda x: torch.arange(3) * 2)
    assert len(graph.nodes) == 1
    assert node.tolist() == [0, 2, 4]


def test_nothing_is_noted_outside():
    graph = Graph()
    x = graph.argument("x", torch.ones(N, 3))
    assert (x + 1).tolist() == [[2.0] * 3] * N
    assert len(graph.nodes) == 1


READS = {
    "if": lambda x: x if x[0, 0] > 0 else -x,
    "bool": lambda x: x * bool((x > 0).all()),
    "item": lambda x: x * x.max().item(),
    "float": lambda x: x * float(x[0, 0]),
    "int": lambda x: x[:, int(x[0, 0])],
    "range": lambda x: next(x for _ in range(x.sum(dim=1)[0].long())),
    "tolist": lambda x: x + torch.tensor(x.tolist()),
    "numpy": lambda x: torch.from_numpy(np.sin(x.numpy())),
    "asarray": lambda x: torch.from_numpy(np.asarray(x)),
    "a function of NumPy": lambda x: torch.as_tensor(np.square(x)),
    "dlpack": lambda x: torch.from_numpy(np.from_dlpack(x)),
    "address": lambda x: x + x.data_ptr(),
    "storage": lambda x: x + x.untyped_storage()[0],
    "equal": lambda x: x if torch.equal(x, x) else -x,
    "mask": lambda x: x[x[:, 0] > 0],
    "nonzero": lambda x: x.nonzero(),
}
CHANGES = {
    "in place": lambda x: x.mul_(2),
    "of an item": lambda x: x.clone().__setitem__((slice(None), 0), 1.0) or x,
    "of a copy": lambda x: x.clone().add_(1),
    "out": lambda x: torch.add(x, 1, out=torch.empty(N, 3)),
    "into a constant": lambda x: torch.zeros(N, 3).copy_(x),
    "clamping": lambda x: (x + 1).clamp_(max=1),
}


@pytest.mark.parametrize("name", READS)
def test_reading_values_is_refused(name):
    with pytest.raises(NotTraceableError):
        Written([lambda a: READS[name](a.x)], {"x": torch.ones(N, 3)})


@pytest.mark.parametrize("name", CHANGES)
def test_changing_a_tensor_is_refused(name):
    with pytest.raises(NotTraceableError, match="in place"):
        traced(CHANGES[name])


def test_constants_of_all_rows_must_agree():
    given = {"x": torch.ones(N, 2)}
    Written([lambda a: a.x * torch.full((N, 2), 0.5)], given)
    with pytest.raises(NotTraceableError, match="differs from env to env"):
        Written([lambda a: a.x * torch.arange(2.0 * N).view(N, 2)], given)


def test_tracing_leaves_the_task_as_it_is():
    env = make_vec("Humanoid-v5", 2, threads=1, info=False, fused=False)
    before = dict(vars(env.task))
    fields = {name: env.engine.fields[name] for name in env.checked_task.fields}
    values = {name: each.clone() for name, each in fields.items()}
    CompiledTask(env.checked_task, fields, torch.float32)
    assert vars(env.task).keys() == before.keys()
    assert all(vars(env.task)[name] is each for name, each in before.items())
    assert all(torch.equal(each, values[name]) for name, each in fields.items())
