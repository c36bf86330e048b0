"""es-bench: how fast this machine is, with the contestants side by side in one run."""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table

from es_flipout.bench.env import RATIOS, measure_env
from es_flipout.bench.machine import describe_machine
from es_flipout.cli.arguments import UsageError
from es_flipout.cli.process import UsageParser, run_command, silence_mujoco
from es_flipout.config import Config, EnvConfig, ESConfig, EvaluationConfig, PolicyConfig


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `es-bench` and returns its exit status."""
    return run_command("es-bench", _bench, arguments)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = UsageParser(prog="es-bench", description=__doc__, allow_abbrev=False)
    benches = parser.add_subparsers(dest="bench", required=True, metavar="BENCH")
    env = benches.add_parser(
        "env",
        help="raw physics, native environment, Gymnasium's vector environments, training loop",
        allow_abbrev=False,
    )
    env.add_argument("--env", default="Humanoid-v5", help="a native task (default: %(default)s)")
    env.add_argument("--env-kwargs", default="{}", help="its keyword arguments, as YAML: '{frame_skip: 4}'")
    env.add_argument("--slots", type=int, default=256, help="rows stepped together (default: %(default)s)")
    env.add_argument("--population-size", type=int, help="of the training loop (default: 4 x slots)")
    env.add_argument("--hidden-sizes", type=int, nargs="*", default=[64, 64], help="of its MLP (64 64)")
    env.add_argument("--threads", type=int, help="physics threads (default: every core)")
    env.add_argument("--rounds", type=int, default=3, help="alternating rounds (default: %(default)s)")
    env.add_argument(
        "--seconds", type=float, default=5.0, help="least duration of a measurement (default: %(default)s)"
    )
    env.add_argument("--out", type=Path, help="JSON file for the result")
    parsed = parser.parse_args(arguments)
    if parsed.rounds < 1:
        raise UsageError(f"--rounds must be >= 1, got {parsed.rounds}")
    if not parsed.seconds > 0:
        raise UsageError(f"--seconds must be > 0, got {parsed.seconds}")
    if parsed.out is not None and not parsed.out.absolute().parent.is_dir():
        raise UsageError(f"--out: the folder {parsed.out.parent} does not exist")
    return parsed


def _config(parsed: argparse.Namespace) -> Config:
    try:
        kwargs = yaml.safe_load(parsed.env_kwargs)
    except yaml.YAMLError as error:
        raise UsageError(f"--env-kwargs is not valid YAML: {error}") from error
    if not isinstance(kwargs, dict):
        raise UsageError(f"--env-kwargs must be keys and values, got {parsed.env_kwargs!r}")
    try:
        return Config(
            env=EnvConfig(parsed.env, kwargs, parsed.slots),
            policy=PolicyConfig(hidden_sizes=parsed.hidden_sizes),
            es=ESConfig(
                population_size=(
                    4 * parsed.slots if parsed.population_size is None else parsed.population_size
                )
            ),
            evaluation=EvaluationConfig(interval=0),
            threads=parsed.threads,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def _bench(arguments: Sequence[str]) -> int:
    parsed = _parse(arguments)
    config = _config(parsed)
    torch.set_num_threads(1)  # as es-train does
    silence_mujoco()
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{parsed.env}, {parsed.slots} slots, {parsed.rounds} rounds; live env steps/s")

    def show(rates: dict[str, float]) -> None:
        console.print("  ".join(f"{name} {rate:,.0f}" for name, rate in rates.items()))

    try:
        rounds = measure_env(config, seconds=parsed.seconds, rounds=parsed.rounds, on_round=show)
    except ValueError as error:
        raise UsageError(str(error)) from error
    console.print(_rates_table(rounds))
    ratios = {name: [ratio(rates) for rates in rounds] for name, ratio in RATIOS.items()}
    console.print(_ratios_table(ratios))
    if parsed.out is not None:
        result = _result(shlex.join(["es-bench", *arguments]), parsed, config, rounds, ratios)
        parsed.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def _rates_table(rounds: Sequence[dict[str, float]]) -> Table:
    table = Table("contestant", "median", "lowest", "highest", title="live env steps/s")
    for name in rounds[0]:
        rates = [rates[name] for rates in rounds]
        table.add_row(name, *(f"{rate:,.0f}" for rate in (statistics.median(rates), min(rates), max(rates))))
    return table


def _ratios_table(ratios: dict[str, list[float]]) -> Table:
    table = Table("ratio", "median", "by round", title="ratios within a round")
    for name, values in ratios.items():
        by_round = ", ".join(f"{value:.3f}" for value in values)
        table.add_row(name, f"{statistics.median(values):.3f}", by_round)
    return table


def _result(
    command: str,
    parsed: argparse.Namespace,
    config: Config,
    rounds: Sequence[dict[str, float]],
    ratios: dict[str, list[float]],
) -> dict[str, Any]:
    return {
        "command": command,
        "env": parsed.env,
        "env_kwargs": config.env.kwargs,
        "slots": parsed.slots,
        "population_size": config.es.population_size,
        "hidden_sizes": config.policy.hidden_sizes,
        "seed": config.seed,
        "median_ratios": {name: statistics.median(values) for name, values in ratios.items()},
        "ratios": ratios,
        "rounds": list(rounds),
        "machine": describe_machine(),
    }
