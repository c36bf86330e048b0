"""The score of a task with a randomization: nominal, and randomized beside it."""

import json

import numpy as np
import pytest
import torch

from es_flipout import make_vec
from es_flipout.cli import eval as es_eval
from es_flipout.cli import train
from es_flipout.rollout import Scorer

ROBOT = "tests.robots:Robot-v0"
OPTIONS = {
    "env.id": ROBOT,
    "env.num_envs": "4",
    "env.kwargs": "{max_episode_steps: 20}",
    "policy.kind": "linear",
    "es.population_size": "4",
    "evaluation.episodes": "3",
    "evaluation.interval": "1",
    "threads": "1",
    "generations": "2",
    "logging.reporters": "[jsonl]",
}


def run_training(out, **options):
    words = {**OPTIONS, "out": str(out), **options}
    assert train.main([word for name, value in words.items() for word in (f"--{name}", value)]) == 0
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def evaluated(run, capsys, *options):
    capsys.readouterr()
    assert es_eval.main([str(run), "--checkpoint", "last", "--episodes", "3", "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_both_scores_are_those_of_the_environments(tmp_path, capsys):
    metrics = run_training(tmp_path / "run")
    last = metrics[-1]
    assert last["score"] != last["score_randomized"]
    nominal = evaluated(tmp_path / "run", capsys, "--seed", "1000000")
    randomized = evaluated(tmp_path / "run", capsys, "--seed", "1000000", "--randomize")
    assert (nominal["randomized"], randomized["randomized"]) == (False, True)
    assert last["score"] == nominal["mean"]
    assert last["score_randomized"] == randomized["mean"]


def test_without_randomization_there_is_one_score(tmp_path):
    metrics = run_training(tmp_path / "run", **{"env.randomize": "false"})
    assert {each["score_randomized"] for each in metrics} == {None}
    randomized = run_training(tmp_path / "other")
    assert metrics[0]["fitness_mean"] != randomized[0]["fitness_mean"]  # members play other episodes


@pytest.mark.parametrize("randomize", ["true", "false"])
def test_every_player_plays_the_same_episodes(tmp_path, randomize):
    fitness = {}
    for engine in ("auto", "gymnasium"):
        for backend in ("vectorized", "process_pool"):
            options = {"env.engine": engine, "backend": backend, "env.randomize": randomize}
            # Short: physics amplifies what torch and NumPy round differently.
            options |= {"generations": "1", "env.kwargs": "{max_episode_steps: 4}"}
            metrics = run_training(tmp_path / f"{engine}-{backend}", **options)[0]
            fitness[engine, backend] = [metrics[f"fitness_{each}"] for each in ("mean", "best", "worst")]
    expected = fitness["auto", "vectorized"]
    assert fitness["auto", "process_pool"] == expected
    assert fitness["gymnasium", "vectorized"] == pytest.approx(expected, rel=1e-4)
    assert fitness["gymnasium", "process_pool"] == pytest.approx(expected, rel=1e-4)


def test_a_task_without_randomization_says_so(tmp_path, capsys):
    run_training(tmp_path / "run", **{"env.id": "InvertedPendulum-v5", "generations": "1"})
    assert es_eval.main([str(tmp_path / "run"), "--randomize"]) == 2
    assert "InvertedPendulum-v5 has no randomization" in capsys.readouterr().err


def test_scores_are_of_the_same_seeds():
    scores, commands = [], []
    for randomize in (False, True):
        env = make_vec(ROBOT, 4, dtype=torch.float64, threads=1, randomize=randomize)
        policy = torch.nn.Linear(env.single_observation_space.shape[0], 2, dtype=torch.float64)
        torch.nn.init.zeros_(policy.weight), torch.nn.init.zeros_(policy.bias)
        episodes = Scorer(env).score(policy, seed=7)
        scores.append(episodes.returns)
        commands.append(env._state.entries["command"].clone())
    assert not np.array_equal(*scores)
    assert torch.equal(*commands)
    assert len(commands[0].unique()) == 4
