"""Pictures of Gymnasium's MuJoCo tasks: what moves stays in them, a camera of the user's as it is."""

from __future__ import annotations

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium.envs.mujoco.ant_v5 import AntEnv

from es_flipout.envs.mujoco.following import follow_what_moves, moving_body, tracking_camera
from es_flipout.envs.mujoco.model_warnings import deprecations_silenced

STEPS = 300
UNHEALTHY = {"terminate_when_unhealthy": False}
WALKERS = {
    "Humanoid-v5": UNHEALTHY,
    "HalfCheetah-v5": {},
    "Ant-v5": UNHEALTHY,
    "Walker2d-v5": UNHEALTHY,
    "Swimmer-v5": {},
}


@pytest.fixture(autouse=True)
def _egl(monkeypatch):
    """Renders off screen, or skips where that cannot be."""
    monkeypatch.setenv("MUJOCO_GL", "egl")
    try:
        from mujoco.egl import GLContext

        GLContext(16, 16).free()
    except Exception as error:  # the drivers fail in many ways
        pytest.skip(f"EGL cannot render on this machine: {error!r}")


def make(env_id, **kwargs):
    with deprecations_silenced():
        return gym.make(env_id, render_mode="rgb_array", width=160, height=120, **kwargs)


def walk(env):
    """Plays random actions, a picture after every step; in the middle the robot is carried far away."""
    env.reset(seed=0)
    env.action_space.seed(0)
    task = env.unwrapped
    for step in range(STEPS):
        env.step(env.action_space.sample())
        if step == STEPS // 2:
            qpos = task.data.qpos.copy()
            qpos[0] += 15.0  # the x of all these tasks
            task.set_state(qpos, task.data.qvel.copy())
        if step % 50 == 49:
            picture = env.render()
    return picture


def place_in_picture(env, position):
    """Projects a point: (right, up) in [-1, 1] if it is within the picture, as the scene's camera has it."""
    viewer = env.unwrapped.mujoco_renderer.viewer
    eyes = viewer.scn.camera[:2]
    origin = np.mean([eye.pos for eye in eyes], axis=0)
    forward, up = (np.mean([getattr(eye, name) for eye in eyes], axis=0) for name in ("forward", "up"))
    right = np.cross(forward, up)
    away = position - origin
    depth = away @ forward
    assert depth > 0
    top = eyes[0].frustum_top / eyes[0].frustum_near
    return away @ right / depth / (top * 160 / 120), away @ up / depth / top


@pytest.mark.parametrize("env_id", WALKERS)
def test_what_moves_stays_in_the_picture(env_id):
    env = make(env_id, **WALKERS[env_id])
    follow_what_moves(env, WALKERS[env_id])
    picture = walk(env)
    data, torso = env.unwrapped.data, moving_body(env.unwrapped.model)
    assert data.xpos[torso][0] > 10
    right, up = place_in_picture(env, data.subtree_com[torso])
    assert abs(right) < 0.7
    assert abs(up) < 0.7
    # What is there is no floor: the pictures with and without the robot differ around that place.
    task = env.unwrapped
    task.model.geom_rgba[task.model.geom_bodyid > 0, 3] = 0.0
    row, column = round(60 - up * 60), round(80 + right * 80)
    around = np.s_[max(row - 12, 0) : row + 12, max(column - 12, 0) : column + 12]
    assert np.abs(picture[around].astype(int) - env.render()[around]).mean() > 3
    env.close()


def test_gymnasiums_own_camera_loses_the_humanoid():
    env = make("Humanoid-v5", **UNHEALTHY)
    walk(env)
    right, _ = place_in_picture(env, env.unwrapped.data.xpos[1])
    assert abs(right) > 2
    env.close()


def test_a_model_without_a_tracking_camera_is_followed_by_the_free_one():
    env = make("Ant-v5", **UNHEALTHY, default_camera_config={"distance": 6.0})
    follow_what_moves(env, {"default_camera_config": {"distance": 6.0}})
    walk(env)
    task = env.unwrapped
    camera = task.mujoco_renderer.viewer.cam
    assert camera.distance == 6.0
    assert np.linalg.norm(camera.lookat - task.data.subtree_com[1]) < 1.0
    assert max(map(abs, place_in_picture(env, task.data.subtree_com[1]))) < 0.3
    env.close()


@pytest.mark.parametrize(
    "kwargs",
    [{"camera_id": 0}, {"camera_name": "track"}, {"default_camera_config": {"lookat": np.zeros(3)}}],
    ids=lambda kwargs: next(iter(kwargs)),
)
def test_a_camera_of_the_users_stays(kwargs):
    env = make("Ant-v5", **kwargs)
    renderer = env.unwrapped.mujoco_renderer
    before = renderer.camera_id, dict(renderer.default_cam_config)
    follow_what_moves(env, kwargs)
    assert (renderer.camera_id, renderer.default_cam_config) == before
    env.close()


class SeenFromAfar(AntEnv):
    """A class of the user's that chooses the free camera."""

    def __init__(self, **kwargs):
        super().__init__(camera_id=-1, default_camera_config={"distance": 20.0}, **kwargs)


def test_a_camera_that_the_environments_class_names_stays():
    with deprecations_silenced():
        env = SeenFromAfar(render_mode="rgb_array")
    follow_what_moves(env, {})
    assert env.mujoco_renderer.camera_id == -1
    assert env.mujoco_renderer.default_cam_config == {"distance": 20.0}
    env.close()


@pytest.mark.parametrize("env_id", ["Reacher-v5", "InvertedPendulum-v5", "Pusher-v5"])
def test_what_stays_where_it_is_is_seen_as_gymnasium_shows_it(env_id):
    env = make(env_id)
    renderer = env.unwrapped.mujoco_renderer
    before = renderer.camera_id, renderer.default_cam_config
    follow_what_moves(env, {})
    assert (renderer.camera_id, renderer.default_cam_config) == before
    env.close()


def test_environments_of_other_kinds_are_left_alone():
    follow_what_moves(gym.make("CartPole-v1"), {})


def test_the_body_that_moves_and_the_camera_that_tracks_are_found():
    text = """<mujoco><worldbody>
      <camera name="still"/>
      <body><joint type="slide" axis="1 0 0" limited="true" range="-1 1"/><geom size="1"/></body>
      <body><geom size="1"/><body><joint type="slide" axis="1 0 0"/><geom size="1"/></body></body>
      <body name="planar"><joint type="slide" axis="1 0 0"/><geom size="1"/><camera mode="trackcom"/></body>
      {}
    </worldbody></mujoco>"""
    planar = mujoco.MjModel.from_xml_string(text.format(""))
    assert planar.body(moving_body(planar)).name == "planar"
    assert tracking_camera(planar) == 1
    free = mujoco.MjModel.from_xml_string(
        text.format('<body name="free"><freejoint/><geom size="1"/></body>')
    )
    assert free.body(moving_body(free)).name == "free"
    still = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
    assert moving_body(still) is tracking_camera(still) is None
