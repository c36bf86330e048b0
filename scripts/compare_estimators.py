"""How good each noise family's gradient estimate is: bias, variance, error and cosine, compared with theory.

python -m scripts.compare_estimators --out benchmarks/results/estimators.json --plot docs/estimators.png

First with a fitness linear in the weights, for which `predicted_error` is exact; then with a tanh network of
9,472 weights, whose gradient comes from autograd. docs/estimators.md has the derivation and the results.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from es_flipout import Flipout, Independent, LowRank, Population
from es_flipout.cli.arguments import UsageError
from es_flipout.cli.process import UsageParser, run_command
from es_flipout.parameters import trained_parameters
from es_flipout.perturbations import Perturbation
from es_flipout.run.machine import describe_machine
from es_flipout.seeding import torch_generator

FAMILIES: dict[str, Perturbation] = {
    "independent": Independent(),
    "gaussian K=1": Flipout(1, "gaussian"),
    "gaussian K=8": Flipout(8, "gaussian"),
    "rademacher K=1": Flipout(1, "rademacher"),
    "rademacher K=8": Flipout(8, "rademacher"),
    "rank 1": LowRank(1),
    "rank 4": LowRank(4),
    "rank 16": LowRank(16),
}
SMALL_SIGMA, LARGE_SIGMA = 0.02, 0.3


@dataclass(frozen=True)
class Problem:
    """A fitness whose gradient is known.

    Attributes:
        policy: the center.
        fitness: maps a population to its members' fitness [P].
        gradient: what is estimated, by parameter name.
    """

    policy: nn.Module
    fitness: Callable[[Population], Tensor]
    gradient: Mapping[str, Tensor]

    @property
    def target(self) -> Tensor:
        """The gradient as one float64 vector [d]."""
        return flat(self.gradient)


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in tensors.values()]).double()


def linear_problem(layer: nn.Linear | nn.Conv2d, offset: float = 0.0) -> Problem:
    """Returns F(W) = offset + <G, W - center>, for a layer without bias and a random G of norm 1.

    One-hot inputs read the weights: x = 1 at (i, ...) gives the outputs W[:, i, ...].
    """
    layer = layer.double()
    weight = layer.weight.detach().clone()
    gradient = torch.randn(weight.shape, dtype=torch.float64)
    gradient /= gradient.norm()
    one_hot = torch.eye(weight[0].numel(), dtype=torch.float64).view(-1, *weight.shape[1:])

    def fitness(population: Population) -> Tensor:
        outputs = population(one_hot.expand(len(population), *one_hot.shape)).flatten(2)  # [P, I..., J]
        weights = outputs.mT.view(-1, *weight.shape)
        return offset + ((weights - weight) * gradient).flatten(1).sum(1)

    return Problem(layer, fitness, {"weight": gradient})


class TanhNetwork(nn.Sequential):
    """64-64-64-20, tanh after every layer, without biases: 9,472 weights."""

    row_wise = True

    def __init__(self) -> None:
        super().__init__(
            *(nn.Linear(64, 64, bias=False), nn.Tanh()),
            *(nn.Linear(64, 64, bias=False), nn.Tanh()),
            *(nn.Linear(64, 20, bias=False), nn.Tanh()),
        )
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)


def network_loss(policy: nn.Module, weights: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    return -(torch.func.functional_call(policy, dict(weights), (x,)) - y).square().mean()


def network_problem(examples: int = 32) -> tuple[Problem, Tensor, Tensor]:
    """Returns minus the mean squared error to another such network's outputs; also the inputs and outputs."""
    policy, teacher = TanhNetwork(), TanhNetwork()
    inputs = torch.randn(examples, 64)
    outputs = teacher(inputs).detach()

    def fitness(population: Population) -> Tensor:
        # In chunks, so that the activations stay in the cache.
        chunks = torch.arange(len(population)).split(256)
        predictions = (population(inputs.expand(len(part), -1, -1), members=part) for part in chunks)
        return torch.cat([-(each - outputs).square().flatten(1).mean(1) for each in predictions])

    weights = {name: value.detach() for name, value in policy.named_parameters()}
    gradient = torch.func.grad(lambda weights: network_loss(policy, weights, inputs, outputs))(weights)
    return Problem(policy, fitness, gradient), inputs, outputs


def smoothed_gradient(
    problem: Problem, inputs: Tensor, outputs: Tensor, sigma: float, samples: int, seed: int
) -> tuple[Tensor, float]:
    """Returns the gradient of E[F(W + sigma z)] for normal z, [d], and its relative standard error.

    It is the mean of autograd's gradients at W + sigma z: far less noisy than estimates from fitness alone.
    """
    gradient = torch.func.vmap(
        torch.func.grad(lambda weights: network_loss(problem.policy, weights, inputs, outputs))
    )
    generator = torch_generator(seed, 0, "smoothing")
    total, squares = torch.zeros_like(problem.target), 0.0
    for _ in range(samples // 100):
        weights = {
            name: value.detach() + sigma * torch.randn(100, *value.shape, generator=generator)
            for name, value in trained_parameters(problem.policy).items()
        }
        gradients = torch.cat([g.flatten(1) for g in gradient(weights).values()], dim=1).double()
        total += gradients.sum(0)
        squares += float(gradients.square().sum())
    count = samples // 100 * 100
    mean = total / count
    return mean, math.sqrt((squares / count - float(mean @ mean)) / count) / float(mean.norm())


def predicted_error(
    perturbation: Perturbation,
    gradient: Mapping[str, Tensor],
    directions: int,
    offset_over_sigma: float = 0.0,
) -> float:
    """Returns E|g - G|² / |G|² for a fitness linear in the weights (docs/estimators.md has the derivation).

    Args:
        perturbation: the noise family.
        gradient: G, by parameter name.
        directions: number N of directions: members, or antithetic pairs.
        offset_over_sigma: fitness of the center over sigma; 0 for antithetic pairs, in which it cancels.
    """
    num_weights = sum(value.numel() for value in gradient.values())
    norm = float(flat(gradient).square().sum())
    error = num_weights - 1.0 + num_weights * offset_over_sigma**2 / norm
    for value in gradient.values():
        error += float(value.double().square().sum()) / norm * _excess(perturbation, value, directions)
    return error / directions


def _excess(perturbation: Perturbation, weight: Tensor, directions: int) -> float:
    """Returns the excess of one parameter: the error beyond that of independent signs in every entry."""
    if isinstance(perturbation, Flipout) and weight.ndim >= 2:
        kurtosis = 2 if perturbation.base == "gaussian" else 0  # E b⁴ - 1
        taps = weight[0, 0].numel()  # of a kernel, all with the same signs
        return kurtosis + (directions / perturbation.num_bases - 1) * (kurtosis + taps - 1)
    if isinstance(perturbation, LowRank) and weight.ndim >= 2:
        outputs, inputs = len(weight), weight[0].numel()
        return 2 + 2 * (outputs + inputs + 1) / perturbation.rank
    return 2


def estimates(
    problem: Problem,
    perturbation: Perturbation,
    population_size: int,
    sigma: float,
    *,
    antithetic: bool,
    repetitions: int,
    seed: int,
    setting: int,
) -> Tensor:
    """Returns gradient estimates from raw fitness, each from its own population, [R, d].

    `setting` is a number that keeps two settings from sharing their noise.
    """
    parameters = trained_parameters(problem.policy)
    results = []
    for repetition in range(repetitions):
        generator = torch_generator(seed, repetition, "perturbation", setting)
        noise = perturbation.sample(parameters, population_size, generator, antithetic=antithetic)
        population = Population(problem.policy, noise, sigma)
        results.append(flat(population.gradient(problem.fitness(population))))
    return torch.stack(results)


def statistics(results: Tensor, target: Tensor) -> dict[str, float]:
    """Returns statistics of R estimates [R, d], relative to the norm of the target [d].

    Returns:
        `error`: mean squared error; `variance`: total variance; `squared_bias`: an unbiased estimate, which
        may be below 0; `cosine`: mean cosine with the target. Each with its standard error, `..._se`.
    """
    count = len(results)
    errors = (results - target) / target.norm()
    centered = (errors - errors.mean(0)).square().sum(1) * count / (count - 1)
    # The mean product of the errors of two different estimates is the squared bias. Its standard error is
    # that of a U-statistic, to first order; without any bias it is too large by √2.
    products = errors @ errors.T
    others = (products.sum(1) - products.diagonal()) / (count - 1)
    values = {
        "error": errors.square().sum(1),
        "variance": centered,
        "cosine": torch.cosine_similarity(results, target.expand_as(results), dim=1),
        "squared_bias": others,
    }
    found = {}
    for name, value in values.items():
        found[name] = float(value.mean())
        found[f"{name}_se"] = float(value.std()) / math.sqrt(count) * (2 if name == "squared_bias" else 1)
    return found


class Experiment:
    """Measures one setting after the other and keeps the rows of the table."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rows: list[dict[str, Any]] = []
        self.smoothing: list[dict[str, float]] = []

    def measure(
        self,
        part: str,
        name: str,
        problem: Problem,
        perturbation: Perturbation,
        population_size: int,
        *,
        repetitions: int,
        sigma: float = 1.0,
        antithetic: bool = True,
        offset: float = 0.0,
        smoothed: Tensor | None = None,
    ) -> None:
        results = estimates(
            problem,
            perturbation,
            population_size,
            sigma,
            antithetic=antithetic,
            repetitions=repetitions,
            seed=self.seed,
            setting=len(self.rows),
        )
        directions = population_size // 2 if antithetic else population_size
        theory = predicted_error(
            perturbation, problem.gradient, directions, 0.0 if antithetic else offset / sigma
        )
        row = {
            "part": part,
            "family": name,
            "num_bases": getattr(perturbation, "num_bases", None),
            "population_size": population_size,
            "antithetic": antithetic,
            "sigma": sigma,
            "repetitions": repetitions,
            "theory": theory,
            **statistics(results, problem.target),
        }
        if smoothed is not None:
            against = statistics(results, smoothed)
            names = ("error", "cosine", "squared_bias")
            row |= {f"smoothed_{key}{se}": against[key + se] for key in names for se in ("", "_se")}
        self.rows.append(row)

    def part(self, *parts: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["part"] in parts]


def run_linear(experiment: Experiment, quick: bool) -> None:
    """Measures where the theory is exact: a linear layer and the kernel of a convolution."""
    population_size = 32 if quick else 256
    inputs, outputs = (8, 6) if quick else (24, 16)
    offset = 0.5
    settings: list[tuple[str, nn.Linear | nn.Conv2d, tuple[bool, ...], int]] = [
        ("linear layer", nn.Linear(inputs, outputs, bias=False), (False, True), 200 if quick else 2000)
    ]
    if not quick:
        settings.append(("3x3 kernel", nn.Conv2d(8, 6, 3, bias=False), (True,), 300))
    for part, layer, mirrorings, repetitions in settings:
        problem = linear_problem(layer, offset)
        for antithetic in mirrorings:
            for name, perturbation in FAMILIES.items():
                experiment.measure(
                    *(part, name, problem, perturbation, population_size),
                    repetitions=repetitions,
                    antithetic=antithetic,
                    offset=offset,
                )


def run_network(experiment: Experiment, quick: bool) -> None:
    """Measures with the tanh network: all families at two sigmas, then sweeps over N, K and sigma."""
    problem, inputs, outputs = network_problem(4 if quick else 32)
    pairs, repetitions, samples = (16, 8, 100) if quick else (512, 200, 50_000)
    for sigma in (SMALL_SIGMA, LARGE_SIGMA):
        smoothed, error = smoothed_gradient(problem, inputs, outputs, sigma, samples, experiment.seed)
        cosine = float(torch.cosine_similarity(smoothed, problem.target, dim=0))
        ratio = float(smoothed.norm() / problem.target.norm())
        experiment.smoothing.append(
            {"sigma": sigma, "cosine": cosine, "norm_ratio": ratio, "samples": samples, "relative_se": error}
        )
        print(
            f"sigma {sigma}: the smoothed gradient has cosine {cosine:.4f} with the gradient, {ratio:.4f} of "
            f"its norm (relative standard error {error:.3f})"
        )
        for name, perturbation in FAMILIES.items():
            experiment.measure(
                *("network", name, problem, perturbation, 2 * pairs),
                sigma=sigma,
                repetitions=repetitions,
                smoothed=smoothed,
            )
    swept = {name: FAMILIES[name] for name in FAMILIES if name not in ("rank 4", "rank 16")}
    for count in (8, 16) if quick else (32, 128, 512, 2048, 8192):
        for sigma in (SMALL_SIGMA, LARGE_SIGMA):
            for name, perturbation in swept.items():
                experiment.measure(
                    *("sweep N", name, problem, perturbation, 2 * count),
                    sigma=sigma,
                    repetitions=4 if quick else max(8, min(100, 10_000 // count)),
                )
    for num_bases in (1, 2) if quick else (1, 2, 4, 16, 64, 256):
        for sigma in (SMALL_SIGMA, LARGE_SIGMA):
            for base in ("gaussian", "rademacher"):
                experiment.measure(
                    *("sweep K", base, problem, Flipout(num_bases, base), 2 * pairs),
                    sigma=sigma,
                    repetitions=2 * repetitions // 5,
                )
    for sigma in (0.1,) if quick else (0.01, 0.05, 0.1, 0.2, 0.5, 1.0):
        for name, perturbation in FAMILIES.items():
            experiment.measure(
                *("sweep sigma", name, problem, perturbation, 2 * pairs),
                sigma=sigma,
                repetitions=repetitions // 4,
            )


def print_table(part: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints rows in Markdown; errors, variances and biases are divided by |gradient|²."""
    measured = ("error", "variance", "squared_bias", "cosine")
    columns = ["noise", "P", "mirrored", "sigma", "theory", *(name.replace("_", " ") for name in measured)]
    print(f"\n{part} (± standard error)\n")
    print(f"| {' | '.join(columns)} |\n| --- {'| ---: ' * (len(columns) - 1)}|")
    for row in rows:
        cells = [
            row["family"] if row["part"] != "sweep K" else f"{row['family']} K={row['num_bases']}",
            str(row["population_size"]),
            "yes" if row["antithetic"] else "no",
            f"{row['sigma']:g}",
            f"{row['theory']:.4g}",
            *(f"{row[name]:.4g} ± {row[name + '_se']:.2g}" for name in measured),
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


def plot(experiment: Experiment, path: Path) -> None:
    """Draws theory and measurement, and the sweeps."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    colors = {name: f"C{index}" for index, name in enumerate(FAMILIES)}
    figure, axes = plt.subplots(2, 3, figsize=(15, 8.4), layout="constrained")

    exact, *sweeps_n = axes[0]
    for part, marker in (("linear layer", "o"), ("3x3 kernel", "s")):
        for row in experiment.part(part):
            exact.errorbar(
                *(row["theory"], row["error"], 2 * row["error_se"]),
                marker=marker,
                color=colors[row["family"]],
                mfc=None if row["antithetic"] else "none",
                ls="none",
                label=row["family"] if part == "linear layer" and row["antithetic"] else None,
            )
    ends = [f([row["theory"] for row in experiment.part("linear layer", "3x3 kernel")]) for f in (min, max)]
    exact.plot(ends, ends, "k-", lw=0.7)
    exact.set(
        title="linear fitness: circles a linear layer (hollow: not\nmirrored), squares a 3x3 kernel",
        xlabel="relative squared error by theory",
        ylabel="measured (± 2 standard errors)",
        xscale="log",
        yscale="log",
    )

    def draw(axis: Any, rows: Sequence[Mapping[str, Any]], x: str, y: str) -> None:
        for name in dict.fromkeys(row["family"] for row in rows):
            line = sorted((row for row in rows if row["family"] == name), key=lambda row: row[x])
            axis.errorbar(
                [row[x] / 2 if x == "population_size" else row[x] for row in line],
                [row[y] for row in line],
                [2 * row[f"{y}_se"] for row in line],
                marker=".",
                color=colors.get(name) or colors[f"{name} K=1"],
                label=name,
            )

    for column, sigma in enumerate((SMALL_SIGMA, LARGE_SIGMA)):
        by_n, by_k = sweeps_n[column], axes[1, column]
        at_sigma = [row for row in experiment.rows if row["sigma"] == sigma]
        draw(by_n, [row for row in at_sigma if row["part"] == "sweep N"], "population_size", "error")
        by_n.set(title=f"tanh network, sigma {sigma}", xlabel="mirrored pairs N", xscale="log", yscale="log")
        draw(by_k, [row for row in at_sigma if row["part"] == "sweep K"], "num_bases", "error")
        independent = next(row["error"] for row in at_sigma if row["family"] == "independent")
        by_k.axhline(independent, color=colors["independent"], label="independent")
        by_k.set(title=f"tanh network, sigma {sigma}", xlabel="bases K", xscale="log")
        by_k.set_ylim(0.9 * independent, 1.2 * independent)
    draw(axes[1, 2], experiment.part("network", "sweep sigma"), "sigma", "cosine")
    axes[1, 2].set(title="tanh network", xlabel="sigma", xscale="log", ylabel="cosine with the gradient")
    for axis in (*sweeps_n, *axes[1, :2]):
        axis.set_ylabel("relative squared error")
    for axis in axes.flat:
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command("compare_estimators", run, arguments)


def run(arguments: Sequence[str]) -> int:
    parser = UsageParser(prog="compare_estimators", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="small sizes and coarse figures, within seconds")
    parser.add_argument("--seed", type=int, default=0, help="of problems and noise (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file for all rows")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="PNG file for the figure")
    parsed = parser.parse_args(arguments)
    if parsed.seed < 0:
        raise UsageError(f"--seed must be >= 0, got {parsed.seed}")
    for option in ("out", "plot"):
        path = getattr(parsed, option)
        if path is not None and not path.absolute().parent.is_dir():
            raise UsageError(f"--{option}: the folder {path.parent} does not exist")
    torch.set_num_threads(1)
    torch.manual_seed(parsed.seed)
    experiment = Experiment(parsed.seed)
    for measure in (run_linear, run_network):
        before = len(experiment.rows)
        measure(experiment, parsed.quick)
        for part in dict.fromkeys(row["part"] for row in experiment.rows[before:]):
            print_table(part, experiment.part(part))
    if parsed.out:
        result = {
            "command": shlex.join(["python", "-m", "scripts.compare_estimators", *arguments]),
            "seed": parsed.seed,
            "smoothing": experiment.smoothing,
            "rows": experiment.rows,
            "machine": describe_machine(),
        }
        parsed.out.write_text(json.dumps(result, indent=2) + "\n")
    if parsed.plot:
        plot(experiment, parsed.plot)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
