"""Rows of Parquet files, read a batch at a time and only in the columns that are needed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from iclm.data.files import open_for_reading
from iclm.data.sources.mapping import ColumnMapping, missing_column
from iclm.data.sources.optional import import_optional
from iclm.data.sources.rows import Row
from iclm.errors import DataError

_BATCH_ROWS = 256


def parquet_rows(path: str | os.PathLike[str], mapping: ColumnMapping) -> Iterator[Row]:
    """The rows of a Parquet file.

    Args:
        path: the file.
        mapping: the columns that must be there; no others are read.

    Yields:
        "file:row N", counted from 1, and the cells of each row.

    Raises:
        ConfigurationError: pyarrow is not installed.
        DataError: this is no Parquet file, or a column is missing.
    """
    name = os.fspath(path)
    parquet = import_optional("pyarrow.parquet", f"reading {name}")
    arrow = import_optional("pyarrow", f"reading {name}")
    with open_for_reading(path) as stream:
        try:
            file = parquet.ParquetFile(stream)
            names = file.schema_arrow.names
            columns = list(dict.fromkeys(_top(column, names, name) for column in mapping.columns))
            row = 0
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
                for cells in _cells(batch, name, row):
                    row += 1
                    yield f"{name}:row {row}", cells
        except (arrow.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(f"{name}: not a usable Parquet file: {reason}") from error


def _cells(batch: Any, name: str, before: int) -> Iterator[dict[str, Any]]:
    """The rows of a batch; `before` rows of the file come before it."""
    for number in range(batch.num_rows):
        try:
            yield {field.name: _cell(batch.column(i)[number], field) for i, field in enumerate(batch.schema)}
        except UnicodeDecodeError as error:
            raise DataError(f"{name}:row {before + number + 1}: not UTF-8") from error


def _cell(value: Any, field: Any) -> Any:
    """A cell as Python has it; the number 0.1 of 16 or 32 bits is 0.1, not what it is rounded to."""
    number = value.as_py()
    narrow = {"halffloat": np.float16, "float": np.float32}.get(str(field.type))
    return number if narrow is None or number is None else float(str(narrow(number)))


def _top(column: str, names: list[str], file: str) -> str:
    """The column of the file that holds a column, which may be nested ("choices.text")."""
    if column in names:
        return column
    top = column.split(".")[0]
    if top not in names:
        raise DataError(f"{file}: {missing_column(column, names)}")
    return top
