"""The tables of the benches, in Markdown: what a bench prints, and what docs/benchmarks.md shows."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from benchmarks.speed import (
    before_after,
    configs,
    device,
    env,
    loop,
    memory,
    physics,
    policy,
    robot,
    single_forward,
    startup,
    update,
)
from benchmarks.speed.timing import MATMUL, TRIAD
from es_flipout.cli.results import Results, Spread, number
from es_flipout.cli.throughput import ENV_STEPS


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table whose columns but the first are flush right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def two_decimals(values: Sequence[float]) -> str:
    """Returns the median, and in brackets what the values lie between."""
    return "{:.2f} ({:.2f} to {:.2f})".format(*Spread.of(values))


def update_table(results: Results) -> str:
    """Returns the seconds of an update, with or without process pools, beside the paper's."""
    names = results.column("contestant")
    pools = [name for name in update.POOLS if name in names]
    bases = f"flipout, N = {results.settings['members_per_base']}"
    ratio_names = [f"{pool} / {update.FLIPOUT}" for pool in pools]
    heads = ["", bases, *names[1:], *ratio_names, "FlipES *", "cpuES *", "ratio *"]
    rows = []
    for network, facts in results.settings["networks"].items():
        own = results.where(network=network)
        extrapolated = facts["pool_samples"] != results.settings["samples"]
        row = [network]
        for name in names:
            mark = "~" if name in pools and extrapolated else ""
            row.append(mark + number(own.spread(name, update.UPDATE).median))
        for pool in pools:
            row.append(median_ratio(own, (pool, update.UPDATE), (update.FLIPOUT, update.UPDATE)))
        gpu, cores = facts["paper"].values() if facts["paper"] else (None, None)
        row += [number(gpu), number(cores), number(cores / gpu)] if gpu and cores else ["-", "-", "-"]
        rows.append(row)
    return markdown(heads, rows)


def median_ratio(results: Results, one: tuple[str, str], other: tuple[str, str]) -> str:
    values = results.ratios(one, other)
    return number(statistics.median(values)) if values else "-"


def points(results: Results) -> dict[str, Results]:
    """Returns the points of a sweep of `benchmarks.speed policy`, the base point first, by what they are."""
    found = dict.fromkeys((row["policy"], row["population_size"]) for row in results.rows)
    return {f"{name}, P = {size:,}": results.where(policy=name, population_size=size) for name, size in found}


def forward_table(*sweeps: Results) -> str:
    """Returns the time of an unperturbed forward, and of the others in units of it."""
    others = [*policy.FAMILIES, policy.DENSE]
    seconds = f"{policy.FORWARD}, s"
    rows = []
    for label, point in (each for sweep in sweeps for each in points(sweep).items()):
        row = [label, number(1e3 * point.spread(policy.UNPERTURBED, seconds).median)]
        row += [median_ratio(point, (name, seconds), (policy.UNPERTURBED, seconds)) for name in others]
        rows.append([*row, median_ratio(point, (policy.DENSE, seconds), (others[0], seconds))])
    heads = ["", f"{policy.UNPERTURBED}, ms", *others, f"{policy.DENSE} / {others[0]}"]
    return markdown(heads, rows)


def limits_table(sweep: Results) -> str:
    """Returns the rates that the operations at the base point achieve, and their share of the limits."""
    label, point = next(iter(points(sweep).items()))

    def rates(name: str, operation: str, kind: str) -> list[float]:
        (work,) = point.by_round(name, f"{operation}, {kind}").values()
        return [work / seconds for seconds in point.by_round(name, f"{operation}, s").values()]

    rows = []
    for row in point.rows:
        name, (operation, unit) = row["contestant"], row["metric"].split(", ")
        if row["round"] or unit != "s":
            continue
        line = [f"{operation}: {name}", number(1e3 * point.spread(name, row["metric"]).median)]
        for kind, limit in (("FLOP", MATMUL), ("bytes", TRIAD)):
            own, best = rates(name, operation, kind), rates(limit, policy.LIMIT, kind)
            share = statistics.median(x / y for x, y in zip(own, best, strict=True))
            line += [number(statistics.median(own) / 1e9), f"{share:.0%}"]
        rows.append(line)
    return markdown([label, "ms", "GFLOP/s", "of the limit", "GB/s", "of the limit"], rows)


def noise_table(*sweeps: Results) -> str:
    """Returns the times of ask and gradient at the base points."""
    columns = [(name, what) for what in (policy.ASK, policy.GRADIENT) for name in policy.FAMILIES]
    rows = []
    for sweep in sweeps:
        label, point = next(iter(points(sweep).items()))
        times = [[*point.by_round(name, f"{what}, s").values()] for name, what in columns]
        rows.append([label, *(number(1e3 * statistics.median(each)) if each else "-" for each in times)])
    return markdown(["", *(f"{what}, {name}, ms" for name, what in columns)], rows)


def memory_table(results: Results) -> str:
    """Returns seconds and memory of a generation's noise."""
    rows = []
    for name in results.column("contestant"):
        peak = results.spread(name, memory.PEAK).median / 1e6
        times = [number(results.spread(name, step).median) for step in memory.STEPS]
        rows.append([name, *times, f"{peak:,.0f}"])
    heads = f"{results.settings['policy']}, P = {results.settings['population_size']:,}"
    return markdown([heads, *memory.STEPS, "memory, MB"], rows)


def env_table(*documents: Results) -> str:
    """Returns the rates of environments in units of others, a row per task."""
    ratios = {
        "native vector environment / its raw physics": (env.NATIVE, env.RAW_RANDOM),
        "training loop / its raw physics": (env.LOOP, env.RAW_POLICY),
        "training loop / raw physics under random actions": (env.LOOP, env.RAW_RANDOM),
    }
    best = "native vector environment / best of Gymnasium's"
    rows = []
    for each in documents:
        row = [f"{each.settings['env']}, P = {each.settings['population_size']:,}"]
        row += [two_decimals(each.ratios((x, ENV_STEPS), (y, ENV_STEPS))) for x, y in ratios.values()]
        of_gymnasium = (env.SYNC, env.ASYNC, env.ASYNC_1, env.ASYNC_8)
        by_contestant = [each.ratios((env.NATIVE, ENV_STEPS), (name, ENV_STEPS)) for name in of_gymnasium]
        row.append(two_decimals([min(values) for values in zip(*by_contestant, strict=True)]))
        row += [number(each.spread(name, ENV_STEPS).median) for name in (env.NATIVE, env.LOOP)]
        rows.append(row)
    return markdown(["", *ratios, best, "native, env steps/s", "loop, env steps/s"], rows)


def profile_table(parts: Sequence[str], *documents: Results) -> str:
    """Returns microseconds per live env step of each part and its share of all, a column per document."""

    def cell(results: Results, part: str) -> str:
        steps, metric = results.by_round(loop.WHOLE, loop.LIVE_STEPS), loop.SECONDS
        every = [results.by_round(each, metric) for each in parts]
        own = results.by_round(part, metric)
        cost = statistics.median(1e6 * own[index] / steps[index] for index in steps)
        share = statistics.median(own[index] / sum(each[index] for each in every) for index in steps)
        return f"{number(cost)}, {share:.1%}"

    rows = [[part, *(cell(results, part) for results in documents)] for part in parts]
    settings = [each.settings for each in documents]
    heads = [f"{each['env']}, {each.get('num_envs') or each['population_size']} envs" for each in settings]
    return markdown(["", *heads], rows)


def single_forward_table(results: Results) -> str:
    """Returns microseconds of one policy on one observation."""
    names, metric = (single_forward.TORCH, single_forward.WORKER), single_forward.FORWARD
    rows = []
    for label in results.column("case"):
        case = results.where(case=label)
        times = [number(1e6 * case.spread(name, metric).median) for name in names]
        rows.append([label, *times, median_ratio(case, (names[0], metric), (names[1], metric))])
    return markdown(["", "torch, us", "worker (NumPy), us", "ratio"], rows)


def physics_table(results: Results) -> str:
    """Returns the rates of training loops in units of bare physics, a row per task, policy and population."""
    rows = []
    names = ("task", "policy", "members", "envs")
    for values in dict.fromkeys(tuple(row[name] for name in names) for row in results.rows):
        case = results.where(**dict(zip(names, values, strict=True)))
        loop_rate, pool_rate, bare = (
            (name, ENV_STEPS) for name in (physics.LOOP, physics.POOL, physics.PHYSICS)
        )
        over_pool = case.ratios(loop_rate, pool_rate)
        task, kind, members, envs = values
        population = f"{members}" if members == envs else f"{members}, {envs} envs"
        rows.append(
            [
                f"{task}, {kind}",
                population,
                f"{case.spread(physics.LOOP, physics.PROCESSES).median:.0f}",
                number(case.spread(physics.PHYSICS, physics.LENGTH).median),
                *(number(case.spread(*rate).median) for rate in (loop_rate, bare)),
                two_decimals(case.ratios(loop_rate, bare)),
                two_decimals(over_pool) if over_pool else "-",
            ]
        )
    rates = [f"{name}, {ENV_STEPS}" for name in (physics.LOOP, physics.PHYSICS)]
    shares = ["loop / bare physics", "loop / process pool"]
    return markdown(["", "members", physics.PROCESSES, physics.LENGTH, *rates, *shares], rows)


def configs_table(results: Results) -> str:
    """Returns the rates of es-train in units of plain loops of mj_step, and what scores take of its time.

    The second share also counts the env steps of scores.
    """
    rows = []
    rates = [(name, ENV_STEPS) for name in (configs.ES_TRAIN, configs.BARE)]
    for name in results.column("config"):
        own = results.where(config=name)
        scoring = [1 - share for share in own.ratios(rates[0], (configs.UNSCORED, ENV_STEPS))]
        medians = [number(own.spread(*rate).median) for rate in rates]
        with_scores = own.ratios((configs.ES_TRAIN, configs.ALL_STEPS), rates[1])
        shares = [two_decimals(each) for each in (own.ratios(*rates), with_scores, scoring)]
        rows.append([name, *medians, *shares])
    heads = [f"{name}, {ENV_STEPS}" for name, _ in rates]
    return markdown(["", *heads, "share", "share with the steps of scores", "of the time, scores"], rows)


def startup_table(results: Results) -> str:
    """Returns the seconds of a whole short run, of one or two versions."""
    metrics, names = (startup.COLD, startup.WARM), results.column("contestant")
    rows = [[name, *(str(results.spread(name, metric)) for metric in metrics)] for name in names]
    if startup.AGAINST in names:
        ratios = [results.ratios((startup.THIS, each), (startup.AGAINST, each)) for each in metrics]
        rows.append([f"{startup.THIS} / {startup.AGAINST}", *map(two_decimals, ratios)])
    return markdown([results.settings["config"], *metrics], rows)


def before_after_table(results: Results) -> str:
    """Returns durations and scores of the same runs before and after."""
    names = (before_after.BEFORE, before_after.AFTER)
    rows = []
    for config in results.column("config"):
        own = results.where(config=config)
        steps = own.spread(before_after.AFTER, before_after.STEPS).median
        minutes = [number(own.spread(name, before_after.SECONDS).median / 60) for name in names]
        ratio = two_decimals(own.ratios(*((name, before_after.SECONDS) for name in names)))
        scores = [
            ", ".join(f"{score:.1f}" for score in own.by_round(name, before_after.SCORE).values())
            for name in names
        ]
        rows.append([config, f"{steps:,.0f}", *minutes, ratio, *scores])
    heads = [f"{name}, {what}" for what in ("minutes", "score") for name in names]
    return markdown(["", "env steps", *heads[:2], "before / after", *heads[2:]], rows)


def robot_table(results: Results) -> str:
    """Returns live env steps per CPU second of a robot's task, and what they are relative to others."""
    rates = {name: results.spread(name, ENV_STEPS) for name in (robot.LOOP, robot.NATIVE, robot.RANDOMIZED)}
    rows = [[name, str(rate)] for name, rate in rates.items()]
    for one, other in ((robot.NATIVE, robot.LOOP), (robot.RANDOMIZED, robot.NATIVE)):
        ratios = results.ratios((one, ENV_STEPS), (other, ENV_STEPS))
        rows.append([f"{one} / {other}", two_decimals(ratios)])
    return markdown(["", "live env steps per CPU second"], rows)


OF_BENCH: dict[str, Callable[[Results], str]] = {
    "policy": lambda results: "\n\n".join(
        make(results) for make in (forward_table, noise_table, limits_table)
    ),
    "memory": memory_table,
    "update": update_table,
    "env": env_table,
    "loop": lambda results: profile_table(loop.PARTS, results),
    "device": lambda results: profile_table(device.PARTS, results),
    "single_forward": single_forward_table,
    "physics": physics_table,
    "configs": configs_table,
    "startup": startup_table,
    "before_after": before_after_table,
    "robot": robot_table,
}
"""What a bench of `benchmarks.speed` prints."""
