"""Figure 5 of the flipout paper: its networks, and the seconds that it gives for them.

Wen, Vicol, Ba, Tran and Grosse, "Flipout: Efficient Pseudo-Independent Weight Perturbations on
Mini-Batches", ICLR 2018, arXiv 1803.04386: an update of evolution strategies on 5,000 samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from benchmarks.speed.models import Model, conv_net, mlp

Kind = Literal["fully connected", "convolutional"]
COLUMNS = ("FlipES, one GPU", "cpuES, 40 cores")
"""What the paper measured, on its own machines."""
SECONDS: dict[tuple[Kind, float], tuple[float, float]] = {
    ("fully connected", 32): (0.12, 0.51),
    ("fully connected", 128): (0.13, 1.22),
    ("fully connected", 512): (0.18, 5.10),
    ("fully connected", 2048): (1.86, 38.0),
    ("convolutional", 0.25): (2.3, 16.0),
    ("convolutional", 0.75): (5.48, 46.0),
    ("convolutional", 1.0): (7.12, 67.0),
    ("convolutional", 1.5): (11.77, 132.0),
}
"""Seconds per update, in the order of COLUMNS."""


@dataclass(frozen=True)
class Network:
    """A network of the figure.

    Attributes:
        kind: fully connected, 784-H-H-10 (the number of hidden layers is ours), or the paper's ConvNet.
        size: H; or what channels and fully connected width are multiplied by.
    """

    kind: Kind
    size: float

    def make_model(self) -> Model:
        """Returns the network."""
        if self.kind == "convolutional":
            return conv_net(self.size)
        return mlp([28 * 28, int(self.size), int(self.size), 10])

    @property
    def paper(self) -> dict[str, float] | None:
        """The paper's seconds per update; None if its figure does not have this network."""
        seconds = SECONDS.get((self.kind, self.size))
        return seconds and dict(zip(COLUMNS, seconds, strict=True))
