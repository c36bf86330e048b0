"""Whether engine warp repeats what it did to the last bit, and if not, what differs first.

python -m benchmarks.gpu.determinism [--device cuda] [--json FILE]

The same members play the same reset seeds twice. After each step of the physics and of what is between two
steps, every field of mujoco_warp and of the loop is reduced to a checksum of its bits, in integers, which
can be added in any order. Three engines are compared: `default`, `sums` (mujoco_warp's own deterministic
mode), and `sorted` (that and `warp_order`, which is what `deterministic: true` means).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from es_flipout import Flipout, MLPPolicy, Population, make_vec
from es_flipout.envs.engines.warp import WarpEngine
from es_flipout.rollout import DevicePlayer, Episodes
from es_flipout.rollout.device_loop import DeviceLoop, SeededStates, Starts

DATA = [
    "qacc",
    "qacc_warmstart",
    "qacc_smooth",
    "qfrc_constraint",
    "qfrc_smooth",
    "qfrc_actuator",
    "act",
    "time",
    "cfrc_ext",
]
COUNTS = ["nacon", "nefc", "nl", "nf"]
CONTACTS = ["worldid", "geom", "dist", "pos", "frame", "efc_address"]
ROWS = ["type", "id", "J", "pos", "D", "aref", "Jqvel", "force", "state"]
RESULTS = ["returns", "lengths", "faults"]
LOOP = ["live", "_return", "_length", "_observations", "_located", "_sums", "_total", "_episode"]
ENGINES = ("default", "sums", "sorted")


def checksum(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Returns a number that depends on all bits of the values, and on where they are, int64."""
    if not values.numel():
        return torch.zeros((), dtype=torch.int64, device=values.device)
    bits = values.contiguous().flatten(1) if values.ndim > 1 else values.unsqueeze(1)
    bits = bits.view(torch.uint8).long() if bits.dtype != torch.bool else bits.long()
    if mask is not None:
        bits = bits * mask.view(-1, *[1] * (bits.ndim - 1))
    return (bits * torch.arange(1, 2 * bits.numel(), 2, device=bits.device).view_as(bits)).sum()


class Watched:
    """An engine, and all that can be seen of it and of a loop."""

    def __init__(self, kind: str, options: argparse.Namespace) -> None:
        engine_kwargs = {"deterministic": kind != "default"}
        self.env = make_vec(
            options.env,
            options.num_envs,
            engine="warp",
            device=options.device,
            info=False,
            max_episode_steps=options.steps,
            engine_kwargs=engine_kwargs,
        )
        self.engine: WarpEngine = self.env.engine
        if kind == "sums":
            callback = self.engine._model.callback
            callback.contactfilter = callback.control = None
        spaces = self.env.single_observation_space, self.env.single_action_space
        policy = MLPPolicy(*spaces, generator=torch.Generator().manual_seed(0))
        parameters = dict(policy.to(self.engine.device).named_parameters())
        generator = torch.Generator(self.engine.device).manual_seed(1)
        noise = Flipout().sample(parameters, options.members, generator, antithetic=True)
        self.population = Population(policy, noise, 0.3)

    def loop(self, seeds: Any) -> DeviceLoop:
        task = self.env.checked_task
        starts = Starts.compute(self.engine, task, SeededStates.draw(task, seeds), torch.float32)
        members = np.arange(self.population.size)
        return DeviceLoop(self.engine, task, self.population, starts, members, self.env.max_episode_steps)

    def checksums(self, loop: DeviceLoop) -> dict[str, Tensor]:
        data, view = self.engine._data, self.engine._to_torch
        found = {name: checksum(values) for name, values in self.engine._views.items()}
        found |= {name: checksum(view(getattr(data, name))) for name in (*DATA, *COUNTS)}
        contacts = view(data.nacon)
        for name in CONTACTS:
            values = view(getattr(data.contact, name))
            mask = torch.arange(len(values), device=values.device) < contacts
            found[f"contact.{name}"] = checksum(values, mask)
        for name in ROWS:
            values = view(getattr(data.efc, name))
            mask = torch.arange(values.shape[1], device=values.device) < view(data.nefc).unsqueeze(1)
            found[f"efc.{name}"] = checksum(values.flatten(0, 1), mask.flatten())
        found |= {f"loop.{name}": checksum(getattr(loop, name)) for name in LOOP}
        # The last place of these is of no episode.
        return found | {f"loop.{name}": checksum(getattr(loop, name)[:-1]) for name in RESULTS}


def play(watched: Watched, seeds: Any, steps: int) -> list[tuple[str, list[str], list[int]]]:
    """Plays for so many steps; returns the checksums at the start and after each half of a step."""
    history = []

    def note(when: str, loop: DeviceLoop) -> None:
        found = watched.checksums(loop)
        history.append((when, list(found), torch.stack(list(found.values()))))

    with torch.no_grad():
        loop = watched.loop(seeds)
        note("reset", loop)
        for step in range(1, steps + 1):
            watched.engine.advance(watched.env.task.frame_skip)
            note(f"physics of step {step}", loop)
            loop.between_steps()
            note(f"after step {step}", loop)
    return [(when, names, sums.tolist()) for when, names, sums in history]


def first_difference(one: list[Any], other: list[Any]) -> dict[str, Any] | None:
    """Returns when two plays differ first, and in which fields; None if they never do."""
    for (when, names, mine), (_, _, theirs) in zip(one, other, strict=True):
        if mine != theirs:
            differing = [name for name, a, b in zip(names, mine, theirs, strict=True) if a != b]
            return {"when": when, "fields": differing}
    return None


def generation(watched: Watched, seeds: Any, *, cuda_graphs: bool) -> list[int]:
    """Returns the checksums of what comes of a whole generation."""
    episodes = Episodes.of_population(seeds.reshape(-1, 1).tolist())
    DevicePlayer(watched.env, cuda_graphs=cuda_graphs).play(watched.population, episodes)
    moments = episodes.observations()
    values = [
        torch.from_numpy(episodes.returns),
        torch.from_numpy(episodes.lengths),
        moments.mean,
        moments.m2,
    ]
    return [int(checksum(each)) for each in values]


def forwards(watched: Watched, times: int) -> bool:
    """Returns whether the same forward of all members gives the same bits again and again."""
    size = watched.population.size
    observations = torch.randn(size, *watched.env.single_observation_space.shape).to(watched.engine.device)
    rows = watched.population.select(torch.arange(size, device=watched.engine.device))
    with torch.no_grad():
        return len({int(checksum(rows(observations))) for _ in range(times)}) == 1


def milliseconds(watched: Watched, steps: int = 50) -> float:
    """Returns how long an env step of the physics takes, of all envs."""

    def wait() -> None:
        if watched.engine.device.type == "cuda":
            torch.cuda.synchronize()

    watched.engine.advance(watched.env.task.frame_skip)
    wait()
    start = time.perf_counter()
    for _ in range(steps):
        watched.engine.advance(watched.env.task.frame_skip)
    wait()
    return 1e3 * (time.perf_counter() - start) / steps


def examine(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """Returns what is repeated by one of the `ENGINES`."""
    watched = Watched(kind, options)
    found: dict[str, Any] = {"steps": {}, "generations": {}}
    for seed in range(options.seeds):
        seeds = 1000 * seed + np.arange(options.members)
        plays = [play(watched, seeds, options.steps) for _ in range(2)]
        found["steps"][seed] = first_difference(*plays)
    for graphs in (False, True):
        two = [generation(watched, seeds, cuda_graphs=graphs) for _ in range(2)]
        names = ("returns", "lengths", "mean", "m2")
        differing = [name for name, a, b in zip(names, *two, strict=True) if a != b]
        found["generations"]["with CUDA graphs" if graphs else "without"] = differing
    found["forwards repeat"] = forwards(watched, 20)
    found["milliseconds"] = milliseconds(watched)
    watched.env.close()
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--env", default="Humanoid-v5")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--num-envs", type=int, default=256)
    parser.add_argument("--members", type=int, default=512)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    results: dict[str, Any] = {"settings": {name: str(value) for name, value in vars(options).items()}}
    # What matters most comes first, and is written even if what follows is cut off.
    for kind in reversed(ENGINES):
        results[kind] = examine(kind, options)
        print(kind, json.dumps(results[kind], indent=1))
        if options.json is not None:
            options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
