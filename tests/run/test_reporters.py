"""Reporters: which a configuration names, and that no failure of theirs ends a run or passes in silence."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import sys
import time
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml

import es_flipout
from es_flipout.cli import train, training
from es_flipout.cli.arguments import UsageError, parse_train
from es_flipout.run.config import Config, flat_config
from es_flipout.run.metrics import GenerationMetrics, Timing
from es_flipout.run.reporters import beside, find
from es_flipout.run.reporters.beside import ReporterBeside
from es_flipout.run.reporters.contract import TAGS, Reporter, scalars
from es_flipout.run.reporters.find import find_reporters
from es_flipout.run.run_directory import RunDirectory

ROOT = Path(__file__).parents[2]
NUMBERS = {
    "generation": 3,
    "env_steps": 500,
    "failed_members": 0,
    "episode_limit": None,
    "update_cosine": float("nan"),
    "score": None,
    "score_std": None,
    "score_randomized": None,
    "score_episode_length": None,
    "signal_to_noise": None,
}
METRICS = GenerationMetrics(
    **{name: NUMBERS.get(name, 0.25) for name in ("env_steps", *TAGS)},
    failures={},
    timing=Timing(100.0, 2.0, 0.5),
    score_info={"is_success": 0.75, "mean:force": float("nan")},
)

MINE = '''
import os
import sys
import time

from es_flipout import Reporter


class Notes(Reporter):
    """Notes in a file what is called."""

    def __init__(self, run, file="notes.txt"):
        self.file = run.path / file
        self.note("begins", run.config.seed, run.resumed_at)

    def note(self, *words):
        with self.file.open("a") as file:
            print(*words, file=file)

    def report(self, metrics, histograms, progress):
        self.note(metrics.generation, metrics.env_steps, sorted(histograms), round(progress, 3))

    def close(self):
        self.note("ends")


class FailsAtOnce(Notes):
    def __init__(self, run):
        raise RuntimeError("no such\\nserver")


class Fails(Notes):
    def report(self, metrics, histograms, progress):
        if metrics.generation == 2:
            raise ZeroDivisionError


class Exits(Notes):
    def report(self, metrics, histograms, progress):
        sys.exit("enough")


class Dies(Notes):
    def report(self, metrics, histograms, progress):
        os._exit(3)


class FailsInTheEnd(Notes):
    def close(self):
        raise OSError(28, "No space left on device")


class Hangs(Notes):
    def close(self):
        while True:
            time.sleep(1)


class HangsToo(Hangs):
    pass
'''


@pytest.fixture
def mine(monkeypatch):
    """A module of the user's in the current folder."""
    Path("mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    yield
    sys.modules.pop("mine", None)


def trained(config, *reporters, out="run"):
    names = yaml.safe_dump(list(reporters), default_flow_style=True, width=10_000).strip()
    return train.main(["--config", str(config), "--out", out, f"--logging.reporters={names}"])


def figures(out):
    return [{**line, "timing": None} for line in RunDirectory(Path(out)).read_metrics()]


@pytest.mark.usefixtures("mine")
def test_no_reporter_that_fails_ends_a_run_and_each_says_so_once(tiny_config, monkeypatch, capfd):
    monkeypatch.setattr(beside, "SECONDS_TO_CLOSE", 15.0)
    close, closing_takes = training._close, []

    def timed(*args):
        started = time.monotonic()
        close(*args)
        closing_takes.append(time.monotonic() - started)

    monkeypatch.setattr(training, "_close", timed)
    failing = ["FailsAtOnce", "Fails", "Exits", "Dies", "FailsInTheEnd", "Hangs", "HangsToo"]
    assert trained(tiny_config, "jsonl", *(f"mine:{each}" for each in failing), "mine:Notes") == 0
    printed, errors = capfd.readouterr()
    assert errors == ""
    said = re.findall(r"no more reports to mine:(\w+): (.*)", printed)
    assert len(said) == len(failing)
    assert dict(said) == {
        "FailsAtOnce": "RuntimeError: no such server",
        "Fails": "ZeroDivisionError",
        "Exits": "SystemExit: enough",
        "Dies": "its process died (exit code 3)",
        "FailsInTheEnd": "OSError: [Errno 28] No space left on device",
        "Hangs": "it has not ended within 15 seconds",
        "HangsToo": "it has not ended within 15 seconds",
    }
    assert 15 <= closing_takes[0] < 25  # all are waited for at the same time
    assert "finished" in printed
    notes = Path("run/notes.txt").read_text().splitlines()
    assert [line for line in notes if line == "ends"] == ["ends"]  # of the only one that can
    assert trained(tiny_config, "jsonl", out="quiet") == 0
    assert figures("run") == figures("quiet")


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize("at", ["the run", "the end"])
def test_who_interrupts_a_run_waits_for_no_reporter(at, tiny_config, monkeypatch, capfd):
    times = []

    def interrupted(*args):
        times.append(time.monotonic())
        raise KeyboardInterrupt

    if at == "the run":
        monkeypatch.setattr(training.Trainer, "train", interrupted)
    else:
        monkeypatch.setattr(beside, "wait", interrupted)
    assert trained(tiny_config, "jsonl", "mine:Hangs", "mine:HangsToo") == 130
    assert time.monotonic() - times[0] < 10
    assert capfd.readouterr().err == "es-train: interrupted\n"
    assert not multiprocessing.active_children()


@pytest.mark.usefixtures("mine")
def test_a_reporter_of_ones_own_gets_all_generations_in_order(tiny_config):
    keywords = {"name": "mine:Notes", "file": "other.txt"}
    assert trained(tiny_config, keywords, out="run") == 0
    assert not Path("run/metrics.jsonl").exists()  # which may be left out
    begins, *reports, ends = Path("run/other.txt").read_text().splitlines()
    assert (begins, ends) == ("begins 0 None", "ends")
    assert [line.split()[0] for line in reports] == ["1", "2", "3", "4", "5", "6"]
    shown = "['episode_length', 'fitness', 'parameters/"
    assert [shown in line for line in reports] == [False] * 5 + [True]
    assert [line.split()[-1] for line in reports] == ["0.167", "0.333", "0.5", "0.667", "0.833", "1.0"]
    assert train.main(["--resume", "run", "--generations", "7", "--evaluation.interval", "0"]) == 2
    assert train.main(["--resume", "run", "--generations", "7"]) == 0
    *_, begins, last, ends = Path("run/other.txt").read_text().splitlines()
    assert begins == f"begins 0 {reports[-1].split()[1]}"
    assert last.split()[0] == "7"
    assert Path("run/config.yaml").read_text().count("mine:Notes") == 1


class Slow(Reporter):
    """Takes its time, and says in a file what it has got."""

    def __init__(self, path):
        self.path, self.got, self.flushes = path, [], 0

    def report(self, metrics, histograms, progress):
        time.sleep(0.05)
        self.got.append((metrics.generation, sorted(histograms)))

    def flush(self):
        self.flushes += 1

    def close(self):
        self.path.write_text(json.dumps([self.got, self.flushes]))


def test_a_slow_reporter_is_not_waited_for_and_gets_everything(tmp_path):
    said = []
    with closing(ReporterBeside("slow", partial(Slow, tmp_path / "got.json"), said.append)) as reporter:
        reporter.report(METRICS, {}, 0.0)
        started = time.perf_counter()
        for generation in range(4, 54):
            large = {"weights": np.zeros(100_000)} if generation < 40 else {}
            reporter.report(replace(METRICS, generation=generation), large, 0.5)
        assert time.perf_counter() - started < 1.5  # the reporter itself takes 2.5 seconds
        while reporter._num_waiting:
            reporter._listen(60.0)
    got, flushes = json.loads((tmp_path / "got.json").read_text())
    assert said == []
    assert [generation for generation, _ in got] == [3, *range(4, 54)]
    assert sum(bool(names) for _, names in got) < 20  # of the 36 that were sent, while few waited
    assert 1 <= flushes < 10  # it writes many at once when it is behind


def test_a_reporter_for_which_too_much_waits_is_off(tmp_path, monkeypatch):
    monkeypatch.setattr(beside, "MOST_WAITING", 5)
    said = []
    with closing(ReporterBeside("slow", partial(Slow, tmp_path / "got.json"), said.append)) as reporter:
        for _ in range(20):
            reporter.report(METRICS, {}, 0.0)
    assert said == ["no more reports to slow: 5 generations wait for it"]
    assert not (tmp_path / "got.json").exists()


def test_a_process_that_is_stopped_holds_nothing_up(tmp_path, monkeypatch):
    monkeypatch.setattr(beside, "SECONDS_TO_SEND", 1)
    said = []
    with closing(ReporterBeside("slow", partial(Slow, tmp_path / "got.json"), said.append)) as reporter:
        reporter.report(METRICS, {}, 0.0)
        reporter._listen(60.0)
        os.kill(reporter._worker.process.pid, signal.SIGSTOP)
        for _ in range(3):
            reporter.report(METRICS, {"weights": np.zeros(1_000_000)}, 0.0)
    assert said == ["no more reports to slow: its process does not receive anything any more"]


def test_scalars_are_the_finite_metrics_by_tag():
    found = scalars(METRICS)
    unscored = {"score/mean", "score/std", "score/randomized", "score/episode_length", "es/signal_to_noise"}
    missing = {*unscored, "es/update_cosine", "rollout/episode_limit"}
    timing = {"time/env_steps_per_second", "time/seconds", "time/live_share"}
    assert set(found) == {*TAGS.values(), "score_info/is_success", *timing} - missing
    assert found["progress/generation"] == 3.0
    assert found["fitness/best"] == 0.25


def test_metrics_are_restored_from_their_line_of_json():
    restored = GenerationMetrics.of_json(json.loads(METRICS.as_json()))
    assert scalars(restored) == scalars(METRICS)
    old = {
        "generation": 1,
        "env_steps": 8,
        "timing": {"env_steps_per_second": 1, "seconds": 2, "live_share": 1},
    }
    assert set(scalars(GenerationMetrics.of_json(old))) == {
        *("progress/generation", "time/env_steps_per_second", "time/seconds", "time/live_share")
    }


def test_a_configuration_is_flattened_by_the_names_of_the_command_line():
    found = flat_config(Config())
    assert found["es.sigma"] == 0.05
    assert found["es.sigma_schedule.kind"] == "constant"
    assert found["env.kwargs"] == {}
    assert found["seed"] == 0
    arguments = [f"--{name}={found[name]}" for name in ("es.sigma", "env.id", "rollout.block_size")]
    assert parse_train(arguments).config == Config()


WRONG = {
    "[nothing]": "must be among jsonl, tensorboard, mlflow, wandb and MODULE:CLASS, got nothing",
    "[{mode: offline}]": "reporter {'mode': 'offline'} needs a name, as in {name: wandb, mode: offline}",
    "[jsonl, jsonl]": "names jsonl more than once",
    "[{name: jsonl, path: x}]": "jsonl takes no keyword arguments, got path",
    "[{name: tensorboard, path: x}]": "got an unexpected keyword argument 'path'; it takes no arguments",
    "[{name: mlflow, uri: x}]": "unexpected keyword argument 'uri'; it takes tracking_uri=None",
    "[nowhere:Reporter]": "No module named 'nowhere'; run the command from the folder that contains it",
    "[mine:Nothing]": "the module mine has no Nothing",
    "[mine:os]": "must be a subclass of es_flipout.run.Reporter, but is <module 'os'",
    "[{name: 'mine:Notes', path: x}]": "unexpected keyword argument 'path'; it takes file='notes.txt'",
    "jsonl": "logging.reporters",
}


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize("reporters", WRONG)
def test_a_mistake_in_a_reporter_is_told_before_the_run_begins(reporters, tiny_config, capsys):
    command = ["--config", str(tiny_config), "--out", "run", f"--logging.reporters={reporters}"]
    assert train.main(command) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("es-train: ")
    assert errors.count("\n") == 1
    assert "logging.reporters" in errors
    assert WRONG[reporters] in errors
    assert not Path("run").exists()


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_is_told_with_its_extra(name, monkeypatch):
    monkeypatch.setattr(find, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=re.escape(f"{name} needs a package: pip install 'es-flipout[{name}]'")
    ):
        find_reporters([name])


def test_reporters_can_be_added_on_a_command_line(tiny_config):
    command = ["--config", str(tiny_config), "--logging.reporters+=mlflow"]
    assert parse_train(command).config.logging.reporters == ["jsonl", "mlflow"]


@pytest.mark.parametrize("switch", [True, False])
def test_the_old_switch_of_tensorboard_is_read(switch, tiny_config):
    now = ["jsonl", "tensorboard"] if switch else ["jsonl"]
    text = str(switch).lower()
    Path("old.yaml").write_text(f"logging: {{tensorboard: {text}, keep_interval: 3}}")
    logging = parse_train(["--config", "old.yaml"]).config.logging
    assert (logging.reporters, logging.keep_interval) == (now, 3)
    for old in (["--logging.tensorboard", text], [f"--logging.tensorboard={text}"]):
        arguments = ["--seed", "3", *old, "--threads", "1"]
        config = parse_train(arguments).config
        assert (config.logging.reporters, config.seed, config.threads) == (now, 3, 1)


def test_both_the_old_switch_and_the_list_are_refused():
    Path("both.yaml").write_text("logging: {tensorboard: true, reporters: [jsonl]}")
    message = "both.yaml: logging.tensorboard is now one of logging.reporters; give only logging.reporters"
    with pytest.raises(UsageError, match=message):
        parse_train(["--config", "both.yaml"])
    with pytest.raises(UsageError, match=r"it is called logging.reporters now"):
        parse_train(["--logging={tensorboard: true}"])


def test_the_example_of_the_documentation_runs(tiny_config, monkeypatch):
    text = (ROOT / "docs" / "logging.md").read_text()
    (source,) = [
        block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "Reporter" in block
    ]
    Path("best_so_far.py").write_text(source)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    (spec,) = re.findall(r"\{name: 'best_so_far:[^}]*\}", text)
    assert trained(tiny_config, "jsonl", yaml.safe_load(spec)) == 0
    scores = [line["score"] for line in figures("run") if line["score"] is not None]
    best = [score for i, score in enumerate(scores) if score > max(scores[:i], default=-np.inf)]
    lines = Path("run/best.csv").read_text().splitlines()
    assert [float(line.split(",")[1]) for line in lines] == best
    assert hasattr(es_flipout, "Reporter")
