"""How the ranks of a run find each other in the store of torchrun, and see that they can begin.

The store may outlive ranks that died and were started again, with all that those have left in it, and on
several machines no count of restarts is the same for all. So ranks agree on a token that nobody has used
before, and everything that they write later has it in its name.
"""

from __future__ import annotations

import platform
import secrets
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from torch.distributed.distributed_c10d import PrefixStore, Store

POLL_SECONDS = 0.05
"""How long a rank waits before it looks again whether others have come."""


def meet(store: Store, rank: int, size: int, *, seconds: float) -> Store:
    """Waits until all ranks have come, and returns a part of the store that is theirs alone.

    Each rank leaves a nonce. Rank 0 answers every nonce that it finds with its token, also those of ranks
    that have died; a rank takes the answer to its own nonce and confirms it. When all have confirmed, rank 0
    says so. A rank that has an answer goes on looking for another: it may be of a rank 0 that has died.

    Args:
        store: shared by all.
        rank: of this process.
        size: number of ranks.
        seconds: how long to wait at most.

    Raises:
        TimeoutError: if not all ranks have come by then.
    """
    deadline = time.monotonic() + seconds
    token, nonce = secrets.token_hex(8), secrets.token_hex(8)
    store.set(f"nonce/{rank}", nonce)
    answered: dict[int, str] = {}
    while True:
        if rank == 0:
            missing = [each for each in range(size) if not store.check([f"confirmed/{token}/{each}"])]
            for each in missing:
                found = _read(store, f"nonce/{each}")
                if found is not None and answered.get(each) != found:
                    store.set(f"answer/{each}", f"{found} {token}")
                    answered[each] = found
            if not missing:
                store.set(f"complete/{token}", "")
        own, _, offered = (_read(store, f"answer/{rank}") or "").partition(" ")
        if own == nonce:
            store.set(f"confirmed/{offered}/{rank}", "")
            if store.check([f"complete/{offered}"]):
                return PrefixStore(offered, store)
        if time.monotonic() > deadline:
            raise TimeoutError(f"not all of {size} ranks connected within {seconds:g} seconds")
        time.sleep(POLL_SECONDS)


def _read(store: Store, key: str) -> str | None:
    return store.get(key).decode() if store.check([key]) else None


def versions() -> dict[str, str]:
    """Returns the versions of all that a run's numbers may depend on."""
    found = {"Python": platform.python_version()}
    for name in ("es-flipout", "torch", "numpy", "mujoco", "gymnasium", "numba", "mujoco-warp", "warp-lang"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def verdict_on(states: Sequence[tuple[str | None, dict[str, str]]]) -> str | None:
    """Returns why ranks cannot begin, from the problem and the versions of each; None if they can."""
    for rank, (problem, found) in enumerate(states):
        if problem is not None:
            return problem if rank == 0 else f"rank {rank}: {problem}"
        for name, expected in states[0][1].items():
            if found[name] != expected:
                return f"rank {rank} has {name} {found[name]}, rank 0 has {expected}: they must be the same"
    return None
