"""Runs a function once for every row, all rows in one call: torch.vmap, which lets constants through.

What a module computes from ordinary tensors, torch.vmap computes for every row; what it computes from a
`PerturbedParameter`, the rule of the operation does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from numbers import Number
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map, tree_unflatten

from es_flipout.perturbations.member_context import MemberContext
from es_flipout.perturbations.perturbed_parameter import PerturbedParameter
from es_flipout.perturbations.registry import UnsupportedOperationError

OUTPUTS = (Tensor, Number, str, bytes, type(None), torch.Size, torch.dtype, torch.device)
"""What a module may return, inside containers or alone: tensors, and constants that cannot hide one."""


def each_row(
    function: Callable[..., Any],
    inputs: Sequence[Any],
    in_dims: Any,
    parameters: Iterable[PerturbedParameter],
    num_rows: int,
    *,
    as_batches: bool,
) -> Any:
    """Returns function(inputs of row n) of every row n, tensors with the row first.

    Args:
        function: takes the inputs of one row; may use `parameters`.
        inputs: tensors, or containers of them.
        in_dims: their row dimensions, as torch.vmap takes them.
        parameters: the perturbed parameters, whose context is set.
        num_rows: N.
        as_batches: whether the function sees rows as batches of one; it words an error.

    Raises:
        TypeError: if the function returns anything other than tensors, constants and containers of them.
        UnsupportedOperationError: if it uses a parameter in an operation that has no rule.
    """
    structure: TreeSpec | None = None
    constants: list[Any] = []

    def run_one(*inputs: Any) -> tuple[Tensor, ...]:
        nonlocal structure, constants
        context = MemberContext.inside_vmap(num_rows)
        for parameter in parameters:
            parameter.context = context
        constants, structure = tree_flatten(written_out(function(*inputs)))
        return tuple(leaf for leaf in constants if isinstance(leaf, Tensor))

    try:
        tensors = iter(torch.vmap(run_one, in_dims, randomness="different")(*inputs))
    except Exception as error:
        if not isinstance(error, UnsupportedOperationError):
            _explain(error, inputs, as_batches)
        raise
    assert structure is not None
    check_outputs(constants)
    leaves = [next(tensors) if isinstance(leaf, Tensor) else leaf for leaf in constants]
    return tree_unflatten(leaves, structure)


def written_out(outputs: Any) -> Any:
    """Returns a module's outputs with parameters among them (a log standard deviation, say) written out."""
    if type(outputs) is Tensor:
        return outputs
    return tree_map(lambda x: x.written_out() if isinstance(x, PerturbedParameter) else x, outputs)


def check_outputs(leaves: Iterable[Any]) -> None:
    """Raises a TypeError if a module returned something that may hide tensors of a single row."""
    for leaf in leaves:
        if not isinstance(leaf, OUTPUTS):
            raise TypeError(
                f"the module returned an object of type {type(leaf).__qualname__}: return tensors, or "
                "tuples, lists and dicts of them (or a dataclass, after torch.export.register_dataclass)"
            )


def _explain(error: Exception, inputs: Any, as_batches: bool) -> None:
    """Adds to an error that a module raised under torch.vmap how it was run."""
    text = str(error)
    if "inplace" in text or "fallback path" in text:
        hint = (
            "a forward must not change a tensor that rows share, such as a buffer, in place: "
            f"eval() makes torch's own layers keep theirs ({text})"
        )
    elif text.startswith("vmap:"):
        hint = f"rows run all at once, so a forward must not read values: branch by torch.where ({text})"
    elif as_batches:
        return
    else:
        rows = ", ".join(f"{leaf.dtype} {list(leaf.shape[1:])}" for leaf in tree_leaves(inputs))
        hint = (
            f"{text} (each member was given its own row, {rows}, without a batch dimension: a module written "
            "for batches needs x.unsqueeze(1))"
        )
    if error.args and isinstance(error.args[0], str):
        error.args = (hint, *error.args[1:])
    else:
        error.add_note(hint)
