"""Tasks of robots: state, controls, forces, randomization and noise against a plain loop over MuJoCo."""

from __future__ import annotations

import copy
import functools
import pickle

import gymnasium as gym
import mujoco
import numpy as np
import pytest
import torch
from gymnasium.utils import seeding

from es_flipout import make_vec
from es_flipout.envs import MujocoVectorEnv
from es_flipout.envs.mujoco.checked_task import CheckedTask
from es_flipout.envs.mujoco.env_state import EnvState
from es_flipout.envs.mujoco.model_variants import ModelVariants
from es_flipout.envs.mujoco.start import StartBatch
from es_flipout.envs.mujoco.task_error import TaskError
from es_flipout.step_noise import fill_normal
from tests.robots import PERIOD, ROBOT, Robot

STEPS = 45
SEEDS = (3, 4, 5, 6)


def some_actions(num_envs, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (STEPS, num_envs, 2)).astype(np.float32)


class ByHand:
    """One episode of `Robot`, in NumPy, on an MjModel and an MjData of its own."""

    def __init__(self, seed, randomize):
        task = Robot()
        rng = seeding.np_random(seed)[0]
        self.model, self.randomize = copy.copy(task.model), randomize
        qpos, qvel, self.state = task.initial_state(rng)
        self.key = 0
        if randomize:
            drawn = task.randomize(rng)
            self.state["push"] = drawn.pop("push")
            for name, value in drawn.items():
                getattr(self.model, name)[:] = value
            self.key = rng.integers(2**63)
        self.data = mujoco.MjData(self.model)
        mujoco.mj_setConst(self.model, self.data)
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:], self.data.qvel[:] = qpos, qvel
        mujoco.mj_forward(self.model, self.data)
        self.count = 0

    @property
    def noise(self):
        numbers = np.zeros((1, 3))
        if self.randomize:
            fill_normal(numbers, np.ones(1, np.bool_), np.array([self.key]), np.array([self.count]))
        return numbers[0]

    def observe(self):
        data, state = self.data, self.state
        contacts = [
            {mujoco.mj_id2name(self.model, mujoco.mjtObj.mjOBJ_GEOM, k) for k in data.contact.geom[i]}
            for i in range(data.ncon)
        ]
        feet = [float({f"{side}_foot", "floor"} in contacts) for side in ("left", "right")]
        return np.concatenate(
            [
                [state["command"], np.cos(state["phase"] * (2 * np.pi / PERIOD))],
                data.qpos[2:],
                data.sensor("gyro").data + 0.1 * self.noise,
                np.ravel(state["actions"]),
                feet,
            ]
        )

    def step(self, action):
        data, state, action = self.data, self.state, action.astype(np.float64)
        x = data.qpos[0]
        data.ctrl[:] = np.array([0.1, -0.1]) + 0.5 * state["actions"][0]
        data.xfrc_applied[:] = 0
        if state["phase"] == 0:
            data.body("trunk").xfrc_applied[:2] = state["push"] * np.array([1, 0.7])
        mujoco.mj_step(self.model, data, 4)
        self.count += 1
        speed = (data.qpos[0] - x) / 0.02
        error = (speed - state["command"]) ** 2
        change = np.square(action - state["actions"][0]).sum()
        reward = np.exp(-4 * error) - 0.01 * change
        over = data.qpos[2] < 0.25
        state["actions"] = np.stack([action, state["actions"][0]])
        state["phase"] = (state["phase"] + 1) % PERIOD
        return self.observe(), reward, over


WAYS = {
    "torch": {"fused": False, "info": False},
    "torch with info": {"info": True},
    "compiled": {"info": False},
    "compiled, pool": {"info": False, "engine": "mjdata_pool"},
    "pool": {"engine": "mjdata_pool"},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("randomize", [False, True])
def test_a_robot_is_what_a_loop_over_mujoco_makes_of_it(way, randomize):
    env = make_vec(
        "tests.robots:Robot-v0", 4, dtype=torch.float64, threads=2, randomize=randomize, **WAYS[way]
    )
    assert (env.fused is not None) == way.startswith("compiled"), env.not_fused
    robots = [ByHand(seed, randomize) for seed in SEEDS]
    observations, _ = env.reset(seed=list(SEEDS))
    tolerance = {"rtol": 1e-9, "atol": 1e-9}
    np.testing.assert_allclose(observations, [each.observe() for each in robots], **tolerance)
    over = np.zeros(4, np.bool_)
    for actions in some_actions(4):
        observations, rewards, terminated, _, _ = env.step(torch.from_numpy(actions))
        for i, robot in enumerate(robots):
            if over[i]:
                assert rewards[i] == 0
                continue
            seen, reward, over[i] = robot.step(actions[i])
            np.testing.assert_allclose(observations[i], seen, **tolerance)
            assert rewards[i].item() == pytest.approx(reward, **{"rel": 1e-9, "abs": 1e-9})
        assert np.array_equal(terminated.numpy(), over)
    env.close()


def test_an_env_begins_anew_beside_others_that_go_on():
    env = make_vec("tests.robots:Robot-v0", 3, dtype=torch.float64, threads=1, randomize=True, info=False)
    env.reset(seed=[3, 4, 5])
    actions = some_actions(3)
    for each in actions[:7]:
        env.step(torch.from_numpy(each))
    robot = ByHand(9, randomize=True)
    mask = np.array([False, True, False])
    observations, _ = env.reset(seed=[None, 9, None], options={"reset_mask": mask})
    np.testing.assert_allclose(observations[1], robot.observe(), rtol=1e-9, atol=1e-9)
    beside = ByHand(3, randomize=True)
    for each in actions[:7]:
        beside.step(each[0])
    for each in actions[7:]:
        observations, *_ = env.step(torch.from_numpy(each))
        np.testing.assert_allclose(observations[1], robot.step(each[1])[0], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(observations[0], beside.step(each[0])[0], rtol=1e-9, atol=1e-9)


def own_model_fields(env):
    """Returns the varied fields of the model of every env, from the engine itself."""
    engine, names = env.engine, env.checked_task.varied
    kind = type(engine).__name__
    if kind == "BatchEngine":
        models = [engine._batch.get_model(i) for i in range(env.num_envs)]
        return {name: np.stack([getattr(model, name) for model in models]) for name in names}
    if kind == "MjDataPoolEngine":
        return engine._varied
    return {name: value.cpu().numpy() for name, value in engine._varied.items()}


def test_a_reset_seed_gives_the_same_model_on_every_engine():
    fields = {}
    for engine in ("batch", "mjdata_pool", "warp"):
        env = make_vec("tests.robots:Robot-v0", 4, engine=engine, threads=1, randomize=True)
        env.reset(seed=[3, 4, 3, 5])
        fields[engine] = {name: value.copy() for name, value in own_model_fields(env).items()}
        env.close()
    robots = [ByHand(seed, randomize=True) for seed in (3, 4, 3, 5)]
    assert {"body_mass", "geom_friction", "actuator_gainprm", "body_invweight0", "dof_invweight0"} <= set(
        fields["batch"]
    )
    for name, value in fields["batch"].items():
        assert np.array_equal(value, fields["mjdata_pool"][name])
        assert np.array_equal(value, [getattr(each.model, name) for each in robots]), name
        assert np.array_equal(value[0], value[2])  # as the members of a pair, which share a seed
        if name in fields["warp"]:
            assert np.array_equal(value.astype(np.float32), fields["warp"][name]), name
    assert not np.array_equal(fields["batch"]["body_mass"][0], fields["batch"]["body_mass"][1])
    assert {"body_mass", "geom_friction", "actuator_gainprm", "body_invweight0", "dof_invweight0"} <= set(
        fields["warp"]
    )


def test_nominal_envs_have_the_model_as_it_is():
    env = make_vec("tests.robots:Robot-v0", 2, threads=1)
    env.reset(seed=0)
    assert env.checked_task.varied == ()
    assert torch.equal(env._state.noise, torch.zeros(2, 3, dtype=torch.float64))
    assert env.engine._batch.expanded("body_mass") is None


def test_every_constant_that_follows_is_found():
    model = Robot().model
    drawn = {
        "body_mass": model.body_mass * np.linspace(0.7, 1.3, model.nbody),
        "body_ipos": model.body_ipos + 0.01,
    }
    variants = ModelVariants(model, drawn)
    complete = variants.complete(drawn)
    other = copy.copy(model)
    for name, value in drawn.items():
        getattr(other, name)[:] = value
    mujoco.mj_setConst(other, mujoco.MjData(other))
    for name in mujoco.batch.MODEL_FIELDS:
        value = getattr(other, name, None)
        if not isinstance(value, np.ndarray) or not value.size:
            continue
        if not np.array_equal(value, getattr(model, name)):
            assert np.array_equal(complete[name], value), name
    for name, value in variants.complete({}).items():
        assert np.array_equal(value, getattr(model, name)), name


def test_gymnasium_makes_it_nominal_or_randomized():
    for randomize in (False, True):
        env = gym.make("Robot-v0", randomize=randomize)
        robot = ByHand(8, randomize)
        np.testing.assert_allclose(env.reset(seed=8)[0], robot.observe(), rtol=1e-9, atol=1e-9)
        observation, reward, *_, info = env.step(np.array([0.5, -1], np.float32))
        seen, expected, _ = robot.step(np.array([0.5, -1], np.float32))
        np.testing.assert_allclose(observation, seen, rtol=1e-9, atol=1e-9)
        assert reward == pytest.approx(expected)
        assert set(info) == {"speed_error"}
        env.close()


def variant(**members):
    return type("Odd", (Robot,), members)


def with_state(entries):
    def initial_state(self, rng):
        qpos, qvel, state = Robot.initial_state(self, rng)
        return qpos, qvel, {**state, **entries(rng)}

    return variant(initial_state=initial_state)


def randomizing(draw):
    return variant(randomize=lambda self, rng: draw(self, rng))


def controlling(of):
    return variant(control=lambda self, fields, actions: of(Robot.control(self, fields, actions)))


MISTAKES = {
    "state is no dict": (
        variant(initial_state=lambda self, rng: (*Robot.initial_state(self, rng)[:2], [1.0])),
        "^Odd.initial_state must return the state as a dict, got .*list",
    ),
    "state named as a field": (
        with_state(lambda rng: {"qpos": 1.0}),
        "^Odd.initial_state may not name .*'qpos'",
    ),
    "state named noise": (
        with_state(lambda rng: {"noise": 1.0}),
        "^Odd.initial_state may not name .*'noise'",
    ),
    "state is text": (
        with_state(lambda rng: {"command": "fast"}),
        "^Odd.initial_state must give 'command' as numb",
    ),
    "state varies in shape": (
        with_state(lambda rng: {"target": np.zeros(rng.integers(1, 50))}),
        "^Odd.initial_state gave 'target' the shape .* before, now",
    ),
    "unknown entry": (
        variant(update_state=lambda self, fields, actions: {"speed": fields["phase"]}),
        "^Odd.update_state gives 'speed', the entries of the state are 'command', 'phase'",
    ),
    "entry of another shape": (
        variant(update_state=lambda self, fields, actions: {"phase": fields["actions"]}),
        r"^Odd.update_state must give 'phase' as a tensor \[N\], got",
    ),
    "entry that mixes envs": (
        variant(
            update_state=lambda self, fields, actions: {"phase": fields["phase"] - fields["phase"].mean()}
        ),
        "^Odd.update_state mixes the envs",
    ),
    "controls of another shape": (
        controlling(lambda given: given["ctrl"][:, :1]),
        r"^Odd.control must give 'ctrl' as a tensor \[N, 2\], got",
    ),
    "no controls": (
        controlling(lambda given: {"xfrc_applied": given["xfrc_applied"]}),
        '^Odd.control .*"ctrl"',
    ),
    "unknown input": (
        controlling(lambda given: {**given, "mocap_pos": given["ctrl"]}),
        "^Odd.control may give ctrl, qfrc_applied, xfrc_applied, got 'mocap_pos'",
    ),
    "controls that mix envs": (
        variant(control=lambda self, fields, actions: actions - actions.mean()),
        "^Odd.control mixes the envs",
    ),
    "action range": (variant(action_range=([1.0, 1.0], [-1.0, 1.0])), "^Odd.action_range must be the lowest"),
    "noise": (variant(noise=-1), "^Odd.noise must be an integer >= 0, got -1"),
    "unknown model field": (
        randomizing(lambda self, rng: {"body_masses": self.model.body_mass}),
        "^Odd.randomize: 'body_masses' is neither an entry of the state nor an array of MjModel",
    ),
    "integers of the model": (
        randomizing(lambda self, rng: {"geom_contype": np.ones(self.model.ngeom)}),
        "^Odd.randomize: MjModel.geom_contype holds no real numbers",
    ),
    "part of a model field": (
        randomizing(lambda self, rng: {"body_mass": np.ones(2)}),
        r"^Odd.randomize must give 'body_mass' whole, \[4\], got",
    ),
    "another field each time": (
        randomizing(
            lambda self, rng: {
                name: getattr(self.model, name)
                for name in (["body_mass", "dof_damping"] if rng.random() < 0.5 else ["body_mass"])
            }
        ),
        "^Odd.randomize varies dof_damping, but did not for seed 0",
    ),
    "state that is no name": (
        with_state(lambda rng: {"my command": 1.0}),
        "may not name .*'my command': a name",
    ),
    "state named as the model": (with_state(lambda rng: {"body_mass": 1.0}), "may not name .*'body_mass'"),
    "randomize raises": (randomizing(lambda self, rng: 1 / 0), "^Odd.randomize: ZeroDivisionError"),
    "randomize by itself": (
        randomizing(
            lambda self, rng: {"body_mass": self.model.body_mass * np.random.default_rng().uniform()}
        ),
        "^Odd.initial_state and randomize must draw from the rng",
    ),
}


@pytest.mark.parametrize(("task", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_in_one_line(task, message):
    with pytest.raises(TaskError, match=message) as error:
        MujocoVectorEnv(task(), 3, threads=1, randomize=True)
    assert "\n" not in str(error.value)


def test_an_action_range_of_another_size_needs_the_hook():
    class Plain(Robot):
        control = Robot.__mro__[1].control
        action_range = (-np.ones(3), np.ones(3))

    with pytest.raises(TaskError, match="of 3 numbers, the model has 2 controls: write the hook control"):
        CheckedTask(Plain())


def test_warp_names_what_it_cannot_vary():
    task = randomizing(lambda self, rng: {"dof_damping": self.model.dof_damping * 2, "key_time": np.zeros(1)})
    with pytest.raises(ValueError, match="engine 'warp' cannot vary 'key_time' from env to env"):
        MujocoVectorEnv(task(), 2, engine="warp", randomize=True)


def test_a_hook_that_raises_later_fails_its_env_alone():
    def control(self, fields, actions):
        if ((fields["phase"] == 3) & (fields["command"] > 0)).any():
            raise RuntimeError("no path found")
        return Robot.control(self, fields, actions)

    env = MujocoVectorEnv(variant(control=control)(), 4, threads=1)
    env.reset(seed=list(SEEDS))
    commands = [ByHand(seed, False).state["command"] for seed in SEEDS]
    reasons = {}
    for actions in some_actions(4)[:PERIOD]:
        info = env.step(torch.from_numpy(actions))[-1]
        for i, reason in zip(np.flatnonzero(info.get("failed", [])), info.get("failures", []), strict=True):
            reasons[int(i)] = reason
    expected = "Odd.control: RuntimeError: no path found"
    assert reasons == {i: expected for i, command in enumerate(commands) if command > 0}


def test_parts_are_found_by_name():
    task = Robot()
    assert task.actuator("right_hip") == 1
    assert task.joint("root") == (slice(0, 7), slice(0, 6))
    assert task.joint("right_hip") == (slice(8, 9), slice(7, 8))
    assert task.geom("floor") == 0
    assert task.site("imu") == 0
    assert task.sensor("velocity") == slice(3, 6)
    assert task.feet == slice(6, 8)
    assert task.touching("trunk", "floor") == slice(8, 9)
    assert task.model.nsensordata == 9
    qpos, qvel, ctrl = task.keyframe("home")
    assert np.array_equal(qpos[7:], ctrl)
    assert not qvel.any()
    assert task.frame_skip == 4
    assert task.dt == pytest.approx(0.02)
    for find, name, message in (
        (task.actuator, "right_hop", "no actuator 'right_hop'; it has 'right_hip'"),
        (task.sensor, "accelerometer", "no sensor 'accelerometer'; it has 'gyro'"),
        (task.keyframe, 3, "no keyframe 3; it has 'home'"),
        (
            functools.partial(task.touching, "left_foot"),
            "flour",
            "no geom and no body 'flour'; it has 'floor'",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            find(name)
    assert task.touching("trunk", "floor") == slice(9, 10)  # what failed has left nothing behind


def test_a_model_may_be_given_in_any_form(tmp_path):
    (tmp_path / "robot.xml").write_text(ROBOT)
    spec = mujoco.MjSpec.from_string(ROBOT)
    forms = [tmp_path / "robot.xml", str(tmp_path / "robot.xml"), ROBOT, spec]
    tasks = [Robot(each) for each in forms]
    assert len(spec.sensors) == 2  # the user's own is left alone
    for task in tasks:
        assert np.array_equal(task.model.body_mass, tasks[0].model.body_mass)
        assert task.feet == tasks[0].feet
        copied = pickle.loads(pickle.dumps(task))
        assert copied.sensor("gyro") == copy.deepcopy(task).sensor("gyro") == slice(0, 3)
    with pytest.raises(ValueError, match="only a path, XML text or an MjSpec allows"):
        Robot(mujoco.MjModel.from_xml_string(ROBOT))
    with pytest.raises(TypeError, match="a model must be the path of an MJCF file, XML text"):
        Robot(3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"control_frequency": 60}, "60 Hz is no whole number of substeps of 0.005 s; 66.6667 and 50 Hz are"),
        ({"control_frequency": 0}, r"control_frequency must be in \(0, 200\] Hz, got 0"),
        ({"control_frequency": 500}, r"control_frequency must be in \(0, 200\] Hz, got 500"),
        ({"control_frequency": None}, "either frame_skip or control_frequency is needed, got None and None"),
    ],
)
def test_a_frequency_must_fit_the_time_step(arguments, message):
    with pytest.raises(ValueError, match=message):
        Robot(**arguments)


class Shifting(Robot):
    """Keeps its last two actions in two entries, of which one becomes the other."""

    def initial_state(self, rng):
        qpos, qvel, state = super().initial_state(rng)
        return qpos, qvel, {**state, "last": np.zeros(2), "previous": np.zeros(2)}

    def update_state(self, fields, actions):
        own = {"last": actions.to(fields["last"]), "previous": fields["last"]}
        return {**super().update_state(fields, actions), **own}

    def reward(self, before, after, fields, actions):
        return fields["previous"][:, 0], {}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("retires", [False, True])
def test_an_entry_may_become_another(fused, retires):
    env = MujocoVectorEnv(Shifting(), 2, threads=1, dtype=torch.float64, info=False, fused=fused)
    assert (env.fused is not None) == fused, env.not_fused
    env.reset(seed=0)
    if retires:  # then some envs are live, not all
        env.retire(np.array([False, True]))
    rewards = [env.step(torch.full((2, 2), value))[1][0].item() for value in (0.25, 0.5, 0.75, 1)]
    assert rewards == [0, 0, 0.25, 0.5]


@pytest.mark.parametrize("way", WAYS)
def test_the_observation_of_a_frozen_env_stays(way):
    env = make_vec("tests.robots:Robot-v0", 2, threads=1, **WAYS[way])
    env.reset(seed=0)
    before = env.step(torch.zeros(2, 2))[0]
    env.retire(np.array([True, False]))
    after = env.step(torch.ones(2, 2))[0]
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])
    env.close()


def test_a_copy_of_a_task_has_constants_of_its_own():
    task, like = Robot(), torch.zeros(1, dtype=torch.float64)
    for i in range(100):
        task.weights = np.full(2, i, np.float64)
        task.constant(task.weights, like)
    copied = pickle.loads(pickle.dumps(task))
    del task  # and its arrays, whose memory others take
    arrays = [np.full(2, -i, np.float64) for i in range(1, 1000)]
    for array in arrays:
        assert np.array_equal(copied.constant(array, like), array)


def test_a_part_of_an_array_is_copied_to_the_device_once():
    task, like = Robot(), torch.zeros(1)
    part = task.constant(task.init_qpos[7:], like)
    assert part is task.constant(task.init_qpos[7:], like)
    assert part.tolist() == pytest.approx([0.1, -0.1])


@pytest.mark.parametrize("name", ["body_ipos", "body_pos", "geom_size", "geom_pos", "qpos0"])
def test_warp_varies_shapes_and_centers_of_mass(name):
    def draw(self, rng):
        value = getattr(self.model, name)
        return {name: value + rng.uniform(0, 0.02, value.shape) * (value != 0)}

    task, found = randomizing(draw), {}
    for engine in ("batch", "warp"):
        env = MujocoVectorEnv(task(), 2, engine=engine, threads=1, randomize=True, info=False)
        nominal = MujocoVectorEnv(task(), 2, engine=engine, threads=1, info=False)
        for each in (env, nominal):
            each.reset(seed=[3, 4])
            for actions in some_actions(2)[:8]:
                observations = each.step(torch.from_numpy(actions))[0]
            found[engine, each is env] = observations.double()
    torch.testing.assert_close(found["warp", True], found["batch", True], rtol=1e-3, atol=1e-3)
    if name != "qpos0":  # of which only springs and constants depend
        assert (found["batch", True] - found["batch", False]).abs().max() > 0.01


WITH_A_CUBE = """
<mujoco>
  <worldbody>
    <body name="arm"><joint/><geom size=".1" fromto="0 0 0 1 0 0" type="capsule"/></body>
    <body name="cube" pos="0 0 3"><freejoint/><geom type="box" size=".1 .1 .1"/></body>
  </worldbody>
</mujoco>
"""


def test_a_center_of_mass_may_vary_beside_simple_bodies():
    model = mujoco.MjModel.from_xml_string(WITH_A_CUBE)
    arm, cube = (model.body(name).id for name in ("arm", "cube"))
    assert model.body_simple[[arm, cube]].tolist() == [0, 1]
    centers = model.body_ipos.copy()
    centers[arm, 0] += 0.1
    variants = ModelVariants(model, {"body_ipos": centers})
    assert {"dof_invweight0", "dof_M0"} <= set(variants.names)
    other = copy.copy(model)
    other.body_ipos[:] = centers
    mujoco.mj_setConst(other, mujoco.MjData(other))
    assert np.array_equal(variants.complete({"body_ipos": centers})["dof_M0"], other.dof_M0)
    centers[cube, 0] += 0.1
    with pytest.raises(ValueError, match="body 2 is compiled as simple"):
        variants.complete({"body_ipos": centers})


@pytest.mark.parametrize("env_id", ["Hopper-v5", "tests.robots:Robot-v0"])
def test_keyword_arguments_of_gymnasium_make_do_not_get_in_the_way(env_id):
    options = {"engine": "gymnasium", "disable_env_checker": True}
    found = []
    for randomize in (False, True):
        env = make_vec(env_id, 1, dtype=torch.float64, randomize=randomize, **options)
        env.reset(seed=3)
        found.append(env.step(torch.zeros(env.action_space.shape))[0])
        env.close()
    assert torch.equal(*found) == (env_id == "Hopper-v5")


def test_the_state_of_envs_is_on_one_device():
    task = CheckedTask(Robot(), randomize=True)
    qpos = torch.zeros(3, 9, device="meta")  # which refuses what is elsewhere, as a GPU does
    state = EnvState(task, {"qpos": qpos}, 3)
    state.begin(np.array([0, 2], np.int32), StartBatch.of([task.seeded_start(seed) for seed in (1, 2)]))
    state.draw(torch.ones(3, dtype=torch.bool, device="meta"), torch.ones_like(state.keys))
    state.keep(task.update_state(state.fields, qpos[:, :2]))
    assert {each.device.type for each in state.fields.values()} == {"meta"}
