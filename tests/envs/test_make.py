"""From an id to an environment: what is known by which name, and what a mistake is answered with."""

from __future__ import annotations

import sys
from functools import partial

import gymnasium as gym
import mujoco
import numpy as np
import pytest
import torch

from es_flipout.envs import (
    DEFAULT_EPISODE_STEPS,
    TASKS,
    GymnasiumVectorEnv,
    MujocoTask,
    MujocoVectorEnv,
    NumpyVectorEnv,
    known_ids,
    make_env,
    make_vec,
    native,
    register_task,
    runs_natively,
)
from es_flipout.envs.engines.batch import BatchEngine
from es_flipout.envs.engines.mjdata_pool import MjDataPoolEngine
from es_flipout.envs.mujoco.model_warnings import deprecations_silenced
from es_flipout.envs.native import RENDERING_KEYWORDS, cpu_engine_of


@pytest.fixture(autouse=True)
def _forgets_what_is_registered(monkeypatch):
    known = dict(gym.registry)
    monkeypatch.setattr(native, "_native", dict(native._native))
    yield
    gym.registry.clear()
    gym.registry.update(known)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes an importable module."""
    monkeypatch.syspath_prepend(tmp_path)
    names = []

    def write(name, source):
        (tmp_path / f"{name}.py").write_text(source)
        names.append(name)
        return name

    yield write
    for name in names:
        sys.modules.pop(name, None)


def truncated_at(env, limit):
    """Returns the step at which all envs are truncated, None if that is none of the next `limit`."""
    env.reset(seed=0)
    actions = torch.zeros(env.action_space.shape)
    for step in range(1, limit + 1):
        *_, truncated, _ = env.step(actions)
        if truncated.all():
            return step
    return None


# --- ids ---------------------------------------------------------------------------------------------


def test_every_task_is_known_here_and_in_gymnasium():
    for env_id in TASKS:
        assert runs_natively(env_id)
        assert runs_natively(f"es_flipout/{env_id}")
        assert gym.spec(f"es_flipout/{env_id}").max_episode_steps == gym.spec(env_id).max_episode_steps
        for name in (env_id, f"es_flipout/{env_id}"):
            env = make_vec(name, 1, threads=1)
            assert type(env.task) is TASKS[env_id]
            assert env.max_episode_steps == gym.spec(env_id).max_episode_steps


def test_what_runs_natively():
    assert runs_natively("gymnasium:Hopper-v5")
    assert not runs_natively("Hopper-v4")
    assert not runs_natively("CartPole-v1")
    assert not runs_natively("NoSuchThing-v0")
    assert not runs_natively("Hopper-v5", ["TimeAwareObservation"])


@pytest.mark.parametrize("engine", ["auto", "gymnasium"])
def test_other_ids_run_in_gymnasium(engine):
    env = make_vec("Pendulum-v1", 2, engine=engine, g=5.0)
    assert type(env) is GymnasiumVectorEnv
    expected, _ = gym.make("Pendulum-v1", g=5.0).reset(seed=3)
    observations, _ = env.reset(seed=3)
    np.testing.assert_array_equal(observations[0], expected)
    env.close()


def test_other_ids_may_run_in_processes():
    env = make_vec("CartPole-v1", 3, engine="gymnasium_processes", threads=2)
    here = make_vec("CartPole-v1", 3)
    assert torch.equal(env.reset(seed=3)[0], here.reset(seed=3)[0])
    assert torch.equal(env.step(torch.ones(3, dtype=torch.int64))[0], here.step(np.ones(3, int))[0])
    env.close()


def test_a_native_task_may_run_in_gymnasium():
    env, native = (
        make_vec("Hopper-v5", 2, dtype=torch.float64, engine=engine, frame_skip=2)
        for engine in ("gymnasium", "auto")
    )
    assert type(env) is GymnasiumVectorEnv
    assert torch.equal(env.reset(seed=0)[0], native.reset(seed=0)[0])
    assert torch.equal(env.step(torch.ones(2, 3))[0], native.step(torch.ones(2, 3))[0])


@pytest.mark.parametrize("env_id", ["Hopper-v5", "tests.robots:Robot-v0"])
def test_gymnasium_takes_its_own_keyword_arguments_if_randomization_is_wanted(env_id):
    options = {"engine": "gymnasium", "randomize": True, "disable_env_checker": True}
    make_vec(env_id, 1, **options).close()
    with pytest.raises(ValueError, match="disable_env_checkers"):
        make_vec(env_id, 1, engine="gymnasium", randomize=True, disable_env_checkers=True)


@pytest.mark.parametrize(("name", "engine"), [("batch", BatchEngine), ("mjdata_pool", MjDataPoolEngine)])
def test_a_native_engine_may_be_chosen(name, engine):
    assert type(make_vec("Hopper-v5", 1, engine=name, threads=1).engine) is engine


# --- time limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "limit"),
    [
        ({}, 50),
        ({"max_episode_steps": None}, 50),
        ({"max_episode_steps": -1}, None),
        ({"max_episode_steps": 7}, 7),
    ],
)
@pytest.mark.parametrize("engine", ["auto", "gymnasium"])
def test_time_limits(kwargs, limit, engine):
    with deprecations_silenced():
        assert truncated_at(make_vec("Reacher-v5", 2, engine=engine, **kwargs), 60) == limit


@pytest.mark.parametrize("engine", ["auto", "gymnasium"])
@pytest.mark.parametrize("limit", [0, -2, "x", 2.5])
def test_a_bad_time_limit_is_refused(engine, limit):
    with pytest.raises(ValueError, match="max_episode_steps"):
        make_vec("InvertedPendulum-v5", 1, engine=engine, max_episode_steps=limit)


# --- keyword arguments -------------------------------------------------------------------------------


def test_rendering_keywords_are_accepted_as_officially_and_change_nothing():
    rendering = {
        "render_mode": "rgb_array",
        "default_camera_config": {"distance": 2.0},
        "width": 64,
        "height": 48,
        "camera_id": 0,
        "camera_name": None,
        "max_geom": 500,
        "visual_options": {},
    }
    assert rendering.keys() == RENDERING_KEYWORDS
    with deprecations_silenced():
        gym.make("InvertedPendulum-v5", **rendering).close()
    env, plain = (make_vec("InvertedPendulum-v5", 2, **kwargs) for kwargs in (rendering, {}))
    assert torch.equal(env.reset(seed=0)[0], plain.reset(seed=0)[0])
    assert torch.equal(env.step(torch.ones(2, 1))[0], plain.step(torch.ones(2, 1))[0])
    assert cpu_engine_of("InvertedPendulum-v5", **rendering) == "batch"


@pytest.mark.parametrize(
    ("env_id", "kwargs", "message"),
    [
        ("Humanod-v5", {}, "unknown environment 'Humanod-v5'; did you mean Humanoid-v5?"),
        ("Cartpole-v1", {}, "unknown environment 'Cartpole-v1'; did you mean CartPole-v1?"),
        ("no-such-thing", {}, "(native: Ant-v5, HalfCheetah-v5, Hopper-v5"),
        ("no-such-thing", {}, "every id registered in Gymnasium"),
        ("Humanod-v5", {"engine": "gymnasium"}, "did you mean Humanoid-v5?"),
        ("no_such_module:CartPole-v1", {}, "No module named 'no_such_module'"),
        ("HalfCheetah-v5", {"healthy_reward": 1.0}, "no keyword argument 'healthy_reward'"),
        ("HalfCheetah-v5", {"healthy_reward": 1.0}, "allowed: xml_file, frame_skip, forward_reward_weight"),
        ("HalfCheetah-v5", {"healthy_reward": 1.0}, "max_episode_steps"),
        ("CartPole-v1", {"gravity": 1.0}, "CartPole-v1: "),
        ("CartPole-v1", {"gravity": 1.0}, "unexpected keyword argument 'gravity'"),
        ("HalfCheetah-v5", {"xml_file": "missing.xml"}, "missing.xml does not exist"),
        ("HalfCheetah-v5", {"xml_file": 3}, "HalfCheetah-v5: "),
        ("HalfCheetah-v5", {"frame_skip": 0}, "frame_skip must be an integer >= 1, got 0"),
        ("HalfCheetah-v5", {"frame_skip": 2.5}, "frame_skip must be an integer >= 1, got 2.5"),
        ("Humanoid-v5", {"healthy_z_range": 3}, "Humanoid-v5: "),
        ("CartPole-v1", {"engine": "batch"}, "engine 'batch' runs native tasks only, not CartPole-v1"),
        ("CartPole-v1", {"engine": "mjdata_pool"}, "(native: Ant-v5, HalfCheetah-v5"),
        (
            "Hopper-v5",
            {"engine": "batch", "wrappers": ["TimeAwareObservation"]},
            "engine 'batch' runs native tasks only, not Hopper-v5 in wrappers",
        ),
        ("CartPole-v1", {"engine": "bach"}, "bach"),
        ("Hopper-v5", {"engine": "bach"}, "bach"),
        ("Hopper-v5", {"engine": "bach"}, "mjdata_pool"),
        ("CartPole-v1", {"engine": "gymnasium_processes", "threads": -1}, "threads"),
        ("Hopper-v5", {"threads": -1}, "threads"),
        ("CartPole-v1", {"wrappers": ["NoSuchWrapper"]}, "wrapper 'NoSuchWrapper' does not exist"),
        ("Hopper-v5", {"wrappers": ["no_module:Class"]}, "wrapper 'no_module:Class' does not exist"),
        ("Hopper-v5", {"wrappers": ["os:NoClass"]}, "give a name in gymnasium.wrappers, or MODULE:CLASS"),
        ("Pendulum-v1", {"wrappers": ["RescaleAction"]}, "min_action"),
    ],
)
def test_a_mistake_is_named_with_what_is_allowed(env_id, kwargs, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message is looked at below
        make_vec(env_id, 2, **kwargs)
    assert message in str(error.value)


# --- whatever a constructor raises ---------------------------------------------------------------------


class License(Exception):  # noqa: N818 - a package's own
    pass


RAISED = [
    (KeyError("robot.yaml"), "KeyError: 'robot.yaml'"),
    (AssertionError("pass data=FILE"), "AssertionError: pass data=FILE"),
    (NotImplementedError(), "NotImplementedError"),
    (ImportError("no module named pygame"), "ImportError: no module named pygame"),
    (ValueError("negative dimensions\nare not allowed"), "ValueError: negative dimensions are not allowed"),
    (License("expired"), "License: expired"),
    (SystemExit("no license"), "SystemExit: no license"),
    (gym.error.DependencyNotInstalled("pip install box2d"), "DependencyNotInstalled: pip install box2d"),
]


class RaisesWhenMade(gym.Env):
    observation_space = action_space = gym.spaces.Box(-1, 1, (2,))

    def __init__(self, error=None):
        if error is not None:
            raise error


@pytest.mark.parametrize(("error", "text"), RAISED)
@pytest.mark.parametrize("make", [make_env, lambda env_id, **kwargs: make_vec(env_id, 2, **kwargs)])
def test_what_a_constructor_raises_is_named_with_the_id(make, error, text):
    gym.register("Raises-v0", RaisesWhenMade)
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the whole message is looked at below
        make("Raises-v0", error=error)
    assert str(raised.value) == f"Raises-v0: {text}"
    assert raised.value.__cause__ is error


@pytest.mark.parametrize(("error", "text"), RAISED)
def test_what_a_tasks_constructor_raises_is_named_with_the_id(error, text):
    def raises():
        raise error

    register_task("RaisingTask-v0", raises)
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the whole message is looked at below
        make_vec("RaisingTask-v0", 2)
    assert str(raised.value) == f"RaisingTask-v0: {text}"


@pytest.mark.parametrize("make", [make_env, lambda env_id, wrappers: make_vec(env_id, 1, wrappers=wrappers)])
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def wrap(env): raise KeyError('gain')", "CartPole-v1: KeyError (in {0}:wrap): 'gain'"),
        ("def wrap(env): raise NotImplementedError", "CartPole-v1: NotImplementedError (in {0}:wrap)"),
        ("def wrap(env): pass", "CartPole-v1: wrapper {0}:wrap returned None, not an environment"),
        ("wrap = 3", "CartPole-v1: TypeError (in {0}:wrap): 'int' object is not callable"),
        ("raise RuntimeError('half\\ninstalled')", "(RuntimeError: half installed)"),
    ],
)
def test_what_a_wrapper_raises_is_named_with_the_wrapper(module, make, source, message):
    name = module("a_wrapper", source)
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the whole message is looked at below
        make("CartPole-v1", [f"{name}:wrap"])
    assert message.format(name) in str(raised.value)


class Words(gym.spaces.Space):
    def __init__(self):
        super().__init__(dtype=str)


def test_what_has_no_flat_form_is_named():
    class Speaks(gym.Env):
        observation_space = gym.spaces.Dict(
            image=gym.spaces.Box(0, 255, (2, 2), np.uint8),
            said=gym.spaces.Tuple([gym.spaces.Discrete(2), Words()]),
        )
        action_space = gym.spaces.Discrete(2)

    gym.register("Speaks-v0", Speaks)
    with pytest.raises(
        ValueError, match=r"NotImplementedError \(in FlattenObservation\): no flat form of Words, the entry"
    ) as raised:
        make_vec("Speaks-v0", 1, wrappers=["FlattenObservation"])
    assert "['said'][1]" in str(raised.value)


@pytest.mark.parametrize("source", ["1 / 0", "raise SystemExit('no license')", "import no_such_thing", "x ="])
def test_what_an_import_raises_is_named_with_the_id(module, source):
    name = module("cannot_be_imported", source)
    for make in (make_env, lambda env_id: make_vec(env_id, 1)):
        with pytest.raises(
            ValueError, match=rf"^{name}:Any-v0: (ZeroDivision|Syntax|ModuleNotFound|SystemExit)[a-zA-Z]*: .+"
        ):
            make(f"{name}:Any-v0")


@pytest.mark.parametrize(
    ("env_id", "hint"),
    [
        ("ALE/Pong-v5", "ale_py registers such ids; pip install ale-py"),
        ("FetchReach-v4", "pip install gymnasium-robotics"),
        ("AdroitHandDoor-v1", "gymnasium_robotics registers such ids"),
        ("FetchBall-v0", "if need be of a module: MODULE:FetchBall-v0"),  # which may be the user's own
        (
            "dm_control/cartpole-swingup-v0",
            r"shimmy registers such ids; pip install 'shimmy\[dm-control\]'",
        ),
        ("MiniGrid-Empty-5x5-v0", "pip install minigrid"),
        ("highway-fast-v0", "pip install highway-env"),
        ("PandaReach-v3", "panda_gym registers such ids; pip install panda-gym"),
        ("mo-halfcheetah-v5", "pip install mo-gymnasium"),
        ("HopperBulletEnv-v0", "pip install pybullet_envs_gymnasium"),
        ("Drone-v0", "MODULE:Drone-v0"),
    ],
)
@pytest.mark.parametrize("make", [make_env, lambda env_id: make_vec(env_id, 1)])
def test_an_id_of_a_package_that_is_not_installed_is_answered_with_how_to(monkeypatch, make, env_id, hint):
    monkeypatch.setattr(known_ids, "find_spec", lambda module: None)  # whatever is installed here
    with pytest.raises(ValueError, match=f"unknown environment '{env_id}'.*{hint}"):
        make(env_id)


FLAPPY = """
import gymnasium

class Flappy(gymnasium.wrappers.TransformReward):
    def __init__(self):
        super().__init__(gymnasium.make("CartPole-v1").env, lambda reward: 7.0)

gymnasium.register("FlappyBird-v0", Flappy, max_episode_steps=5)
"""


@pytest.mark.parametrize("engine", ["gymnasium", "gymnasium_processes"])
def test_the_module_of_a_known_package_is_imported_by_itself(module, tmp_path, monkeypatch, engine):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    module("flappy_bird_gymnasium", FLAPPY)
    assert not runs_natively("FlappyBird-v0")
    env = make_vec("FlappyBird-v0", 2, engine=engine, threads=2)
    env.reset(seed=0)
    assert env.step(torch.zeros(2, dtype=torch.int64))[1].tolist() == [7.0, 7.0]
    env.close()
    with pytest.raises(ValueError, match="unknown environment 'FlappyBird-v1'; did you mean FlappyBird-v0"):
        make_env("FlappyBird-v1")


def test_what_the_module_of_a_known_package_raises_is_named(module):
    module("flappy_bird_gymnasium", "raise OSError('no sound')")
    with pytest.raises(ValueError, match=r"^FlappyBird-v0: cannot import flappy_bird_gymnasium: OSError: no"):
        make_env("FlappyBird-v0")


@pytest.mark.parametrize("engine", ["auto", "gymnasium"])
@pytest.mark.parametrize("healthy", [[0.7, "inf"], ["-inf", 2.0], (0.7, ".Inf")])
def test_infinity_as_text_is_answered_with_yamls_spelling(engine, healthy):
    with pytest.raises(ValueError, match=r"Hopper-v5: healthy_z_range has the text.*\.inf"):
        make_vec("Hopper-v5", 1, engine=engine, healthy_z_range=healthy)


def test_a_text_that_stands_alone_may_mean_anything():
    gym.register("Raises-v0", RaisesWhenMade)
    with pytest.raises(ValueError, match=r"^Raises-v0: .*YAML writes infinity as \.inf"):
        make_env("Raises-v0", eror="inf")


@pytest.mark.parametrize("count", [0, -1, 2.0, True])
@pytest.mark.parametrize(
    "make",
    [
        partial(make_vec, "CartPole-v1"),
        partial(GymnasiumVectorEnv, partial(gym.make, "CartPole-v1")),
        partial(MujocoVectorEnv, TASKS["Hopper-v5"]()),
    ],
)
def test_no_envs_are_refused(make, count):
    with pytest.raises(ValueError, match=f"num_envs must be an integer >= 1, got {count}"):
        make(count)


# --- modules and wrappers ----------------------------------------------------------------------------


def test_module_and_id_import_the_module_that_registers_it(module):
    source = """
import gymnasium as gym
gym.register(
    "Imported-v0", "gymnasium.envs.classic_control:PendulumEnv", max_episode_steps=4, kwargs={"g": 3.0}
)
"""
    name = module("registers_an_environment", source)
    with pytest.raises(ValueError, match="unknown environment 'Imported-v0'"):
        make_vec("Imported-v0", 1)
    with pytest.raises(ValueError, match=rf"'Qqqq-v9': the module {name} does not register it"):
        make_vec(f"{name}:Qqqq-v9", 1)
    env = make_vec(f"{name}:Imported-v0", 2)
    assert truncated_at(env, 10) == 4
    env = make_vec(f"{name}:Imported-v0", 2, engine="gymnasium_processes", threads=1)
    assert truncated_at(env, 10) == 4
    env.close()


def test_wrappers_stand_around_each_other_innermost_first(module):
    source = """
import gymnasium as gym

class Counts(gym.RewardWrapper):
    '''Pays what the environment inside shows last: the time, if it is shown.'''
    def step(self, action):
        observation, _, *rest = self.env.step(action)
        return observation, float(observation[-1]), *rest
"""
    name = module("has_a_wrapper", source)
    env = make_vec("CartPole-v1", 2, wrappers=["TimeAwareObservation", f"{name}:Counts"])
    observations, _ = env.reset(seed=0)
    assert observations.shape == (2, 5)
    rewards = [env.step(torch.tensor([0, 1]))[1].tolist() for _ in range(3)]
    np.testing.assert_allclose(rewards, [[1, 1], [2, 2], [3, 3]])
    other_way = make_vec("CartPole-v1", 2, wrappers=[f"{name}:Counts", "TimeAwareObservation"])
    other_way.reset(seed=0)
    assert other_way.step(torch.tensor([0, 1]))[1].tolist() != rewards[0]


def test_a_native_task_in_wrappers_runs_in_gymnasium():
    with deprecations_silenced():
        env = make_vec("HalfCheetah-v5", 2, wrappers=["TimeAwareObservation"])
    assert type(env) is GymnasiumVectorEnv
    assert env.reset(seed=0)[0].shape == (2, 18)


def test_make_env_makes_the_official_environment_in_its_wrappers():
    env = make_env("Hopper-v5", ["TimeAwareObservation"], frame_skip=2)
    assert env.unwrapped.frame_skip == 2
    assert "es_flipout" not in type(env.unwrapped).__module__
    assert isinstance(env, gym.wrappers.TimeAwareObservation)


# --- a task of one's own -----------------------------------------------------------------------------

MJCF = """
<mujoco>
  <option timestep="0.01"/>
  <worldbody>
    <light pos="0 0 3"/>
    <camera name="fixed" pos="0 -3 0" xyaxes="1 0 0 0 0 1"/>
    <body>
      <joint name="slide" type="slide" axis="1 0 0" damping="0.1"/>
      <geom size="0.2" mass="1" rgba="1 0 0 1"/>
    </body>
  </worldbody>
  <actuator><motor joint="slide" ctrlrange="-2 2"/></actuator>
</mujoco>
"""


class Cart(MujocoTask):
    """A cart that is paid its progress less the square of the force, until it is `far` off."""

    fields = ("qpos", "qvel")

    def __init__(self, xml_file, frame_skip=5, far=0.3):
        super().__init__(xml_file, frame_skip)
        self.far = far

    def initial_state(self, rng):
        return self._uniform_around_start(rng, 0.05)

    def observe(self, fields):
        return fields["qpos"], fields["qvel"]

    def locate(self, fields):
        return fields["qpos"][:, 0].clone()

    def reward(self, before, after, fields, actions):
        progress, cost = after - before, actions.double().square().sum(dim=1)
        return progress - cost, {"progress": progress, "cost": cost}

    def terminated(self, fields):
        return fields["qpos"][:, 0].abs() > self.far


@pytest.fixture
def xml_file(tmp_path):
    path = tmp_path / "cart.xml"
    path.write_text(MJCF)
    return str(path)


class CartByHand:
    def __init__(self, xml_file):
        self.model = mujoco.MjModel.from_xml_path(xml_file)
        self.data = mujoco.MjData(self.model)

    def reset(self, seed):
        rng = gym.utils.seeding.np_random(seed)[0]
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:], self.data.qvel[:] = rng.uniform(-0.05, 0.05, 1), rng.uniform(-0.05, 0.05, 1)
        mujoco.mj_forward(self.model, self.data)
        return [*self.data.qpos, *self.data.qvel]

    def step(self, action):
        before = self.data.qpos[0]
        self.data.ctrl[:] = action
        mujoco.mj_step(self.model, self.data, 5)
        after = self.data.qpos[0]
        return [*self.data.qpos, *self.data.qvel], (after - before) - float(action) ** 2, abs(after) > 0.3


@pytest.fixture
def by_hand(xml_file):
    """The cart under full force, from seed 5: what it shows and is paid, up to its end."""
    cart = CartByHand(xml_file)
    observations, rewards, over = [cart.reset(5)], [], False
    while not over:
        observation, reward, over = cart.step(0.5)
        observations.append(observation)
        rewards.append(reward)
    assert 3 < len(rewards) < 30
    return observations, rewards


def test_a_task_of_ones_own_in_make_vec(xml_file, by_hand):
    register_task("Cart-v0", Cart)
    assert runs_natively("Cart-v0")
    env = make_vec("Cart-v0", 3, xml_file=xml_file, dtype=torch.float64, threads=2)
    assert type(env) is MujocoVectorEnv
    assert env.max_episode_steps == env.default_limit == DEFAULT_EPISODE_STEPS
    assert env.single_action_space == gym.spaces.Box(-2, 2, (1,), np.float32)
    observations, _ = env.reset(seed=[4, 5, 6])
    wanted, wanted_rewards = by_hand
    assert observations[1].tolist() == wanted[0]
    for step, reward in enumerate(wanted_rewards, start=1):
        observations, rewards, terminated, truncated, info = env.step(torch.tensor([[0.0], [0.5], [0.0]]))
        assert observations[1].tolist() == wanted[step]
        assert float(rewards[1]) == pytest.approx(reward, abs=1e-12)
        assert float(info["progress"][1]) == pytest.approx(wanted[step][0] - wanted[step - 1][0], abs=1e-12)
        assert info["cost"].tolist() == [0, 0.25, 0]
        assert terminated.tolist() == [False, step == len(wanted_rewards), False]
        assert not truncated.any()


def test_a_task_of_ones_own_takes_keyword_arguments_and_a_limit(xml_file):
    register_task("Cart-v0", Cart, max_episode_steps=6)
    assert truncated_at(make_vec("Cart-v0", 2, xml_file=xml_file), 9) == 6
    assert truncated_at(make_vec("Cart-v0", 2, xml_file=xml_file, max_episode_steps=3), 9) == 3
    assert truncated_at(make_vec("Cart-v0", 2, xml_file=xml_file, max_episode_steps=-1), 9) is None
    env = make_vec("Cart-v0", 1, xml_file=xml_file, far=0.0)
    env.reset(seed=0)
    assert env.step(torch.zeros(1, 1))[2].all()
    with pytest.raises(ValueError, match="no keyword argument 'near'; allowed: xml_file, frame_skip, far"):
        make_vec("Cart-v0", 1, xml_file=xml_file, near=1)
    with pytest.raises(ValueError, match=r"Cart-v0: .*xml_file"):
        make_vec("Cart-v0", 1)


def test_a_task_of_ones_own_in_gymnasium_make(xml_file, by_hand):
    register_task("Cart-v0", Cart, max_episode_steps=500)
    env = gym.make("Cart-v0", xml_file=xml_file)
    assert env.spec.max_episode_steps == 500
    observation, _ = env.reset(seed=5)
    wanted, wanted_rewards = by_hand
    assert observation.tolist() == wanted[0]
    for step, wanted_reward in enumerate(wanted_rewards, start=1):
        observation, reward, terminated, truncated, info = env.step(np.array([0.5], np.float32))
        assert observation.tolist() == wanted[step]
        assert reward == pytest.approx(wanted_reward, abs=1e-12)
        assert info["cost"] == 0.25
        assert terminated is (step == len(wanted_rewards))
        assert truncated is False
    env.close()


def test_a_task_of_ones_own_in_gymnasium_make_vec(xml_file):
    register_task("Cart-v0", Cart, max_episode_steps=6)
    env = gym.make_vec("Cart-v0", num_envs=3, xml_file=xml_file, dtype=torch.float64)
    assert type(env) is NumpyVectorEnv
    assert truncated_at(env.env, 9) == 6
    ours = make_vec("Cart-v0", 3, xml_file=xml_file, dtype=torch.float64)
    np.testing.assert_array_equal(env.reset(seed=5)[0], ours.reset(seed=5)[0])
    sync = gym.make_vec("Cart-v0", num_envs=3, vectorization_mode="sync", xml_file=xml_file)
    np.testing.assert_array_equal(sync.reset(seed=5)[0], ours.reset(seed=5)[0])
    sync.close()


def test_a_task_of_ones_own_may_stand_in_a_module(module, xml_file):
    source = f"""
from es_flipout.envs import register_task
from es_flipout.envs.mujoco.inverted_pendulum import InvertedPendulum

class Slider(InvertedPendulum):
    def __init__(self, far=0.3):
        super().__init__({xml_file!r})
        self.far = far
    def terminated(self, fields):
        return fields["qpos"][:, 0].abs() > self.far

register_task("Slider-v0", Slider, max_episode_steps=8)
"""
    name = module("registers_a_task", source)
    assert runs_natively(f"{name}:Slider-v0")
    env = make_vec(f"{name}:Slider-v0", 2)
    assert type(env) is MujocoVectorEnv
    assert truncated_at(env, 12) == 8
    env = make_vec(f"{name}:Slider-v0", 2, engine="gymnasium_processes", threads=1)
    assert truncated_at(env, 12) == 8
    env.close()
    env = make_env(f"{name}:Slider-v0", far=9)
    assert env.unwrapped.reset(seed=0)[0].shape == (2,)


def test_without_a_render_mode_nothing_is_rendered(xml_file):
    register_task("Cart-v0", Cart)
    env = gym.make("Cart-v0", xml_file=xml_file)
    env.reset(seed=0)
    assert env.unwrapped.render() is None


def test_another_render_mode_is_refused(xml_file):
    register_task("Cart-v0", Cart)
    with pytest.raises(ValueError, match="render_mode must be None or 'rgb_array', got 'human'"):
        gym.make("Cart-v0", xml_file=xml_file, render_mode="human")


@pytest.mark.parametrize("env_id", ["InvertedPendulum-v5", "es_flipout/InvertedPendulum-v5"])
def test_rendering_keywords_are_accepted_by_a_single_environment_too(env_id):
    with deprecations_silenced():
        env = gym.make(env_id, width=64, height=48, camera_id=0, default_camera_config={"distance": 2.0})
    env.close()
