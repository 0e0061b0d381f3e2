"""The generator: equivalence classes in random order, each with hypotheses about its pairs of variables.

A class of v variables has 6 v (v - 1) / 2 hypotheses: for each pair, in the order of the premise, the six relations. As
in the published files, ancestors and descendants are worded either way round by the toss of a coin.

The published premises name the variables so that causes come first. There "B directly causes A" is never valid, which
tells the answer without the premise; so the names are shuffled here unless asked otherwise (`labelling="upward"`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations, count, islice
from random import Random

from iclm.data.corr2cause.classes import EquivalenceClass, check_variables, equivalence_classes
from iclm.data.corr2cause.graphs import bits
from iclm.data.corr2cause.relations import MIRRORED, RELATIONS
from iclm.data.corr2cause.render import WORDINGS, check_variant, make_example, render_hypothesis, render_premise
from iclm.data.draws import sample, shuffled, stream
from iclm.data.example import Example
from iclm.errors import ConfigurationError

LABELLINGS = ("shuffled", "upward")
SPLITS = ("train", "val", "test")
_PER_CLASS = 6

Hypothesis = tuple[str, int, int]
"""A relation, and the positions of x and y in the premise: x is that to y."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is generated from which classes.

    Args:
        classes: the classes, in ascending order of their size.
        variant: wording and names.
        balanced: as many valid as invalid hypotheses of each class.
        labelling: "shuffled" or "upward".
        per_class: hypotheses of a class before the next one comes; None for all.
    """

    classes: tuple[EquivalenceClass, ...]
    variant: str
    balanced: bool
    labelling: str
    per_class: int | None

    def of_class(self, chosen: EquivalenceClass) -> int:
        """Number of examples that one visit to a class gives."""
        size = chosen.variables
        total = len(RELATIONS) * size * (size - 1) // 2
        if self.balanced:
            # A relation and its mirror image are about the same pair, and only one of the two orders is asked.
            valid = sum(mask.bit_count() for mask in chosen.entailed.values()) // 2
            half = min(valid, total - valid)
            return 2 * (half if self.per_class is None else min(half, self.per_class // 2))
        return total if self.per_class is None else min(total, self.per_class)

    def total(self) -> int:
        """Number of examples that one visit to every class gives."""
        return sum(self.of_class(chosen) for chosen in self.classes)


def plan(
    variables: int | Iterable[int],
    n: int | None,
    variant: str = "official",
    balanced: bool = False,
    *,
    labelling: str = "shuffled",
    split: str | None = None,
    per_class: int | None = None,
) -> Plan:
    """Check the arguments of `generate` and gather the classes.

    Args:
        variables: as in `generate`, like the following.
        n: number of examples, or None.
        variant: wording and names.
        balanced: as many valid as invalid hypotheses.
        labelling: names of the variables.
        split: which classes.
        per_class: hypotheses of a class.

    Returns:
        The plan.

    Raises:
        ConfigurationError: an argument cannot be used.
    """
    sizes = check_sizes(variables)
    check_variant(variant)
    if n is not None and (type(n) is not int or n < 1):
        raise ConfigurationError(f"the number of examples is {n!r}; it must be a positive integer, or None for all")
    if labelling not in LABELLINGS:
        raise ConfigurationError(f"labelling is {labelling!r}; it must be one of {', '.join(LABELLINGS)}")
    if split is not None and split not in SPLITS:
        raise ConfigurationError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}, or None for all classes")
    least = 2 if balanced else 1
    if per_class is not None and (type(per_class) is not int or per_class < least):
        raise ConfigurationError(f"per_class is {per_class!r}; it must be an integer of {least} or more, or None")
    classes = tuple(c for size in sizes for c in equivalence_classes(size) if split in (None, split_of(c)))
    limit = _PER_CLASS if per_class is None and n is not None else per_class
    made = Plan(classes, variant, balanced, labelling, limit)
    if not made.total():
        what = "no hypothesis is valid in" if classes else "there is no class among"
        where = f"the {split} classes" if split else "the classes"
        raise ConfigurationError(f"{what} {where} of {', '.join(map(str, sizes))} variables; take more variables")
    return made


def generate(
    variables: int | Iterable[int],
    n: int | None,
    seed: int,
    variant: str = "official",
    balanced: bool = False,
    *,
    labelling: str = "shuffled",
    split: str | None = None,
    per_class: int | None = None,
    domain: str | None = None,
) -> Iterator[Example]:
    """Generate examples; the variants of one seed ask the same questions in different words.

    Args:
        variables: number of variables, 2 to 6, or several such numbers, for instance `range(2, 6)`.
        n: number of examples; None for every hypothesis of every class once.
        seed: any integer; it sets the order of classes and hypotheses, and the shuffled names.
        variant: "official", "renamed" or "paraphrased".
        balanced: as many valid as invalid hypotheses of each class; classes without a valid one are left out.
        labelling: "shuffled", or "upward" for the published order of names, causes first.
        split: "train" (80 % of the classes), "val" or "test" (10 % each), the same for every seed; None for all.
        per_class: hypotheses of a class before the next one comes; by default 6, or all if `n` is None.
        domain: domain of the examples.

    Returns:
        An iterator in constant memory. Examples of a class come one after the other and share their `group` and all
        but the last message; `kind` is the relation as worded. If `n` is more than the classes give, they come again
        with other names and hypotheses, and of the same `group`.

    Raises:
        ConfigurationError: an argument cannot be used, or nothing fits (`balanced` needs 3 variables or more).
    """
    made = plan(variables, n, variant, balanced, labelling=labelling, split=split, per_class=per_class)
    if type(seed) is not int:
        raise ConfigurationError(f"seed is {seed!r}; it must be an integer")
    return islice(_examples(made, seed, domain, once=n is None), n)


def check_sizes(variables: int | Iterable[int]) -> list[int]:
    """The numbers of variables in ascending order, or a `ConfigurationError` unless each is 2 to 6."""
    given = list(variables) if isinstance(variables, Iterable) else [variables]
    if not given:
        raise ConfigurationError("variables is empty; give a number of variables, 2 to 6, or several")
    return sorted({check_variables(size) for size in given})


def split_of(chosen: EquivalenceClass) -> str:
    """The split to which a class belongs, a fixed function of its id."""
    place = stream("corr2cause-split", chosen.id).random()
    return "train" if place < 0.8 else "val" if place < 0.9 else "test"


def _examples(made: Plan, seed: int, domain: str | None, once: bool) -> Iterator[Example]:
    """All examples of one visit to every class, or of endless visits."""
    rng = stream("corr2cause", seed)
    number = 0
    for _ in range(1) if once else count():
        for chosen in shuffled(rng, made.classes):
            if not made.of_class(chosen):
                continue
            size = chosen.variables
            order = shuffled(rng, range(size)) if made.labelling == "shuffled" else list(range(size))
            # what is known of a class answers it in every visit, so that its questions are of one problem
            group = f"corr2cause-{chosen.id}"
            premise = render_premise(size, _independences(chosen, order), made.variant)
            for hypothesis, valid in _hypotheses(rng, made, chosen, order):
                relation, x, y = _worded(rng, hypothesis, made.variant)
                yield make_example(
                    premise,
                    render_hypothesis(relation, x, y, size, made.variant),
                    valid,
                    kind=relation,
                    group=group,
                    source=f"corr2cause-seed{seed}:{number}",
                    domain=domain,
                )
                number += 1


def _independences(chosen: EquivalenceClass, order: list[int]) -> Iterator[tuple[int, int, int]]:
    """The independences of a class whose variable i has place order[i]."""
    places = [sum(1 << order[node] for node in bits(mask)) for mask in range(1 << len(order))]
    for first, second, given in chosen.independences:
        low, high = sorted((order[first], order[second]))
        yield low, high, places[given]


def _hypotheses(
    rng: Random, made: Plan, chosen: EquivalenceClass, order: list[int]
) -> Iterator[tuple[Hypothesis, bool]]:
    """The hypotheses of one visit to a class, in random order, with their labels."""
    variable = {place: node for node, place in enumerate(order)}
    both: dict[bool, list[tuple[Hypothesis, bool]]] = {False: [], True: []}
    for x, y in combinations(range(chosen.variables), 2):
        for relation in RELATIONS:
            valid = chosen.valid(relation, variable[x], variable[y])
            both[valid].append(((relation, x, y), valid))
    wanted = made.of_class(chosen)
    if not made.balanced:
        yield from sample(rng, both[False] + both[True], wanted)
        return
    # Two by two, so that a cut anywhere leaves the labels balanced.
    for pair in zip(sample(rng, both[False], wanted // 2), sample(rng, both[True], wanted // 2), strict=True):
        yield from shuffled(rng, pair)


def _worded(rng: Random, hypothesis: Hypothesis, variant: str) -> Hypothesis:
    """The hypothesis, or the mirrored one where both wordings of ancestry are in use."""
    relation, x, y = hypothesis
    if relation in ("non-parent ancestor", "non-child descendant"):
        turned = rng.random() < 0.5
        if turned and WORDINGS[variant] is WORDINGS["official"]:
            return MIRRORED[relation], y, x
    return hypothesis
