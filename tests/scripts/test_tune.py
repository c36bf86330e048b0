"""scripts/tune: a search runs real trials, stops the worse ones early, and goes on where it was."""

from __future__ import annotations

import json

import pytest
import yaml

from scripts import tune

SPACE = {
    "optimizer.lr": {"low": 0.01, "high": 0.1},
    "optimizer.name": ["Adam", "ClipUp"],
    "policy.hidden_sizes": [[8], [4, 4]],
    "rollout.episode_limit.initial": [None, 30],
}


@pytest.fixture
def search(tiny_config, tmp_path):
    config = yaml.safe_load(tiny_config.read_text())
    del config["generations"]
    tiny_config.write_text(yaml.safe_dump(config))
    space, result = tmp_path / "space.yaml", tmp_path / "results" / "tune.json"

    def run(trials, space_=SPACE, jobs=1, seeds=1):
        space.write_text(yaml.safe_dump(space_))
        words = ["--config", tiny_config, "--space", space, "--env-steps", 3000, "--episodes", 2]
        words += [
            "--trials",
            trials,
            "--jobs",
            jobs,
            "--seeds",
            seeds,
            "--out",
            tmp_path / "out",
            "--json",
            result,
        ]
        tune.main([str(word) for word in words])
        return json.loads(result.read_text())

    return run


@pytest.mark.slow
def test_a_search_stops_the_worse_trials_early_and_goes_on_where_it_was(search):
    first = search(3)["trials"]
    assert sorted(trial["trial"] for trial in first) == [0, 1, 2]
    document = search(8, jobs=2)
    found = {trial["trial"]: trial for trial in document["trials"]}
    assert found.keys() >= set(range(8))
    assert all(found[trial["trial"]] == trial for trial in first)
    rungs = [len(trial["scores"]) for trial in document["trials"]]
    assert rungs == sorted(rungs, reverse=True)
    assert rungs[0] == 3
    assert rungs[-1] < 3
    for trial in found.values():
        reached = list(trial["scores"])[-1]
        target = 3000 * int(reached.split("/")[0]) // 9
        assert target <= trial["env_steps"] < target + 16 * 60
        settings = trial["settings"]
        assert 0.01 <= settings["optimizer.lr"] <= 0.1
        assert all(settings[name] in SPACE[name] for name in SPACE if name != "optimizer.lr")
    assert document["space"] == SPACE
    assert document["machine"]["cores"] >= 1


@pytest.mark.slow
def test_what_is_chosen_is_what_is_trained(search, tmp_path):
    (trial,) = search(1, seeds=2)["trials"]
    for seed in (1000, 1001):
        config = yaml.safe_load((tmp_path / "out" / "trial000" / f"seed{seed}" / "config.yaml").read_text())
        for name, value in trial["settings"].items():
            section = config
            for part in name.split("."):
                section = section[part]
            assert section == value
        assert config["seed"] == seed
        assert config["env"]["id"] == "InvertedPendulum-v5"


@pytest.mark.slow
def test_a_trial_is_judged_by_the_mean_of_its_seeds(search):
    (trial,) = search(1, seeds=2)["trials"]
    assert len(trial["scores_of_seeds"]) == 3
    for scores, mean in zip(trial["scores_of_seeds"], trial["scores"].values(), strict=True):
        assert len(set(scores)) == 2
        assert mean == pytest.approx(sum(scores) / 2)


def test_a_trial_that_cannot_be_trained_is_noted(search):
    (trial,) = search(1, {"env.kwargs": [{"no_such": 1}]})["trials"]
    assert trial["scores"] == {}
    assert "InvertedPendulum-v5 has no keyword argument 'no_such'" in trial["error"]
