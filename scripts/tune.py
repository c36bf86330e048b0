"""Searches for a configuration: random and model-guided trials, of which the worse ones are stopped early.

python -m scripts.tune --config hopper --space scripts/spaces/hopper.yaml --env-steps 2000000 --jobs 2

A space has settings with the names that es-train uses and the values to choose from: a list, or a range
`{low: 0.01, high: 0.3}` that is searched on a logarithmic scale. Everything else is as in the configuration.
A trial trains several seeds, and its score is their mean: a single one may be lucky. Trials are compared when
they have used 1/9, 1/3 and all of the env steps. Only the best third of those that have come so far continues
(asynchronous successive halving: Li et al., 2020, arXiv 1810.05934). Training seeds are 1000 and more, no two
trials have the same, and none is a seed of published scores.

A stopped search can be continued: finished trials count, unfinished ones start again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from es_flipout.cli.arguments import parse_train
from es_flipout.cli.process import silence_mujoco
from es_flipout.run import yaml_text
from es_flipout.run.build import official_scorer
from es_flipout.run.config import Config
from es_flipout.run.errors import RunError
from es_flipout.run.machine import describe_machine
from es_flipout.run.reporters.jsonl import JsonLines
from es_flipout.run.run_directory import RunDirectory
from es_flipout.run.trainer import Trainer

REDUCTION = 3
RUNGS = (1, 3, 9)
"""Ninths of the env steps after which trials are compared."""
SCORE_SEED = 2_000_000
"""Reset seed of the first episode of a score; final scores use other seeds."""
FIRST_TRAINING_SEED = 1000


def read_space(path: Path) -> dict[str, BaseDistribution]:
    """Returns the choices by the name of the setting."""
    space: dict[str, BaseDistribution] = {}
    for name, values in yaml_text.load(path.read_text()).items():
        if isinstance(values, list):
            # As text, because a choice may be a list or a mapping, such as the widths of hidden layers.
            space[name] = CategoricalDistribution([json.dumps(value) for value in values])
        else:
            space[name] = FloatDistribution(float(values["low"]), float(values["high"]), log=True)
    return space


def chosen(params: Mapping[str, Any]) -> list[str]:
    """Returns the arguments of es-train that make the choice."""
    return [f"--{name}={json.loads(v) if _is_word(v) else v}" for name, v in params.items()]


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and value.startswith('"')


def config_of(asked: argparse.Namespace, params: Mapping[str, Any], out: Path, seed: int) -> Config:
    """Returns the configuration of a trial, which trains on one core."""
    fixed = {
        "out": out,
        "seed": seed,
        "max_env_steps": asked.env_steps,
        "threads": 1,
        "device": "cpu",
        "evaluation.interval": 0,
        "evaluation.episodes": asked.episodes,
        "logging.reporters": "[jsonl]",
        "logging.checkpoint_interval": 1_000_000,
    }
    arguments = [f"--{name}={value}" for name, value in fixed.items()]
    return parse_train(["--config", asked.config, *chosen(params), *arguments]).config


def run_trial(trial: optuna.Trial, arguments: argparse.Namespace) -> None:
    """Trains one configuration until it is finished or pruned, and reports its scores.

    Raises:
        TrialPruned: if the trial is not among the best third.
    """
    out = arguments.out / f"trial{trial.number:03}"
    first = FIRST_TRAINING_SEED + trial.number * arguments.seeds
    with ExitStack() as stack:
        try:
            seeds = range(first, first + arguments.seeds)
            configs = [config_of(arguments, trial.params, out / f"seed{seed}", seed) for seed in seeds]
            trainers = [stack.enter_context(closing(Trainer(config))) for config in configs]
        except ValueError as error:
            trial.set_user_attr("error", str(error))
            raise optuna.TrialPruned from error
        runs = [RunDirectory.create(config) for config in configs]
        lines = [stack.enter_context(closing(JsonLines(run.metrics))) for run in runs]
        config = configs[0]
        scorer = stack.enter_context(closing(official_scorer(config.env, config.evaluation.episodes)))
        of_seeds: list[list[float]] = []
        for rung in RUNGS:
            target = arguments.env_steps * rung // RUNGS[-1]
            try:
                for trainer, run, line in zip(trainers, runs, lines, strict=True):
                    trainer.train(run, [line], lambda each=trainer, target=target: each.env_steps >= target)
            except RunError as error:
                trial.set_user_attr("error", str(error))
                raise optuna.TrialPruned from error
            scores = [scorer.score(each.policy, seed=SCORE_SEED).mean_return for each in trainers]
            of_seeds.append(scores)
            trial.report(statistics.fmean(scores), rung)
            trial.set_user_attr("scores_of_seeds", of_seeds)
            trial.set_user_attr("env_steps", max(each.env_steps for each in trainers))
            trial.set_user_attr("seconds", sum(each.seconds for each in trainers))
            if rung < RUNGS[-1] and trial.should_prune():
                raise optuna.TrialPruned


def open_study(out: Path) -> optuna.Study:
    """Returns the study in `out`, or a new one if there is none."""
    return optuna.create_study(
        study_name="tune",
        storage=JournalStorage(JournalFileBackend(str(out / "study.log"))),
        direction="maximize",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(multivariate=True, constant_liar=True, n_startup_trials=12),
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION),
    )


def work(arguments: argparse.Namespace) -> None:
    """Runs trials until the requested number has finished."""
    torch.set_num_threads(1)
    silence_mujoco()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space, study = read_space(arguments.space), open_study(arguments.out)
    # Trials that other processes have begun count as well.
    while sum(trial.state != TrialState.FAIL for trial in study.trials) < arguments.trials:
        trial = study.ask(space)
        try:
            run_trial(trial, arguments)
            study.tell(trial, study.trials[trial.number].intermediate_values[RUNGS[-1]])
        except optuna.TrialPruned:
            study.tell(trial, state=TrialState.PRUNED)
        print(line_of(study.trials[trial.number]), flush=True)


def line_of(trial: FrozenTrial) -> str:
    """Returns one trial as a line of text."""
    scores = ", ".join(f"{score:.0f}" for _, score in sorted(trial.intermediate_values.items()))
    what = " ".join(chosen(trial.params))
    return f"trial {trial.number}: {scores or trial.user_attrs.get('error', 'none')}   {what}"


def results(study: optuna.Study) -> list[dict[str, Any]]:
    """Returns every finished trial, best first: by how far it came, then by its score there."""

    def merit(trial: FrozenTrial) -> tuple[int, float]:
        rung = trial.last_step or 0
        score = trial.intermediate_values.get(rung, float("-inf"))
        return rung, score if score == score else float("-inf")

    ended = [trial for trial in study.trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    return [
        {
            "trial": trial.number,
            "settings": {
                name: json.loads(value) if isinstance(value, str) else value
                for name, value in trial.params.items()
            },
            "scores": {
                f"{rung}/{RUNGS[-1]}": score for rung, score in sorted(trial.intermediate_values.items())
            },
            **trial.user_attrs,
        }
        for trial in sorted(ended, key=merit, reverse=True)
    ]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--config", required=True, help="as for es-train --config: everything that is not searched"
    )
    parser.add_argument("--space", type=Path, required=True, help="YAML file with the space to search")
    parser.add_argument(
        "--env-steps", type=int, required=True, help="live env steps of a trial that is not stopped early"
    )
    parser.add_argument("--trials", type=int, default=30, help="number of trials (default: %(default)s)")
    parser.add_argument(
        "--seeds", type=int, default=3, help="training seeds of a trial (default: %(default)s)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="trials in parallel, one core each")
    parser.add_argument("--episodes", type=int, default=16, help="episodes per score (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, help="folder of the search (default: runs/tune/NAME of the space)"
    )
    parser.add_argument("--json", type=Path, help="file for the results")
    arguments = parser.parse_args(words)
    arguments.out = arguments.out or Path("runs") / "tune" / arguments.space.stem
    arguments.out.mkdir(parents=True, exist_ok=True)
    study = open_study(arguments.out)
    for trial in study.get_trials(states=[TrialState.RUNNING]):  # of a search that was stopped
        study.tell(trial.number, state=TrialState.FAIL)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(arguments,)) for _ in range(arguments.jobs)]
    for worker in workers:
        worker.start()
    with suppress(KeyboardInterrupt):
        for worker in workers:
            worker.join()
    found = results(study)
    for each in found[:5]:
        print(each)
    if arguments.json:
        command = shlex.join(["python", "-m", "scripts.tune", *(words or sys.argv[1:])])
        body = {"command": command, "space": yaml_text.load(arguments.space.read_text()), "trials": found}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({**body, "machine": describe_machine()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
