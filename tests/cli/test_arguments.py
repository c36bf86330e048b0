"""The command line and the YAML file: how they combine, and how each mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from es_flipout.cli.arguments import UsageError, parse_train
from es_flipout.run.config import Config


def write(content: str, name: str = "run.yaml") -> str:
    Path(name).write_text(content)
    return name


def test_without_arguments_the_defaults_hold():
    assert parse_train([]).config == Config()


def test_an_override_wins_wherever_config_stands():
    name = write("es: {sigma: 0.2, population_size: 32}\n")
    for arguments in (
        ["--config", name, "--es.sigma", "0.3"],
        ["--es.sigma", "0.3", "--config", name],
        ["--es.sigma=0.3", f"--config={name}"],
    ):
        es = parse_train(arguments).config.es
        assert (es.sigma, es.population_size) == (0.3, 32)


def test_numbers_in_exponent_notation_are_numbers():
    assert parse_train(["--config", write("optimizer: {lr: 1e-3}\n")]).config.optimizer.lr == 0.001


def test_free_form_keywords_merge_key_by_key():
    name = write("env: {kwargs: {frame_skip: 3}}\noptimizer: {kwargs: {betas: [0.8, 0.9]}}\n")
    config = parse_train(["--config", name, "--env.kwargs.reset_noise_scale", "0.0"]).config
    assert config.env.kwargs == {"frame_skip": 3, "reset_noise_scale": 0.0}
    assert config.optimizer.kwargs == {"betas": [0.8, 0.9]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("es: {sigm: 0.1}\n", "unknown key es.sigm in run.yaml; did you mean es.sigma?"),
        ("evn: {}\n", "unknown key evn in run.yaml; did you mean env?"),
        ("es: {sigma: wide}\n", "es.sigma must be float, got wide"),
        ("es: {sigma: -0.1}\n", "es.sigma must be > 0, got -0.1"),
        ("es: {population_size: 64.5}\n", "es.population_size must be int, got 64.5"),
        ("es: {antithetic: 1}\n", "es.antithetic must be bool, got 1"),
        ("seed: true\n", "seed must be int, got True"),
        ("generations: many\n", "generations must be int or null, got many"),
        ("policy: {init: zeros}\n", "policy.init must be one of 'orthogonal', 'normc', got zeros"),
        (
            "es: {sigma_adaptation: {rule: cma}}\n",
            "es.sigma_adaptation.rule must be one of 'pgpe', 'snes' or null, got cma",
        ),
        ("policy: {conv_layers: [[8, 3]]}\n", "policy.conv_layers must hold [channels, kernel, stride, pad"),
        ("policy: {conv_layers: [8]}\n", "policy.conv_layers"),
        ("optimizer: {weight_decay: 0.1}\n", "unknown key optimizer.weight_decay in run.yaml"),
        ("es: 3\n", "es in config file run.yaml must contain keys and values, got 3"),
        ("- es\n", "config file run.yaml must contain keys and values, got ['es']"),
        ("", "config file run.yaml must contain keys and values, got None"),
        ("es: {sigma: 0.1, sigma: 0.2}\n", "'sigma' appears twice (the second time in line 1)"),
        ("seed: 1\nes: {}\nseed: 2\n", "'seed' appears twice (the second time in line 3)"),
        ("? [1, 2]\n: 3\n", "config file run.yaml: key [1, 2] in line 1 is not a name"),
        ("es: {sigma: null}\n", "es.sigma in run.yaml must not be null"),
        ("es: {antithetic:}\n", "es.antithetic in run.yaml must not be null"),
        ("env:\n", "env in run.yaml must not be null"),
        ("env: {kwargs: {threads: 2}}\n", "env.kwargs must not contain 'threads'"),
        ("es: {sigma: hello}\n", "es.sigma must be float, got hello"),
        ("es: {sigma: '~'}\n", "es.sigma: must not be in quotes"),
        ("env: {kwargs: {1: 2}}\n", "env.kwargs must not contain 1"),
        ("es: [\n", "config file run.yaml: not valid YAML"),
        ("\x00", "config file run.yaml: not valid YAML"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(content, message):
    name = write(content)
    with pytest.raises(UsageError) as caught:
        parse_train(["--config", name])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--es.sigmaa", "0.1"], "unknown option --es.sigmaa; did you mean es.sigma?"),
        (["--es.sig", "0.1"], "unknown option --es.sig"),  # no silent abbreviation
        (["--es.sigma", "-1"], "es.sigma must be > 0, got -1"),
        (["--es.sigma"], "expected"),
        (["--config", "nope.yaml"], "config file 'nope.yaml' does not exist"),
        (["--es", "{sigma: 0.1, sigma: 0.2}"], "'sigma' appears twice"),
        (["--es={sigm: 0.1}"], "unknown key es.sigm in --es; did you mean es.sigma?"),
        (["--config"], "expected"),
        (["--config", "humanoid", "--config", "halfcheetah"], "--config is given more than once"),
        (["walk"], "walk"),
        (["--resume", "nowhere"], "nowhere is not a run directory"),
        (["--resume", "a", "--config", "humanoid"], "omit --config"),
        (["--resume", "a", "--es.sigma", "0.1"], "--es.sigma cannot be changed when a run is resumed"),
        (["--resume", "a", "--out", "b"], "--out cannot be changed when a run is resumed"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments, message):
    with pytest.raises(UsageError) as caught:
        parse_train(arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_resumed_run_keeps_its_configuration_but_for_budget_and_speed():
    Path("run").mkdir()
    write("seed: 5\ngenerations: 3\n", "run/config.yaml")
    request = parse_train(["--resume", "run", "--generations", "9", "--threads=1"])
    assert request.resume == Path("run")
    assert (request.config.seed, request.config.generations, request.config.threads) == (5, 9, 1)


def test_a_merge_key_takes_what_the_keys_beside_it_leave():
    name = write("es: &es {sigma: 0.2, population_size: 8}\n")
    Path("merged.yaml").write_text(
        Path(name).read_text().replace("es: &es", "es:\n  <<: &es") + "  sigma: 0.3\n"
    )
    es = parse_train(["--config", "merged.yaml"]).config.es
    assert (es.sigma, es.population_size) == (0.3, 8)


def test_a_section_may_be_given_whole():
    assert parse_train(["--es", "{sigma: 0.2, population_size: 8}"]).config.es.population_size == 8
    assert parse_train([f"--es={write('sigma: 0.2')}"]).config.es.sigma == 0.2


def test_the_budget_of_a_schedule_is_not_changed_under_way():
    Path("run").mkdir()
    write("generations: 3\nes: {sigma_schedule: {kind: linear}}\n", "run/config.yaml")
    with pytest.raises(UsageError, match="the budget of a run with a schedule cannot be changed"):
        parse_train(["--resume", "run", "--generations", "9"])
    assert parse_train(["--resume", "run", "--threads", "1"]).config.threads == 1


def test_help_explains_every_field(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_train(["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for sentence in (
        "Standard deviation of the perturbation of every weight.",
        "YAML file, or the name of a shipped configuration: ant, cartpole,",
        "Run directory to continue, exactly as if",
        "Live env steps to train for",
        "Class name in torch.optim",
    ):
        assert sentence in text


def test_the_printed_template_is_a_configuration(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_train(["--es.sigma", "0.125", "--print_config"])
    assert stop.value.code == 0
    template = capsys.readouterr().out
    assert yaml.safe_load(template)["es"]["sigma"] == 0.125
    assert parse_train(["--config", write(template)]).config.es.sigma == 0.125
