"""Plays the policy of a run in the official Gymnasium environment, and films it."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from es_flipout.choices import MOST_FILM_FRAMES
from es_flipout.cli.config_file import UsageError
from es_flipout.cli.film import Film, FilmError
from es_flipout.cli.modules import check_modules, told
from es_flipout.cli.process import silence_mujoco
from es_flipout.envs.mujoco.following import follow_what_moves
from es_flipout.envs.native import can_randomize
from es_flipout.rollout import Episodes, PlayError, PlayStoppedError, Scorer
from es_flipout.run import checkpoint
from es_flipout.run.build import make_policy, official_maker, official_scorer
from es_flipout.run.config import Config
from es_flipout.run.run_directory import RunDirectory

Follow = Callable[[Episodes, int, int], None]
"""Is told the table of episodes as it is, how many steps all running ones have made, and frames filmed."""


@dataclass(frozen=True)
class Playback:
    """Episodes of a run's policy.

    Attributes:
        config: of the run.
        checkpoint: file of the policy.
        generation: after which it was saved; None if the file does not say.
        episodes: what came of the episodes.
        film: of the first episode; None if it was not filmed.
    """

    config: Config
    checkpoint: Path
    generation: int | None
    episodes: Episodes
    film: Film | None


def play_run(
    run: RunDirectory,
    path: Path,
    *,
    episodes: int,
    seed: int = 0,
    randomize: bool = False,
    video: Path | None = None,
    video_frames: int = MOST_FILM_FRAMES,
    follow: Follow = lambda episodes, steps, frames: None,
) -> Playback:
    """Plays episodes of a checkpoint's policy, without any noise.

    Args:
        run: the run, whose configuration says in which environment.
        path: the checkpoint.
        episodes: how many.
        seed: reset seed of the first episode; episode i uses `seed + i`.
        randomize: whether to play randomized episodes.
        video: file for a film of the first episode, .mp4 or .gif.
        video_frames: where the film ends if the episode goes on.
        follow: called before every step of all episodes.

    Raises:
        FilmError: if the film cannot be written.
        RunError: if the checkpoint cannot be read, or is of another policy.
        UsageError: if the run's environment or policy cannot be made or fails, or there are no such episodes.
    """
    config = run.read_config()
    check_modules(config)
    _check_randomization(config, randomize)
    film = None if video is None else _make_film(config, video_frames, randomize)
    with closing(_make_scorer(config, episodes, film, randomize)) as scorer:
        policy = _make_policy(config, scorer)
        state = checkpoint.load(path)
        checkpoint.load_policy(policy, state, path)
        torch.set_num_threads(1)
        silence_mujoco()

        begun: list[Episodes] = []
        steps = itertools.count()

        def should_stop() -> bool:
            follow(begun[0], next(steps), film.num_frames if film else 0)
            return film is not None and film.error is not None

        filming = contextlib.nullcontext() if film is None or video is None else film.into(video)
        with _failures_told(config), filming, contextlib.suppress(PlayStoppedError):
            played = scorer.score(policy, seed=seed, should_stop=should_stop, begun=begun.append)
    return Playback(config, path, state.get("generation"), played, film)


@contextlib.contextmanager
def _failures_told(config: Config) -> Iterator[None]:
    """Turns failures of `render()` and of the policy into usage errors."""
    try:
        yield
    except FilmError as error:
        if error.exit_status == 2:
            raise UsageError(f"{config.env.id}: {error}") from error
        raise
    except PlayError as error:
        raise UsageError(str(error)) from error


def _check_randomization(config: Config, wanted: bool) -> None:
    with told(config.env.id):
        if wanted and not can_randomize(config.env.id, **config.env.kwargs):
            raise UsageError(f"--randomize: {config.env.id} has no randomization")


def _make_film(config: Config, num_frames: int, randomize: bool) -> Film:
    mode = config.env.kwargs.get("render_mode", "rgb_array")  # which observations may depend on
    with told(f"a film needs render_mode {mode}, with which {config.env.id} cannot be made"):
        env = official_maker(config.env, randomize=randomize)(render_mode=mode)
        if "render_mode" not in config.env.kwargs:
            follow_what_moves(env, config.env.kwargs)
        return Film(env, max_frames=num_frames)


def _make_scorer(config: Config, episodes: int, film: Film | None, randomize: bool) -> Scorer:
    info = config.evaluation.info
    with told(config.env.id):
        return official_scorer(config.env, episodes, info=info, first=film, randomize=randomize)


def _make_policy(config: Config, scorer: Scorer) -> nn.Module:
    with told(f"policy {config.policy.kind}"):
        return make_policy(config.policy, scorer.observation_space, scorer.action_space)
