"""From the command line and a YAML file to a checked `Config`; every mistake becomes one line."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import itertools
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

import yaml
from jsonargparse import (  # type: ignore[attr-defined]
    ActionConfigFile,
    ArgumentParser,
    set_parsing_settings,
)

from es_flipout.cli.shipped import find_config
from es_flipout.run.config import Config

RESUME_OPTIONS = ("generations", "max_env_steps", "threads", "logging")
"""What may be changed when a run is resumed: its budget, its speed, its logging."""


class UsageError(ValueError):
    """The user asked for something that cannot be done; the message is one line."""


@dataclass(frozen=True)
class TrainArguments:
    """What `es-train` was asked for: a new run, or the run at `resume` with its own configuration."""

    config: Config
    resume: Path | None


class _Parser(ArgumentParser):
    """A parser that raises instead of printing usage and exiting."""

    def error(self, message: str, *_: Any) -> NoReturn:
        raise UsageError(message)


def parse_train(arguments: Sequence[str]) -> TrainArguments:
    """Parses the arguments of `es-train`.

    Raises:
        UsageError: if they, or the configuration file, are not valid.
        SystemExit: with status 0, after --help or --print_config.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--config")
    early.add_argument("--resume")
    try:
        known, overrides = early.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UsageError(str(error)) from error
    for option in ("--config", "--resume"):
        if sum(argument.split("=")[0] == option for argument in arguments) > 1:
            raise UsageError(f"{option} is given more than once")
    overrides = [re.sub(r"^--engine(?==|$)", "--env.engine", each) for each in overrides]
    path: Path | None
    if known.resume is not None:
        if known.config is not None:
            raise UsageError("--resume continues a run with its own configuration; leave --config out")
        _check_resume_overrides(overrides)
        path = Path(known.resume) / "config.yaml"
        if not path.is_file():
            raise UsageError(f"{known.resume} is not a run directory: it has no config.yaml")
        config = load_config(path, overrides)
        _check_resumed_schedules(config, load_config(path))
        return TrainArguments(config, Path(known.resume))
    try:
        path = find_config(known.config) if known.config is not None else None
    except ValueError as error:
        raise UsageError(str(error)) from error
    return TrainArguments(load_config(path, overrides), None)


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Builds the configuration from defaults, a YAML file and command-line overrides, in this order.

    Raises:
        UsageError: if any of them is not valid.
    """
    # The file goes first: an override wins wherever --config stood on the command line.
    arguments = list(overrides)
    _check_section_options(overrides)
    if path is not None:
        _check_keys(_read_yaml(path.read_text, path), Config, path)
        arguments = ["--config", str(path), *arguments]
    parser = _config_parser()
    try:
        values = parser.instantiate(parser.parse_args(arguments))
        return Config(**{field.name: values[field.name] for field in dataclasses.fields(Config)})
    except ValueError as error:
        raise UsageError(_one_line(str(error))) from error


def _config_parser() -> _Parser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = _Parser(
        prog="es-train",
        description="Train a policy by evolution strategies.",
        epilog="--engine is short for --env.engine. "
        "A run that was stopped continues exactly with: es-train --resume RUN "
        f"(only these may be changed then: {', '.join(RESUME_OPTIONS)}).",
        allow_abbrev=False,
        default_env=False,
    )
    parser.add_argument(
        "--config",
        action=ActionConfigFile,
        help="YAML file, or the name of a shipped configuration.",
    )
    parser.add_argument(
        "--resume", metavar="RUN", default=argparse.SUPPRESS, help="Run directory to continue exactly."
    )
    parser.add_class_arguments(Config, as_group=False)
    return parser


def _one_line(message: str) -> str:
    """Returns a parser's message on one line, in the words of the configuration."""
    message = " ".join(message.split())
    if match := re.match(r"unrecognized arguments: --([\w.]+)", message, re.IGNORECASE):
        return f"unknown option --{match[1]}{_suggestion(match[1], list(_option_names(Config)))}"
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


def _suggestion(name: str, allowed: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, allowed, n=1)
    return f"; did you mean {close[0]}?" if close else f" (allowed: {', '.join(allowed)})"


def _field_types(section: type) -> dict[str, Any]:
    return get_type_hints(section)


def _sections(section: type) -> dict[str, type]:
    """Returns the sections that a section holds, by name."""
    return {
        name: kind
        for name, kind in _field_types(section).items()
        if dataclasses.is_dataclass(kind) and isinstance(kind, type)
    }


def _option_names(section: type, prefix: str = "") -> Iterator[str]:
    sections = _sections(section)
    for name in _field_types(section):
        if name in sections:
            yield from _option_names(sections[name], f"{prefix}{name}.")
        else:
            yield prefix + name


def _check_keys(content: object, section: type, path: Path, prefix: str = "") -> None:
    if not isinstance(content, dict):
        where = f"{prefix.rstrip('.')} in " if prefix else ""
        raise UsageError(f"{where}config file {path} must hold keys and values, got {content!r}")
    fields, sections = _field_types(section), _sections(section)
    for key, value in content.items():
        if key not in fields:
            raise UsageError(f"unknown key {prefix}{key} in {path}{_suggestion(str(key), list(fields))}")
        if value is None and type(None) not in get_args(fields[key]):
            raise UsageError(f"{prefix}{key} in {path} must not be null")
        if key in sections:
            _check_keys(value, sections[key], path, f"{prefix}{key}.")


class _StrictLoader(yaml.SafeLoader):
    """A YAML loader that refuses a key that stands twice in one mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue  # `<<: *anchor` may be overridden by the keys beside it
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise UsageError(f"key {key!r} in line {key_node.start_mark.line + 1} is not a name")
            if key in seen:
                raise UsageError(f"key {key!r} stands twice (again in line {key_node.start_mark.line + 1})")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read_yaml(read: Callable[[], str], source: object) -> object:
    try:
        return yaml.load(read(), Loader=_StrictLoader)
    except UsageError as error:
        raise UsageError(f"config file {source}: {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"config file {source} is not valid YAML: {_one_line(str(error))}") from error
    except OSError as error:
        raise UsageError(f"config file {source} cannot be read: {error.strerror}") from error


def _check_section_options(overrides: Sequence[str]) -> None:
    """Checks whole sections given as options, `--es FILE` or `--es '{sigma: 0.1}'`, as strictly as a file."""
    sections = {f"--{name}": kind for name, kind in _sections(Config).items()}
    words = [word for override in overrides for word in override.split("=", 1)]
    for option, value in itertools.pairwise(words):
        if option in sections:
            file = Path(value)
            text = file.read_text if file.is_file() else partial(str, value)
            _check_keys(_read_yaml(text, option), sections[option], Path(option), f"{option[2:]}.")


def _check_resumed_schedules(config: Config, original: Config) -> None:
    budgets = [(each.generations, each.max_env_steps) for each in (config, original)]
    kinds = {config.es.sigma_schedule.kind, config.optimizer.lr_schedule.kind}
    if kinds != {"constant"} and budgets[0] != budgets[1]:
        raise UsageError("the budget of a run with a schedule cannot be changed: the schedule follows it")


def _check_resume_overrides(overrides: Sequence[str]) -> None:
    for argument in overrides:
        if not argument.startswith("--") or argument in ("--help", "--print_config"):
            continue
        name = argument[2:].split("=")[0]
        if name.split(".")[0] not in RESUME_OPTIONS:
            raise UsageError(
                f"--{name} cannot be changed when a run is resumed (allowed: {', '.join(RESUME_OPTIONS)})"
            )
