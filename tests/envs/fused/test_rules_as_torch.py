"""Every rule writes what torch computes, whatever the numbers and dtypes."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from written import N, Written, special

from es_flipout.envs.fused.operations import OPERATIONS
from es_flipout.envs.fused.traced import NotTraceableError

DTYPES = [torch.float32, torch.float64]
CONSTANT = torch.tensor([0.5, -1.25, 3.0])
MATRIX = torch.linspace(-1, 1, 12).view(3, 4)


def inputs(dtype):
    """Returns numbers of each kind; `plain` and `matrix` have no special ones."""
    generator = torch.Generator().manual_seed(5)
    return {
        "x": special((N, 3), dtype, 0),
        "y": special((N, 3), dtype, 1),
        "one": special((N,), dtype, 2),
        "column": special((N, 1), dtype, 3),
        "cube": special((N, 4, 3), dtype, 4),
        "plain": torch.randn(N, 20, generator=generator, dtype=dtype),
        "matrix": torch.randn(N, 3, 3, generator=generator, dtype=dtype),
        "count": torch.randint(-3, 4, (N, 3), generator=generator),
        "small": torch.randint(-3, 4, (N, 3), generator=generator, dtype=torch.int32),
        "flag": torch.rand(N, 3, generator=generator) < 0.5,
        "other": torch.rand(N, 3, generator=generator) < 0.5,
    }


ELEMENTWISE = ["neg", "abs", "square", "sqrt", "rsqrt", "reciprocal", "exp", "expm1", "log", "log1p", "sin"]
ELEMENTWISE += ["cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "sigmoid", "floor", "ceil"]
ELEMENTWISE += ["relu", "sign", "isnan", "isfinite", "isinf", "logical_not"]
OF_TWO = [
    "add",
    "sub",
    "mul",
    "div",
    "atan2",
    "hypot",
    "maximum",
    "minimum",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
]
OF_TWO += ["logical_and", "logical_or", "logical_xor"]
OF_INTEGERS = [
    "neg",
    "abs",
    "square",
    "sqrt",
    "reciprocal",
    "exp",
    "relu",
    "sign",
    "isnan",
    "isinf",
    "isfinite",
]
OF_INTEGERS += ["floor", "logical_not", "sin", "sigmoid"]
OF_BOOLS = ["sqrt", "sign", "exp", "logical_not", "isnan"]
OF_TWO_BOOLS = ["add", "mul", "maximum", "eq", "lt", "logical_and", "logical_xor", "div"]


def of(name, *arguments):
    """Returns a function of torch, of these inputs."""
    return lambda a: getattr(torch, name)(*(getattr(a, each) for each in arguments))


OF_NUMBERS = {
    **{name: of(name, "x") for name in ELEMENTWISE},
    **{f"{name} of two": of(name, "x", "y") for name in OF_TWO},
    **{f"{name} of integers": of(name, "count") for name in OF_INTEGERS},
    **{f"{name} of int32": of(name, "small") for name in ("neg", "sqrt", "sign")},
    **{f"{name} of bools": of(name, "flag") for name in OF_BOOLS},
    **{f"{name} of two bools": of(name, "flag", "other") for name in OF_TWO_BOOLS},
    "add a number": lambda a: a.x + 2,
    "add integers and a number": lambda a: a.count + 2.5,
    "add integers": lambda a: a.count + a.small,
    "add with alpha 1": lambda a: torch.add(a.x, a.y, alpha=1),
    "subtract from a number": lambda a: 1.5 - a.x,
    "multiply a bool": lambda a: a.x * a.flag,
    "multiply float32 with float64": lambda a: a.x.float() * a.y.double(),
    "multiply by a constant number": lambda a: a.x * torch.tensor(0.1),
    "divide integers": lambda a: a.count / a.small,
    "divide by zero": lambda a: a.x / 0.0,
    "divide a number": lambda a: 2 / a.x,
    "compare with a number": lambda a: a.x < 0.3,
    "compare with an integer": lambda a: a.x >= 1,
    "compare integers with a number": lambda a: a.count > 0.5,
    "compare integers with floats": lambda a: a.count <= a.x,
    "compare with infinity": lambda a: a.x < math.inf,
    "in the number's own precision": lambda a: a.x == 0.1,
    "and": lambda a: a.flag & a.other,
    "or": lambda a: a.flag | a.other,
    "xor": lambda a: a.flag ^ a.other,
    "not": lambda a: ~a.flag,
    **{f"pow {p}": lambda a, p=p: a.x**p for p in (2, 3, 0.5, 1, -1, 1.5, 4, -2, 0)},
    "pow of two": lambda a: a.x**a.y,
    "pow of integers": lambda a: a.count**2,
    "pow of an integer and a number": lambda a: a.count**0.5,
    "a number to the power": lambda a: 2.0**a.x,
    "clamp": lambda a: a.x.clamp(-0.7, 0.8),
    "clamp from below": lambda a: a.x.clamp(min=0.25),
    "clamp from above": lambda a: a.x.clamp(max=0.25),
    "clamp_min": lambda a: torch.clamp_min(a.x, -0.1),
    "clamp_max": lambda a: torch.clamp_max(a.x, -0.1),
    "clamp integers": lambda a: a.count.clamp(-1, 2),
    "where": lambda a: torch.where(a.flag, a.x, a.y),
    "where or a number": lambda a: torch.where(a.x > 0, a.x, 0.0),
    "where of two dtypes": lambda a: torch.where(a.flag, a.x, a.count),
    "to float32": lambda a: a.x.to(torch.float32),
    "to float64": lambda a: a.x.double(),
    "to integers": lambda a: a.plain.long(),
    "to bools": lambda a: a.x.bool(),
    "bools to numbers": lambda a: a.flag.to(a.x),
    "clone": lambda a: a.x.clone(),
    "detach": lambda a: a.x.detach() + 1,
    "alias": lambda a: torch.ops.aten.alias(a.x) + 1,
}
"""Cases whose inputs may have any shape."""
OF_ARRAYS = {
    "multiply by a constant": lambda a: a.x * CONSTANT,
    "multiply by a constant of float64": lambda a: a.x * CONSTANT.double(),
    "compare float32 with float64": lambda a: (a.plain.float() / 3).double() == a.plain.double() / 3,
    "broadcast a column": lambda a: a.x - a.column,
    "broadcast rows": lambda a: a.cube * a.x.unsqueeze(1),
    "broadcast both ways": lambda a: a.x.unsqueeze(2) - a.y.unsqueeze(1),
    "clamp by tensors": lambda a: torch.clamp(a.x, a.y, CONSTANT.to(a.x)),
    "where broadcast": lambda a: torch.where(a.column > 0, a.x, a.column),
    "new_zeros": lambda a: a.x.new_zeros(N, 2),
    "new_ones": lambda a: a.x.new_ones(N, dtype=torch.bool),
    "new_full": lambda a: a.x.new_full((N, 2), 0.1),
    "zeros_like": lambda a: torch.zeros_like(a.count),
    "ones_like": lambda a: torch.ones_like(a.cube),
    "full_like": lambda a: torch.full_like(a.x, math.inf),
    "select": lambda a: a.cube[:, 1],
    "select the last": lambda a: a.cube[..., -1],
    "slice": lambda a: a.plain[:, 2:7],
    "slice from the end": lambda a: a.plain[:, -6:-1],
    "slice with a step": lambda a: a.plain[:, 1:-3:4],
    "slice of a slice": lambda a: a.plain[:, 3:17][:, 2::3],
    "slice beyond the end": lambda a: a.plain[:, 15:99],
    "slice of all rows": lambda a: a.cube[:, 1:, :2],
    "view": lambda a: a.plain.view(N, 4, 5),
    "view and back": lambda a: a.plain.view(N, 5, 2, 2).view(N, -1),
    "reshape of a slice": lambda a: a.cube[:, 1:3].reshape(N, -1),
    "reshape of a transposition": lambda a: a.cube.mT.reshape(N, 6, 2),
    "unsafe view": lambda a: torch.ops.aten._unsafe_view(a.plain, [N, 10, 2]),
    "flatten": lambda a: a.cube.flatten(1),
    "unsqueeze": lambda a: a.x.unsqueeze(-1),
    "squeeze": lambda a: a.column.squeeze(1),
    "squeeze all": lambda a: a.column.squeeze(),
    "expand": lambda a: a.column.expand(-1, 4),
    "expand by a dimension": lambda a: a.x.unsqueeze(1).expand(N, 2, 3),
    "permute": lambda a: a.plain.view(N, 2, 5, 2).permute(0, 3, 1, 2),
    "transpose": lambda a: a.cube.transpose(1, 2),
    "transpose from the end": lambda a: a.cube.transpose(-1, -2),
    "split": lambda a: a.plain.split(6, dim=1)[3],
    "split into sizes": lambda a: a.plain.split([3, 10, 7], dim=-1)[1],
    "unbind": lambda a: a.cube.unbind(1)[2],
    "unbind the last": lambda a: a.cube.unbind(-1)[1],
    "chunk": lambda a: a.plain.chunk(3, dim=1)[2],
    "index": lambda a: a.plain[:, [3, -1, 0, 3]],
    "index in the middle": lambda a: a.cube[:, torch.tensor([2, 0])],
    "index at the end": lambda a: a.cube[:, :, [1, -3]],
    "index_select": lambda a: a.plain.index_select(1, torch.tensor([5, 2])),
    "cat": lambda a: torch.cat([a.x, a.column, a.plain[:, 4:4], a.y], dim=1),
    "cat of dtypes": lambda a: torch.cat([a.x, a.count, a.flag], dim=-1),
    "cat in the middle": lambda a: torch.cat([a.cube, a.x.unsqueeze(1)], dim=1),
    "stack": lambda a: torch.stack([a.x, a.y, a.x], dim=1),
    "stack at the end": lambda a: torch.stack([a.one, a.one], dim=-1),
    "sum": lambda a: a.x.sum(dim=1),
    "sum keeping the dimension": lambda a: a.cube.sum(dim=1, keepdim=True),
    "sum of several": lambda a: a.cube.sum(dim=(1, 2)),
    "sum from the end": lambda a: a.cube.sum(-1),
    "sum of 20": lambda a: a.plain.sum(dim=1),
    "sum of bools": lambda a: a.flag.sum(dim=1),
    "sum of int32": lambda a: a.small.sum(dim=1),
    "mean": lambda a: a.plain.mean(dim=1),
    "mean of several": lambda a: a.cube.mean(dim=(-1, -2), keepdim=True),
    "norm": lambda a: a.plain.norm(dim=1),
    "norm of vectors": lambda a: torch.linalg.vector_norm(a.cube, dim=-1, keepdim=True),
    "norm of all of each": lambda a: torch.linalg.vector_norm(a.cube, dim=(1, 2)),
    "norm by its old name": lambda a: torch.ops.aten.norm.ScalarOpt_dim(a.x, 2, [1]),
    "all": lambda a: a.flag.all(dim=1),
    "all of numbers": lambda a: (a.x > -1).all(dim=1, keepdim=True),
    "any": lambda a: a.x.isnan().any(dim=-1),
    "any of numbers": lambda a: a.x.any(dim=1),
    "any of several": lambda a: (a.cube > 2).any(dim=2).any(dim=1),
    "largest": lambda a: a.cube.amax(dim=1),
    "smallest": lambda a: a.cube.amin(dim=(1, 2)),
    "largest, keeping the dimension": lambda a: a.x.amax(dim=-1, keepdim=True),
    "product": lambda a: a.x.prod(dim=1),
    "matrix product": lambda a: a.matrix @ a.matrix,
    "matrix times vectors": lambda a: (a.matrix @ a.plain[:, :3].unsqueeze(-1)).squeeze(-1),
    "rows times a constant": lambda a: a.plain[:, :3] @ MATRIX.to(a.plain),
    "rows times a vector": lambda a: a.plain[:, :3] @ CONSTANT.to(a.plain),
    "rows times a transposition": lambda a: a.plain[:, :4] @ MATRIX.to(a.plain).T,
    "a column": lambda a: a.column[:, 0],
}
CASES = OF_NUMBERS | OF_ARRAYS
EITHER_ZERO = {"maximum of two", "minimum of two", "largest", "smallest"}
"""Cases in which torch takes one zero or the other, depending on an element's place in memory."""


@pytest.fixture(scope="module", params=DTYPES, ids=str)
def interpreted(request):
    """What all cases give as plain Python, what torch gives, and by which operations."""
    given = inputs(request.param)
    whole = Written(list(CASES.values()), given)
    expected = [case(SimpleNamespace(**given)) for case in CASES.values()]
    pairs = zip(whole.interpreted(), expected, strict=True)
    return dict(zip(CASES, pairs, strict=True)), set().union(*whole.packets)


@pytest.fixture(scope="module")
def compiled():
    """What numba makes of the cases of single numbers, whose types it decides, and what torch gives."""
    given = {name: each[:, 0].clone() for name, each in inputs(torch.float32).items() if each.ndim == 2}
    found = Written(list(OF_NUMBERS.values()), given).compiled()
    expected = [case(SimpleNamespace(**given)) for case in OF_NUMBERS.values()]
    return dict(zip(OF_NUMBERS, zip(found, expected, strict=True), strict=True))


def assert_equal(found, expected, *, signs=True):
    """Asserts that numbers are equal up to the last digits, NaN and the signs of zeros included."""
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-14}.get(expected.dtype, 0)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
    zeros = (expected == 0) & (found == 0)
    assert not signs or torch.equal(found[zeros].signbit(), expected[zeros].signbit())


@pytest.mark.parametrize("name", CASES)
def test_a_rule_writes_what_torch_computes(interpreted, name):
    assert_equal(*interpreted[0][name], signs=name not in EITHER_ZERO)


@pytest.mark.parametrize("name", OF_NUMBERS)
def test_numba_makes_of_it_what_torch_computes(compiled, name):
    assert_equal(*compiled[name], signs=name not in EITHER_ZERO)


def test_every_operation_has_a_case(interpreted):
    assert {str(each) for each in set(OPERATIONS) - interpreted[1]} == set()


REFUSED = {
    "over the rows": lambda a: a.x.sum(dim=0),
    "over everything": lambda a: a.x.mean(),
    "of all rows at once": lambda a: a.x.norm(),
    "a row": lambda a: a.x[0].expand(N, 3),
    "rows in another order": lambda a: a.x[torch.arange(N - 1, -1, -1)],
    "some rows": lambda a: a.x[1:],
    "rows flipped": lambda a: a.x.flip(0),
    "rows as columns": lambda a: a.x.T,
    "rows joined": lambda a: torch.cat([a.x, a.y]),
    "rows mixed": lambda a: a.x.reshape(3, N).reshape(N, 3),
    "rows in a product": lambda a: a.x @ a.x.T,
    "split rows": lambda a: a.x.split(1)[0],
    "unbound rows": lambda a: a.x.unbind()[0].unsqueeze(0),
    "an unsqueezed row": lambda a: a.x.unsqueeze(0),
    "an index that is computed": lambda a: a.plain[:, a.count[0].abs()],
    "two indices": lambda a: a.cube[:, [0, 1], [1, 2]],
    "a mask": lambda a: a.plain[:, torch.arange(20) > 3],
    "no rule": lambda a: a.x.cumsum(dim=1),
    "another norm": lambda a: a.x.norm(p=1, dim=1),
    "bits of integers": lambda a: a.count & a.small,
    "largest integer": lambda a: a.count.amax(dim=1),
    "alpha": lambda a: torch.add(a.x, a.y, alpha=2),
    "rounding": lambda a: torch.div(a.x, a.y, rounding_mode="floor"),
    "another dtype": lambda a: a.x.sum(dim=1, dtype=torch.float64),
    "half precision": lambda a: a.x.half(),
    "complex numbers": lambda a: torch.fft.fft(a.x).real,
    "too many constants": lambda a: a.column * torch.arange(4097.0),
    "a constant of another kind": lambda a: a.x * torch.ones(3, dtype=torch.float16),
    "constants that differ between rows": lambda a: a.x * torch.arange(float(N)).unsqueeze(1),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_rule_is_refused(name):
    with pytest.raises(NotTraceableError):
        Written([REFUSED[name]], inputs(torch.float32))


def test_a_constant_that_is_the_same_in_all_rows_is_written_once():
    given = inputs(torch.float64)
    function = lambda a: a.x * CONSTANT.double().expand(N, 3)  # noqa: E731
    written = Written([function], given)
    assert written.source.count("0.5, -1.25, 3.0") == 1
    assert_equal(written.interpreted()[0], function(SimpleNamespace(**given)))


def test_what_a_result_does_not_need_is_not_written():
    assert (
        "math.exp"
        not in Written([lambda a: (a.x.exp(), a.x + 1)[1]], inputs(torch.float64)).source.split("def f")[1]
    )


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 16, 17, 23, 60, 128])
def test_float32_numbers_are_added_as_numpy_adds_them(count):
    values = torch.randn(N, count, generator=torch.Generator().manual_seed(count))
    found = Written([lambda a: a.x.sum(dim=1)], {"x": values}).interpreted()[0]
    assert np.array_equal(found.numpy(), values.numpy().sum(axis=1))


# Chains of operations.

STEPS = {
    "tanh": lambda x, k: x.tanh(),
    "scale": lambda x, k: x * (k - 1.5),
    "shift": lambda x, k: k + x,
    "absolute": lambda x, k: x.abs(),
    "bound": lambda x, k: x.clamp(-0.5 * k, k),
    "choose": lambda x, k: torch.where(x > 0.1 * k, x, -x),
    "doubled": lambda x, k: torch.cat([x, x * x], dim=k % (x.ndim - 1) + 1),
    "first": lambda x, k: x.select(x.ndim - 1, k % x.shape[-1]) if x.ndim > 2 else x,
    "some": lambda x, k: x[..., k % x.shape[-1] :],
    "every other": lambda x, k: x[:, ::2],
    "flat": lambda x, k: x.flatten(1),
    "folded": lambda x, k: (
        x.reshape(N, -1, *x.shape[2:][::-1]) if k % 2 else x.reshape(N, *x.shape[1:][::-1])
    ),
    "turned": lambda x, k: x.transpose(-1, 1),
    "summed": lambda x, k: x.sum(dim=-1, keepdim=True),
    "added to": lambda x, k: x + x.sum(dim=k % (x.ndim - 1) + 1, keepdim=True),
    "norm": lambda x, k: x / (1 + torch.linalg.vector_norm(x, dim=1, keepdim=True)),
    "largest": lambda x, k: x - x.amax(dim=-1, keepdim=True),
    "picked": lambda x, k: x[:, [k % x.shape[1], -1, 0]],
    "deeper": lambda x, k: x.unsqueeze(k % x.ndim + 1),
    "stacked": lambda x, k: torch.stack([x, 2 * x], dim=k % x.ndim + 1),
    "parted": lambda x, k: x.split(2, dim=1)[k % -(-x.shape[1] // 2)],
    "expanded": lambda x, k: x.unsqueeze(1).expand(N, 2, *x.shape[1:]),
}


@settings(max_examples=60)
@given(
    steps=st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 5)), min_size=1, max_size=7),
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    dtype=st.sampled_from(DTYPES),
)
def test_chains_of_operations_give_what_torch_gives(steps, shape, dtype):
    x = torch.randn(N, *shape, generator=torch.Generator().manual_seed(0), dtype=dtype)

    def chain(a):
        value = a.x
        for name, k in steps:
            if value[0].numel() <= 64 and value.ndim < 5:
                value = STEPS[name](value, k)
        return value

    tolerance = {torch.float32: 1e-4, torch.float64: 1e-12}[dtype]
    found, expected = Written([chain], {"x": x}).interpreted()[0], chain(SimpleNamespace(x=x))
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
