"""How fast a population is evaluated in its environment, by whom: process pool, one batch, on a GPU.

Every contestant is a `Trainer` on the same configuration but for who does the work, and runs generation 0
again and again: the same members from the same reset seeds. Only whole generations count: ask, rollouts,
update, statistics; no scoring, no files. Those on engine warp have numbers of slots and members of their own;
beside each of them its engine is measured by itself.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from es_flipout.bench.physics_alone import PhysicsAlone
from es_flipout.bench.report import Figures, Ratio, Watch, interleave
from es_flipout.envs.native import cpu_engine_of, runs_natively
from es_flipout.run.checkpoint import RunDirectory
from es_flipout.run.config import Config, EvaluationConfig, LoggingConfig
from es_flipout.run.trainer import Trainer

VECTORIZED = "vectorized"


def pool_name(workers: int) -> str:
    """Returns what a process pool of so many workers is called."""
    return "process pool, 1 worker" if workers == 1 else f"process pool, {workers} workers"


def warp_name(device: str, slots: int) -> str:
    """Returns what a contestant that is on a device as a whole is called."""
    return f"everything on the {'CPU, by mujoco_warp' if device == 'cpu' else 'GPU'}, {slots:,} slots"


def slots_on_warp(name: str) -> int | None:
    """Returns the slots of a contestant that is called so; None if it is none on engine warp."""
    found = re.fullmatch(r"everything on the .*, ([\d,]+) slots", name)
    return int(found[1].replace(",", "")) if found else None


def alone(name: str) -> str:
    """Returns what the env steps a second of such a contestant's engine by itself are called."""
    return f"{name}, physics alone: env steps/s"


def env_steps(name: str) -> str:
    """Returns what a contestant's live env steps a second are called."""
    return f"{name}: env steps/s"


def members(name: str) -> str:
    """Returns what a contestant's policies evaluated a second are called."""
    return f"{name}: members/s"


@dataclass(frozen=True)
class Setup:
    """A contestant.

    Attributes:
        name: what it is called.
        config: of its run.
        cores: CPU cores that it keeps busy.
        workers: processes of a pool; None for no pool.
    """

    name: str
    config: Config
    cores: int
    workers: int | None = None

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU takes part."""
        return self.config.device != "cpu"

    @property
    def on_warp(self) -> bool:
        """Whether it is on one device as a whole."""
        return self.config.env.engine == "warp"


def setups(
    config: Config,
    workers: Iterable[int],
    cores: int,
    *,
    gpu: str | None = None,
    warp_slots: Iterable[int] = (),
    warp_members_a_slot: int = 4,
    warp_device: str = "cuda",
) -> list[Setup]:
    """Returns all contestants.

    Args:
        config: what they have in common.
        workers: sizes of the process pool; a pool of one is always among them, the unit of the others.
        cores: threads of the vectorized ones.
        gpu: device of a policy whose environments are on the CPU; None for no such contestant.
        warp_slots: numbers of slots of those on engine warp.
        warp_members_a_slot: their members, over that.
        warp_device: their device.
    """
    common = replace(
        config,
        evaluation=EvaluationConfig(interval=0),
        logging=LoggingConfig(tensorboard=False, histogram_interval=0),
    )
    found = [
        Setup(pool_name(size), replace(common, backend="process_pool", threads=size), size, size)
        for size in sorted({1, *workers})
    ]
    found.append(Setup(VECTORIZED, replace(common, threads=cores), cores))
    if gpu is not None:
        env = config.env
        engine = cpu_engine_of(env.id, **env.kwargs) if runs_natively(env.id, env.engine) else env.engine
        beside = replace(common, threads=cores, device=gpu, env=replace(env, engine=engine))
        found.append(Setup(f"{VECTORIZED}, policy on the GPU", beside, cores))
    for slots in warp_slots:
        env = replace(config.env, engine="warp", num_envs=slots)
        es = replace(config.es, population_size=slots * warp_members_a_slot)
        name = warp_name(warp_device, slots)
        found.append(Setup(name, replace(common, device=warp_device, env=env, es=es), 1))
    return found


def memory_in_use() -> int:
    """Returns the bytes of GPU memory that are in use, by whomever; 0 without a GPU."""
    if not torch.cuda.is_available():
        return 0
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return total - free


class FirstGeneration:
    """Runs generation 0 of a setup, from the same state each time.

    Attributes:
        env_steps: live env steps of the generation.
        bytes: GPU memory that it has taken.
    """

    def __init__(self, setup: Setup, folder: Path) -> None:
        """Builds the run, and runs its first generation once to warm up.

        Args:
            setup: the contestant.
            folder: for its checkpoints.

        Raises:
            ValueError: if it cannot be run as configured.
        """
        before = memory_in_use()
        self._name = setup.name
        self._size = setup.config.es.population_size
        self._start, self._run = (_make_run(folder / name) for name in ("start", "run"))
        self._trainer = Trainer(setup.config)
        with ExitStack() as stack:
            stack.callback(self.close)
            self._trainer.train(self._start, max_generations=0)  # saves the state that it has now
            self._generation()
            stack.pop_all()
        self.env_steps = self._trainer.env_steps
        self.bytes = memory_in_use() - before

    def _generation(self) -> float:
        self._trainer.restore(self._start)
        self._trainer.train(self._run, max_generations=1)
        return self._trainer.seconds

    def measure(self, least_seconds: float) -> Figures:
        """Runs it for about so many seconds, and at least once; returns both rates."""
        seconds, steps, generations = 0.0, 0, 0
        while seconds < least_seconds or not generations:
            seconds += self._generation()
            steps += self._trainer.env_steps
            generations += 1
        return {
            env_steps(self._name): steps / seconds,
            members(self._name): generations * self._size / seconds,
        }

    def close(self) -> None:
        """Ends its threads and processes."""
        self._trainer.close()


def _make_run(folder: Path) -> RunDirectory:
    run = RunDirectory(folder)
    run.checkpoints.mkdir(parents=True)
    return run


def measure_throughput(
    contestants: Sequence[Setup], *, seconds: float, rounds: int, watch: Watch
) -> tuple[list[dict[str, float]], dict[str, int], dict[str, int]]:
    """Measures all contestants, in alternating rounds.

    Args:
        contestants: as `setups` returns them.
        seconds: least duration of a measurement.
        rounds: number of rounds.
        watch: see `report.Watch`.

    Returns:
        Live env steps/s and members/s of each contestant, by round; the live env steps of the generation that
        each of them ran, which agree as far as populations are equal and back ends round alike; and the GPU
        memory that each has taken.

    Raises:
        ValueError: if one cannot be run as configured.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        runs: dict[str, FirstGeneration] = {}
        for index, setup in enumerate(contestants):
            watch(f"warm-up, {setup.name}", 0.0)
            runs[setup.name] = stack.enter_context(closing(FirstGeneration(setup, Path(folder) / str(index))))

        def contestant(run: FirstGeneration | PhysicsAlone) -> Callable[[int], Figures]:
            return lambda index: run.measure(seconds)

        measures: dict[str, FirstGeneration | PhysicsAlone] = {}
        for setup in contestants:
            run = measures[setup.name] = runs[setup.name]
            if setup.on_warp:
                length = max(run.env_steps // setup.config.es.population_size, 1)
                bare = PhysicsAlone(alone(setup.name), setup.config, length)
                measures[alone(setup.name)] = stack.enter_context(closing(bare))
        measured = interleave({name: contestant(run) for name, run in measures.items()}, rounds, watch)
        return (
            measured,
            {name: run.env_steps for name, run in runs.items()},
            {name: run.bytes for name, run in runs.items()},
        )


def throughput_ratios(contestants: Sequence[Setup]) -> dict[str, Ratio]:
    """Returns the ratios of interest.

    Scaling efficiency is the rate of w workers over w times that of one. Equivalent CPU cores are the rate of
    another contestant over that of one worker. Of those on engine warp, also the rate over that of the engine
    by itself.
    """
    one = env_steps(pool_name(1))

    def share(name: str, workers: int) -> Ratio:
        return lambda rates: rates[env_steps(name)] / (workers * rates[one])

    def of_physics(name: str) -> Ratio:
        return lambda rates: rates[env_steps(name)] / rates[alone(name)]

    ratios = {efficiency(each): share(each.name, each.workers) for each in contestants if each.workers}
    ratios |= {equivalent_cores(each): share(each.name, 1) for each in contestants if each.workers is None}
    return ratios | {share_of_physics(each): of_physics(each.name) for each in contestants if each.on_warp}


def efficiency(setup: Setup) -> str:
    """Returns what the scaling efficiency of a pool is called."""
    return f"{setup.name} / ({setup.workers} x 1 worker)"


def equivalent_cores(setup: Setup) -> str:
    """Returns what the equivalent CPU cores of a contestant without workers are called."""
    return f"{setup.name} / 1 worker"


def share_of_physics(setup: Setup) -> str:
    """Returns what the rate of a contestant on engine warp over that of its engine is called."""
    return f"{setup.name} / physics alone"


@dataclass(frozen=True)
class Prices:
    """What an hour costs, in any currency; None if that is not known.

    Attributes:
        core: a CPU core; a contestant without a GPU pays for the cores that it keeps busy.
        machine: the whole machine; paid by contestants with a GPU, and by all if no price of a core is known.
    """

    core: float | None = None
    machine: float | None = None

    def an_hour(self, setup: Setup) -> float | None:
        """Returns what an hour of a contestant costs."""
        if self.core is None or setup.on_gpu:
            return self.machine
        return self.core * setup.cores

    def costs(self, contestants: Sequence[Setup], rates: Figures) -> dict[str, float]:
        """Returns the cost of 10^9 live env steps of each contestant that a price is known for."""
        hours = {each.name: 1e9 / rates[env_steps(each.name)] / 3600 for each in contestants}
        prices = {each.name: self.an_hour(each) for each in contestants}
        return {name: price * hours[name] for name, price in prices.items() if price is not None}
