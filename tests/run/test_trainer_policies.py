"""Runs of other policies than the MLP: the user's own class, recurrent ones, and images."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from es_flipout.cli import eval, train
from es_flipout.cli.arguments import load_config
from es_flipout.cli.shipped import find_config
from es_flipout.normalization import ObservationNormalizer
from es_flipout.policies import make_action_head
from es_flipout.run import checkpoint
from es_flipout.run.build import official_scorer
from es_flipout.run.config import Config, EnvConfig, OptimizerConfig, PolicyConfig
from es_flipout.run.run_directory import RunDirectory
from es_flipout.run.trainer import Trainer


class Elman(nn.Module):
    """A recurrent policy of linear maps and tanh, with a normalizer."""

    row_wise = True

    def __init__(self, observation_space, action_space, size: int = 8) -> None:
        super().__init__()
        self.normalizer = ObservationNormalizer(observation_space.shape[0])
        self.head = make_action_head(action_space)
        self.input = nn.Linear(observation_space.shape[0], size)
        self.recurrent = nn.Linear(size, size)
        self.output = nn.Linear(size, self.head.num_outputs)

    def initial_state(self, batch_size: int) -> Tensor:
        return self.input.weight.new_zeros(batch_size, self.recurrent.in_features)

    def forward(self, observations: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = torch.tanh(self.input(self.normalizer(observations)) + self.recurrent(state))
        return self.head(self.output(state)), state


class Flat(nn.Module):
    """One linear map of the pixels."""

    row_wise = True

    def __init__(self, observation_space, action_space) -> None:
        super().__init__()
        self.linear = nn.Linear(64, int(action_space.n))

    def forward(self, observations: Tensor) -> Tensor:
        return self.linear((observations / 255).flatten(-3)).argmax(dim=-1)


def recall(kind: str = f"{__name__}:Elman", **changes) -> Config:
    config = load_config(find_config("recall"))
    policy = replace(config.policy, kind=kind)
    logging = replace(config.logging, reporters=["jsonl"])
    return replace(config, policy=policy, logging=logging, threads=1, **changes)


def run(config: Config, stop_after: int | None = None) -> tuple[RunDirectory, Trainer]:
    """Trains in `config.out` from wherever it stands; stops within the generation after `stop_after`."""
    folder = RunDirectory(Path(config.out))
    if not folder.path.exists():
        folder = RunDirectory.create(config)
    with closing(Trainer(config)) as trainer:
        trainer.restore(folder)
        trainer.train(
            folder, should_stop=lambda: stop_after is not None and trainer.es.generation == stop_after
        )
    return folder, trainer


def assert_same_policy(one: RunDirectory, other: RunDirectory) -> None:
    states = [checkpoint.load(each.last) for each in (one, other)]
    assert states[0]["generation"] == states[1]["generation"]
    assert states[0]["policy"].keys() == states[1]["policy"].keys()
    for name, value in states[0]["policy"].items():
        assert torch.equal(value, states[1]["policy"][name]), name


@pytest.mark.slow
def test_a_users_recurrent_policy_learns_to_recall():
    _, trainer = run(recall(out="run"))
    assert trainer.best_score > 0.9
    assert trainer.policy.normalizer.count == trainer.env_steps


def test_a_policy_without_memory_does_not():
    config = recall(kind="mlp", generations=15, out="run")
    _, trainer = run(replace(config, policy=replace(config.policy, hidden_sizes=[8])))
    with closing(official_scorer(config.env, config.evaluation.episodes)) as scorer:
        scores = [scorer.score(trainer.policy, seed=1000 * index).returns for index in range(5)]
    # It answers the same to both cues.
    assert len({round(abs(value), 5) for returns in scores for value in returns}) == 1


@pytest.mark.parametrize("optimizer", ["Adam", "ClipUp"])
def test_a_stopped_and_resumed_run_of_it_is_bit_identical(optimizer):
    config = recall(generations=5, optimizer=OptimizerConfig(optimizer, 0.05))
    whole, _ = run(replace(config, out="whole"))
    for stop_after in (2, 3, None):
        parts, _ = run(replace(config, out="parts"), stop_after)
    assert_same_policy(whole, parts)


def test_nor_do_envs_change_its_parameters():
    config = recall(generations=2)
    config = replace(config, es=replace(config.es, population_size=16))
    folders = [
        run(replace(config, env=replace(config.env, num_envs=num_envs), out=f"envs{num_envs}"))[0]
        for num_envs in (1, 7, 64)
    ]
    for folder in folders[1:]:
        assert_same_policy(folders[0], folder)


@pytest.mark.parametrize("kind", ["mlp", f"{__name__}:Elman"])
def test_stacked_observations_are_trained_on_resumed_and_scored(kind, capsys):
    config = recall(kind=kind, generations=3)
    policy = replace(config.policy, hidden_sizes=[8], recurrent_size=8, observation_stack=3)
    config = replace(config, policy=policy, es=replace(config.es, population_size=16))
    whole, trainer = run(replace(config, out="whole"))
    for stop_after in (1, None):
        unscored = replace(config, evaluation=replace(config.evaluation, interval=0))
        few = replace(unscored, env=replace(config.env, num_envs=5), out="parts")
        parts, _ = run(few, stop_after)
    assert_same_policy(whole, parts)
    normalizer = trainer.policy.policy.normalizer
    assert normalizer.count == trainer.env_steps
    assert torch.equal(normalizer.mean, normalizer.mean[:3].repeat(3))
    capsys.readouterr()
    score = ["whole", "--checkpoint", "best", "--json", "--episodes", str(config.evaluation.episodes)]
    assert eval.main([*score, "--seed", str(config.evaluation.seed)]) == 0
    assert json.loads(capsys.readouterr().out)["mean"] == trainer.best_score


def catch(kind: str, **changes) -> Config:
    config = load_config(find_config("catch"))
    policy = PolicyConfig(kind=kind) if ":" in kind else config.policy
    return replace(config, policy=policy, threads=1, **changes)


@pytest.mark.slow
def test_pixels_are_trained_on_scored_and_resumed():
    config = catch(f"{__name__}:Flat", generations=4)
    config = replace(config, evaluation=replace(config.evaluation, interval=2))
    whole, trainer = run(replace(config, out="whole"))
    assert trainer.best_score > -1.0
    for stop_after in (1, None):
        parts, _ = run(replace(config, out="parts"), stop_after)
    assert_same_policy(whole, parts)


def test_the_commands_train_resume_and_score_a_class_in_the_current_folder(capsys):
    Path("mine.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    row_wise = True\n"
        "    def __init__(self, observations, actions, width):\n"
        "        super().__init__()\n"
        "        self.net = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2))\n"
        "    def forward(self, x):\n"
        "        return self.net(x).argmax(-1)\n"
    )
    options = "--env.id CartPole-v1 --policy.kind mine:Net --policy.kwargs.width 5 --es.population_size 8"
    options += " --evaluation.episodes 2 --logging.reporters [jsonl] --out run --optimizer.name ClipUp"
    assert train.main([*options.split(), "--generations", "2"]) == 0
    assert train.main(["--resume", "run", "--generations", "3"]) == 0
    assert eval.main(["run", "--episodes", "2"]) == 0
    assert "return  mean" in capsys.readouterr().out
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [line["generation"] for line in lines] == [1, 2, 3]
    assert checkpoint.load(Path("run/checkpoints/last.pt"))["policy"]["net.0.weight"].shape == (5, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--policy.kind", "mpl"],
            "policy.kind 'mpl' does not exist: choose one of mlp, linear, gru",
        ),
        (["--policy.kind", "nowhere:Net"], "policy.kind nowhere:Net: No module named 'nowhere'"),
        (["--policy.kwargs.width", "3"], "policy.kwargs: mlp has no argument 'width' (allowed: none)"),
        (["--policy.kind", "cnn"], "policy.kind cnn needs images"),
        (["--env.id", "examples.catch:Catch-v0"], "or set policy.kind to cnn for images"),
        (["--optimizer.name", "nowhere:Adam"], "optimizer.name nowhere:Adam: No module named 'nowhere'"),
        (
            ["--optimizer.name", "ClipUp", "--optimizer.kwargs.momentum", "2"],
            "momentum must be in [0, 1)",
        ),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(arguments, message, capsys):
    assert train.main(["--env.id", "CartPole-v1", "--out", "run", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("run").exists()


@pytest.mark.parametrize("kind", ["gru", pytest.param("lstm", marks=pytest.mark.slow)])
def test_recurrent_cells_learn_to_recall(kind):
    _, trainer = run(recall(kind, out="run"))
    assert trainer.best_score > 0.9


@pytest.mark.slow
def test_the_cnn_learns_to_catch():
    _, trainer = run(catch("cnn", out="run", generations=40))
    assert trainer.best_score > 0.5


class Einsum(nn.Module):
    def __init__(self, observations, actions):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(observations.shape[0], 2))

    def forward(self, x):
        return torch.einsum("ni,ij->nj", x, self.weight).argmax(-1)


class Linear(nn.Module):
    def __init__(self, observations, actions):
        super().__init__()
        self.linear = nn.Linear(observations.shape[0], 2)

    def forward(self, x):
        return self.linear(x)


class Floats(Linear):
    def forward(self, x):
        return self.linear(x).amax(-1)


class Stateless(Linear):
    def initial_state(self, batch_size):
        return torch.zeros(batch_size, 1)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (Einsum, r"policy Einsum cannot act: UnsupportedOperationError: .*'einsum' on .*'weight' \[4, 2\]"),
        (
            Linear,
            r"must return actions for Discrete\(2\), integers \[1\] .* returns a tensor of shape \(1, 2\)",
        ),
        (
            Floats,
            r"must return actions for Discrete\(2\), .* returns a tensor of shape \(1,\) .* float32",
        ),
        (Stateless, "policy Stateless cannot act: TypeError"),
    ],
    ids=["no-rule", "shape", "floats", "state"],
)
def test_a_class_that_cannot_act_is_refused_before_anything_is_written(policy, message):
    kind = f"{__name__}:{policy.__name__}"
    config = Config(env=EnvConfig("CartPole-v1"), policy=PolicyConfig(kind=kind), generations=1)
    with pytest.raises(ValueError, match=message) as caught:
        Trainer(config)
    assert "\n" not in str(caught.value)
    assert not Path("runs").exists()
