"""One example as every later part of the library sees it: a prompt, the choices, the answer.

A problem of any data set becomes an `Example` once it is read or generated. Training, evaluation and routing need no
more than this, so they know nothing about the format that the example came from.
"""

from __future__ import annotations

from dataclasses import dataclass
from reprlib import repr

from iclm.errors import DataError


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a prompt.

    Args:
        role: who speaks, for instance "system" or "user".
        content: the text, exactly as the file has it.
    """

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt with its answer.

    Args:
        messages: the turns of the prompt, at least one.
        choices: the possible answers; empty when the answer is free.
        answer: the right answer; one of `choices` where there are any.
        domain: name of the domain the example belongs to, if known.
        kind: type of the question within its data set, for instance "direct" or "potential" in ACRE.
        source: where the example comes from, "file:line" or a description of the generator.
        group: id of the problem the question belongs to; the four queries of an ACRE problem share it.
        per_token: the log-likelihood of a choice is the mean over its tokens; else their sum.
        chat: the prompt is written by the tokenizer's chat template; else the contents of the messages are joined by line ends.

    Raises:
        DataError: the example has no message, no answer, a repeated choice or an answer outside its choices.
    """

    messages: tuple[Message, ...]
    choices: tuple[str, ...]
    answer: str
    domain: str | None = None
    kind: str | None = None
    source: str | None = None
    group: str | None = None
    chat: bool = False
    per_token: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "messages", tuple(self.messages))
        object.__setattr__(self, "choices", tuple(self.choices))
        problem = self._problem()
        if problem:
            raise DataError(f"{self.source or 'example'}: {problem}")

    def _problem(self) -> str | None:
        """What is wrong with the example, or None."""
        if not self.messages:
            return "there are no messages; an example needs at least one"
        if not any(message.content.strip() for message in self.messages):
            return "all messages are blank; an example needs a prompt"
        if not isinstance(self.answer, str) or not self.answer:
            return f"the answer is {repr(self.answer)}; it must be a string that is not empty"
        for choice in self.choices:
            if not isinstance(choice, str) or not choice:
                return f"the choice {repr(choice)} is not a string with at least one character"
        if len(set(self.choices)) < len(self.choices):
            return f"the choices {list(self.choices)} hold the same choice twice"
        if self.choices and self.answer not in self.choices:
            return f"the answer {repr(self.answer)} is not one of the choices {list(self.choices)}"
        return None

    @property
    def prompt(self) -> str:
        """The messages' contents joined by line breaks; white space at the end of the last message is kept."""
        return "\n".join(message.content for message in self.messages)

    @property
    def answer_index(self) -> int:
        """Position of the answer among the choices.

        Raises:
            DataError: the example has no choices.
        """
        if not self.choices:
            raise DataError(f"{self.source or 'example'}: the answer is free, so it has no index among choices")
        return self.choices.index(self.answer)
