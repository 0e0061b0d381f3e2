"""Blocks of a Markdown file that are written from results, so that no figure in it is typed by hand.

<!-- study: acre/accuracy -->
... the table of that name; everything between the marks is replaced
<!-- /study -->
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from iclm.errors import ConfigurationError

_BLOCK = re.compile(r"(<!-- study: (?P<name>[^>\n]*?) -->(?P<end>\r?\n))(?P<text>.*?)(?=<!-- /study -->)", re.DOTALL)
_OPEN, _CLOSE = "<!-- study:", "<!-- /study -->"


def with_blocks(text: str, texts: Mapping[str, str], where: str | Path) -> str:
    """A Markdown text with all its study blocks replaced; everything else stays as it is.

    Args:
        texts: what a block can hold, by its name.
        where: the file, for messages.

    Raises:
        ConfigurationError: a block of an unknown name, or one that is not closed.
    """

    def replaced(block: re.Match[str]) -> str:
        name = block["name"].strip()
        if name not in texts:
            raise ConfigurationError(f"{where}: there is no table {name!r} in this study; there are {', '.join(texts)}")
        return block[1] + texts[name].replace("\n", block["end"])

    blocks = list(_BLOCK.finditer(text))
    nested = any(_OPEN in block["text"] for block in blocks)
    if nested or not len(blocks) == text.count(_OPEN) == text.count(_CLOSE):
        raise ConfigurationError(
            f"{where}: a study block is a line {_OPEN} NAME --> and, further down, a line {_CLOSE}; one of them is missing"
        )
    return _BLOCK.sub(replaced, text)


def read_markdown(path: Path) -> str:
    """The text of a Markdown file, line ends as they are.

    Raises:
        ConfigurationError: it cannot be read, or holds no study block.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: is not UTF-8 text") from error
    if _OPEN not in text:
        raise ConfigurationError(f"{path}: has no line {_OPEN} NAME --> to write a table after")
    return text
