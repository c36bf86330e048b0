"""The one reader of YAML: its numbers, its mistakes, and that it reads what it wrote."""

from __future__ import annotations

import argparse

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.speed import env
from es_flipout.cli import bench
from es_flipout.cli.arguments import load_config
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
