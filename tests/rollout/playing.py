"""How tests have a player play, and look at what came of it: by member and episode."""

from __future__ import annotations

import torch

from es_flipout.rollout import Episodes


class Played:
    """What came of P members' episodes, n of each.

    Attributes:
        returns: float64 tensor [P, n].
        lengths: int64 tensor [P, n].
    """

    def __init__(self, episodes: Episodes) -> None:
        self.episodes = episodes
        shape = (episodes.num_members, -1)
        self.returns = torch.from_numpy(episodes.returns).view(shape)
        self.lengths = torch.from_numpy(episodes.lengths).view(shape)
        self.fitness = episodes.fitness
        self.observations = episodes.observations()
        self.failures = episodes.failures
        self.env_steps, self.spent_steps = episodes.env_steps, episodes.spent_steps
        self.live_share = episodes.live_share


def rollout(
    player, population, reset_seeds, *, episode_limit=None, action_noise=0.0, block_size=4, **options
) -> Played:
    """Has a player play every member's episodes."""
    episodes = Episodes.of_population(
        reset_seeds, limit=episode_limit, action_noise=action_noise, block_size=block_size
    )
    assert player.play(population, episodes, **options) is episodes
    return Played(episodes)
