"""An exported policy acts as the policy does, from its file alone."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from gymnasium import spaces
from small_runs import KINDS

from es_flipout import load_policy
from es_flipout.choices import EXPORT_SUFFIXES
from es_flipout.cli.export import main
from es_flipout.cli.playback import play_run
from es_flipout.export.check import check
from es_flipout.export.formats import open_exported
from es_flipout.export.module import ExportedModule

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format", EXPORT_SUFFIXES)
def test_actions_are_the_same_step_by_step(kind, format, small_run, tmp_path, capsys):
    path = tmp_path / f"policy{EXPORT_SUFFIXES[format]}"
    arguments = [str(small_run(kind).path), "--to", format, "--out", str(path), "--steps", "200"]
    assert main(arguments) == 0, capsys.readouterr().err
    policy = load_policy(small_run(kind).path)
    module = ExportedModule(policy)
    found = check(policy, module, open_exported(format, path), steps=200, seed=50)
    assert found.is_passed
    assert found.differing == 0
    assert found.largest is None or found.largest < 1e-5


@pytest.mark.parametrize("format", EXPORT_SUFFIXES)
def test_a_batch_of_any_size(format, small_run, tmp_path):
    path = tmp_path / f"policy{EXPORT_SUFFIXES[format]}"
    assert main([str(small_run("mlp").path), "--to", format, "--out", str(path), "--steps", "1"]) == 0
    policy, run = load_policy(small_run("mlp").path), open_exported(format, path)
    observations = np.random.default_rng(0).normal(size=(7, 17))
    for count in (1, 2, 7):
        (actions,) = run([observations[:count].astype(np.float32)])
        np.testing.assert_allclose(actions, policy.predict(observations[:count])[0], rtol=1e-4, atol=1e-6)


def test_onnx_metadata(small_run, tmp_path):
    path = tmp_path / "policy.onnx"
    run = small_run("lstm")
    assert main([str(run.path), "--to", "onnx", "--out", str(path), "--steps", "1"]) == 0
    session = onnxruntime.InferenceSession(path)
    about = json.loads(session.get_modelmeta().custom_metadata_map["es_flipout"])
    assert [each.name for each in session.get_inputs()] == ["observation", "state_0", "state_1"]
    assert [each.name for each in session.get_outputs()] == ["action", "next_state_0", "next_state_1"]
    assert about["env"] == "Hopper-v5"
    assert about["observation_space"]["shape"] == [11]
    assert about["observation_space"]["low"] is None
    assert about["action_space"] == {
        "type": "Box", "shape": [3], "dtype": "float32", "low": -1.0, "high": 1.0
    }  # fmt: skip
    state = {
        "name": "state_0",
        "shape": [8],
        "dtype": "float32",
        "next": "next_state_0",
        "initial": [0.0] * 8,
    }
    assert about["states"][0] == state
    assert about["score"]["mean"] == run.read_metrics()[-1]["score"]
    assert about["config"]["policy"]["kind"] == "lstm"
    assert about["versions"]["torch"] == torch.__version__
    assert str(run.path) not in json.dumps(about)
    assert max(each.version for each in onnx.load(path).opset_import) <= 18


def test_metadata_of_parts_and_of_a_torch_program(small_run, tmp_path):
    path = tmp_path / "policy.pt2"
    assert main([str(small_run("parts").path), "--to", "torch", "--out", str(path), "--steps", "1"]) == 0
    extra = {"es_flipout": ""}
    torch.export.load(path, extra_files=extra)
    about = json.loads(extra["es_flipout"])
    parts = {tuple(each["path"]): each["name"] for each in about["observations"]}
    assert parts["joints", 1] == "observation_joints_1"
    assert about["observation_space"]["spaces"]["joints"]["spaces"][1] == {
        "type": "Discrete", "shape": [], "dtype": "int64", "n": 3, "start": 1
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["linear", "gru", "cnn"])
def test_the_example_needs_neither_torch_nor_this_package(kind, small_run, tmp_path):
    run, path = small_run(kind), tmp_path / "policy.onnx"
    assert main([str(run.path), "--to", "onnx", "--out", str(path), "--steps", "1"]) == 0
    blocked = "import sys; sys.modules['torch'] = sys.modules['es_flipout'] = None; sys.argv = sys.argv[1:]"
    program = f"{blocked}; import runpy; runpy.run_path(sys.argv[0])"
    if kind == "cnn":  # a task of the examples, which are beside the package
        program = program.replace("= sys.modules['es_flipout'] ", "")
    example = ROOT / "examples" / "run_onnx.py"
    played = subprocess.run(
        [sys.executable, "-c", program, str(example), str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    returns = json.loads(played.stdout.partition("returns ")[2])
    assert returns == pytest.approx(play_run(run, run.best, episodes=5).episodes.returns.tolist(), abs=2e-3)


def test_numbers_that_json_lacks_have_names(small_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(small_run("linear").path, run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["env"]["kwargs"]["healthy_z_range"] = [0.7, math.inf]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (line,) = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text(json.dumps({**json.loads(line), "score_std": math.nan}) + "\n")
    assert main([str(run), "--to", "torch", "--steps", "1"]) == 0
    extra = {"es_flipout": ""}
    torch.export.load(run / "policy.pt2", extra_files=extra)
    about = json.loads(extra["es_flipout"], parse_constant=pytest.fail)
    assert about["config"]["env"]["kwargs"]["healthy_z_range"] == [0.7, "Infinity"]
    assert about["score"]["std"] == "NaN"


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_one_line(package, small_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    arguments = [str(small_run("mlp").path), "--to", "onnx", "--out", str(tmp_path / "policy.onnx")]
    assert main(arguments) == 2
    wanted = f"es-export: onnx needs {package}: pip install 'es-flipout[export]'\n"
    assert capsys.readouterr().err == wanted
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bound", [np.inf, np.finfo(np.float32).max])
@pytest.mark.parametrize(("error", "passes"), [(3e-5, True), (3e-4, False)])
def test_without_bounds_the_tolerance_follows_the_action(bound, error, passes, small_run):
    policy = load_policy(small_run("mlp").path)
    module = ExportedModule(policy)
    with torch.no_grad():
        (wanted,) = module(torch.zeros(1, 17))
    policy.action_space = spaces.Box(-bound, bound, (6,), np.float32)
    policy.predict = lambda observation, state: (1e3 * wanted[0].numpy(), None)
    run = lambda inputs: [(1 + error) * 1e3 * wanted.numpy()]  # noqa: E731
    assert check(policy, module, run, steps=3).is_passed is passes


def test_a_file_that_acts_otherwise_is_not_written(small_run, tmp_path, monkeypatch, capsys):
    run, path = small_run("mlp"), tmp_path / "policy.onnx"

    def wrong(format, path):
        exported = open_exported(format, path)
        return lambda inputs: [output + np.float32(1e-3) for output in exported(inputs)]

    monkeypatch.setattr("es_flipout.cli.exporting.open_exported", wrong)
    assert main([str(run.path), "--to", "onnx", "--out", str(path), "--steps", "10"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("es-export: the exported policy does not act as the policy does: checked over 10")
    assert list(tmp_path.iterdir()) == []


def test_an_operation_without_a_translation_is_one_line(small_run, tmp_path, capsys):
    run = str(small_run("bessel").path)
    assert main([run, "--to", "torch", "--out", str(tmp_path / "policy.pt2"), "--steps", "10"]) == 0
    assert main([run, "--to", "onnx", "--out", str(tmp_path / "policy.onnx"), "--steps", "10"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("es-export: policy Bessel cannot be exported to onnx: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "policy.onnx").exists()


def test_mistakes_are_one_line(small_run, tmp_path, capsys):
    run = str(small_run("mlp").path)
    for arguments, message in (
        (["nowhere", "--to", "onnx"], "nowhere is not a run directory: it has no config.yaml"),
        ([run], "the following arguments are required: --to"),
        (
            [run, "--to", "onnx", "--out", "policy.pt2"],
            "--out must end in .onnx, got policy.pt2",
        ),
        ([run, "--to", "onnx", "--out", "none/policy.onnx"], "--out: folder none does not exist"),
        ([run, "--to", "onnx", "--checkpoint", "x.pt"], "checkpoint x.pt does not exist"),
        ([run, "--to", "onnx", "--steps", "0"], "argument --steps: must be an integer >= 1, got 0"),
    ):
        assert main(arguments) == 2
        assert capsys.readouterr().err == f"es-export: {message}\n"
