"""Where the report of results goes: a folder, and blocks of a Markdown file, so that no figure in it is typed by hand.

<!-- study: acre/accuracy -->
... the table of that name; everything between the marks is replaced
<!-- /study -->

A block of continual learning is marked `continual` in place of `study`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from iclm.data.files import check_folder_place
from iclm.errors import ConfigurationError

STUDY, CONTINUAL = "study", "continual"


def with_blocks(text: str, texts: Mapping[str, str], where: str | Path, mark: str = STUDY) -> str:
    """A Markdown text with all its blocks of a mark replaced; everything else stays as it is.

    Args:
        texts: what a block can hold, by its name.
        where: the file, for messages.
        mark: `STUDY` or `CONTINUAL`.

    Raises:
        ConfigurationError: a block of an unknown name, or one that is not closed.
    """

    def replaced(block: re.Match[str]) -> str:
        name = block["name"].strip()
        if name not in texts:
            raise ConfigurationError(
                f"{where}: there is no table {name!r} in these results; there are {', '.join(texts)}"
            )
        return block[1] + texts[name].replace("\n", block["end"])

    first, last = f"<!-- {mark}:", f"<!-- /{mark} -->"
    pattern = re.compile(rf"({first} (?P<name>[^>\n]*?) -->(?P<end>\r?\n))(?P<text>.*?)(?={last})", re.DOTALL)
    blocks = list(pattern.finditer(text))
    nested = any(first in block["text"] for block in blocks)
    if nested or not len(blocks) == text.count(first) == text.count(last):
        raise ConfigurationError(
            f"{where}: a {mark} block is a line {first} NAME --> and, further down, a line {last}; one of them is missing"
        )
    return pattern.sub(replaced, text)


def put_plots(made: Path, out: Path, summary: Path, *, overwrite: bool) -> list[str]:
    """Move plots to the folder of a report; those that an earlier report left there go, and nothing else does.

    Args:
        made: a folder with nothing but the plots.
        out: the report's folder.
        summary: the earlier report's JSON, whose `plots` are the names of its plots; there may be none.

    Returns:
        The names of the plots, for the JSON of this report.

    Raises:
        ConfigurationError: a file of such a name exists and is not to be replaced.
    """
    names = sorted(path.name for path in made.glob("*.png"))
    check_files(names, out, overwrite=overwrite)
    try:
        known = json.loads(summary.read_text(encoding="utf-8"))
        earlier = {name for name in known.get("plots", ()) if Path(name).name == name and name.endswith(".png")}
    except (OSError, ValueError, AttributeError, TypeError):
        earlier = set()
    for name in earlier:
        (out / name).unlink(missing_ok=True)
    for name in names:
        os.replace(made / name, out / name)
    return names


def check_files(names: Iterable[str], out: Path, *, overwrite: bool) -> None:
    """Raise `ConfigurationError` if files of these names cannot be written to a folder; changes nothing."""
    check_folder_place(out)
    for name in names:
        if (out / name).exists() and not overwrite:
            raise ConfigurationError(f"{out / name} exists; pass --overwrite to replace it")


def read_markdown(path: Path, mark: str = STUDY) -> str:
    """The text of a Markdown file, line ends as they are.

    Raises:
        ConfigurationError: it cannot be read, or holds no block of that mark.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: is not UTF-8 text") from error
    if f"<!-- {mark}:" not in text:
        raise ConfigurationError(f"{path}: has no line <!-- {mark}: NAME --> to write a table after")
    return text
