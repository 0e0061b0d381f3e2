"""Rows of CSV and TSV files, streamed; a row is named by the line that it begins on, also after quoted line breaks."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import PurePath

from iclm.data.sources.lines import MAX_LINE_BYTES, bounded_lines, too_long
from iclm.data.sources.mapping import ColumnMapping, missing_column
from iclm.data.sources.rows import Row
from iclm.errors import ConfigurationError, DataError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
_SIGNS = ",;\t|"


def delimited_rows(
    path: str | os.PathLike[str],
    mapping: ColumnMapping,
    *,
    delimiter: str | None = None,
    max_line_bytes: int = MAX_LINE_BYTES,
) -> Iterator[Row]:
    """The rows of a CSV or TSV file with a header.

    Args:
        path: the file; UTF-8, quoted by double quotes, blank lines at the end are ignored.
        mapping: the columns that must be there.
        delimiter: what stands between two columns; None means what is usual by the end of the name, or where the header then
            is a single column, a comma, semicolon, tab or bar that parts it.
        max_line_bytes: the longest line, and the longest cell.

    Yields:
        "file:line" and the cells of each row, all of them text.

    Raises:
        ConfigurationError: the delimiter is not a single character.
        DataError: the header lacks a column, or a row cannot be used.
    """
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        raise ConfigurationError(f"delimiter is {delimiter!r}; it must be a single character, such as ',' or ';'")
    name = os.fspath(path)
    if delimiter is None:
        delimiter = _told_delimiter(name, mapping, max_line_bytes)
    records = _records(name, delimiter, max_line_bytes)
    _, header = next(records, (1, []))
    if not header:
        raise DataError(f"{name}:1: the first line is empty; it must hold the names of the columns")
    _check_header(name, header, mapping, delimiter)
    blank = 0
    for number, cells in records:
        if not cells:
            blank = blank or number
            continue
        if blank:
            raise DataError(f"{name}:{blank}: an empty line; each line must hold a row")
        if len(cells) != len(header):
            raise DataError(f"{name}:{number}: the row has {len(cells)} cells; the header has {len(header)} columns")
        yield f"{name}:{number}", dict(zip(header, cells, strict=True))


def _told_delimiter(name: str, mapping: ColumnMapping, limit: int) -> str:
    """What stands between the columns of a file, by its header."""
    usual = DELIMITERS.get(PurePath(name).suffix.lower(), ",")
    header = next(_records(name, usual, limit), (1, []))[1]
    if len(header) == 1 and header[0] not in mapping.columns:
        parted = {sign: len(next(_records(name, sign, limit))[1]) for sign in _SIGNS if sign in header[0]}
        return max(parted, key=lambda sign: parted[sign], default=usual)
    return usual


def _check_header(name: str, header: list[str], mapping: ColumnMapping, delimiter: str) -> None:
    repeated = sorted({column for column in header if header.count(column) > 1})
    if repeated:
        raise DataError(f"{name}:1: the column `{repeated[0]}` is there twice")
    for column in mapping.columns:
        if column not in header:
            hint = ""
            if len(header) == 1:
                other = [sign for sign in _SIGNS if sign != delimiter and sign in header[0]]
                hint = f"; the columns seem to be separated by {other[0]!r}: give that as delimiter" if other else ""
            raise DataError(f"{name}:1: {missing_column(column, header)}{hint}")


def _records(name: str, delimiter: str, limit: int) -> Iterator[tuple[int, list[str]]]:
    """Each record with the number of its first line."""
    reader = csv.reader(_text_lines(name, limit), delimiter=delimiter, strict=True)
    while True:
        number = reader.line_num + 1
        # The limit of a cell belongs to the whole process: it is ours only while a record is read.
        before = csv.field_size_limit(limit)
        try:
            record = next(reader, None)
        except csv.Error as error:
            reason = str(error)
            if "field larger than" in reason:
                reason = f"a cell is longer than {too_long(limit)}"
            elif "unexpected end of data" in reason:
                reason = "a quoted cell is not closed before the end of the file"
            raise DataError(f"{name}:{number}: {reason}") from error
        finally:
            csv.field_size_limit(before)
        if record is None:
            return
        yield number, record


def _text_lines(name: str, limit: int) -> Iterator[str]:
    for number, line in bounded_lines(name, limit):
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{name}:{number}: not UTF-8 (byte {error.start} of the line)") from error
