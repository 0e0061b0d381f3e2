"""What a diagnosis means: a verdict on each figure by written rules, tables for the terminal, and the folder it is kept in.

    healthy         as in a run that works
    doubtful        not as it should be, or too few examples to tell
    failed          the failure is there
    not measured    it does not apply, or something to measure it with is missing

All thresholds are the fields of `Thresholds`. A verdict is a reading aid: the figures beside it are what was measured.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from iclm.data.files import atomic_write, check_replaceable
from iclm.errors import ConfigurationError
from iclm.report.plots import PLOTS, write_plots
from iclm.report.tables import share

FILE = "diagnosis.json"
FAILURES = ("routing", "independence", "overfitting", "forgetting", "interventions")
HEALTHY, DOUBTFUL, FAILED, NOT_MEASURED = "healthy", "doubtful", "failed", "not measured"
SEVERITY = (NOT_MEASURED, HEALTHY, DOUBTFUL, FAILED)
"""The verdicts, the worst last."""


@dataclass(frozen=True)
class Thresholds:
    """Where a figure stops being healthy, and where it is a failure."""

    significant: float = 0.05
    """A p-value below it is not chance."""
    routed: float = 0.9
    """Routing accuracy from which the domains count as found."""
    entangled: float = 0.9
    """Normalised HSIC (1 for a state with itself, whatever the number of examples) from which two modules count as saying
    the same. No smaller figure counts as little: it shrinks with the dimensions of the states."""
    blurred: float = 0.3
    """Width of the 95% interval of a gap that is too wide to call it none."""
    dropped: float = 0.05
    """Loss of accuracy on the same examples up to which nothing counts as forgotten."""


LIMITS = Thresholds()


@dataclass(frozen=True)
class Verdict:
    """One figure judged.

    Attributes:
        failure: one of `FAILURES`.
        figure: what was measured.
        value: the figure; None where it was not measured.
        reference: what chance or a healthy run gives; None where there is no such number.
        verdict: "healthy", "doubtful", "failed" or "not measured".
        words: what it means and what to try.
    """

    failure: str
    figure: str
    value: float | None
    reference: float | None
    verdict: str
    words: str


def verdicts(report: dict[str, Any]) -> list[Verdict]:
    """Judge what `iclm.evaluation.diagnose.diagnose` measured; at least one verdict for each failure, in their order."""
    return [verdict for failure in FAILURES for verdict in _RULES[failure](report[failure])]


def _missing(failure: str, figure: str, reason: str) -> Verdict:
    return Verdict(failure, figure, None, None, NOT_MEASURED, reason)


# -- routing -----------------------------------------------------------------------------------------------------------


def _routing(section: dict[str, Any]) -> Iterator[Verdict]:
    """Collapse, then whether the codes follow the domains, inside and outside the training distribution."""
    if not section["measured"]:
        yield _missing("routing", "routing accuracy", section["reason"])
        return
    for side, place in (("iid", ""), ("ood", ", out of distribution")):
        found = section.get(side)
        if found is None:
            yield _missing("routing", f"routing accuracy{place}", "no data out of distribution; pass --ood FILE")
        elif not section["learned"]:
            words = f"the router ({section['router']}) does not look at the text, so there is nothing to judge"
            yield _missing("routing", f"routing accuracy{place}", words)
        elif len(found["usage"]) == 1 or len(found["domains"]) == 1:
            words = "one domain module or one domain: there is nothing to tell apart"
            yield _missing("routing", f"routing accuracy{place}", words)
        else:
            # a domain that was trained on and that this side lacks leaves a module without work, as it should
            trained = section.get("trained", section["iid"]["domains"])
            missing = len(set(trained) - set(found["domains"]))
            yield _collapse(found, place, missing)
            yield _agreement(found, place)


def _collapse(found: dict[str, Any], place: str, missing: int) -> Verdict:
    figure, value, largest = f"share of the most used module{place}", max(found["usage"]), found["largest_domain"]
    if found["collapsed"]:
        words = "one domain module gets everything; try router: kmeans, another router_layer or more router_examples"
        return Verdict("routing", figure, value, largest, FAILED, words)
    if found["dead_codes"] > missing:
        words = f"{found['dead_codes']} domain module(s) are never used; try a smaller num_domains or router: kmeans"
        return Verdict("routing", figure, value, largest, DOUBTFUL, words)
    words = "every domain module is in use" if not found["dead_codes"] else "no domain module takes all"
    return Verdict("routing", figure, value, largest, HEALTHY, words)


def _agreement(found: dict[str, Any], place: str) -> Verdict:
    accuracy, chance = found["accuracy"], found["chance"]
    head = ("routing", f"routing accuracy{place}", accuracy, chance)
    # codes left over, or domains without a code of their own, can never be on a one-to-one match
    if found["p_value"] >= LIMITS.significant:
        words = (
            "the routes say nothing about the domains; try another router_layer, or router: oracle if they are known"
        )
        return Verdict(*head, FAILED, words)
    if accuracy < LIMITS.routed:
        words = "the routes follow the domains in part; as many modules as domains, or another router_layer may help"
        return Verdict(*head, DOUBTFUL, words)
    return Verdict(*head, HEALTHY, "each domain has a module of its own")


# -- independence ------------------------------------------------------------------------------------------------------


def _independence(section: dict[str, Any]) -> Iterator[Verdict]:
    """Dependence of the two sides within each domain, and what the invariant states tell of the domain."""
    figure = "dependence of invariant and domain states, normalised HSIC"
    if not section["measured"]:
        yield _missing("independence", figure, section["reason"])
        return
    for name, found in section["by_domain"].items():
        if "skipped" in found:
            yield _missing("independence", f"{figure}, {name}", found["skipped"])
        else:
            yield _dependence(found, f"{figure}, {name}")
    yield _leakage(section.get("leakage"))


def _dependence(found: dict[str, Any], figure: str) -> Verdict:
    """By normalised HSIC: what nearest neighbours give of a state with itself is a matter of the number of examples.

    Healthy is only what shuffled pairs give as well: a small HSIC is no weak dependence, as in 64 dimensions it is 0.02 of
    states and their squares.
    """
    if found["identical"]["estimate"] <= found["ksg"]["permuted_mean"]:
        return _missing("independence", figure, "the states do not vary enough to measure their dependence")
    value = found["hsic"]["statistic"]
    p_value = 2 * min(found["ksg"]["p_value"], found["hsic"]["p_value"])  # of two tests (Bonferroni)
    head = ("independence", figure, value, 0.0)
    if value >= LIMITS.entangled:
        words = "both modules say nearly the same; raise mi_weight, or try another mi_loss"
        return Verdict(*head, FAILED, words)
    if p_value >= LIMITS.significant:
        return Verdict(*head, HEALTHY, "no dependence can be told from that of shuffled pairs")
    words = "dependent; how strongly, this figure cannot tell where states have many dimensions (it shrinks with them)"
    if (
        found.get("shuffled") != "groups" and found.get("groups", found["n"]) < found["n"]
    ):  # a diagnosis of an earlier version
        words += ", and questions of one problem can look dependent where the modules are not"
    return Verdict(*head, DOUBTFUL, f"{words}; a larger mi_weight or another mi_loss may part them")


def _leakage(found: dict[str, Any] | None) -> Verdict:
    figure = "domain told from invariant states"
    if found is None or "skipped" in found:
        return _missing("independence", figure, "too few domains or examples" if found is None else found["skipped"])
    head = ("independence", figure, found["accuracy"], found["chance"])
    if found["p_value"] >= LIMITS.significant:
        return Verdict(*head, HEALTHY, "the invariant states do not tell the domain")
    # never a failure: every state computed from the text may show what the text looks like
    words = (
        "the invariant states tell the domain; expected where domains look different, a warning where they should not"
    )
    return Verdict(*head, DOUBTFUL, words)


# -- overfitting -------------------------------------------------------------------------------------------------------


def _overfitting(section: dict[str, Any]) -> Iterator[Verdict]:
    """Whether anything was learned, then the gap of the mixture and of the invariant module beside the base's own."""
    rows = {row["module"]: row for row in section["modules"]}
    mixture, majority = rows["mixture"]["iid"]["overall"], section["majority"]["iid"]["overall"]["value"]
    learned = mixture["low"] > majority
    words = "more right answers than the most frequent answer gives"
    if not learned:
        words = "no better than always the most frequent answer: train longer before reading the gap"
    yield Verdict(
        "overfitting",
        "accuracy of the mixture, training distribution",
        mixture["value"],
        majority,
        HEALTHY if learned else DOUBTFUL,
        words,
    )
    ahead = [row for row in section["modules"] if "ahead" in row]
    if ahead:
        yield _best_alone(max(ahead, key=lambda row: (row["ahead"]["low"] > 0.0, row["ahead"]["value"])))
    for module in ("mixture", "invariant"):
        if module in rows:
            yield _gap(section, rows[module], rows["base"], learned)


def _best_alone(row: dict[str, Any]) -> Verdict:
    """Whether the mixture is worth its modules: none of them should answer more alone."""
    found = row["ahead"]
    head = ("overfitting", f"best module alone ({row['module']}) minus the mixture", found["value"], 0.0)
    if found["low"] > 0.0:
        words = f"{row['module']} alone answers more than the mixture; use it alone, or try another aggregator"
        return Verdict(*head, DOUBTFUL, words)
    return Verdict(*head, HEALTHY, "no module alone is told to answer more than the mixture")


def _gap(section: dict[str, Any], row: dict[str, Any], base: dict[str, Any], learned: bool) -> Verdict:
    figure = f"loss of accuracy out of distribution, {row['module']}"
    if row["gap"] is None:
        return _missing("overfitting", figure, section["reason"])
    if not row["gap"]["by_domain"]:
        words = (
            "no domain is on both sides, so the difference may be that of the tasks; name them alike: --ood FILE=DOMAIN"
        )
        return Verdict("overfitting", figure, row["gap"]["overall"]["value"], None, DOUBTFUL, words)
    gap, reference = row["gap"]["overall"], base["gap"]["overall"]["value"]
    head = ("overfitting", figure, gap["value"], reference)
    useless = max(section["majority"]["ood"]["overall"]["value"], base["ood"]["overall"]["value"])
    if gap["low"] > max(reference, 0.0) and learned:
        if row["ood"]["overall"]["low"] <= useless:
            words = (
                "what was learned does not hold out of distribution; more varied domains, fewer passes or a lower rank"
            )
            return Verdict(*head, FAILED, words)
        words = "part of what was learned is lost out of distribution; compare modules, and try more varied domains"
        return Verdict(*head, DOUBTFUL, words)
    if gap["high"] - gap["low"] > LIMITS.blurred:
        return Verdict(*head, DOUBTFUL, "too few examples to tell a gap from none; evaluate on more")
    return Verdict(*head, HEALTHY, "no more is lost than chance, or the base model, loses as well")


# -- forgetting --------------------------------------------------------------------------------------------------------


def _forgetting(section: dict[str, Any]) -> Iterator[Verdict]:
    """The module and side that lost most, against the base and against an earlier run."""
    yield _loss(section["base"], "the base model")
    earlier = section["earlier"]
    if earlier["measured"]:
        yield _loss(earlier["rows"], "the earlier run")
    else:
        yield _missing("forgetting", "accuracy lost since the earlier run", earlier["reason"])


def _loss(rows: list[dict[str, Any]], what: str) -> Verdict:
    """The worst of all comparisons of one domain on one side; p-values are multiplied by their number (Bonferroni).

    Of those that chance does not explain the worst, if there is one: a few examples of another domain can lose more by chance.
    By domain, because a gain on one hides a loss on another; of the modules that answer for all domains, because a domain
    module is not meant to keep the others.
    """
    rows = [row for row in rows if row["domain"] is not None and row["module"] in ("mixture", "invariant")]
    if not rows:
        return _missing("forgetting", f"accuracy lost since {what}", "the runs have no module in common")

    def clear(row: dict[str, Any]) -> bool:
        return row["before"] - row["now"] > LIMITS.dropped and row["p_value"] * len(rows) < LIMITS.significant

    worst = max(rows, key=lambda row: (clear(row), row["before"] - row["now"]))
    value, p_value = worst["before"] - worst["now"], min(1.0, worst["p_value"] * len(rows))
    head = ("forgetting", f"accuracy lost since {what}, at most", value, 0.0)
    changed = f"{worst['lost']} answers lost, {worst['gained']} gained"
    where = f"{worst['module']} on {worst['domain']} ({worst['data']}): {changed}"
    if clear(worst):
        words = f"{where}; a lower learning rate, or training in two stages, keeps more"
        return Verdict(*head, FAILED, words)
    if value > LIMITS.dropped:
        return Verdict(*head, DOUBTFUL, f"{where}; may be chance (p = {p_value:.2f}), evaluate on more examples")
    return Verdict(*head, HEALTHY, f"nothing is forgotten; worst is {where}")


# -- interventions -----------------------------------------------------------------------------------------------------


def _interventions(section: dict[str, Any]) -> Iterator[Verdict]:
    """Whether a module can be changed alone, and whether its own examples need it."""
    if not section["measured"]:
        yield _missing("interventions", "modules changed alone", section["reason"])
        return
    effects = section["effects"]
    moved = max(
        (
            value
            for matrix in effects["moved"].values()
            for i, row in enumerate(matrix)
            for j, value in enumerate(row)
            if i != j
        ),
        default=0.0,
    )
    words = "changing one module leaves the others and the routes exactly as they were"
    healthy = section["isolated"] and not effects["routes_changed"]
    if not healthy:
        words = f"a change of one module moved another, or {effects['routes_changed']} routes: a fault of the software, report it"
    yield Verdict("interventions", "move of other modules, nats", moved, 0.0, HEALTHY if healthy else FAILED, words)
    yield _swap(section["swap"])


def _swap(section: dict[str, Any]) -> Verdict:
    figure = "accuracy of the router's module above the others"
    found = section["advantage"]
    if found is None:
        return _missing("interventions", figure, "one domain module: there is no other to put in its place")
    head = ("interventions", figure, found["value"], 0.0)
    if found["high"] < 0:
        return Verdict(*head, FAILED, "the other modules answer better: the routes are wrong; try another router")
    if found["low"] > 0:
        return Verdict(*head, HEALTHY, "the modules have specialised: the right one answers better")
    if found["high"] <= LIMITS.dropped:
        words = (
            "any domain module does as well: they have not specialised; train longer, raise domain_weight or mi_weight"
        )
    else:
        words = f"up to {found['high']:.2f} better or no better at all; evaluate on more examples to tell"
    return Verdict(*head, DOUBTFUL, words)


_RULES: dict[str, Callable[[dict[str, Any]], Iterator[Verdict]]] = {
    "routing": _routing,
    "independence": _independence,
    "overfitting": _overfitting,
    "forgetting": _forgetting,
    "interventions": _interventions,
}


# -- tables ------------------------------------------------------------------------------------------------------------

Row = tuple[str, str, str]  # figure, value, reference


def diagnosis_tables(report: dict[str, Any]) -> list[Table]:
    """One table for each failure: what was measured, then each figure that was judged with its verdict."""
    judged = verdicts(report)
    tables = []
    for failure in FAILURES:
        section = report[failure]
        table = Table(title=f"{failure} of {report['run']}", title_justify="left")
        for name in ("figure", "value", "reference", "verdict", "what it means"):
            table.add_column(name)
        for row in _DETAILS[failure](section) if section["measured"] else ():
            table.add_row(*row, "", "")
        for item in judged:
            if item.failure == failure:
                table.add_row(item.figure, _number(item.value), _number(item.reference), item.verdict, item.words)
        tables.append(table)
    return tables


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _routing_rows(section: dict[str, Any]) -> Iterator[Row]:
    for side in ("iid", "ood"):
        found = section.get(side)
        if found is None:
            continue
        for code, counts in enumerate(found["table"]["counts"]):
            pairs = zip(found["table"]["domains"], counts, strict=True)
            yield f"domain_{code}, {side}", ", ".join(f"{n} {name}" for name, n in pairs if n) or "no example", ""
        yield f"codes in effective use, {side}", f"{found['perplexity']:.2f}", f"{len(found['usage'])}"
        if found["normalized_mutual_information"] is not None:
            yield f"normalised mutual information, {side}", _number(found["normalized_mutual_information"]), "0 to 1"


def _overfitting_rows(section: dict[str, Any]) -> Iterator[Row]:
    majority = section["majority"]
    for row in section["modules"]:
        if row["ood"] is None:
            yield f"{row['module']}, iid", share(row["iid"]["overall"]), _majority(majority["iid"])
        else:
            value = f"{share(row['iid']['overall'])} → {share(row['ood']['overall'])}"
            yield f"{row['module']}, iid → ood", value, f"{_majority(majority['iid'])} → {_majority(majority['ood'])}"


def _majority(found: dict[str, Any]) -> str:
    return f"majority {found['overall']['value']:.2f}"


def _forgetting_rows(section: dict[str, Any]) -> Iterator[Row]:
    rows = [*section["base"], *section["earlier"].get("rows", ())]
    for row in rows:
        if row["domain"] is None:
            what = "base" if row["reference"] == "base" else f"earlier {row['reference']}"
            value = f"{row['before']:.2f} → {row['now']:.2f}"
            changed = f"{row['lost']} lost, {row['gained']} gained, p = {row['p_value']:.3f}"
            yield f"{what} → {row['module']}, {row['data']}", value, changed


def _intervention_rows(section: dict[str, Any]) -> Iterator[Row]:
    names = section["swap"]["modules"]
    for row in section["swap"]["routed"]:
        cells = [f"{name} {_number(cell['value'])}" for name, cell in zip(names, row["accuracy"], strict=True)]
        yield f"routed to {row['source']}, answered by", ", ".join(cells), f"n = {row['n']}"


def _independence_rows(section: dict[str, Any]) -> Iterator[Row]:
    for name, found in section["by_domain"].items():
        if "skipped" in found:
            continue
        ksg, hsic, r = found["ksg"], found["hsic"], found["correlation"]
        shuffled = f"shuffled {ksg['permuted_mean']:.2f} ± {ksg['permuted_sd']:.2f}, p = {ksg['p_value']:.3f}"
        total = found["identical"]["estimate"]
        yield (
            f"mutual information, {name} (n = {found['n']})",
            f"{ksg['estimate']:.2f} nats",
            f"{shuffled}; of {found['n']} a state with itself: {total:.2f}",
        )
        yield (
            f"HSIC, {name}",
            _number(hsic["statistic"]),
            f"shuffled {hsic['permuted_mean']:.3f}, p = {hsic['p_value']:.3f}",
        )
        yield f"linear CKA, {name}", _number(found["cka"]), f"shuffled {found['cka_permuted_mean']:.3f}"
        yield f"mean |r|, {name}", _number(r["mean"]), f"shuffled {r['permuted_mean']:.3f}, p = {r['p_value']:.3f}"


_DETAILS: dict[str, Callable[[dict[str, Any]], Iterator[Row]]] = {
    "routing": _routing_rows,
    "independence": _independence_rows,
    "overfitting": _overfitting_rows,
    "forgetting": _forgetting_rows,
    "interventions": _intervention_rows,
}


# -- on disk -----------------------------------------------------------------------------------------------------------


def check_folder(out: Path, *, overwrite: bool) -> None:
    """Raise `ConfigurationError` if a diagnosis cannot be written to a folder; changes nothing."""
    check_replaceable(out, FILE, (FILE, *PLOTS), "a diagnosis", overwrite=overwrite)


def with_verdicts(report: dict[str, Any]) -> dict[str, Any]:
    """The report with its verdicts, as diagnosis.json holds it."""
    return {**report, "verdicts": [asdict(verdict) for verdict in verdicts(report)]}


def write_diagnosis(report: dict[str, Any], out: str | Path, *, overwrite: bool = False) -> list[Path]:
    """Write diagnosis.json and the plots to a folder, whole or not at all.

    Args:
        report: what `diagnose` measured.
        out: the folder to make.
        overwrite: replace an existing diagnosis.

    Returns:
        The files written.

    Raises:
        ConfigurationError: the folder exists and is not to be replaced, or cannot be written.
    """
    out = Path(out)
    check_folder(out, overwrite=overwrite)
    target = out.resolve()  # what a link points to is replaced, not the link
    made = target.parent / f".iclm-{secrets.token_hex(8)}.tmp"
    try:
        try:
            made.mkdir(parents=True)
        except OSError as error:
            raise ConfigurationError(f"cannot write {out}: {error.strerror}") from error
        with atomic_write(made / FILE) as stream:
            json.dump(with_verdicts(report), stream, indent=2, allow_nan=False)
            stream.write("\n")
        names = [FILE, *(path.name for path in write_plots(report, made))]
        if target.exists():
            shutil.rmtree(target)
        made.rename(target)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return [out / name for name in names]
