"""The time of one generation on several ranks, and where it goes.

A rank asks for a population, waits until the states after the last generation have been compared, plays,
tells rank 0 the outcome, waits for the answer, and updates:

    generation = update + comparison + playing of the last rank + exchange + merge
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.scaling.costs import (
    BYTES_OF_A_DIGEST,
    BYTES_PER_EPISODE,
    BYTES_PER_OUTCOME,
    SECONDS_BETWEEN_LOOKS,
    Costs,
    bytes_per_record,
)
from benchmarks.scaling.events import RankPlays, Store, play
from benchmarks.scaling.lengths import Ints
from es_flipout.run.make_player import EPISODES_PER_ENV

PARTS = ("stepping", "claiming", "waiting", "messaging", "sending", "merging", "updating")
"""What the time of a generation is divided into; see `Generation`."""
STATIC, CLAIMED = "static", "claimed"
"""How episodes get to ranks: in shares of the same size at the start, or in blocks as ranks become free."""


@dataclass(frozen=True)
class Setup:
    """What is simulated.

    Attributes:
        ranks: how many.
        cores: of each rank; its steps are so many times as fast.
        max_envs: most episodes that a rank plays at a time (`env.num_envs`).
        block_size: episodes per block.
        observations: features of which moments are kept.
        policy: whose update it is.
        sharing: see `CLAIMED`.
    """

    ranks: int
    cores: int = 1
    max_envs: int = 256
    block_size: int = 4
    observations: int = 348
    policy: str = "linear"
    sharing: str = CLAIMED

    def num_envs(self, num_episodes: int) -> int:
        """Returns how many episodes a rank plays at a time; see `num_envs_of`."""
        if self.ranks > 1:
            num_episodes = max(num_episodes // (EPISODES_PER_ENV * self.ranks), 1)
        return min(self.max_envs, num_episodes)


@dataclass(frozen=True)
class Generation:
    """Where the time of a generation goes, in seconds of the mean rank; they add up to the generation.

    Attributes:
        stepping: env steps.
        claiming: waiting for the store.
        waiting: for the last rank to finish its episodes.
        messaging: the two exchanges, the comparison of states and that of outcomes, if they had no content.
        sending: the bytes of the outcomes and of the answer.
        merging: on rank 0.
        updating: what every rank does for all members.
        utilization: share of the time of playing for which the store was busy.
    """

    stepping: float
    claiming: float
    waiting: float
    messaging: float
    sending: float
    merging: float
    updating: float
    utilization: float

    @property
    def seconds(self) -> float:
        """How long the generation takes."""
        return sum(getattr(self, name) for name in PARTS)

    @property
    def balance(self) -> float:
        """Share of the time of playing that the mean rank steps."""
        return self.stepping / (self.stepping + self.claiming + self.waiting)

    def shares(self) -> dict[str, float]:
        """Returns the share of the time of each part, by name."""
        return {name: getattr(self, name) / self.seconds for name in PARTS}


def store_of(costs: Costs, ranks: int) -> Store:
    """Returns the store as claims find it, which every rank asks now and then whether the run is to stop.

    Raises:
        ValueError: if it can answer nothing else.
    """
    busy = ranks / SECONDS_BETWEEN_LOOKS * costs.claim_service
    if busy >= 1:
        raise ValueError(f"the store cannot even answer whether the run is to stop, of {ranks} ranks")
    service = costs.claim_service / (1 - busy)
    return Store(costs.claim_latency - costs.claim_service + service, service)


def simulated(lengths: Ints, setup: Setup, costs: Costs) -> Generation:
    """Returns the time of a generation with episodes of these lengths.

    Raises:
        ValueError: if the store is asked for more than it can answer.
    """
    ranks, size = setup.ranks, len(lengths)
    store = store_of(costs, ranks) if ranks > 1 else Store(0.0, 0.0)
    looking = store.latency / SECONDS_BETWEEN_LOOKS  # share of the time of asking whether to stop

    def step_seconds(num_envs: int) -> float:
        return costs.step(num_envs) / setup.cores * (1 + looking)

    is_claimed = setup.sharing == CLAIMED
    found = play(
        lengths,
        ranks,
        setup.num_envs(size),
        step_seconds,
        block_size=setup.block_size,
        store=store if is_claimed else None,
    )
    last = max(each.finished for each in found)
    # All ranks send as much as the one with the most to say: a gather fills up the others.
    said = max(bytes_said(len(each.played), each.num_blocks, setup.observations) for each in found)
    answered = bytes_said(size, 1, setup.observations)
    blocks = math.ceil(size / setup.block_size)
    one_message = costs.exchange_seconds(ranks, 0, 0)
    comparison = costs.exchange_seconds(ranks, BYTES_OF_A_DIGEST, BYTES_OF_A_DIGEST)
    return Generation(
        stepping=_mean(found, "stepping"),
        claiming=_mean(found, "claiming"),
        waiting=last - _mean(found, "finished"),
        messaging=2 * one_message,
        sending=comparison + costs.exchange_seconds(ranks, said, answered) - 2 * one_message,
        merging=0.0 if ranks == 1 else costs.merge(ranks, size, blocks * setup.observations),
        updating=costs.update[setup.policy](size),
        utilization=sum(each.num_claims for each in found) * store.service / last if last else 0.0,
    )


def bytes_said(episodes: int, blocks: int, observations: int) -> int:
    """Returns the bytes of an `Outcome`, pickled."""
    return BYTES_PER_OUTCOME + BYTES_PER_EPISODE * episodes + bytes_per_record(observations) * blocks


def _mean(found: list[RankPlays], name: str) -> float:
    return sum(getattr(each, name) for each in found) / len(found)
