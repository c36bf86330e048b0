"""Where the rows are: how a rule converts between what a policy sees and tensors with rows first.

A policy runs for all members at once, in one of two ways. Under `torch.vmap` it sees the tensors of a single
member and the row dimension is hidden, so it cannot mix members. A policy that declares itself `row_wise`
(every leading dimension is a batch, the last one holds features) is spared the cost of vmap and runs on all
rows as they are. Rules always work on physical tensors, rows first.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

# torch has no fast public way to look below vmap: a torch.autograd.Function with a vmap method costs 250
# microseconds per call, about ten times as much as a small layer.
from torch._C._functorch import _add_batch_dim, _unwrap_batched, maybe_current_level

from es_flipout.perturbations.registry import UnsupportedOperationError


@dataclass(frozen=True)
class MemberContext:
    """How the rows lie in the tensors of one run of the policy.

    Attributes:
        num_rows: N.
        level: the level of torch.vmap that hides the rows; None if the policy runs row-wise.
    """

    num_rows: int
    level: int | None

    @classmethod
    def inside_vmap(cls, num_rows: int) -> MemberContext:
        """Returns the context for code that runs inside the current torch.vmap."""
        return cls(num_rows, maybe_current_level())

    def varies(self, tensor: Tensor) -> bool:
        """Returns whether an ordinary tensor differs between rows under vmap."""
        return self.level is not None and _unwrap_batched(tensor, self.level)[1] is not None

    def physical(self, tensor: Tensor) -> Tensor:
        """Returns a tensor that the policy computes with, rows first: [N, *shape that a member sees].

        Raises:
            ValueError: if the first dimension of a row-wise policy's tensor is not the row.
            UnsupportedOperationError: inside a torch.func transform of the policy's own.
        """
        if self.level is None:
            if tensor.ndim == 0 or tensor.shape[0] != self.num_rows:
                raise ValueError(
                    f"a row_wise policy computed with a tensor of shape {list(tensor.shape)}, but there are "
                    f"{self.num_rows} rows: the first dimension must be the row"
                )
            return tensor
        if maybe_current_level() != self.level:
            raise UnsupportedOperationError(
                "a policy must not use perturbed parameters inside torch.func transforms of its own"
            )
        values, dim = _unwrap_batched(tensor, self.level)
        if dim is None:
            return values.expand(self.num_rows, *values.shape)
        return values.movedim(dim, 0)

    def logical(self, rows: Tensor) -> Tensor:
        """Returns the tensor that the policy computes with, given rows first; the inverse of `physical`."""
        return rows if self.level is None else _add_batch_dim(rows, 0, self.level)
