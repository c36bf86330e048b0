"""A user's policy over observations with parts: it gets dicts of tensors, alone and as a population."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from es_flipout.perturbations import Flipout, LowRank
from es_flipout.policies import StructuredPolicy, flat_box, make_policy
from es_flipout.population import Population

SPACE = spaces.Dict(image=spaces.Box(0, 255, (8, 8, 3), np.uint8), vector=spaces.Box(-1, 1, (4,), np.float32))
ACTIONS = spaces.Box(-1.0, 1.0, (2,))


class Seer(nn.Module):
    """Convolutions over the image, a layer over the vector, and both together."""

    def __init__(self, observation_space, action_space):
        super().__init__()
        assert observation_space == SPACE
        self.convolution = nn.Conv2d(3, 4, 3, stride=2)
        self.touch = nn.Linear(4, 5)
        self.output = nn.Linear(4 * 3 * 3 + 5, action_space.shape[0])

    def features(self, observations):
        image, vector = observations["image"], observations["vector"]
        assert image.shape[-3:] == (8, 8, 3)
        assert image.is_floating_point()
        seen = self.convolution(image.movedim(-1, -3) / 255).flatten(1)
        return torch.cat([seen, self.touch(vector)], dim=-1).tanh()

    def forward(self, observations):
        return self.output(self.features(observations)).tanh()


class Remembers(Seer):
    """The same with a state, the sum of its actions."""

    def initial_state(self, batch_size):
        return self.touch.weight.new_zeros(batch_size, 2)

    def forward(self, observations, state):
        state = state + super().forward(observations)
        return state, state


class Unready(Seer):
    """Expects a vector."""

    def __init__(self, observation_space, action_space):
        nn.Module.__init__(self)
        self.layer = nn.Linear(observation_space.shape[0], 2)


def rows(count):
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (count, 192), generator=generator).float()
    return torch.cat([image, torch.rand(count, 4, generator=generator)], dim=1)


def made(name, space=SPACE):
    generator = torch.Generator().manual_seed(1)
    return make_policy(f"{__name__}:{name}", flat_box(space), ACTIONS, generator=generator)


@pytest.mark.parametrize("name", ["Seer", "Remembers"])
@pytest.mark.parametrize("family", [Flipout(2), LowRank(1)])
def test_members_of_a_population_act_as_they_do_alone(name, family):
    policy = made(name)
    noise = family.sample(dict(policy.named_parameters()), 8, torch.Generator().manual_seed(2))
    population = Population(policy, noise, 0.3)
    observations = rows(8)
    state = [torch.full((8, 2), 0.5)] if name == "Remembers" else []
    with torch.no_grad():
        together = population.select(torch.arange(8))(observations, *state)
        for m in range(8):
            one = [observations[m : m + 1], *(each[:1] for each in state)]
            alone = torch.func.functional_call(policy, population.member(m), tuple(one))
            pairs = zip(together, alone, strict=True) if state else [(together, alone)]
            for whole, single in pairs:
                torch.testing.assert_close(whole[m : m + 1], single, rtol=1e-4, atol=1e-5)


def test_it_is_the_policy_in_a_module_with_one_prefix():
    policy = made("Seer")
    assert isinstance(policy, StructuredPolicy)
    assert not hasattr(policy, "initial_state")
    assert hasattr(made("Remembers"), "initial_state")
    assert getattr(policy, "normalizer", None) is None
    assert all(name.startswith("policy.") for name in policy.state_dict())
    observations = rows(3)
    parts = {"image": observations[:, :192].reshape(3, 8, 8, 3), "vector": observations[:, 192:]}
    assert torch.equal(policy(observations), policy.policy(parts))


def test_categories_and_plain_boxes_are_left_to_the_class():
    class_ = f"{__name__}:Plain"
    for space, size in ((spaces.Discrete(3), 3), (spaces.MultiBinary(2), 2)):
        policy = make_policy(class_, flat_box(space), ACTIONS)
        assert isinstance(policy, Plain)
        assert policy.layer.in_features == size


class Plain(nn.Module):
    """A layer over a vector."""

    def __init__(self, observation_space, action_space):
        super().__init__()
        self.layer = nn.Linear(observation_space.shape[0], 2)


def test_a_class_for_vectors_is_told_what_observations_are():
    with pytest.raises(
        ValueError, match=r"TypeError: .*\(observations are Dict\(image, vector\); env\.wrappers \[FlattenObs"
    ):
        made("Unready")


def test_the_spaces_of_a_vector_policy_stay_flat():
    policy = make_policy("mlp", flat_box(SPACE), ACTIONS)
    assert policy(rows(2)).shape == (2, 2)
