"""What every bench does alike: contestants in alternating rounds, medians with their spread, one document.

A round runs every contestant once, so that whatever slows the machine down for a while meets all of them. A
ratio is taken within a round; of rounds, figures and ratios alike, the median counts.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from es_flipout.bench.machine import describe_machine

Figures = Mapping[str, float]
"""What a round, or a contestant in it, gave: seconds or rates, by name."""
Contestant = Callable[[int], Figures]
"""Measures once, in the round of that index."""
Ratio = Callable[[Figures], float]
"""What is read off a round."""
Watch = Callable[[str, float], None]
"""Is told, before each measurement, what is measured, and what share of the measurements is done."""


@dataclass(frozen=True)
class Spread:
    """The median of a figure over rounds, and its lowest and highest value."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Returns the spread of one value a round."""
        return cls(statistics.median(values), min(values), max(values))


def interleave(contestants: Mapping[str, Contestant], rounds: int, watch: Watch) -> list[dict[str, float]]:
    """Runs every contestant once a round, in the same order.

    Args:
        contestants: what is measured, by name.
        rounds: number of rounds.
        watch: see `Watch`.

    Returns:
        The figures of all contestants, by round.
    """
    results: list[dict[str, float]] = []
    for index in range(rounds):
        figures: dict[str, float] = {}
        for place, (name, measure) in enumerate(contestants.items()):
            watch(name, (index + place / len(contestants)) / rounds)
            figures |= measure(index)
        results.append(figures)
    return results


def spreads(rounds: Sequence[Figures]) -> dict[str, Spread]:
    """Returns the spread of every figure over rounds."""
    return {name: Spread.of([figures[name] for figures in rounds]) for name in rounds[0]}


def ratios_within(rounds: Sequence[Figures], ratios: Mapping[str, Ratio]) -> dict[str, list[float]]:
    """Returns every ratio, one a round, by name."""
    return {name: [ratio(figures) for figures in rounds] for name, ratio in ratios.items()}


def medians(rounds: Sequence[Figures]) -> dict[str, float]:
    """Returns the median of every figure over rounds."""
    return {name: spread.median for name, spread in spreads(rounds).items()}


def compared(rounds: Sequence[Figures], ratios: Mapping[str, Ratio]) -> dict[str, Any]:
    """Returns a comparison as a document has it: `median_ratios`, `ratios` by round, and the `rounds`."""
    values = ratios_within(rounds, ratios)
    return {
        "median_ratios": {name: statistics.median(each) for name, each in values.items()},
        "ratios": values,
        "rounds": [dict(figures) for figures in rounds],
    }


def document(command: str, body: Mapping[str, Any], device: str = "cpu") -> dict[str, Any]:
    """Returns the JSON document of a bench: the command, settings, seed and results, and the machine."""
    return {"command": command, **body, "machine": describe_machine(device)}
