"""es-report as a user calls it: real runs, odd runs, mistakes."""

from __future__ import annotations

import importlib.util
import json
import platform
import re
import shutil
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch
from small_runs import train_small_run

import es_flipout
from es_flipout import load_policy
from es_flipout.cli import report
from es_flipout.report.curves import interval
from es_flipout.run.run_directory import RunDirectory

LONG_RUN = Path(__file__).parents[2] / "benchmarks" / "results" / "humanoid_long_run"
QUICK = ["--episodes", "0", "--no-film"]


class Page(HTMLParser):
    """The text of a page's tables, row by row, and whatever could load something."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.sources: list[str] = []
        self.text = ""
        self._cell = self._is_code = False
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        self._is_code = tag in ("script", "style")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag):
        self._is_code = False
        if tag in ("td", "th"):
            self.rows[-1][-1] = " ".join(self.rows[-1][-1].split())
            self._cell = False

    def handle_data(self, data):
        if self._is_code:
            return
        self.text += data
        if self._cell:
            self.rows[-1][-1] += data

    def row(self, *beginning):
        """Returns the cells after those that a row begins with."""
        (found,) = (row for row in self.rows if row[: len(beginning)] == list(beginning))
        return found[len(beginning) :]


def made(*arguments: object) -> Page:
    assert report.main([*map(str, arguments), "--out", "page.html"]) == 0
    return Page(Path("page.html"))


def copied(run: Path, name: str) -> Path:
    path = Path(name)
    shutil.copytree(run, path)
    return path


def test_a_page_of_several_runs(trained, capsys):
    page = made(*trained, *QUICK)
    assert re.search(r"^page\.html: 4 runs, \d\.\d MB$", capsys.readouterr().out, flags=re.MULTILINE)
    assert "4 runs in 2 groups" in page.text
    assert page.row("es.sigma") == ["0.1", "0.02"]
    assert page.row("seed") == ["0, 1, 2", "0"]
    assert not [source for source in page.sources if not source.startswith("data:")]
    metrics = RunDirectory.open(trained[1]).read_metrics()
    best = max((line for line in metrics if line["score"] is not None), key=lambda line: line["score"])
    summary, hardware = (row[2:] for row in page.rows if row[:2] == ["wide1", "A"])
    seconds = round(metrics[-1]["timing"]["seconds"])
    assert summary[:5] == [
        *("1", "30", f"{metrics[-1]['env_steps']:,}", f"0:00:{seconds:02}"),
        f"{best['score']:,.5g} gen {best['generation']}",
    ]
    assert summary[6] == "100 %"
    assert {torch.__version__, mujoco.__version__, es_flipout.__version__} <= set(hardware)
    assert "No episodes were played for this report." in page.text
    assert "es_flipout.cli" not in page.text
    assert platform.node() not in hardware


def test_the_episodes_are_those_of_the_official_environment(trained):
    page = made(trained[3], "--episodes", 6, "--no-film")
    policy = load_policy(trained[3], checkpoint="last")
    with closing(policy.make_env()) as env:
        returns = np.array([played(policy, env, seed) for seed in range(6)])
    low, high = interval(returns)
    (row,) = (row for row in page.rows if re.match(r"narrow, last", row[0]))
    assert row[2:] == [
        *("30", "6", f"{returns.mean():,.5g}", f"{low:,.5g} to {high:,.5g}"),
        *(f"{returns.min():,.5g}", f"{returns.max():,.5g}", "0"),
    ]


def played(policy, env, seed):
    observation, _ = env.reset(seed=seed)
    total, done = 0.0, False
    while not done:
        observation, reward, terminated, truncated, _ = env.step(policy.predict(observation)[0])
        total, done = total + float(reward), terminated or truncated
    return total


# Odd runs.


def test_runs_of_different_tasks_and_of_an_earlier_version(trained):
    page = made(trained[3], LONG_RUN, *QUICK)
    assert "InvertedPendulum-v5, Humanoid-v5" in page.text
    (summary,) = (row for row in page.rows if row[:3] == ["humanoid_long_run", "B", "Humanoid-v5"])
    last = json.loads(LONG_RUN.joinpath("metrics.jsonl").read_text().splitlines()[-1])
    assert summary[4:6] == [str(last["generation"]), f"{last['env_steps']:,}"]
    assert summary[9] == f"{100 * last['env_steps'] / 250e6:.0f} %"
    assert summary[10] == "not recorded"


def test_a_run_that_has_hardly_begun(trained):
    new, begun = copied(trained[0], "new"), copied(trained[0], "begun")
    shutil.rmtree(new / "checkpoints")
    for file in ("metrics.jsonl", "starts.jsonl"):
        (new / file).unlink()
    first, *_ = (begun / "metrics.jsonl").read_text().splitlines()
    (begun / "metrics.jsonl").write_text(f'{first}\n{{"generation": 2, "env_st')
    (begun / "starts.jsonl").write_text('{"time": "soon"}\n{"cores": ')
    page = made(new, begun, "--episodes", 2)
    summary, hardware = (row for row in page.rows if row[:2] == ["new", "A"])
    assert summary[2:] == ["0", *["–"] * 6, "not recorded", summary[-1]]
    assert hardware[2] == "not recorded"
    assert next(row for row in page.rows if row[:2] == ["begun", "A"])[3] == "1"
    assert page.row("new, last") == ["A", "Could not be played: the run has no checkpoint yet"]
    assert "No film of new: the run has no checkpoint yet" in page.text


def test_metrics_of_a_run_that_went_wrong(trained):
    run = copied(trained[0], "wrong")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line |= {"fitness_mean": None, "gradient_norm": float("nan"), "failures": {"<b>fell</b>": 2}}
        line |= {"score": None, "score_failures": {"broke": 1}}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = made(run, *QUICK)
    assert page.row("A", "members") == [str(2 * len(lines)), "<b>fell</b>"]
    assert page.row("A", "score") == [str(len(lines)), "broke"]
    assert "Fitness" not in page.text
    assert "Gradient norm" not in page.text


def test_policies_that_cannot_be_played(trained):
    gone, damaged = copied(trained[0], "gone"), copied(trained[3], "damaged")
    config = (gone / "config.yaml").read_text()
    (gone / "config.yaml").write_text(config.replace("InvertedPendulum-v5", "Gone-v5"))
    for file in ("last.pt", "best.pt"):
        (damaged / "checkpoints" / file).write_text("nonsense")
    page = made(gone, damaged, "--episodes", 1)
    reasons = {row[0]: row[2] for row in page.rows if len(row) == 3 and row[2].startswith("Could not")}
    assert {name.partition(",")[0] for name in reasons} == {"gone", "damaged"}
    assert all("Gone-v5" in reason for name, reason in reasons.items() if name.startswith("gone"))
    assert all("is damaged" in reason for name, reason in reasons.items() if name.startswith("damaged"))
    assert page.text.count("No film of ") == 2


def test_an_environment_that_draws_nothing(tmp_path):
    page = made(train_small_run("parts", tmp_path / "run").path, "--episodes", 2)
    (row,) = (row for row in page.rows if row[0].startswith("run, last"))
    assert row[3] == "2"
    assert re.search(r"No film of run: .*render_mode", page.text)


def test_names_are_escaped(trained):
    run = copied(trained[3], "<script>alert(1)</script>".replace("/", "|"))
    page = made(run, *QUICK)
    assert "<script>alert(1)<|script>" in [row[0] for row in page.rows]
    text = Path("page.html").read_text()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text


def test_runs_with_the_same_name_are_told_apart(trained):
    for folder in ("one", "two"):
        copied(trained[3], f"{folder}/run")
    page = made("one/run", "two/run", *QUICK)
    assert {"one/run", "two/run"} <= {row[0] for row in page.rows}


# Mistakes.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is not a run directory: it has no config.yaml"),
        (["RUN", "--out", "no/page.html"], "--out: folder no does not exist"),
        (["RUN", "--out", "."], "--out: cannot write ."),
        (["RUN", "--episodes", "-1"], "--episodes must be >= 0, got -1"),
        (["RUN", "--film-frames", "0"], "--film-frames must be >= 1, got 0; --no-film leaves films out"),
        (["RUN", "RUN/"], "RUN is given more than once"),
        ([], "the following arguments are required: RUN"),
    ],
)
def test_mistakes(arguments, message, trained, capsys):
    arguments = [each.replace("RUN", str(trained[0])) for each in arguments]
    assert report.main(arguments) == 2
    assert capsys.readouterr().err == f"es-report: {message.replace('RUN is', f'{trained[0]} is')}\n"
    assert not Path("report.html").exists()


def test_a_damaged_run(trained, capsys):
    run = copied(trained[0], "run")
    (run / "metrics.jsonl").write_text("nonsense\n")
    assert report.main(["run"]) == 2
    assert capsys.readouterr().err == "es-report: run/metrics.jsonl is damaged in line 1\n"


def test_without_plotly(trained, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert report.main([str(trained[0])]) == 2
    assert capsys.readouterr().err == "es-report: plotly is missing: pip install 'es-flipout[report]'\n"
