"""Run directories and checkpoints: atomic, refused when unsafe, damaged or of another policy."""

from __future__ import annotations

import json
import pickle
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

from es_flipout.cli.arguments import load_config
from es_flipout.run import checkpoint
from es_flipout.run.config import Config, EnvConfig, ESConfig
from es_flipout.run.errors import RunError
from es_flipout.run.run_directory import RunDirectory, atomic_write


class _Payload:
    """Unpickling this creates a file: proof that code of the checkpoint ran."""

    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def test_what_is_saved_is_loaded(tmp_path):
    state = {"policy": {"w": torch.randn(2, 3)}, "generation": 7, "best_score": float("-inf")}
    checkpoint.save(tmp_path / "c.pt", state)
    loaded = checkpoint.load(tmp_path / "c.pt")
    assert torch.equal(loaded["policy"]["w"], state["policy"]["w"])
    assert (loaded["generation"], loaded["best_score"]) == (7, float("-inf"))


@pytest.mark.parametrize("writer", [torch.save, lambda state, path: path.write_bytes(pickle.dumps(state))])
def test_a_pickle_payload_is_refused_and_never_executed(tmp_path, writer):
    path = tmp_path / "evil.pt"
    writer({"format": checkpoint.FORMAT, "policy": _Payload()}, path)
    with pytest.raises(
        RunError, match=r"was refused: it contains objects other than plain data|not a checkpoint"
    ):
        checkpoint.load(path)
    assert not Path("executed").exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(tmp_path, share):
    path = tmp_path / "c.pt"
    checkpoint.save(path, {"policy": {"w": torch.randn(100)}})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(RunError, match="damaged"):
        checkpoint.load(path)


@pytest.mark.parametrize("policy", [None, 3, {"weight": 3}])
def test_a_checkpoint_without_a_policy_is_refused(tmp_path, policy):
    checkpoint.save(tmp_path / "c.pt", {"policy": policy})
    with pytest.raises(RunError, match="contains no policy"):
        checkpoint.load(tmp_path / "c.pt")


def test_a_missing_or_foreign_checkpoint_is_refused(tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        checkpoint.load(tmp_path / "c.pt")
    torch.save({"policy": {}}, tmp_path / "c.pt")
    with pytest.raises(RunError, match="has format None; this version reads formats 3 and 4"):
        checkpoint.load(tmp_path / "c.pt")


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (nn.Linear(3, 4), r"weight is \(4, 3\), but \(4, 2\) in the configured policy"),
        (nn.Linear(2, 4, bias=False), r"bias is missing, but \(4,\) in the configured policy"),
        (nn.Sequential(nn.Linear(2, 4)), "weight is missing"),
    ],
)
def test_a_checkpoint_of_another_policy_names_what_differs(saved, message):
    with pytest.raises(RunError, match=message):
        checkpoint.load_policy(nn.Linear(2, 4), {"policy": saved.state_dict()}, Path("c.pt"))


def test_a_failed_write_leaves_the_old_file_whole(tmp_path):
    def write_half(file):
        file.write(b"half of a checkp")
        file.flush()
        raise OSError

    path = tmp_path / "c.pt"
    checkpoint.save(path, {"policy": {}, "generation": 1})
    with pytest.raises(OSError), atomic_write(path) as file:  # noqa: PT011
        write_half(file)
    assert checkpoint.load(path)["generation"] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_the_written_configuration_reads_back_equal():
    # A directory may have a name that looks like a number or a date.
    for out in ("somewhere", "1e5", "2024-01-01"):
        config = Config(es=ESConfig(population_size=12, sigma=0.1 + 0.2), out=out, generations=3)
        run = RunDirectory.create(config)
        assert load_config(run.config) == config


@pytest.mark.parametrize(
    ("env_id", "name"),
    [
        ("mist:RewScalar-v0", "mist_RewScalar-v0-seed0"),
        ("ALE/Pong-v5", "ALE_Pong-v5-seed0"),
        ("my.tasks:Reach_2.1-v0", "my.tasks_Reach_2.1-v0-seed0"),
        ("ns/Ärm $(x)-v0", "ns_rm_x_-v0-seed0"),
        ("..:-v0", "_-v0-seed0"),
    ],
)
def test_the_name_of_a_run_is_safe_everywhere(env_id, name):
    run = RunDirectory.create(Config(env=EnvConfig(env_id)))
    assert run.path == Path("runs") / name
    assert shlex.quote(str(run.path)) == str(run.path)


def test_runs_without_a_name_never_share_a_directory():
    names = [RunDirectory.create(Config()).path.name for _ in range(3)]
    assert names == ["Humanoid-v5-seed0", "Humanoid-v5-seed0-2", "Humanoid-v5-seed0-3"]


def test_a_directory_that_holds_something_is_not_taken(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty"):
        RunDirectory.create(Config(out=str(tmp_path)))
    assert list(tmp_path.iterdir()) == [tmp_path / "notes.txt"]


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write to the run directory .*/file/run: Not a directory"):
        RunDirectory.create(Config(out=str(tmp_path / "file" / "run")))


def test_a_run_is_trained_by_one_process_at_a_time():
    run = RunDirectory.create(Config())
    with run.locked(), pytest.raises(RunError, match="another process"), run.locked():
        pass
    with run.locked():  # free again
        pass


def test_a_directory_without_a_configuration_is_not_called_a_run(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "other.pt").touch()
    with pytest.raises(RunError, match=r"not empty; choose another --out$"):
        RunDirectory.create(Config(out=str(tmp_path)))


def test_a_second_start_in_the_same_directory_changes_nothing(tmp_path):
    run = RunDirectory.create(Config(out=str(tmp_path / "run")))
    before = run.config.read_bytes()
    with run.locked(), pytest.raises(RunError, match="not empty"):
        RunDirectory.create(Config(out=str(tmp_path / "run"), es=ESConfig(sigma=0.2)))
    assert run.config.read_bytes() == before


def test_damaged_metrics_are_told():
    run = RunDirectory.create(Config())
    run.metrics.write_bytes(b'{"generation": 1}\n' + bytes(20) + b"\n")
    with pytest.raises(RunError, match=r"metrics.jsonl is damaged in line 2"):
        run.truncate_metrics(2)
    run.metrics.write_bytes(b"\xff\xfe\n")
    with pytest.raises(RunError, match=r"metrics.jsonl is damaged in line 1"):
        run.truncate_metrics(2)


def test_metrics_past_the_checkpoint_and_a_torn_line_are_dropped():
    run = RunDirectory.create(Config())
    lines = [json.dumps({"generation": generation}) + "\n" for generation in (1, 2, 3)]
    run.metrics.write_text("".join(lines) + '{"generation": 4, "env_st')
    run.truncate_metrics(2)
    assert run.metrics.read_text() == "".join(lines[:2])
