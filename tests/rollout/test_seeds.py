"""reset_seeds: who shares seeds with whom, and that they are those of the run's stream."""

from __future__ import annotations

import numpy as np
import pytest

from es_flipout.rollout import reset_seeds
from es_flipout.seeding import stream_seeds


def test_fresh_seeds_are_those_of_the_stream_by_pair_and_episode():
    expected = stream_seeds(5, 7, "reset", 0, 6).reshape(3, 2).tolist()
    seeds = reset_seeds(6, 2, seed=5, generation=7)
    assert seeds.dtype == np.int64
    assert seeds.tolist() == [expected[pair] for pair in (0, 0, 1, 1, 2, 2)]


def test_nobody_else_has_a_members_fresh_seeds():
    seeds = np.array(
        [
            [
                reset_seeds(8, 3, seed=1, generation=generation, block=block, pairs_share=False)
                for block in range(3)
            ]
            for generation in range(2)
        ]
    )
    assert seeds.shape == (2, 3, 8, 3)
    assert len(np.unique(seeds)) == seeds.size
    assert seeds.min() >= 0
    assert seeds.max() < 2**31


def test_a_larger_population_begins_with_the_seeds_of_a_smaller_one():
    assert (reset_seeds(12, 2, seed=3)[:6] == reset_seeds(6, 2, seed=3)).all()


@pytest.mark.parametrize("kind", ["common", "fixed"])
def test_common_and_fixed_seeds_are_everybodys(kind):
    by_generation = [reset_seeds(5, 2, generation=g, block=b, kind=kind) for g in (0, 1) for b in (0, 1)]
    by_generation = [seeds.tolist() for seeds in by_generation]
    for seeds in by_generation:
        assert seeds == [seeds[0]] * 5
        assert len(set(seeds[0])) == 2
    assert by_generation[0] == by_generation[1]
    assert (by_generation[0] == by_generation[2]) == (kind == "fixed")


def test_pairs_need_an_even_number():
    with pytest.raises(ValueError, match="even"):
        reset_seeds(5)
    assert len(reset_seeds(5, pairs_share=False)) == 5
