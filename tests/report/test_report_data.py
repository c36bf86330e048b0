"""The figures of a report against numbers worked out by hand, and against SciPy."""

from __future__ import annotations

import base64
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from es_flipout.report.curves import interval, mean_curve, thinned
from es_flipout.report.groups import differences, group_runs
from es_flipout.report.page import duration, figure
from es_flipout.report.panels import MAX_POINTS, curve_panels, update_panels
from es_flipout.report.returns import Played, strip_figure
from es_flipout.run.config import Config, EnvConfig, ESConfig, LoggingConfig, OptimizerConfig, ScheduleConfig

HOPPER = Config(env=EnvConfig("Hopper-v5"), generations=3)


def line(generation, env_steps, score=None, **metrics):
    timing = {"seconds": 60.0 * generation, "env_steps_per_second": 1.0, "live_share": 1.0}
    return {"generation": generation, "env_steps": env_steps, "score": score, "timing": timing, **metrics}


def decoded(array):
    """Returns what Plotly's JavaScript makes of an array of numbers."""
    if not isinstance(array, dict):
        return np.asarray(array)
    values = np.frombuffer(base64.b64decode(array["bdata"]), dtype=array["dtype"])
    return values.reshape([int(each) for each in array["shape"].split(",")]) if "shape" in array else values


def traces(panel, view):
    """Returns the lines of a panel by group and role: x and y of each."""
    found = {}
    for trace in panel.figure["views"][view]["traces"]:
        lines = found.setdefault((trace["meta"]["group"], trace["meta"]["role"]), [])
        lines.append((decoded(trace["x"]).tolist(), decoded(trace["y"]).tolist()))
    return found


# Curves.


def test_a_mean_is_taken_between_the_points_of_runs_over_what_they_share():
    # At 10: (0 + 4)/2; at 20: (10 + 4)/2, the first one being halfway; at 25: (15 + 9)/2; at 30: (20 + 14)/2.
    first = (np.array([10.0, 30.0]), np.array([0.0, 20.0]))
    second = (np.array([0.0, 20.0, 40.0]), np.array([4.0, 4.0, 24.0]))
    mean = mean_curve([first, second], 100)
    assert mean.x.tolist() == [10.0, 20.0, 30.0]
    assert mean.mean.tolist() == [2.0, 7.0, 17.0]
    assert mean.low.tolist() == [0.0, 4.0, 14.0]
    assert mean.high.tolist() == [4.0, 10.0, 20.0]


def test_there_is_no_mean_of_one_run_nor_of_runs_that_share_nothing():
    early, late = (np.array([1.0, 2.0]), np.zeros(2)), (np.array([3.0]), np.zeros(1))
    assert mean_curve([early], 100) is None
    assert mean_curve([early, (np.empty(0), np.empty(0))], 100) is None
    assert mean_curve([early, late], 100) is None
    assert mean_curve([late, late], 100).mean.tolist() == [0.0]


@pytest.mark.parametrize("count", [4, 20])
def test_intervals_are_percentile_bootstraps(count):
    values = np.random.default_rng(3).normal(50.0, 10.0, size=(count, 2))
    low, high = interval(values)
    oracle = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, axis=0, rng=1)
    tolerance = 0.1 * (oracle.confidence_interval.high - oracle.confidence_interval.low)
    assert (abs(low - oracle.confidence_interval.low) < tolerance).all()
    assert (abs(high - oracle.confidence_interval.high) < tolerance).all()


def test_the_interval_of_three_values_is_their_range():
    # A resample is the lowest value three times with probability 1/27, more than the 2.5 % that are cut off.
    low, high = interval(np.array([1.0, 2.0, 6.0]))
    assert (float(low), float(high)) == (pytest.approx(1.0), pytest.approx(6.0))


def test_the_interval_of_few_values():
    assert [float(each) for each in interval(np.array([3.0, 1.0]))] == [1.0, 3.0]
    assert np.isnan(interval(np.array([3.0]))).all()


def test_a_long_line_is_thinned_out_between_its_ends():
    assert thinned(np.arange(5.0), 5).tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert thinned(np.arange(9.0), 3).tolist() == [0.0, 4.0, 8.0]


# Groups.


def test_runs_that_differ_only_in_what_does_not_change_training_are_a_group(write_run):
    other = replace(HOPPER, seed=7, threads=2, device="cpu", generations=9, out="elsewhere")
    other = replace(other, logging=LoggingConfig(keep_interval=5), env=EnvConfig("Hopper-v5", num_envs=8))
    fast = replace(HOPPER, optimizer=OptimizerConfig(lr=0.5))
    runs = [write_run("a", HOPPER, []), write_run("b", fast, []), write_run("c", other, [])]
    groups = group_runs(runs)
    assert [[run.name for run in group.runs] for group in groups] == [["a", "c"], ["b"]]
    assert [group.label for group in groups] == [f"lr {HOPPER.optimizer.lr}", "lr 0.5"]
    assert [group.letter for group in groups] == ["A", "B"]
    differing = differences(groups)
    assert differing["optimizer.lr"] == [str(HOPPER.optimizer.lr), "0.5"]
    assert differing["seed"] == ["0, 7", "0"]
    assert differing["threads"] == ["null, 2", "null"]
    assert differing["logging.keep_interval"] == ["0, 5", "0"]
    assert set(differing) == {
        *("optimizer.lr", "seed", "threads", "device", "generations", "logging.keep_interval", "env.num_envs")
    }


def test_with_a_schedule_the_budget_changes_training(write_run):
    scheduled = replace(HOPPER, es=ESConfig(sigma_schedule=ScheduleConfig("linear")))
    longer = replace(scheduled, generations=9)
    groups = group_runs([write_run("a", scheduled, []), write_run("b", longer, [])])
    assert [group.label for group in groups] == ["generations 3", "generations 9"]


def test_labels(write_run):
    with_kwargs = replace(HOPPER, env=EnvConfig("Hopper-v5", {"frame_skip": 2}))
    ant = replace(HOPPER, env=EnvConfig("Ant-v5"))
    runs = [write_run("a", HOPPER, []), write_run("b", with_kwargs, []), write_run("c", ant, [])]
    labels = [group.label for group in group_runs(runs)]
    assert labels == ["Hopper-v5, frame_skip –", "Hopper-v5, frame_skip 2", "Ant-v5"]
    assert [group.label for group in group_runs(runs[:1])] == ["Hopper-v5"]
    many = replace(HOPPER, es=ESConfig(8, 0.5, rank=2), optimizer=OptimizerConfig("SGD"))
    assert group_runs([runs[0], write_run("d", many, [])])[1].label == "d"


# Panels.


def test_a_panel_has_each_run_their_mean_and_its_interval(write_run):
    runs = [
        write_run("a", HOPPER, [line(1, 100, 10.0), line(2, 200), line(3, 300, 30.0)]),
        write_run("b", replace(HOPPER, seed=1), [line(1, 100, 20.0), line(2, 200), line(3, 300, 40.0)]),
        write_run("c", replace(HOPPER, optimizer=OptimizerConfig(lr=1.0)), [line(1, 50, 5.0)]),
    ]
    (score,) = curve_panels(group_runs(runs))
    assert traces(score, "env_steps") == {
        (0, "run"): [([100, 300], [10, 30]), ([100, 300], [20, 40])],
        (0, "mean"): [([100, 300], [15, 35])],
        (0, "band"): [([100, 300, 300, 100], [20, 40, 30, 10])],
        (1, "single"): [([50], [5])],
    }
    assert traces(score, "wall_time")[0, "mean"] == [([1, 3], [15, 35])]  # the longest has 3 minutes
    assert score.figure["views"]["wall_time"]["title"] == "wall time (min)"
    assert traces(score, "generations")[0, "mean"] == [([1, 3], [15, 35])]
    assert score.summary.startswith("Score, last values. A, lr ")
    assert score.summary.endswith(": 30 to 40; B, lr 1.0: 5")


def test_a_run_that_has_just_begun_does_not_cut_the_mean_of_finished_ones_short(write_run):
    whole = [line(number, 100 * number, fitness_mean=1.0) for number in (1, 2, 3)]
    runs = [write_run(str(seed), replace(HOPPER, seed=seed), whole) for seed in (0, 1)]
    runs.append(write_run("2", replace(HOPPER, seed=2), [line(1, 10, fitness_mean=9.0)]))
    (fitness,) = curve_panels(group_runs(runs))
    assert traces(fitness, "env_steps")[0, "mean"] == [([100, 200, 300], [1, 1, 1])]
    assert len(traces(fitness, "env_steps")[0, "run"]) == 3


def test_values_that_are_no_numbers_are_left_out(write_run):
    lines = [
        line(1, 10, None, update_cosine=None, sigma="wide", lr=True),
        line(2, 20, float("nan"), update_cosine=0.5),
        {"generation": 3},
        line(4, 40, 7.0, update_cosine=float("inf"), score_info={"is_success": 0.5, "x": None}),
    ]
    groups = group_runs([write_run("a", HOPPER, lines)])
    score, success = curve_panels(groups)
    assert traces(score, "env_steps") == {(0, "single"): [([40], [7])]}
    assert (success.title, traces(success, "env_steps")) == ("is_success", {(0, "single"): [([40], [0.5])]})
    panels = {panel.title: traces(panel, "env_steps")[0, "single"] for panel in update_panels(groups)}
    assert panels == {
        "Update cosine": [([20], [0.5])],
        "Live share": [([10, 20, 40], [1, 1, 1])],
        "Speed": [([10, 20, 40], [1, 1, 1])],
    }


def test_panels_of_a_run_without_metrics(write_run):
    groups = group_runs([write_run("a", HOPPER, [])])
    assert curve_panels(groups) == update_panels(groups) == []


def test_a_long_run_is_drawn_with_few_points(write_run):
    groups = group_runs([write_run("a", HOPPER, [line(n, n, sigma=0.1) for n in range(1, 2000)])])
    (x, y), *_ = traces(update_panels(groups)[0], "env_steps")[0, "single"]
    assert len(x) == len(y) == MAX_POINTS
    assert (x[0], x[-1]) == (1, 1999)


def test_totals_of_a_run(write_run):
    lines = [line(1, 10, 5.0, failures={"fell": 1}), line(2, 25, 9.0, failures={"fell": 1, "froze": 3})]
    run = write_run("a", HOPPER, [*lines, line(3, 40, 7.0)])
    assert (run.best["score"], run.best["generation"], run.last["score"]) == (9.0, 2, 7.0)
    assert (run.total("env_steps"), run.total("timing.seconds"), run.progress) == (40.0, 180.0, 1.0)
    assert list(run.failures("failures").items()) == [("froze", 3), ("fell", 2)]


def test_numbers_of_the_page():
    assert [figure(value) for value in (None, float("nan"), 12.34567, 1234.5, 38608776)] == [
        *("–", "–", "12.346", "1,234.5", "38,608,776")
    ]
    assert [duration(seconds) for seconds in (0.6, 3725.0, 90000.0)] == ["0:00:01", "1:02:05", "1 d 1 h"]


def test_the_figure_of_returns(write_run):
    (group,) = groups = group_runs([write_run("<i>a", HOPPER, [])])
    played = [
        Played(group.runs[0], "last", 3, np.array([1.0, np.nan, 2.0, 6.0]), {"fell": 1}),
        Played(group.runs[0], "best", problem="gone"),
    ]
    drawn = strip_figure(played, groups)
    assert drawn["rows"] == ["A &lt;i&gt;a, last"]
    episodes, average = drawn["traces"]
    assert decoded(episodes["x"]).tolist() == [1, 2, 6]
    assert (abs(decoded(episodes["y"])) <= 0.5).all()
    assert decoded(average["x"]).tolist() == [3.0]
    error = average["error_x"]
    assert [decoded(error[side]).tolist() for side in ("array", "arrayminus")] == [
        [pytest.approx(3.0)],
        [pytest.approx(2.0)],
    ]
