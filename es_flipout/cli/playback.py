"""Plays the policy of a run in the official Gymnasium environment, and films it."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from es_flipout.cli.config_file import UsageError
from es_flipout.cli.film import SUFFIXES, Film, FilmError
from es_flipout.cli.modules import check_modules, told
from es_flipout.cli.process import silence_mujoco
from es_flipout.envs.native import can_randomize
from es_flipout.rollout import Episodes, PlayError, PlayStoppedError, Scorer
from es_flipout.run import checkpoint
from es_flipout.run.build import make_policy, official_maker, official_scorer
from es_flipout.run.config import Config
from es_flipout.run.run_directory import RunDirectory


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
    video_frames: int | None = None,
    before_step: Callable[[], None] = lambda: None,
) -> Playback:
    """Plays episodes of a checkpoint's policy, without any noise.

    Args:
        run: the run, whose configuration says in which environment.
        path: the checkpoint.
        episodes: how many.
        seed: reset seed of the first episode; episode i uses `seed + i`.
        randomize: whether to play randomized episodes.
        video: file for a film of the first episode; see `check_video`.
        video_frames: where the film ends; None for the end of the episode.
        before_step: called before every step of all episodes.

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

        def should_stop() -> bool:
            before_step()
            return film is not None and film.error is not None

        filming = contextlib.nullcontext() if film is None or video is None else film.into(video)
        with _failures_told(config), filming, contextlib.suppress(PlayStoppedError):
            played = scorer.score(policy, seed=seed, should_stop=should_stop)
    return Playback(config, path, state.get("generation"), played, film)


def check_video(path: Path, option: str) -> None:
    """Checks that a film can be written.

    Raises:
        UsageError: if it cannot; the message names the option of the command line.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{option} must end in {' or '.join(SUFFIXES)}, got {path}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{option}: folder {path.parent} does not exist")
    if path.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise UsageError(f"{option}: cannot write {path}")


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


def _make_film(config: Config, num_frames: int | None, randomize: bool) -> Film:
    mode = config.env.kwargs.get("render_mode", "rgb_array")  # which observations may depend on
    with told(f"a film needs render_mode {mode}, with which {config.env.id} cannot be made"):
        env = official_maker(config.env, randomize=randomize)(render_mode=mode)
        return Film(env, max_frames=num_frames or math.inf)


def _make_scorer(config: Config, episodes: int, film: Film | None, randomize: bool) -> Scorer:
    info = config.evaluation.info
    with told(config.env.id):
        return official_scorer(config.env, episodes, info=info, first=film, randomize=randomize)


def _make_policy(config: Config, scorer: Scorer) -> nn.Module:
    with told(f"policy {config.policy.kind}"):
        return make_policy(config.policy, scorer.observation_space, scorer.action_space)
