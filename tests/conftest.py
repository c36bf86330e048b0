"""What all tests share: one torch thread (the suite runs on few cores), and a small fast run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, settings
from small_runs import TINY_RUN, train_small_run

from es_flipout.run.run_directory import RunDirectory

# The same examples every time, and no verdict on how busy the machine is.
settings.register_profile(
    "tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_directory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs every test in a folder of its own: MuJoCo and es-train write into the current one."""
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))


@pytest.fixture
def tiny_config(tmp_path: Path) -> Path:
    """A configuration file whose whole run takes a second."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY_RUN))
    return path


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Each device that runs engine warp: the CPU everywhere, a GPU under -m gpu."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return str(request.param)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], RunDirectory]:
    """Returns the run of a kind of policy, trained when it is first asked for; see `small_runs.KINDS`."""
    folder = tmp_path_factory.mktemp("small_runs")

    @functools.cache
    def run(kind: str) -> RunDirectory:
        return train_small_run(kind, folder / kind)

    return run
