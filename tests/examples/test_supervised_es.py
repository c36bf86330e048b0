"""Images from files and from scikit-learn, and what the classifiers of supervised_es learn from them."""

from __future__ import annotations

import gzip
import json
import struct
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from examples import supervised_es
from examples.images import load_digits, load_mnist, read_idx


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


class TestIdx:
    def test_a_file_by_hand(self) -> None:
        # 2 x 3 bytes: 00 00 | 08 | 02 dimensions | 2 | 3 | 1 .. 6
        Path("file").write_bytes(bytes.fromhex("00000802 00000002 00000003 010203040506"))
        assert read_idx(Path("file")).tolist() == [[1, 2, 3], [4, 5, 6]]

    def test_a_gzipped_file(self) -> None:
        values = pixels(5, 4, 3)
        Path("file.gz").write_bytes(gzip.compress(idx(values)))
        assert np.array_equal(read_idx(Path("file.gz")), values)

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"", "begins with nothing"),
            (bytes.fromhex("00000d01 00000001 00000000"), "begins with 00 00 0d 01"),  # floats
            (bytes.fromhex("00000802 00000002"), "is cut short: 8 bytes, and the header alone has 12"),
            (idx(pixels(2, 3))[:-1], "should have 18 bytes .*, but has 17"),
            (idx(pixels(2, 3)) + b"x", "should have 18 bytes .*, but has 19"),
        ],
        ids=["empty", "floats", "header", "short", "long"],
    )
    def test_another_file_is_refused(self, data: bytes, message: str) -> None:
        Path("file").write_bytes(data)
        with pytest.raises(ValueError, match=message):
            read_idx(Path("file"))

    def test_a_broken_archive_is_refused(self) -> None:
        Path("file.gz").write_bytes(gzip.compress(idx(pixels(9, 9)))[:-9])
        with pytest.raises(ValueError, match="not a whole gzip file"):
            read_idx(Path("file.gz"))


def write_mnist(folder: Path, *, labels: int = 20) -> None:
    folder.mkdir()
    for part, count in (("train", 20), ("t10k", 10)):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(pixels(count, 28, 28)))
        values = np.arange(labels if part == "train" else count, dtype=np.uint8) % 10
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(values)))


def test_mnist_is_read_and_scaled() -> None:
    write_mnist(Path("mnist"))
    images = load_mnist(Path("mnist"))
    assert images.x.shape == (20, 1, 28, 28)
    assert images.held_out_x.shape == (10, 1, 28, 28)
    assert images.y.tolist() == [*range(10)] * 2
    assert float(images.x.mean()) == pytest.approx(0, abs=1e-5)
    assert float(images.x.std(correction=0)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("labels", [19, 0])
def test_labels_that_do_not_belong_to_the_images_are_refused(labels: int) -> None:
    write_mnist(Path("mnist"), labels=labels)
    with pytest.raises(ValueError, match=f"{labels} labels for 20 images"):
        load_mnist(Path("mnist"))


def test_held_out_digits_are_others() -> None:
    images = load_digits()
    assert len(images.y) + len(images.held_out_y) == 1797
    assert images.x.shape[1:] == images.held_out_x.shape[1:] == (1, 8, 8)
    assert images.y.unique().tolist() == images.held_out_y.unique().tolist() == list(range(10))


@pytest.mark.parametrize("examples", ["fresh", "shared"])
def test_digits_are_learnt(examples: str) -> None:
    arguments = ["--noise", "flipout", "low-rank", "--seeds", "0", "--generations", "40", "--interval", "20"]
    sizes = ["--population-size", "128", "--batch-size", "8", "--lr", "0.01", "--examples", examples]
    assert supervised_es.main([*arguments, *sizes, "--out", "result.json", "--plot", "figure.png"]) == 0
    result = json.loads(Path("result.json").read_text())
    assert [run["noise"] for run in result["runs"]] == ["flipout", "low-rank"]
    for run in result["runs"]:
        assert run["generation"] == [0, 20, 40]
        assert run["error"][0] > 0.7 > 0.45 > run["error"][2]  # 0.9 is chance
    assert Path("figure.png").read_bytes().startswith(b"\x89PNG")


def test_the_conv_net_runs_and_a_run_repeats() -> None:
    arguments = ["--model", "conv", "--noise", "flipout-8", "--seeds", "3", "--generations", "2"]
    errors = []
    for name in ("one.json", "two.json"):
        assert supervised_es.main([*arguments, "--population-size", "32", "--out", name]) == 0
        errors.append(json.loads(Path(name).read_text())["runs"][0]["error"])
    assert errors[0] == errors[1]


def test_a_members_fitness_is_minus_its_own_cross_entropy() -> None:
    policy = supervised_es.convolutional(8)
    population = supervised_es.FlipoutES(policy, population_size=4, sigma=0.1).ask()
    x, y = torch.randn(4, 3, 1, 8, 8), torch.arange(12).view(4, 3) % 10
    fitness = supervised_es.evaluate(population, x, y)
    for member in range(4):
        loss = torch.nn.functional.cross_entropy(population.module(member)(x[member]), y[member])
        assert float(fitness[member]) == pytest.approx(-float(loss.detach()), rel=1e-4)
    assert fitness.unique().numel() == 4


def test_mirror_images_meet_the_same_examples() -> None:
    images = load_digits()
    generator = torch.Generator().manual_seed(0)
    batches = {}
    for examples in ("fresh", "shared"):
        options = Namespace(examples=examples, population_size=6, batch_size=8)
        x, y = supervised_es.draw_examples(images, options, generator)
        assert x.shape == (6, 8, 1, 8, 8)
        assert torch.equal(x[0::2], x[1::2])
        assert torch.equal(y[0::2], y[1::2])
        batches[examples] = len(x.flatten(1).unique(dim=0))
    assert batches == {"fresh": 3, "shared": 1}


def test_noise_families_begin_alike() -> None:
    arguments = ["--noise", "flipout", "independent", "--seeds", "1", "--generations", "1"]
    assert supervised_es.main([*arguments, "--population-size", "4", "--out", "result.json"]) == 0
    one, other = (run["error"] for run in json.loads(Path("result.json").read_text())["runs"])
    assert one[0] == other[0]


def test_members_in_turns_score_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = supervised_es.fully_connected(8)
    population = supervised_es.FlipoutES(policy, population_size=10, sigma=0.1).ask()
    x, y = torch.randn(10, 3, 1, 8, 8), torch.arange(30).view(10, 3) % 10
    whole = supervised_es.evaluate(population, x, y)
    monkeypatch.setattr(supervised_es, "IMAGES_AT_ONCE", 9)
    torch.testing.assert_close(supervised_es.evaluate(population, x, y), whole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--noise", "loud"], "invalid choice: 'loud'"),
        (["--lr", "0"], "--lr must be > 0, got 0.0"),
        (["--population-size", "7"], "must be even"),
        (["--data", "nowhere"], "nowhere has neither train-images"),
        (["--out", "no/folder/file.json"], "the folder no/folder does not exist"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert supervised_es.main([*arguments, "--generations", "1", "--seeds", "0"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
