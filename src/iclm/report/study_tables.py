"""The tables of a study, by name: the same cells for the terminal, for tables.md and for blocks of a Markdown file.

    DATA/overview       methods in and out of distribution, beside the indirect questions and the difference to the reference
    DATA/accuracy       methods × groups of test questions, with the cheap strategies and the most frequent answer as rows
    DATA/formats        the same by test set and format
    DATA/kinds          the same by kind of question
    DATA/inference      of ACRE, whether questions that need exclusion are told from those that nothing settles, by format
    DATA/modules        each module of a method alone, and its mixture with oracle routing
    DATA/comparisons    every method against the reference
    DATA/ablations      ablations against what they are an ablation of
    DATA/ablation-costs the same in short, a row an ablation: in and out of distribution, beside the indirect questions
    DATA/further        methods against others that the recipe names (`compared_with`)
    DATA/parts          modules and oracle routing against the mixture
    DATA/cost           seconds, parameters and examples of training
    DATA/chosen         the hyper-parameters that were chosen
    DATA/tries          what they were chosen among: accuracy of every try on the validation questions
    headline            the method named iclm against the reference, on every data set
    paper               the paper's own figures beside those of the study
    setup, not-run      a line of text each

Tables of strictly rendered questions are named DATA/strict/accuracy and so on, those of questions whose choices are scored by the
mean of their tokens' log-likelihoods DATA/mean/accuracy. An accuracy is the mean over seeds with its 95%
interval; of one seed there is no interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from iclm.report.paper import FIGURES, SOURCE
from iclm.report.study_cells import (
    NONE,
    Grid,
    difference,
    module_label,
    names_of,
    numbers,
    probability,
    share,
    signed,
    way_of,
    ways_of_asking,
)
from iclm.studies.study.groups import IN, MAIN, OUT
from iclm.studies.study.rows import BY_EXCLUSION, INDIRECT, POTENTIAL, ROUTED
from iclm.studies.study.summary import AGAINST_FURTHER, AGAINST_MIXTURE, AGAINST_REFERENCE, AGAINST_WHOLE

OURS = "iclm"  # the method that is the ICLM itself
HARD = INDIRECT  # the kind of question that stands beside every overall figure

# -- one data set ------------------------------------------------------------------------------------------------------


class _Part:
    """What a summary says of one data set in one way of asking (`ways_of_asking`)."""

    def __init__(self, summary: dict[str, Any], way: tuple[str, bool, str]) -> None:
        self.summary, self.data = summary, way[0]
        self.name, self.title = names_of(way)
        self.reference = summary["references"][self.data]
        self.groups, self.figures, inference, self.comparisons = (
            [entry for entry in summary[key] if way_of(entry) == way]
            for key in ("groups", "figures", "inference", "comparisons")
        )
        self.told_apart = {(one["group"], one["format"], one["method"]): one for one in inference}
        self.by_key = {
            (f["group"], f["format"], f["kind"], f["method"], f["module"]): f for f in self.figures
        }  # every group × method × module once

    def methods(self) -> list[tuple[str, str]]:
        """Each method with the module that answers for it."""
        return list(dict.fromkeys((f["method"], f["module"]) for f in self.figures if f["module"] in MAIN))

    def modules(self, method: str) -> list[str]:
        return list(dict.fromkeys(f["module"] for f in self.figures if f["method"] == method))

    def cells(self, method: str, module: str, columns: Iterable[dict[str, Any]]) -> list[str]:
        return [share(self.by_key.get((g["group"], g["format"], g["kind"], method, module))) for g in columns]

    def columns(self) -> list[dict[str, Any]]:
        """In and out of distribution, each with its indirect questions, then the test sets that these are made of."""
        found = []
        for pool in (IN, OUT):
            found += [
                g for g in self.groups if g["group"] == pool and g["format"] is None and g["kind"] in (None, HARD)
            ]
        for pool in (IN, OUT):
            whole = [g for g in self.groups if g["group"] == pool and g["kind"] is None]
            names = whole[0]["test_sets"] if whole and len(whole[0]["test_sets"]) > 1 else []
            for name in names:
                found += [
                    g for g in self.groups if g["group"] == name and g["format"] is None and g["kind"] in (None, HARD)
                ]
        return found

    def by_method(self, name: str, title: str, columns: list[dict[str, Any]], *, majority: bool) -> Grid:
        rows = [[method, *self.cells(method, module, columns)] for method, module in self.methods()]
        if majority:
            rows.append(
                ["most frequent answer", *(NONE if g["majority"] is None else f"{g['majority']:.3f}" for g in columns)]
            )
        rows.append(["questions", *(f"{g['n']:,}" for g in columns)])
        return Grid(f"{self.name}/{name}", f"{title}, {self.title}", ["method", *map(_heading, columns)], rows)

    def against_reference(self) -> dict[tuple[str, str], dict[str, Any]]:
        """By group and method the comparison with the reference on all questions."""
        return {
            (one["group"], one["method"]): one
            for one in self.comparisons
            if one["question"] == AGAINST_REFERENCE and one["format"] is None and one["kind"] is None
        }

    def overview(self) -> Grid:
        """A row a method: accuracy in and out of distribution, the same on indirect questions, and how far it is from the reference."""
        pools = [g for g in self.columns() if g["group"] in (IN, OUT)]
        against = self.against_reference()
        header, rows = ["method", "seeds"], []
        for method, module in self.methods():
            # a method's seeds are the same in every group
            seeds = next(f["seeds"] for f in self.figures if (f["method"], f["module"]) == (method, module))
            rows.append([method, NONE if seeds == [None] else str(len(seeds))])
        for group in pools:
            header.append(group["group"] if group["kind"] is None else group["kind"])
            for row, (method, module) in zip(rows, self.methods(), strict=True):
                (cell,) = self.cells(method, module, [group])
                row.append(cell if group["kind"] is None else cell.partition(" ")[0])
            if group["kind"] is None and self.reference is not None:
                header.append(f"against {self.reference}")
                for row in rows:
                    row.append(difference(against.get((group["group"], row[0]))))
        return Grid(f"{self.name}/overview", f"in and out of distribution, {self.title}", header, rows)

    def inference_table(self) -> Grid | None:
        """Questions of ACRE that need exclusion, all of which have the answer on, beside potential ones, all undetermined.

        Whoever excludes nothing answers on as often to the one as to the other; what is told apart is the difference
        (`iclm.studies.study.inference`).
        """
        found = [(g["group"], g["format"]) for g in self.groups if g["kind"] == BY_EXCLUSION]
        pools = [name for name in (IN, OUT) if any(group == name for group, _ in found)]
        forms = list(dict.fromkeys(form for group, form in found if group in pools))
        forms = [form for form in forms if form is not None or len(forms) == 1]
        rows = []
        for method, module in self.methods():
            for form in forms:
                cells = []
                for name in pools:
                    pair = [self.by_key.get((name, form, kind, method, module)) for kind in (BY_EXCLUSION, POTENTIAL)]
                    cells += [*map(share, pair), _told_apart(self.told_apart.get((name, form, method)))]
                rows.append([method if form is None else f"{method}, {form}", *cells])
        asked = ("on, by exclusion", "undetermined, potential", "told apart")
        header = ["method", *(f"{name}: {what}" for name in pools for what in asked)]
        title = "questions that need exclusion (on) beside potential ones (undetermined)"
        return Grid(f"{self.name}/inference", f"{title}, {self.title}", header, rows) if pools else None

    def module_table(self) -> Grid | None:
        columns = self.columns()
        rows = []
        for method, main in self.methods():
            modules = self.modules(method)
            if len(modules) > 1:
                rows += [
                    [
                        f"{method}: {module}" if module == main else f"{method}: {module_label(module)}",
                        *self.cells(method, module, columns),
                    ]
                    for module in modules
                ]
        header = ["method and module", *map(_heading, columns)]
        return Grid(f"{self.name}/modules", f"accuracy of single modules, {self.title}", header, rows) if rows else None

    def comparison_table(self, name: str, question: str, title: str, groups: list[dict[str, Any]]) -> Grid | None:
        rows = []
        for group in groups:
            for one in self.comparisons:
                if one["question"] == question and all(one[key] == group[key] for key in ("group", "format", "kind")):
                    rows.append([_heading(group), *_comparison(one)])
        header = ["questions", "what", "against", "difference [95%]", "p", "p (Holm)", "seeds", "problems"]
        return Grid(f"{self.name}/{name}", f"{title}, {self.title}", header, rows, left=3) if rows else None

    def ablation_costs(self) -> Grid | None:
        """A row an ablation: its difference to what it is an ablation of, in and out of distribution and on indirect questions."""
        pools = [g for g in self.columns() if g["group"] in (IN, OUT)]
        found = {
            (one["method"], one["against"], one["group"], one["kind"]): one
            for one in self.comparisons
            if one["question"] == AGAINST_WHOLE and one["format"] is None
        }
        rows = []
        for method, against in dict.fromkeys((method, against) for method, against, *_ in found):
            here = [found.get((method, against, g["group"], g["kind"])) for g in pools]
            seeds = max(len(one["seeds"]) for one in here if one is not None)
            rows.append([f"{method} - {against}", str(seeds), *map(difference, here)])
        header = ["difference [95%]", "seeds", *map(_heading, pools)]
        title = f"what each ablation costs, {self.title}"
        return Grid(f"{self.name}/ablation-costs", title, header, rows) if rows else None

    def tables(self) -> Iterator[Grid | None]:
        columns = self.columns()
        yield self.overview()
        yield self.by_method("accuracy", "accuracy", columns, majority=True)
        formats = [g for g in self.groups if g["format"] is not None and g["kind"] is None]
        if formats:
            yield self.by_method("formats", "accuracy by format", formats, majority=True)
        kinds = [g for g in self.groups if g["kind"] is not None and g["format"] is None and g["group"] in (IN, OUT)]
        if kinds:
            yield self.by_method("kinds", "accuracy by kind of question", kinds, majority=False)
        yield self.inference_table()
        yield self.module_table()
        title = f"every method against {self.reference}"
        yield self.comparison_table("comparisons", AGAINST_REFERENCE, title, columns)
        title = "ablations against what they are an ablation of"
        yield self.comparison_table("ablations", AGAINST_WHOLE, title, columns)
        yield self.ablation_costs()
        title = "methods against others that the recipe names"
        yield self.comparison_table("further", AGAINST_FURTHER, title, columns)
        title = "modules alone and oracle routing against the mixture"
        yield self.comparison_table("parts", AGAINST_MIXTURE, title, [g for g in columns if g["kind"] is None])


def _told_apart(found: dict[str, Any] | None) -> str:
    """What is told apart with its interval, for instance "+0.217 [+0.004 +0.430]"; a bound begins with ≥."""
    if found is None:
        return NONE
    bound = "" if found["exact"] else "≥ "
    return f"{bound}{signed(found['value'])} [{found['low']:+.3f} {found['high']:+.3f}]"


def _heading(group: dict[str, Any]) -> str:
    """Of the column of a group."""
    return ", ".join(part for part in (group["group"], group["format"], group["kind"]) if part is not None)


def _comparison(one: dict[str, Any]) -> list[str]:
    """The cells of a comparison after the group."""
    what, against = one["method"], one["against"]
    if one["question"] == AGAINST_MIXTURE:
        what, against = f"{what}: {module_label(one['module'])}", f"{against}: {one['against_module']}"
    seeds = f"{len(one['seeds'])}" if len(one["seeds"]) > 1 else "1 (problems alone resampled)"
    return [
        what,
        against,
        difference(one),
        probability(one["p"]),
        probability(one["p_holm"]),
        seeds,
        f"{one['problems']:,}",
    ]


def _cost(summary: dict[str, Any], data: str) -> Grid | None:
    reference = summary["references"][data]
    header = [
        "method",
        "seconds of training [95%]",
        f"times {reference or 'the reference'}",
        "trained parameters",
        "examples",
        "seeds",
        "device",
    ]
    rows = []
    for cost in summary["cost"]:
        if cost["data"] != data:
            continue
        ends = "" if cost["low"] is None else f" [{cost['low']:.1f} {cost['high']:.1f}]"
        seconds = f"{cost['mean']:.1f}{ends}" if cost["mean"] else NONE
        ratio = NONE if cost["ratio"] is None else f"{cost['ratio']:.2f}"
        counts = [numbers(cost["trainable"]), numbers(cost["examples"]), str(len(cost["seeds"]))]
        rows.append([cost["method"], seconds, ratio, *counts, ", ".join(cost["devices"])])
    return Grid(f"{data}/cost", f"what training costs, {data}", header, rows) if rows else None


def _tries_of(entry: dict[str, Any]) -> str:
    """For instance "3 of lora", or "3 of lora on acre" where they were made on other data."""
    where = "" if entry["tries_on"] == entry["data"] else f" on {entry['tries_on']}"
    return f"{entry['tries']} of {entry['tries_of']}{where}"


def _chosen(summary: dict[str, Any], data: str) -> Grid | None:
    chosen = [entry for entry in summary["chosen"] if entry["data"] == data]
    names = sorted({name for entry in chosen for name in entry["values"]})
    rows = [
        [entry["method"], _tries_of(entry)]
        + [f"{entry['values'][name]}" if name in entry["values"] else NONE for name in names]
        for entry in chosen
    ]
    header = ["method", "tries", *names]
    return (
        Grid(f"{data}/chosen", f"hyper-parameters chosen by validation accuracy, {data}", header, rows)
        if rows
        else None
    )


def _tries(summary: dict[str, Any], data: str) -> Grid | None:
    """Every try, in the order of the grid, with the accuracy of the mixture and of the modules that all methods can have."""
    tried = [entry for entry in summary["tried"] if entry["data"] == data]
    names = sorted({name for entry in tried for name in entry["values"]})

    def cell(entry: dict[str, Any], modules: Iterable[str]) -> str:
        right = [entry["correct"][module] for module in modules if module in entry["correct"]]
        return f"{max(right) / entry['n']:.3f}" if right else NONE

    rows = []
    for entry in tried:
        accuracies = [cell(entry, modules) for modules in (MAIN, ["invariant"], ["oracle"], [ROUTED])]
        values = [f"{entry['values'][name]}" if name in entry["values"] else NONE for name in names]
        rows.append([entry["method"], *values, *accuracies, f"{entry['n']:,}"])
    header = [
        "method",
        *names,
        "mixture",
        "invariant module alone",
        "oracle routing",
        "routed domain module alone",
        "questions",
    ]
    title = f"tries, accuracy on validation questions, {data}"
    return Grid(f"{data}/tries", title, header, rows) if rows else None


def _headline(parts: Sequence[_Part]) -> Grid | None:
    """How far the ICLM is from the reference in and out of distribution, a row a data set and way of asking."""
    rows = []
    for part in parts:
        found = part.against_reference()
        pair = [found.get((pool, OURS)) for pool in (IN, OUT)]
        seeds = {len(one["seeds"]) for one in pair if one is not None}
        if seeds:
            rows.append([part.title, f"{OURS} - {part.reference}", str(max(seeds)), *map(difference, pair)])
    header = ["data", "difference [95%]", "seeds", IN, OUT]
    return Grid("headline", "the ICLM against the reference", header, rows, left=2) if rows else None


def _paper(summary: dict[str, Any], parts: Sequence[_Part]) -> Grid | None:
    """The paper's figures, beside ours out of distribution on every data set whose test sets are ACRE.

    Ours are those of the method named iclm, of the reference, of iclm's invariant module, and of the best of its single modules.
    """
    columns = [
        part
        for part in parts
        if any(g["group"].startswith("ACRE ") for g in part.groups)
        and any(f["method"] in (OURS, part.reference) and f["group"] == OUT for f in part.figures)
    ]
    if not columns:
        return None
    rows = []
    for figure in FIGURES:
        cells = []
        for part in columns:
            found = [f for f in part.figures if (f["group"], f["format"], f["kind"]) == (OUT, None, None)]
            wanted = part.reference if figure.ours == "reference" else OURS
            modules = {"module": ("invariant", "domain_"), "invariant": ("invariant",)}.get(figure.ours, ("mixture",))
            ours = [f for f in found if f["method"] == wanted and f["module"].startswith(modules)]
            cells.append(share(max(ours, key=lambda f: f["mean"], default=None)))
        rows.append([figure.label, "–" if figure.accuracy is None else f"{figure.accuracy:.4f}", *cells])
    header = ["model", SOURCE, *(f"ours, {part.title}, {OUT}" for part in columns)]
    return Grid("paper", "the paper's own figures, of another model and size", header, rows)


# -- a whole study -----------------------------------------------------------------------------------------------------


def grids(summary: dict[str, Any]) -> list[Grid]:
    """All tables of a study.

    Args:
        summary: what `iclm.studies.study.summary.summarise` found.
    """
    parts = [_Part(summary, way) for way in ways_of_asking(summary)]
    found: list[Grid | None] = []
    for data in summary["references"]:
        for part in parts:
            if part.data == data:
                found += part.tables()
        found += [_cost(summary, data), _chosen(summary, data), _tries(summary, data)]
    found += [_headline(parts), _paper(summary, parts)]
    return [grid for grid in found if grid is not None]


def setup_line(summary: dict[str, Any]) -> str:
    """What all was run with, in one line."""
    setup = summary["setup"]
    versions = ", ".join(
        f"{name} {' and '.join(values)}" for name, values in setup["versions"].items() if name != "source"
    )
    choosing = sum({(one["tries_on"], one["tries_of"]): one["tries"] for one in summary["chosen"]}.values())
    compared = setup["tries"] - choosing
    others = f", {compared} more compared on validation questions alone" if compared else ""
    exceptions = "; ".join(f"in {dtype} {', '.join(_together(names))}" for dtype, names in setup["exceptions"].items())
    return (
        f"{' and '.join(setup['bases']) or 'no model'} in {next(iter(setup['dtypes']), 'no dtype')}"
        f"{f' ({exceptions})' if exceptions else ''} on "
        f"{' and '.join(setup['devices']) or 'cpu'} ({' and '.join(setup['processors'])}, "
        f"{' and '.join(map(str, setup['threads']))} threads); {versions}; {setup['reports']} jobs are reported, "
        f"hyper-parameters chosen by {choosing} tries{others}; intervals of a mean are Student's over seeds, those of a difference "
        f"and p from {summary['resamples']:,} resamples of seeds and problems\n"
    )


def _together(names: Iterable[str]) -> list[str]:
    """Names of jobs, those of one method in one: acre/iclm/seed-3,4."""
    numbers: dict[str, list[str]] = {}
    for name in names:
        start, dash, number = name.rpartition("-")
        of_several = start.endswith(("/seed", "/try"))
        numbers.setdefault(start + dash if of_several else name, []).append(number if of_several else "")
    return [start + ",".join(found) for start, found in numbers.items()]


def not_run_line(summary: dict[str, Any]) -> str:
    """The names of jobs that were not run, those of one method together."""
    by_state: dict[str, list[str]] = {}
    for name, state in summary["not_run"].items():
        by_state.setdefault(state, []).append(name)
    names = [
        name + ("" if state == "not run" else f" ({state})")
        for state, found in by_state.items()
        for name in _together(found)
    ]
    said = f"not run: {', '.join(names)}" if names else "All jobs of the study were run."
    if summary.get("diverged"):
        said += f"\n\ndiverged, so that questions count as answered wrong: {', '.join(summary['diverged'])}"
    return said + "\n"


def texts(summary: dict[str, Any]) -> dict[str, str]:
    """What a block of a Markdown file can hold, by its name."""
    return {
        **{grid.name: grid.markdown() for grid in grids(summary)},
        "setup": setup_line(summary),
        "not-run": not_run_line(summary),
    }
