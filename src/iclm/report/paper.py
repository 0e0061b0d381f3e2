"""What the paper reports of its own models: figures of theirs, of another model and size, to stand in a column of their own.

Gendron et al., "Can Large Language Models Learn Independent Causal Mechanisms?", EMNLP 2024, arXiv 2402.02636.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "paper (LLaMA-2 7B, an o.o.d. split of ACRE)"


@dataclass(frozen=True)
class PaperFigure:
    """An accuracy of the paper.

    Attributes:
        label: what it is of.
        accuracy: the share of right answers; None where the paper has none.
        ours: what of a study stands beside it: "iclm", "reference", "invariant", or "module", the best single module.
    """

    label: str
    accuracy: float | None
    ours: str


FIGURES = (
    PaperFigure("ICLM", 0.8167, "iclm"),
    PaperFigure("fine-tuned without modules (theirs: the whole model)", 0.7435, "reference"),
    PaperFigure("the invariant module of an ICLM alone", None, "invariant"),
    PaperFigure("the single module of an ICLM that is best on these questions", 0.8645, "module"),
)
