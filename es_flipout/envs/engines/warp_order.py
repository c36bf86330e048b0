"""A fixed order of contacts and of constraint rows, which mujoco_warp 4.0.0 promises but does not keep.

On a GPU the threads of mujoco_warp take places in the buffers of contacts and of constraints in whatever
order they come, and sums follow the order of the buffers. Its `opt.deterministic` fixes the order of atomic
sums alone: `_sort_contacts` and `_sort_constraints` are still empty. Here both buffers are sorted, by kernels
that a graph may record, in those two callbacks of a model that come next after the buffers are filled.
"""

# mypy: disable-error-code="misc, untyped-decorator"
from __future__ import annotations

from typing import Any

import numpy as np
import warp as wp

ROW_FIELDS = ("type", "id", "J", "pos", "margin", "D", "vel", "aref", "frictionloss", "Jqvel")
"""Fields of a constraint row that are known before the solver runs."""
UNSORTED = frozenset(("flex", "elem", "vert", "efc_address"))
"""Fields of a contact that are only for flexes, or not yet known when contacts are sorted."""
FIRST_CONTACT_TYPE = wp.constant(5)
"""Constraint types from here on (mjtConstraint) are of contacts, whatever their friction."""
LAST = wp.constant(wp.int64(2**62))
"""Key of a place that holds no contact."""


@wp.kernel(enable_backward=False)
def _key_contacts(
    num_contacts: wp.array[wp.int32],
    world: wp.array[wp.int32],
    geom: wp.array[wp.vec2i],
    nth: wp.array[wp.int32],
    num_geoms: wp.int32,
    key: wp.array[wp.int64],
    place: wp.array[wp.int32],
) -> None:
    """Numbers contacts by env, pair of geoms, and which of the pair's contacts it is."""
    i = wp.tid()
    place[i] = i
    key[i] = LAST
    if i < num_contacts[0]:
        first = wp.int64(world[i]) * wp.int64(num_geoms) + wp.int64(geom[i][0])
        pair = first * wp.int64(num_geoms) + wp.int64(geom[i][1])
        key[i] = pair * wp.int64(64) + wp.int64(nth[i])  # a pair has fewer contacts than that


@wp.kernel(enable_backward=False)
def _take_contacts(
    num_contacts: wp.array[wp.int32],
    place: wp.array[wp.int32],
    values: wp.array2d[wp.int32],
    taken: wp.array2d[wp.int32],
) -> None:
    i, column = wp.tid()
    if i < num_contacts[0]:
        taken[i, column] = values[place[i], column]


@wp.kernel(enable_backward=False)
def _put_contacts(
    num_contacts: wp.array[wp.int32],
    place: wp.array[wp.int32],
    values: wp.array2d[wp.int32],
    taken: wp.array2d[wp.int32],
) -> None:
    i, column = wp.tid()
    if i < num_contacts[0]:
        values[i, column] = taken[i, column]


@wp.kernel(enable_backward=False)
def _rank_rows(
    num_rows: wp.array[wp.int32],
    kind: wp.array2d[wp.int32],
    identity: wp.array2d[wp.int32],
    rank: wp.array2d[wp.int32],
    place: wp.array2d[wp.int32],
) -> None:
    """Counts the rows that come before each: by type, then by joint, tendon or contact, then as they are."""
    world, row = wp.tid()
    count = wp.min(num_rows[world], kind.shape[1])
    if row >= count:
        return
    my_kind, mine = wp.min(kind[world, row], FIRST_CONTACT_TYPE), identity[world, row]
    before = wp.int32(0)
    for other in range(count):
        its_kind, its = wp.min(kind[world, other], FIRST_CONTACT_TYPE), identity[world, other]
        same = its_kind == my_kind and its == mine
        if its_kind < my_kind or (its_kind == my_kind and its < mine) or (same and other < row):
            before += 1
    rank[world, row] = before
    place[world, before] = row


@wp.kernel(enable_backward=False)
def _take_rows(
    num_rows: wp.array[wp.int32],
    place: wp.array2d[wp.int32],
    values: wp.array3d[wp.int32],
    taken: wp.array3d[wp.int32],
) -> None:
    world, row, column = wp.tid()
    if row < num_rows[world]:
        taken[world, row, column] = values[world, place[world, row], column]


@wp.kernel(enable_backward=False)
def _put_rows(
    num_rows: wp.array[wp.int32],
    place: wp.array2d[wp.int32],
    values: wp.array3d[wp.int32],
    taken: wp.array3d[wp.int32],
) -> None:
    world, row, column = wp.tid()
    if row < num_rows[world]:
        values[world, row, column] = taken[world, row, column]


@wp.kernel(enable_backward=False)
def _follow_rows(
    num_contacts: wp.array[wp.int32],
    world: wp.array[wp.int32],
    rank: wp.array2d[wp.int32],
    address: wp.array2d[wp.int32],
) -> None:
    """Tells contacts where their rows have gone."""
    i, column = wp.tid()
    if i < num_contacts[0] and address[i, column] >= 0:
        address[i, column] = rank[world[i], address[i, column]]


class FixedOrder:
    """Sorts the contacts and the constraint rows of a `mujoco_warp.Data` in every step."""

    def __init__(self, model: Any, data: Any) -> None:
        """Installs itself as two callbacks of the model.

        Args:
            model: `mujoco_warp.Model`.
            data: `mujoco_warp.Data`.

        Raises:
            ValueError: if the model has constraints that cannot be sorted here.
        """
        if model.is_sparse or model.neq or model.nflex:
            raise ValueError(
                "deterministic needs a model without equality constraints and flexes, and with a dense "
                "Jacobian (the default up to 32 degrees of freedom)"
            )
        names = [name for name in vars(data.contact) if name not in UNSORTED]
        self._contacts = [_words(getattr(data.contact, name), 1) for name in names]
        self._rows = [_words(getattr(data.efc, name), 2) for name in ROW_FIELDS]
        num_contacts, (num_envs, njmax) = data.naconmax, data.efc.type.shape

        def scratch(*shape: int, dtype: Any = wp.int32) -> Any:
            return wp.empty(shape, dtype=dtype, device=data.qpos.device)

        # A radix sort needs twice the room.
        self._key, self._contact = scratch(2 * num_contacts, dtype=wp.int64), scratch(2 * num_contacts)
        self._rank, self._row = scratch(num_envs, njmax), scratch(num_envs, njmax)
        self._contacts_taken = [scratch(*words.shape) for words in self._contacts]
        self._rows_taken = [scratch(num_envs, njmax, words.shape[2]) for words in self._rows]
        model.callback.contactfilter = self.sort_contacts
        model.callback.control = self.sort_rows

    def sort_contacts(self, model: Any, data: Any) -> None:
        """Puts all contacts in order of their env, their geoms, and their number within the pair."""
        contact, count = data.contact, data.naconmax
        wp.launch(
            _key_contacts,
            dim=count,
            inputs=[data.nacon, contact.worldid, contact.geom, contact.geomcollisionid, model.ngeom],
            outputs=[self._key, self._contact],
            device=data.qpos.device,
        )
        wp.utils.radix_sort_pairs(self._key, self._contact, count)
        for kernel in (_take_contacts, _put_contacts):
            for words, taken in zip(self._contacts, self._contacts_taken, strict=True):
                _launch(kernel, words.shape, data.nacon, self._contact, words, taken)

    def sort_rows(self, model: Any, data: Any) -> None:
        """Puts the rows of each env in order of their type and of the joint or contact that they are for."""
        del model
        rows, device = data.efc, data.qpos.device
        wp.launch(
            _rank_rows,
            dim=rows.type.shape,
            inputs=[data.nefc, rows.type, rows.id],
            outputs=[self._rank, self._row],
            device=device,
        )
        for kernel in (_take_rows, _put_rows):
            for words, taken in zip(self._rows, self._rows_taken, strict=True):
                _launch(kernel, taken.shape, data.nefc, self._row, words, taken)
        wp.launch(
            _follow_rows,
            dim=data.contact.efc_address.shape,
            inputs=[data.nacon, data.contact.worldid, self._rank],
            outputs=[data.contact.efc_address],
            device=device,
        )


def _launch(kernel: Any, dim: tuple[int, ...], count: Any, place: Any, values: Any, taken: Any) -> None:
    wp.launch(kernel, dim=dim, inputs=[count, place, values, taken], device=count.device)


def _words(values: Any, leading: int) -> Any:
    """Returns a view of an array as 32-bit words, with all that follows the leading dimensions in one."""
    num_words = int(np.prod(values.shape[leading:])) * wp.types.type_size_in_bytes(values.dtype) // 4
    return wp.array(
        ptr=values.ptr,
        dtype=wp.int32,
        shape=(*values.shape[:leading], num_words),
        strides=(*values.strides[:leading], 4),
        device=values.device,
    )
