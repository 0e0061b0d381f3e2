"""One reader for any data a user has: evals JSONL, CSV, TSV, Parquet, JSON, a Hugging Face data set.

read_examples("val.jsonl")                                            evals JSONL, recognised by its fields
read_examples("quiz.csv", ColumnMapping("question", "right", choices=("a", "b", "c")), domain="quiz")
read_examples("hf:owner/name", ColumnMapping("{context}\\n{question}", "label", "answers", answer_as="index"),
              split="validation")
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import PurePath
from typing import Any

from iclm.data.evals import example_from_row
from iclm.data.example import Example
from iclm.data.sources.delimited import DELIMITERS, delimited_rows
from iclm.data.sources.hub import hub_name, hub_rows
from iclm.data.sources.jsonl import json_rows, jsonl_rows
from iclm.data.sources.lines import MAX_LINE_BYTES
from iclm.data.sources.mapping import ColumnMapping, type_name
from iclm.data.sources.parquet import parquet_rows
from iclm.data.sources.rows import Row, examples_from_rows
from iclm.errors import ConfigurationError, DataError

TABLES = (".csv", ".tsv", ".parquet", ".jsonl", ".json")
DOMAIN_BY = ("file", "format")
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")

Source = str | os.PathLike[str]


def read_table(
    path: Source,
    mapping: ColumnMapping,
    *,
    domain: str | None = None,
    limit: int | None = None,
    delimiter: str | None = None,
    max_line_bytes: int = MAX_LINE_BYTES,
) -> list[Example]:
    """Read the examples of a table: .csv, .tsv, .parquet, .jsonl or .json.

    Args:
        path: the file; its kind is told by the end of its name.
        mapping: which columns make an example.
        domain: domain of every example; by default the row's own, if the mapping names its column.
        limit: read at most this many examples; rows after them are not looked at.
        delimiter: what stands between two columns of a .csv or .tsv file, if not the usual.
        max_line_bytes: the longest line (CSV, JSONL) or object (JSON) that is read.

    Returns:
        The examples in file order; `source` is "file:line", or "file:row N" for Parquet.

    Raises:
        ConfigurationError: an argument cannot be used, or a package is missing.
        DataError: the file or a row of it cannot be used; the message names the file and the line.
    """
    return list(
        iter_table(path, mapping, domain=domain, limit=limit, delimiter=delimiter, max_line_bytes=max_line_bytes)
    )


def iter_table(
    path: Source,
    mapping: ColumnMapping,
    *,
    domain: str | None = None,
    limit: int | None = None,
    delimiter: str | None = None,
    max_line_bytes: int = MAX_LINE_BYTES,
) -> Iterator[Example]:
    """As `read_table`, but one example at a time, in constant memory."""
    _check_limit(limit)
    if not isinstance(mapping, ColumnMapping):
        raise ConfigurationError(f"mapping is {mapping!r}; it must be a ColumnMapping")
    rows = _table_rows(path, mapping, delimiter, max_line_bytes)
    return islice(_some(examples_from_rows(rows, mapping, domain=domain), path), limit)


def read_examples(source: Source, mapping: ColumnMapping | None = None, **options: Any) -> list[Example]:
    """Read the examples of a file, a folder or a data set on the hub; options as in `iter_examples`."""
    return list(iter_examples(source, mapping, **options))


def iter_examples(
    source: Source,
    mapping: ColumnMapping | None = None,
    *,
    domain: str | None = None,
    domain_by: str | None = None,
    split: str | None = None,
    config: str | None = None,
    choices: Sequence[str] | None = None,
    limit: int | None = None,
    delimiter: str | None = None,
    max_line_bytes: int = MAX_LINE_BYTES,
) -> Iterator[Example]:
    """The examples of a file, a folder or a data set on the hub, one at a time, in constant memory.

    Args:
        source: a file (`TABLES`), a folder of a Hugging Face data set, or the name of one ("hf:NAME", "OWNER/NAME").
        mapping: which columns make an example; needed for all but evals JSONL.
        domain: domain of every example; by default its own column or field, if there is one.
        domain_by: how else the domain is told: "file" (the name of the file or data set) or "format" ("symbolic" or
            "text", by `prompt_format`).
        split: the split of a data set.
        config: the configuration of a data set.
        choices: the choices of evals lines that list none, for instance ("true", "false").
        limit: read at most this many examples.
        delimiter: what stands between two columns of a .csv or .tsv file, if not the usual.
        max_line_bytes: the longest line or object that is read.

    Returns:
        An iterator over the examples in order; each knows its `source`.

    Raises:
        ConfigurationError: an argument cannot be used, a mapping is needed, or a package is missing.
        DataError: the source or a row of it cannot be used; the message names both.
    """
    _check_limit(limit)
    if domain is not None and domain_by is not None:
        raise ConfigurationError("give `domain` or `domain_by`, not both")
    if domain_by is not None and domain_by not in DOMAIN_BY:
        raise ConfigurationError(
            f"domain_by is {domain_by!r}; it must be one of {' or '.join(DOMAIN_BY)}; a column is named in the mapping"
        )
    if mapping is not None and choices is not None:
        raise ConfigurationError("with a mapping, give the choices as its `fixed_choices`")
    if choices is not None and (isinstance(choices, str) or not all(isinstance(choice, str) for choice in choices)):
        raise ConfigurationError(f"choices is {choices!r}; it must be a list of texts")
    if domain_by == "file":
        domain = _stem(source)
    if _is_dataset(source):
        if mapping is None:
            raise ConfigurationError(f"{os.fspath(source)}: a data set needs a mapping of its columns")
        found = examples_from_rows(hub_rows(source, mapping, split=split, config=config), mapping, domain=domain)
    elif split is not None or config is not None:
        raise ConfigurationError(f"{os.fspath(source)}: split and config are for data sets, not for files")
    elif mapping is None:
        found = _evals(source, domain, choices, max_line_bytes)
    else:
        found = examples_from_rows(_table_rows(source, mapping, delimiter, max_line_bytes), mapping, domain=domain)
    if domain_by == "format":
        found = (dataclasses.replace(example, domain=prompt_format(example)) for example in found)
    return islice(_some(found, source), limit)


def prompt_format(example: Example) -> str:
    """The format of a prompt: "text" if at least half of its words have two letters or more, else "symbolic".

    A first message of several, which mostly is an instruction in words whatever the format, is not counted.
    """
    messages = example.messages[1:] or example.messages
    words = [word for message in messages for word in re.findall(r"\w+", message.content)]
    spelled = sum(len(word) > 1 and word.isalpha() for word in words)
    return "text" if words and 2 * spelled >= len(words) else "symbolic"


def _table_rows(path: Source, mapping: ColumnMapping, delimiter: str | None, max_line_bytes: int) -> Iterator[Row]:
    """The rows of a table by the end of its name."""
    kind = PurePath(path).suffix.lower()
    if delimiter is not None and kind not in DELIMITERS:
        raise ConfigurationError(f"{os.fspath(path)}: a delimiter is for .csv and .tsv files")
    if kind in DELIMITERS:
        return delimited_rows(path, mapping, delimiter=delimiter, max_line_bytes=max_line_bytes)
    if kind == ".parquet":
        return parquet_rows(path, mapping)
    if kind == ".jsonl":
        return jsonl_rows(path, max_line_bytes=max_line_bytes)
    if kind == ".json":
        return json_rows(path, max_line_bytes=max_line_bytes)
    raise _no_table(path)


def _no_table(path: Source) -> ConfigurationError | DataError:
    """What is wrong with a name that is none of a table."""
    if not os.path.exists(path):
        return DataError(f"{os.fspath(path)}: no such file; for a data set on the hub, write hf:NAME")
    packed = ", and be unpacked first" if PurePath(path).suffix.lower() in _PACKED else ""
    return ConfigurationError(f"{os.fspath(path)}: the name must end in one of {', '.join(TABLES)}{packed}")


def _evals(path: Source, domain: str | None, choices: Sequence[str] | None, max_line_bytes: int) -> Iterator[Example]:
    """The examples of an evals file; what has another form is refused, naming its columns."""
    kind = PurePath(path).suffix.lower()
    if kind not in (".jsonl", ".json"):
        if kind not in TABLES:
            raise _no_table(path)
        raise ConfigurationError(
            f"{os.fspath(path)}: a table needs a mapping of its columns (columns, or --columns), such as "
            "{prompt: question, answer: right}; only evals JSONL has none"
        )
    read = json_rows if kind == ".json" else jsonl_rows
    rows = read(path, max_line_bytes=max_line_bytes)
    first = next(rows, None)
    if first is None:
        return iter(())
    if "input" not in first[1] and "messages" not in first[1]:
        columns = ", ".join(f"`{column}`" for column in first[1])
        raise ConfigurationError(
            f"{first[0]}: not in evals form (`input` and `ideal`) and no conversation (`messages`); give a mapping of the columns {columns}"
        )
    return (
        example_from_row(_published(row, choices, source), source=source, domain=domain)
        for source, row in chain([first], rows)
    )


def _published(row: Mapping[str, Any], choices: Sequence[str] | None, source: str) -> dict[str, Any]:
    """An evals row as its reader takes it: published files also have `type` as an object of flags (LogiQA 2)."""
    fields = dict(row)
    if "messages" in fields and "input" not in fields and "ideal" not in fields:
        fields["input"], fields["ideal"] = _conversation(fields.pop("messages"), source)
    listed = fields.get("choice_strings")
    if isinstance(listed, list) and "ideal" in fields:
        kinds = {type_name(value) for value in [*listed, fields["ideal"]]}
        if kinds == {"text", "an integer"}:
            raise DataError(f"{source}: `choice_strings` and `ideal` mix text and integers; all must be of one type")
    if isinstance(fields.get("type"), dict):
        fields["type"] = " + ".join(str(name) for name, holds in fields["type"].items() if holds) or None
    if choices is not None and "choice_strings" not in fields:
        fields["choice_strings"] = list(choices)
    return fields


def _conversation(messages: Any, source: str) -> tuple[list[Any], str]:
    """What a conversation asks, and its last turn, which is the assistant's and the answer."""
    last = messages[-1] if isinstance(messages, list) and messages else None
    if not isinstance(last, dict) or last.get("role") != "assistant" or not isinstance(last.get("content"), str):
        raise DataError(
            f"{source}: `messages` must be a conversation that ends with a turn of role assistant, whose content is the answer"
        )
    if len(messages) == 1:
        raise DataError(f"{source}: `messages` is an answer to nothing; a turn of another role must come before it")
    for number, turn in enumerate(messages[:-1]):
        if not isinstance(turn, dict) or not all(isinstance(turn.get(key), str) for key in ("role", "content")):
            raise DataError(
                f'{source}: `messages` must be a list of {{"role": ..., "content": ...}} objects with texts; turn {number} is not one'
            )
    return messages[:-1], last["content"]


def _some(examples: Iterator[Example], source: Source) -> Iterator[Example]:
    """The examples, of which there must be at least one."""
    found = False
    for example in examples:
        found = True
        yield example
    if not found:
        raise DataError(f"{os.fspath(source)}:1: there are no examples; the file or split is empty")


def _is_dataset(source: Source) -> bool:
    """Whether a source is a folder or the name of a data set on the hub."""
    name = os.fspath(source)
    return os.path.isdir(name) or (
        not os.path.exists(name) and PurePath(name).suffix.lower() not in TABLES and hub_name(name) is not None
    )


def _stem(source: Source) -> str:
    return PurePath(os.fspath(source).removeprefix("hf:")).stem


def _check_limit(limit: int | None) -> None:
    if limit is not None and (type(limit) is not int or limit < 1):
        raise ConfigurationError(f"limit is {limit!r}; it must be a positive integer, or None for all")
