"""What `iclm data audit` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from iclm.data.acre import FORMATS
from iclm.data.audit.report import AuditReport
from iclm.data.audit.run import audit
from iclm.data.audit.strategies import STRATEGIES
from iclm.data.example import Example
from iclm.data.loading import holds_problems, read_source
from iclm.errors import ConfigurationError
from iclm.recipe import DataSource, parse_columns


def audit_files(
    files: Sequence[str],
    *,
    format: str | None = None,
    objects: str = "official",
    tokenizer: Any = None,
    context: int | None = None,
    limit: int | None = None,
    columns: str | None = None,
    progress: Callable[[str, int], Callable[[int], None]] | None = None,
) -> AuditReport:
    """Audit files, each as a split.

    Args:
        files: FILE or NAME=FILE; the name of a split is else that of the file.
        format, objects: rendering of files of problems.
        tokenizer: counts tokens (anything that returns `input_ids`); None counts words.
        context: context length that the prompts are checked against.
        limit: only the first examples of each file.
        columns: which columns of tables make an example, as YAML.
        progress: makes a progress callback from a title and a total.

    Raises:
        ICLMError: a file or an option that cannot be used.
    """
    splits: dict[str, list[Example]] = {}
    if format not in (None, *FORMATS):
        raise ConfigurationError(f"format is {format!r}; use symbolic or text")
    mapping = parse_columns(columns)
    for argument in files:
        name, equals, path = ("", "", argument) if Path(argument).exists() else argument.partition("=")
        file = Path(path if equals else argument)
        name = name if equals else file.name
        if name in splits:
            raise ConfigurationError(f"two files are named {name!r}; write NAME={file} for one of them")
        rendered = format if holds_problems(file, mapping) else None
        source = {"file": file, "format": rendered, "objects": objects, "limit": limit, "columns": mapping}
        splits[name] = read_source(DataSource.model_validate(source))
    tick = progress("strategies", len(splits) * len(STRATEGIES)) if progress is not None else None
    return audit(splits, tokenizer=tokenizer, context=context, progress=None if tick is None else lambda title: tick(1))
