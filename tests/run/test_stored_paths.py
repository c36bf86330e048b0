"""Paths in a stored configuration: absolute, whatever depth they are at; all other text stays as it is."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from es_flipout.cli.arguments import load_config
from es_flipout.run.config import Config, EnvConfig, OptimizerConfig, PolicyConfig
from es_flipout.run.run_directory import RunDirectory
from es_flipout.run.stored_paths import RELATIVE_STARTS, with_absolute_paths


def stored(kwargs):
    return with_absolute_paths(Config(env=EnvConfig(kwargs=kwargs))).env.kwargs


def test_relative_paths_are_stored_absolute(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    here = tmp_path / "here"
    for folder in (here / "meshes", tmp_path / "home"):
        folder.mkdir(parents=True)
    for path in (here / "mine.xml", tmp_path / "above.xml", tmp_path / "home" / "own.xml"):
        path.touch()
    monkeypatch.chdir(here)
    parts = ["../above.xml", "~/own.xml", 3]
    config = Config(
        env=EnvConfig(kwargs={"xml_file": "./mine.xml", "scene": {"parts": parts}, "dir": "./meshes"}),
        policy=PolicyConfig(kwargs={"weights": "./mine.xml"}),
        optimizer=OptimizerConfig(kwargs={"table": ["./mine.xml"]}),
        init_from="runs/a",
        out="out",
    )
    run = RunDirectory.create(config)
    monkeypatch.chdir("/")
    found = load_config(here / run.config)
    mine = str(here / "mine.xml")
    assert found.env.kwargs["xml_file"] == found.policy.kwargs["weights"] == mine
    assert found.optimizer.kwargs == {"table": [mine]}
    above, own, number = found.env.kwargs["scene"]["parts"]
    assert Path(above).samefile(tmp_path / "above.xml")
    assert (own, number) == (str(tmp_path / "home" / "own.xml"), 3)
    assert found.env.kwargs["dir"] == str(here / "meshes")
    assert found.init_from == str(here / "runs" / "a")


def test_what_may_be_a_name_stays():
    Path("hopper.xml").touch()  # though there is such a file, Gymnasium has one of this name, too
    for text in ("hopper.xml", "assets/hopper.xml", "/absolute.xml", ".", "..", "~", "", "./nowhere.xml"):
        assert stored({"xml_file": text}) == {"xml_file": text}


NO_PATH = st.text().filter(lambda text: not text.startswith(RELATIVE_STARTS))
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | NO_PATH,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(PLAIN)
def test_any_other_value_is_stored_as_it_is(value):
    assert stored({"value": value}) == {"value": value}
