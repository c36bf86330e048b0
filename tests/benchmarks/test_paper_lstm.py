"""LSTM regularization: the models against `nn.LSTM`, runs that take turns, and the program on a tiny text."""

from __future__ import annotations

import contextlib
import json
import math
import random
import re
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.paper import lstm
from benchmarks.paper.lstm_model import METHODS, LanguageModel, Regularization, Shape, VariationalLSTM, mask
from benchmarks.paper.lstm_run import Clock, Run, Training, streams
from benchmarks.paper.lstm_tables import TEST, best_setting
from benchmarks.paper.lstm_turns import COST, Setting, shares
from benchmarks.paper.text import Text, load_characters
from es_flipout.cli.results import Results

FOREVER = Clock(math.inf)
CPU = torch.device("cpu")
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
WORDS = ["the", "cat", "sat", "on", "a", "mat", "<unk>", "N"]


@pytest.fixture
def folder(tmp_path):
    draw = random.Random(0)
    for split, lines in (("train", 24), ("valid", 8), ("test", 8)):
        text = "".join(f" {' '.join(draw.choices(WORDS, k=6))} \n" for _ in range(lines))
        (tmp_path / f"ptb.{split}.txt").write_text(text)
    return tmp_path


def make_run(method: str, text: Text, seed: int = 0, **training: float) -> Run:
    strength = 0.25 if method == "variational" else 0.5
    regularization = Regularization(method, strength=strength)
    return Run(text, Shape(units=6), regularization, Training(batch=3, length=5, **training), seed, CPU)


def variational(rate: float) -> tuple[VariationalLSTM, nn.LSTM, tuple]:
    torch.manual_seed(0)
    ours, theirs = VariationalLSTM(3, 5, rate).double(), nn.LSTM(3, 5, batch_first=True).double()
    theirs.load_state_dict(ours.state_dict())
    arguments = torch.randn(4, 7, 3).double(), tuple(torch.randn(2, 1, 4, 5).double())
    return ours, theirs, arguments


def test_variational_dropout_of_rate_0_is_an_lstm():
    ours, theirs, arguments = variational(0.0)
    results = []
    for module in (ours, theirs):
        y, (h, c) = module(*arguments)
        (y.square().sum() + h.sum() + c.sin().sum()).backward()
        results.append([y, h, c, *(parameter.grad for parameter in module.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_variational_dropout_is_an_lstm_whose_recurrent_columns_are_masked_for_each_sequence():
    ours, theirs, (x, (h, c)) = variational(0.4)
    torch.manual_seed(1)
    y, state = ours(x, (h, c))
    torch.manual_seed(1)
    masks = mask(h[0], (4, 5), 0.4)
    assert 0 < (masks == 0).sum() < masks.numel()
    for n, own in enumerate(masks):
        weights = {"weight_hh_l0": theirs.weight_hh_l0 * own}
        one = x[n, None], (h[:, n, None], c[:, n, None])
        expected, (last, _) = torch.func.functional_call(theirs, weights, one)
        torch.testing.assert_close(y[n, None], expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(state[0][:, n, None], last, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("noise", ["gaussian", "dropconnect"])
def test_evaluation_has_the_mean_weights_and_training_has_noise(method, noise):
    shape = Shape(units=4, layers=2, embedding=4, tied=True)
    torch.manual_seed(0)
    model = LanguageModel(7, shape, Regularization(method, noise, 0.5, 0.4, 0.1))
    plain = LanguageModel(7, shape, Regularization("none"))
    # Half of the weights are dropped.
    scale = 0.5 if noise == "dropconnect" and method in ("shared", "flipout") else 1.0
    weights = {
        name: scale * value if "weight_hh" in name else value for name, value in model.state_dict().items()
    }
    plain.load_state_dict(weights)
    tokens = torch.randint(7, (3, 6))
    state = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    expected = plain.eval()(tokens, state)[0]
    torch.testing.assert_close(model.eval()(tokens, state)[0], expected)
    assert model.train()(tokens, state)[0].allclose(expected) == (method == "none")


def test_a_model_begins_with_the_same_weights_whatever_the_method(folder):
    text = load_characters(data=folder)
    first, *others = ([*make_run(method, text).model.parameters()] for method in METHODS)
    assert all(one.equal(other) for other in others for one, other in zip(first, other, strict=True))


def test_streams_are_rows_of_the_text():
    assert streams(torch.arange(11), 3).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_is_that_of_whole_streams(folder, method):
    run = make_run(method, load_characters(data=folder))
    model, state = run.model.eval(), (torch.zeros(1, 3, 6), torch.zeros(1, 3, 6))
    with torch.no_grad():
        logits, _ = model(run.valid[:, :-1], state)
    expected = F.cross_entropy(logits.flatten(0, 1), run.valid[:, 1:].flatten())
    assert run.loss("valid", FOREVER) == pytest.approx(expected.item(), rel=1e-5)


def test_training_carries_the_state_and_goes_through_all_of_the_text(folder):
    run = make_run("none", load_characters(data=folder), rate=1e-12)
    expected = run._loss(run.train[:, : run.iterations * 5 + 1])
    epochs = [run.advance(FOREVER) for _ in range(run.iterations)]
    assert epochs[:-1] == [None] * (run.iterations - 1)
    assert epochs[-1].training == pytest.approx(expected, rel=1e-4)


def test_runs_that_take_turns_are_those_that_go_alone(folder):
    text = load_characters(data=folder)
    runs = [make_run(method, text, seed=3) for method in METHODS]
    for _ in range(4):
        for run in runs:
            run.advance(FOREVER)
    for method, run in zip(METHODS, runs, strict=True):
        alone = make_run(method, text, seed=3)
        for _ in range(4):
            alone.advance(FOREVER)
        assert all(one.equal(two) for one, two in zip(run.parameters, alone.parameters, strict=True))


def test_sgd_goes_on_with_a_fourth_of_the_rate_when_validation_gets_worse(folder):
    run = make_run("none", load_characters(data=folder), optimizer="sgd", rate=0.1)
    run.history = [0.0] * 6  # no loss will be lower
    for _ in range(run.iterations):
        run.advance(FOREVER)
    assert run.rate_scale.item() == 0.25
    before = [parameter.detach().clone() for parameter in run.parameters]
    run.advance(FOREVER)
    for parameter, old in zip(run.parameters, before, strict=True):
        # The gradient holds the factor; the rate is 0.1.
        torch.testing.assert_close(parameter, old - 0.1 * parameter.grad)


def test_a_loss_that_is_not_finite_ends_a_run(folder):
    run = make_run("none", load_characters(data=folder))
    with torch.no_grad():
        run.model.decoder.bias.fill_(math.nan)
    for _ in range(run.iterations - 1):
        run.advance(FOREVER)
    with pytest.raises(ArithmeticError, match="nan"):
        run.advance(FOREVER)


class FakeGraph:
    """Stands for a CUDA graph: its capture does not train, and a replay does."""

    def __init__(self, error: Exception | None) -> None:
        self.error, self.is_capturing, self.replays = error, False, 0

    @contextlib.contextmanager
    def capture(self, _graph, stream):
        self.is_capturing = True
        yield
        self.is_capturing = False
        if self.error:
            raise self.error

    def replay(self) -> None:
        self.replays += 1
        self.iterate()


@pytest.mark.parametrize("error", [None, RuntimeError("operation not permitted when stream is capturing")])
def test_iterations_are_captured_after_three_or_go_on_eagerly(folder, monkeypatch, capsys, error):
    text = load_characters(data=folder)
    expected, run, fake = make_run("none", text), make_run("none", text), FakeGraph(error)
    fake.iterate = run._iterate
    monkeypatch.setattr(run, "_iterate", lambda: None if fake.is_capturing else fake.iterate())
    monkeypatch.setattr(run, "_stream", object())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: fake)
    monkeypatch.setattr(torch.cuda, "graph", fake.capture)
    monkeypatch.setattr(torch.cuda, "Event", mock.Mock)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    for _ in range(6):
        run._step()
        run.steps += 1
        expected.advance(FOREVER)
    assert all(one.equal(two) for one, two in zip(run.parameters, expected.parameters, strict=True))
    assert (fake.replays, run.is_slow) == ((0, True) if error else (3, False))
    assert ("not captured" in capsys.readouterr().out) == (error is not None)


def test_runs_are_dealt_out_by_cost():
    settings = [Setting(method, seed, 0.1, 0.1) for method in METHODS for seed in range(3)]
    one, other = shares(settings, 2)
    assert {*one, *other} == {*settings}
    costs = [sum(COST[each.method] for each in own) for own in (one, other)]
    assert abs(costs[0] - costs[1]) <= max(COST.values())


def command(folder, task, *words):
    return [
        task,
        "--quick",
        "--data",
        str(folder),
        "--seeds",
        "0",
        "1",
        "--json",
        str(folder / "out.json"),
        *words,
    ]


@pytest.mark.parametrize("task", lstm.DEFAULTS)
def test_the_program_trains_every_method_with_every_seed(folder, task, capsys):
    assert lstm.main(command(folder, task, "--estimate", "1")) == 0
    printed = capsys.readouterr().out
    results = Results.read(folder / "out.json")
    assert re.search(r"^(2 x )?8 units, .*; seeds 0, 1\. ", printed, re.MULTILINE)
    assert results.settings["complete"]
    assert results.settings["failed"] == {}
    assert [*results.settings["estimate"]] == list(METHODS)
    for method in METHODS:
        losses = results.by_round(method, TEST)
        assert [*losses] == [0, 1]
        assert all(0 < loss < 100 for loss in losses.values())
        assert re.search(rf"^\| {method} \| .* \(.* to .*\)", printed, re.MULTILINE)


@pytest.mark.slow
def test_a_search_chooses_rate_and_strength_for_each_method(folder, capsys):
    own = ["--methods", "none", "shared", "--rates", "1e-9", "0.02", "--epochs", "1"]
    assert lstm.main(command(folder, "characters", *own, "--strengths", "0.3", "0.1")) == 0
    assert capsys.readouterr().out.count("**") == 4
    search = Results.read(folder / "out.json")
    assert best_setting(search, "none") == (0.02, 0.0)
    (folder / "out.json").rename(folder / "search.json")
    words = ["--methods", "none", "shared", "--tuned", str(folder / "search.json")]
    assert lstm.main(command(folder, "characters", *words)) == 0
    tuned = Results.read(folder / "out.json")
    assert {(row["rate"], row["strength"]) for row in tuned.where(contestant="shared").rows} == {
        best_setting(search, "shared")
    }


def test_a_run_that_fails_does_not_end_the_others(folder, monkeypatch, capsys):
    advance = Run.advance

    def broken(self, clock):
        if self.model.layers[0].__class__ is VariationalLSTM and self.steps == 2:
            raise RuntimeError("broken")
        return advance(self, clock)

    monkeypatch.setattr(Run, "advance", broken)
    assert lstm.main(command(folder, "characters", "--methods", "none", "variational")) == 0
    assert "broken" in capsys.readouterr().out
    results = Results.read(folder / "out.json")
    assert len(results.settings["failed"]) == 2
    assert not results.settings["complete"]
    assert [*results.by_round("none", TEST)] == [0, 1]
    assert not results.by_round("variational", TEST)


def test_a_limit_of_time_ends_all_runs_in_the_middle_of_an_epoch(folder, monkeypatch):
    advance, limit = Run.advance, []

    def counted(self, clock):
        limit.append(self)
        if len(limit) == 7:
            monkeypatch.setattr(Run, "evaluation_seconds", math.inf)
        return advance(self, clock)

    monkeypatch.setattr(Run, "advance", counted)
    assert lstm.main(command(folder, "characters", "--methods", "none", "--seconds", "1000")) == 0
    results = Results.read(folder / "out.json")
    assert not results.settings["complete"]
    iterations = limit[0].iterations
    # Seven turns of two runs, and one to end the round: four iterations each.
    assert [row["epoch"] for row in results.where(metric="validation loss").rows] == [4 / iterations] * 2
    assert [*results.by_round("none", TEST)] == [0, 1]


def test_without_time_there_is_no_result(folder, capsys):
    assert lstm.main(command(folder, "characters", "--seconds", "0.001")) == 1
    assert "no run came to an end" in capsys.readouterr().out
    assert not json.loads((folder / "out.json").read_text())["complete"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["words", "--units", "12"], "--tied needs --embedding 12"),
        (["characters", "--device", "cuda", "--processes", "2"], "--processes is for the CPU"),
        (["characters", "--tuned", "nowhere"], "nowhere"),
        (["characters", "--data", "nowhere"], "lacks ptb.train.txt"),
    ],
)
def test_mistakes_are_one_line(words, message, capsys):
    assert lstm.main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_processes_share_the_runs(folder):
    assert lstm.main(command(folder, "characters", "--processes", "2")) == 0
    side_by_side = Results.read(folder / "out.json")
    assert side_by_side.settings["complete"]
    assert lstm.main(command(folder, "characters")) == 0
    in_turns = Results.read(folder / "out.json")
    for method in METHODS:
        assert side_by_side.by_round(method, TEST) == pytest.approx(in_turns.by_round(method, TEST), rel=1e-4)


@pytest.mark.gpu
@NEEDS_GPU
@pytest.mark.parametrize("method", METHODS)
def test_a_captured_run_trains_as_an_eager_one(folder, method):
    text = load_characters(data=folder)
    captured, eager = (make_gpu_run(method, text) for _ in range(2))
    eager.is_slow = True
    for _ in range(2 * eager.iterations):
        captured_epoch, eager_epoch = captured.advance(FOREVER), eager.advance(FOREVER)
    assert captured.graph is not None
    assert eager.graph is None
    assert captured_epoch.validation == pytest.approx(eager_epoch.validation, rel=1e-2)


@pytest.mark.gpu
@NEEDS_GPU
@pytest.mark.parametrize("method", METHODS[1:])
def test_each_replay_draws_anew(folder, method):
    run = make_gpu_run(method, load_characters(data=folder), rate=1e-12)
    run.train = run.train[:, :1].expand(-1, run.train.shape[1])  # the same sequence over and over
    losses = []
    for _ in range(8):
        with run._own():
            for each in (run.loss_sum, *run.state):
                each.zero_()
        run.advance(FOREVER)
        torch.cuda.synchronize()
        losses.append(run.loss_sum.item())
    assert len(set(losses)) == 8


def make_gpu_run(method: str, text: Text, **training: float) -> Run:
    regularization = Regularization(method, strength=0.25)
    sizes = Training(batch=3, length=5, **training)
    return Run(text, Shape(units=6), regularization, sizes, 0, torch.device("cuda", 0))
