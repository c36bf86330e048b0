"""Trains image classifiers with evolution strategies alone and compares noise families.

python -m examples.supervised_es --model fc --plot docs/supervised_fc.png
python -m examples.supervised_es --model conv --data ~/mnist

As in the flipout paper (arXiv 1803.04386, section 5 and figure 2): the error of the unperturbed network on
held-out images over generations. Every noise family gets the same samples, the same mini-batches and the same
initial weights. Without --data, a folder with MNIST's four files, it uses
scikit-learn's 8x8 digits.
"""

from __future__ import annotations

import json
import shlex
import statistics
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from es_flipout import Flipout, FlipoutES, Independent, LowRank, Population
from es_flipout.cli.arguments import UsageError
from es_flipout.cli.process import UsageParser, run_command
from es_flipout.perturbations import Perturbation
from es_flipout.run.machine import describe_machine
from es_flipout.seeding import torch_generator
from examples.images import NUM_CLASSES, Images, load_digits, load_mnist

NOISE: dict[str, Perturbation] = {
    "flipout": Flipout(),
    "flipout-8": Flipout(num_bases=8),
    "flipout-gaussian": Flipout(base="gaussian"),
    "independent": Independent(),
    "low-rank": LowRank(1),
    "low-rank-4": LowRank(4),
}
COMPARED = ["flipout", "independent", "low-rank"]
IMAGES_AT_ONCE = 2048
"""Images per forward: members are evaluated in parts, so that memory does not grow with the population."""


def fully_connected(side: int) -> nn.Module:
    """A 512-512-10 network for images of side x side pixels."""
    return nn.Sequential(
        nn.Flatten(),
        *(nn.Linear(side**2, 512), nn.ReLU()),
        *(nn.Linear(512, 512), nn.ReLU()),
        nn.Linear(512, NUM_CLASSES),
    )


def convolutional(side: int) -> nn.Module:
    """5x5x32, pool, 5x5x64, pool, 512, 10; padded, so that 8x8 pixels are enough (8, 4, 2)."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * (side // 4) ** 2, 512), nn.ReLU()),
        nn.Linear(512, NUM_CLASSES),
    )


MODELS = {"fc": fully_connected, "conv": convolutional}


def evaluate(population: Population, x: Tensor, y: Tensor) -> Tensor:
    """Returns minus the mean cross-entropy of each member.

    Args:
        population: P members.
        x: images [P, B, 1, side, side], one mini-batch per member.
        y: labels [P, B].
    """
    members = torch.arange(len(population)).split(max(1, IMAGES_AT_ONCE // x.shape[1]))
    losses = []
    for part in members:
        logits = population(x[part], members=part)  # [M, B, classes]
        losses.append(F.cross_entropy(logits.flatten(0, 1), y[part].flatten(), reduction="none"))
    return -torch.cat(losses).view(y.shape).mean(dim=1)


def draw_examples(images: Images, options: Namespace, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns every member's mini-batch: one for all members, or one per antithetic pair."""
    shape = (1 if options.examples == "shared" else options.population_size // 2, options.batch_size)
    indices = torch.randint(len(images.y), shape, generator=generator)
    indices = indices.repeat_interleave(options.population_size // len(indices), dim=0)
    return images.x[indices], images.y[indices]


def error_rate(policy: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        predictions = torch.cat([policy(part).argmax(dim=1) for part in x.split(IMAGES_AT_ONCE)])
    return float((predictions != y).double().mean())


def train(images: Images, noise: str, seed: int, options: Namespace) -> dict[str, Any]:
    """Trains one network and returns its error curve on held-out images."""
    torch.manual_seed(seed)
    policy = MODELS[options.model](images.x.shape[-1])
    es = FlipoutES(
        policy,
        population_size=options.population_size,
        sigma=options.sigma,
        optimizer=torch.optim.Adam(policy.parameters(), lr=options.lr),
        perturbation=NOISE[noise],
        seed=seed,
    )
    curve = {"generation": [0], "error": [error_rate(policy, images.held_out_x, images.held_out_y)]}
    start = time.perf_counter()
    for generation in range(1, options.generations + 1):
        population = es.ask()
        fitness = evaluate(
            population, *draw_examples(images, options, torch_generator(seed, generation, "examples"))
        )
        if options.examples == "fresh":
            # Some mini-batches are harder than others, so members are compared only within their pair.
            fitness = fitness - fitness.view(-1, 2).mean(dim=1).repeat_interleave(2)
        es.tell(fitness)
        if generation % options.interval == 0 or generation == options.generations:
            curve["generation"].append(generation)
            curve["error"].append(error_rate(policy, images.held_out_x, images.held_out_y))
    seconds = time.perf_counter() - start
    return {"noise": noise, "seed": seed, **curve, "seconds": seconds}


def plot(result: dict[str, Any], path: Path) -> None:
    """Draws the mean error curve of every noise family and its range over seeds."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    for noise in dict.fromkeys(run["noise"] for run in result["runs"]):
        runs = [run for run in result["runs"] if run["noise"] == noise]
        curves = 100 * torch.tensor([run["error"] for run in runs])
        generations = runs[0]["generation"]
        (line,) = axis.plot(generations, curves.mean(dim=0), label=noise)
        axis.fill_between(generations, curves.amin(0), curves.amax(0), color=line.get_color(), alpha=0.2)
    options = result["options"]
    axis.set(
        title=f"{options['model']}, {result['data']}, {options['population_size']} members, "
        f"{options['batch_size']} images each\n(mean and range of {len(options['seeds'])} seeds)",
        xlabel="generation",
        ylabel="held-out error of the center, %",
        yscale="log",
    )
    axis.grid(alpha=0.3, which="both")
    axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def summary(values: Sequence[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):5.2f} ± {spread:.2f}"


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command("supervised_es", run, arguments)


def parse(arguments: Sequence[str]) -> Namespace:
    parser = UsageParser(prog="supervised_es", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="with MNIST's four IDX files, or .gz")
    parser.add_argument("--model", choices=list(MODELS), default="fc", help="(default: %(default)s)")
    parser.add_argument(
        "--noise", nargs="+", choices=list(NOISE), default=COMPARED, metavar="NOISE", help=", ".join(NOISE)
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="S")
    parser.add_argument("--generations", type=int, default=300, help="(default: %(default)s)")
    parser.add_argument("--population-size", type=int, default=256, help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="images per member (default: %(default)s)")
    parser.add_argument(
        "--examples",
        choices=["fresh", "shared"],
        default="fresh",
        help="mini-batches: one per antithetic pair, or one for all members (default: %(default)s)",
    )
    parser.add_argument("--sigma", type=float, default=0.02, help="(default: %(default)s)")
    parser.add_argument("--lr", type=float, default=0.005, help="of Adam (default: %(default)s)")
    parser.add_argument("--interval", type=int, default=10, help="generations between measurements")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file for the curves")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="PNG file for the figure")
    options = parser.parse_args(arguments)
    for name in ("generations", "population_size", "batch_size", "interval", "threads", "sigma", "lr"):
        if not getattr(options, name) > 0:
            raise UsageError(f"--{name.replace('_', '-')} must be > 0, got {getattr(options, name)}")
    if min(options.seeds) < 0:
        raise UsageError(f"--seeds must be >= 0, got {min(options.seeds)}")
    for option in ("out", "plot"):
        path = getattr(options, option)
        if path is not None and not path.absolute().parent.is_dir():
            raise UsageError(f"--{option}: the folder {path.parent} does not exist")
    return options


def run(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    runs = []
    try:
        images = load_mnist(options.data) if options.data else load_digits()
        for seed in options.seeds:
            for noise in options.noise:
                runs.append(train(images, noise, seed, options))
                print(
                    f"seed {seed}  {noise:16}  held-out error {100 * runs[-1]['error'][-1]:5.2f} %  "
                    f"{runs[-1]['seconds']:.0f} s",
                    flush=True,
                )
    except ValueError as error:
        raise UsageError(str(error)) from error
    print(
        "\nheld-out error in %, mean ± standard deviation over seeds: at the end; over the curve's last half"
    )
    for noise in options.noise:
        curves = [run["error"] for run in runs if run["noise"] == noise]
        ends = [100 * curve[-1] for curve in curves]
        halves = [100 * statistics.mean(curve[len(curve) // 2 :]) for curve in curves]
        print(f"{noise:16}  {summary(ends)}   {summary(halves)}")
    result = {
        "command": shlex.join(["python", "-m", "examples.supervised_es", *arguments]),
        "data": images.name,
        "options": {k: v for k, v in vars(options).items() if k not in ("data", "out", "plot")},
        "runs": runs,
        "machine": describe_machine(),
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    if options.plot:
        plot(result, options.plot)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
