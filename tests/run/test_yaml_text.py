"""The one reader of YAML: its numbers, its mistakes, and that it reads what it wrote."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.speed import env
from es_flipout.cli import bench
from es_flipout.cli.arguments import ParserExit, load_config
from es_flipout.run import yaml_text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("-2.5E+3", -2500.0),
        (".5e1", 5.0),
        ("1_000", 1000),
        ("0x10", 16),
        ("1.", 1.0),
        (".inf", float("inf")),
        ("12:30", "12:30"),
        ("1:30.5", "1:30.5"),
        ("2024-01-01", "2024-01-01"),
        ("1e", "1e"),
        ("1.2.3", "1.2.3"),
        ("true", True),
        ("~", None),
    ],
)
def test_every_command_reads_a_value_alike(text, value):
    mapping, expected = f"{{a: {text}, b: [{text}]}}", {"a": value, "b": [value]}
    parser = argparse.ArgumentParser()
    env.add_options(parser)
    for found in (
        yaml_text.load_mapping(mapping),
        load_config(None, ["--env.kwargs", mapping]).env.kwargs,
        bench._parse(["throughput", "--env-kwargs", mapping]).env_kwargs,
        parser.parse_args(["--env-kwargs", mapping]).env_kwargs,
    ):
        assert repr(found) == repr(expected)  # 1 is not 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{a: 1", "not valid YAML: "),
        ("[1]", "must be keys and values in YAML"),
        ("text", "must be keys and values in YAML"),
        ("", "must be keys and values in YAML"),
        ("{1: 2}", "must be keys and values in YAML"),
        ("{a: 1, a: 2}", "'a' appears twice"),
        ("{[1]: 2}", "is not a name"),
        ("!!python/object/apply:os.getcwd []", "not valid YAML: "),
        ("[" * 1500, "not valid YAML: "),
    ],
)
def test_a_mistake_is_one_line(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        yaml_text.load_mapping(text)
    assert "\n" not in str(caught.value)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
TEXT = st.text("-+.:_eE0123456789~ax/@", max_size=8)
PLAIN = st.recursive(
    SCALARS | TEXT, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=4
)


@settings(max_examples=60)
@given(st.dictionaries(TEXT, PLAIN, max_size=3))
def test_what_is_written_is_read(content):
    assert repr(yaml_text.load(yaml_text.dump(content))) == repr(content)


@settings(max_examples=10)
@given(st.dictionaries(st.text("abc", min_size=1), PLAIN, min_size=1, max_size=6))
def test_values_in_keyword_arguments_keep_their_types(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "it.yaml"
        path.write_text(yaml_text.dump({name: {"kwargs": content} for name in ("env", "policy")}))
        section = yaml_text.dump({"kwargs": content})
        config = load_config(path, ["--env.engine_kwargs", yaml_text.dump(content), "--optimizer", section])
    for found in (config.env.kwargs, config.policy.kwargs, config.env.engine_kwargs, config.optimizer.kwargs):
        assert _types(found) == _types(content)


def _types(value: object) -> object:
    """Returns a value with the exact type of everything in it: 1 is not 1.0, nor are subclasses equal."""
    if type(value) is dict:
        return {key: _types(each) for key, each in value.items()}
    if type(value) is list:
        return [_types(each) for each in value]
    return type(value), repr(value)


@pytest.mark.parametrize(
    "text", ["1.0", "null", "true", "0x10", "1e3", "[1]", "{a: 1}", " 5 ", "", "@", "text"]
)
def test_quotes_on_the_command_line_and_in_the_template_make_text(text, capsys):
    overrides = [f"--env.kwargs.{name}={quoted}" for name, quoted in (("a", f"'{text}'"), ("b", f'"{text}"'))]
    config = load_config(None, overrides)
    assert config.env.kwargs == {"a": text, "b": text}
    with pytest.raises(ParserExit):
        load_config(None, [*overrides, "--print_config"])
    assert yaml_text.load(capsys.readouterr().out)["env"]["kwargs"] == config.env.kwargs
