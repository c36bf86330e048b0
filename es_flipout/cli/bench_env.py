"""es-bench env: how fast an environment is stepped, by whom."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from es_flipout.bench.env import RATIOS, measure_env
from es_flipout.bench.plots import Bars, Picture
from es_flipout.bench.report import Spread, compared, spreads
from es_flipout.bench.timing import torch_threads
from es_flipout.cli.arguments import UsageError
from es_flipout.cli.bench_common import (
    Bench,
    Report,
    add_env_options,
    add_timing_options,
    env_config,
    env_settings,
)
from es_flipout.cli.bench_display import Bar, figures_table, ratios_table
from es_flipout.cli.process import silence_mujoco


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_env_options(parser, env="a native task")
    parser.add_argument("--threads", type=int, help="physics threads (default: every core)")
    add_timing_options(parser, rounds=3, seconds=5.0)


def _run(parsed: argparse.Namespace) -> Report:
    config = env_config(parsed, threads=parsed.threads)
    silence_mujoco()
    title = _title(parsed.env, parsed.slots, parsed.rounds)
    with torch_threads(1), Bar(title) as bar:  # one thread, as es-train has it
        try:
            rounds = measure_env(config, seconds=parsed.seconds, rounds=parsed.rounds, watch=bar.subject())
        except ValueError as error:
            raise UsageError(str(error)) from error
    return Report(
        subject=f"env_{parsed.env}",
        body={**env_settings(parsed, config), **compared(rounds, RATIOS)},
        tables=[figures_table(f"{title}: live env steps/s", rounds), ratios_table(rounds, RATIOS)],
    )


def _picture(document: Mapping[str, Any]) -> Picture:
    rounds = document["rounds"]
    ratios = {name: Spread.of(values) for name, values in document["ratios"].items()}
    return Picture(
        _title(document["env"], document["slots"], len(rounds)),
        [Bars("live env steps/s", spreads(rounds)), Bars("ratio within a round", ratios)],
    )


def _title(env: str, slots: int, rounds: int) -> str:
    return f"{env}, {slots} slots, {rounds} rounds"


BENCH = Bench(
    name="env",
    help="raw physics, native environment, Gymnasium's vector environments, training loop",
    add_options=_add_options,
    quick={"slots": 64, "population_size": 64, "rounds": 2, "seconds": 0.5},
    run=_run,
    picture=_picture,
)
