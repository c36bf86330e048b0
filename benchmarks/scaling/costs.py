"""What a generation on several ranks costs besides its episodes, as formulas fitted to measurements.

R ranks play P episodes in B blocks, for a policy with O observations; s and m are the bytes that a rank tells
rank 0 and that rank 0 answers. All costs are in seconds:

    exchange = a + b R + c R s + d log2(R) m + (R + 2 log2(R)) latency
    merge    = a + b R + c P + d B O                rank 0 reads what all have said, and joins it
    update   = a + b P                              what every rank does again, for all members
    step     = a + b k                              of k envs that one rank steps together

An exchange first passes sizes around a ring, R messages one after the other. Rank 0 then gathers what all
say, and its answer (a size, then the content) spreads as in a tree. a to d are CPU time of rank 0. Ranks that
share cores wait for these, too: on one machine an exchange takes a + b R + e R^2 + c R s + d log2(R) m; see
`Costs.here`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).resolve().parents[1] / "results"
MEASURED = RESULTS / "scaling_costs.json"
SECONDS_BETWEEN_LOOKS = 0.2
"""Every rank asks the store so often whether the run is to stop; see `process_group`."""
BYTES_PER_EPISODE = 24
"""Row, return and length of an episode, as an `Outcome` holds them."""
BYTES_PER_OUTCOME = 700
"""Of an `Outcome` without episodes, pickled."""
BYTES_OF_A_DIGEST = 300
"""What a rank says when states are compared, pickled."""


def bytes_per_record(observations: int) -> int:
    """Returns the bytes of the moments of a block: its number, a count, O means and O sums of squares."""
    return (2 + 2 * observations) * 8


@dataclass(frozen=True)
class Line:
    """A cost that grows with one or several quantities: `constant` plus the sum of `slopes` times them."""

    constant: float
    slopes: tuple[float, ...]

    def __call__(self, *quantities: float) -> float:
        """Returns the seconds."""
        return self.constant + sum(slope * each for slope, each in zip(self.slopes, quantities, strict=True))

    @classmethod
    def fitted(cls, quantities: Sequence[Sequence[float]], seconds: Sequence[float]) -> Line:
        """Fits a cost with no negative coefficient, so that relative errors are small.

        Args:
            quantities: [N][K], of every measurement.
            seconds: [N].
        """
        y = np.asarray(seconds, np.float64)
        x = np.column_stack([np.ones(len(y)), np.asarray(quantities, np.float64).reshape(len(y), -1)])
        weighted = x / y[:, None]
        used = list(range(x.shape[1]))
        while True:  # leave out what would be negative, the worst first
            found, *_ = np.linalg.lstsq(weighted[:, used], np.ones(len(y)), rcond=None)
            if len(used) == 1 or found.min() >= 0:
                break
            del used[int((found * np.abs(weighted[:, used]).mean(axis=0)).argmin())]
        coefficients = np.zeros(x.shape[1])
        coefficients[used] = np.maximum(found, 0)
        return cls(float(coefficients[0]), tuple(coefficients[1:].tolist()))

    def errors(self, quantities: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
        """Returns the relative errors of the fit."""
        return [self(*each) / measured - 1 for each, measured in zip(quantities, seconds, strict=True)]


SQUARE = 1
"""Index of the square of the ranks in `exchange_quantities`."""


def exchange_quantities(ranks: int, said: float, answered: float) -> tuple[float, float, float, float]:
    """Returns what an exchange grows with: R, R^2, R s and log2(R) m."""
    return ranks, ranks**2, ranks * said, math.log2(ranks) * answered


@dataclass(frozen=True)
class Costs:
    """The costs of a machine and a network.

    Attributes:
        claim_latency: seconds of a claim if nobody else has one.
        claim_service: seconds for which a claim keeps the store busy.
        exchange: the time of cores; see `exchange_quantities`.
        exchange_here: what passes on the machine of the measurement, whose cores all ranks share.
        hop_latency: seconds of a message from one rank to another.
        merge: of ranks, episodes, blocks x observations.
        update: of members, by policy.
        step: of envs stepped together.
    """

    claim_latency: float
    claim_service: float
    exchange: Line
    exchange_here: Line
    hop_latency: float
    merge: Line
    update: dict[str, Line]
    step: Line

    def exchange_seconds(self, ranks: int, said: float, answered: float) -> float:
        """Returns the seconds of an exchange; nothing for a rank that is alone."""
        if ranks == 1:
            return 0.0
        hops = ranks + 2 * math.log2(ranks)
        return self.exchange(*exchange_quantities(ranks, said, answered)) + hops * self.hop_latency

    def on_network(self, latency: float = 1.0, bytes_per_second: float = math.inf) -> Costs:
        """Returns the costs with messages that take longer, and bytes that are not faster than a network."""
        *others, told, answered = self.exchange.slopes
        least = 1 / bytes_per_second
        exchange = Line(self.exchange.constant, (*others, max(told, least), max(answered, least)))
        claim, hop = self.claim_latency * latency, self.hop_latency * latency
        return replace(self, claim_latency=claim, hop_latency=hop, exchange=exchange)

    def here(self) -> Costs:
        """Returns the costs of ranks that share the machine of the measurement."""
        return replace(self, exchange=self.exchange_here, hop_latency=0.0)

    @classmethod
    def read(cls, path: Path = MEASURED) -> Costs:
        """Reads the fits of `python -m benchmarks.scaling.measure`."""
        return cls.of(json.loads(path.read_text())["fits"])

    @classmethod
    def of(cls, fits: dict[str, Any]) -> Costs:
        """Returns the costs of the fits in a JSON document."""
        names = ("exchange", "exchange_here", "merge", "step")
        lines = {name: Line(*_numbers(fits[name])) for name in names}
        update = {name: Line(*_numbers(each)) for name, each in fits["update"].items()}
        claim = fits["claim_latency"]
        return cls(claim, fits["claim_service"], hop_latency=claim / 2, update=update, **lines)


def _numbers(line: dict[str, Any]) -> tuple[float, tuple[float, ...]]:
    return line["constant"], tuple(line["slopes"])
