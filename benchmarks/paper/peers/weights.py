r"""Whether every library's flipout layers are weight perturbations, and of which distribution; see `check`.

python -m benchmarks.paper.peers.weights --environments PEERS \
    --json benchmarks/results/paper_peers_weights.json
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.paper.peers import check
from benchmarks.paper.peers.contestants import CONTESTANTS, running, settings
from benchmarks.speed.tables import markdown
from es_flipout.cli.option_types import COUNT, SEED
from es_flipout.cli.process import UsageParser, run_command
from es_flipout.cli.results import Results

PROGRAM = "benchmarks.paper.peers.weights"
CHECKED = {name: each for name, each in CONTESTANTS.items() if "XLA" not in name}
LAYERS = {
    "linear": f"linear, {check.POSITIONS} positions",
    "reused": f"linear, called {check.CALLS} times",
    "conv": "convolution",
    "lstm": f"LSTM, {check.POSITIONS} time steps",
}
NONE = "-"


def main(words: Sequence[str] | None = None) -> int:
    """Checks, prints a table and returns the exit status."""
    return run_command(PROGRAM, _check, words)


def _check(words: Sequence[str]) -> int:
    parser = UsageParser(prog=PROGRAM, description=__doc__, allow_abbrev=False)
    option = parser.add_argument
    option("--environments", type=Path, metavar="DIR", help="folder of the libraries' environments")
    option("--contestants", nargs="+", choices=list(CHECKED), default=list(CHECKED))
    option("--seeds", nargs="+", type=SEED, default=[0, 1, 2], help="of weights, inputs and noise")
    option("--draws", type=COUNT, default=500, help="forwards for mean, deviation and correlation")
    option("--json", type=Path, metavar="FILE", help="file for the results")
    option("--quick", action="store_true", help="one seed, few draws, for the tests")
    options = parser.parse_args(words)
    if options.quick:
        options.seeds, options.draws = [0], 20
    results = Results(settings(PROGRAM, list(words), {}))
    results.settings |= _facts(options)
    some = {name: CHECKED[name] for name in options.contestants}
    with running(some, options.environments, threads=1) as processes:
        for name, process in processes.items():
            results.settings["versions"][name] = process.ask("versions")
            for seed in options.seeds:
                for layer, figures in process.ask("check", seed=seed, draws=options.draws).items():
                    results.add(seed, name, figures, layer=layer)
                if options.json:
                    results.write(options.json)
    print(table(results))
    return 0


def _facts(options: argparse.Namespace) -> dict[str, object]:
    sizes = {"examples": check.EXAMPLES, "sigma": check.SIGMA}
    return {"seeds": options.seeds, "draws": options.draws, **sizes}


def table(results: Results) -> str:
    """Returns medians over seeds as Markdown: the residual, and mean and deviation over the declared ones."""
    heads = ["", "layer", "residual", "mean", "standard deviation", "correlation of examples"]
    rows = []
    for name in results.column("contestant"):
        for layer, label in LAYERS.items():
            case = results.where(contestant=name, layer=layer)
            cells = [NONE] * 4
            if case.rows:
                found = {
                    metric: statistics.median(case.by_round(name, metric).values())
                    for metric in case.column("metric")
                }
                rest = (f"{found[metric]:.2f}" for metric in ("mean", "std", "correlation"))
                cells = [_residual(found["residual"]), *rest]
            rows.append([name, label, *cells])
    return markdown(heads, rows)


def _residual(value: float) -> str:
    return f"{value:.0e}" if value < 1e-3 else f"{value:.2f}"


if __name__ == "__main__":
    sys.exit(main())
