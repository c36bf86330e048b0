"""make_policy: the package's policies by name, and user-defined classes."""

import inspect
import math
from dataclasses import asdict

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from es_flipout.normalization import ObservationNormalizer
from es_flipout.policies import (
    ACTIVATIONS,
    POLICIES,
    CNNPolicy,
    GRUPolicy,
    LinearPolicy,
    LSTMPolicy,
    MLPPolicy,
)
from es_flipout.run.build import make_policy
from es_flipout.run.config import PolicyConfig

VECTOR = spaces.Box(-np.inf, np.inf, (4,))
TORQUES = spaces.Box(np.float32([-1.0, 0.5, -3.0]), np.float32([1.0, 0.75, 5.0]))
IMAGES = spaces.Box(0, 255, (8, 8, 3), np.uint8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linears(policy: MLPPolicy) -> list[nn.Linear]:
    return [layer for layer in policy.network if isinstance(layer, nn.Linear)]


def as_lists(value: object) -> object:
    """Returns a tuple as a list, as a configuration holds it."""
    return [as_lists(each) for each in value] if isinstance(value, tuple) else value


class TestOwn:
    def test_follows_the_configuration(self) -> None:
        config = PolicyConfig(
            hidden_sizes=[7, 6], activation="silu", observation_clip=2.0, action_bounds="clip"
        )
        policy = make_policy(config, VECTOR, TORQUES, generator())
        assert [tuple(layer.weight.shape) for layer in linears(policy)] == [(7, 4), (6, 7), (3, 6)]
        assert sum(isinstance(layer, ACTIVATIONS["silu"]) for layer in policy.network) == 2
        assert policy.normalizer.clip == 2.0
        assert torch.equal(policy.head.low, torch.from_numpy(TORQUES.low))
        assert torch.equal(policy.head.high, torch.from_numpy(TORQUES.high))
        assert policy.head.bounds == "clip"
        expected = MLPPolicy(VECTOR, TORQUES, hidden_sizes=(7, 6), generator=generator())
        torch.testing.assert_close(linears(policy)[0].weight, linears(expected)[0].weight * math.sqrt(2.0))

    @pytest.mark.parametrize("kind", POLICIES)
    def test_defaults_are_those_of_the_configuration(self, kind: str) -> None:
        settings = asdict(PolicyConfig())
        parameters = inspect.signature(POLICIES[kind]).parameters
        shared = settings.keys() & parameters.keys()
        assert {"init", "action_bounds"} <= shared
        for name in shared:
            assert as_lists(parameters[name].default) == settings[name], name

    @pytest.mark.parametrize("kind", POLICIES)
    def test_a_kind_alone_is_the_class_alone(self, kind: str) -> None:
        space = IMAGES if kind == "cnn" else VECTOR
        configured = make_policy(PolicyConfig(kind=kind), space, TORQUES, generator()).state_dict()
        constructed = POLICIES[kind](space, TORQUES, generator=generator()).state_dict()
        assert configured.keys() == constructed.keys()
        assert all(torch.equal(configured[name], constructed[name]) for name in configured)

    def test_linear_has_no_hidden_layer(self) -> None:
        policy = make_policy(PolicyConfig(kind="linear", hidden_sizes=[64, 64]), VECTOR, TORQUES)
        assert [tuple(layer.weight.shape) for layer in linears(policy)] == [(3, 4)]

    def test_normalization_can_be_left_out(self) -> None:
        assert make_policy(PolicyConfig(normalize_observations=False), VECTOR, TORQUES).normalizer is None

    @pytest.mark.parametrize(
        ("space", "named"),
        [
            (spaces.Box(0, 255, (8, 8, 3), np.uint8), r"Box observations of shape \(8, 8, 3\)"),
            (spaces.Box(-1.0, 1.0, ()), r"Box observations of shape \(\)"),
            (spaces.Discrete(5), "Discrete observations"),
            (spaces.Dict({"position": VECTOR}), "Dict observations"),
            (spaces.Tuple([VECTOR, VECTOR]), "Tuple observations"),
        ],
        ids=lambda value: str(value),
    )
    def test_observations_that_are_not_vectors_are_refused(self, space: gym.Space, named: str) -> None:
        with pytest.raises(ValueError, match=rf"^{named} are not supported.*wrappers\.FlattenObservation"):
            make_policy(PolicyConfig(), space, TORQUES)

    def test_an_integer_observation_is_a_vector_too(self) -> None:
        policy = make_policy(PolicyConfig(), spaces.Box(0, 255, (4,), np.uint8), TORQUES)
        assert policy(torch.ones(20, 4)).shape == (20, 3)

    def test_an_image_hints_at_the_cnn(self) -> None:
        with pytest.raises(ValueError, match=r"or set policy\.kind to cnn for images"):
            make_policy(PolicyConfig(), IMAGES, TORQUES)

    @pytest.mark.parametrize(
        ("kind", "kwargs", "space", "expected"),
        [
            ("mlp", {}, VECTOR, MLPPolicy),
            ("linear", {}, VECTOR, LinearPolicy),
            ("gru", {}, VECTOR, GRUPolicy),
            ("lstm", {}, VECTOR, LSTMPolicy),
            ("cnn", {"channel_order": "last"}, IMAGES, CNNPolicy),
        ],
    )
    def test_every_kind_is_built_as_by_its_class(
        self, kind: str, kwargs: dict, space: gym.Space, expected: type
    ) -> None:
        settings = {"hidden_sizes": [6], "init": "normc"}
        if kind in ("gru", "lstm"):
            settings["recurrent_size"] = 5
        if kind == "cnn":
            settings["conv_layers"] = [[4, 3, 2, 1]]
        config = PolicyConfig(kind=kind, kwargs=kwargs, **settings)
        torch.manual_seed(1)
        before = torch.get_rng_state()
        policy = make_policy(config, space, TORQUES, generator(3))
        assert torch.equal(torch.get_rng_state(), before)  # the caller's generator is unchanged
        assert type(policy) is expected
        if kind == "linear":
            del settings["hidden_sizes"]
        if kind == "cnn":
            settings["activation"] = "tanh"  # the configuration's default
        oracle = expected(space, TORQUES, **settings, **kwargs, generator=generator(3))
        assert policy.state_dict().keys() == oracle.state_dict().keys()
        for name, value in oracle.state_dict().items():
            assert torch.equal(policy.state_dict()[name], value), name

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            (
                PolicyConfig(kind="mpl"),
                r"policy.kind 'mpl' does not exist: choose one of mlp, linear, gru, lstm, cnn, or your own",
            ),
            (
                PolicyConfig(kwargs={"hidden_sizes": [3]}),
                "not hold hidden_sizes: set policy.hidden_sizes",
            ),
            (PolicyConfig(kwargs={"dropout": 0.1}), r"mlp has no argument 'dropout' \(allowed: none\)"),
            (
                PolicyConfig(kind="cnn", kwargs={"order": 1}),
                r"cnn has no argument 'order' \(allowed: channel_order\)",
            ),
            (
                PolicyConfig(kind="cnn", kwargs={"channel_order": "middle"}),
                "must be auto, first or last",
            ),
        ],
    )
    def test_a_mistake_gets_a_message_of_one_line(self, config: PolicyConfig, message: str) -> None:
        space = IMAGES if config.kind == "cnn" else VECTOR
        with pytest.raises(ValueError, match=message) as caught:
            make_policy(config, space, TORQUES)
        assert "\n" not in str(caught.value)


class Users(nn.Module):
    """A user's policy: initial weights from the global generator, and dropout, which draws in training."""

    def __init__(self, observation_space: spaces.Box, action_space: spaces.Box, width: int = 5) -> None:
        super().__init__()
        self.first = nn.Linear(observation_space.shape[0], width)
        self.dropout = nn.Dropout(0.5)
        self.last = nn.Linear(width, action_space.shape[0])

    def forward(self, observations: Tensor) -> Tensor:
        return self.last(self.dropout(self.first(observations)))


class Frozen(Users):
    """Has nothing to train."""

    def __init__(self, *spaces: spaces.Box) -> None:
        super().__init__(*spaces)
        self.requires_grad_(False)


class Extra(Users):
    """Saves something other than a tensor."""

    def get_extra_state(self) -> dict:
        return {"version": 1}

    def set_extra_state(self, state: dict) -> None:
        del state


class Normalized(Users):
    """Has a normalizer of some kind."""

    def __init__(self, *spaces: spaces.Box, size: int | None = None) -> None:
        super().__init__(*spaces)
        self.normalizer = nn.LayerNorm(4) if size is None else ObservationNormalizer(size)


class TestUsers:
    def make(self, name: str = "Users", separator: str = ":", seed: int = 0, **kwargs: object) -> nn.Module:
        config = PolicyConfig(kind=f"{__name__}{separator}{name}", kwargs=kwargs)
        return make_policy(config, VECTOR, TORQUES, generator(seed))

    @pytest.mark.parametrize("separator", [":", "."])
    def test_a_path_and_keyword_arguments_name_it(self, separator: str) -> None:
        policy = self.make(separator=separator, width=7)
        assert type(policy) is Users
        assert policy.first.out_features == 7

    def test_its_construction_repeats_and_restores_the_global_generator(self) -> None:
        torch.manual_seed(1)
        before = torch.get_rng_state()
        policy = self.make(seed=3)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        assert torch.equal(self.make(seed=3).first.weight, policy.first.weight)
        assert not torch.equal(self.make(seed=4).first.weight, policy.first.weight)

    def test_it_draws_nothing_when_it_acts(self) -> None:
        policy, rows = self.make(), torch.ones(50, 4)
        assert torch.equal(policy(rows), policy(rows))

    def test_its_normalizer_is_kept(self) -> None:
        assert self.make("Normalized", size=4).normalizer.count == 0

    @pytest.mark.parametrize(
        ("name", "kwargs", "message"),
        [
            ("Nonesuch", {}, "has no Nonesuch"),
            ("VECTOR", {}, "must be a subclass of torch.nn.Module, but is Box"),
            ("PolicyConfig", {}, "must be a subclass of torch.nn.Module, but is <class"),
            ("Users", {"depth": 3}, "TypeError: .*unexpected keyword argument 'depth'"),
            ("Users", {"width": -1}, "RuntimeError: .*negative dimension"),
            ("Frozen", {}, "has no parameter to train"),
            ("Extra", {}, "its state dict must hold only tensors"),
            ("Normalized", {}, "must be an es_flipout.ObservationNormalizer, got LayerNorm"),
            ("Normalized", {"size": 5}, r"normalizer has 5 features, .* have shape \(4,\)"),
        ],
    )
    def test_an_unusable_class_gets_a_message_of_one_line(
        self, name: str, kwargs: dict, message: str
    ) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            self.make(name, **kwargs)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("kind", "message"),
        [
            ("nowhere:Net", "'nowhere:Net': cannot import nowhere: ModuleNotFoundError: No module named"),
            ("nowhere.Net", "'nowhere.Net': cannot import nowhere: ModuleNotFoundError"),
            (":Net", "':Net' is not a path to a class: write MODULE:CLASS"),
            ("nowhere:", "'nowhere:' is not a path to a class: write MODULE:CLASS"),
        ],
    )
    def test_a_wrong_path_gets_a_message_of_one_line(self, kind: str, message: str) -> None:
        with pytest.raises(ValueError, match=f"^policy.kind {message}"):
            make_policy(PolicyConfig(kind=kind), VECTOR, TORQUES)
