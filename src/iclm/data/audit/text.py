"""An audit report as text for a terminal."""

from __future__ import annotations

from iclm.data.audit.duplicates import Duplicates
from iclm.data.audit.report import UNUSED, AuditReport, SplitReport, StrategyResult

_FEW = 8


def render_text(report: AuditReport) -> str:
    """The report as lines of text: the shortcuts first, then each split, then the duplicates between splits."""
    lines = ["Shortcuts"]
    tested = any(result.verdict != UNUSED for split in report.splits for result in split.strategies)
    none = "  none found" if tested else "  no strategy could be tested on these examples"
    lines += [f"  {split}: {result.sentence}" for split, result in report.shortcuts] or [none]
    for split in report.splits:
        within = [row for row in report.duplicates if row.first == row.second == split.name]
        lines += ["", *_split(split), *(_duplicates(row) for row in within)]
    across = [row for row in report.duplicates if row.first != row.second]
    if across:
        lines += ["", "Between splits", *(_duplicates(row) for row in across)]
    return "\n".join(lines)


def _split(split: SplitReport) -> list[str]:
    chance = "the answer is free" if split.chance is None else f"chance {_percent(split.chance)}"
    lines = [f"{split.name}: {split.examples} examples of {split.problems} problems, {chance}"]
    lines.append(f"  answers    {_counts(split.answers, split.examples, split.different_answers)}")
    if split.positions:
        places = {str(position + 1): count for position, count in split.positions.items()}
        lines.append(f"  positions  {_counts(places, split.examples, len(places))}")
    for title, counts in (("domains", split.domains), ("kinds", split.kinds)):
        if set(counts) != {""}:
            named = {name or "(none)": count for name, count in counts.items()}
            lines.append(f"  {title:9}  {_counts(named, split.examples, len(named))}")
    lines.append(f"  length     {_lengths(split)}")
    lines.append("  strategy                    accuracy   95 % interval    must exceed   verdict")
    lines += [_strategy(result) for result in split.strategies]
    return lines


def _strategy(result: StrategyResult) -> str:
    if result.accuracy is None or result.low is None or result.high is None or result.reference is None:
        return f"  {result.name:26}  {'-':>8}   {UNUSED}: {result.sentence}"
    interval = f"{_percent(result.low)} - {_percent(result.high)}"
    return (
        f"  {result.name:26}  {_percent(result.accuracy):>8}   {interval:16} {_percent(result.reference):>9}"
        f"       {result.verdict}"
    )


def _lengths(split: SplitReport) -> str:
    lengths = split.lengths
    shown = ", ".join(f"{name} {value}" for name, value in lengths.quantiles.items())
    text = f"{shown} {lengths.unit}"
    if lengths.context is not None and lengths.cut is not None:
        least = "at least " if lengths.unit == "words" else ""
        share = _percent(lengths.cut / split.examples)
        text += f"; a context of {lengths.context} cuts {least}{lengths.cut} ({share})"
    return f"{text}; longest: {lengths.longest}"


def _duplicates(row: Duplicates) -> str:
    where = "" if row.first == row.second else f"{row.second} in {row.first}: "
    text = f"  {'duplicates' if not where else where.rstrip()} {row.repeated} of {row.size} repeat prompt and answer"
    if row.conflicting:
        text += f", {row.conflicting} repeat a prompt with another answer"
    if row.shown:
        text += f" (first: {row.shown[0][0]} and {row.shown[0][1]})"
    return text


def _counts(counts: dict[str, int], total: int, different: int) -> str:
    shown = [f"{name} {count} ({_percent(count / total)})" for name, count in list(counts.items())[:_FEW]]
    more = f", ... ({different} in all)" if different > len(shown) else ""
    return ", ".join(shown) + more


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
