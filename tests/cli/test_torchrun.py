"""es-train under torchrun: the same run on any number of ranks, and through every kind of failure."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torchrun
from torchrun import differences, write_config

from es_flipout.cli import train
from es_flipout.cli.arguments import UsageError, load_config
from es_flipout.cli.torchrun import check_ranks
from es_flipout.rollout import Ranks

ROOT = Path(__file__).parents[2]
RUN = {
    "es": {"population_size": 44, "sigma": 0.05},
    "evaluation": {"interval": 2, "episodes": 2},
    "logging": {"reporters": ["jsonl"], "keep_interval": 2, "histogram_interval": 2},
    "generations": 5,
}
PENDULUM = {
    "env": {"id": "InvertedPendulum-v5", "num_envs": 8, "kwargs": {"max_episode_steps": 60}},
    "policy": {"hidden_sizes": [8]},
}
CHEETAH = {
    "env": {"id": "HalfCheetah-v5", "num_envs": 32, "kwargs": {"max_episode_steps": 50}},
    "policy": {"hidden_sizes": [16, 16]},
}
CARTPOLE = {"env": {"id": "CartPole-v1", "num_envs": 8}, "policy": {"hidden_sizes": [16]}}
RECALL = {
    "env": {"id": "examples.recall:Recall-v0", "num_envs": 16},
    "policy": {"kind": "gru", "hidden_sizes": [], "recurrent_size": 8},
    "rollout": {"episodes": 3, "reset_seeds": "common"},
}
TASKS = {
    "cheetah": CHEETAH,
    "cartpole in a pool": {**CARTPOLE, "backend": "process_pool"},
    "cartpole in processes": {**CARTPOLE, "env": {**CARTPOLE["env"], "engine": "gymnasium_processes"}},
    "recall": RECALL,
}
FAMILIES = {
    "flipout": {"num_bases": 2},
    "low_rank": {"perturbation": "low_rank"},
    "independent": {"perturbation": "independent"},
}


def train_on(ranks, *arguments, **options):
    """Trains, and returns what torchrun, or es-train, has printed."""
    done = torchrun.run(ranks, *arguments, PYTHONPATH=str(ROOT), **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def start(ranks, *arguments, options=(), log="log"):
    with Path(log).open("w") as file:
        return subprocess.Popen(
            torchrun.command(ranks, *arguments, options=options),
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{Path.cwd()}"},
        )


def generations(folder) -> int:
    path = Path(folder) / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def wait_for(condition, process, *, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, Path("log").read_text()
        assert time.monotonic() < deadline, Path("log").read_text()
        time.sleep(0.05)


def processes_of_ranks(launcher: int) -> dict[int, int]:
    """Returns the process of each rank that a torchrun has started."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    found = {}
    for child in children:
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        found |= {int(each[5:]): int(child) for each in variables if each.startswith(b"RANK=")}
    return found


def test_two_ranks_and_a_resumed_run_give_the_bits_of_one_process():
    config = write_config(Path("config.yaml"), **RUN, **PENDULUM)
    assert train.main(["--config", config, "--out", "alone", "--generations", "4"]) == 0
    printed = train_on(2, "--config", config, "--out", "together", "--generations", "2")
    assert "run together starts on 2 ranks" in printed
    assert printed.count("gen ") == 2  # rank 0 alone prints
    assert train.main(["--resume", "together", "--generations", "4"]) == 0
    assert differences("alone", "together") == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "no_such.yaml"], "no_such.yaml"),
        (["--env.id", "NoSuch-v0"], "NoSuch-v0"),
        (["--out", "full"], "full is not empty"),
    ],
)
@pytest.mark.slow
def test_a_mistake_is_said_once_and_ends_all_ranks(words, message):
    Path("full").mkdir()
    Path("full/something").touch()
    done = torchrun.run(2, *words)
    assert done.returncode == 1  # torchrun's
    lines = [line for line in done.stderr.splitlines() if line.startswith("es-train: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "es_flipout/cli/training.py" not in done.stderr  # of a traceback


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.timeout(600)
def test_any_number_of_ranks_gives_the_same_bits(task, family):
    es = {**RUN["es"], **FAMILIES[family]}
    config = write_config(Path("config.yaml"), **{**RUN, **TASKS[task], "es": es})
    train_on(0, "--config", config, "--out", "0")
    for ranks in (1, 2, 3, 4):
        train_on(ranks, "--config", config, "--out", str(ranks))
        assert differences("0", str(ranks)) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_policy_of_which_nothing_is_known_gives_the_same_bits():
    Path("own.py").write_text(OWN_POLICY)
    run = {**RUN, **CHEETAH, "policy": {"kind": "own:Own"}}
    config = write_config(Path("config.yaml"), **run)
    train_on(0, "--config", config, "--out", "0", "--threads", "1")
    train_on(0, "--config", config, "--out", "2 workers", "--threads", "2")
    assert differences("0", "2 workers") == []
    for ranks in (2, 3):
        train_on(ranks, "--config", config, "--out", str(ranks), "--threads", str(4 - ranks))
        assert differences("0", str(ranks)) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_large_policies_and_several_populations_give_the_same_bits():
    run = {**RUN, "generations": 2, "rollout": {"min_env_steps": 4000}}  # of which one population has fewer
    run |= {"env": CHEETAH["env"], "policy": {"hidden_sizes": [600, 600]}}
    config = write_config(Path("config.yaml"), **run)
    for ranks in (0, 2, 3):
        train_on(ranks, "--config", config, "--out", str(ranks))
    assert torchrun.metrics("0")[0]["env_steps"] == 2 * 44 * 50
    assert differences("0", "2") == []
    assert differences("0", "3") == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_more_ranks_than_blocks():
    run = {**RUN, "es": {"population_size": 4}, "rollout": {"block_size": 2}, "generations": 3}
    config = write_config(Path("config.yaml"), **run, **PENDULUM)
    train_on(0, "--config", config, "--out", "0")
    train_on(4, "--config", config, "--out", "4")
    assert differences("0", "4") == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_goes_on_with_4_then_2_then_3_then_1_ranks():
    config = write_config(Path("config.yaml"), **{**RUN, "generations": 8}, **CHEETAH)
    train_on(0, "--config", config, "--out", "alone")
    train_on(4, "--config", config, "--out", "moving", "--generations", "2")
    for ranks, until in ((2, 4), (3, 6), (1, 8)):
        printed = train_on(ranks, "--resume", "moving", "--generations", str(until))
        assert f"continues after generation {until - 2}" in printed
    assert differences("alone", "moving") == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_is_lost_when_ranks_are_killed_one_after_the_other():
    kills, ranks, rng = 6, 3, random.Random(0)
    run = {**RUN, "generations": 30, "es": {"population_size": 64, "sigma": 0.05}}
    cheetah = {**CHEETAH, "env": {**CHEETAH["env"], "kwargs": {"max_episode_steps": 200}}}
    config = write_config(Path("config.yaml"), **run, **cheetah)
    train_on(0, "--config", config, "--out", "alone")
    options = ["--max-restarts", str(kills)]
    process = start(ranks, "--config", config, "--out", "killed", options=options)
    for kill in range(kills):
        before = generations("killed")
        wait_for(lambda before=before: generations("killed") > before, process)
        time.sleep(rng.uniform(0, 0.5))
        reached = generations("killed")
        if process.poll() is not None or reached >= 30:
            break
        os.kill(processes_of_ranks(process.pid)[kill % ranks], signal.SIGKILL)
        wait_for(lambda kill=kill: Path("log").read_text().count("continues after") > kill, process)
        *_, after = re.findall(r"continues after generation (\d+)", Path("log").read_text())
        assert int(after) >= reached - 1  # a generation is reported before it is saved
    assert process.wait(timeout=240) == 0
    assert kill >= 3
    assert differences("alone", "killed") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "to_all"), [(signal.SIGTERM, False), (signal.SIGINT, False), (signal.SIGTERM, True)]
)
def test_a_signal_saves_the_run(number, to_all):
    """Sent to torchrun, which sends it on, or as SLURM does it to all processes of a job step."""
    config = write_config(Path("config.yaml"), **{**RUN, "generations": 12}, **CHEETAH)
    train_on(0, "--config", config, "--out", "alone")
    process = start(2, "--config", config, "--out", "stopped")
    wait_for(lambda: generations("stopped") >= 2, process)
    ranks = processes_of_ranks(process.pid).values() if to_all else ()
    for each in (process.pid, *ranks):
        os.kill(each, number)
    process.wait(timeout=60)
    assert re.search(r"stopped after generation \d+.*; continue with", Path("log").read_text())
    assert not processes_that_mention("stopped")
    train_on(3, "--resume", "stopped")
    assert differences("alone", "stopped") == []


def processes_that_mention(name: str) -> list[str]:
    mine = str(Path.cwd())
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if str((path / "cwd").readlink()) == mine and name in (line := (path / "cmdline").read_text()):
                found.append(line)
        except OSError:
            continue
    return found


OWN_POLICY = """
import torch

class Own(torch.nn.Sequential):
    def __init__(self, observation_space, action_space):
        ins, outs = observation_space.shape[0], action_space.shape[0]
        super().__init__(
            torch.nn.Linear(ins, 300), torch.nn.LayerNorm(300), torch.nn.Sigmoid(), torch.nn.Linear(300, outs)
        )
"""
FAULTS = """
import os, time
import gymnasium
import torch
from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv

RANK = int(os.environ.get("RANK", 0))

class Corrupted(torch.optim.SGD):
    steps = 0
    def step(self, closure=None):
        super().step(closure)
        self.steps += 1
        if self.steps == 3 and RANK == int(os.environ["BAD_RANK"]):
            weight = self.param_groups[0]["params"][0].data
            weight.view(-1)[:1] = torch.nextafter(weight.view(-1)[:1], torch.tensor([9.0]))

class Sleeping(InvertedPendulumEnv):
    resets = 0
    def reset(self, **options):
        self.resets += 1
        if self.resets == 5 and RANK == int(os.environ["BAD_RANK"]):
            time.sleep(1000)
        return super().reset(**options)

gymnasium.register("Sleeping-v0", Sleeping, max_episode_steps=60)
"""


@pytest.mark.slow
@pytest.mark.parametrize("bad", [0, 1, 2])
def test_a_corrupted_rank_is_named_and_nothing_of_it_is_saved(bad):
    Path("faults.py").write_text(FAULTS)
    run = {**RUN, "optimizer": {"name": "faults:Corrupted", "lr": 0.05}, "evaluation": {"interval": 0}}
    config = write_config(Path("config.yaml"), **run, **PENDULUM)
    done = torchrun.run(3, "--config", config, "--out", "run", BAD_RANK=str(bad))
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("es-train: ")]
    assert len(lines) == 1
    assert f"rank {bad} has a different state than the other ranks" in lines[0]
    config = write_config(Path("config.yaml"), **{**run, "generations": 2}, **PENDULUM)
    train_on(0, "--config", config, "--out", "whole", BAD_RANK="-1")
    assert differences("whole", "run") == []


@pytest.mark.slow
@pytest.mark.parametrize("bad", [0, 1])
def test_a_rank_that_sleeps_is_named(bad):
    Path("faults.py").write_text(FAULTS)
    env = {"id": "faults:Sleeping-v0", "num_envs": 4, "engine": "gymnasium"}
    config = write_config(Path("config.yaml"), **RUN, env=env, policy={"hidden_sizes": [8]}, rank_timeout=4)
    done = torchrun.run(2, "--config", config, "--out", "run", BAD_RANK=str(bad))
    assert done.returncode == 1
    assert f"rank {bad} did not answer within 4 seconds (rank_timeout)" in done.stderr


@pytest.mark.slow
def test_two_runs_on_one_machine_do_not_meet():
    configs = [write_config(Path(f"{seed}.yaml"), **RUN, **PENDULUM, seed=seed) for seed in (1, 2)]
    for seed, config in enumerate(configs, 1):
        train_on(0, "--config", config, "--out", f"alone{seed}")
    both = [
        start(2, "--config", config, "--out", f"together{seed}", log=f"log{seed}")
        for seed, config in enumerate(configs, 1)
    ]
    assert [each.wait(timeout=200) for each in both] == [0, 0]
    for seed in (1, 2):
        assert differences(f"alone{seed}", f"together{seed}") == []


@pytest.mark.slow
def test_hosts_share_no_files():
    for folder in ("first", "second"):
        Path(folder).mkdir()
    config = write_config(Path("first/config.yaml"), **RUN, **PENDULUM)
    train_on(0, "--config", config, "--out", "first/alone")
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        port = some.getsockname()[1]
    hosts = []
    for node, folder in enumerate(("first", "second")):
        place = ["--nnodes", "2", "--node-rank", str(node), "--master-addr", "127.0.0.1"]
        place += ["--master-port", str(port), "--nproc-per-node", "1", "--no-python"]
        words = [*torchrun.LAUNCHER, *place, torchrun.ES_TRAIN, "--config", "config.yaml", "--out", "run"]
        with Path(f"log{node}").open("w") as log:
            hosts.append(subprocess.Popen(words, cwd=folder, stdout=log, stderr=subprocess.STDOUT))
    assert [each.wait(timeout=200) for each in hosts] == [0, 0], Path("log1").read_text()
    assert differences("first/alone", "first/run") == []
    assert list(Path("second").iterdir()) == []


@pytest.mark.slow
def test_with_restarts_a_run_needs_to_know_where_it_is():
    config = write_config(Path("config.yaml"), **RUN, **PENDULUM)
    done = torchrun.run(2, "--config", config, options=["--max-restarts", "1"])
    assert "es-train: torchrun --max-restarts needs es-train --out DIR" in done.stderr
    assert not Path("runs").exists()


# What a command line means, in this process.


def test_auto_begins_a_run_and_later_continues_it(capsys, tiny_config):
    words = ["--config", str(tiny_config), "--out", "run", "--resume", "auto"]
    assert train.main([*words, "--generations", "2"]) == 0
    assert "run run starts" in capsys.readouterr().out
    assert train.main(words) == 0
    assert "continues after generation 2" in capsys.readouterr().out
    assert generations("run") == 6
    assert train.main(words) == 0
    assert "has already used up its budget" in capsys.readouterr().out
    assert train.main(["--config", str(tiny_config), "--out", "plain"]) == 0
    assert differences("plain", "run") == []


def test_auto_begins_a_run_that_died_before_it_had_a_configuration(capsys, tiny_config):
    Path("run/checkpoints").mkdir(parents=True)
    Path("run/config.yaml.tmp").write_text("half")
    assert train.main(["--config", str(tiny_config), "--out", "run", "--resume", "auto"]) == 0
    assert generations("run") == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--es.sigma", "0.2"], "the run at run has es.sigma 0.1, not 0.2: choose another --out"),
        (
            ["--env.kwargs", "{max_episode_steps: 61}"],
            "has env.kwargs {'max_episode_steps': 60}, not {'max_e",
        ),
    ],
)
def test_auto_refuses_to_continue_another_run(capsys, tiny_config, words, message):
    command = ["--config", str(tiny_config), "--out", "run", "--resume", "auto", "--generations", "1"]
    assert train.main(command) == 0
    capsys.readouterr()
    assert train.main([*command, *words]) == 2
    assert message in capsys.readouterr().err


def test_auto_needs_a_place(capsys, tiny_config):
    assert train.main(["--config", str(tiny_config), "--resume", "auto"]) == 2
    assert "--resume auto needs --out DIR" in capsys.readouterr().err


def test_several_ranks_have_a_gpu_each(tiny_config):
    ranks = Ranks()
    ranks.size = 2
    config = replace(load_config(tiny_config), device="cuda:1")
    with pytest.raises(UsageError, match="device must be cuda on several ranks"):
        check_ranks(config, ranks, resumes=False)
    check_ranks(config, Ranks(), resumes=False)
    check_ranks(replace(config, device="cuda"), ranks, resumes=False)


def test_restarted_ranks_continue_their_run(capsys, monkeypatch, tiny_config):
    words = ["--config", str(tiny_config), "--out", "run"]
    assert train.main([*words, "--generations", "2"]) == 0
    capsys.readouterr()
    assert train.main(words) == 2  # the folder is not empty
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    capsys.readouterr()
    assert train.main(words) == 0
    assert "continues after generation 2" in capsys.readouterr().out
