"""Distributions of a weight: its mean, and independent noise about it for every weight of a module.

    W = mean(W) + scale(W) ∘ unit

where `unit` does not depend on the parameters, so that gradients reach them through mean and scale. Wen,
Vicol, Ba, Tran and Grosse (ICLR 2018, section 2.1) list them: multiplicative and additive Gaussian noise,
DropConnect, and learned Gaussians (Bayes by Backprop).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override


class WeightDistribution(ABC):
    """The distribution of the weights of one example, which are independent of each other."""

    @property
    def is_gaussian(self) -> bool:
        """Whether `unit` is standard normal; estimator "local" is exact for no other noise."""
        return True

    @property
    def is_symmetric(self) -> bool:
        """Whether `unit` and -unit have the same distribution, as estimator "flipout" requires."""
        return True

    def initial_rho(self, weight: Tensor) -> Tensor | None:
        """Returns the first value of the parameter rho that a weight gets, or None if it gets none."""
        return None

    def mean(self, weight: Tensor) -> Tensor:
        """Returns the mean of the weights, of the parameter's shape."""
        return weight

    @abstractmethod
    def scale(self, weight: Tensor, rho: Tensor | None) -> Tensor:
        """Returns what the unit noise is multiplied by, of the parameter's shape.

        Args:
            weight: the parameter.
            rho: its parameter rho, None if it has none.
        """

    def unit(self, shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
        """Draws unit noise of a shape, on the generator's device."""
        return torch.randn(tuple(shape), generator=generator, dtype=dtype, device=generator.device)


@dataclass(frozen=True)
class MultiplicativeGaussian(WeightDistribution):
    """W (1 + std N(0, 1)): Gaussian dropout on weights (Kingma, Salimans and Welling, 2015).

    Attributes:
        std: standard deviation as a fraction of the weight.
    """

    std: float = 1.0

    def __post_init__(self) -> None:
        _require_positive("std", self.std)

    @override
    def scale(self, weight: Tensor, rho: Tensor | None) -> Tensor:
        return weight * self.std


@dataclass(frozen=True)
class AdditiveGaussian(WeightDistribution):
    """W + std N(0, 1).

    Attributes:
        std: standard deviation, the same for all weights.
    """

    std: float

    def __post_init__(self) -> None:
        _require_positive("std", self.std)

    @override
    def scale(self, weight: Tensor, rho: Tensor | None) -> Tensor:
        return torch.full_like(weight, self.std, requires_grad=False)


@dataclass(frozen=True)
class DropConnect(WeightDistribution):
    """W with each entry dropped with probability p (Wan, Zeiler, Zhang, LeCun and Fergus, 2013).

    The mean is (1 - p) W. With p = 0.5, weights are W / 2 ± W / 2, symmetric about W / 2: the
    paper's form for flipout. Kept weights are not scaled up.

    Attributes:
        p: probability that a weight is dropped.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.p < 1:
            raise ValueError(f"p must be between 0 and 1, got {self.p}")

    @property
    @override
    def is_gaussian(self) -> bool:
        return False

    @property
    @override
    def is_symmetric(self) -> bool:
        return self.p == 0.5

    @override
    def mean(self, weight: Tensor) -> Tensor:
        return weight * (1 - self.p)

    @override
    def scale(self, weight: Tensor, rho: Tensor | None) -> Tensor:
        return weight

    @override
    def unit(self, shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
        kept = torch.full(tuple(shape), 1 - self.p, dtype=dtype, device=generator.device)
        return torch.bernoulli(kept, generator=generator) - kept  # in place, torch.vmap could not draw


@dataclass(frozen=True)
class LearnedGaussian(WeightDistribution):
    """N(mu, softplus(rho)²): Bayes by Backprop (Blundell, Cornebise, Kavukcuoglu and Wierstra, 2015).

    mu is the module's own parameter; rho is added, one for each weight.

    Attributes:
        initial_std: softplus(rho) at the start.
    """

    initial_std: float = 0.05

    def __post_init__(self) -> None:
        _require_positive("initial_std", self.initial_std)

    @override
    def initial_rho(self, weight: Tensor) -> Tensor | None:
        # softplus(rho) = log(1 + exp(rho))
        rho = self.initial_std + math.log(-math.expm1(-self.initial_std))
        return torch.full_like(weight, rho, requires_grad=False)

    @override
    def scale(self, weight: Tensor, rho: Tensor | None) -> Tensor:
        assert rho is not None
        return F.softplus(rho)


def _require_positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be positive and finite, got {value}")
