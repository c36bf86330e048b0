"""Film: a frame at the start and after every step of the first episode, of any size, and no effect on it."""

from __future__ import annotations

import resource
from contextlib import closing
from pathlib import Path

import gymnasium as gym
import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from es_flipout.cli import playback
from es_flipout.cli.film import Film, FilmError
from es_flipout.cli.frames import FrameReader
from es_flipout.envs.mujoco.model_warnings import deprecations_silenced
from es_flipout.policies import MLPPolicy
from es_flipout.run.build import official_maker, official_scorer
from es_flipout.run.config import Config, EnvConfig

SEED = 70


def make_env(env_id, kwargs):
    with deprecations_silenced():
        return gym.make(env_id, **kwargs)


def policy_for(env):
    generator = torch.Generator().manual_seed(0)
    policy = MLPPolicy(env.observation_space, env.action_space, hidden_sizes=(8,), generator=generator)
    with torch.no_grad():
        policy.network[-1].weight.mul_(50.0)  # a new policy hardly acts
    return policy


def filmed(kwargs, policy, folder):
    """Returns the score of two episodes of HalfCheetah, and the frames of the first."""
    config = EnvConfig("HalfCheetah-v5", kwargs)
    film = Film(official_maker(config)(render_mode="rgb_array"))
    with closing(official_scorer(config, 2, first=film)) as scorer, film.into(folder / "film.gif"):
        score = scorer.score(policy, seed=SEED)
    return score, imageio.mimread(folder / "film.gif")


@pytest.fixture
def egl(monkeypatch):
    """Renders off screen, or skips where that cannot be."""
    monkeypatch.setenv("MUJOCO_GL", "egl")
    try:
        from mujoco.egl import GLContext

        GLContext(16, 16).free()
    except Exception as error:  # the drivers fail in many ways
        pytest.skip(f"EGL cannot render on this machine: {error!r}")


def mean_difference(frame, other):
    return np.abs(frame.astype(int) - other.astype(int)).mean()


@pytest.mark.usefixtures("egl")
def test_every_frame_of_the_first_episode_is_delivered_in_order(tmp_path):
    kwargs = {"max_episode_steps": 6, "width": 48, "height": 32}
    plain = make_env("HalfCheetah-v5", {**kwargs, "render_mode": "rgb_array"})
    policy = policy_for(plain)
    observation, _ = plain.reset(seed=SEED)
    expected, ended = [plain.render()], False
    while not ended:
        with torch.no_grad():
            action = policy(torch.from_numpy(observation).to(torch.float32).unsqueeze(0))[0].numpy()
        observation, _, _, ended, _ = plain.step(action)
        expected.append(plain.render())
    plain.close()

    score, frames = filmed(kwargs, policy, tmp_path)
    assert score.lengths.tolist() == [6, 6]
    assert len(frames) == 7
    for index, frame in enumerate(frames):
        assert frame.shape[:2] == (32, 48)
        # A GIF has few colors; neighbors in time differ by far more.
        differences = [mean_difference(frame[..., :3], each) for each in expected]
        assert int(np.argmin(differences)) == index


@pytest.mark.usefixtures("egl")
def test_filming_changes_no_score(tmp_path):
    kwargs = {"max_episode_steps": 8, "width": 32, "height": 32}
    policy = policy_for(make_env("HalfCheetah-v5", kwargs))
    score, frames = filmed(kwargs, policy, tmp_path)
    with closing(official_scorer(EnvConfig("HalfCheetah-v5", kwargs), 2)) as scorer:
        plain = scorer.score(policy, seed=SEED)
    assert len(frames) == 9
    assert score.returns.tolist() == plain.returns.tolist()


@pytest.mark.parametrize(
    ("kwargs", "camera"),
    [({}, 0), ({"camera_id": -1}, -1), ({"render_mode": "rgb_array"}, -1)],  # pictures may be observations
    ids=["followed", "chosen", "observed"],
)
def test_a_film_follows_what_moves_unless_a_camera_is_chosen(kwargs, camera):
    film = playback._make_film(Config(env=EnvConfig("Ant-v5", kwargs)), 10, randomize=False)
    assert film.unwrapped.mujoco_renderer.camera_id == camera
    film.close()


class Rendering(gym.Env):
    """`render()` returns the next of some results, or raises it if it is an exception."""

    observation_space = action_space = gym.spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, results, fps=30):
        self.results = list(results)
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": fps}

    def reset(self, *, seed=None, options=None):
        return self.observation_space.low, {}

    def step(self, action):
        return self.observation_space.low, 0.0, False, False, {}

    def render(self):
        result = self.results.pop(0)
        if isinstance(result, BaseException):
            raise result
        return result


def film_of(path, results, **options):
    """Films an episode with a step between two results, and returns the film."""
    film = Film(Rendering(results, **options.pop("env", {})), **options)
    with film.into(Path(path)):
        film.reset()
        for _ in film.env.results[:]:
            film.step(np.zeros(1))
    return film


def mean_color(frame):
    return frame.reshape(-1, 3).mean(axis=0)


SHADES = (0, 120, 250)
GREY = [np.full((34, 50, 3), shade, np.uint8) for shade in SHADES]


# imageio leaves the pipes to its ffmpeg process to the garbage collector.
pipes = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pipes
@pytest.mark.parametrize(
    "results",
    [
        GREY,
        [each[..., 0] for each in GREY],
        [each[..., :1] for each in GREY],
        [np.dstack([each, np.full((34, 50, 1), 9, np.uint8)]) for each in GREY],
        [each / 255 for each in GREY],
        [each.astype(np.float32) for each in GREY],
        [each.astype(np.int64) for each in GREY],
        [each.tolist() for each in GREY],
        [torch.from_numpy(each) for each in GREY],
        [[each] for each in GREY],
    ],
    ids=["uint8", "gray", "column", "alpha", "unit", "float", "int", "nested", "tensor", "list"],
)
def test_an_image_of_any_kind_is_filmed(results):
    assert film_of("film.mp4", results).num_frames == 3
    frames = imageio.mimread("film.mp4")
    assert [frame.shape for frame in frames] == [(34, 50, 3)] * 3
    for frame, shade in zip(frames, SHADES, strict=True):
        assert mean_color(frame) == pytest.approx([shade] * 3, abs=4)


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([None], "render() returned None; a film needs an image [H, W]"),
        (["..#.."], "render() returned '..#..'; a film needs"),
        ([{"camera": 1}], "render() returned {'camera': 1}; a film needs"),
        ([[[1, 2], [3]]], "render() returned a list; a film needs"),
        ([[], ()], "render() returned no image"),
        ([np.zeros((3, 8, 8))], "render() returned an array [3, 8, 8]"),
        ([np.zeros((0, 8, 3))], "render() returned an array [0, 8, 3]"),
        ([np.full((8, 8), 256)], "render() returned values from 256 to 256; a film needs 0 to 255"),
        ([np.full((8, 8), -0.1)], "render() returned values from -0.1 to -0.1"),
        ([np.full((8, 8), np.nan)], "render() returned values from nan to nan"),
        ([GREY[0], GREY[0][:-1]], "render() returned an image [33, 50, 3] after one [34, 50, 3]"),
        ([ImportError("no module named pygame")], "ImportError: no module named pygame"),
        ([GREY[0], KeyError("camera")], "KeyError: 'camera'"),
        ([NotImplementedError()], "NotImplementedError"),
        ([SystemExit("no display")], "SystemExit: no display"),
    ],
)
def test_what_cannot_be_filmed_is_told_and_leaves_the_old_film(results, message):
    Path("film.gif").write_bytes(b"old")
    with pytest.raises(FilmError) as caught:
        film_of("film.gif", results)
    assert str(caught.value).startswith(message)
    assert caught.value.exit_status == 2
    assert "\n" not in str(caught.value)
    assert [path.read_bytes() for path in Path().iterdir()] == [b"old"]


@pipes
@pytest.mark.parametrize("fps", [None, 0, -1, float("nan"), "fast", 500])
def test_a_film_has_a_speed_whatever_the_environment_says(fps):
    film_of("film.mp4", GREY, env={"fps": fps})
    assert imageio.get_reader("film.mp4").get_meta_data()["fps"] == (500 if fps == 500 else 30)


@pipes
def test_a_film_may_be_shorter_than_the_episode():
    film = film_of("film.mp4", [GREY, GREY[:1]], max_frames=2)  # a list holds the frames since the last call
    assert film.num_frames == len(imageio.mimread("film.mp4")) == 2


def test_an_episode_without_a_frame_leaves_no_film():
    film = Film(Rendering([]))
    with film.into(Path("film.gif")):
        pass
    assert (film.num_frames, list(Path().iterdir())) == (0, [])


def test_a_film_that_cannot_be_written_is_told():
    film = Film(Rendering(GREY))
    told = pytest.raises(FilmError, match=r"cannot write gone/film.gif: The directory does not exist")
    with told, film.into(Path("gone/film.gif")):
        film.reset()


@pipes
@pytest.mark.parametrize("path", ["film.mp4", "film.gif"])
def test_a_film_out_of_space_is_told_and_removed(path, capfd):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    rng = np.random.default_rng(0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limit[1]))
    try:
        with pytest.raises(FilmError, match=rf"^cannot write {path}: [^\n]+$") as caught:
            film_of(path, list(rng.integers(0, 256, (20, 64, 64, 3), np.uint8)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert caught.value.exit_status == 1
    assert list(Path().iterdir()) == []
    assert capfd.readouterr().err == ""


@pipes
@settings(max_examples=12)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    count=st.integers(1, 4),
    suffix=st.sampled_from([".mp4", ".gif"]),
)
def test_a_film_of_any_size_is_not_stretched(height, width, count, suffix):
    rng = np.random.default_rng(height * 100 + width)
    frames = list(rng.integers(0, 256, (count, height, width, 3), np.uint8))
    path = f"film{suffix}"
    film_of(path, frames)
    filmed = [np.asarray(frame)[..., :3] for frame in imageio.mimread(path)]
    padding = 1 if suffix == ".mp4" else 0
    assert len(filmed) == count
    assert {each.shape for each in filmed} == {
        (height + padding * (height % 2), width + padding * (width % 2), 3)
    }


@given(
    arrays.arrays(
        st.sampled_from([np.uint8, np.int16, np.int64, np.float32, np.float64, np.bool_, np.complex64]),
        arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
    )
)
def test_an_array_becomes_a_frame_with_its_values_or_is_refused(image):
    allowed = image.ndim in (2, 3) and image.size and image.dtype != np.complex64
    allowed = allowed and (image.ndim == 2 or image.shape[2] in (1, 3, 4))
    if not allowed or not (image.min() >= 0 and image.max() <= 255):
        with pytest.raises(ValueError, match=r"^render\(\) returned [^\n]*$"):
            list(FrameReader().read(image))
        return
    (frame,) = FrameReader().read(image)
    assert (frame.dtype, frame.shape) == (np.uint8, (*image.shape[:2], 3))
    first = image if image.ndim == 2 else image[..., 0]
    is_unit = image.dtype == np.bool_ or (image.dtype.kind == "f" and image.max() <= 1)
    assert np.abs(frame[..., 0] - first * (255.0 if is_unit else 1.0)).max() <= 0.5001
