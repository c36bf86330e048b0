"""Agreement: a trainer that has other ranks records nothing that they do not have, and says what ends it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from es_flipout.cli.arguments import load_config
from es_flipout.rollout import PlayStoppedError, RankDiffersError, Ranks, RanksLostError
from es_flipout.run import checkpoint
from es_flipout.run.errors import RunBrokenError
from es_flipout.run.reporters.jsonl import JsonLines
from es_flipout.run.run_directory import RunDirectory
from es_flipout.run.trainer import Trainer

LOST = "another rank has died"


class Others(Ranks):
    """Rank 0 of two ranks, the other of which does nothing until something goes wrong."""

    def __init__(self, fails_in: str, after: int) -> None:
        super().__init__()
        self.size = 2
        self._left = {fails_in: after}

    def _count(self, name: str, error: Exception) -> None:
        self._left[name] = self._left.get(name, 1000) - 1
        if self._left[name] < 0:
            raise error

    def together(self, action, answer, **options):
        found = answer([action()])
        self._count("together", RanksLostError(LOST))
        return found

    def finish_comparison(self) -> None:
        self._count("comparison", RankDiffersError("rank 1 has a different state"))

    def compute_tiles(self, tiles):
        self._count("tiles", RanksLostError(LOST))
        return super().compute_tiles(tiles)


def train(config: Path, ranks: Ranks, **options) -> RunDirectory:
    """Trains until the other rank fails, and returns what has been recorded."""
    with closing(Trainer(load_config(config, ["--evaluation.interval", "0"]), ranks=ranks)) as trainer:
        run = RunDirectory.create(trainer.config)
        reporter = JsonLines(run.metrics)
        with closing(reporter):
            trainer.train(run, [reporter], **options)
    return run


@pytest.mark.parametrize(
    ("fails_in", "after", "recorded", "saved", "message"),
    [
        ("comparison", 2, 2, 2, "rank 1 has a different state"),
        ("comparison", 5, 5, 5, "rank 1 has a different state"),  # that of the last generation
        ("together", 3, 3, 3, LOST),  # while the fourth generation is played
        ("tiles", 3, 3, 3, LOST),  # in its update
    ],
)
def test_what_is_recorded_is_what_all_ranks_have(tiny_config, fails_in, after, recorded, saved, message):
    with pytest.raises(RunBrokenError, match=message):
        train(tiny_config, Others(fails_in, after))
    (run,) = map(RunDirectory, Path("runs").iterdir())
    assert [line["generation"] for line in run.read_metrics()] == list(range(1, recorded + 1))
    assert checkpoint.load(run.last)["generation"] == saved


def test_a_request_to_stop_does_not_hide_what_went_wrong(tiny_config, monkeypatch):
    def interrupted(*_, wait=True):
        if wait:
            raise PlayStoppedError

    monkeypatch.setattr("es_flipout.run.bookkeeping.Bookkeeping.report_scored", interrupted)
    with pytest.raises(RunBrokenError, match=LOST):
        train(tiny_config, Others("together", 0))
