"""The programs of examples/embedding do what they say, in a smaller size than by default."""

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import TrialState

from examples.embedding import lora, optuna_search, process_objective, sb3_policy


def test_evolution_improves_a_stable_baselines3_policy() -> None:
    before, after = sb3_policy.train(
        "InvertedPendulum-v5", ppo_steps=512, generations=6, population_size=32, sigma=0.05, lr=0.05
    )
    assert after > 1.5 * before


@pytest.mark.slow
def test_evolution_doubles_the_score_of_ppo_on_hopper() -> None:
    before, after = sb3_policy.train()
    assert after > 2 * before


def test_the_actor_acts_as_predict_does() -> None:
    model = sb3_policy.PPO("MlpPolicy", "Hopper-v5", seed=0, device="cpu")
    observations = np.random.default_rng(0).normal(scale=3.0, size=(50, 11)).astype(np.float32)
    expected, _ = model.predict(observations, deterministic=True)
    with torch.no_grad():
        actions = sb3_policy.Actor(model.policy)(torch.from_numpy(observations))
    np.testing.assert_allclose(actions, expected, rtol=1e-5, atol=1e-6)


def test_only_the_adapters_are_perturbed_and_tuned() -> None:
    model, before, after = lora.train(generations=6)
    assert after > before + 0.05
    es = lora.FlipoutES(model, population_size=4, sigma=0.1)
    assert all(name.endswith((".up", ".down")) for name in es.ask().trained)
    member, center = es.ask().member(0), model.state_dict()
    changed = {name for name in center if not torch.equal(member[name], center[name])}
    assert changed == set(es.ask().trained)
    torch.manual_seed(0)
    untuned = lora.Transformer()
    lora.learn_by_gradient(untuned, 40, seed=0)
    lora.add_adapters(untuned, rank=2)
    for name, value in untuned.named_parameters():
        assert value.requires_grad or torch.equal(value, center[name])


@pytest.mark.parametrize(
    ("text", "balanced"), [("([])()", True), ("([)]", False), ("((", False), ("))", False)]
)
def test_the_parser_of_brackets(text: str, balanced: bool) -> None:
    assert lora.is_balanced(text) == balanced


def test_optuna_prunes_trials_and_finds_settings_that_learn() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna_search.search(trials=6, env_id="InvertedPendulum-v5", population_size=16)
    assert study.get_trials(states=[TrialState.PRUNED])
    assert study.best_value > 60  # about 6 at first, 1,000 at most


def test_processes_do_not_change_a_bit_and_costs_fall() -> None:
    alone = process_objective.train(generations=6, workers=0, population_size=16)
    shared = process_objective.train(generations=6, workers=2, population_size=16)
    for one, other in zip(alone.parameters(), shared.parameters(), strict=True):
        assert torch.equal(one, other)
    seed = process_objective.HELD_OUT_SEED
    untrained = process_objective.train(generations=0, workers=0)
    cost, cost_at_first = (
        process_objective.daily_cost(process_objective.Buyer(network), seed) for network in (alone, untrained)
    )
    assert cost < cost_at_first
    assert process_objective.daily_cost(process_objective.FixedLevels(20, 45), seed) < cost_at_first
