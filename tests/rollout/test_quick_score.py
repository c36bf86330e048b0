"""QuickScorer: the scores of the official environment to the last bit, most of them from native envs."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import torch
from gymnasium.envs.mujoco.mujoco_env import expand_model_path

from es_flipout.policies import LinearPolicy, MLPPolicy
from es_flipout.rollout import PlayError, QuickScorer
from es_flipout.run.build import has_exact_envs, make_background_scorer, native_scorer, official_scorer
from es_flipout.run.config import Config, EnvConfig, EvaluationConfig

EPISODES, SEED = 4, 70
POINT_MASS = "examples.point_mass:PointMass-v0"


def policy_for(scorer, kind=MLPPolicy, scale=50.0):
    spaces = scorer.observation_space, scorer.action_space
    sizes = {"hidden_sizes": (8,)} if kind is MLPPolicy else {}
    policy = kind(*spaces, generator=torch.Generator().manual_seed(0), **sizes)
    with torch.no_grad():
        for parameter in list(policy.parameters())[-2:]:
            parameter.normal_(0, 0.02 * scale, generator=torch.Generator().manual_seed(1))
    return policy


def outcome(score):
    """Returns all that is known of the episodes of a score."""
    return score.returns.tolist(), score.lengths.tolist(), score.faults


@pytest.mark.parametrize("kind", [MLPPolicy, LinearPolicy])
@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [
        ("Ant-v5", {"max_episode_steps": 60}),
        ("HalfCheetah-v5", {"max_episode_steps": 80}),
        ("Hopper-v5", {}),
        ("Humanoid-v5", {}),
        ("Pusher-v5", {"max_episode_steps": 30}),  # whose norms round otherwise when compiled
        ("Walker2d-v5", {}),
        ("es_flipout/Hopper-v5", {"max_episode_steps": 12}),
        (POINT_MASS, {}),
    ],
)
def test_native_envs_give_the_official_score_to_the_last_bit(env_id, kwargs, kind):
    config = EnvConfig(env_id, kwargs)
    with closing(official_scorer(config, EPISODES)) as official:
        policy = policy_for(official, kind)
        expected = outcome(official.score(policy, seed=SEED))
    with closing(native_scorer(config, EPISODES)) as native:
        assert native.observation_space == official.observation_space
        assert native.action_space == official.action_space
        assert outcome(native.score(policy, seed=SEED)) == expected
    assert len(set(expected[0])) == EPISODES


def test_the_limit_of_the_environment_is_heeded():
    with closing(native_scorer(EnvConfig("HalfCheetah-v5", {"max_episode_steps": 7}), EPISODES)) as scorer:
        assert scorer.score(policy_for(scorer), seed=SEED).lengths.tolist() == [7] * EPISODES


@pytest.mark.parametrize(
    ("config", "is_exact"),
    [
        (EnvConfig("Hopper-v5"), True),
        (EnvConfig("Hopper-v5", engine="batch"), True),
        (EnvConfig("Humanoid-v5", engine="mjdata_pool"), True),
        (EnvConfig("Ant-v5", engine="warp"), True),
        (EnvConfig("HalfCheetah-v5", {"width": 64, "max_episode_steps": 5}), True),
        (EnvConfig(POINT_MASS), True),
        (EnvConfig("Hopper-v5", engine="gymnasium"), False),
        (EnvConfig("Hopper-v5", engine="gymnasium_processes"), False),
        (EnvConfig("Hopper-v5", wrappers=["TimeAwareObservation"]), False),
        (EnvConfig("Hopper-v5", {"order_enforce": False}), False),
        (EnvConfig("Reacher-v5"), False),
        (EnvConfig("InvertedDoublePendulum-v5"), False),
        (EnvConfig("CartPole-v1"), False),
    ],
)
def test_which_environments_have_exact_envs(config, is_exact):
    assert has_exact_envs(config) == is_exact


@pytest.mark.parametrize(("official", "is_quick"), [(False, True), (True, False)])
def test_the_configuration_may_ask_for_the_official_environment(official, is_quick):
    config = Config(EnvConfig("Hopper-v5"), evaluation=EvaluationConfig(official=official))
    with closing(make_background_scorer(config)) as scorer:
        assert (scorer._make()._make_quick is not None) == is_quick


class Recorder:
    """Makes scorers of an environment and notes which were made."""

    def __init__(self, config):
        self.made = []
        self.scorer = QuickScorer(
            partial(self.make, "official", official_scorer, config),
            partial(self.make, "native", native_scorer, config),
        )

    def make(self, name, make, config):
        self.made.append(name)
        return make(config, EPISODES)


def test_the_official_environment_is_made_when_it_is_asked_for():
    config = EnvConfig("Hopper-v5", {"max_episode_steps": 10})
    with closing(official_scorer(config, EPISODES)) as official:
        policy = policy_for(official)
        expected = outcome(official.score(policy, seed=SEED))
    recorder = Recorder(config)
    with closing(recorder.scorer) as scorer:
        assert recorder.made == []
        for _ in range(2):
            assert outcome(scorer.score(policy, seed=SEED)) == expected
            assert recorder.made == ["native"]
        assert outcome(scorer.score(policy, seed=SEED, official=True)) == expected
        assert recorder.made == ["native", "official"]


def test_a_score_in_which_native_episodes_fail_is_repeated_officially(tmp_path):
    # Steps of 0.1 s are too long for this model: MuJoCo warns, and resets the state.
    path = tmp_path / "hasty.xml"
    model = Path(expand_model_path("half_cheetah.xml")).read_text()
    path.write_text(model.replace("</mujoco>", '<option timestep="0.1"/></mujoco>'))
    config = EnvConfig("HalfCheetah-v5", {"xml_file": str(path), "max_episode_steps": 20})
    with (
        closing(official_scorer(config, EPISODES)) as official,
        closing(native_scorer(config, EPISODES)) as native,
    ):
        policy = policy_for(official)
        expected = official.score(policy, seed=SEED)
        failed = native.score(policy, seed=SEED)
    assert failed.faults
    assert not expected.faults
    with closing(Recorder(config).scorer) as scorer:
        assert outcome(scorer.score(policy, seed=SEED)) == outcome(expected)


def test_an_environment_that_cannot_be_made_is_named():
    scorer = QuickScorer(partial(official_scorer, EnvConfig("Hopper-v5", {"speed": 3}), 1))
    with pytest.raises(PlayError, match=r"^Hopper-v5: TypeError: .*'speed'"):
        scorer.score(torch.nn.Linear(1, 1), seed=0)
    scorer.close()
