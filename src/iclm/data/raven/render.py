"""Problems as prompts: the text and symbolic renderings, multiple choice or open answer.

    symbolic   3. [(C, I, E, D, TL), (A, I, B, D, BR)]       size, color, type, angle, place; level n is a letter
    text       3. On an image, a medium pink hexagon rotated at 0 degrees in the top left.

Multiple choice shows the eight context panels as "1. " to "8. " and the answers as "A. " to "H. "; the answer is a
letter. Its bytes are those of the published conversion, white space included; the color words are arbitrary names of
the ten gray levels. Open answer leaves out the answers; the answer is the ninth panel as it would be shown. An open
question may still have the eight answers as its choices, of which the likeliest is taken, as Webb et al. (2023,
https://arxiv.org/abs/2212.09196) ask language models for matrices.
"""

from __future__ import annotations

from typing import Any

from iclm.data.evals import example_from_row
from iclm.data.example import Example
from iclm.data.raven.configurations import LEVELS, Configuration, configuration
from iclm.data.raven.problem import LETTERS, Entities, Panel, Problem
from iclm.errors import ConfigurationError

FORMATS = ("text", "symbolic")

_CHOICE = (
    "Find the pattern number 9 that completes the sequence. Pick the letter in front of the correct pattern that "
    "logically follows in the sequence from the answer set. Patterns in the sequence are preceded by a number from 1 "
    "to 8. Patterns in the answer set are preceded by a letter from A to H. Only return the letter in front of the "
    "correct pattern."
)
_OPEN = (
    "Find the pattern number 9 that completes the sequence. Write the correct pattern with the same format as in the "
    "examples. Patterns in the sequence are preceded by a number from 1 to 8."
)
_ASK = "The answer is "

_SIZES = ("tiny", "small", "medium", "large", "huge", "giant")
_COLORS = ("red", "orange", "yellow", "lime", "green", "cyan", "blue", "purple", "pink", "white")
SYMBOLS = "ABCDEFGHIJ"

# By number of slots; one slot has no place.
_PLACES: dict[int, tuple[str, ...]] = {
    1: ("",),
    4: (" in the top left", " in the top right", " in the bottom left", " in the bottom right"),
    9: (
        " in the top left",
        " in the top center",
        " in the top right",
        " in the center left",
        " in the center",
        " in the center right",
        " in the bottom left",
        " in the bottom center",
        " in the bottom right",
    ),
}
CODES: dict[int, tuple[str, ...]] = {
    1: ("",),
    4: (" TL", " TR", " BL", " BR"),
    9: (" TL", " TC", " TR", " CL", " C", " CR", " BL", " BC", " BR"),
}
_LINE = "-" * 15

# Text before the components of a structure, and before each of them.
_WORDS: dict[str, tuple[str, ...]] = {
    "Singleton": ("", ""),
    "Left_Right": (
        "a first figure is displayed on the left and a second is displayed on the right. ",
        "On the left: ",
        "On the right: ",
    ),
    "Up_Down": ("a first figure is displayed above and a second is displayed below. ", "Above: ", "Below: "),
    "Out_In": ("a second figure is displayed inside a first one. ", "Outside: ", "Inside: "),
}
# Between the components of a structure, and after them.
_MARKS: dict[str, tuple[str, str]] = {
    "Singleton": ("", ""),
    "Left_Right": ("| ", ""),
    "Up_Down": (f"\n{_LINE}\n", ""),
    "Out_In": (f"\n{_LINE}\n", f"\n{_LINE}"),
}


def render(
    problem: Problem, format: str = "text", open: bool = False, *, choices: bool = False, extras: bool = False
) -> dict[str, Any]:
    """Render a problem as an evals row.

    Args:
        problem: the problem.
        format: "text" or "symbolic".
        open: ask for the ninth panel itself, without showing answers.
        choices: give an open question the panels of the answers as choices; the published form has none.
        extras: add `type` (the configuration) and `group` (configuration and id, if the problem has one).

    Returns:
        A row with the keys `input`, `choice_strings` (where there are choices) and `ideal`.

    Raises:
        ConfigurationError: there is no such format.
    """
    if format not in FORMATS:
        raise ConfigurationError(f"format is {format!r}; it must be one of {', '.join(FORMATS)}")
    spec = configuration(problem.config)
    shown = [panel_text(spec, panel, format) for panel in problem.panels]
    messages = [{"role": "system", "content": _OPEN if open else _CHOICE}]
    names = "12345678" if open else "12345678" + LETTERS
    messages += [{"role": "user", "content": f"{name}. {text}"} for name, text in zip(names, shown, strict=False)]
    messages.append({"role": "user", "content": _ASK})
    row: dict[str, Any] = {"input": messages}
    if open:
        if choices:
            row["choice_strings"] = shown[8:]
        row["ideal"] = shown[8 + problem.target]
    else:
        row |= {"choice_strings": list(LETTERS), "ideal": problem.letter}
    if extras:
        row["type"] = problem.config
        if problem.id is not None:
            # The published configurations number their problems alike.
            row["group"] = f"{problem.config}:{problem.id}"
    return row


def examples(
    problem: Problem, format: str = "text", open: bool = False, *, choices: bool = False, domain: str | None = None
) -> list[Example]:
    """Render a problem as examples: a list of one, for a problem asks one question.

    Args:
        problem: the problem.
        format: "text" or "symbolic".
        open: ask for the ninth panel itself.
        choices: give an open question the panels of the answers as choices.
        domain: domain of the example.

    Returns:
        One example; `kind` is the configuration, `group` that and the problem's id.

    Raises:
        ConfigurationError: there is no such format.
    """
    row = render(problem, format, open, choices=choices, extras=True)
    return [example_from_row(row, source=f"{problem.config} {problem.id or 'problem'}", domain=domain)]


def panel_text(spec: Configuration, panel: Panel, format: str) -> str:
    """A panel as it is shown, without its number or letter."""
    parts = zip(spec.components, panel, strict=True)
    if format == "symbolic":
        between, after = _MARKS[spec.structure]
        return between.join(_symbols(entities, len(part.slots)) for part, entities in parts) + after
    start, *names = _WORDS[spec.structure]
    figures = (_sentence(entities, len(part.slots)) for part, entities in parts)
    return f"On an image, {start}" + "".join(name + figure for name, figure in zip(names, figures, strict=True))


def _symbols(entities: Entities, slots: int) -> str:
    """The entities of a component in symbols."""
    codes, letters = CODES[slots], SYMBOLS
    figures = ", ".join(
        f"({letters[size]}, {letters[color]}, {letters[kind]}, {letters[angle]},{codes[slot]})"
        for slot, kind, size, color, angle in entities
    )
    return f"[{figures}] "


def _sentence(entities: Entities, slots: int) -> str:
    """The entities of a component in words."""
    places, types, angles = _PLACES[slots], LEVELS["Type"], LEVELS["Angle"]
    figures = ", ".join(
        f"a {_SIZES[size]} {_COLORS[color]} {types[kind]} rotated at {angles[angle]} degrees{places[slot]}"
        for slot, kind, size, color, angle in entities
    )
    return f"{figures}. "
