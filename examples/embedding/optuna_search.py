"""Optuna chooses sigma and the learning rate; hopeless trials are pruned after a few generations.

python -m examples.embedding.optuna_search --trials 24

The loop of a trial is the usual one. After each round of generations it reports the score of the center
on reset seeds that no training uses, and Optuna says whether it is worth going on (successive halving).
Whole runs of `es-train`, with files of their own, are searched by scripts/tune.py.
"""

from __future__ import annotations

import argparse
from contextlib import closing

import optuna
import torch
from optuna.trial import TrialState

from es_flipout import FlipoutES, LinearPolicy, Scorer, evaluate, make_vec

GENERATIONS = (5, 15, 45)
"""Generations after which a trial is compared with the others."""
SCORE_SEED = 1_000_000


class Objective:
    """The score of a policy trained with the sigma and the learning rate that a trial suggests."""

    def __init__(self, env_id: str, population_size: int) -> None:
        self.envs = make_vec(env_id, num_envs=32, info=False)
        self.scorer = Scorer(make_vec(env_id, num_envs=10, info=False))
        self.population_size = population_size

    def __call__(self, trial: optuna.Trial) -> float:
        """Trains one policy.

        Raises:
            TrialPruned: if the trial is not among the best third of those that came as far.
        """
        sigma = trial.suggest_float("sigma", 1e-3, 3.0, log=True)
        lr = trial.suggest_float("lr", 1e-3, 3.0, log=True)
        policy = LinearPolicy(self.envs.single_observation_space, self.envs.single_action_space)
        optimizer = torch.optim.Adam(policy.parameters(), lr=lr)
        es = FlipoutES(
            policy,
            population_size=self.population_size,
            sigma=sigma,
            optimizer=optimizer,
            seed=trial.number,
        )
        score = float("nan")
        for generation in range(1, GENERATIONS[-1] + 1):
            episodes = evaluate(es.ask(), self.envs)
            es.tell(episodes.fitness)
            policy.normalizer.merge(episodes.observations())
            if generation in GENERATIONS:
                score = self.scorer.score(policy, seed=SCORE_SEED).mean_return
                trial.report(score, generation)
                if generation < GENERATIONS[-1] and trial.should_prune():
                    raise optuna.TrialPruned
        return score

    def close(self) -> None:
        self.envs.close()
        self.scorer.close()


def search(
    trials: int = 24, env_id: str = "InvertedDoublePendulum-v5", population_size: int = 32
) -> optuna.Study:
    """Returns the study; everything is seeded, so it repeats."""
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=0),
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=GENERATIONS[0], reduction_factor=3),
    )
    with closing(Objective(env_id, population_size)) as objective:
        study.optimize(objective, n_trials=trials)
    return study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--env-id", default="InvertedDoublePendulum-v5")
    parser.add_argument("--population-size", type=int, default=32)
    study = search(**vars(parser.parse_args()))
    pruned = study.get_trials(states=[TrialState.PRUNED])
    print(f"{len(study.trials)} trials, {len(pruned)} of them pruned; the best scored {study.best_value:.1f}")
    print(", ".join(f"{name} {value:.3g}" for name, value in study.best_params.items()))


if __name__ == "__main__":
    main()
