"""An update of supervised evolution strategies: members, examples and scores are what they should be."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from benchmarks.speed.paper import Network
from benchmarks.speed.update import (
    UPDATE,
    BatchUpdate,
    ExampleRollout,
    Examples,
    extrapolated,
    of_members,
    on_a_line,
    pool_size,
)
from es_flipout import FlipoutES
from es_flipout.perturbations import Flipout, LowRank
from es_flipout.rollout import Episodes

CPU = torch.device("cpu")
NETWORKS = [Network("fully connected", 16), Network("convolutional", 0.05)]


def batch_update(network: Network, max_bytes: int = 2**30) -> BatchUpdate:
    shape = network.make_model().input_shapes[0]
    return BatchUpdate(network, Flipout(num_bases=2), Examples(shape, 8, seed=3), CPU, max_bytes)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.kind)
def test_both_ways_score_every_member_on_its_own_example(network):
    update = batch_update(network)
    examples = Examples(network.make_model().input_shapes[0], 8, seed=3)
    images, labels = examples.draw()
    model = network.make_model().module
    population = FlipoutES(model, population_size=8, sigma=0.5, perturbation=LowRank()).ask()
    everyone = torch.arange(8)
    in_batch = update.fitness(population.select(everyone), everyone)
    rollout, episodes = ExampleRollout(examples), Episodes.of_population(range(8))
    with torch.no_grad():
        for index in range(8):
            member = population.module(index)
            loss = F.cross_entropy(member(images[index : index + 1]), labels[index : index + 1])
            assert float(in_batch[index]) == pytest.approx(-float(loss), rel=1e-4)
            rollout.play(member, episodes, index)
            assert (episodes.returns[index], episodes.lengths[index]) == (-float(loss), 1)
    assert in_batch.unique().numel() == 8


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.kind)
def test_members_in_turns_make_the_same_update(network):
    whole, in_turns = batch_update(network), batch_update(network, max_bytes=1)
    assert [len(part) for part in whole._parts] == [8]
    assert [len(part) for part in in_turns._parts] == [1] * 8
    before = [value.detach().clone() for value in whole._es.policy.parameters()]
    whole()
    in_turns()
    for start, one, other in zip(
        before, whole._es.policy.parameters(), in_turns._es.policy.parameters(), strict=True
    ):
        assert not torch.equal(start, one)
        torch.testing.assert_close(one, other)


def test_the_pool_is_measured_on_as_many_samples_as_it_can_bear():
    assert pool_size(5000, 26_000, workers=2) == 5000
    assert pool_size(5000, 5_824_522, workers=2) == 84  # 500 million / 5.8 million is 85.8
    assert pool_size(5000, 10**9, workers=2) == 8  # twice the smaller update: 2 for each of 2 workers
    assert pool_size(5000, 26_000, workers=2, wanted=301) == 300
    assert pool_size(5000, 26_000, workers=2, wanted=9000) == 5000


def test_an_update_of_many_samples_is_on_the_line_through_two_smaller_ones():
    # 0.5 s, and 0.1 s for each of 4, 24 and 104 samples
    assert on_a_line((4, 0.9), (24, 2.9), 104) == pytest.approx(10.9)
    figures = extrapolated({4: lambda: 0.9, 24: lambda: 2.9}, 104)
    assert figures == pytest.approx({UPDATE: 10.9, of_members(4): 0.9, of_members(24): 2.9})


def test_the_papers_figures_are_those_of_its_networks_only():
    assert Network("fully connected", 2048).paper == {"FlipES, one GPU": 1.86, "cpuES, 40 cores": 38.0}
    assert Network("convolutional", 1.0).paper == {"FlipES, one GPU": 7.12, "cpuES, 40 cores": 67.0}
    assert Network("fully connected", 1.0).paper is None
