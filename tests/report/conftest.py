"""Real runs for reports, a run whose metrics are written by hand, and a browser."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from es_flipout.cli import train
from es_flipout.report.runs import Run
from es_flipout.run.config import Config
from es_flipout.run.run_directory import RunDirectory

PENDULUM = [
    *("--env.id", "InvertedPendulum-v5", "--env.kwargs.max_episode_steps", "100", "--env.num_envs", "8"),
    *("--env.fused", "false"),  # compiling would take longer than the runs
    *("--policy.kind", "linear", "--es.population_size", "16", "--optimizer.lr", "0.03", "--threads", "1"),
    *("--evaluation.interval", "2", "--evaluation.episodes", "2", "--generations", "30"),
    *("--logging.reporters", "[jsonl]"),
]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three seeds of one training and one run of another, in this order."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [("wide0", 0, 0.1), ("wide1", 1, 0.1), ("wide2", 2, 0.1), ("narrow", 0, 0.02)]
    for name, seed, sigma in runs:
        options = ["--seed", str(seed), "--es.sigma", str(sigma), "--out", str(folder / name)]
        assert train.main([*PENDULUM, *options]) == 0
    return [folder / name for name, _, _ in runs]


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Run]:
    """Writes a run and reads it as a report does."""

    def write(name: str, config: Config, metrics: list[dict[str, Any]]) -> Run:
        directory = RunDirectory(tmp_path / name)
        directory.path.mkdir()
        directory.write_config(config)
        directory.metrics.write_text("".join(json.dumps(line) + "\n" for line in metrics))
        return Run.read(directory, name)

    return write


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's chromium, or Chrome, or a skip where there is neither."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs chromium, which .ci/run installs if it may")
    sandbox = ["--no-sandbox"] if os.getuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=sandbox)
        yield browser
        browser.close()
