"""Rounds, medians and ratios, on figures worked out by hand."""

from __future__ import annotations

from es_flipout.bench.report import Spread, compared, interleave, medians, spreads

ROUNDS = [{"a": 4.0, "b": 2.0}, {"a": 9.0, "b": 1.0}, {"a": 1.0, "b": 5.0}]


def test_contestants_take_turns_within_every_round():
    calls, seen = [], []

    def contestant(name):
        def measure(index):
            calls.append((index, name))
            return {name: float(index)}

        return measure

    rounds = interleave(
        {name: contestant(name) for name in "ab"}, 2, lambda name, done: seen.append((name, done))
    )
    assert calls == [(0, "a"), (0, "b"), (1, "a"), (1, "b")]
    assert rounds == [{"a": 0.0, "b": 0.0}, {"a": 1.0, "b": 1.0}]
    assert seen == [("a", 0.0), ("b", 0.25), ("a", 0.5), ("b", 0.75)]


def test_medians_and_spreads():
    assert medians(ROUNDS) == {"a": 4.0, "b": 2.0}
    assert spreads(ROUNDS)["a"] == Spread(4.0, 1.0, 9.0)


def test_ratios_are_taken_within_a_round():
    # 4 / 2, 9 / 1, 1 / 5: their median is 2; the ratio of the medians, 4 / 2, only happens to be so too.
    result = compared([*ROUNDS, {"a": 3.0, "b": 1.0}], {"a / b": lambda figures: figures["a"] / figures["b"]})
    assert result["ratios"] == {"a / b": [2.0, 9.0, 0.2, 3.0]}
    assert result["median_ratios"] == {"a / b": 2.5}
    assert result["rounds"] == [*ROUNDS, {"a": 3.0, "b": 1.0}]
