"""es-train and es-eval as a user runs them: real processes, real signals, real kills."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import imageio.v2 as imageio
import numpy as np
import pytest
import torch

from es_flipout.cli import eval, train
from es_flipout.run import checkpoint
from es_flipout.run.run_directory import RunDirectory

COMMANDS = {"train": train.main, "eval": eval.main}
TRAIN_PROCESS = [sys.executable, "-c", "import sys; from es_flipout.cli.train import main; sys.exit(main())"]


@dataclass
class Result:
    """What a command said, and its exit status."""

    status: int
    stdout: str
    stderr: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs a command in this process, as its entry point does."""

    def run_here(command: str, *arguments: object) -> Result:
        status = COMMANDS[command](list(map(str, arguments)))
        return Result(status, *capsys.readouterr())

    return run_here


def start(*arguments: object, **options: bool) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*TRAIN_PROCESS, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def session(leader: int) -> list[str]:
    """Returns the command lines of the processes of a session that run."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, sid, *_ = (path / "stat").read_text().rpartition(")")[2].split()
            if int(sid) == leader and state not in "ZX":
                found.append((path / "cmdline").read_text())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


POOL = ["--backend", "process_pool", "--threads", "2"]


class Payload:
    """Unpickling this creates a file: proof that code of the checkpoint ran."""

    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def figures(out: Path) -> list[dict]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "timing"} for line in lines]


def last_state(out: Path) -> dict:
    state = checkpoint.load(out / "checkpoints" / "last.pt")
    del state["seconds"]
    return state


def flatten(state: object) -> list[object]:
    if isinstance(state, dict):
        return [item for key in state for item in (key, *flatten(state[key]))]
    if isinstance(state, list | tuple):
        return [item for value in state for item in flatten(value)]
    return [state.numpy().tobytes() if isinstance(state, torch.Tensor) else state]


class TextEnv(gym.Env):
    """Observes a place and a text."""

    observation_space = gym.spaces.Dict(place=gym.spaces.Box(-1.0, 1.0, (2,)), told=gym.spaces.Text(5))
    action_space = gym.spaces.Discrete(2)


class LineEnv(gym.Env):
    """Observes a number; known in this process alone."""

    observation_space = action_space = gym.spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed=None, options=None):
        return self.observation_space.low, {}

    def step(self, action):
        return action, 0.0, True, False, {}


class FaultyEnv(gym.Env):
    """One step of small pay, after every fourth seed; the others raise in it."""

    observation_space = action_space = gym.spaces.Box(-1.0, 1.0, (1,))
    constructor_error = None

    def __init__(self):
        if self.constructor_error is not None:
            raise self.constructor_error

    def reset(self, *, seed=None, options=None):
        self.kind = seed % 4
        return np.zeros(1, np.float32), {}

    def step(self, action):
        if self.kind == 2:
            raise IndexError("of\ntwo lines")
        if self.kind:
            raise KeyError("arm")
        return np.zeros(1, np.float32), 0.0012, True, False, {}


gym.register("Text-v0", TextEnv)
gym.register("Faulty-v0", FaultyEnv)
gym.register("OnlyHere-v0", LineEnv)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that es-train finished, with TensorBoard on."""
    folder = tmp_path_factory.mktemp("finished")
    config = folder / "tiny.yaml"
    config.write_text(
        "env: {id: InvertedPendulum-v5, num_envs: 8, kwargs: {max_episode_steps: 60}}\n"
        "policy: {hidden_sizes: [8]}\n"
        "es: {population_size: 16, sigma: 0.1}\n"
        "evaluation: {interval: 2, episodes: 2}\n"
        "generations: 3\n"
    )
    with start("--config", config, "--out", folder / "run") as process:
        output = process.stdout.read()
    assert process.returncode == 0, output
    assert output.count("gen ") == 3
    return folder / "run"


def test_a_run_leaves_the_promised_files(finished_run):
    files = {str(path.relative_to(finished_run)) for path in finished_run.rglob("*") if path.is_file()}
    assert {"config.yaml", "metrics.jsonl", "checkpoints/last.pt", "checkpoints/best.pt"} <= files
    assert any(name.startswith("events.out.tfevents") for name in files)
    assert not any(name.endswith(".tmp") for name in files)


def test_tensorboard_reads_scalars_and_histograms(finished_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished_run))
    events.Reload()
    tags = events.Tags()
    assert {"fitness/mean", "score/mean", "es/sigma", "time/env_steps_per_second"} <= set(tags["scalars"])
    assert {"fitness", "parameters/network.0.weight"} <= set(tags["histograms"])
    logged = [event.value for event in events.Scalars("fitness/mean")]
    assert logged == pytest.approx([line["fitness_mean"] for line in figures(finished_run)])
    assert [event.step for event in events.Scalars("fitness/mean")] == [
        line["env_steps"] for line in figures(finished_run)
    ]


def test_a_run_directory_is_never_overwritten_and_a_finished_run_stays_finished(run, finished_run):
    before = (finished_run / "metrics.jsonl").read_bytes()
    again = run("train", "--config", "inverted_pendulum", "--out", finished_run)
    assert again.status == 2
    assert f"--resume {finished_run}" in again.stderr
    resumed = run("train", "--resume", finished_run)
    assert resumed.status == 0
    assert "has already used up its budget" in resumed.stdout
    assert (finished_run / "metrics.jsonl").read_bytes() == before


# imageio leaves the pipes to its ffmpeg process to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_eval_scores_a_run_and_films_it(run, finished_run, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    for film in ("film.gif", "film.mp4"):
        result = run("eval", finished_run, "--episodes", 3, "--video", film)
        assert result.status == 0, result.stderr
        assert re.search(r"return  mean [\d.]+  std [\d.]+  min [\d.]+  max [\d.]+\n", result.stdout)
        pay = float(re.search(r"episode of seed 0, return ([\d.]+)\)", result.stdout)[1])
        frames = len(imageio.mimread(film, memtest=False))
        # A frame at the start and after every step; the step in which the pole falls pays nothing. Players
        # merge equal frames of a gif, so it may hold fewer.
        assert frames in (pay + 1, pay + 2) or (film.endswith("gif") and 1 < frames <= pay + 2)


def test_eval_prints_json_alone(run, finished_run):
    result = run("eval", finished_run, "--episodes", 3, "--seed", 5, "--json")
    assert result.status == 0
    found = json.loads(result.stdout, parse_constant=pytest.fail)
    assert (found["env"], found["episodes"], found["seed"]) == ("InvertedPendulum-v5", 3, 5)
    assert found["checkpoint"] == str(finished_run / "checkpoints" / "best.pt")
    assert found["generation"] in (2, 3)
    assert found["failures"] == {}
    assert len(found["returns"]) == len(found["lengths"]) == 3
    assert found["mean"] == pytest.approx(sum(found["returns"]) / 3)
    assert (found["min"], found["max"]) == (min(found["returns"]), max(found["returns"]))
    text = run("eval", finished_run, "--episodes", 3, "--seed", 5).stdout
    assert float(re.search(r"mean ([\d.]+)", text)[1]) == pytest.approx(found["mean"], rel=1e-3)


def evaluated(run, episodes, *arguments):
    """Returns what es-eval says of a run on `FaultyEnv`, whose training counts the same faults."""
    if not Path("faulty").exists():
        quiet = ["--logging.reporters", "[jsonl]", "--threads", 1, "--generations", 1, "--out", "faulty"]
        sizes = ["--es.population_size", 32, "--env.num_envs", 32, "--evaluation.interval", 0]
        trained = run("train", "--env.id", f"{__name__}:Faulty-v0", *sizes, *quiet)
        assert trained.status == 0, trained.stderr
    return run("eval", "faulty", "--episodes", episodes, *arguments)


def test_eval_says_why_episodes_failed(run):
    # Seeds 0, 4, 8 go well, 1, 5, 9 and 3, 7 raise a KeyError, 2, 6 an IndexError over two lines.
    some = evaluated(run, 10)
    assert (some.status, some.stderr) == (0, "")
    assert "return  mean 0.0012  std 0.0  min 0.0012  max 0.0012\n" in some.stdout
    reasons = "      5 KeyError: 'arm'\n      2 IndexError: of two lines\n"
    assert f"failed  7 of 10 episodes\n{reasons}" in some.stdout
    every = evaluated(run, 1, "--seed", 2)
    assert (every.status, every.stderr) == (1, "")
    assert "return" not in every.stdout
    assert "failed  1 of 1 episode: IndexError: of two lines\n" in every.stdout
    found = json.loads(evaluated(run, 3, "--seed", 1, "--json").stdout, parse_constant=pytest.fail)
    assert found["returns"] == [None] * 3
    assert (found["mean"], found["std"], found["min"], found["max"]) == (None,) * 4
    assert found["failures"] == {"KeyError: 'arm'": 2, "IndexError: of two lines": 1}


def test_eval_tells_whatever_an_environment_raises_in_one_line(run, monkeypatch):
    assert evaluated(run, 1).status == 0
    for error, text in (
        (KeyError("robot.yaml"), "KeyError: 'robot.yaml'"),
        (NotImplementedError(), "NotImplementedError"),
        (SystemExit("no license"), "SystemExit: no license"),
        (AssertionError("of\ntwo"), "AssertionError: of two"),
    ):
        monkeypatch.setattr(FaultyEnv, "constructor_error", error)
        result = evaluated(run, 1)
        assert result.status == 2
        assert result.stderr.endswith(f"{text}\n")
        assert f"{__name__}:Faulty-v0: " in result.stderr
        assert result.stderr.count("\n") == 1


def test_a_run_works_from_another_folder_and_says_when_it_cannot(run, monkeypatch):
    assets = Path(gym.__file__).parent / "envs" / "mujoco" / "assets"
    shutil.copy(assets / "inverted_pendulum.xml", "mine.xml")
    sizes = ["--es.population_size", 4, "--env.num_envs", 4, "--threads", 1, "--evaluation.interval", 0]
    arguments = ["--env.id", "InvertedPendulum-v5", "--env.kwargs.xml_file", "./mine.xml", *sizes]
    assert run("train", *arguments, "--generations", 1, "--out", "run").status == 0
    here = Path.cwd()
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert run("eval", "../run", "--episodes", 1).status == 0
    assert run("train", "--resume", "../run", "--generations", 2).status == 0
    (here / "mine.xml").unlink()
    result = run("eval", "../run", "--episodes", 1)
    assert result.status == 2
    assert result.stderr.endswith(f"File {here}/mine.xml does not exist\n")
    assert result.stderr.count("\n") == 1
    config = here / "run" / "config.yaml"
    config.write_text(config.read_text().replace("id: Inv", "id: nowhere.envs:Inv"))
    for result in (run("eval", "../run"), run("train", "--resume", "../run")):
        assert result.status == 2
        assert "No module named 'nowhere.envs'; run the command from the folder that" in result.stderr
        assert result.stderr.count("\n") == 1


def test_a_run_continues_on_a_machine_without_its_gpu(run, tiny_config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    command = ["--config", tiny_config, "--threads", 1]
    assert run("train", *command, "--out", "run", "--generations", 2).status == 0
    config = Path("run/config.yaml")
    config.write_text(config.read_text().replace("device: cpu", "device: cuda:1"))
    refused = run("train", "--resume", "run", "--device", "cuda", "--generations", 6)
    assert (refused.status, refused.stderr) == (2, "es-train: device 'cuda' is not available\n")
    config.write_text(config.read_text().replace("engine: auto", "engine: warp"))
    resumed = run("train", "--resume", "run", "--generations", 6)
    assert resumed.status == 0, resumed.stderr
    first, second, _ = resumed.stdout.split("\n", 2)
    assert first == (
        "the run's device cuda:1 with env.engine warp is not available here (torch sees no CUDA device): "
        "choosing another"
    )
    assert second == "device cpu, because torch sees no CUDA device"
    assert run("train", *command, "--out", "whole").status == 0
    assert flatten(last_state(Path("run"))) == flatten(last_state(Path("whole")))


def test_a_run_begins_with_the_policy_of_another(run, finished_run, tiny_config):
    result = run(
        "train", "--config", tiny_config, "--init_from", finished_run, "--generations", 1, "--out", "warm"
    )
    assert result.status == 0
    assert f"run warm starts with the policy of {finished_run}\n" in result.stdout
    assert f"init_from: {finished_run}" in Path("warm/config.yaml").read_text()
    assert "with the policy of" not in run("train", "--resume", "warm", "--generations", 2).stdout


def test_a_population_is_trained_on_warps_cpu_device_from_end_to_end(run, tmp_path):
    arguments = ["--env.num_envs", 4, "--es.population_size", 8, "--es.num_bases", 2, "--generations", 2]
    short = ["--env.kwargs.max_episode_steps", 20, "--evaluation.episodes", 2, "--out", tmp_path / "run"]
    result = run("train", "--engine", "warp", "--device", "cpu", *arguments, *short)
    assert result.status == 0
    assert "device cpu, as configured: policies and physics (mujoco_warp) on it" in result.stdout
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["env_steps"] for line in lines] == [160, 320]
    assert lines[-1]["score"] > 50  # officially, of 20 steps on its feet
    assert "engine: warp" in (tmp_path / "run" / "config.yaml").read_text()
    assert run("eval", tmp_path / "run", "--episodes", 1).status == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is not a run directory"),
        (["RUN", "--episodes", "0"], "--episodes must be >= 1"),
        (["RUN", "--episodes", "some"], "invalid int value"),
        (["RUN", "--video", "film.avi"], "--video must end in .mp4 or .gif"),
        (["RUN", "--video", "nowhere/film.gif"], "folder nowhere does not exist"),
        (["RUN", "--video-frames", "3"], "--video-frames must be >= 1, and needs --video; got 3"),
        (["RUN", "--video", "film.gif", "--video-frames", "0"], "--video-frames must be >= 1"),
        (["RUN", "--checkpoint", "nope.pt"], "checkpoint nope.pt does not exist"),
    ],
)
def test_eval_tells_a_mistake_in_one_line(run, finished_run, arguments, message):
    result = run("eval", *(finished_run if argument == "RUN" else argument for argument in arguments))
    assert result.status == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env.id", "Humanod-v5"], "unknown environment 'Humanod-v5'; did you mean Humanoid-v5?"),
        (["--env.kwargs.gravity", "3"], "Humanoid-v5 has no keyword argument 'gravity'"),
        (["--optimizer.name", "LBFGS"], "optimizer.name 'LBFGS' is not available"),
        (["--optimizer.kwargs.beta", "3"], "optimizer Adam:"),
        (["--device", "abacus"], "device 'abacus' is not available"),
        (["--es.sigma", "-1"], "es.sigma must be > 0"),
        (["--env.engine", "mjx"], "env.engine must be one of 'auto', 'batch', 'mjdata_pool', 'warp', 'gymn"),
        (
            ["--env.id", "CartPole-v1", "--env.engine", "batch"],
            "'batch' runs native tasks only, not CartPole-v1",
        ),
        (["--env.engine", "batch"], "engine 'batch' has no contact forces (cfrc_ext)"),
        ([*POOL, "--device", "cuda"], "backend process_pool runs on device cpu, got cuda"),
        ([*POOL, "--env.engine", "batch"], "env.engine must be auto or gymnasium, got batch"),
        ([*POOL, "--env.id", "CartPol-v1"], "unknown environment 'CartPol-v1'; did you mean CartPole-v1?"),
        ([*POOL, "--env.id", "OnlyHere-v0"], "unknown environment 'OnlyHere-v0'"),
        (["--env.id", "CartPol-v1"], "unknown environment 'CartPol-v1'; did you mean CartPole-v1?"),
        (
            ["--env.id", "nowhere:Walk-v0"],
            "env.id nowhere:Walk-v0: No module named 'nowhere'; run the command from",
        ),
        (["--env.id", "CartPole-v1", "--env.kwargs.gravity", "3"], "unexpected keyword argument 'gravity'"),
        (["--env.wrappers", "[Nonesuch]"], "wrapper 'Nonesuch' does not exist: give a name in gymnasium.wra"),
        (
            ["--env.wrappers", "[nowhere:Nonesuch]"],
            "env.wrappers nowhere:Nonesuch: No module named 'nowhere'; run the command from",
        ),
        (["--env.wrappers", "[ClipReward]"], "Both `min_reward` and `max_reward` cannot be None"),
        (["--env.wrappers", "ClipReward"], "env.wrappers must be list"),
        (
            ["--env.wrappers", "[FlattenObservation]", "--env.engine", "mjdata_pool"],
            "env.wrappers need a gymnasium engine, got env.engine mjdata_pool",
        ),
        (["--env.id", f"{__name__}:Text-v0"], "no flat form of Text, the entry ['told'] of the observations"),
        (["--env.id", f"{__name__}:Text-v0", "--env.engine", "gymnasium_processes"], "no flat form of Text"),
        (["--env.id", "Pendulum-v1", "--policy.action_bounds", "cut"], "policy.action_bounds must be one of"),
        (["--init_from", "nowhere"], "checkpoint nowhere does not exist"),
        (["--init_from", "."], ". is not a run directory: it has no config.yaml"),
        (["--rollout.episodes", "0"], "rollout.episodes must be > 0, got 0"),
        (["--rollout.reset_seeds", "often"], "rollout.reset_seeds must be one of 'fresh', 'common', 'fixed'"),
        (["--rollout.min_env_steps", "-5"], "rollout.min_env_steps must be >= 0, got -5"),
        (["--rollout.episode_limit.threshold", "1.5"], "threshold must be in (0, 1], got 1.5"),
        (["--rollout.episode_limit.growth", "1"], "rollout.episode_limit.growth must be > 1, got 1"),
        (["--rollout.episode_limit.initial", "0"], "rollout.episode_limit.initial must be > 0, got 0"),
    ],
)
def test_train_tells_a_mistake_in_one_line_and_writes_nothing(run, arguments, message):
    result = run("train", *arguments, "--out", "run")
    assert result.status == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not Path("run").exists()


def test_a_missing_extra_is_told_in_one_line(run, monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("Box2D", "gymnasium.envs.box2d"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "Box2D", None)  # as if it were not installed
    result = run("train", "--config", "lunar_lander", "--out", "run")
    assert result.status == 2
    assert "LunarLander-v3: DependencyNotInstalled: Box2D is not installed" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not Path("run").exists()


def test_any_gymnasium_environment_is_trained_scored_and_resumed(run):
    arguments = ["--config", "cartpole", "--generations", 2, "--env.kwargs.max_episode_steps", 20]
    result = run(
        "train", *arguments, "--evaluation.interval", 1, "--out", "run", "--logging.reporters", "[jsonl]"
    )
    assert result.status == 0, result.stderr
    result = run("train", "--resume", "run", "--generations", 3)
    assert result.status == 0, result.stderr
    assert [line["generation"] for line in figures(Path("run"))] == [1, 2, 3]
    result = run("eval", "run", "--episodes", 2)
    assert result.status == 0, result.stderr
    assert "CartPole-v1" in result.stdout


def test_train_tells_a_checkpoint_it_cannot_use_and_leaves_it_alone(run, finished_run, tmp_path):
    def broken(content: bytes) -> Path:
        copy = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        shutil.copytree(finished_run, copy)
        (copy / "checkpoints" / "last.pt").write_bytes(content)
        return copy

    whole = (finished_run / "checkpoints" / "last.pt").read_bytes()
    for content in (b"", whole[:1000], whole[:-50]):
        copy = broken(content)
        result = run("train", "--resume", copy, "--generations", 9)
        assert result.status == 2
        assert "damaged" in result.stderr
        assert result.stderr.count("\n") == 1
        assert (copy / "checkpoints" / "last.pt").read_bytes() == content
        assert (copy / "metrics.jsonl").read_bytes() == (finished_run / "metrics.jsonl").read_bytes()
    other = broken(whole)
    config = other / "config.yaml"
    config.write_text(re.sub(r"hidden_sizes:\s*- 8", "hidden_sizes: [9]", config.read_text()))
    result = run("train", "--resume", other, "--generations", 9)
    assert result.status == 2
    assert "was saved with a different policy: network.0.weight is (8, 4)" in result.stderr


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_signal_saves_and_prints_the_command_that_resumes(tiny_config, number):
    with start("--config", tiny_config, "--generations", 100_000, "--out", "run") as process:
        for line in process.stdout:
            if line.startswith("gen     3"):
                process.send_signal(number)
                break
        output = process.stdout.read()
    assert process.returncode == 128 + number
    assert "Stopping safely. Press Ctrl-C again to abort.\n" in output
    assert "continue with: es-train --resume run" in output
    assert "Traceback" not in output
    state = last_state(Path("run"))
    generation, awaits_score = state["generation"], "unscored" in state
    assert generation >= 3
    assert figures(Path("run"))[-1]["generation"] == generation - awaits_score
    assert (f"stopped after generation {generation}, not scored yet;" in output) == awaits_score


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)],
    ids=["ctrl-c", "terminated"],
)
def test_a_signal_to_all_stops_a_process_pool_and_leaves_no_process(tiny_config, number):
    arguments = ["--config", tiny_config, *POOL, "--generations", 100_000, "--out", "run"]
    with start(*arguments, start_new_session=True) as process:
        for line in process.stdout:
            if line.startswith("gen     3"):
                assert len(session(process.pid)) >= 4  # with two workers, and the server that forks them
                os.killpg(process.pid, number)  # as a terminal or a batch system does
                break
        output = process.stdout.read()
    assert process.returncode == 128 + number
    assert "continue with: es-train --resume run" in output
    assert "Traceback" not in output
    deadline = time.monotonic() + 60
    while left := session(process.pid):
        assert time.monotonic() < deadline, left
        time.sleep(0.01)


def test_a_process_pool_trains_as_the_vectorized_backend_does(run, tiny_config):
    for backend in ("vectorized", "process_pool"):
        result = run("train", "--config", tiny_config, "--backend", backend, "--threads", 2, "--out", backend)
        assert result.status == 0, result.stderr
    pool, vectorized = figures(Path("process_pool")), figures(Path("vectorized"))
    assert len(pool) == len(vectorized) == 6
    scored = [[line["score"] is not None for line in lines] for lines in (pool, vectorized)]
    assert scored == [[False, True] * 3] * 2
    raw = RunDirectory.open("process_pool").read_metrics()
    assert all(line["timing"]["live_share"] == 1.0 for line in raw)
    # The first generation is the same but for rounding, and pays a whole number for each episode.
    for name in ("env_steps", "fitness_mean", "fitness_best", "episode_length", "tied_fraction"):
        assert pool[0][name] == pytest.approx(vectorized[0][name]), name
    assert pool[0]["fitness_best"] > pool[0]["fitness_worst"]
    assert pool[-1]["env_steps"] > 5 * 16
    assert run("eval", "process_pool", "--episodes", 1).status == 0


def test_an_odd_run_directory_is_named_so_that_a_shell_takes_it(run, tiny_config):
    out = Path("a [bold]run[/bold] of mine" + "x" * 120)
    result = run("train", "--config", tiny_config, "--generations", 1, "--out", out)
    assert result.status == 0, result.stderr
    command = next(line for line in result.stdout.splitlines() if line.startswith("finished"))
    assert shlex.split(command.split("score it with: ")[1]) == ["es-eval", str(out)]


def test_a_pickle_payload_in_a_run_is_refused_by_both_commands(run, finished_run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(finished_run, copy)
    for name in ("last.pt", "best.pt"):
        torch.save({"format": checkpoint.FORMAT, "policy": {"w": Payload()}}, copy / "checkpoints" / name)
    for arguments in (("train", "--resume", copy, "--generations", 9), ("eval", copy)):
        result = run(*arguments)
        assert result.status == 2
        assert "was refused: it contains objects other than plain data" in result.stderr
        assert result.stderr.count("\n") == 1
    assert not Path("executed").exists()


def test_a_resumed_run_that_is_finished_keeps_its_configuration(run, finished_run):
    before = (finished_run / "config.yaml").read_bytes()
    result = run("train", "--resume", finished_run, "--generations", 2)
    assert result.status == 0
    assert "has already used up its budget" in result.stdout
    assert (finished_run / "config.yaml").read_bytes() == before


def test_a_terminal_gets_a_progress_bar(tiny_config):
    """Under a pseudo-terminal the display redraws a bar below the lines."""
    script = ["script", "-qec", shlex.join([*TRAIN_PROCESS, "--config", str(tiny_config)]), "/dev/null"]
    result = subprocess.run(script, capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 0, result.stdout
    assert "gen     6" in result.stdout
    assert re.search(r"run .*━.* left \d:\d\d:\d\d", result.stdout)
    assert "\x1b[" in result.stdout


def kill_at_random_moments(
    run: Callable[..., Result], tiny_config: Path, kills: int, options: list[str]
) -> None:
    rng = random.Random(0)
    endless = ["--generations", 1_000_000]
    command: list[object] = ["--config", tiny_config, *options, "--out", "killed", *endless]
    for _ in range(kills):
        with start(*command) as process:
            # Wait for it to write, then let it run on for a moment of any length.
            for line in process.stdout:
                if line.startswith("gen "):
                    break
            time.sleep(rng.uniform(0.0, 0.3))
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        command = ["--resume", "killed", *endless]
    generations = last_state(Path("killed"))["generation"] + 7
    resumed = run("train", "--resume", "killed", "--generations", generations)
    assert resumed.status == 0, resumed.stderr
    whole = run("train", "--config", tiny_config, *options, "--out", "whole", "--generations", generations)
    assert whole.status == 0, whole.stderr
    assert flatten(last_state(Path("whole"))) == flatten(last_state(Path("killed")))
    assert figures(Path("whole")) == figures(Path("killed"))


@pytest.mark.parametrize(
    ("kills", "options"),
    [
        pytest.param(2, [], id="vectorized"),
        pytest.param(1, POOL, id="process_pool", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_resumes_bit_identically(run, tiny_config, kills, options):
    kill_at_random_moments(run, tiny_config, kills, options)


@pytest.mark.slow
def test_a_run_killed_ten_times_resumes_bit_identically(run, tiny_config):
    kill_at_random_moments(run, tiny_config, 10, [])


def test_a_run_killed_before_its_first_checkpoint_starts_again(run, tiny_config):
    result = run("train", "--config", tiny_config, "--generations", 1, "--out", "run")
    assert result.status == 0
    expected = flatten(last_state(Path("run")))
    Path("run/checkpoints/last.pt").unlink()
    result = run("train", "--resume", "run")
    assert result.status == 0, result.stderr
    assert flatten(last_state(Path("run"))) == expected
