"""Fitness: how it comes in, and its shaping into the utilities that weight each member's perturbation.

`as_fitness` is the border: it takes whatever holds one real number per member, and everything after it works
on float64 [P].

The shapings are pure functions of a vector of returns [P]. For all of them, equal returns get equal
utilities, utilities sum to zero (and are exactly zero if all returns are equal), and a member whose return is
not finite counts as the worst: by rank below all others, by value equal to the lowest of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Set, Sized
from itertools import islice
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from es_flipout.choices import FitnessShaping
from es_flipout.described import described
from es_flipout.error_text import error_text

Shaping = Callable[[Tensor], Tensor]


def as_fitness(values: Any, size: int, name: str = "fitness") -> Tensor:
    """Returns one real number per member, as float64 [P] on the CPU that shares no memory with `values`.

    Args:
        values: a tensor or array (anything with `__array__`) of any real dtype, or an iterable, in order, of
            Python numbers, NumPy scalars or tensors without dimensions. Masked entries become NaN.
        size: members P.
        name: what to call it in errors.

    Raises:
        TypeError: if these are not real numbers.
        ValueError: if there is not one number per member.
    """
    if isinstance(values, Tensor):
        result = _of_tensor(values, name, size)
    elif hasattr(values, "__array__"):
        result = _of_array(values, name, size)
    elif isinstance(values, Iterable) and not isinstance(values, str | bytes | bytearray | Mapping | Set):
        if not isinstance(values, Sized) and len(values := list(islice(values, size + 1))) > size:
            raise ValueError(f"{name} must be [{size}], got more values")  # perhaps without end
        numbers = [_as_number(value, f"{name}[{index}]") for index, value in enumerate(values)]
        result = torch.tensor(numbers, dtype=torch.float64)
    else:
        raise _not_numbers(name, size, described(values))
    if result.shape != (size,):
        remedy = _remedy(result.shape, size)
        raise ValueError(
            f"{name} must be [{size}], got {list(result.shape)}, not one number per member{remedy}"
        )
    return result


def _of_tensor(values: Tensor, name: str, size: int) -> Tensor:
    is_dense = values.layout == torch.strided and not (values.is_meta or values.is_quantized)
    if values.is_complex() or not is_dense:
        where = "" if is_dense else f" ({values.layout}, {values.device})"
        raise _not_numbers(name, size, f"a tensor of {values.dtype}{where}")
    return values.detach().cpu().to(torch.float64, copy=True)


def _of_array(values: Any, name: str, size: int) -> Tensor:
    try:
        array = values if isinstance(values, np.ma.MaskedArray) else np.asarray(values)
    except Exception as error:  # foreign code
        raise _not_numbers(
            name, size, f"{described(values)} that NumPy cannot read ({error_text(error)})"
        ) from error
    if array.dtype.kind not in "biuf":
        raise _not_numbers(name, size, described(array))
    return torch.from_numpy(np.ma.filled(np.array(array, np.float64, order="C", subok=True), math.nan))


def _not_numbers(name: str, size: int, found: str) -> TypeError:
    return TypeError(
        f"{name} must be [{size}], got {found}: pass one real number per member, in a tensor, array or list"
    )


def _as_number(value: Any, name: str) -> float:
    """Returns a real number, or a tensor or array without dimensions, as a float.

    Raises:
        TypeError: if it is something else.
        ValueError: if it has dimensions, or float64 cannot hold it.
    """
    if isinstance(value, Tensor | np.ndarray):
        if value.ndim:
            raise ValueError(f"{name} must be a number, got the shape {list(value.shape)}")
        value = value.item()
    if not isinstance(value, Real | np.bool_):
        raise TypeError(f"{name} must be a real number, got {described(value)}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} is too large for a float64") from None


def _remedy(shape: torch.Size, size: int) -> str:
    """Returns what to do about an array of the wrong shape, if that can be said."""
    if len(shape) == 2 and shape.numel() == size:
        return f": use .squeeze({shape.index(1)})" if 1 in shape else ": use .flatten()"
    if len(shape) > 1 and shape[0] == size:
        others = ", ".join(map(str, range(1, len(shape))))
        return f": reduce it, for example by .mean(({others}))"
    return ""


def as_utilities(values: Any, members: Tensor) -> Tensor:
    """Returns the utilities that a fitness shaping returned, as float64 [M] on the CPU.

    Args:
        values: what it returned.
        members: those whose fitness it was given, int64 [M].

    Raises:
        TypeError: if these are not real numbers.
        ValueError: if there is not one finite number per member.
    """
    utilities = as_fitness(values, len(members), "the utilities that fitness_shaping returned")
    if bool((bad := failed(utilities)).any()):
        index = int(bad.nonzero()[0])
        raise ValueError(
            f"fitness_shaping returned the utility {float(utilities[index])} for member "
            f"{int(members[index])}: utilities must be finite (centered_ranks are, for any fitness)"
        )
    return utilities


def failed(fitness: Tensor) -> Tensor:
    """Returns which members have no usable return (NaN or infinite), bool [P]."""
    return ~fitness.isfinite()


def _replace_failed(fitness: Tensor) -> Tensor:
    """Returns the fitness, failed members' replaced by the worst of the others."""
    bad = failed(fitness)
    if not bad.any():
        return fitness
    worst = fitness[~bad].min() if not bad.all() else torch.zeros((), dtype=fitness.dtype)
    return torch.where(bad, worst, fitness)


def _all_equal(fitness: Tensor) -> bool:
    """Returns whether all members are equal: utilities must then be 0, not rounding errors."""
    return bool((fitness == fitness[0]).all() or failed(fitness).all())


def _share_among_ties(fitness: Tensor, by_rank: Tensor) -> Tensor:
    """Returns each member's value by rank, [P]; members of equal fitness share the mean of theirs.

    Args:
        fitness: returns [P]; failed members rank below all others.
        by_rank: value of each rank from worst to best, float64 [P].
    """
    keys = torch.where(failed(fitness), -math.inf, fitness.to(torch.float64))
    _, group, sizes = torch.unique(keys, sorted=True, return_inverse=True, return_counts=True)
    sums = torch.zeros(len(sizes), dtype=torch.float64)
    sums.index_add_(0, torch.repeat_interleave(sizes), by_rank)
    shared: Tensor = (sums / sizes)[group]
    return shared


def centered_ranks(fitness: Tensor) -> Tensor:
    """Returns ranks scaled to [-1/2, 1/2] (Salimans et al., 2017, arXiv 1703.03864), float64 [P]."""
    size = len(fitness)
    if _all_equal(fitness):
        return torch.zeros(size, dtype=torch.float64)
    ranks = _share_among_ties(fitness, torch.arange(size, dtype=torch.float64))
    return ranks / (size - 1) - 0.5


def nes(fitness: Tensor) -> Tensor:
    """Returns the utilities of natural evolution strategies, float64 [P].

    With rank i = 1 for the best, u_i = max(0, ln(P/2 + 1) - ln i) / Σ_j max(0, ln(P/2 + 1) - ln j) - 1/P
    (Wierstra, Schaul, Glasmachers, Sun, Peters and Schmidhuber, JMLR 15, 2014).
    """
    size = len(fitness)
    if _all_equal(fitness):
        return torch.zeros(size, dtype=torch.float64)
    from_worst = torch.arange(size, 0, -1, dtype=torch.float64)
    by_rank = (math.log(size / 2 + 1) - from_worst.log()).clamp(min=0.0)
    return _share_among_ties(fitness, by_rank / by_rank.sum() - 1 / size)


def _centered(fitness: Tensor) -> tuple[Tensor, float]:
    """Returns the returns minus their mean, both times a power of two that makes overflow impossible."""
    fitness = _replace_failed(fitness.to(torch.float64))
    if _all_equal(fitness):
        return torch.zeros_like(fitness), 1.0
    _, exponent = math.frexp(float(fitness.abs().max()))
    scale = 2.0 ** -max(exponent, -1000)
    fitness = fitness * scale
    return fitness - fitness.mean(), scale


def raw(fitness: Tensor) -> Tensor:
    """Returns the returns minus their mean, float64 [P].

    The mean is a baseline that removes most of the estimate's variance. Antithetic pairs cancel it anyway;
    without them it scales the estimate's expectation by (P - 1) / P.
    """
    centered, scale = _centered(fitness)
    return centered / scale


def standardized(fitness: Tensor) -> Tensor:
    """Returns the fitness minus its mean, over its standard deviation (zeros if that is 0), float64 [P]."""
    centered, _ = _centered(fitness)
    deviation = centered.square().mean().sqrt()
    return centered / deviation if deviation > 0 else centered


def tied_fraction(fitness: Tensor) -> float:
    """Returns the share of members that share their return with another; failed ones count as equal."""
    keys = torch.where(failed(fitness), -math.inf, fitness.to(torch.float64))
    _, group, sizes = torch.unique(keys, return_inverse=True, return_counts=True)
    return float((sizes[group] > 1).double().mean())


SHAPINGS: dict[FitnessShaping, Shaping] = {
    "centered_ranks": centered_ranks,
    "standardized": standardized,
    "nes": nes,
    "raw": raw,
}
"""Every fitness shaping, by its configured name."""


def as_shaping(shaping: Any) -> Shaping:
    """Returns a fitness shaping given by its name, or as a function.

    Raises:
        ValueError: if it is neither.
    """
    if not callable(shaping) and shaping not in tuple(SHAPINGS):  # in a tuple, for values without a hash
        raise ValueError(
            f"fitness_shaping {shaping!r:.80} is not one of {', '.join(SHAPINGS)}, and not a function"
        )
    found: Shaping = shaping if callable(shaping) else SHAPINGS[shaping]
    return found
