"""The examples do what they say, with fewer generations than by default."""

import torch

from examples import beside_gradients, foreign_vector_env, land_rocket, point_mass


def test_a_rocket_learns_to_land() -> None:
    pilot = land_rocket.train(20)
    heights = torch.tensor([3.0, 8.0, 12.0])  # none of those that it was trained on
    with torch.no_grad():
        impact, _ = land_rocket.fly(pilot, heights)
        falling, _ = land_rocket.fly(lambda x: torch.zeros_like(x[..., :1]), heights)
    assert impact.max() < 1.0 < 3.0 < falling.min()


def test_controller_and_encoder_learn_beside_each_other() -> None:
    untrained = beside_gradients.train(10)
    assert beside_gradients.train(30) < 0.6 * untrained


def test_cartpole_is_learned_in_a_third_party_vector_environment() -> None:
    assert foreign_vector_env.train(8) > 200  # about 20 at first, 500 at most


def test_a_mass_comes_to_rest_at_the_origin() -> None:
    assert point_mass.train(10) > 18  # 10 at first, 100 at most
