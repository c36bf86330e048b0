"""Noise of env steps: the same from any company and library, normal, and independent where it should be."""

import numpy as np
import pytest
import torch
from scipy import stats

from es_flipout.step_noise import episode_keys, fill_normal, normal

KEYS = episode_keys(np.array([0, 1, 2, 7, 2**31 - 1]), 3)


def filled(keys, steps, size, live=None, dtype=np.float64):
    numbers = np.full((len(keys), size), np.nan, dtype)
    live = np.ones(len(keys), np.bool_) if live is None else live
    fill_normal(numbers, live, keys, np.asarray(steps))
    return numbers


def splitmix(state):
    """SplitMix64 in Python's unlimited integers."""
    mask = 2**64 - 1
    z = state & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_the_hash_is_splitmix64():
    # The first outputs of the generator that Vigna published, seed 1234567.
    gamma = 0x9E3779B97F4A7C15
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [splitmix(1234567 + gamma * (k + 1)) for k in range(3)] == published


@pytest.mark.parametrize("size", [1, 2, 5])
def test_numbers_are_those_of_the_formula(size):
    gamma = 0x9E3779B97F4A7C15
    for key, step in ((5, 0), (-3, 999)):
        begin = splitmix(key + gamma * (step + 1))
        expected = []
        for j in range(0, size, 2):
            bits = splitmix(begin + gamma * (j + 1))
            radius = np.sqrt(-2 * np.log(((bits >> 32) + 0.5) / 2**32))
            angle = 2 * np.pi * (bits & (2**32 - 1)) / 2**32
            expected += [radius * np.cos(angle), radius * np.sin(angle)]
        found = filled(np.array([key]), [step], size)[0]
        np.testing.assert_allclose(found, expected[:size], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("size", [1, 4, 7])
def test_torch_draws_the_same(size):
    steps = np.arange(len(KEYS)) * 1001
    found = normal(torch.from_numpy(KEYS), torch.from_numpy(steps), size, torch.float64)
    np.testing.assert_allclose(found.numpy(), filled(KEYS, steps, size), rtol=1e-12, atol=1e-14)


def test_a_row_depends_on_its_key_and_step_alone():
    steps = np.arange(len(KEYS))
    together = filled(KEYS, steps, 3)
    for n in range(len(KEYS)):
        assert np.array_equal(filled(KEYS[n : n + 1], steps[n : n + 1], 3)[0], together[n])
    some = np.array([True, False, True, False, True])
    masked = filled(KEYS, steps, 3, live=some)
    assert np.array_equal(masked[some], together[some])
    assert np.isnan(masked[~some]).all()


def test_numbers_are_normal_and_uncorrelated():
    keys = episode_keys(np.arange(200), 1)
    numbers = np.stack([filled(keys, np.full(200, step), 6) for step in range(60)])  # [steps, episodes, 6]
    assert stats.kstest(numbers.ravel(), "norm").pvalue > 1e-3
    count = numbers[..., 0].size
    for one, other in (
        (numbers[..., 0], numbers[..., 1]),  # of one pair
        (numbers[..., 0], numbers[..., 4]),
        (numbers[:-1], numbers[1:]),  # from step to step
        (numbers[:, :-1], numbers[:, 1:]),  # from episode to episode
    ):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 5 / np.sqrt(count)


def test_purposes_have_keys_of_their_own():
    seeds = np.arange(1000)
    assert len(np.unique([episode_keys(seeds, purpose) for purpose in range(3)])) == 3000
