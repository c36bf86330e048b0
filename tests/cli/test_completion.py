"""The scripts of --print_completion complete options, choices and names in a real shell."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from es_flipout.cli import bench, eval, export, report, train
from es_flipout.cli.arguments import ParserExit

COMMANDS = {
    "es-train": train,
    "es-eval": eval,
    "es-export": export,
    "es-report": report,
    "es-bench": bench,
}
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def script(command, shell, capsys):
    with pytest.raises(ParserExit) as caught:
        COMMANDS[command].main(["--print_completion", shell])
    assert caught.value.code == 0
    return capsys.readouterr().out


def completed(text, words, folder):
    """Returns what bash offers for the last of some words."""
    quoted = " ".join(f"'{word}'" for word in words)
    function = f"_shtab_{words[0].replace('-', '_')}"
    program = (
        f"{text}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; {function}; echo ${{COMPREPLY[@]}}"
    )
    done = subprocess.run(["bash", "-c", program], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.split()


@needs_bash
def test_bash_completes_a_training(tmp_path, capsys):
    text = script("es-train", "bash", capsys)
    assert completed(text, ["es-train", "--es.per"], tmp_path) == ["--es.perturbation"]
    assert completed(text, ["es-train", "--es.perturbation", "l"], tmp_path) == ["low_rank"]
    (tmp_path / "humble.yaml").touch()
    offered = completed(text, ["es-train", "--config", "hum"], tmp_path)
    assert set(offered) == {"humble.yaml", "humanoid.yaml", "humanoid_gpu.yaml", "humanoid_standup.yaml"}
    (tmp_path / "runs").mkdir()
    assert completed(text, ["es-train", "--resume", "r"], tmp_path) == ["runs"]


@needs_bash
@pytest.mark.parametrize("command", ["es-eval", "es-export", "es-report"])
def test_bash_completes_a_run(command, tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    assert completed(script(command, "bash", capsys), [command, "r"], tmp_path) == ["runs"]


@pytest.mark.parametrize("command", COMMANDS)
def test_zsh_gets_a_script_of_its_own(command, capsys):
    assert script(command, "zsh", capsys).startswith(f"#compdef {command}\n")


def test_an_unknown_shell_is_refused(capsys):
    assert train.main(["--print_completion", "dos"]) == 2
    assert "argument --print_completion: invalid choice: 'dos'" in capsys.readouterr().err
