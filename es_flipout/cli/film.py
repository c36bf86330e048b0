"""A film of an episode: a frame at its start and one after every step, the last included."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio.v2 as imageio
import imageio_ffmpeg  # type: ignore[import-untyped]
import numpy as np
from typing_extensions import override

from es_flipout.cli.frames import Frame, FrameReader
from es_flipout.error_text import FOREIGN, error_text
from es_flipout.run.errors import RunError

DEFAULT_FPS = 30.0
MIN_GIF_MILLISECONDS = 20
"""Shortest time that viewers show a frame of a GIF; they take a shorter one for a mistake."""


class FilmError(RunError):
    """There is no film; the message says why, in one line."""

    def __init__(self, text: str, exit_status: int) -> None:
        super().__init__(" ".join(text.split()))
        self.exit_status = exit_status


class Film(gym.Wrapper[Any, Any, Any, Any]):
    """Films the first episode of an environment that renders.

    What `render()` raises does not end the episode: it ends the film.

    Attributes:
        num_frames: frames so far.
        error: why the film ended early; None while nothing is wrong.
    """

    def __init__(self, env: gym.Env[Any, Any], *, max_frames: float = math.inf) -> None:
        """Takes the environment.

        Args:
            env: whose `render()` returns images.
            max_frames: where the film ends; the episode goes on.
        """
        super().__init__(env)
        self.num_frames = 0
        self.error: FilmError | None = None
        self._max_frames = max_frames
        self._writer: Any = None
        self._is_video = False
        self._has_rendered = False
        self._reader = FrameReader()

    @contextmanager
    def into(self, path: Path) -> Iterator[None]:
        """Films into a file, .mp4 or .gif, until the block ends; only a whole film replaces the file.

        There is none if the episode fails before its first frame.

        Raises:
            FilmError: if there is no film.
        """
        unfinished = path.with_name(f".{path.stem}.unfinished{path.suffix}")
        try:
            with self._writes(path):
                self._writer = imageio.get_writer(unfinished, **self._options(path))
            self._is_video = path.suffix.lower() == ".mp4"
            try:
                yield
            finally:
                with self._writes(path):
                    if self._writer is not None:
                        self._writer.close()
            self._check(unfinished, path)
            with self._writes(path):
                if self.error is None and self.num_frames:
                    unfinished.replace(path)
        finally:
            self._writer = None
            unfinished.unlink(missing_ok=True)
        if self.error is not None:
            raise self.error

    @contextmanager
    def _writes(self, path: object) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error).strip().splitlines()[-1]  # the last of what ffmpeg said
            self._fail(f"cannot write {path}: {reason}", exit_status=1)

    def _options(self, path: Path) -> dict[str, Any]:
        fps = (self.metadata or {}).get("render_fps")
        if not isinstance(fps, int | float | np.number) or not (math.isfinite(fps) and fps > 0):
            fps = DEFAULT_FPS
        if path.suffix.lower() == ".gif":
            return {"duration": max(1000 / float(fps), MIN_GIF_MILLISECONDS), "loop": 0}
        return {"fps": float(fps), "macro_block_size": 1, "ffmpeg_log_level": "error"}

    def _check(self, unfinished: Path, path: Path) -> None:
        """Looks whether a film is whole: ffmpeg, in a process of its own, may end without a word."""
        if self.num_frames == 0:
            if self._has_rendered:
                self._fail("render() returned no image")
        elif self.error is None and self._is_video:
            with contextlib.suppress(RuntimeError):  # it cannot be read
                if imageio_ffmpeg.count_frames_and_secs(unfinished)[0] == self.num_frames:
                    return
            self._fail(
                f"cannot write {path}: ffmpeg wrote a part of the film; is there space?", exit_status=1
            )

    def _fail(self, text: str, exit_status: int = 2) -> None:
        self.error = self.error or FilmError(text, exit_status)

    def _shoot(self) -> None:
        if self._writer is None or self.error is not None or self.num_frames >= self._max_frames:
            return
        self._has_rendered = True
        try:
            rendered = self.env.render()
        except FOREIGN as error:
            self._fail(error_text(error))
            return
        try:
            frames = list(self._reader.read(rendered))
        except ValueError as error:
            self._fail(str(error))
            return
        for frame in frames:
            if self.num_frames < self._max_frames:
                with self._writes("the film"):
                    self._writer.append_data(_padded(frame) if self._is_video else frame)
                self.num_frames += 1

    @override
    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        result = super().reset(**kwargs)
        if self.num_frames:
            self._max_frames = self.num_frames  # the first episode is over
        self._shoot()
        return result

    @override
    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        result = super().step(action)
        self._shoot()
        return result


def _padded(frame: Frame) -> Frame:
    """Returns a frame of even height and width, as video needs them: the last row or column is repeated."""
    height, width, _ = frame.shape
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
