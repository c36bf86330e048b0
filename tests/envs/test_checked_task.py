"""The border to a user's task: what hooks may return, what is refused in one line, and what if they raise."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch
from gymnasium.utils import seeding
from hypothesis import given, settings
from hypothesis import strategies as st

from es_flipout import FlipoutES, MLPPolicy, evaluate
from es_flipout.envs import MujocoTask, MujocoVectorEnv
from es_flipout.envs.mujoco.checked_task import TaskError

BODY = """
<body name="b{i}">
  <joint name="j{i}" type="slide" damping="1"/> <geom size=".1" contype="0" conaffinity="0"/>
</body>
"""
MOTOR = '<motor joint="j{i}" {limit}/>'


PENDULUM = "inverted_pendulum.xml"
"""For engine warp, which has its kernels compiled for other tests."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Returns the path of a model of so many sliding bodies, each with a motor."""
    folder = tmp_path_factory.mktemp("models")

    def path(count=2, limit='ctrlrange="-1 1"', motors=None):
        bodies = "".join(BODY.format(i=i) for i in range(count))
        driven = "".join(MOTOR.format(i=i, limit=limit) for i in range(count if motors is None else motors))
        text = f"<mujoco><worldbody>{bodies}</worldbody><actuator>{driven}</actuator></mujoco>"
        file = folder / f"{abs(hash(text))}.xml"
        file.write_text(text)
        return file

    return path


class Slides(MujocoTask):
    """A sound task of `count` sliding bodies, which should stay where they are."""

    fields = ("qpos", "qvel")

    def __init__(self, xml_file, frame_skip=3):
        super().__init__(xml_file, frame_skip)

    def initial_state(self, rng):
        return rng.uniform(-0.3, 0.3, self.model.nq), rng.uniform(-1, 1, self.model.nv)

    def observe(self, fields):
        return fields["qpos"], fields["qvel"]

    def reward(self, before, after, fields, actions):
        return -fields["qpos"].norm(dim=1), {}


def variant(**members):
    """Returns a class of tasks that differs from `Slides` in some members."""
    return type("Odd", (Slides,), members)


def make(task, num_envs=3, **kwargs):
    return MujocoVectorEnv(task, num_envs, dtype=torch.float64, threads=1, **kwargs)


def reward_of(function):
    return variant(
        reward=lambda self, before, after, fields, actions: function(before, after, fields, actions)
    )


def writing(hook):
    """Returns a hook that does its work and moves a body."""

    def called(self, *arguments):
        arguments[0 if hook != "reward" else 2]["qvel"].mul_(0.5)
        return getattr(Slides, hook)(self, *arguments)

    return variant(**{hook: called})


NEED_DIM = "need dim=1"
MISTAKES = {
    "observe a number for all": (
        variant(observe=lambda self, fields: (fields["qpos"], fields["qvel"].sum())),
        rf"^Odd.observe must return a tensor \[N, ...\].*shape \(\) and dtype float64: .*{NEED_DIM}",
    ),
    "observe an array": (
        variant(observe=lambda self, fields: fields["qpos"].numpy()),
        "^Odd.observe .*NumPy array",
    ),
    "observe a list of arrays": (
        variant(observe=lambda self, fields: [fields["qpos"].numpy()]),
        "^Odd.observe .*NumPy array.*torch",
    ),
    "observe a dict": (variant(observe=lambda self, fields: dict(fields)), "^Odd.observe .*type dict"),
    "observe None": (variant(observe=lambda self, fields: None), "^Odd.observe .*got None$"),
    "observe nothing": (
        variant(observe=lambda self, fields: fields["qpos"][:, :0]),
        "^Odd.observe .*no features",
    ),
    "observe NaN": (
        variant(observe=lambda self, fields: fields["qpos"] / 0 * 0),
        "^Odd.observe returned NaN or infinity at every start",
    ),
    "observe standardized over envs": (
        variant(observe=lambda self, fields: fields["qpos"] - fields["qpos"].mean(dim=0)),
        "^Odd.observe mixes the envs",
    ),
    "observe the other dimension": (
        variant(observe=lambda self, fields: fields["qpos"].norm(dim=0)),
        r"^Odd.observe must return a tensor \[N, ...\]",
    ),
    "reward a column": (
        reward_of(lambda before, after, fields, actions: (fields["qpos"].norm(dim=1, keepdim=True), {})),
        r"^Odd.reward must return a tensor \[N\] and a dict, got a tensor of shape \(\d, 1\) .*: .*squeeze",
    ),
    "reward alone": (
        reward_of(lambda before, after, fields, actions: fields["qpos"].norm(dim=1)),
        r"^Odd.reward must return a tensor \[N\] and a dict, got a tensor of shape \(\d,\) and [^:]*$",
    ),
    "reward for all": (
        reward_of(lambda before, after, fields, actions: (fields["qpos"].norm(), {})),
        rf"^Odd.reward must return a tensor \[N\] and a dict, got a tensor of shape \(\) .*: .*{NEED_DIM}",
    ),
    "reward of the other dimension": (
        reward_of(lambda before, after, fields, actions: (fields["qpos"].norm(dim=0), {})),
        "^Odd.reward must return a tensor",
    ),
    "reward with the cost of all": (
        reward_of(
            lambda before, after, fields, actions: (fields["qpos"][:, 0] - 1e-3 * actions.square().sum(), {})
        ),
        f"^Odd.reward mixes the envs.*{NEED_DIM}",
    ),
    "reward an array": (
        reward_of(lambda before, after, fields, actions: (fields["qpos"].numpy().sum(axis=1), {})),
        "^Odd.reward .*NumPy array.*torch",
    ),
    "reward with a number as a term": (
        reward_of(lambda before, after, fields, actions: (fields["qpos"][:, 0], {"weight": 0.5})),
        "^Odd.reward must give 'weight' as a tensor.*got 0.5$",
    ),
    "reward with a term of ours": (
        reward_of(lambda before, after, fields, actions: (fields["qpos"][:, 0], {"failed": fields["qpos"]})),
        "^Odd.reward .*'failed', which has a meaning of its own",
    ),
    "reward with a numbered term": (
        reward_of(lambda before, after, fields, actions: (fields["qpos"][:, 0], {1: fields["qpos"]})),
        "^Odd.reward must name its info entries by text, got 1$",
    ),
    "reward exits": (
        reward_of(lambda before, after, fields, actions: sys.exit("closed")),
        "^Odd.reward: SystemExit: closed$",
    ),
    "reward raises": (
        reward_of(lambda before, after, fields, actions: {}["mistake"]),
        "^Odd.reward: KeyError: 'mistake'$",
    ),
    "reward takes too little": (
        variant(reward=lambda self, fields, actions: (fields["qpos"][:, 0], {})),
        "^Odd.reward: TypeError: .*positional",
    ),
    "reward writes to after": (
        variant(
            locate=lambda self, fields: fields["qpos"],
            reward=lambda self, before, after, fields, actions: (after.sub_(1).sum(dim=1), {}),
        ),
        "^Odd.reward writes to 'after'.*clone",
    ),
    "reward writes to actions": (
        reward_of(lambda before, after, fields, actions: (actions.square_().sum(dim=1), {})),
        "^Odd.reward writes to 'actions'",
    ),
    "reward writes": (writing("reward"), "^Odd.reward writes to 'qvel'"),
    "locate writes": (writing("locate"), "^Odd.locate writes to 'qvel'"),
    "observe writes": (writing("observe"), "^Odd.observe writes to 'qvel'"),
    "state_info writes": (writing("state_info"), "^Odd.state_info writes to 'qvel'"),
    "terminated writes": (writing("terminated"), "^Odd.terminated writes to 'qvel'"),
    "terminated numbers": (
        variant(terminated=lambda self, fields: (fields["qpos"][:, 0] > 0).long()),
        r"^Odd.terminated must return a bool tensor \[N\], got a tensor of .* int64.*height < 0.2",
    ),
    "terminated a column": (
        variant(terminated=lambda self, fields: fields["qpos"][:, :1] > 0),
        "^Odd.terminated .*squeeze",
    ),
    "terminated all": (
        variant(terminated=lambda self, fields: (fields["qpos"] > 0).any()),
        "^Odd.terminated .*dim=1",
    ),
    "locate a number": (variant(locate=lambda self, fields: fields["qpos"].mean()), "^Odd.locate .*dim=1"),
    "start of the wrong size": (
        variant(initial_state=lambda self, rng: (np.zeros(3), np.zeros(2))),
        r"^Odd.initial_state must return qpos as nq = 2 numbers, got a NumPy array of shape \(3,\)",
    ),
    "start of the wrong speed": (
        variant(initial_state=lambda self, rng: (np.zeros(2), torch.zeros(2, 1))),
        r"^Odd.initial_state must return qvel as nv = 2 numbers, got a tensor of shape \(2, 1\)",
    ),
    "start of positions alone": (
        variant(initial_state=lambda self, rng: np.zeros(2)),
        r"^Odd.initial_state must return qpos \[2\] and qvel \[2\], got a NumPy array of shape \(2,\)",
    ),
    "start of text": (
        variant(initial_state=lambda self, rng: ("ab", np.zeros(2))),
        "^Odd.initial_state must return qpos as nq = 2 numbers, got 'ab'$",
    ),
    "start of ragged lists": (
        variant(initial_state=lambda self, rng: ([[1], 2], np.zeros(2))),
        "^Odd.initial_state must return qpos as nq = 2 numbers",
    ),
    "start by chance": (
        variant(initial_state=lambda self, rng: (torch.rand(2), torch.zeros(2))),
        "^Odd.initial_state must draw from the rng that it is given: seed 0 gave two",
    ),
    "start at NaN": (
        variant(initial_state=lambda self, rng: (np.full(2, np.nan), np.zeros(2))),
        "^Odd.initial_state returned no finite state",
    ),
    "no fields": (variant(fields=None), r"^Odd.fields must name the MjData fields .*got None"),
    "fields as text": (variant(fields="qpos"), r"^Odd.fields is the string 'qpos': .*\('qpos',\)"),
    "fields of numbers": (variant(fields=[1]), r"^Odd.fields must name .*got \[1\]"),
    "fields with a typo": (variant(fields=["qvell"]), "^Odd.fields: 'qvell' is not a field .*'qvel'"),
    "info_fields as text": (variant(info_fields="xpos"), "^Odd.info_fields is the string 'xpos'"),
    "a field of changing size": (variant(fields=["qvel", "efc_force"]), "^Odd.fields: 'efc_force' is not"),
    "an undeclared field": (
        variant(terminated=lambda self, fields: fields["xpos"][:, 1, 2] < 0),
        r"^Odd.terminated reads the field 'xpos', which fields does not declare: "
        r"fields = \('qpos', 'qvel', 'xpos'\)$",
    ),
    "an undeclared field for the info": (
        variant(state_info=lambda self, fields: {"at": fields["xpos"].clone()}),
        r"^Odd.state_info reads the field 'xpos', which info_fields does not declare: "
        r"info_fields = \('xpos',\)$",
    ),
    "a field for the info in the reward": (
        variant(
            info_fields=["xpos"],
            reward=lambda self, before, after, fields, actions: (fields["xpos"][:, 1, 0], {}),
        ),
        "^Odd.reward reads the field 'xpos', which fields does not declare",
    ),
    "info for one": (
        variant(state_info=lambda self, fields: {"mean": fields["qpos"].mean(dim=0)[:1]}),
        "^Odd.state_info must give 'mean' as a tensor",
    ),
    "no model": (
        variant(__init__=lambda self, xml_file: None),
        r"^Odd.__init__ must call super\(\).__init__",
    ),
}


@pytest.mark.parametrize("num_envs", [1, 2, 3])
@pytest.mark.parametrize(("task", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_a_task_is_told_in_one_line(models, task, message, num_envs):
    with pytest.raises(TaskError) as error:
        make(task(models()), num_envs)
    assert re.search(message, str(error.value))
    assert "\n" not in str(error.value)


def test_state_kept_from_call_to_call_is_refused(models):
    class Remembers(Slides):
        last = torch.zeros(2)

        def reward(self, before, after, fields, actions):
            change = (actions - self.last).square().sum(dim=1)
            self.last = actions.clone()
            return -change, {}

    with pytest.raises(TaskError, match=r"^Remembers.reward: RuntimeError: .*hooks take any number of envs"):
        make(Remembers(models()), 2)


# --- what is as good -----------------------------------------------------------------------------------


def rollout(task, num_envs=3, steps=4):
    """Returns observations, rewards and flags of some steps."""
    env = make(task, num_envs, max_episode_steps=20)
    env.action_space.seed(0)
    first, _ = env.reset(seed=0)
    steps = [env.step(env.action_space.sample())[:4] for _ in range(steps)]
    env.close()
    return [first, *(each for step in steps for each in step)]


@pytest.mark.parametrize(
    "members",
    [
        {"observe": lambda self, fields: torch.cat([fields["qpos"], fields["qvel"]], dim=1)},
        {"observe": lambda self, fields: [*fields["qpos"].unbind(dim=1), fields["qvel"].unsqueeze(2)]},
        {"initial_state": lambda self, rng: list(map(torch.from_numpy, Slides.initial_state(self, rng)))},
        {"initial_state": lambda self, rng: tuple(each.tolist() for each in Slides.initial_state(self, rng))},
        {"reward": lambda self, *given: list(Slides.reward(self, *given))},
        {"locate": lambda self, fields: fields["qpos"]},
    ],
    ids=["one tensor", "columns and cubes", "torch start", "lists as a start", "a list", "a view as a place"],
)
def test_other_containers_are_as_good(models, members):
    expected, found = rollout(Slides(models())), rollout(variant(**members)(models()))
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)


def test_whole_numbers_and_truth_values_become_floats(models):
    task = variant(
        observe=lambda self, fields: ((fields["qpos"] > 0).sum(dim=1), fields["qvel"] > 0),
        reward=lambda self, before, after, fields, actions: ((fields["qpos"] > 0).sum(dim=1), {}),
    )
    env = make(task(models()))
    observations, _ = env.reset(seed=0)
    assert observations.dtype == torch.float64
    observations, rewards, *_ = env.step(np.zeros((3, 2)))
    fields = env.engine.fields
    assert rewards.tolist() == (fields["qpos"] > 0).sum(dim=1).tolist()
    expected = torch.cat([(fields["qpos"] > 0).sum(dim=1, keepdim=True), fields["qvel"] > 0], dim=1)
    assert torch.equal(observations, expected.double())


def test_a_network_in_the_reward_keeps_no_graph(models):
    net = torch.nn.Linear(2, 1).double()
    task = reward_of(lambda before, after, fields, actions: (net(fields["qpos"]).squeeze(1), {}))
    env = make(task(models()))
    env.reset(seed=0)
    _, rewards, *_ = env.step(np.zeros((3, 2)))
    assert not rewards.requires_grad
    torch.testing.assert_close(rewards, net(env.engine.fields["qpos"]).squeeze(1).detach())


def test_noise_in_a_hook_is_no_mixing_of_envs(models):
    noisy = variant(observe=lambda self, fields: fields["qpos"] + torch.randn_like(fields["qpos"]))
    assert make(noisy(models())).reset(seed=0)[0].shape == (3, 2)


@pytest.mark.parametrize("engine", ["batch", "mjdata_pool", "warp"])
def test_the_time_is_a_field_like_others(engine):
    timed = variant(fields=["qpos", "time"], observe=lambda self, fields: fields["time"])
    task = timed(PENDULUM)
    env = make(task, 2, engine=engine)
    observations, _ = env.reset(seed=0)
    assert observations.tolist() == [[0.0], [0.0]]
    observations, *_ = env.step(np.zeros((2, 1)))
    torch.testing.assert_close(observations, torch.full((2, 1), task.dt).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("field", ["cfrc_ext", "cfrc_int", "cacc"])
def test_what_no_step_computes_is_computed_as_in_gymnasium(models, field):
    task = variant(fields=["qpos", field], observe=lambda self, fields: fields[field])(models())
    env = make(task, 1)
    env.reset(seed=0)
    observations, *_ = env.step(np.full((1, 2), 0.5, np.float32))
    data = mujoco.MjData(task.model)
    data.qpos[:], data.qvel[:] = task.initial_state(seeding.np_random(0)[0])
    mujoco.mj_forward(task.model, data)
    data.ctrl[:] = 0.5
    mujoco.mj_step(task.model, data, task.frame_skip)
    mujoco.mj_rnePostConstraint(task.model, data)
    assert field == "cfrc_ext" or getattr(data, field).any()
    assert observations[0].tolist() == getattr(data, field).ravel().tolist()
    with pytest.raises(ValueError, match=f"'batch' has no contact forces .{field}.*mjdata_pool"):
        make(task, engine="batch")


# --- hooks that raise while episodes run ---------------------------------------------------------------


class Breaks(Slides):
    """Raises in one of its hooks once the first body is fast, which takes a push."""

    hook = "reward"

    def check(self, hook, fields):
        if hook == self.hook and (fields["qvel"][:, 0] > 3.5).any():
            raise RuntimeError(f"too fast\nfor {hook}")

    def observe(self, fields):
        self.check("observe", fields)
        return super().observe(fields)

    def locate(self, fields):
        self.check("locate", fields)
        return fields["qpos"][:, 0]

    def reward(self, before, after, fields, actions):
        self.check("reward", fields)
        return super().reward(before, after, fields, actions)[0], {"x": after}

    def terminated(self, fields):
        self.check("terminated", fields)
        return super().terminated(fields)

    def state_info(self, fields):
        self.check("state_info", fields)
        return {"at": fields["qpos"].clone()}


@pytest.mark.parametrize("engine", ["batch", "mjdata_pool", pytest.param("warp", marks=pytest.mark.slow)])
@pytest.mark.parametrize("hook", ["observe", "locate", "reward", "terminated", "state_info"])
def test_a_hook_that_raises_fails_its_env_alone(hook, engine):
    class Sound(Breaks):
        hook = None

    task = Breaks(PENDULUM, 15)
    task.hook = hook
    env, undisturbed = (make(each, 4, engine=engine) for each in (task, Sound(PENDULUM, 15)))
    for each in (env, undisturbed):
        each.reset(seed=0)
        each.retire(np.array([True, False, False, False]))
    rest, push = np.zeros((4, 1), np.float32), np.zeros((4, 1), np.float32)
    push[1] = 3.0
    for actions, failing in ((rest, False), (push, True), (rest, False)):
        found, expected = env.step(actions), undisturbed.step(rest)
        assert found[4].get("failures", []) == [f"Breaks.{hook}: RuntimeError: too fast for {hook}"] * failing
        assert found[2][[0, 2, 3]].tolist() == [True, False, False]
        assert found[2][1] or not failing
        for one, other in zip(found[:2], expected[:2], strict=True):
            assert torch.equal(one[[0, 2, 3]], other[[0, 2, 3]])
    # The env stays as it is, and disturbs no other, until it is reset.
    assert env.step(rest)[2].tolist() == [True, True, False, False]
    _, info = env.reset(seed=0, options={"reset_mask": np.array([False, True, False, False])})
    assert "failed" not in info
    _, rewards, terminated, _, info = env.step(rest)
    assert "failed" not in info
    assert (rewards != 0).tolist() == [False, True, True, True]
    assert terminated.tolist() == [True, False, False, False]


def test_a_run_counts_what_hooks_raise(models):
    env = make(Breaks(models(limit="")), 2, max_episode_steps=5, info=False)
    policy = MLPPolicy(env.single_observation_space, env.single_action_space, action_bounds="clip")
    es = FlipoutES(policy, population_size=6, sigma=300.0, seed=0)
    episodes = evaluate(es.ask(), env)
    reason = "Breaks.reward: RuntimeError: too fast for reward"
    assert episodes.failures.keys() == {reason}
    assert episodes.failures[reason] == int(episodes.fitness.isnan().sum()) > 0


class NoPlace(Slides):
    """Finds no start for two seeds."""

    def initial_state(self, rng):
        qpos, qvel = super().initial_state(rng)
        if qpos[0] in self.starts:
            raise LookupError("no free place")
        return qpos, qvel

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.starts = [
            super(NoPlace, self).initial_state(seeding.np_random(seed)[0])[0][0] for seed in (101, 103)
        ]


def test_an_env_whose_start_cannot_be_drawn_fails_alone(models):
    env, sound = make(NoPlace(models()), 4), make(Slides(models()), 4)
    observations, info = env.reset(seed=100)
    expected, _ = sound.reset(seed=100)
    assert info["failures"] == ["NoPlace.initial_state: LookupError: no free place"] * 2
    assert info["failed"].tolist() == [False, True, False, True]
    assert torch.equal(observations[[0, 2]], expected[[0, 2]])
    _, rewards, terminated, *_ = env.step(np.zeros((4, 2), np.float32))
    assert terminated.tolist() == [False, True, False, True]
    assert (rewards != 0).tolist() == [True, False, True, False]
    # All of them may fail, and come back.
    _, info = env.reset(seed=[101, 103, 101, 103])
    assert info["failed"].all()
    _, rewards, *_ = env.step(np.zeros((4, 2), np.float32))
    assert not rewards.any()
    assert "failed" not in env.reset(seed=[100, 102, 104, 106])[1]


@pytest.mark.parametrize(
    ("hook", "later", "message"),
    [
        ("observe", lambda task: task.wide, r"^Grows.observe returned 5 features, 4 before that$"),
        ("locate", lambda task: task.wide, r"^Grows.locate returned \[N, \*\[0\]\] before, now .*\(1, 2\)"),
    ],
)
def test_shapes_may_not_change_later(models, hook, later, message):
    class Grows(Slides):
        wide = False

        def observe(self, fields):
            more = fields["qpos"][:, :1] if self.wide and hook == "observe" else fields["qpos"][:, :0]
            return fields["qpos"], fields["qvel"], more

        def locate(self, fields):
            return fields["qpos"] if self.wide and hook == "locate" else fields["qpos"][:, :0]

    env = make(Grows(models()), 1)
    env.reset(seed=0)
    env.task.wide = True
    *_, info = env.step(np.zeros((1, 2), np.float32))
    assert re.search(message, info["failures"][0])


# --- the model -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["batch", "warp"])
def test_actuators_without_a_range_are_unlimited(engine):
    task = Slides(PENDULUM)
    task.model.actuator_ctrllimited[:] = 0
    env = make(task, 8, engine=engine, max_episode_steps=3, info=False)
    space = env.single_action_space
    assert (space.low, space.high) == (-np.inf, np.inf)
    with pytest.raises(ValueError, match=r"must be finite on both sides.*clip"):
        MLPPolicy(env.single_observation_space, space, action_bounds="rescale")
    policy = MLPPolicy(env.single_observation_space, space, action_bounds="clip")
    es = FlipoutES(policy, population_size=8, sigma=1.0, seed=0)
    assert len(evaluate(es.ask(), env, reset_seeds=[[0]] * 8).fitness.unique()) == 8


def test_an_unlimited_actuator_among_limited_ones(models, tmp_path):
    path = tmp_path / "mixed.xml"
    path.write_text(models().read_text().replace('joint="j1" ctrlrange="-1 1"', 'joint="j1"'))
    space = make(Slides(path)).single_action_space
    assert space.low.tolist() == [-1, -np.inf]
    assert space.high.tolist() == [1, np.inf]


def test_a_model_without_actuators_is_refused(models):
    with pytest.raises(TaskError, match=r"^Slides: the model has no actuators.*<actuator>"):
        make(Slides(models(motors=0)))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("open.xml", "<mujoco><worldbody>", "open.xml does not compile: .*XML"),
        (
            "attribute.xml",
            '<mujoco><worldbody><geom sise="1"/></worldbody></mujoco>',
            "compile: .*'sise'.*line 1",
        ),
        ("mesh.xml", '<mujoco><asset><mesh file="no.stl"/></asset></mujoco>', "compile: .*'no.stl'"),
        ("notes.txt", "hello", "notes.txt does not compile"),
        ("empty.xml", "", "empty.xml does not compile"),
        (".", None, "must be an MJCF file, but .* is a folder"),
        ("missing.xml", None, "missing.xml does not exist .*Gymnasium"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_told_in_one_line(tmp_path, name, text, message):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises((ValueError, OSError), match=message) as error:
        Slides(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("frame_skip", [0, -1, 2.0, True, "2"])
def test_frame_skip_must_be_a_whole_number(models, frame_skip):
    with pytest.raises(ValueError, match=re.escape(f"integer >= 1, got {frame_skip!r}")):
        Slides(models(), frame_skip)


def test_paths_and_numbers_of_other_types_are_fine(models):
    task = Slides(Path(models()), np.int64(2))
    assert task.dt == 2 * task.model.opt.timestep
    assert type(task.frame_skip) is int


def test_a_body_that_is_not_there_is_told_with_those_that_are(models):
    with pytest.raises(ValueError, match=r"no body 'b_1'; it has 'b1'$"):
        Slides(models()).body("b_1")
    with pytest.raises(ValueError, match=r"no body 'torso'; it has 'world', 'b0', 'b1'$"):
        Slides(models()).body("torso")


# --- any task ------------------------------------------------------------------------------------------

# Each with whether it is right.
PARTS = {
    "whole": (lambda x: x, True),
    "column": (lambda x: x[:, 0], True),
    "cube": (lambda x: x.unsqueeze(2).expand(-1, -1, 2), True),
    "bools": (lambda x: x > 0, True),
    "int32": (lambda x: (10 * x).int(), True),
    "float32": (lambda x: x.float(), True),
    "rows": (lambda x: x.T, False),
    "number": (lambda x: x.sum(), False),
    "array": (lambda x: x.numpy(), False),
    "complex": (lambda x: x + 1j, False),
}
REWARDS = {
    "float64": (lambda x: -x.norm(dim=1), True),
    "float32": (lambda x: x[:, 0].float(), True),
    "count": (lambda x: (x > 0).sum(dim=1), True),
    "bool": (lambda x: x[:, 0] > 0, True),
    "column": (lambda x: x[:, :1], False),
    "number": (lambda x: x.norm(), False),
    "other dimension": (lambda x: x.norm(dim=0), False),
    "shared": (lambda x: x[:, 0] + x.sum(), False),
}
FLAGS = {
    "high": (lambda x: x[:, 0] > 0.2, True),
    "any": (lambda x: (x > 0.25).any(dim=1), True),
    "float": (lambda x: (x[:, 0] > 0).float(), False),
    "column": (lambda x: x[:, :1] > 0, False),
}
CONTAINERS = {"tuple": (tuple, True), "list": (list, True), "set": (iter, False)}


@st.composite
def tasks(draw):
    """Draws a task, and whether it is right."""
    parts = draw(st.lists(st.sampled_from(sorted(PARTS)), min_size=1, max_size=3))
    chosen = {
        "reward": draw(st.sampled_from(sorted(REWARDS))),
        "terminated": draw(st.sampled_from(sorted(FLAGS))),
        "container": draw(st.sampled_from(sorted(CONTAINERS))),
    }
    reward, flags, container = (
        table[chosen[name]][0]
        for name, table in (("reward", REWARDS), ("terminated", FLAGS), ("container", CONTAINERS))
    )
    right = all(
        table[name][1]
        for table, name in [
            *((PARTS, name) for name in parts),
            (REWARDS, chosen["reward"]),
            (FLAGS, chosen["terminated"]),
            (CONTAINERS, chosen["container"]),
        ]
    )
    task = variant(
        observe=lambda self, fields: container([PARTS[name][0](fields["qpos"]) for name in parts]),
        reward=lambda self, before, after, fields, actions: (reward(fields["qpos"]), {}),
        terminated=lambda self, fields: flags(fields["qpos"]),
    )
    return task, right


def plain_loop(task, seed, actions):
    """Yields observation, reward and flag of each step of one env, by mj_step and the hooks for one env."""
    data = mujoco.MjData(task.model)
    data.qpos[:], data.qvel[:] = task.initial_state(seeding.np_random(seed)[0])
    mujoco.mj_forward(task.model, data)
    for action in actions:
        data.ctrl[:] = action
        mujoco.mj_step(task.model, data, task.frame_skip)
        fields = {name: torch.from_numpy(getattr(data, name)[None].copy()) for name in ("qpos", "qvel")}
        parts = [np.array(part.numpy(), float).ravel() for part in task.observe(fields)]
        reward, _ = task.reward(None, None, fields, torch.from_numpy(action)[None])
        over = bool(task.terminated(fields))
        yield np.concatenate(parts), float(reward), over
        if over:
            return


@settings(max_examples=60, deadline=None)
@given(drawn=tasks(), count=st.integers(1, 3), num_envs=st.integers(1, 4), seed=st.integers(0, 50))
def test_any_task_runs_as_its_own_plain_loop_or_is_refused_in_one_line(models, drawn, count, num_envs, seed):
    kind, right = drawn
    task = kind(models(count))
    if not right:
        with pytest.raises(TaskError, match=r"^Odd\.(observe|reward|terminated) .*$"):
            make(task, num_envs)
        return
    env = make(task, num_envs)
    env.reset(seed=seed)
    actions = np.random.default_rng(seed).uniform(-1, 1, (6, num_envs, count)).astype(np.float32)
    steps = [env.step(each) for each in actions]
    for i in range(num_envs):
        for t, (observation, reward, over) in enumerate(plain_loop(task, seed + i, actions[:, i])):
            observations, rewards, terminated, *_ = steps[t]
            assert observations[i].tolist() == observation.tolist()
            assert rewards[i].item() == pytest.approx(reward, abs=1e-15)
            assert terminated[i].item() is over
    env.close()
