"""Every CUDA kernel of engine warp compiles, on a machine without a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import precompile_kernels

ROOT = Path(__file__).parents[2]


def compile_kernels(cache):
    return subprocess.run(
        [sys.executable, "-W", "ignore", ROOT / "benchmarks" / "gpu" / "precompile_kernels.py"],
        env={**os.environ, "WARP_CACHE_PATH": str(cache), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_kernel_compiles_for_an_h100_and_once_only(tmp_path):
    result = compile_kernels(tmp_path)
    assert result.returncode == 0, result.stderr
    modules, compiled = map(int, re.match(r"(\d+) modules, (\d+) of them compiled", result.stdout).groups())
    assert modules == compiled > 100
    assert len(list(tmp_path.rglob("*.sm90.cubin"))) == modules
    again = compile_kernels(tmp_path)
    assert again.stdout.startswith(f"{modules} modules, 0 of them compiled")


def test_a_task_that_does_not_exist_is_told(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["precompile_kernels", "Crawler-v5"])
    with pytest.raises(SystemExit, match=r"^no such task: Crawler-v5 \(allowed: Ant-v5, HalfCheetah-v5,"):
        precompile_kernels.main()
