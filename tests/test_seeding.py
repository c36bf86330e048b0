"""Named random streams: pure functions of their name, and practically independent."""

import itertools

import pytest
import torch

from es_flipout.seeding import stream_seed, torch_generator


def draw(*name: object) -> torch.Tensor:
    return torch.randn(8, generator=torch_generator(*name))


def test_a_stream_is_the_same_in_every_process() -> None:
    # Pinned: a seed from Python's salted hash(), or a changed rule, would break every resume.
    assert stream_seed(0, 0, "perturbation") == 1775682847932147775
    assert stream_seed(7, 12, "reset", 3) == 4789339554003288673


def test_every_part_of_the_name_matters() -> None:
    parts = ((0, 1, 2, 2**40), (0, 1, 2, 1000), ("perturbation", "reset", ""), (0, 1, 2))
    names = list(itertools.product(*parts))
    seeds = {stream_seed(*name) for name in names}
    assert len(seeds) == len(names)


def test_parts_of_the_name_do_not_add_up() -> None:
    # (seed + 1, generation) and (seed, generation + 1) are different runs.
    assert stream_seed(1, 0, "reset") != stream_seed(0, 1, "reset")
    assert stream_seed(0, 1, "reset", 0) != stream_seed(0, 0, "reset", 1)


def test_seeds_have_63_bits() -> None:
    seeds = [stream_seed(0, generation, "reset") for generation in range(200)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    # Each of the 63 bits is set about half the time: 200 draws have a standard deviation of 7.
    for bit in range(63):
        assert 60 < sum(seed >> bit & 1 for seed in seeds) < 140


def test_a_generator_starts_at_the_beginning_of_its_stream() -> None:
    assert torch.equal(draw(3, 4, "perturbation", 5), draw(3, 4, "perturbation", 5))
    assert torch_generator(3, 4, "perturbation", 5).initial_seed() == stream_seed(3, 4, "perturbation", 5)
    assert not torch.equal(draw(3, 4, "perturbation", 5), draw(3, 4, "perturbation", 6))


def test_the_global_random_state_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    one = draw(0, 0, "reset")
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)
    torch.manual_seed(2)
    assert torch.equal(draw(0, 0, "reset"), one)


def test_neighboring_streams_are_uncorrelated() -> None:
    # 100 streams of 1,000 draws: a correlation has a standard deviation of 0.032, and there are 4,950.
    streams = torch.stack(
        [torch.randn(1000, generator=torch_generator(0, g, "perturbation")) for g in range(100)]
    )
    correlation = torch.corrcoef(streams) - torch.eye(100)
    assert correlation.abs().max() < 0.18


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_generator_is_on_the_device(device: torch.device | str) -> None:
    assert torch_generator(0, 0, "reset", device=device).device == torch.device("cpu")
