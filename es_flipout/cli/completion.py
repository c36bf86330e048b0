"""Completion of options in a shell: `--print_completion SHELL` prints the script that a shell reads."""

from __future__ import annotations

import argparse
import shlex

import shtab
from jsonargparse import ArgumentParser

from es_flipout.cli.shipped import shipped_names

OPTION = "--print_completion"
HELP = (
    "print a script that completes the options in a shell, for example "
    "'eval \"$(%(prog)s --print_completion bash)\"' in ~/.bashrc"
)
SHELLS = tuple(shtab.SUPPORTED_SHELLS)

_CONFIGS = "_es_train_configs"
_COMPLETE_CONFIGS = """{name}() {{
  compgen -f -- "$1"
  compgen -W {names} -- "$1"
}}"""


_FILES = {"RUN": shtab.DIRECTORY, "DIR": shtab.DIRECTORY, "FILE": shtab.FILE}
"""What completes a value, by its metavar."""


def add_completion(parser: argparse.ArgumentParser) -> None:
    """Adds the option to a command's parser, after its other options."""
    for action in parser._actions:
        if action.metavar in _FILES:
            action.complete = _FILES[action.metavar]  # type: ignore[attr-defined] # shtab reads it
    shtab.add_argument_to(parser, OPTION, help=HELP)


def train_completion(parser: ArgumentParser, shell: str) -> str:
    """Returns the script for es-train, in which bash completes the names of shipped configurations, too.

    Args:
        parser: of es-train, which is used up.
        shell: one of `SHELLS`.
    """
    names = shlex.quote(" ".join(shipped_names()))
    for action in parser._actions:
        if "--config" in action.option_strings:
            action.complete = {**shtab.FILE, "bash": _CONFIGS}  # type: ignore[attr-defined]
        elif {"--resume", "--out", "--init_from"} & set(action.option_strings):
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    preambles = [_COMPLETE_CONFIGS.format(name=_CONFIGS, names=names)] if shell == "bash" else []
    return parser.get_completion_script(f"shtab-{shell}", preambles=preambles)
