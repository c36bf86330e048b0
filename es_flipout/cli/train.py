"""es-train: train a policy from a configuration, or continue a run; alone or as one of torchrun's ranks."""

from __future__ import annotations

from collections.abc import Sequence

from es_flipout.cli.arguments import parse_train
from es_flipout.cli.process import run_command
from es_flipout.cli.torchrun import is_launched


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `es-train` and returns its exit status."""
    return run_command("es-train", _train, arguments)


def _train(arguments: Sequence[str]) -> int:
    # torch and MuJoCo take seconds to import: --help and mistakes do not wait for them.
    if is_launched():
        from es_flipout.cli.training import train_as_rank

        return train_as_rank(arguments)
    request = parse_train(arguments)
    from es_flipout.cli.training import train

    return train(request)
