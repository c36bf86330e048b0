"""From a YAML file and the command line to a checked `Config`; every mistake becomes one line."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from jsonargparse import (  # type: ignore[attr-defined]
    ActionConfigFile,
    ArgumentParser,
    DefaultHelpFormatter,
    set_dumper,
    set_loader,
    set_parsing_settings,
)
from typing_extensions import override

from es_flipout.cli import completion
from es_flipout.cli.config_file import (
    UsageError,
    check_keys,
    read_config_file,
    read_yaml,
    sections,
    suggestion,
)
from es_flipout.cli.shipped import find_config, shipped_names
from es_flipout.cli.yaml_values import dump_marked, load_marked, unmarked
from es_flipout.run import yaml_text
from es_flipout.run.config import Config
from es_flipout.run.migration import migrate_arguments

__all__ = ["RESUME_OPTIONS", "ParserExit", "TrainArguments", "UsageError", "load_config", "parse_train"]

RESUME_OPTIONS = ("generations", "max_env_steps", "threads", "device", "rank_timeout", "logging")
"""What may be changed when a run is resumed: its budget, its speed, its logging."""
AUTO = "auto"
"""Value of --resume that continues the run at --out if there is one, and begins it if not."""


@dataclass(frozen=True)
class TrainArguments:
    """What `es-train` was asked for: a new run, or the run at `resume` with its own configuration.

    Attributes:
        config: of the run.
        resume: the run directory; None for a new run.
        keeps_device: whether the device is the one that the run has stored.
        is_auto: whether a run that has begun at `config.out` is to be continued.
    """

    config: Config
    resume: Path | None
    keeps_device: bool = False
    is_auto: bool = False


class ParserExit(SystemExit):
    """A parser has done what was asked for, such as --help. Any other `SystemExit` is of a user's code."""


class _Parser(ArgumentParser):
    """A parser that raises instead of printing usage and exiting."""

    @override
    def error(self, message: str, *_: Any) -> NoReturn:
        raise UsageError(message)

    @override
    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise ParserExit(status)


class _HelpFormatter(DefaultHelpFormatter):
    """Help without the types that choices tell already."""

    @override
    def _get_type_str(self, action: argparse.Action) -> str | None:
        text = super()._get_type_str(action)
        return None if text is None or text == "bool" or text.startswith("Literal") else text


def parse_train(arguments: Sequence[str]) -> TrainArguments:
    """Parses the arguments of `es-train`.

    Raises:
        UsageError: if they, or the configuration file, are not valid.
        SystemExit: with status 0, after --help, --print_config or --print_completion.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--config")
    early.add_argument("--resume")
    early.add_argument(completion.OPTION, choices=completion.SHELLS)
    try:
        known, overrides = early.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UsageError(str(error)) from error
    if known.print_completion is not None:
        print(completion.train_completion(_config_parser(), known.print_completion))
        raise ParserExit(0)
    for option in ("--config", "--resume"):
        if sum(argument.split("=")[0] == option for argument in arguments) > 1:
            raise UsageError(f"{option} is given more than once")
    overrides = migrate_arguments(overrides)
    overrides = [re.sub(r"^--engine(?==|$)", "--env.engine", each) for each in overrides]
    path: Path | None
    if known.resume is not None and known.resume != AUTO:
        if known.config is not None:
            raise UsageError("--resume uses the run's own configuration; omit --config")
        _check_resume_overrides(overrides)
        path = Path(known.resume) / "config.yaml"
        if not path.is_file():
            raise UsageError(f"{known.resume} is not a run directory: it has no config.yaml")
        config, stored = load_config(path, overrides), load_config(path)
        check_resumed_schedules(config, stored)
        keeps_device = not any(re.match(r"--device(=|$)", each) for each in overrides)
        config = replace(config, device=stored.device).on_device(config.device)
        return TrainArguments(config, Path(known.resume), keeps_device)
    try:
        path = find_config(known.config) if known.config is not None else None
    except ValueError as error:
        raise UsageError(str(error)) from error
    return TrainArguments(load_config(path, overrides), None, is_auto=known.resume == AUTO)


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Builds the configuration from defaults, a YAML file and command-line overrides, in this order.

    The file may be one of an earlier version.

    Raises:
        UsageError: if any of them is not valid.
    """
    # The file goes first: an override wins wherever --config stands on the command line.
    arguments = list(overrides)
    _check_section_options(overrides)
    if path is not None:
        arguments = ["--config", yaml_text.dump(read_config_file(path)), *arguments]
    parser = _config_parser()
    try:
        values = parser.instantiate(parser.parse_args(arguments))
        return Config(**{field.name: unmarked(values[field.name]) for field in dataclasses.fields(Config)})
    except ValueError as error:
        raise UsageError(_one_line(str(error))) from error


def _config_parser() -> _Parser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    set_loader("yaml", load_marked, exceptions=(ValueError,))
    set_dumper("yaml", dump_marked)
    names = ", ".join(name.removesuffix(".yaml") for name in shipped_names())
    parser = _Parser(
        prog="es-train",
        usage="es-train --config NAME [--OPTION VALUE ...]\n       es-train --resume RUN",
        description="Train a policy by evolution strategies. Options win over the configuration file.",
        epilog="--engine is short for --env.engine. Options that may be changed when a run is resumed: "
        f"{', '.join(RESUME_OPTIONS)}.",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
        default_env=False,
    )
    parser.add_argument(
        "--config",
        metavar="NAME",
        action=ActionConfigFile,
        help=f"YAML file, or the name of a shipped configuration: {names}.",
    )
    parser.add_argument(
        "--resume",
        metavar="RUN",
        default=argparse.SUPPRESS,
        help="Run directory to continue, exactly as if the run had not been stopped; auto: the one at --out, "
        "if the run has begun there.",
    )
    parser.add_argument(
        completion.OPTION, choices=completion.SHELLS, default=argparse.SUPPRESS, help=completion.HELP
    )
    parser.add_class_arguments(Config, as_group=True)
    return parser


def _one_line(message: str) -> str:
    """Returns a parser's message on one line, in terms of the configuration."""
    message = " ".join(message.split()).removeprefix('Parser key "config": ')
    message = message.replace("a string or stream input is required", "must not be in quotes")  # PyYAML's
    if match := re.match(r"unrecognized arguments: --([\w.]+)", message, re.IGNORECASE):
        return f"unknown option --{match[1]}{suggestion(match[1], list(_option_names(Config)))}"
    if match := re.match(
        r"Parser key \"([^\"]+)\": .*Expected a typing.Literal\[(.*?)\].*NoneType.*Given value: (.*)", message
    ):
        return f"{match[1]} must be one of {match[2]} or null, got {match[3]}"
    if match := re.match(
        r"Parser key \"([^\"]+)\": .*Expected a <class .*(?:Got|Given) value: (.*)", message
    ):
        kinds = dict.fromkeys(re.findall(r"Expected a <class '(\w+)'>", message))
        allowed = " or ".join(kinds).replace("NoneType", "null")
        return f"{match[1]} must be {allowed}, got {match[2]}"
    if match := re.match(
        r"Parser key \"([^\"]+)\": Expected a typing.Literal\[(.*)\]. Got value: (.*)", message
    ):
        return f"{match[1]} must be one of {match[2]}, got {match[3]}"
    return re.sub(r"^Parser key \"([^\"]+)\":", r"\1:", message)


def _option_names(section: type, prefix: str = "") -> Iterator[str]:
    inner = sections(section)
    for name in get_type_hints(section):
        if name in inner:
            yield from _option_names(inner[name], f"{prefix}{name}.")
        else:
            yield prefix + name


def _check_section_options(overrides: Sequence[str]) -> None:
    """Checks whole sections given as options, `--es FILE` or `--es '{sigma: 0.1}'`, as strictly as a file."""
    options = {f"--{name}": kind for name, kind in sections(Config).items()}
    words = [word for each in overrides for word in each.split("=", 1)]
    for option, value in itertools.pairwise(words):
        if option in options:
            file = Path(value)
            text = file.read_text if file.is_file() else partial(str, value)
            check_keys(read_yaml(text, option), options[option], option, f"{option[2:]}.")


def check_resumed_schedules(config: Config, original: Config) -> None:
    """Checks that a run with a schedule keeps its budget.

    Raises:
        UsageError: if it does not.
    """
    budgets = [(each.generations, each.max_env_steps) for each in (config, original)]
    kinds = {config.es.sigma_schedule.kind, config.optimizer.lr_schedule.kind}
    if kinds != {"constant"} and budgets[0] != budgets[1]:
        raise UsageError("the budget of a run with a schedule cannot be changed: the schedule depends on it")


def _check_resume_overrides(overrides: Sequence[str]) -> None:
    for argument in overrides:
        if not argument.startswith("--") or argument in ("--help", "--print_config"):
            continue
        name = argument[2:].split("=")[0]
        if name.split(".")[0] not in RESUME_OPTIONS:
            raise UsageError(
                f"--{name} cannot be changed when a run is resumed (allowed: {', '.join(RESUME_OPTIONS)})"
            )
