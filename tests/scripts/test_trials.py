"""scripts/trials: what is kept of runs that were started by hand."""

from __future__ import annotations

import dataclasses
import json
import shutil

from es_flipout.cli.arguments import load_config
from es_flipout.run.run_directory import RunDirectory
from scripts import trials


def test_settings_that_are_not_defaults_and_the_curve_are_kept(small_run, tmp_path, monkeypatch):
    run, file = small_run("linear"), tmp_path / "trials.json"
    monkeypatch.setattr("sys.argv", ["trials", str(run.path), "--json", str(file)])
    trials.main()
    (trial,) = json.loads(file.read_text())["trials"]
    (*_, last) = run.read_metrics()
    assert (trial["generations"], trial["env_steps"]) == (last["generation"], last["env_steps"])
    settings = trial["settings"]
    assert (settings["env.id"], settings["policy.kind"], settings["policy.action_bounds"]) == (
        "Hopper-v5",
        "linear",
        "clip",
    )
    assert "es.antithetic" not in settings  # the default
    assert "out" not in settings
    assert trial["curve"]["score"][-1] == round(last["score"], 1)
    assert trial["curve"]["env_steps"][-1] == last["env_steps"]
    assert trial["returns"] is None


def test_other_trials_of_the_file_stay(small_run, tmp_path, monkeypatch):
    run, file = small_run("linear"), tmp_path / "trials.json"
    file.write_text(json.dumps({"trials": [{"name": "another"}, {"name": run.path.name, "settings": "old"}]}))
    monkeypatch.setattr("sys.argv", ["trials", str(run.path), "--json", str(file), "--episodes", "2"])
    trials.main()
    kept = {trial["name"]: trial for trial in json.loads(file.read_text())["trials"]}
    assert kept.keys() == {"another", run.path.name}
    assert kept[run.path.name]["settings"]["env.id"] == "Hopper-v5"
    assert len(kept[run.path.name]["returns"]) == 2


def test_the_run_that_a_trial_begins_from_is_told_by_its_name(small_run, tmp_path):
    from_run = small_run("linear")
    run = RunDirectory(tmp_path / "warm")
    shutil.copytree(from_run.path, run.path)
    run.write_config(dataclasses.replace(load_config(run.config), init_from=str(from_run.path)))
    assert trials.trial(run, episodes=0)["settings"]["init_from"] == from_run.path.name
