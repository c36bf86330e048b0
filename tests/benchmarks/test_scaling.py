"""The simulation of ranks against cases worked out by hand, and the commands in a tiny size."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import asdict
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from benchmarks.scaling import measure, one_rank, runs, simulate
from benchmarks.scaling.costs import Costs, Line
from benchmarks.scaling.events import Store, play
from benchmarks.scaling.generation import CLAIMED, STATIC, Setup, bytes_said, simulated
from benchmarks.scaling.lengths import drawn
from benchmarks.scaling.local_costs import outcomes
from benchmarks.scaling.runs import Workload
from benchmarks.scaling.sleeping import lengths_of_seeds
from es_flipout.cli.results import Results
from es_flipout.rollout import Episodes
from es_flipout.rollout.claims import Claims

NO_WAIT = Store(latency=0.0, service=0.0)
NOTHING = Line(0.0, (0.0,))
NO_MERGE, NO_EXCHANGE = Line(0.0, (0.0,) * 3), Line(0.0, (0.0,) * 4)


def one_second(num_envs: int) -> float:
    return 1.0


def finished(*args, **kwargs) -> list[float]:
    return [each.finished for each in play(*args, **kwargs)]


def test_one_rank_plays_equal_episodes_one_after_the_other():
    assert finished(np.full(6, 10), 1, 1, one_second, block_size=1, store=NO_WAIT) == [60.0]


def test_envs_of_a_rank_are_stepped_together():
    # Two envs play lengths 3 and 5, and whoever is free 4: steps 1 to 3 with both, 4 and 5 with both, 6 and 7
    # with one.
    seconds = {1: 1.0, 2: 1.5}
    expected = 5 * seconds[2] + 2 * seconds[1]
    assert finished(np.array([3, 5, 4]), 1, 2, seconds.get, block_size=1, store=NO_WAIT) == [expected]


def test_an_odd_block_goes_to_one_of_two_ranks():
    # Five episodes in blocks of two: the third block, of a single episode, goes to the rank that asks first.
    found = play(np.full(5, 10), 2, 1, one_second, block_size=2, store=NO_WAIT)
    assert [each.played for each in found] == [[0, 1, 4], [2, 3]]
    assert [each.finished for each in found] == [30.0, 20.0]


def test_a_store_that_is_busy_answers_one_rank_after_the_other():
    # Four ranks ask at once, and each keeps the store for 3 s: they begin after 3, 6, 9 and 12 s. All but the
    # last do not know that nothing is left, and ask once more.
    store = Store(latency=3.0, service=3.0)
    found = play(np.full(4, 10), 4, 1, one_second, block_size=1, store=store)
    assert [each.claiming for each in found] == [3.0 + 3.0, 6.0 + 3.0, 9.0 + 3.0, 12.0]
    assert [each.finished for each in found] == [16.0, 19.0, 22.0, 22.0]
    assert [each.num_claims for each in found] == [2, 2, 2, 1]


@pytest.mark.parametrize("block_size", [1, 3, 4])
@pytest.mark.parametrize("store", [None, NO_WAIT, Store(0.5, 0.2)])
def test_every_episode_is_played_once(block_size, store):
    lengths = np.random.default_rng(0).integers(1, 30, 101)
    found = play(lengths, 7, 3, one_second, block_size=block_size, store=store)
    assert sorted(row for each in found for row in each.played) == list(range(101))
    assert sum(each.env_steps for each in found) == lengths.sum()


def test_blocks_are_claimed_as_claims_claims_them():
    # The rank that asks first, of two with two envs each, and then the other: as `HostPlayer` does.
    episodes = Episodes(np.zeros(40, np.int64), np.zeros(40, np.int64), block_size=2)
    claimed = 0

    def add(number: int) -> int:
        nonlocal claimed
        claimed += number
        return claimed

    expected = []
    for _ in range(2):
        claims = Claims(episodes, add=add, num_players=2)
        expected.append(claims.claim(max(2, claims.fair_share())).tolist())
    found = play(np.full(40, 10), 2, 2, one_second, block_size=2, store=NO_WAIT)
    assert [each.played[: len(rows)] for each, rows in zip(found, expected, strict=True)] == expected


def test_claimed_blocks_balance_what_static_shares_do_not():
    # Long episodes come first: static shares give all of them to the first rank.
    lengths = np.repeat([10, 1], 8)
    static = finished(lengths, 2, 1, one_second, block_size=1, store=None)
    claimed = finished(lengths, 2, 1, one_second, block_size=1, store=NO_WAIT)
    assert static == [80.0, 8.0]
    assert max(claimed) == 44.0


def test_the_parts_of_a_generation_add_up():
    costs = Costs(
        claim_latency=0.0,
        claim_service=0.0,
        exchange=Line(1.0, (0.5, 0.0, 0.0, 0.0)),
        exchange_here=NOTHING,
        hop_latency=0.25,
        merge=Line(0.25, (0.0, 0.0, 0.0)),
        update={"linear": Line(2.0, (0.125,))},
        step=Line(0.0, (1.0,)),
    )
    setup = Setup(2, max_envs=1, block_size=1)
    # 8 episodes of 10 steps on 2 ranks: 40 s; two exchanges of 2 s and 4 hops; merge; an update of 3 s.
    assert simulated(np.full(8, 10), setup, costs).seconds == 40 + 2 * (2 + 4 * 0.25) + 0.25 + 3
    alone = simulated(np.full(8, 10), Setup(1, max_envs=1), costs)
    assert alone.seconds == 80 + 3
    assert sum(alone.shares().values()) == pytest.approx(1)


def test_a_store_that_only_answers_whether_to_stop_is_an_error():
    # 100 ranks ask 500 times per second, and each answer takes 2 ms.
    costs = Costs(0.002, 0.002, NOTHING, NOTHING, 0.0, NOTHING, {"linear": NOTHING}, NOTHING)
    with pytest.raises(ValueError, match="100 ranks"):
        simulated(np.full(100, 10), Setup(100), costs)


@pytest.mark.parametrize(("episodes", "blocks"), [(1, 1), (32, 8), (300, 100)])
def test_the_bytes_of_an_outcome_are_those_of_its_pickle(episodes, blocks):
    (outcome,) = outcomes(1, episodes, blocks, 45)
    assert bytes_said(episodes, blocks, 45) == pytest.approx(len(pickle.dumps(outcome)), rel=0.1, abs=200)


def test_a_fit_finds_the_formula_and_no_negative_cost():
    cases = [(ranks, size) for ranks in (1, 2, 8) for size in (10, 1000)]
    line = Line.fitted(cases, [3 + 0.5 * ranks + 0.001 * size for ranks, size in cases])
    assert (line.constant, *line.slopes) == pytest.approx((3, 0.5, 0.001))
    falling = Line.fitted([(1,), (2,), (3,)], [3.0, 2.0, 1.0])
    assert falling.slopes == (0.0,)


@pytest.mark.parametrize("name", ["constant", "untrained", "half_trained"])
def test_the_length_of_a_sleeping_episode_depends_on_its_seed_alone(name):
    make = "benchmarks.scaling.sleeping:Sleeping-v0"
    env = gym.make(make, step_seconds=0.0, lengths=name, scale=0.2).unwrapped

    def length(seed: int) -> int:
        env.reset(seed=seed)
        for steps in range(1, 1000):
            if env.step(np.zeros(1))[2]:
                return steps
        raise AssertionError

    seeds = np.array([3, 1, 3, 2])
    found = [length(int(seed)) for seed in seeds]
    assert found == lengths_of_seeds(seeds, name, 0.2).tolist()
    assert found[0] == found[2]


def test_lengths_are_drawn_from_what_was_recorded():
    found = drawn("untrained", np.random.default_rng(0), size=4000)
    assert 20 < found.mean() < 30  # as docs/scaling.md has it
    assert found.min() >= 1
    with pytest.raises(ValueError, match="half_trained"):
        drawn("other", np.random.default_rng(0))


def test_a_workload_knows_the_episodes_of_its_runs():
    workload = Workload("constant", 5, 0.01, population_size=8, block_size=1)
    assert workload.lengths_of(0).tolist() == [5] * 8


def test_predictions_of_runs_are_those_of_their_episodes():
    # One rank takes 10 ms per step. Two ranks play 4 episodes of 5 steps each, and nothing else takes time.
    workload = Workload("constant", 5, 0.01, population_size=8, block_size=1)
    costs = Costs(0.0, 0.0, NO_EXCHANGE, NO_EXCHANGE, 0.0, NO_MERGE, {"linear": NOTHING}, NOTHING)
    results = Results({"most_generations": 4, "workloads": {"constant": asdict(workload)}})
    results.add(0, "1 ranks", {runs.SECONDS: 0.01}, lengths="constant", ranks=1)
    results.add(0, "2 ranks", {runs.SECONDS: 0.00625}, lengths="constant", ranks=2)
    runs.predict(results, costs)
    runs.predict(results, costs)  # replaces what was predicted before
    assert results.by_round("2 ranks", runs.PREDICTED) == pytest.approx({0: 0.005})
    assert results.by_round("2 ranks", runs.EFFICIENCY) == pytest.approx({0: 0.8})
    assert "| constant | 2 | 6.25 | 0.800 | 1.000 | -20.0% | -20.0% | 1.000 |" in runs.table(results)


@pytest.mark.slow
def test_a_tiny_measurement_is_fitted_and_simulated(tmp_path: Path, capsys):
    costs, found = tmp_path / "costs.json", tmp_path / "simulation.json"
    words = (
        "--ranks 2 --sizes 100 10000 --calls 10 --policies linear --members 16 --num-envs 2 --merge-ranks 2"
    )
    more = "--merge-episodes 64 --merge-blocks 8 16 --repeats 1 --rounds 1"
    assert measure.main([*words.split(), *more.split(), "--json", str(costs)]) == 0
    fits = Costs.read(costs)
    assert fits.claim_service > 0
    assert fits.exchange_seconds(2, 1e6, 100) > fits.exchange_seconds(2, 100, 100) > 0
    words = ["--ranks", "1", "4", "--members", "32", "--lengths", "half_trained"]
    assert simulate.main([*words, "--costs", str(costs), "--json", str(found)]) == 0
    rows = json.loads(found.read_text())["rows"]
    efficiencies = [row["value"] for row in rows if row["metric"] == "efficiency"]
    assert efficiencies
    assert all(0 < each <= 1.001 for each in efficiencies if not math.isnan(each))
    assert {row["contestant"] for row in rows} == {STATIC, CLAIMED}
    assert "half_trained" in capsys.readouterr().out


@pytest.mark.slow
def test_one_rank_is_measured_against_none(capsys, tmp_path):
    words = ["--configs", "cartpole.yaml", "--generations", "7", "--rounds", "1"]
    assert one_rank.main([*words, "--json", str(tmp_path / "results.json")]) == 0
    assert "| cartpole.yaml |" in capsys.readouterr().out
    results = Results.read(tmp_path / "results.json")
    (ratio,) = results.ratios((one_rank.ONE_RANK, one_rank.RATE), (one_rank.ALONE, one_rank.RATE))
    assert ratio > 0
