"""What the `iclm data` commands do, as plain functions: the command line only parses options and prints results."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from iclm.data import acre, raven
from iclm.data.acre.solver import Evidence
from iclm.data.evals import write_evals
from iclm.data.files import open_for_reading
from iclm.errors import ConfigurationError, DataError

FORMS = ("jsonl", "xml")
"""Forms that RAVEN problems are written in."""

_FEW = 5
_MOST_MISSES = 1000
_PROGRESS_EVERY = 500
_STATES = ("off", "undetermined", "on")
_EXPECTED = "expected ACRE JSON (a list), RAVEN JSON lines, or RAVEN XML"

Progress = Callable[[int, int], None]
"""Called with the number of problems done and their total."""


@dataclass(frozen=True, slots=True)
class SolveResult:
    """How far the solver agrees with the labels of a file.

    Args:
        agree: queries whose label is the solver's.
        total: all queries.
        disagreements: others, counted from 0, for instance "problem 3 query 1: label 2, solver says 1": of ACRE the
            first few, of RAVEN each.
        ambiguous: those among the others whose label is one of several answers that fit; none in ACRE.
    """

    agree: int
    total: int
    disagreements: tuple[str, ...] = ()
    ambiguous: int = 0

    @property
    def wrong(self) -> int:
        """Queries whose label the solver refutes."""
        return self.total - self.agree - self.ambiguous

    @property
    def agreement(self) -> float:
        """Share of the queries that agree, 0 to 1."""
        return self.agree / self.total

    def __str__(self) -> str:
        # Rounded down, so that 1.0000 means every query.
        ten_thousandths = self.agree * 10_000 // self.total
        return f"agreement {ten_thousandths // 10_000}.{ten_thousandths % 10_000:04d} ({self.agree}/{self.total})"


def generate_acre(
    regime: str,
    split: str,
    problems: int,
    seed: int,
    out: str | os.PathLike[str],
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Generate an ACRE file in the official JSON, in constant memory.

    Args:
        regime: "IID", "Comp" or "Sys".
        split: "train", "val" or "test".
        problems: number of problems, at least 1.
        seed: any integer.
        out: the file to write.
        overwrite: replace an existing file.
        progress: called now and then, and at the end.

    Returns:
        A summary: the arguments, the number of queries, and how many have each label and type.

    Raises:
        ConfigurationError: an argument cannot be used, or the file exists and `overwrite` is false.
    """
    labels: Counter[str] = Counter()
    types: Counter[str] = Counter()

    def counted(made: Iterator[acre.Problem]) -> Iterator[acre.Problem]:
        for number, problem in enumerate(made, start=1):
            labels.update(_STATES[query.label] for query in problem.queries)
            types.update(query.type for query in problem.queries)
            yield problem
            if progress and (number % _PROGRESS_EVERY == 0 or number == problems):
                progress(number, problems)

    count = acre.write_problems(out, counted(acre.generate(regime, split, problems, seed)), overwrite=overwrite)
    return {
        "file": os.fspath(out),
        "regime": regime,
        "split": split,
        "seed": seed,
        "problems": count,
        "queries": labels.total(),
        "labels": {state: labels[state] for state in _STATES},
        "types": {kind: types[kind] for kind in acre.TYPES},
    }


def generate_raven(
    config: str,
    answers: str,
    problems: int,
    seed: int,
    out: str | os.PathLike[str],
    split: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    form: str = "jsonl",
) -> dict[str, Any]:
    """Generate a file of RAVEN problems, in constant memory.

    Args:
        config: name of a configuration, or "all": one configuration after the other.
        answers: "raven", "iraven" or "fair".
        problems: number of problems of each configuration, at least 1.
        seed: any integer; the three answer sets of a seed share their matrices.
        out: the file to write; for XML the folder to make.
        split: "train", "val" or "test"; by default problems of all splits.
        overwrite: replace an existing file.
        progress: called now and then, and at the end.
        form: "jsonl", or "xml" for one file a problem in the official XML and a `targets.json`.

    Returns:
        A summary: the arguments, the number of problems, and how many have each target and rule.

    Raises:
        ConfigurationError: an argument cannot be used, or the file exists and `overwrite` is false.
    """
    if form not in FORMS:
        raise ConfigurationError(f"form is {form!r}; it must be one of {', '.join(FORMS)}")
    if form == "xml" and config == "all":
        raise ConfigurationError("config is 'all'; XML is written to one folder a configuration, so name one")
    configs = list(raven.CONFIGURATIONS) if config == "all" else [raven.configuration(config).name]
    made = [raven.generate(name, answers, problems, seed, split) for name in configs]
    targets: Counter[str] = Counter()
    rules: Counter[str] = Counter()

    def counted() -> Iterator[raven.Problem]:
        total = problems * len(configs)
        for number, problem in enumerate(chain.from_iterable(made), start=1):
            targets[problem.letter] += 1
            rules.update(f"{rule.attribute} {rule.name}" for group in problem.rules for rule in group)
            yield problem
            if progress and (number % _PROGRESS_EVERY == 0 or number == total):
                progress(number, total)

    write = raven.write_folder if form == "xml" else raven.write_problems
    count = write(out, counted(), overwrite=overwrite)
    return {
        "file": os.fspath(out),
        "configs": configs,
        "answers": answers,
        "split": split,
        "seed": seed,
        "problems": count,
        "targets": {letter: targets[letter] for letter in raven.LETTERS},
        "rules": dict(sorted(rules.items())),
    }


def render_file(
    file: str | os.PathLike[str],
    format: str,
    objects: str,
    out: str | os.PathLike[str],
    regime: str | None = None,
    split: str | None = None,
    extras: bool = False,
    seed: int = 0,
    overwrite: bool = False,
    open: bool = False,
) -> dict[str, Any]:
    """Render a file of problems as evals JSONL; what the file holds is told by its content.

    Args:
        file: an official ACRE file, or RAVEN problems: JSON lines, an official XML file or a folder of them.
        format: "text" or "symbolic".
        objects: "official", or for ACRE "strict".
        out: the file to write.
        regime: ACRE only: regime of the problems; by default what the file's name tells (`Comp_val.json`).
        split: ACRE only: split of the problems; likewise.
        extras: also write the `type` of each query and the `group` (problem) it belongs to.
        seed: names the shuffles of strict objects.
        overwrite: replace an existing file.
        open: RAVEN only: ask for the ninth panel itself instead of a letter.

    Returns:
        A summary: files, options, numbers of problems and queries.

    Raises:
        ConfigurationError: an option cannot be used, or the output exists and `overwrite` is false.
        DataError: the input is no file of problems.
    """
    if overwrite and os.path.exists(out) and os.path.exists(file) and os.path.samefile(file, out):
        raise ConfigurationError(f"{os.fspath(out)} is the file that is read; choose another --out")
    summary: dict[str, Any] = {"file": os.fspath(file), "out": os.fspath(out), "format": format}
    if _holds_acre(file):
        if open:
            raise ConfigurationError(f"{os.fspath(file)} holds ACRE problems; the open form is for RAVEN")
        problems = acre.read_problems(file, regime=regime, split=split)
        rows = _acre_rows(problems, format, objects, seed=seed, extras=extras)
        count = write_evals(out, rows, extras=extras, overwrite=overwrite)
        told = {"objects": objects, "regime": problems[0].regime, "split": problems[0].split}
        return summary | told | {"problems": len(problems), "queries": count}
    for name, value, usual in (("objects", objects, "official"), ("regime", regime, None), ("split", split, None)):
        if value != usual:
            raise ConfigurationError(f"{name} is {value!r}, but {os.fspath(file)} holds RAVEN problems; it is for ACRE")
    lines = (raven.render(problem, format, open, extras=extras) for problem in _raven_problems(file))
    count = write_evals(out, lines, extras=extras, overwrite=overwrite)
    return summary | {"open": open, "problems": count, "queries": count}


def solve_file(file: str | os.PathLike[str]) -> SolveResult:
    """Compare every label of a file of problems with the exact solver; what the file holds is told by its content.

    Args:
        file: an official ACRE file, or RAVEN problems: JSON lines, an official XML file or a folder of them.

    Returns:
        The agreement and the disagreements; those of RAVEN say why.

    Raises:
        DataError: the input is no file of problems.
    """
    return solve_acre(acre.read_problems(file)) if _holds_acre(file) else solve_raven(_raven_problems(file))


def solve_raven(problems: Iterable[raven.Problem]) -> SolveResult:
    """Compare the target of RAVEN problems with the exact solver, which sees the panels alone.

    Args:
        problems: the problems; consumed one by one.

    Returns:
        The agreement; a problem agrees if the target is the one answer that fits.
    """
    agree = ambiguous = total = 0
    misses: list[str] = []
    for number, problem in enumerate(problems):
        solution = raven.solve(problem)
        total += 1
        if solution.answer == problem.target:
            agree += 1
            continue
        ambiguous += problem.target in solution.fits
        if len(misses) < _MOST_MISSES:
            name = f" ({problem.id})" if problem.id else ""
            misses.append(f"problem {number}{name}: target {problem.letter}; {solution.explain()}")
    return SolveResult(agree, total, tuple(misses), ambiguous)


def solve_acre(problems: Iterable[acre.Problem]) -> SolveResult:
    """Compare every label of ACRE problems with the exact solver.

    Args:
        problems: the problems; consumed one by one.

    Returns:
        The agreement and the first few disagreements.
    """
    agree = total = 0
    disagreements: list[str] = []
    for number, problem in enumerate(problems):
        evidence = Evidence.of(problem.trials)
        for position, query in enumerate(problem.queries):
            answer = evidence.label(query.objects)
            total += 1
            agree += answer == query.label
            if answer != query.label and len(disagreements) < _FEW:
                disagreements.append(f"problem {number} query {position}: label {query.label}, solver says {answer}")
    return SolveResult(agree, total, tuple(disagreements))


def _holds_acre(file: str | os.PathLike[str]) -> bool:
    """Whether a file holds ACRE problems; if not, it is a folder or begins like JSON lines or XML.

    Raises:
        DataError: it can be neither.
    """
    if Path(file).is_dir():
        return False
    with open_for_reading(file) as stream:
        start = stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    name = os.fspath(file)
    if not start:
        raise DataError(f"{name}: the file is empty; {_EXPECTED}")
    if start[:1] not in b"[{<":
        raise DataError(f"{name}: line 1: not a file of problems; {_EXPECTED}")
    if start.startswith(b'{"input"'):
        raise DataError(f"{name}: line 1: an evals file, which is rendered already; {_EXPECTED}")
    return start.startswith(b"[")


def _raven_problems(file: str | os.PathLike[str]) -> Iterator[raven.Problem]:
    """The problems of RAVEN JSON lines, of an XML file or of a folder of XML files."""
    if Path(file).is_dir():
        return raven.iter_folder(file)
    with open_for_reading(file) as stream:
        start = stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    return iter([raven.read_problem(file)]) if start.startswith(b"<") else raven.iter_problems(file)


def _acre_rows(
    problems: Iterable[acre.Problem], format: str, objects: str, *, seed: int, extras: bool
) -> Iterator[dict[str, Any]]:
    """The rows of all problems, one by one."""
    for problem in problems:
        yield from acre.render(problem, format, objects, seed=seed, extras=extras)
