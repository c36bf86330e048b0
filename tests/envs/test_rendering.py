"""Pictures of native tasks: Gymnasium's own, with or without a display, whatever was imported before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import imageio.v2 as imageio
import numpy as np
import pytest

from es_flipout.cli import train
from es_flipout.envs.mujoco import Hopper
from es_flipout.envs.mujoco.model_warnings import deprecations_silenced
from es_flipout.envs.mujoco.rendering import Camera
from es_flipout.envs.mujoco.single_env import MujocoSingleEnv

REPOSITORY = Path(__file__).parents[2]
SIZE = {"width": 64, "height": 48}
SEEN_FROM = (
    {},
    {"default_camera_config": {"distance": 3.0, "elevation": -20.0, "lookat": np.array([0.0, 0.0, 1.15])}},
    {"camera_name": "track"},
    {"camera_id": 0, "visual_options": {2: True}},
    {"camera_id": -1, "max_geom": 3},
)


def run(code, **environment):
    """Runs a program without a display; returns the process."""
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL", "PYOPENGL_PLATFORM")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def _egl():
    """Skips where MuJoCo itself cannot draw without a display."""
    made = run("from mujoco.egl import GLContext; GLContext(8, 8).free()", MUJOCO_GL="egl")
    if made.returncode:
        pytest.skip(f"EGL cannot draw on this machine: {made.stderr[-200:]}")


PICTURE = f"""
import gymnasium, numpy, os
import es_flipout
env = gymnasium.make("es_flipout/InvertedPendulum-v5", render_mode="rgb_array", **{SIZE})
env.reset(seed=0)
first = env.render()
assert first.shape == (48, 64, 3) and first.dtype == numpy.uint8 and first.any(), first
env.step(numpy.array([3.0], numpy.float32))
assert (env.render() != first).any()
env.close()
assert "MUJOCO_GL" not in os.environ
print("drawn")
"""


@pytest.mark.usefixtures("_egl")
def test_neither_a_display_nor_a_variable_is_needed():
    ran = run(PICTURE)
    assert (ran.stdout, ran.stderr) == ("drawn\n", "")


@pytest.mark.usefixtures("_egl")
def test_es_eval_films_a_task_of_ones_own_without_a_display(tmp_path, monkeypatch):
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.chdir(tmp_path)
    options = {
        "env.id": "examples.point_mass:PointMass-v0",
        "env.num_envs": "2",
        "env.kwargs": "{max_episode_steps: 3, width: 64, height: 48}",
        "generations": "1",
        "es.population_size": "2",
        "evaluation.episodes": "1",
        "threads": "1",
        "out": "run",
    }
    assert train.main([word for name, value in options.items() for word in (f"--{name}", value)]) == 0
    ran = run("from es_flipout.cli import eval; eval.main(['run', '--episodes', '1', '--video', 'film.gif'])")
    assert ran.stderr == ""
    frames = imageio.mimread(tmp_path / "film.gif")
    assert frames
    assert all(frame.shape[:2] == (48, 64) and frame[..., :3].any() for frame in frames)


@pytest.mark.usefixtures("_egl")
@pytest.mark.parametrize("view", SEEN_FROM, ids=str)
def test_a_picture_is_gymnasiums_of_the_same_state(view, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with deprecations_silenced():
        # The official default is a camera of its own, which a task does not have.
        official = gym.make(
            "Hopper-v5", render_mode="rgb_array", **{"default_camera_config": None, **view}, **SIZE
        )
    native = gym.make("es_flipout/Hopper-v5", render_mode="rgb_array", **view, **SIZE)
    native.reset(seed=0)
    official.reset(seed=0)
    pictures = []
    for push in (0.0, 1.0):
        native.step(np.full(3, push, np.float32))
        qpos, qvel = (native.unwrapped._env.engine.fields[name][0].numpy() for name in ("qpos", "qvel"))
        official.unwrapped.set_state(qpos.copy(), qvel.copy())
        pictures.append(native.render())
        assert np.array_equal(pictures[-1], official.render())
    assert (pictures[0] != pictures[1]).any()
    native.close()
    official.close()


FAILS = """
import gymnasium
import es_flipout
env = gymnasium.make("es_flipout/InvertedPendulum-v5", render_mode="rgb_array", disable_env_checker=True)
env.reset(seed=0)
import os
os.environ["MUJOCO_GL"] = "no_such"
try:
    env.render()
except RuntimeError as error:
    print(error)
"""


def test_what_cannot_draw_is_told_in_one_line():
    ran = run(FAILS)
    assert ran.stderr == ""
    assert ran.stdout.startswith("OpenGL cannot draw here with MUJOCO_GL=no_such: RuntimeError: ")
    assert ran.stdout.endswith("(set MUJOCO_GL to egl, osmesa or glfw; egl and osmesa need no display)\n")
    assert ran.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("view", "message"),
    [
        ({"camera_name": "trak"}, r"^the model has no camera 'trak'; it has 'track'$"),
        ({"camera_id": 1}, r"^camera_id must be in \[-1, 1\), got 1$"),
        ({"camera_id": 0, "camera_name": "track"}, "cannot be specified at the same time"),
        ({"default_camera_config": {"distanc": 1}}, "a mujoco.MjvCamera has no attribute 'distanc'"),
        ({"width": 0}, "width must be an integer >= 1, got 0"),
        ({"height": "80"}, "height must be an integer >= 1, got '80'"),
    ],
)
def test_a_wrong_view_is_told(view, message):
    with pytest.raises(ValueError, match=message):
        Camera(Hopper().model, **view)


def test_a_larger_picture_gets_a_larger_buffer():
    task = Hopper()
    MujocoSingleEnv(task, render_mode="rgb_array", width=1000, height=900).close()
    assert (task.model.vis.global_.offwidth, task.model.vis.global_.offheight) == (1000, 900)


@pytest.mark.usefixtures("_egl")
def test_the_camera_follows_what_moves(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    pictures = {}
    for view in ({}, {"default_camera_config": {"lookat": np.zeros(3)}}):
        env = gym.make("tests.robots:Robot-v0", render_mode="rgb_array", **view, **SIZE)
        env.reset(seed=0)
        robot = env.unwrapped
        for x in (0.0, 5.0):
            robot._env.engine.fields["qpos"][0, 0] = x
            pictures[bool(view), x] = env.render().astype(float)
        env.close()
    # A floor without texture looks the same everywhere: so does the robot, if the camera goes with it.
    followed = np.abs(pictures[False, 0.0] - pictures[False, 5.0]).mean()
    left_behind = np.abs(pictures[True, 0.0] - pictures[True, 5.0]).mean()
    assert followed < 0.2 * left_behind
