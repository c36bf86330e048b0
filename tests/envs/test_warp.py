"""Engine warp: the official environments are the oracle, to float32; its contract holds to the last bit."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import mujoco
import numpy as np
import pytest
import torch
from gymnasium.envs.mujoco.mujoco_env import expand_model_path

from es_flipout.envs import make_vec
from es_flipout.envs.engines import warp_order
from es_flipout.envs.engines.warp import WarpEngine
from es_flipout.envs.engines.warp_faults import fault_text
from es_flipout.envs.mujoco import TASKS
from es_flipout.envs.mujoco.model_warnings import deprecations_silenced

NUM_ENVS = 4
TOLERANCES = {"cpu": 1e-4, "cuda": 3e-4}
"""Of the largest value of a field so far, and at least of 1: float32, and contacts that amplify it. A GPU's
compiler rounds otherwise, and the largest on the CPU is close to its bound."""
REWARD_TOLERANCE = 1e-3
"""Velocities in a reward are differences of float32 positions, over 15 ms in Humanoid."""
ACTIONS = {"Humanoid-v5": 0.4, "HumanoidStandup-v5": 0.4}
"""How far the random actions go, where that is not 1."""
SUBSTEPS = 3


def elliptic(path, env_id):
    """Writes the task's model with elliptic friction cones, and returns its name."""
    name = {"Ant-v5": "ant.xml"}[env_id]
    with open(expand_model_path(name)) as source:  # noqa: PTH123 - a name, not a path
        model = source.read()
    path.write_text(model.replace("</mujoco>", '<option cone="elliptic"/></mujoco>'))
    return str(path)


def assert_parity(device, env_id, steps, *, engine_kwargs=None, **kwargs):
    """Steps both sides under the same random actions, ended or not."""
    env = make_vec(
        env_id,
        NUM_ENVS,
        engine="warp",
        engine_kwargs=engine_kwargs,
        device=device,
        max_episode_steps=-1,
        **kwargs,
    )
    with deprecations_silenced():
        officials = [gym.make(env_id, max_episode_steps=-1, **kwargs).unwrapped for _ in range(NUM_ENVS)]
    env.reset(seed=0)
    for i, official in enumerate(officials):
        official.reset(seed=i)
    largest, tolerance = dict.fromkeys(env.engine.fields, 1.0), TOLERANCES[device]

    def compare_fields():
        for name, values in env.engine.fields.items():
            expected = np.stack([getattr(official.data, name) for official in officials])
            largest[name] = max(largest[name], np.abs(expected).max(initial=0))
            error = np.abs(values.cpu().numpy() - expected).max(initial=0)
            assert error <= tolerance * largest[name], f"{name} differs by {error}"

    compare_fields()
    reach = ACTIONS.get(env_id, 1.0)
    rng = np.random.default_rng(0)
    ended = np.zeros(NUM_ENVS, bool)
    for _ in range(steps):
        actions = rng.uniform(-reach, reach, env.action_space.shape).astype(np.float32)
        observations, rewards, terminated, _, _ = env.step(torch.from_numpy(actions))
        env._terminated[:] = False  # an ended env goes on, as officially
        env._update_live()
        outcomes = [official.step(action) for official, action in zip(officials, actions, strict=True)]
        compare_fields()
        expected = np.stack([outcome[0] for outcome in outcomes])
        scale = max(1.0, *largest.values())
        np.testing.assert_allclose(observations.cpu(), expected, rtol=0, atol=tolerance * scale)
        expected = np.array([outcome[1] for outcome in outcomes])
        np.testing.assert_allclose(rewards.cpu(), expected, rtol=REWARD_TOLERANCE, atol=REWARD_TOLERANCE)
        ended |= (expected_ends := np.array([outcome[2] for outcome in outcomes]))
        np.testing.assert_array_equal(terminated.cpu(), expected_ends)
    return ended


@pytest.mark.parametrize(("env_id", "steps"), [("Humanoid-v5", 20), ("Hopper-v5", 20), ("HalfCheetah-v5", 5)])
def test_rollout_is_the_official_one(device, env_id, steps):
    ended = assert_parity(device, env_id, steps)
    assert ended.any() == (env_id != "HalfCheetah-v5")  # falling was compared, too


def test_ant_on_elliptic_cones_is_the_official_one(device, tmp_path):
    # On the pyramidal cones of its own model, mujoco_warp orders the frames of contacts otherwise.
    assert_parity(device, "Ant-v5", 6, xml_file=elliptic(tmp_path / "ant.xml", "Ant-v5"))


@pytest.mark.parametrize("env_id", sorted(TASKS))
def test_every_task_starts_and_steps(device, env_id):
    assert_parity(device, env_id, 2)


# --- the contract of an engine -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return mujoco.MjModel.from_xml_path(expand_model_path("humanoid.xml"))


FIELDS = ["qpos", "qvel", "xipos", "cinert", "cvel", "qfrc_actuator", "cfrc_ext"]


def make_engine(model, device, num_envs=NUM_ENVS, **kwargs):
    return WarpEngine(model, num_envs, FIELDS, device, **kwargs)


def random_state(model, count, seed):
    rng = np.random.default_rng(seed)
    qpos = model.qpos0 + rng.uniform(-0.1, 0.1, (count, model.nq))
    return qpos, rng.uniform(-1, 1, (count, model.nv))


def random_controls(model, steps, seed, device):
    values = np.random.default_rng(seed).uniform(-0.4, 0.4, (steps, NUM_ENVS, model.nu))
    return torch.from_numpy(values).float().to(device)


def ids_of(*ids):
    return np.array(ids, np.int32)


EVERY_ID = ids_of(*range(NUM_ENVS))


def started(model, device, **kwargs):
    """An engine whose humanoids have landed: contacts, and with them the solver's warm start, matter."""
    engine = make_engine(model, device, **kwargs)
    engine.reset(EVERY_ID, *random_state(model, NUM_ENVS, seed=1))
    for ctrl in random_controls(model, 25, seed=2, device=device):
        engine.step(ctrl, SUBSTEPS)
    return engine


def assert_same(engine, other, ids=slice(None)):
    for name, values in engine.fields.items():
        assert torch.equal(values[ids], other.fields[name][ids]), name


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_same_calls_give_the_same_numbers(model, device, deterministic):
    if device == "cuda" and not deterministic:
        pytest.skip("a GPU adds up contacts in any order")
    engines = [started(model, device, deterministic=deterministic) for _ in range(2)]
    assert bool(engines[0]._model.opt.deterministic) == deterministic
    assert_same(*engines)


def test_deterministic_envs_are_the_official_ones(device):
    assert_parity(device, "Humanoid-v5", 20, engine_kwargs={"deterministic": True})


def lying(model, device):
    """A deterministic engine whose humanoids lie on the ground, in order, and what sorts them."""
    engine = make_engine(model, device, deterministic=True)
    qpos, qvel = random_state(model, NUM_ENVS, seed=1)
    qpos[:, 2], qpos[:, 3:7] = 0.2, [0.7, 0, 0.7, 0]
    engine.reset(EVERY_ID, qpos, qvel)
    for ctrl in random_controls(model, 5, seed=2, device=device):
        engine.step(ctrl, SUBSTEPS)
    engine.forward()
    return engine, engine._data, engine._model.callback.control.__self__


def contact_arrays(data, count):
    """Copies of what contacts consist of, by name, as numpy arrays [count, ...]."""
    return {name: values.numpy()[:count].copy() for name, values in vars(data.contact).items()}


def row_arrays(data):
    """Copies of the constraint rows of all envs, by name, as numpy arrays [rows, ...]."""
    rows = {name: getattr(data.efc, name).numpy() for name in warp_order.ROW_FIELDS}
    counts = data.nefc.numpy()
    cut = {name: [each[:count] for each, count in zip(rows[name], counts, strict=True)] for name in rows}
    return {name: np.concatenate(each) for name, each in cut.items()}


def test_contacts_are_sorted_however_they_were_found(model, device):
    engine, data, order = lying(model, device)
    count = int(data.nacon.numpy()[0])
    assert count > 4 * NUM_ENVS
    expected = contact_arrays(data, count)
    keys = list(zip(expected["worldid"], *expected["geom"].T, expected["geomcollisionid"], strict=True))
    assert keys == sorted(set(keys))
    found = np.random.default_rng(0).permutation(count)
    for name in set(expected) - warp_order.UNSORTED:
        values = getattr(data.contact, name)
        shuffled = values.numpy().copy()
        shuffled[:count] = shuffled[found]
        values.assign(shuffled)
    assert not np.array_equal(contact_arrays(data, count)["pos"], expected["pos"])
    order.sort_contacts(engine._model, data)
    for name, values in contact_arrays(data, count).items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)


def test_rows_are_sorted_however_they_were_found_and_contacts_follow(model, device):
    engine, data, order = lying(model, device)
    expected, addresses = row_arrays(data), data.contact.efc_address.numpy().copy()
    rng, moved = np.random.default_rng(0), {}
    kinds, ids = data.efc.type.numpy().copy(), data.efc.id.numpy().copy()
    for env, count in enumerate(data.nefc.numpy()):
        # Limits and contacts keep their places among each other, and so do the rows of a contact.
        blocks = list(dict.fromkeys(zip(kinds[env, :count].tolist(), ids[env, :count].tolist(), strict=True)))
        lots = {block: rng.random() for block in blocks}
        keys = [(kind, lots[kind, i]) for kind, i in zip(kinds[env, :count], ids[env, :count], strict=True)]
        moved[env] = np.array(sorted(range(count), key=keys.__getitem__))
    for name in warp_order.ROW_FIELDS:
        values = getattr(data.efc, name)
        shuffled = values.numpy().copy()
        for env, rows in moved.items():
            shuffled[env, : len(rows)] = shuffled[env, rows]
        values.assign(shuffled)
    shuffled = addresses.copy()
    for contact, env in enumerate(data.contact.worldid.numpy()[: int(data.nacon.numpy()[0])]):
        for dim in np.flatnonzero(addresses[contact] >= 0):
            shuffled[contact, dim] = np.flatnonzero(moved[env] == addresses[contact, dim])[0]
    data.contact.efc_address.assign(shuffled)
    assert not np.array_equal(shuffled, addresses)
    assert not np.array_equal(row_arrays(data)["J"], expected["J"])
    order.sort_rows(engine._model, data)
    for name, values in row_arrays(data).items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)
    np.testing.assert_array_equal(data.contact.efc_address.numpy(), addresses)


@pytest.mark.parametrize(
    "attribute", ['<option jacobian="sparse"/>', "<equality><weld body1='torso'/></equality>"]
)
def test_what_cannot_be_sorted_is_told(attribute):
    text = Path(expand_model_path("humanoid.xml")).read_text().replace("</mujoco>", f"{attribute}</mujoco>")
    with pytest.raises(ValueError, match="deterministic needs a model without equality constraints"):
        make_engine(mujoco.MjModel.from_xml_string(text), "cpu", deterministic=True)


def test_a_reset_shows_and_changes_its_own_envs_alone(model, device):
    engine, undisturbed = started(model, device), started(model, device)
    others = [0, 1, 3]
    if device == "cuda":
        before = {name: values.clone() for name, values in engine.fields.items()}
        engine.reset(ids_of(2), *random_state(model, 1, seed=3))
        assert all(
            torch.equal(values[others], before[name][others]) for name, values in engine.fields.items()
        )
        return
    engine.reset(ids_of(2), *random_state(model, 1, seed=3))
    assert_same(engine, undisturbed, others)
    for ctrl in random_controls(model, 5, seed=4, device=device):
        for each in (engine, undisturbed):
            each.step(ctrl, SUBSTEPS)
        assert_same(engine, undisturbed, others)


def test_a_reset_env_runs_as_if_nothing_had_been_before(model, device):
    used, fresh = started(model, device), make_engine(model, device)
    state = random_state(model, NUM_ENVS, seed=5)
    for each in (used, fresh):
        each.reset(EVERY_ID, *state)
    assert_same(used, fresh)
    assert not used.fields["cfrc_ext"].any()
    assert not used.fields["qfrc_actuator"].any()
    for ctrl in random_controls(model, 5, seed=6, device=device):
        for each in (used, fresh):
            each.step(ctrl, SUBSTEPS)
        if device == "cpu":
            assert_same(used, fresh)


def test_recording_moves_nothing(model, device):
    engine = started(model, device)
    before = {name: values.clone() for name, values in engine.fields.items()}
    engine.compile(SUBSTEPS + 1)
    assert all(torch.equal(values, before[name]) for name, values in engine.fields.items())


def test_stepping_some_leaves_the_others_alone(model, device):
    engine, all_moving = started(model, device), started(model, device)
    before = {name: values.clone() for name, values in engine.fields.items()}
    ctrl = random_controls(model, 1, seed=7, device=device)[0]
    engine.step(ctrl, SUBSTEPS, ids_of(1, 2))
    for name, values in engine.fields.items():
        assert torch.equal(values[[0, 3]], before[name][[0, 3]]), name
    if device == "cpu":
        all_moving.step(ctrl, SUBSTEPS)
        assert_same(engine, all_moving, [1, 2])


def test_restart_begins_in_some_envs_what_a_reset_would(model, device):
    qpos, qvel = random_state(model, NUM_ENVS, seed=8)
    engine, by_reset = started(model, device), started(model, device)
    on_device = [torch.from_numpy(values).float().to(device) for values in (qpos, qvel)]
    engine.restart(torch.tensor([True, False, True, False], device=device), *on_device)
    by_reset.reset(ids_of(0, 2), qpos[[0, 2]], qvel[[0, 2]])
    ctrl = random_controls(model, 1, seed=9, device=device)[0]
    for each in (engine, by_reset):
        each.step(ctrl, SUBSTEPS)
    for name, values in engine.fields.items():
        torch.testing.assert_close(values, by_reset.fields[name], rtol=0, atol=0 if device == "cpu" else 1e-2)


def test_what_blows_up_is_told_of_its_own_envs_and_mends_by_a_reset(model, device):
    engine = make_engine(model, device)
    qpos, qvel = random_state(model, NUM_ENVS, seed=10)
    qvel[1, 3], qpos[2, 10] = 1e11, np.nan
    engine.reset(EVERY_ID, qpos, qvel)
    assert engine.failures == {1: "MuJoCo warning BADQVEL", 2: "MuJoCo warning BADQPOS"}
    ctrl = random_controls(model, 1, seed=11, device=device)[0]
    ctrl[3, 0] = torch.nan
    engine.step(ctrl, SUBSTEPS)
    assert sorted(engine.failures) == [1, 2, 3]
    assert engine.failures[3] == "MuJoCo warning BADCTRL"
    engine.step(ctrl.nan_to_num(), SUBSTEPS, ids_of(0))
    assert engine.failures == {}  # of the envs that moved
    engine.reset(ids_of(1, 2, 3), *random_state(model, 3, seed=12))
    engine.step(ctrl.nan_to_num(), SUBSTEPS)
    assert engine.failures == {}


@pytest.mark.parametrize(("room", "told"), [({"njmax": 1}, "raise njmax"), ({"nconmax": 1}, "raise nconmax")])
def test_lost_contacts_are_told_with_the_remedy(model, device, room, told):
    engine = make_engine(model, device, **room)
    qpos, qvel = random_state(model, NUM_ENVS, seed=13)
    qpos[:, 2] -= 1.2  # into the ground
    engine.reset(EVERY_ID, qpos, qvel)
    engine.step(torch.zeros(NUM_ENVS, model.nu, device=device), SUBSTEPS)
    assert engine.failures
    assert all(told in text and "env.engine_kwargs" in text for text in engine.failures.values())
    engine.reset(EVERY_ID, *random_state(model, NUM_ENVS, seed=14))
    assert engine.failures == {}


def test_faults_are_told_together():
    assert fault_text(0) == ""
    assert fault_text(3) == "MuJoCo warning BADQPOS and MuJoCo warning BADQVEL"
    assert fault_text(1 << 30) == ""


def test_the_callers_model_is_left_as_it_was(model, device):
    assert model.opt.solver == mujoco.mjtSolver.mjSOL_PGS
    options = make_engine(model, device)._model.opt
    assert (options.solver, options.iterations) == (mujoco.mjtSolver.mjSOL_NEWTON, 100)
    assert model.opt.solver == mujoco.mjtSolver.mjSOL_PGS
    assert model.opt.iterations < 100


def test_fields_have_the_shapes_of_mjdata(model, device):
    names = [*FIELDS, "xmat", "ximat", "geom_xmat", "xquat", "xanchor", "ctrl", "qacc", "ten_length"]
    engine, data = WarpEngine(model, 2, names, device), mujoco.MjData(model)
    for name, values in engine.fields.items():
        assert values.shape[1:] == getattr(data, name).shape, name


def test_a_device_that_warp_cannot_use_is_told(model, monkeypatch):
    monkeypatch.setattr(torch, "empty", lambda *_, device: SimpleNamespace(device=torch.device("cuda:0")))
    monkeypatch.setattr("es_flipout.envs.engines.warp.num_warp_gpus", lambda: 0)
    with pytest.raises(ValueError, match="engine 'warp' cannot run on cuda:0: Warp does not see this GPU"):
        WarpEngine(model, 1, ["qpos"], "cuda")


def test_nothing_is_collected_while_a_graph_is_recorded(model, device, monkeypatch):
    engine, collects = make_engine(model, device), []
    monkeypatch.setattr(engine._mjw, "step", lambda *_: collects.append(gc.isenabled()))
    engine.compile(1)
    assert collects
    assert not any(collects)
    assert gc.isenabled()


def test_a_field_that_it_lacks_is_told(model, device):
    with pytest.raises(ValueError, match="engine 'warp' has no field 'xiquat', which the task reads"):
        WarpEngine(model, 1, ["qpos", "xiquat"], device)


def test_a_model_that_it_cannot_run_is_refused(device):
    model = mujoco.MjModel.from_xml_string(
        '<mujoco><option noslip_iterations="3" integrator="discrete"/></mujoco>'
    )
    with pytest.raises(ValueError, match="engine 'warp' cannot run the model with 1 envs"):
        WarpEngine(model, 1, ["qpos"], device)


@pytest.mark.parametrize("package", ["warp", "mujoco_warp"])
def test_a_missing_package_is_told_with_the_remedy(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ValueError, match=r"needs the package mujoco-warp \(pip install 'es-flipout\[gpu\]'\)"
    ):
        make_vec("Hopper-v5", 1, engine="warp")


@pytest.mark.parametrize(
    ("engine", "kwargs", "message"),
    [
        ("warp", {"njmx": 3}, "no keyword argument 'njmx' .allowed: nconmax, njmax, nccdmax, deterministic"),
        ("warp", {"njmax": True}, "njmax of engine 'warp' must be an integer >= 1, got True"),
        ("warp", {"njmax": 0}, "njmax of engine 'warp' must be an integer >= 1, got 0"),
        ("warp", {"deterministic": 1}, "deterministic of engine 'warp' must be true or false, got 1"),
        ("batch", {"njmax": 3}, "engine 'batch' has no keyword argument 'njmax' .only engine 'warp' has any"),
        ("gymnasium", {"njmax": 3}, "engine_kwargs are only for engine 'warp'"),
    ],
)
def test_wrong_engine_kwargs_are_told(engine, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_vec("Hopper-v5", 1, engine=engine, engine_kwargs=kwargs)


def test_it_runs_native_tasks_only():
    with pytest.raises(ValueError, match="engine 'warp' runs native tasks only, not CartPole-v1"):
        make_vec("CartPole-v1", 1, engine="warp")
