"""Which reporters a configuration names."""

from __future__ import annotations

from es_flipout.dotted_path import is_dotted
from es_flipout.named_spec import NamedSpec, spec_name
from es_flipout.run.checks import require

JSONL, TENSORBOARD = "jsonl", "tensorboard"
REPORTERS = (JSONL, TENSORBOARD, "mlflow", "wandb")
"""Names that are no classes of the user's."""


def reporter_name(reporter: NamedSpec) -> str:
    """Returns which reporter is meant.

    Raises:
        ValueError: if that cannot be told, or there is no such reporter.
    """
    try:
        name = spec_name(reporter, "reporter", "{name: wandb, mode: offline}")
    except ValueError as error:
        raise ValueError(f"logging.reporters: {error}") from error
    require(
        name in REPORTERS or is_dotted(name),
        f"logging.reporters must be among {', '.join(REPORTERS)} and MODULE:CLASS, got {name}",
    )
    return name
