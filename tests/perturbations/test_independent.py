"""Independent noise is drawn on demand: neither the amount nor the order of the draws changes a bit."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch

from es_flipout.perturbations import Independent
from es_flipout.perturbations.independent import SeededTable

SHAPES = {"weight": (5, 7), "bias": (5,), "scale": ()}
DIRECTIONS = 137
"""Not a multiple of any number of threads."""
EACH_KIND = [
    pytest.mark.parametrize("antithetic", [True, False], ids=["antithetic", "single"]),
    pytest.mark.parametrize("dtypes", [("float32",), ("float64",), ("float32", "float64")], ids=str),
]


def draw(dtypes, antithetic):
    """Returns noise of which nothing is drawn yet; two dtypes make two tables."""
    parameters = {
        f"{dtype}.{name}": torch.empty(shape, dtype=getattr(torch, dtype))
        for dtype in dtypes
        for name, shape in SHAPES.items()
    }
    size = DIRECTIONS * (2 if antithetic else 1)
    generator = torch.Generator().manual_seed(3)
    return Independent().sample(parameters, size, generator, antithetic=antithetic)


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name
        assert one[name].dtype == other[name].dtype


def for_each_kind(test):
    for mark in EACH_KIND:
        test = mark(test)
    return test


@for_each_kind
def test_members_and_rows_agree_before_and_after_all_is_drawn(dtypes, antithetic):
    noise = draw(dtypes, antithetic)
    members = [noise.population_size - 1, 0, 3, 2, 64, 65, 3]
    before = [noise.member(member) for member in members]
    rows = noise.rows(torch.tensor(members), 1.0)
    after = [noise.member(member) for member in members]
    for index in range(len(members)):
        assert_equal(before[index], {name: row.dense()[index] for name, row in rows.items()})
        assert_equal(before[index], after[index])
    assert not torch.equal(before[0][f"{dtypes[0]}.weight"], before[1][f"{dtypes[0]}.weight"])


@for_each_kind
def test_the_weighted_sum_keeps_its_bits_after_all_is_drawn(dtypes, antithetic):
    noise = draw(dtypes, antithetic)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(noise.population_size, generator=generator, dtype=torch.float64)
    before = noise.weighted_sum(weights)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            assert_equal(before, noise.weighted_sum(weights))
        finally:
            torch.set_num_threads(1)
    for some in (torch.arange(4), torch.arange(noise.population_size)):
        noise.rows(some, 1.0)
        assert_equal(before, noise.weighted_sum(weights))
    members = [noise.member(member) for member in range(noise.population_size)]
    for name, value in before.items():
        expected = sum(w * member[name].double() for w, member in zip(weights.tolist(), members, strict=True))
        tolerance = 1e-10 if value.dtype == torch.float64 else 1e-4
        torch.testing.assert_close(value.double(), expected, rtol=tolerance, atol=tolerance)


def test_threads_may_draw_at_the_same_time():
    alone = draw(("float64",), False)
    expected = [alone.member(member) for member in range(DIRECTIONS)]

    def two(noise, member):
        rows = noise.rows(torch.tensor([member, (member + 1) % DIRECTIONS]), 1.0)
        return {name: row.dense()[1] for name, row in rows.items()}

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(5):
            noise = draw(("float64",), False)
            with ThreadPoolExecutor(4) as threads:
                members = list(threads.map(noise.member, range(DIRECTIONS)))
                following = list(threads.map(partial(two, noise), range(DIRECTIONS)))
            for member in range(DIRECTIONS):
                assert_equal(members[member], expected[member])
                assert_equal(following[member - 1], expected[member])
    finally:
        sys.setswitchinterval(interval)


SEVERAL_TILES = {"table": (7, 9_000), "weight": (70, 300), "scale": ()}
"""63,000 + 21,000 + 1 weights, by 32,768."""


@pytest.mark.parametrize("antithetic", [True, False], ids=["antithetic", "single"])
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "drawn again"])
def test_rows_of_several_tiles_are_those_that_are_summed(antithetic, kept):
    parameters = {name: torch.empty(shape, dtype=torch.float64) for name, shape in SEVERAL_TILES.items()}
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    one, other = (Independent().sample(parameters, 6, each, antithetic=antithetic) for each in generators)
    for noise in (one, other):
        # Columns 27,000 to 36,000 of the table, across the border of two tiles, and a weight's last entry.
        noise.pin({"table": 3, "weight": 69})
    rows = {name: row.dense() for name, row in one.rows(torch.arange(6), 1.0).items()}
    noise = one if kept else other
    weights = torch.randn(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    total = noise.weighted_sum(weights)
    for name, row in rows.items():
        expected = (weights.view(-1, *(1,) * (row.ndim - 1)) * row).sum(dim=0)
        torch.testing.assert_close(total[name], expected, rtol=1e-12, atol=1e-12)
        assert torch.equal(row[2], noise.member(2)[name])
    for name, entry in (("table", 3), ("weight", 69)):
        for values in (rows[name][0], total[name]):
            zero = (values == 0).flatten(1).all(dim=1)
            assert zero.nonzero().flatten().tolist() == [entry]
            assert int((values == 0).sum()) == values[entry].numel()


def test_every_tile_of_every_direction_has_its_own_draw():
    shape = (4, SeededTable.tile_values)
    noise = Independent().sample({"weight": torch.empty(shape)}, 3, torch.Generator(), antithetic=False)
    draws = torch.stack([noise.member(member)["weight"] for member in range(3)]).flatten(0, 1)
    assert len(draws.unique(dim=0)) == 12
    # Uncorrelated: of 66 pairs, none is 5 standard errors from 0.
    correlations = torch.corrcoef(draws) - torch.eye(12)
    assert correlations.abs().max() < 5 * shape[1] ** -0.5


def test_a_tile_draws_its_own_columns_only(monkeypatch):
    filled = []
    fill = SeededTable._fill

    def counted(table, part, direction, columns):
        filled.append((direction, columns.start, len(part)))
        return fill(table, part, direction, columns)

    monkeypatch.setattr(SeededTable, "_fill", counted)
    width = SeededTable.tile_values
    noise = Independent().sample({"bias": torch.empty(2 * width + 5)}, 4, torch.Generator())
    tiles = noise.tiles(torch.arange(4.0))
    tiles[2].compute()
    assert sorted(filled) == [(0, 2 * width, 5), (1, 2 * width, 5)]
