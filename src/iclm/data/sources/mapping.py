"""Which columns of a table make an example.

    ColumnMapping(prompt="{context}\\n{question}", answer="label", choices="answers", answer_as="index")

turns the row

    {"context": "All cats purr.", "question": "Does Tom purr?", "answers": ["no", "yes"], "label": 1}

into the prompt "All cats purr.\\nDoes Tom purr?" with the choices "no", "yes" and the answer "yes".
"""

from __future__ import annotations

import dataclasses
import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any

from iclm.data.example import Message
from iclm.errors import ConfigurationError, DataError

ANSWER_FORMS = ("text", "index", "letter")


@dataclass(frozen=True)
class ColumnMapping:
    """The columns that hold each part of an example.

    A column of a nested record is named with a dot, for instance "choices.text".

    Raises:
        ConfigurationError: a field cannot be used, or two fields contradict each other.
    """

    prompt: str
    """A column with the prompt (text, or a list of {"role", "content"} messages), or a template such as
    "{context}\\n{question}"; a brace in the text of a template is doubled."""

    answer: str
    """The column with the right answer."""

    choices: str | Sequence[str] | None = None
    """One column that holds a list (or the JSON text of a list), or several columns that hold one choice each; None
    if the answer is free."""

    fixed_choices: Sequence[str] | None = None
    """The choices of every example, where no column lists them, for instance ("true", "false")."""

    domain: str | None = None
    """The column with the name of the domain."""

    kind: str | None = None
    """The column with the type of the question."""

    group: str | None = None
    """The column with the id of the problem that the question belongs to."""

    answer_as: str = "text"
    """What the answer column holds: "text" (the answer itself), "index" (its number among the choices) or "letter"
    (A for the first choice, B for the second)."""

    first_index: int = 0
    """The number of the first choice where `answer_as` is "index"."""

    def __post_init__(self) -> None:
        for name in ("choices", "fixed_choices"):
            value = getattr(self, name)
            if isinstance(value, Sequence) and not isinstance(value, str):
                object.__setattr__(self, name, tuple(value))
        self._check()
        _template_fields(self.prompt)

    def _check(self) -> None:
        for name in ("prompt", "answer"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise ConfigurationError(f"mapping: `{name}` is {value!r}; it must name a column")
        for name in ("domain", "kind", "group"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise ConfigurationError(f"mapping: `{name}` is {value!r}; it must name a column, or be left out")
        if self.choices is not None and self.fixed_choices is not None:
            raise ConfigurationError("mapping: give `choices` (columns) or `fixed_choices` (values), not both")
        for name in ("choices", "fixed_choices"):
            value = getattr(self, name)
            right = "a column or a list of columns" if name == "choices" else "a list of texts"
            usable = (isinstance(value, str) and name == "choices") or isinstance(value, tuple)
            if value is not None and not (usable and value and all(isinstance(v, str) and v for v in value)):
                raise ConfigurationError(f"mapping: `{name}` is {value!r}; it must be {right}")
        if self.answer_as not in ANSWER_FORMS:
            raise ConfigurationError(
                f"mapping: `answer_as` is {self.answer_as!r}; it must be one of {', '.join(ANSWER_FORMS)}"
            )
        if self.answer_as != "text" and self.choices is None and self.fixed_choices is None:
            raise ConfigurationError(
                f"mapping: `answer_as` is {self.answer_as!r}, which needs `choices` or `fixed_choices`"
            )
        if type(self.first_index) is not int:
            raise ConfigurationError(f"mapping: `first_index` is {self.first_index!r}; it must be an integer")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ColumnMapping:
        """A mapping from the keys of a recipe; raises a `ConfigurationError` for a key that there is not."""
        known = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigurationError(f"mapping: there is no key `{key}`; the keys are {', '.join(known)}")
        for key in ("prompt", "answer"):
            if key not in values:
                raise ConfigurationError(f"mapping: the key `{key}` is missing; it names a column")
        return cls(**values)

    @property
    def is_template(self) -> bool:
        """Whether the prompt is a template, not a column."""
        return _template_fields(self.prompt) is not None

    @property
    def prompt_columns(self) -> tuple[str, ...]:
        """The columns that the prompt is made of."""
        return _template_fields(self.prompt) or (self.prompt,)

    @property
    def choice_columns(self) -> tuple[str, ...]:
        """The columns that the choices come from."""
        return (self.choices,) if isinstance(self.choices, str) else tuple(self.choices or ())

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that the mapping names, without repetition."""
        optional = [name for name in (self.domain, self.kind, self.group) if name is not None]
        return tuple(dict.fromkeys([*self.prompt_columns, self.answer, *self.choice_columns, *optional]))


def column(row: Mapping[str, Any], name: str, source: str) -> Any:
    """The value of a column, which may be nested ("choices.text"); raises a `DataError` if there is none."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if value is None:
            raise DataError(f"{source}: column `{name}` is empty")
        if not isinstance(value, Mapping) or part not in value:
            raise DataError(f"{source}: {missing_column(name, row)}")
        value = value[part]
    return value


def missing_column(name: str, columns: Any) -> str:
    """The message about a column that there is not."""
    names = [str(column) for column in columns]
    shown = ", ".join(f"`{column}`" for column in names[:20]) + (", ..." if len(names) > 20 else "")
    return f"there is no column `{name}`; the columns are {shown or 'none'}"


def to_text(value: Any, name: str, source: str) -> str:
    """A cell as text: strings as they are, numbers in their shortest form, booleans as "true" and "false".

    Raises:
        DataError: the cell is empty (null, not a number) or holds a list or an object.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return repr(value)
    if isinstance(value, Decimal) and value.is_finite():
        return format(value, "f")
    if value is None or isinstance(value, (float, Decimal)):
        raise DataError(f"{source}: column `{name}` is empty")
    raise DataError(f"{source}: column `{name}` holds {type_name(value)}; it must hold text or a number")


def to_messages(mapping: ColumnMapping, row: Mapping[str, Any], source: str) -> tuple[Message, ...]:
    """The prompt of a row: its list of messages, or its text as one message of the user."""
    if mapping.is_template:
        values = {name: to_text(column(row, name, source), name, source) for name in mapping.prompt_columns}
        return (Message("user", _fill(mapping.prompt, values)),)
    value = column(row, mapping.prompt, source)
    if not isinstance(value, list):
        return (Message("user", to_text(value, mapping.prompt, source)),)
    for number, item in enumerate(value):
        if not isinstance(item, Mapping) or not all(isinstance(item.get(key), str) for key in ("role", "content")):
            right = 'a list of {"role": ..., "content": ...} objects with texts'
            raise DataError(f"{source}: column `{mapping.prompt}` must hold text or {right}; item {number} is not one")
    return tuple(Message(item["role"], item["content"]) for item in value)


def type_name(value: Any) -> str:
    """What a user calls the type of a cell."""
    names = {str: "text", bool: "a boolean", int: "an integer", list: "a list"}
    names |= dict.fromkeys((float, Decimal), "a decimal number")
    return "nothing" if value is None else names.get(type(value), f"a {type(value).__name__}")


@lru_cache(maxsize=64)
def _template_fields(prompt: str) -> tuple[str, ...] | None:
    """The columns that a template names; None if the prompt names a column itself."""
    if "{" not in prompt and "}" not in prompt:
        return None
    try:
        parts = list(string.Formatter().parse(prompt))
    except ValueError as error:
        raise ConfigurationError(f"mapping: the template {prompt!r} cannot be used: {error}") from error
    names = []
    for _, name, spec, conversion in parts:
        if name is None:
            continue
        if not name or spec or conversion or any(sign in name for sign in "[]{}"):
            raise ConfigurationError(f"mapping: the template {prompt!r} may hold {{column}} and nothing more in braces")
        names.append(name)
    if not names:
        raise ConfigurationError(f"mapping: the template {prompt!r} names no column; write it as {{column}}")
    return tuple(dict.fromkeys(names))


def _fill(template: str, values: Mapping[str, str]) -> str:
    """A template with its columns filled in; unlike `str.format`, no attribute of a value can be reached."""
    filled = []
    for text, name, _, _ in string.Formatter().parse(template):
        filled.append(text)
        if name is not None:
            filled.append(values[name])
    return "".join(filled)
