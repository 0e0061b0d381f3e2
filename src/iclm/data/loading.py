"""From the sources of a recipe to examples and to packs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from iclm.data import acre, corr2cause, pvr, raven
from iclm.data.collation import EncodedExample, Pack, encode, training_packs
from iclm.data.example import Example
from iclm.data.files import open_for_reading, sha256_of
from iclm.data.sources import ColumnMapping, read_examples
from iclm.errors import ConfigurationError, DataError
from iclm.recipe import DataSource, SectionT


def read_source(source: DataSource, otherwise: str | None = None) -> list[Example]:
    """The examples of one source, each with its domain.

    Args:
        otherwise: the domain of rows for which neither they nor the source name one; None means the name of the file or data set.

    Raises:
        DataError, ConfigurationError: a file or an option that cannot be used.
    """
    return _named(source, _examples(source), otherwise)


def _examples(source: DataSource) -> list[Example]:
    """The examples of a source, without a domain where neither source nor row names one."""
    return _generated(source) if source.generated else _read(source)


def _named(source: DataSource, found: list[Example], otherwise: str | None = None) -> list[Example]:
    """The examples with what the source says of all of them: the domain of those that name none, chat and score."""
    if any(example.domain is None for example in found):
        name = otherwise or (str(source.dataset) if source.file is None else source.file.stem)
        found = [replace(example, domain=name) if example.domain is None else example for example in found]
    if not source.chat and source.score == "sum":
        return found
    return [replace(example, chat=source.chat, per_token=source.score == "mean") for example in found]


def _read(source: DataSource) -> list[Example]:
    """The examples of a source that is a file or a data set."""
    place: Path | str = source.file if source.file is not None else str(source.dataset)
    if source.file is not None and source.sha256 not in (None, sha256_of(source.file)):
        raise DataError(
            f"{place} has another content than that whose sha256 is {source.sha256}: it has changed since that was noted, or is "
            "another file"
        )
    kind = problem_kind(source.file) if source.file is not None and source.columns is None else None
    if source.ask == "panel" and kind != "RAVEN":
        raise ConfigurationError(f"{place} holds no RAVEN problems; ask: panel is for those, leave it out")
    if kind is not None:
        if source.format is None:
            raise ConfigurationError(f"{place} holds {kind} problems; say how to render them: format symbolic or text")
        if kind == "ACRE":
            read = acre.read_problems(place)[: source.problems]
            found = _render(read, source, acre.examples, objects=source.objects, seed=source.seed)
        else:
            panels = islice(raven.iter_problems(place), source.problems)
            found = _render(panels, source, raven.examples, **_asked(source))
    else:
        for field, right in (
            ("problems", "limit says how many examples are read"),
            ("format", "rows are taken as they are"),
        ):
            if getattr(source, field) is not None:
                raise ConfigurationError(f"{place} holds no ACRE or RAVEN problems; {field} is for those: {right}")
        mapping = None if source.columns is None else ColumnMapping.from_dict(source.columns)
        options = {} if source.file is not None else {"split": _split(source), "config": source.config}
        found = read_examples(
            place, mapping, domain=source.domain, choices=source.choices, limit=source.limit, **options
        )
    return found


def _split(source: DataSource) -> str | None:
    """The split of a data set; None for a folder that was saved without splits, unless a certain one is asked for."""
    unsaid = source.split == DataSource.model_fields["split"].default
    return None if unsaid and Path(str(source.dataset), "state.json").is_file() else source.split


def pinned(source: DataSource) -> DataSource:
    """The source with the SHA-256 of its file noted; as it is where that is noted, there is no file, or it cannot be read."""
    if source.file is None or source.sha256 is not None:
        return source
    try:
        return source.model_copy(update={"sha256": sha256_of(source.file)})
    except DataError:
        return source  # who reads it says what is wrong


def with_pinned(section: SectionT, *fields: str) -> SectionT:
    """A part of a recipe with the SHA-256 of every file noted in those of its fields that hold sources."""
    return section.model_copy(update={field: [*map(pinned, getattr(section, field))] for field in fields})


def _generated(source: DataSource) -> list[Example]:
    """The examples of a source that is generated."""
    count, seed, split = source.problems or 0, source.seed, source.split
    if source.acre is not None:
        problems = acre.generate(source.acre, split, count, seed)
        return _render(problems, source, acre.examples, objects=source.objects, seed=seed)
    if source.raven is not None:
        made = raven.generate(source.raven, source.answers, count, seed, split)
        return _render(made, source, raven.examples, **_asked(source))
    if source.corr2cause is not None:
        domain = source.domain or "corr2cause"
        asked = corr2cause.generate(
            source.variables, count, seed, source.corr2cause, source.balanced, split=split, domain=domain
        )
    else:
        domain, shift = source.domain or "pvr", source.shift
        asked = pvr.examples(source.complexity, str(source.pvr), split, count, seed, shift=shift, domain=domain)
    return list(islice(asked, source.limit))


def _asked(source: DataSource) -> dict[str, bool]:
    """What a RAVEN source asks for, as options of its rendering."""
    panel = source.ask == "panel"
    return {"open": panel, "choices": panel}


def distribution(source: DataSource) -> str | None:
    """What generated problems are drawn from, whatever their split and rendering; None where none are generated.

    Such as "ACRE Comp", "RAVEN center_single", "CORR2CAUSE renamed" (followed by the numbers of variables where they are
    not the default ones) and "PVR mod_sum-1" (complexity 1), of which the split holdout has a distribution of its own.
    """
    if source.acre is not None:
        return f"ACRE {source.acre}"
    if source.raven is not None:
        return f"RAVEN {source.raven}"
    if source.corr2cause is not None:
        sizes = sorted(set(source.variables))
        usual = sizes == DataSource.model_fields["variables"].default
        return f"CORR2CAUSE {source.corr2cause}" + ("" if usual else f" {','.join(map(str, sizes))}")
    if source.pvr is not None:
        return f"PVR {source.pvr}-{source.complexity}" + (" holdout" if source.split == "holdout" else "")
    return None


def overlap(one: DataSource, other: DataSource) -> bool:
    """Whether two sources can ask the same problems, however many of them and in whatever rendering, wording or answer set.

    Generated problems are the same where what they are drawn from, split and seed are; of CORR2CAUSE, which has few, whatever
    the seeds. Files are the same by name, and by content where that is noted (`pinned`), data sets by name, configuration and split.

    Raises:
        ConfigurationError: there is no such configuration of RAVEN.
    """
    return not _pools(one).isdisjoint(_pools(other))


def _pools(source: DataSource) -> set[tuple[Any, ...]]:
    """What the problems of a source are taken from."""
    if source.acre is not None:
        return {("ACRE", source.acre, source.split, source.seed)}
    if source.raven is not None:
        return {("RAVEN", raven.configuration(source.raven).name, source.split, source.seed)}
    if source.corr2cause is not None:
        return {("CORR2CAUSE", size, source.split) for size in source.variables}
    if source.pvr is not None:
        return {("PVR", source.pvr, source.complexity, source.split, source.seed)}
    if source.file is not None:
        named = {("file", source.file.resolve())}
        return named if source.sha256 is None else named | {("content", source.sha256)}
    return {("data set", str(source.dataset).removeprefix("hf:"), source.config, source.split)}


def refuse_trained(
    where: str, sources: Iterable[DataSource], training: Iterable[DataSource], seeds: Iterable[int], whose: str
) -> None:
    """Raise ValueError, which begins with `where`, for the first source whose problems a training asks.

    Args:
        training, seeds: as of `trained_on`.
        whose: the seeds are, in words.
    """
    training, seeds = list(training), list(seeds)
    for number, source in enumerate(sources):
        seed = trained_on(source, training, seeds)
        if seed is not None:
            raise ValueError(
                f"{where}.{number} ({source_name(source)}) asks problems that are trained on with seed {seed}; give another split, or "
                f"a seed that is none of {whose}"
            )


def trained_on(source: DataSource, training: Iterable[DataSource], seeds: Iterable[int]) -> int | None:
    """A seed with which training sources may ask problems of a source; None if none does.

    Args:
        seeds: of the trainings, each of which takes the place of the seed of generated problems.
    """
    training = list(training)
    for seed in dict.fromkeys(seeds):
        seeded = (item.model_copy(update={"seed": seed}) if item.generated else item for item in training)
        if any(overlap(source, item) for item in seeded):
            return seed
    return None


def source_name(source: DataSource) -> str:
    """What a source is called in results: acre-Comp-val-text, raven-center_single-test-text-panel-mean, or its file or data set."""
    family, *made = (distribution(source) or "").split(" ")
    if not made:
        return str(source.file if source.file is not None else source.dataset)
    split = [] if source.split in made else [source.split]
    asked = ([source.ask] if source.ask == "panel" else []) + ([source.score] if source.score == "mean" else [])
    return "-".join([family.lower(), *made, *split, *([source.format] if source.format else []), *asked])


def _render(
    problems: Iterable[Any], source: DataSource, examples: Callable[..., list[Example]], **options: Any
) -> list[Example]:
    found: list[Example] = []
    for problem in problems:
        found += examples(problem, source.format, domain=source.domain or source.format, **options)
        if source.limit is not None and len(found) >= source.limit:
            return found[: source.limit]
    return found


def problem_kind(path: Path) -> str | None:
    """What problems a file holds: "ACRE" (the official JSON), "RAVEN" (JSON lines of problems), or None: examples.

    Raises:
        DataError: the file cannot be read.
    """
    with open_for_reading(path) as stream:
        start = stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if path.suffix.lower() == ".json" and start[:1] == b"[" and start[1:].lstrip()[:1] == b"[":
        return "ACRE"
    return "RAVEN" if start[:1] == b"{" and b'"panels"' in start and b'"input"' not in start else None


def holds_problems(file: Path, columns: Any) -> bool:
    """Whether a file, whose columns are mapped so, holds problems that are rendered; rows are taken as they are."""
    return columns is None and problem_kind(file) is not None


def read_sources(sources: Sequence[DataSource]) -> list[Example]:
    """The examples of all sources, one source after the other."""
    return [example for source in sources for example in read_source(source)]


def read_training(sources: Sequence[DataSource]) -> list[Example]:
    """As `read_sources`, but what would become one domain without anybody having said so is refused.

    Raises:
        ConfigurationError: two files of the same name, or two configurations of a data set, without domains of their own.
    """
    places: dict[str, tuple[str, Any]] = {}
    read: list[Example] = []
    for source in sources:
        found = _examples(source)
        if any(example.domain is None for example in found):
            name, place = str(source.dataset), f"{source.dataset} ({source.config or 'no config'})"
            which: Any = source.config
            if source.file is not None:
                name, place, which = source.file.stem, str(source.file), source.file.resolve()
            other = places.setdefault(name, (place, which))
            if other[1] != which:
                raise ConfigurationError(
                    f"{other[0]} and {place} would be one domain by their name, {name}; give each source its domain, the same where "
                    "they are one"
                )
        read += _named(source, found)
    return read


def domain_numbers(found: Sequence[Example]) -> dict[str, int]:
    """Number the domain names in the order in which they appear."""
    names = dict.fromkeys(example.domain for example in found if example.domain is not None)
    return {name: number for number, name in enumerate(names)}


def training_data(
    sources: Sequence[DataSource],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int | None,
    pack: bool,
    batch_size: int | None = None,
    batch_tokens: int | None = None,
) -> tuple[list[Pack], dict[str, int], list[EncodedExample]]:
    """Packs to train on, the numbers of the domains, and the encoded examples.

    Raises:
        DataError: a source that cannot be used, or has no example.
    """
    found = read_training(sources)
    if not found:
        raise DataError("the training sources hold no example")
    domains = domain_numbers(found)
    encoded = encode(found, tokenizer, domains=domains, max_tokens=max_tokens)
    packs = training_packs(encoded, tokenizer.eos_token_id, pack=pack, batch_size=batch_size, batch_tokens=batch_tokens)
    return packs, domains, encoded
