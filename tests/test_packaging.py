"""The wheel holds the package and the configurations, the sdist what a reader wants; .ci/wheel uses them."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import es_flipout

ROOT = Path(__file__).parents[1]
DIST_INFO = f"es_flipout-{es_flipout.__version__}.dist-info"


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """Returns a folder with a wheel and a source distribution of the source tree."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    return dist / f"es_flipout-{es_flipout.__version__}-py3-none-any.whl"


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {"es_flipout", DIST_INFO}
    folders = {path.parent.name for path in (ROOT / "es_flipout").glob("*/__init__.py")}
    packaged = {name.split("/")[1] for name in names if re.match("es_flipout/.*/", name)}
    assert packaged == folders | {"configs"}
    assert not packaged & {"bench", "benchmarks", "examples", "scripts"}
    assert {f"es_flipout/report/parts/page.{kind}" for kind in ("html", "css", "js")} <= set(names)


def test_license_and_version(wheel: Path):
    archive = zipfile.ZipFile(wheel)
    metadata = Parser().parsestr(archive.read(f"{DIST_INFO}/METADATA").decode())
    assert metadata["Version"] == es_flipout.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert archive.read(f"{DIST_INFO}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_the_source_distribution_has_what_a_reader_wants(dist: Path):
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as members:
        names = {name.partition("/")[2] for name in members.getnames()}
    root = {"LICENSE", "CHANGELOG.md", "CITATION.cff", "README.md", "pyproject.toml"}
    assert root | {"docs/index.md", "configs/cartpole.yaml", "examples/land_rocket.py"} <= names
    assert not any(name.startswith(("tests/", "benchmarks/", "scripts/", "pretrained/")) for name in names)
