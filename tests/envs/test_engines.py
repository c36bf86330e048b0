"""Both physics engines of the CPU through one contract: a plain loop over MjData is the oracle."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
import torch
from gymnasium.envs.mujoco.mujoco_env import expand_model_path

from es_flipout.envs.engines.batch import BatchEngine
from es_flipout.envs.engines.mjdata_pool import MjDataPoolEngine

NUM_ENVS = 9
"""More than twice what a pool thread takes at a time, so that three threads share the work."""
SUBSTEPS = 3
STEPS = 40
"""Enough for the humanoid to land: contacts, and with them the solver's warm start, matter."""
FIELDS = ["qpos", "qvel", "xipos", "cinert", "cvel", "qfrc_actuator"]


@pytest.fixture(scope="module")
def model():
    return mujoco.MjModel.from_xml_path(expand_model_path("humanoid.xml"))


@pytest.fixture(
    params=[(BatchEngine, []), (MjDataPoolEngine, ["cfrc_ext"])], ids=lambda param: param[0].__name__
)
def make_engine(request, model):
    """Makes an engine with every field that it can show; closes it after the test."""
    engine_class, extra_fields = request.param
    made = []

    def make(num_envs=NUM_ENVS, threads=2, model=model):
        made.append(engine_class(model, num_envs, FIELDS + extra_fields, threads))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


class LoopOverMjData:
    """The contract of `PhysicsEngine` in its plainest form."""

    def __init__(self, model, num_envs=NUM_ENVS):
        self.model = model
        self.datas = [mujoco.MjData(model) for _ in range(num_envs)]

    def reset(self, ids, qpos, qvel):
        for k, i in enumerate(ids):
            data = self.datas[i]
            mujoco.mj_resetData(self.model, data)
            data.qpos[:], data.qvel[:] = qpos[k], qvel[k]
            mujoco.mj_forward(self.model, data)

    def step(self, ctrl, num_substeps, ids=None):
        for i in range(len(self.datas)) if ids is None else ids:
            self.datas[i].ctrl[:] = ctrl[i]
            mujoco.mj_step(self.model, self.datas[i], num_substeps)
            # Where Gymnasium calls it; of the compared fields it changes cfrc_ext alone.
            mujoco.mj_rnePostConstraint(self.model, self.datas[i])

    def field(self, name):
        return np.stack([getattr(data, name) for data in self.datas])


def random_state(model, count, seed):
    rng = np.random.default_rng(seed)
    qpos = model.qpos0 + rng.uniform(-0.1, 0.1, (count, model.nq))
    return qpos, rng.uniform(-1, 1, (count, model.nv))


def random_controls(model, steps, seed, num_envs=NUM_ENVS):
    return torch.from_numpy(np.random.default_rng(seed).uniform(-0.4, 0.4, (steps, num_envs, model.nu)))


def ids_of(*ids):
    return np.array(ids, np.int32)


EVERY_ID = ids_of(*range(NUM_ENVS))


def snapshot(engine):
    return {name: value.numpy().copy() for name, value in engine.fields.items()}


def assert_same_envs(engine, other, ids=slice(None)):
    for name, value in engine.fields.items():
        np.testing.assert_array_equal(value[ids], other.fields[name][ids], err_msg=name)


def assert_equal_fields(engine, loop):
    for name, value in engine.fields.items():
        np.testing.assert_array_equal(value.numpy(), loop.field(name), err_msg=name)


def test_fields_equal_a_loop_over_mjdata(make_engine, model):
    engine, loop = make_engine(), LoopOverMjData(model)
    state = random_state(model, NUM_ENVS, seed=0)
    for side in (engine, loop):
        side.reset(EVERY_ID, *state)
    assert_equal_fields(engine, loop)
    for ctrl in random_controls(model, STEPS, seed=1):
        for side in (engine, loop):
            side.step(ctrl, SUBSTEPS)
        assert_equal_fields(engine, loop)
    # Otherwise the comparison says nothing of the forces that the pool exists for.
    assert (loop.field("cfrc_ext") != 0).any()


def test_fields_equal_a_loop_where_envs_start_and_pause_at_different_times(make_engine, model):
    engine, loop = make_engine(), LoopOverMjData(model)
    rng = np.random.default_rng(2)
    state = random_state(model, NUM_ENVS, seed=3)
    for side in (engine, loop):
        side.reset(EVERY_ID, *state)
    for step, ctrl in enumerate(random_controls(model, STEPS, seed=4)):
        moving = np.flatnonzero(rng.random(NUM_ENVS) < 0.6).astype(np.int32)
        restarted = np.flatnonzero(rng.random(NUM_ENVS) < 0.1).astype(np.int32)
        state = random_state(model, len(restarted), seed=step)
        for side in (engine, loop):
            side.step(ctrl, SUBSTEPS, moving)
            if len(restarted):
                side.reset(restarted, *state)
        assert_equal_fields(engine, loop)


def test_numbers_do_not_depend_on_the_thread_count(make_engine, model):
    def rollout(threads):
        engine = make_engine(threads=threads)
        engine.reset(EVERY_ID, *random_state(model, NUM_ENVS, seed=5))
        for ctrl in random_controls(model, STEPS, seed=6):
            engine.step(ctrl, SUBSTEPS)
            engine.step(ctrl, 1, ids_of(0, 3, 4, 7, 8))
        return snapshot(engine)

    one, two, three = rollout(1), rollout(2), rollout(3)
    for name, value in one.items():
        np.testing.assert_array_equal(two[name], value, err_msg=name)
        np.testing.assert_array_equal(three[name], value, err_msg=name)


def test_stepping_some_leaves_the_others_alone(make_engine, model):
    engine = make_engine()
    engine.reset(EVERY_ID, *random_state(model, NUM_ENVS, seed=7))
    ctrl = random_controls(model, 1, seed=8)[0]
    engine.step(ctrl, SUBSTEPS)
    before = snapshot(engine)
    moving, still = [1, 4, 8], [0, 2, 3, 5, 6, 7]
    engine.step(-ctrl, SUBSTEPS, ids_of(*moving))
    after = snapshot(engine)
    for name in before:
        np.testing.assert_array_equal(after[name][still], before[name][still], err_msg=name)
    assert (after["qpos"][moving] != before["qpos"][moving]).any(axis=1).all()


def test_resetting_some_leaves_the_others_alone(make_engine, model):
    engine = make_engine()
    engine.reset(EVERY_ID, *random_state(model, NUM_ENVS, seed=9))
    engine.step(random_controls(model, 1, seed=10)[0], SUBSTEPS)
    before = snapshot(engine)
    qpos, qvel = random_state(model, 2, seed=11)
    engine.reset(ids_of(2, 5), qpos, qvel)
    after = snapshot(engine)
    others = [0, 1, 3, 4, 6, 7, 8]
    for name in before:
        np.testing.assert_array_equal(after[name][others], before[name][others], err_msg=name)
    np.testing.assert_array_equal(after["qpos"][[2, 5]], qpos)
    np.testing.assert_array_equal(after["qvel"][[2, 5]], qvel)


def test_reset_forgets_the_history(make_engine, model):
    state = random_state(model, NUM_ENVS, seed=12)
    controls = random_controls(model, STEPS, seed=13)

    def trajectory(engine):
        engine.reset(EVERY_ID, *state)
        steps = [snapshot(engine)]
        for ctrl in controls:
            engine.step(ctrl, SUBSTEPS)
            steps.append(snapshot(engine))
        return steps

    fresh, used = make_engine(), make_engine()
    used.reset(EVERY_ID, *random_state(model, NUM_ENVS, seed=14))
    for ctrl in random_controls(model, STEPS, seed=15):
        used.step(ctrl, SUBSTEPS)
    for expected, got in zip(trajectory(fresh), trajectory(used), strict=True):
        for name in expected:
            np.testing.assert_array_equal(got[name], expected[name], err_msg=name)


def test_fields_are_live_views(make_engine, model):
    engine = make_engine(num_envs=2)
    kept = dict(engine.fields)
    engine.reset(ids_of(0, 1), *random_state(model, 2, seed=16))
    height_before = kept["qpos"][:, 2].clone()
    engine.step(random_controls(model, 1, seed=17, num_envs=2)[0], 10)
    assert (kept["qpos"][:, 2] != height_before).all()
    for name, value in engine.fields.items():
        assert value.data_ptr() == kept[name].data_ptr()


def test_a_new_engine_shows_the_models_default_state(make_engine, model):
    engine = make_engine()
    for name in ("qpos", "qvel"):
        np.testing.assert_array_equal(engine.fields[name], LoopOverMjData(model).field(name))


# --- envs that fail ----------------------------------------------------------------------------------

BROKEN, SOUND = [2, 7], [0, 1, 3, 4, 5, 6, 8]
ON_ONE_AND_TWO_THREADS = pytest.mark.parametrize("threads", [1, 2])
BROKEN_AT_RESET = [
    pytest.param("qpos", np.nan, "BADQPOS", id="nan-qpos"),
    pytest.param("qpos", 1e11, "BADQPOS", id="huge-qpos"),
    pytest.param("qvel", np.nan, "BADQVEL", id="nan-qvel"),
    pytest.param("qvel", -np.inf, "BADQVEL", id="infinite-qvel"),
    pytest.param("qvel", 1e11, "BADQVEL", id="huge-qvel"),
]
BLOWS_UP_IN_A_STEP = pytest.param("qvel", 1e9, "BADQACC", id="blows-up")


def broken_state(model, field, value, seed):
    qpos, qvel = random_state(model, NUM_ENVS, seed)
    {"qpos": qpos, "qvel": qvel}[field][BROKEN] = value
    return qpos, qvel


@ON_ONE_AND_TWO_THREADS
@pytest.mark.parametrize(("field", "value", "warning"), [*BROKEN_AT_RESET, BLOWS_UP_IN_A_STEP])
def test_a_broken_env_fails_once_and_alone(make_engine, model, threads, field, value, warning):
    engine, undisturbed = make_engine(threads=threads), make_engine()
    engine.reset(EVERY_ID, *broken_state(model, field, value, seed=20))
    undisturbed.reset(EVERY_ID, *random_state(model, NUM_ENVS, seed=20))
    assert_same_envs(engine, undisturbed, SOUND)
    told = [engine.failures]
    for ctrl in random_controls(model, 4, seed=21):
        engine.step(ctrl, SUBSTEPS)
        undisturbed.step(ctrl, SUBSTEPS)
        assert_same_envs(engine, undisturbed, SOUND)
        told.append(engine.failures)
        assert undisturbed.failures == {}
    assert [failures for failures in told if failures] == [dict.fromkeys(BROKEN, f"MuJoCo warning {warning}")]


@pytest.mark.parametrize(("field", "value", "warning"), BROKEN_AT_RESET)
def test_a_broken_start_is_told_by_the_reset(make_engine, model, field, value, warning):
    engine = make_engine()
    engine.reset(EVERY_ID, *broken_state(model, field, value, seed=20))
    assert engine.failures == dict.fromkeys(BROKEN, f"MuJoCo warning {warning}")
    for name, field in engine.fields.items():
        assert field.isfinite().all(), name  # nobody is shown an observation that is none


@ON_ONE_AND_TWO_THREADS
def test_an_env_that_failed_works_after_a_reset(make_engine, model, threads):
    engine, undisturbed = make_engine(threads=threads), make_engine()
    engine.reset(EVERY_ID, *broken_state(model, "qvel", 1e9, seed=22))
    undisturbed.reset(EVERY_ID, *random_state(model, NUM_ENVS, seed=22))
    ctrl = random_controls(model, 1, seed=23)[0]
    for each in (engine, undisturbed):
        each.step(ctrl, SUBSTEPS)
    assert sorted(engine.failures) == BROKEN
    restart = random_state(model, len(BROKEN), seed=24)
    for each in (engine, undisturbed):
        each.reset(ids_of(*BROKEN), *restart)
    assert engine.failures == {}
    for ctrl in random_controls(model, STEPS, seed=25):
        for each in (engine, undisturbed):
            each.step(ctrl, SUBSTEPS)
        assert engine.failures == {}
        assert_same_envs(engine, undisturbed)


@ON_ONE_AND_TWO_THREADS
def test_a_bad_control_fails_envs_that_move(make_engine, model, threads):
    engine, undisturbed = make_engine(threads=threads), make_engine()
    for each in (engine, undisturbed):
        each.reset(EVERY_ID, *random_state(model, NUM_ENVS, seed=26))
    good, bad = random_controls(model, 2, seed=27)
    undisturbed.step(bad, SUBSTEPS, EVERY_ID[1:])
    bad[[0, *BROKEN]] = np.nan
    engine.step(bad, SUBSTEPS, EVERY_ID[1:])
    assert engine.failures == dict.fromkeys(BROKEN, "MuJoCo warning BADCTRL")
    assert_same_envs(engine, undisturbed, SOUND)
    for each in (engine, undisturbed):
        each.step(good, SUBSTEPS, ids_of(*SOUND))  # what failed before is not told again
    assert engine.failures == {}
    assert_same_envs(engine, undisturbed, SOUND)


BALLS = 12


@pytest.fixture(scope="module")
def balls():
    """Balls in a row on slides, and too little memory for all of them to touch each other."""
    bodies = "".join(
        f'<body pos="{i} 0 0"><joint type="slide" axis="1 0 0"/><geom size=".3"/></body>'
        for i in range(BALLS)
    )
    return mujoco.MjModel.from_xml_string(
        f'<mujoco><size memory="6000"/><worldbody>{bodies}</worldbody></mujoco>'
    )


def apart(count):
    return np.zeros((count, BALLS)), np.zeros((count, BALLS))


def assert_out_of_memory(failures, ids):
    assert sorted(failures) == ids
    for failure in failures.values():
        assert failure.startswith("MuJoCo error: mj_stackAlloc: out of memory")


@ON_ONE_AND_TWO_THREADS
@pytest.mark.parametrize("when", ["reset", "step"])
def test_an_error_in_mujoco_fails_its_env_alone(make_engine, balls, threads, when):
    engine, undisturbed = (make_engine(threads=count, model=balls) for count in (threads, 2))
    (qpos, qvel), drift = apart(NUM_ENVS), np.random.default_rng(28).uniform(-1, 1, (NUM_ENVS, BALLS))
    undisturbed.reset(EVERY_ID, qpos, qvel + drift)
    all_on_one_spot = -np.arange(BALLS)
    if when == "reset":
        qpos[BROKEN] = all_on_one_spot
    else:
        qvel[BROKEN] = all_on_one_spot / balls.opt.timestep  # one substep, and they are there
    engine.reset(EVERY_ID, qpos, qvel + drift)
    if when == "step":
        assert engine.failures == {}
        for each in (engine, undisturbed):
            each.step(torch.zeros(NUM_ENVS, 0), 2)
    assert_out_of_memory(engine.failures, BROKEN)
    assert_same_envs(engine, undisturbed, SOUND)
    for each in (engine, undisturbed):
        each.reset(ids_of(*BROKEN), *apart(len(BROKEN)))
    assert engine.failures == {}
    for _ in range(5):
        for each in (engine, undisturbed):
            each.step(torch.zeros(NUM_ENVS, 0), 2)
        assert engine.failures == {}
        assert_same_envs(engine, undisturbed)
