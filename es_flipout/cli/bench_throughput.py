"""es-bench throughput: how fast populations are evaluated, by a process pool and in one batch."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.table import Table

from es_flipout.bench.plots import Bars, Curve, Lines, Panel, Picture
from es_flipout.bench.report import Figures, Ratio, Spread, compared, medians, ratios_within, spreads
from es_flipout.bench.throughput import (
    Prices,
    Setup,
    alone,
    efficiency,
    env_steps,
    equivalent_cores,
    measure_throughput,
    members,
    pool_name,
    setups,
    share_of_physics,
    slots_on_warp,
    throughput_ratios,
)
from es_flipout.bench.timing import checked_device, torch_threads
from es_flipout.cli.arguments import UsageError
from es_flipout.cli.bench_common import (
    Bench,
    Report,
    add_env_options,
    add_timing_options,
    env_config,
    env_settings,
)
from es_flipout.cli.bench_display import Bar, make_table, number
from es_flipout.cli.process import silence_mujoco
from es_flipout.processes import available_cores
from es_flipout.run.config import Config


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_env_options(parser, env="any task that es-train takes")
    parser.add_argument(
        "--workers",
        type=int,
        nargs="+",
        metavar="N",
        help="sizes of the process pool (default: powers of two, and every core); 1 is always measured",
    )
    parser.add_argument("--threads", type=int, help="of the vectorized contestants (default: every core)")
    parser.add_argument(
        "--warp-slots",
        type=int,
        nargs="+",
        default=[],
        metavar="N",
        help="also measure engine warp, all on one device, with N slots each",
    )
    parser.add_argument(
        "--warp-members-a-slot", type=int, default=4, metavar="N", help="of those (default: %(default)s)"
    )
    parser.add_argument("--warp-device", default="cuda", help="device of those (default: %(default)s)")
    for name, what in (
        ("core", "of a CPU core; contestants without a GPU pay for the cores that they use"),
        ("machine", "of the whole machine; for contestants with a GPU, and for all without a price per core"),
    ):
        parser.add_argument(f"--price-per-{name}-hour", type=float, metavar="PRICE", help=f"price {what}")
    add_timing_options(parser, rounds=3, seconds=5.0)


def _workers(parsed: argparse.Namespace) -> list[int]:
    cores = available_cores()
    powers = [2**exponent for exponent in range(cores.bit_length()) if 2**exponent <= cores]
    workers: list[int] = parsed.workers or [*powers, cores]
    if min(workers) < 1:
        raise UsageError(f"--workers must be >= 1, got {min(workers)}")
    return workers


def _setups(parsed: argparse.Namespace, config: Config) -> list[Setup]:
    workers = _workers(parsed)
    if parsed.warp_slots and min(parsed.warp_slots) < 1:
        raise UsageError(f"--warp-slots must be >= 1, got {min(parsed.warp_slots)}")
    if parsed.warp_members_a_slot < 1:
        raise UsageError(f"--warp-members-a-slot must be >= 1, got {parsed.warp_members_a_slot}")
    gpu = "cuda" if torch.cuda.is_available() else None
    try:
        if parsed.warp_slots:
            checked_device(parsed.warp_device)
        return setups(
            config,
            workers,
            parsed.threads or available_cores(),
            gpu=gpu,
            warp_slots=parsed.warp_slots,
            warp_members_a_slot=parsed.warp_members_a_slot,
            warp_device=parsed.warp_device,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def _prices(parsed: argparse.Namespace) -> Prices:
    for name in ("core", "machine"):
        price = getattr(parsed, f"price_per_{name}_hour")
        if price is not None and not price > 0:
            raise UsageError(f"--price-per-{name}-hour must be > 0, got {price}")
    return Prices(parsed.price_per_core_hour, parsed.price_per_machine_hour)


def _run(parsed: argparse.Namespace) -> Report:
    prices, config = _prices(parsed), env_config(parsed)
    contestants = _setups(parsed, config)
    silence_mujoco()
    title = _title(env_settings(parsed, config), parsed.rounds)
    with torch_threads(1), Bar(title) as bar:  # one thread, as es-train has it
        try:
            rounds, steps, memory = measure_throughput(
                contestants, seconds=parsed.seconds, rounds=parsed.rounds, watch=bar.subject()
            )
        except ValueError as error:
            raise UsageError(str(error)) from error
    costs = [prices.costs(contestants, rates) for rates in rounds]
    ratios = throughput_ratios(contestants)
    body = {
        **env_settings(parsed, config),
        "price_per_core_hour": prices.core,
        "price_per_machine_hour": prices.machine,
        "cores": {each.name: each.cores for each in contestants},
        "env_steps_a_generation": steps,
        "gpu_memory_bytes": memory,
        "warp_members_a_slot": parsed.warp_members_a_slot,
        "medians": medians(rounds),
        "median_cost_of_1e9_env_steps": medians(costs),
        **compared(rounds, ratios),
    }
    device = next((each.config.device for each in contestants if each.on_gpu), "cpu")
    table = _table(title, contestants, rounds, ratios, costs, memory)
    return Report(f"throughput_{parsed.env}", body, [table], device)


def _table(
    title: str,
    contestants: Sequence[Setup],
    rounds: Sequence[Figures],
    ratios: Mapping[str, Ratio],
    costs: Sequence[Figures],
    memory: Mapping[str, int],
) -> Table:
    columns = ["env steps/s", "lowest..highest", "members/s", "efficiency", "equivalent cores"]
    if on_warp := any(each.on_warp for each in contestants):
        columns += ["of physics alone", "GPU memory, GB"]
    table = make_table(title, "contestant", *columns, *(["per 10^9 steps"] if costs[0] else []))
    rates, prices = spreads(rounds), medians(costs)
    shares = {name: Spread.of(values) for name, values in ratios_within(rounds, ratios).items()}
    for each in contestants:
        rate = rates[env_steps(each.name)]
        row = [number(rate.median), f"{number(rate.lowest)}..{number(rate.highest)}"]
        row.append(number(rates[members(each.name)].median))
        if each.workers:
            row += [f"{shares[efficiency(each)].median:.0%}", ""]
        else:
            row += ["", number(shares[equivalent_cores(each)].median)]
        if on_warp:
            row.append(f"{shares[share_of_physics(each)].median:.0%}" if each.on_warp else "")
            row.append(number(memory[each.name] / 1e9) if each.on_gpu else "")
        if each.name in prices:
            row.append(number(prices[each.name]))
        table.add_row(each.name, *row)
    return table


def _picture(document: Mapping[str, Any]) -> Picture:
    rounds, cores = document["rounds"], document["cores"]
    rates = spreads(rounds)
    workers = {name: float(count) for name, count in cores.items() if name == pool_name(count)}
    slots = {name: count for name in cores if (count := slots_on_warp(name)) is not None}
    by_workers = {count: rates[env_steps(name)] for name, count in workers.items()}
    linear = {count: Spread(*[count * by_workers[1].median] * 3) for count in by_workers}
    curves = {"process pool": Curve(by_workers), "1 worker, times workers": Curve(linear, dashed=True)}
    levels = {name: rates[env_steps(name)] for name in cores if name not in {*workers, *slots}}
    panels: list[Panel] = [Lines("workers of the process pool", "live env steps/s", curves, levels)]
    if slots:
        curves = {
            "everything on one device": Curve({n: rates[env_steps(name)] for name, n in slots.items()}),
            "its physics alone": Curve({n: rates[alone(name)] for name, n in slots.items()}, dashed=True),
        }
        panels.append(Lines("slots", "live env steps/s", curves))
    evaluated = {name: rates[members(name)] for name in cores}
    panels.append(Bars("members evaluated a second", evaluated))
    return Picture(_title(document, len(rounds)), panels)


def _title(settings: Mapping[str, Any], rounds: int) -> str:
    sizes = f"{settings['population_size']} members, {settings['slots']} slots"
    return f"{settings['env']}, {sizes}, MLP {'-'.join(map(str, settings['hidden_sizes']))}, {rounds} rounds"


BENCH = Bench(
    name="throughput",
    help="evaluation of populations: process pool by number of workers, vectorized, policy on a GPU",
    add_options=_add_options,
    quick={"slots": 32, "population_size": 32, "rounds": 2, "seconds": 0.5},
    run=_run,
    picture=_picture,
)
