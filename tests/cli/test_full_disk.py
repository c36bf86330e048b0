"""A disk that is full while a run writes: one line, a whole checkpoint, and an exact continuation.

The limit on the size of a file stands for the disk: a write past it fails, like one without space.
"""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
from pathlib import Path

import pytest

from es_flipout.cli import train
from es_flipout.run import checkpoint

RUN = [
    *("--env.id", "InvertedPendulum-v5", "--env.kwargs.max_episode_steps", "5", "--env.num_envs", "8"),
    *("--es.population_size", "8", "--policy.kind", "linear", "--threads", "1", "--generations", "30"),
    *("--evaluation.interval", "0"),
]
RESUME_ADVICE = "once that is mended, continue with: es-train --resume run"


@contextlib.contextmanager
def largest_file(size):
    """Has every write past so many bytes of a file fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def state_of(out):
    state = checkpoint.load(Path(out, "checkpoints/last.pt"))
    lines = [json.loads(line) for line in Path(out, "metrics.jsonl").read_text().splitlines()]
    weights = {name: value.tolist() for name, value in state["policy"].items()}
    return weights, [{**line, "timing": None} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert train.main([*RUN, "--logging.reporters", "[jsonl]", "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize("file", ["checkpoints/last.pt", "metrics.jsonl"])
def test_a_run_out_of_space_ends_in_one_line_and_continues_exactly(whole, file, capsys):
    quiet = ["--logging.reporters", "[jsonl]"]
    first_checkpoint = (whole / "checkpoints/last.pt").stat().st_size
    if file == "metrics.jsonl":
        size = (whole / file).stat().st_size // 2
        assert size > first_checkpoint + 1000
        command = [*RUN, "--out", "run"]
    else:  # there is space for a checkpoint, and later there is none
        size = first_checkpoint - 1000
        assert train.main([*RUN, *quiet, "--out", "run", "--generations", "3"]) == 0
        command = ["--resume", "run", "--generations", "30"]
    capsys.readouterr()
    with largest_file(size):
        assert train.main([*command, *quiet]) == 1
    printed, errors = capsys.readouterr()
    assert errors == f"es-train: cannot write run/{file}: File too large; {RESUME_ADVICE}\n"
    assert checkpoint.load(Path("run/checkpoints/last.pt"))["generation"] >= 3
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["last.pt"]
    assert "finished" not in printed
    assert train.main(["--resume", "run", "--generations", "30"]) == 0
    assert state_of("run") == state_of(whole)


def test_tensorboard_that_cannot_write_ends_no_run(whole, capfd):
    size = (whole / "metrics.jsonl").stat().st_size + 1000
    with largest_file(size):
        assert train.main([*RUN, "--out", "run"]) == 0
    printed, errors = capfd.readouterr()
    assert printed.count("no more reports to tensorboard: cannot write run/events.out.tfevents.") == 1
    assert errors == ""
    assert state_of("run") == state_of(whole)


def test_a_run_whose_directory_is_gone_says_so(monkeypatch, capsys):
    save = checkpoint.save

    def remove_first(path, state):
        if state["generation"] == 3:
            shutil.rmtree("run")
        save(path, state)

    monkeypatch.setattr(checkpoint, "save", remove_first)
    assert train.main([*RUN, "--logging.reporters", "[jsonl]", "--out", "run"]) == 1
    assert capsys.readouterr().err == (
        "es-train: cannot write run/checkpoints/last.pt: No such file or directory\n"
    )


def test_a_run_that_cannot_begin_leaves_nothing(capsys):
    with largest_file(100):
        assert train.main([*RUN, "--out", "run"]) == 2
    assert capsys.readouterr().err == "es-train: cannot write to the run directory run: File too large\n"
    assert not Path("run").exists()
