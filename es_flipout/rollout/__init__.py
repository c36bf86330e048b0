"""From members to episodes: the table of episodes, and whatever plays it."""

from es_flipout.rollout.background_score import BackgroundScorer
from es_flipout.rollout.baseline import BaselinePlayer
from es_flipout.rollout.device import DevicePlayer
from es_flipout.rollout.episodes import Episodes
from es_flipout.rollout.evaluate import evaluate
from es_flipout.rollout.host import HostPlayer
from es_flipout.rollout.player import Player, PlayError, PlayStoppedError
from es_flipout.rollout.process_group import ProcessGroup
from es_flipout.rollout.quick_score import QuickScorer
from es_flipout.rollout.rank_contract import RankDiffersError, Ranks, RanksLostError, RefusedError
from es_flipout.rollout.ranks import RankPlayer
from es_flipout.rollout.score import Scorer
from es_flipout.rollout.seeds import reset_seeds
from es_flipout.rollout.single_env import GymnasiumRollout, Rollout
from es_flipout.rollout.workers import WorkerPlayer

__all__ = [
    "BackgroundScorer",
    "BaselinePlayer",
    "DevicePlayer",
    "Episodes",
    "GymnasiumRollout",
    "HostPlayer",
    "PlayError",
    "PlayStoppedError",
    "Player",
    "ProcessGroup",
    "QuickScorer",
    "RankDiffersError",
    "RankPlayer",
    "Ranks",
    "RanksLostError",
    "RefusedError",
    "Rollout",
    "Scorer",
    "WorkerPlayer",
    "evaluate",
    "reset_seeds",
]
