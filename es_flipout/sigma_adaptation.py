"""Adaptive sigma: the noise of every weight gets a standard deviation of its own, which follows the fitness.

The noise of weight i in member m is sigma c_i z_mi, where z_mi has unit variance and the scale c_i is 1 at
first. With the utilities u_m of P members,

    S_i = 1 / P Σ_m u_m (z_mi² - 1)

is positive if members far from the center in weight i did well. Two published rules follow it:

    PGPE, symmetric sampling:   c_i <- c_i (1 + lr S_i)
    separable NES (SNES):       c_i <- c_i exp(lr / 2 P S_i),  lr = (3 + ln d) / (5 sqrt d) for d weights

(Sehnke, Osendorfer, Rückstieß, Graves, Peters and Schmidhuber, "Parameter-exploring policy gradients", Neural
Networks 23, 2010: Δσ = α ((r⁺ + r⁻) / 2 - b) (ε² - σ²) / σ with ε = σ z; Schaul, Glasmachers and Schmidhuber,
"High dimensions and heavy tails for natural evolution strategies", GECCO 2011.) In both, the center moves
along Σ_m u_m σ_i z_mi, so a weight's step grows with the square of its scale.

Flipout's signs cancel in z²: S compares the bases with each other, so it is as noisy as K members would make
it, and several bases of Gaussian noise are needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from es_flipout.choices import MAX_SIGMA_CHANGE, PGPE_SIGMA_LR, SigmaRule
from es_flipout.perturbations.noise_table import accumulation_dtype
from es_flipout.settings import number
from es_flipout.update import norm

SMALLEST, LARGEST = 1e-6, 1e6
"""Bounds of a scale, far beyond useful ones: squares of noise must stay finite and above 0 in float32."""


def scales_for(parameters: Mapping[str, Tensor], known: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a scale for every weight of parameters, by name: the known one, or 1, in float32 or wider."""
    return {
        name: known[name].to(parameter.device)
        if name in known and known[name].shape == parameter.shape
        else torch.ones(parameter.shape, dtype=accumulation_dtype(parameter.dtype), device=parameter.device)
        for name, parameter in parameters.items()
    }


def mean_scale(scales: Mapping[str, Tensor]) -> float:
    """Returns the root mean square of the scales of all weights; 1 if there are none."""
    if not scales:
        return 1.0
    return norm(scales) / math.sqrt(sum(scale.numel() for scale in scales.values()))


@dataclass(frozen=True)
class SigmaAdaptation:
    """How the scales of the noise follow the fitness.

    Attributes:
        rule: "pgpe" or "snes". The latter adds utilities up over members, and expects those of
            `fitness_shaping="nes"`.
        lr: learning rate; if None 0.1 for PGPE, and for SNES the value above.
        max_change: bound on the relative change of a scale per generation, in (0, 1).
    """

    rule: SigmaRule
    lr: float | None = None
    max_change: float = MAX_SIGMA_CHANGE

    def __post_init__(self) -> None:
        if self.rule not in ("pgpe", "snes"):
            raise ValueError(f"rule must be 'pgpe' or 'snes', got {self.rule!r}")
        if self.lr is not None:
            object.__setattr__(self, "lr", number("lr", self.lr, positive=True))
        object.__setattr__(self, "max_change", number("max_change", self.max_change, positive=True))
        if self.max_change >= 1:
            raise ValueError(f"max_change must be < 1, got {self.max_change}")

    def updated(
        self, scales: Mapping[str, Tensor], magnitudes: Mapping[str, Tensor], num_members: int
    ) -> dict[str, Tensor]:
        """Returns the scales of the next generation, by name of the parameter.

        Args:
            scales: c, of each parameter's shape.
            magnitudes: S, likewise.
            num_members: P, or the number of elites, whose utilities are P / M times as large.
        """
        lr = self._lr(sum(scale.numel() for scale in scales.values()))
        factors = {name: self._factor(magnitudes[name], lr, num_members) for name in scales}
        return {name: (scale * factors[name]).clamp(SMALLEST, LARGEST) for name, scale in scales.items()}

    def _lr(self, num_weights: int) -> float:
        if self.lr is not None:
            return self.lr
        if self.rule == "pgpe":
            return PGPE_SIGMA_LR
        return (3 + math.log(num_weights)) / (5 * math.sqrt(num_weights))

    def _factor(self, magnitudes: Tensor, lr: float, num_members: int) -> Tensor:
        """Returns by what the scales of a parameter change."""
        step = lr * magnitudes
        factor = 1 + step if self.rule == "pgpe" else torch.exp(num_members / 2 * step)
        return factor.clamp(1 - self.max_change, 1 + self.max_change)
