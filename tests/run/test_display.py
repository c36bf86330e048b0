"""What a run shows while it takes long: lines and bars on a terminal, little anywhere else."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console
from small_runs import TINY_RUN

from es_flipout.cli import eval as es_eval
from es_flipout.cli import train
from es_flipout.cli.arguments import load_config
from es_flipout.cli.process import OutputConsole
from es_flipout.rollout import Episodes
from es_flipout.run import display
from es_flipout.run.display import Display
from es_flipout.run.onlooker import NOBODY, Onlooker, told_while_asked
from es_flipout.run.run_directory import RunDirectory
from es_flipout.run.trainer import Trainer


@pytest.fixture
def screen():
    return Console(file=io.StringIO(), width=100, force_terminal=True, _environ={})


@pytest.fixture
def file():
    return Console(file=io.StringIO(), width=100)


def shown(console):
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())


@pytest.fixture
def dumb():
    return Console(file=io.StringIO(), width=100, force_terminal=True, _environ={"TERM": "dumb"})


@pytest.mark.parametrize("where", ["file", "dumb"])
def test_only_what_takes_long_is_a_line_where_lines_cannot_be_redrawn(where, request, monkeypatch):
    monkeypatch.setattr(display, "SECONDS_UNTIL_SAID", 0.1)
    file = request.getfixturevalue(where)
    with closing(Display(file)) as lines:
        with lines.doing("something quick"):
            pass
        with lines.doing("something slow"):
            time.sleep(0.4)
        lines.playing(3, 10, 40, 700, 2.0)
        lines.progress(0.5, "left 0:00:10")
    assert file.file.getvalue() == "something slow ...\n"


class Unread(io.StringIO):
    """A pipe at whose other end nobody is."""

    def write(self, text):
        raise BrokenPipeError


def test_a_line_that_nobody_can_read_raises_nothing_in_its_thread(monkeypatch):
    monkeypatch.setattr(display, "SECONDS_UNTIL_SAID", 0.1)
    raised = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    with closing(Display(OutputConsole(file=Unread()))) as lines, lines.doing("something slow"):
        time.sleep(0.4)
    assert raised == []


def test_a_terminal_shows_what_is_done_and_how_far_it_is(screen):
    with closing(Display(screen)) as lines:
        with lines.doing("compiling the step of Ant-v5"):
            time.sleep(0.4)
        lines.progress(0.25, "left 0:00:10")
        lines.playing(3, 10, 40, 700, 0.5)  # too short for a bar
        time.sleep(0.4)
        assert "generation 3" not in shown(screen)
        lines.playing(3, 10, 40, 700, 2.0)
        time.sleep(0.4)
        assert "10 of 40 episodes  350 env steps/s so far" in shown(screen)
        lines.playing(4, 0, 40, 0, 2.0)
        time.sleep(0.4)
        assert "40 episodes, 2 s" in shown(screen)
    text = shown(screen)
    assert "compiling the step of Ant-v5" in text
    assert "left 0:00:10" in text


class Noting(Onlooker):
    """Notes what it is told."""

    def __init__(self):
        self.done, self.looks = [], []

    @contextmanager
    def doing(self, what):
        self.done.append(what)
        yield
        self.done.append(f"{what}: done")

    def playing(self, generation, finished, total, env_steps, seconds):
        self.looks.append((generation, finished, total, env_steps))


def test_an_onlooker_is_told_rarely_and_should_stop_is_asked_every_time(monkeypatch):
    table = Episodes(np.zeros(4, np.int64), np.arange(4))
    onlooker, asked = Noting(), []
    clock = iter(np.arange(0.0, 100.0, 0.1))
    monkeypatch.setattr("es_flipout.run.onlooker.time.monotonic", lambda: next(clock))
    ask = told_while_asked(lambda: bool(asked.append(1)), onlooker, 7, [table])
    for _ in range(10):
        assert not ask()
    table.record(np.array([2]), np.array([1.0]), np.array([30]))
    for _ in range(3):
        ask()
    assert len(asked) == 13
    assert onlooker.looks == [*[(7, 0, 4, 0)] * 3, (7, 1, 4, 30)]  # every third of a tenth of a second
    shared = Episodes(np.zeros(4, np.int64), np.arange(4))
    shared.record(np.array([2]), np.array([1.0]), np.array([30]))
    ask = told_while_asked(lambda: False, onlooker, 8, [table, shared], num_ranks=2)
    while len(onlooker.looks) < 5:
        ask()
    assert onlooker.looks[-1] == (8, 2, 4, 30 + 60)
    never = object()
    assert told_while_asked(never, NOBODY, 7, []) is never


@pytest.mark.parametrize("engine", ["batch", "gymnasium"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_run_that_is_looked_at_is_the_same(engine, threads, tiny_config, monkeypatch):
    monkeypatch.setattr("es_flipout.run.onlooker.LOOKS_PER_SECOND", 1e6)
    options = [f"--threads={threads}", f"--env.engine={engine}", "--generations=2", "--env.num_envs=8"]
    config = load_config(tiny_config, options)
    found = []
    for onlooker in (NOBODY, Noting()):
        with closing(Trainer(config, onlooker=onlooker)) as trainer:
            trainer.train(None)
            found.append(trainer.state_dict()["policy"])
    assert all((value == found[1][name]).all() for name, value in found[0].items())
    workers = ["starting 2 worker processes"] if (engine, threads) == ("batch", 2) else []
    compiled = ["compiling the step of InvertedPendulum-v5"] if engine == "batch" else []
    told = [each for each in onlooker.done if not each.endswith("done")]
    assert told == [*compiled, *workers, "waiting for the score of generation 2"]
    assert {f"{each}: done" for each in told} <= set(onlooker.done)
    assert all(total == 16 and 0 <= finished <= 16 for _, finished, total, _ in onlooker.looks)
    assert {generation for generation, *_ in onlooker.looks} == {1, 2}
    finished = [each for each in onlooker.looks if each[0] == 1]
    assert finished == sorted(finished)
    assert len(finished) > 3 or threads == 2


def on_a_terminal(*command):
    """Runs a command of this package on a pseudo-terminal; returns its exit status and what it showed."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "COLUMNS": "110", "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-m", *command], stdin=follower, stdout=follower, stderr=follower, env=environment
    )
    os.close(follower)
    parts = []

    def read():
        while True:
            try:
                parts.append(os.read(leader, 65536))
            except OSError:  # nobody is at the other end
                return

    reader = threading.Thread(target=read)
    reader.start()
    status = process.wait()
    reader.join()
    os.close(leader)
    return status, re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", b"".join(parts).decode())


@pytest.mark.slow
def test_a_run_and_its_score_on_a_real_terminal(tiny_config):
    config = {**TINY_RUN, "generations": 1, "es": {"population_size": 2400, "num_bases": 8, "sigma": 0.1}}
    tiny_config.write_text(yaml.safe_dump(config))
    code = "import sys; from es_flipout.cli.{0} import main; sys.exit(main(sys.argv[1:]))"
    with Path("train.py").open("w") as script:
        script.write(code.format("train"))
    with Path("score.py").open("w") as script:
        script.write(code.format("eval"))
    status, text = on_a_terminal("train", "--config", str(tiny_config), "--out", "run")
    assert status == 0
    assert re.search(r"generation 1 .* [\d,]+ of 2,400 episodes  [\d,]+ env steps/s so far", text)
    assert "compiling the step of InvertedPendulum-v5" in text
    assert re.search(r"run ━+ +left", text)
    assert "finished; score it with: es-eval run" in text
    status, text = on_a_terminal("score", "run", "--episodes", "60")
    assert status == 0
    assert re.search(r"episodes .* \d+ of 60, [\d,]+ env steps", text)
    assert "return  mean" in text


def test_nothing_is_shown_of_a_score_where_there_is_no_terminal(tiny_config, capfd):
    assert train.main(["--config", str(tiny_config), "--out", "run"]) == 0
    capfd.readouterr()
    assert es_eval.main(["run", "--episodes", "2"]) == 0
    printed, errors = capfd.readouterr()
    assert errors == ""
    assert printed.splitlines()[0].startswith("InvertedPendulum-v5, run/checkpoints/best.pt")
    assert len(printed.splitlines()) == 3
    assert RunDirectory.open("run").best.exists()
