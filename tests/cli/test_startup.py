"""Help and mistakes do not wait for torch, nor does `import es_flipout`."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"torch", "mujoco", "numba", "tensorboard", "imageio", "plotly", "onnx", "mlflow", "wandb"}


def loaded(program):
    """Returns which slow packages a program has imported by its end, whatever its exit status."""
    ending = "import sys; print('loaded:', *sys.modules)"
    code = f"import contextlib\nwith contextlib.suppress(SystemExit):\n    {program}\n{ending}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = done.stdout.rpartition("loaded:")[2].split()
    assert "es_flipout" in names
    return HEAVY & set(names)


def command(module, *arguments):
    return f"from es_flipout.cli.{module} import main; sys.exit(main({list(arguments)}))"


@pytest.mark.parametrize("module", ["train", "export", "report", "bench"])
def test_help(module):
    assert loaded(f"import sys; {command(module, '--help')}") == set()


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("train", ["--config", "nothing.yaml"]),
        ("train", ["--es.sgima", "0.1"]),
        ("train", ["--print_config"]),
        ("eval", ["nowhere"]),
        ("export", ["nowhere"]),
        ("report", ["nowhere", "--out", "nowhere/report.html"]),
        ("report", ["run", "--episodes", "-1"]),
        ("bench", ["throughput", "--rounds", "0"]),
    ],
)
def test_mistakes_and_templates(module, arguments):
    assert loaded(f"import sys; {command(module, *arguments)}") == set()


def test_import_of_the_package():
    assert loaded("import es_flipout") == set()
    assert "torch" in loaded("from es_flipout import FlipoutES")
