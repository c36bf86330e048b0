r"""Live env steps/s of other libraries' evolution strategies and of es_flipout, in alternating rounds.

python -m benchmarks.peers.run --peers-python PEERS/bin/python --rounds 3 --seconds 5 \
    --json benchmarks/results/peers.json

Each measurement is a process of its own, alone on the machine, and counts whole generations but the first.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.peers.contestant import LEARNING_RATE, MAX_EPISODE_STEPS, SIGMA
from es_flipout.cli.results import Results
from es_flipout.cli.throughput import ENV_STEPS
from es_flipout.run.machine import describe_machine

TASKS = ["HalfCheetah-v5", "Humanoid-v5"]
POPULATIONS = [64, 256]


@dataclass(frozen=True)
class Contestant:
    """Who takes part.

    Attributes:
        module: in `benchmarks.peers`.
        is_peer: whether it runs in the peers' environment, or else in this one.
        settings: what replaces the module's best settings.
    """

    module: str
    is_peer: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)


OURS = "ours"
PHYSICS = "raw physics"
CONTESTANTS = {
    OURS: Contestant("ours", is_peer=False),
    "ours, process pool": Contestant("ours", is_peer=False, settings={"backend": "process_pool"}),
    "EvoTorch VecGymNE": Contestant("evotorch_vec"),
    "EvoTorch GymNE": Contestant("evotorch_gym"),
    "SB3-contrib ARS": Contestant("sb3_ars"),
    "evosax Open_ES": Contestant("evosax_pool"),
    "EvoX OpenES": Contestant("evox_pool"),
}
"""By name, in the order of a round."""
VARIANTS = {
    "EvoTorch VecGymNE, its own vector env": Contestant("evotorch_vec", settings={"vector_env": "own"}),
    "EvoTorch VecGymNE, subbatches of 16": Contestant("evotorch_vec", settings={"subbatch_size": 16}),
    "EvoTorch VecGymNE, distributed": Contestant("evotorch_vec", settings={"distributed": True}),
    "EvoTorch GymNE, subbatches of 4": Contestant("evotorch_gym", settings={"subbatch_size": 4}),
    "EvoTorch GymNE, distributed": Contestant("evotorch_gym", settings={"distributed": True}),
    "SB3-contrib ARS, 3 processes": Contestant("sb3_ars", settings={"processes": 3}),
    "evosax Open_ES, 8 envs": Contestant("evosax_pool", settings={"num_envs": 8}),
    "evosax Open_ES, 32 envs": Contestant("evosax_pool", settings={"num_envs": 32}),
    "EvoX OpenES, 8 envs": Contestant("evox_pool", settings={"num_envs": 8}),
    "EvoX OpenES, 32 envs": Contestant("evox_pool", settings={"num_envs": 32}),
    "EvoX OpenES, 3 processes": Contestant("evox_pool", settings={"processes": 3}),
}
"""Other settings of the peers: with `--variants` they take part as well."""
EVERYBODY = CONTESTANTS | VARIANTS

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}
TIMEOUT = 240.0
"""Seconds after which a measurement is given up."""
ATTEMPTS = 2
"""How often a measurement is tried: on a busy machine ray does not always start."""
MEASURED = ("env_steps", "episodes", "generations", "seconds")
"""Attributes of `contestant.Measurement` that are metrics, beside ENV_STEPS."""


def add(results: Results, index: int, name: str, result: Mapping[str, Any], case: Mapping[str, Any]) -> None:
    """Adds a measurement, and the raw physics if it was measured as well, to the results."""
    figures = {metric: result[metric] for metric in MEASURED}
    rate = {ENV_STEPS: result["env_steps"] / result["seconds"]}
    results.add(index, name, {**rate, **figures}, **case)
    if seconds := result["physics_seconds"]:
        results.add(index, PHYSICS, {ENV_STEPS: result["env_steps"] / seconds, "seconds": seconds}, **case)


def fastest_peer(case: Results, module: str | None = None) -> str | None:
    """Returns the peer of the highest median rate, or the settings of one module; None if there is none."""
    medians = {
        name: case.spread(name, ENV_STEPS).median
        for name, contestant in EVERYBODY.items()
        if contestant.is_peer and module in (None, contestant.module) and case.by_round(name, ENV_STEPS)
    }
    return max(medians, key=lambda name: medians[name], default=None)


def table(case: Results) -> str:
    """Returns the medians over rounds as a table, and how far ours is ahead of the fastest peer."""
    heads = f"{ENV_STEPS:>12}{'least':>10}{'most':>10}{'/ physics':>11}{'ours / it':>11}{'length':>8}"
    lines = [f"  {'':38}{heads}"]
    for name in (PHYSICS, *EVERYBODY):
        if not case.by_round(name, ENV_STEPS):
            continue
        rate = case.spread(name, ENV_STEPS)
        shares = case.ratios((name, ENV_STEPS), (PHYSICS, ENV_STEPS))
        leads = case.ratios((OURS, ENV_STEPS), (name, ENV_STEPS))
        played = OURS if name == PHYSICS else name
        length = statistics.median(case.ratios((played, "env_steps"), (played, "episodes")))
        lines.append(
            f"  {name:38}{rate.median:12,.0f}{rate.lowest:10,.0f}{rate.highest:10,.0f}"
            f"{_median(shares):>11}{_median(leads):>11}{length:8.1f}"
        )
    peer = fastest_peer(case)
    for name, contestant in CONTESTANTS.items() if peer else ():
        if not contestant.is_peer and (leads := case.ratios((name, ENV_STEPS), (peer, ENV_STEPS))):
            spread = f"{min(leads):.2f} to {max(leads):.2f}"
            lines.append(f"  {name} / fastest peer ({peer}): {statistics.median(leads):.2f} ({spread})")
    return "\n".join(lines)


def _median(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f}" if values else "-"


def measure(contestant: Contestant, python: str, case: Mapping[str, Any]) -> dict[str, Any]:
    """Runs one measurement in a process of its own; returns its result.

    Raises:
        RuntimeError: if it fails.
    """
    root = Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory(prefix="peers") as folder, process_tree():
        result, log = Path(folder, "result.json"), Path(folder, "log")
        options = [f"--{name}={value}" for name, value in case.items()]
        options += [f"--settings={json.dumps(contestant.settings)}", f"--result={result}"]
        command = [python, "-m", f"benchmarks.peers.{contestant.module}", *options]
        environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(root), "RAY_TMPDIR": folder}
        with log.open("w") as stream:
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=stream, stderr=stream, process_group=0
            )
            try:
                status: object = process.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                status = f"nothing after {TIMEOUT:.0f} s"
            finally:
                if process.poll() is None:
                    process.terminate()
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(10)
        if status != 0:
            raise RuntimeError(f"{status}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-15:]))
        answer: dict[str, Any] = json.loads(result.read_text())
        return answer


@contextmanager
def process_tree() -> Iterator[None]:
    """Kills what was started inside and still lives: processes of processes, orphaned or not."""
    adopt_orphans, libc = 36, ctypes.CDLL(None)  # PR_SET_CHILD_SUBREAPER
    libc.prctl(adopt_orphans, 1, 0, 0, 0)
    here = psutil.Process()
    before = set(here.children(recursive=True))
    try:
        yield
    finally:
        while children := set(here.children(recursive=True)) - before:
            for child in children:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            with suppress(ChildProcessError):
                os.waitpid(-1, 0)


def _without_paths(arguments: Sequence[str]) -> list[str]:
    """Returns the command line without where the peers' interpreter lies on this machine."""
    hidden = {index + 1 for index, word in enumerate(arguments) if word == "--peers-python"}
    return ["PEERS/bin/python" if index in hidden else word for index, word in enumerate(arguments)]


def attempt(contestant: Contestant, python: str, case: Mapping[str, Any]) -> dict[str, Any]:
    """Does what `measure` does, and once more if it fails."""
    for _ in range(ATTEMPTS - 1):
        try:
            return measure(contestant, python, case)
        except RuntimeError as error:
            print(f"tried again, since it failed: {error}", flush=True)
    return measure(contestant, python, case)


def turns(names: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Returns who is measured in which round, one after the other: every other round in reverse order."""
    for index in range(rounds):
        yield from ((index, name) for name in (names if index % 2 == 0 else reversed(names)))


def main() -> None:
    """Measures, prints, and writes the JSON after each measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--peers-python", type=Path, default=Path(sys.executable), help="interpreter that has the peers"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="least duration of a measurement")
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--populations", nargs="+", type=int, default=POPULATIONS)
    parser.add_argument("--contestants", nargs="+", choices=list(EVERYBODY), default=list(CONTESTANTS))
    parser.add_argument("--variants", action="store_true", help="other settings of the peers as well")
    parser.add_argument("--json", type=Path, help="file for the results")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    peers_python = str(arguments.peers_python.absolute())
    results = Results(
        {
            "command": shlex.join(["python", "-m", "benchmarks.peers.run", *_without_paths(sys.argv[1:])]),
            "machine": describe_machine(),
            "max_episode_steps": MAX_EPISODE_STEPS,
            "sigma": SIGMA,
            "learning_rate": LEARNING_RATE,
            "versions": {},
            "contestants": {},
        }
    )
    names = [*arguments.contestants, *(VARIANTS if arguments.variants else ())]
    failures = 0
    for task, population in itertools.product(arguments.tasks, arguments.populations):
        case = {"task": task, "population": population}
        for seed, name in turns(names, arguments.rounds):
            contestant = EVERYBODY[name]
            options = {**case, "seconds": arguments.seconds, "seed": seed}
            label = f"{task} population {population} round {seed + 1} {name:38}"
            try:
                result = attempt(contestant, peers_python if contestant.is_peer else sys.executable, options)
            except RuntimeError as error:
                failures += 1
                print(f"{label} failed: {error}", flush=True)
                continue
            results.settings["versions"][name] = result["versions"]
            results.settings["contestants"][name] = result["settings"]
            add(results, seed, name, result, case)
            rate, length = result["env_steps"] / result["seconds"], result["env_steps"] / result["episodes"]
            print(f"{label}{rate:10,.0f} {ENV_STEPS}, length {length:.1f}", flush=True)
            if arguments.json:
                results.write(arguments.json)
        print(f"\n{task}, population {population}\n{table(results.where(**case))}\n", flush=True)
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
