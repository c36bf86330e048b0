"""Measures the contestants of es-bench, and prints and writes what came of it."""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from es_flipout.cli.arguments import UsageError
from es_flipout.cli.process import OutputConsole, silence_mujoco
from es_flipout.cli.results import Results, number
from es_flipout.cli.throughput import (
    ENV_STEPS,
    GATHERING,
    MEMBERS,
    MEMORY,
    ONE_RANK,
    ONE_WORKER,
    PHYSICS,
    UPDATING,
    WAITING,
    Contestant,
    FirstGeneration,
    contestants,
    rank_contestants,
)
from es_flipout.cli.torchrun import is_launched, use_own_gpu
from es_flipout.processes import available_cores
from es_flipout.rollout import PlayError, ProcessGroup, Ranks
from es_flipout.rollout.process_group import START_SECONDS
from es_flipout.rollout.rank_contract import ALONE
from es_flipout.run.config import Config, EnvConfig, ESConfig, PolicyConfig
from es_flipout.run.machine import describe_machine
from es_flipout.run.run_directory import safe_name


def _up_to(count: int) -> list[int]:
    """Returns the powers of two up to a number, and the number itself."""
    return [*(2**power for power in range(count.bit_length())), count]


def _config(parsed: argparse.Namespace, device: str, threads: int | None = None) -> Config:
    return Config(
        env=EnvConfig(parsed.env, parsed.env_kwargs, parsed.num_envs),
        policy=PolicyConfig(hidden_sizes=parsed.hidden_sizes),
        es=ESConfig(population_size=parsed.population_size),
        seed=parsed.seed,
        device=device,
        threads=threads,
    )


def _contestants(parsed: argparse.Namespace, group: Ranks) -> dict[str, Contestant]:
    if group.is_launched:
        config = _config(parsed, parsed.device, parsed.threads)
        return rank_contestants(config, parsed.ranks or _up_to(group.size), group)
    return contestants(
        _config(parsed, "cpu"),
        parsed.workers or _up_to(available_cores()),
        parsed.threads or available_cores(),
        gpu="cuda" if torch.cuda.is_available() else None,
        warp_envs=parsed.warp_envs,
        warp_members_per_env=parsed.warp_members_per_env,
        warp_device=parsed.warp_device,
    )


def measure(parsed: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Measures as es-bench was asked to; returns the exit status.

    Args:
        parsed: the arguments, see `bench`.
        arguments: as they were given.
    """
    silence_mujoco()
    torch.set_num_threads(1)  # as es-train has it
    if not is_launched():
        return _measure_on(ALONE, parsed, arguments)
    try:
        group = ProcessGroup.of_environment()
    except ValueError as error:
        raise UsageError(str(error)) from error
    with closing(group):
        if max(parsed.ranks or [1]) > group.size:
            raise UsageError(f"--ranks {max(parsed.ranks)}: torchrun has started {group.size}")
        try:
            use_own_gpu(_config(parsed, parsed.device), group)
            group.start(None, timeout=START_SECONDS, device=parsed.device)
            return _measure_on(group, parsed, arguments)
        except (PlayError, ValueError) as error:
            raise UsageError(str(error)) from error


def _measure_on(group: Ranks, parsed: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Measures all contestants; rank 0 prints and writes what came of it."""
    if parsed.out is not None and group.rank == 0:
        _make_writable(parsed.out)  # before minutes of measuring
    results = Results({"command": shlex.join(["es-bench", *arguments])})
    names = ("env", "env_kwargs", "num_envs", "population_size", "hidden_sizes", "seed", "seconds")
    results.settings |= {name: getattr(parsed, name) for name in names}
    prices = {"core": parsed.price_per_core_hour, "machine": parsed.price_per_machine_hour}
    results.settings["price_per_hour"] = prices
    try:
        _measure(_contestants(parsed, group), results, parsed.rounds, parsed.seconds, group)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if group.rank > 0:
        return 0
    _print(table(results), f"{parsed.env}, {parsed.population_size} members, {parsed.num_envs} envs")
    if parsed.out is not None:
        path = parsed.out / safe_name(f"throughput_{parsed.env}.json")
        results.write(path)
        print(path)
    return 0


def _measure(
    entrants: Mapping[str, Contestant], results: Results, rounds: int, seconds: float, group: Ranks
) -> None:
    """Measures all contestants in alternating rounds, each on the first so many of the ranks."""
    results.settings["contestants"] = {name: each.settings for name, each in entrants.items()}
    with ExitStack() as stack:
        runs = {}
        for name, each in entrants.items():
            part = group.subgroup(each.ranks)
            if group.rank < each.ranks:
                runs[name] = stack.enter_context(closing(FirstGeneration(each.config, part)))
                results.add(0, name, runs[name].once)
        turns, console = list(itertools.product(range(rounds), entrants)), Console(stderr=True)
        hidden = group.rank > 0 or not console.is_terminal
        for index, name in track(turns, "measuring", console=console, transient=True, disable=hidden):
            if name in runs:
                results.add(index, name, runs[name].measure(seconds))
            group.together(lambda: None, lambda _: None)  # those that do not take part wait
    devices = [each.config.device for each in entrants.values()]
    results.settings["machine"] = describe_machine(max(devices, key=lambda device: device != "cpu"))


def table(results: Results) -> list[list[str]]:
    """Returns heads, then rows: rates, scaling of the process pool, equivalent CPU cores of the others.

    Efficiency is the rate of w workers or ranks over w times that of one, equivalent cores are the rate over
    that of one worker, both within a round.
    """
    one = next(name for name in (ONE_WORKER, ONE_RANK) if name in results.settings["contestants"])
    of_core, of_machine = (results.settings["price_per_hour"].get(name) for name in ("core", "machine"))
    heads = ["", ENV_STEPS, MEMBERS, "efficiency or equivalent cores"]
    heads += [WAITING, GATHERING, UPDATING] if one == ONE_RANK else []
    heads += [PHYSICS, "of it", "GPU memory, GB"] if PHYSICS in results.column("metric") else []
    heads += ["price of 10^9 steps"] if of_core or of_machine else []
    rows = []
    for name, contestant in results.settings["contestants"].items():
        rate = results.spread(name, ENV_STEPS)
        ratio = statistics.median(results.ratios((name, ENV_STEPS), (one, ENV_STEPS)))
        workers = contestant["workers"] or (one == ONE_RANK and contestant.get("ranks", 1))
        row = {
            ENV_STEPS: str(rate),
            MEMBERS: number(results.spread(name, MEMBERS).median),
            heads[3]: f"{ratio / workers:.0%}" if workers else f"{number(ratio)} cores",
        }
        row |= {head: number(results.spread(name, head).median) for head in heads if head.endswith(", ms")}
        if results.by_round(name, PHYSICS):
            row[PHYSICS] = number(results.spread(name, PHYSICS).median)
            share = statistics.median(results.ratios((name, ENV_STEPS), (name, PHYSICS)))
            row["of it"] = f"{share:.0%}"
            row["GPU memory, GB"] = number(results.spread(name, MEMORY).median / 1e9)
        by_core = (
            contestant["device"] == "cpu"
            and of_core
            and of_core * contestant["cores"] * contestant.get("ranks", 1)
        )
        if price := by_core or of_machine:
            row["price of 10^9 steps"] = number(price * 1e9 / rate.median / 3600)
        rows.append([name, *(row.get(head, "") for head in heads[1:])])
    return [heads, *rows]


def _print(cells: Sequence[Sequence[str]], title: str) -> None:
    shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for index, head in enumerate(cells[0]):
        shown.add_column(head, justify="right" if index else "left", no_wrap=index < 2)
    for row in cells[1:]:
        shown.add_row(*row)
    console = OutputConsole(highlight=False)
    if not console.is_terminal:
        console.width = 140
    console.print(shown)


def _make_writable(folder: Path) -> None:
    """Makes the folder.

    Raises:
        UsageError: if nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out: cannot make the folder {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise UsageError(f"--out: cannot write to {folder}")
