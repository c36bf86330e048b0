"""Where the batch is: from arguments with a batch dimension to those of one example, and back for outputs.

An example is a batch of one: its tensors have the batch dimension, of size 1, so a module that is written for
batches needs no change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, _broadcast_to_and_flatten, tree_flatten, tree_unflatten

_SEQUENCE_LAYERS = (
    *(nn.RNNBase, nn.MultiheadAttention, nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder),
    *(nn.TransformerEncoderLayer, nn.TransformerDecoderLayer),
)


@dataclass(frozen=True)
class Batch:
    """The arguments of a call, taken apart.

    Attributes:
        size: number of examples N.
        tensors: the tensors with a batch dimension, each with a dimension of size 1 after it.
        dims: their batch dimensions.
    """

    size: int
    tensors: tuple[Tensor, ...]
    dims: tuple[int, ...]
    _leaves: list[Any]
    _places: list[int]
    _structure: TreeSpec

    @staticmethod
    def of(args: tuple[Any, ...], kwargs: dict[str, Any], in_dims: Any) -> Batch:
        """Takes the arguments of a call apart.

        Args:
            args: positional arguments.
            kwargs: keyword arguments.
            in_dims: as torch.vmap takes it for `args`; an int is for `kwargs`, too.

        Raises:
            ValueError: if tensors differ in the size of the batch, or there is none.
        """
        leaves, structure = tree_flatten((args, kwargs))
        dims = _dims_of(args, kwargs, in_dims, structure)
        places = [
            place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and dims[place] is not None
        ]
        sizes = {}
        for place in places:
            tensor, dim = leaves[place], dims[place]
            if not -tensor.ndim <= dim < tensor.ndim:
                raise ValueError(
                    f"an argument of shape {list(tensor.shape)} has no batch dimension {dim}: pass in_dims "
                    "(None for an argument that all examples share)"
                )
            sizes[tensor.shape[dim]] = tensor
        if len(sizes) != 1:
            shapes = ", ".join(str(list(tensor.shape)) for tensor in sizes.values()) or "no tensor"
            raise ValueError(f"arguments must have batches of one size along in_dims={in_dims}, got {shapes}")
        positive = tuple(dims[place] % leaves[place].ndim for place in places)
        tensors = tuple(leaves[place].unsqueeze(dim + 1) for place, dim in zip(places, positive, strict=True))
        return Batch(next(iter(sizes)), tensors, positive, leaves, places, structure)

    def arguments(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns positional and keyword arguments with others in the place of `tensors`."""
        leaves = list(self._leaves)
        for place, tensor in zip(self._places, tensors, strict=True):
            leaves[place] = tensor
        args, kwargs = tree_unflatten(leaves, self._structure)
        return args, kwargs


def _dims_of(args: tuple[Any, ...], kwargs: dict[str, Any], in_dims: Any, structure: TreeSpec) -> list[Any]:
    """Returns the batch dimension of each leaf of (args, kwargs)."""
    if isinstance(in_dims, int):
        return [in_dims] * structure.num_leaves
    if kwargs:
        raise ValueError(f"pass arguments by position, because in_dims={in_dims} is for positions only")
    dims = _broadcast_to_and_flatten((in_dims, {}), structure)
    if dims is None:
        raise ValueError(f"in_dims={in_dims} is not nested as the arguments are")
    return dims


def check_layer(module: nn.Module, in_dims: Any, out_dims: Any) -> None:
    """Checks the batch dimensions of a recurrent layer or a transformer of torch's.

    Raises:
        ValueError: if `in_dims` is time, or `out_dims` is not the states' batch dimension.
    """
    if not isinstance(module, _SEQUENCE_LAYERS):
        return
    name = type(module).__name__
    batch_first = next(part.batch_first for part in module.modules() if hasattr(part, "batch_first"))
    dim = 0 if batch_first else 1
    if isinstance(in_dims, int) and in_dims != dim:
        raise ValueError(
            f"{name} with batch_first={batch_first} has its batch in dimension {dim}: pass in_dims={dim}, or "
            f"a tuple, one for each argument; got in_dims={in_dims}"
        )
    if isinstance(module, nn.RNNBase) and isinstance(out_dims, int) and out_dims != 1:
        states = "(1, 1)" if isinstance(module, nn.LSTM) else "1"
        raise ValueError(
            f"{name} returns states with the batch in dimension 1: pass out_dims=({dim}, {states}), got "
            f"out_dims={out_dims}"
        )


def without_batch(outputs: Any, out_dims: Any) -> Any:
    """Returns outputs [N, ..., 1, ...] of all examples with their batch dimension in the place of the 1.

    An output whose dimension is None stays as it is.

    Raises:
        ValueError: if the batch dimension of an example's output is not of size 1.
    """
    leaves, structure = tree_flatten(outputs)
    dims = _broadcast_to_and_flatten(out_dims, structure)
    if dims is None:
        raise ValueError(f"out_dims={out_dims} is not nested as the outputs are")
    return tree_unflatten(
        [
            _placed(leaf, dim) if isinstance(leaf, Tensor) else leaf
            for leaf, dim in zip(leaves, dims, strict=True)
        ],
        structure,
    )


def _placed(output: Tensor, dim: int | None) -> Tensor:
    if dim is None:
        return output
    ndim = output.ndim - 1
    if not -ndim <= dim < ndim or output.shape[1:][dim] != 1:
        raise ValueError(
            f"the module was given a batch of one and returned shape {list(output.shape[1:])}: its dimension "
            f"{dim} is no batch: pass out_dims (None: [N, ...]), and reduce over examples outside the module"
        )
    dim %= ndim
    return output.squeeze(dim + 1).movedim(0, dim)
