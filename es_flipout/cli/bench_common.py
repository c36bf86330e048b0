"""What the subcommands of es-bench share: their form, their options and their files."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from es_flipout.bench.plots import Picture, draw
from es_flipout.cli.arguments import UsageError
from es_flipout.run.config import Config, EnvConfig, ESConfig, EvaluationConfig, PolicyConfig


@dataclass(frozen=True)
class Report:
    """What a bench came to.

    Attributes:
        subject: what was measured, for file names: BENCH_SUBJECT.json and .png.
        body: the JSON document, all but the command and the machine.
        tables: for the terminal.
        device: torch device that took part.
    """

    subject: str
    body: dict[str, Any]
    tables: list[Table]
    device: str = "cpu"

    @property
    def stem(self) -> str:
        """File name without suffix."""
        return re.sub(r"[^\w.-]+", "-", self.subject)


@dataclass(frozen=True)
class Bench:
    """A subcommand.

    Attributes:
        name: what it is called by.
        help: one line.
        add_options: adds its own options to a parser.
        quick: its defaults under --quick, by destination.
        run: measures.
        picture: shows what a document of it, just measured or read again, says.
    """

    name: str
    help: str
    add_options: Callable[[argparse.ArgumentParser], None]
    quick: Mapping[str, object]
    run: Callable[[argparse.Namespace], Report]
    picture: Callable[[Mapping[str, Any]], Picture]

    def add_to(self, benches: Any) -> argparse.ArgumentParser:
        """Adds its parser, with the options that all benches have, and returns it."""
        parser: argparse.ArgumentParser = benches.add_parser(
            self.name, help=self.help, description=self.help, allow_abbrev=False
        )
        self.add_options(parser)
        parser.add_argument("--seed", type=int, default=0, help="of every draw (default: %(default)s)")
        parser.add_argument(
            "--quick", action="store_true", help="small sizes, done within a minute: other defaults"
        )
        parser.add_argument(
            "--out", type=Path, metavar="DIR", help="folder for a JSON file and a PNG picture of the result"
        )
        return parser


def add_timing_options(
    parser: argparse.ArgumentParser, *, rounds: int | None, seconds: float, rounds_help: str = ""
) -> None:
    """Adds --rounds and --seconds."""
    parser.add_argument(
        "--rounds",
        type=int,
        default=rounds,
        help=f"alternating rounds, each with every contestant once (default: {rounds_help or rounds})",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=seconds,
        help="least duration of a measurement (default: %(default)s)",
    )


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Adds --device and --threads of torch."""
    parser.add_argument("--device", default="cpu", help="torch device: cpu, cuda ... (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="torch threads on the CPU (default: every core)")


def add_env_options(parser: argparse.ArgumentParser, *, env: str) -> None:
    """Adds the environment, which `env` describes, and the policy that runs in it."""
    parser.add_argument("--env", default="Humanoid-v5", help=f"{env} (default: %(default)s)")
    parser.add_argument(
        "--env-kwargs", default="{}", help="its keyword arguments, as YAML: '{frame_skip: 4}'"
    )
    parser.add_argument("--slots", type=int, default=256, help="rows stepped together (default: %(default)s)")
    parser.add_argument("--population-size", type=int, help="members a generation (default: 4 x slots)")
    parser.add_argument("--hidden-sizes", type=int, nargs="*", default=[64, 64], help="of the MLP (64 64)")


def env_config(parsed: argparse.Namespace, **fields: Any) -> Config:
    """Returns the configuration that `add_env_options` asks for, with further fields of `Config`."""
    try:
        kwargs = yaml.safe_load(parsed.env_kwargs)
    except yaml.YAMLError as error:
        raise UsageError(f"--env-kwargs is not valid YAML: {error}") from error
    if not isinstance(kwargs, dict):
        raise UsageError(f"--env-kwargs must be keys and values, got {parsed.env_kwargs!r}")
    size = 4 * parsed.slots if parsed.population_size is None else parsed.population_size
    try:
        return Config(
            env=EnvConfig(parsed.env, kwargs, parsed.slots),
            policy=PolicyConfig(hidden_sizes=parsed.hidden_sizes),
            es=ESConfig(population_size=size),
            evaluation=EvaluationConfig(interval=0),
            seed=parsed.seed,
            device="cpu",  # whoever measures a GPU says so
            **fields,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def env_settings(parsed: argparse.Namespace, config: Config) -> dict[str, Any]:
    """Returns what a document says of the environment and the policy."""
    return {
        "env": parsed.env,
        "env_kwargs": config.env.kwargs,
        "slots": parsed.slots,
        "population_size": config.es.population_size,
        "hidden_sizes": config.policy.hidden_sizes,
        "seed": config.seed,
    }


def make_folder(folder: Path) -> None:
    """Makes the folder that results go to.

    Raises:
        UsageError: if that cannot be done.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out: cannot make the folder {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise UsageError(f"--out: cannot write to {folder}")


def write(folder: Path, stem: str, document: Mapping[str, Any], picture: Picture) -> list[Path]:
    """Writes the JSON document and its picture; returns their paths.

    Raises:
        UsageError: if they cannot be written.
    """
    data, drawn = folder / f"{stem}.json", folder / f"{stem}.png"
    try:
        data.write_text(json.dumps(document, indent=2) + "\n")
        draw(drawn, picture, document)
    except OSError as error:
        raise UsageError(f"--out: cannot write to {folder}: {error.strerror}") from error
    return [data, drawn]
