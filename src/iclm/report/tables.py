"""Results as tables for the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

ROWS = (
    ("iclm", "mixture", "ICLM: mixture"),
    ("iclm", "invariant", "  invariant module alone"),
    ("iclm", "domain_", "  domain module {} alone"),
    ("iclm", "oracle", "  mixture, oracle routing"),
    ("lora", "mixture", "plain LoRA, same examples"),
    ("base", "mixture", "untouched base model"),
)


def share(values: dict[str, Any]) -> str:
    """An accuracy with its 95% interval, for instance ".81 [.72 .87]"."""
    if values["value"] is None:
        return "–"
    return f"{values['value']:.2f} [{values['low']:.2f} {values['high']:.2f}]"


def quickstart_table(summary: dict[str, Any]) -> Table:
    """The table of the quickstart: methods and modules × test splits."""
    table = Table(title=f"ACRE accuracy [95% interval], {summary['queries_per_column']} queries a column")
    table.add_column("trained on IID")
    for name in summary["columns"]:
        table.add_column(name if name.startswith("IID") else f"{name} (o.o.d.)", justify="right")
    for method, module, label in ROWS:
        named = {r["module"] for r in summary["rows"] if r["method"] == method and r["module"].startswith(module)}
        names = sorted(named, key=lambda name: (len(name), name))
        for name in names:
            cells = {
                f"{r['regime']} {r['format']}": share(r)
                for r in summary["rows"]
                if r["method"] == method and r["module"] == name
            }
            table.add_row(label.format(name.removeprefix("domain_")), *(cells[c] for c in summary["columns"]))
    table.add_row("majority answer", *(f"{summary['majority'][c]['value']:.2f}" for c in summary["columns"]))
    return table


def routing_lines(routing: dict[str, Any]) -> list[str]:
    """Routing accuracy beside chance, and the use of the codes, as lines of text."""
    usage = ", ".join(f"{value:.2f}" for value in routing["usage"])
    lines = [f"use of the domain modules: {usage}; perplexity {routing['perplexity']:.2f} of {len(routing['usage'])}"]
    if routing.get("accuracy") is not None:
        match = ", ".join(f"domain_{code} ← {domain}" for code, domain in sorted(routing["assignment"].items()))
        lines.insert(
            0, f"routing accuracy {routing['accuracy']:.3f}, by chance {routing['chance']:.3f} (best match: {match})"
        )
    return lines


def dependence_lines(dependence: dict[str, Any], domains: list[str]) -> list[str]:
    """Mutual information of the two sides' states within each domain, as lines of text."""
    lines = []
    for number, found in sorted(dependence.items(), key=lambda item: int(item[0])):
        name = domains[int(number)] if 0 <= int(number) < len(domains) else "unknown domain"
        what = f"mutual information of invariant and domain states, {name}"
        if "skipped" in found:
            lines.append(f"{what}: not measured ({found['skipped']})")
            continue
        shuffled = f"shuffled pairs {found['permuted_mean']:.2f} ± {found['permuted_sd']:.2f}, n = {found['n']}"
        lines.append(f"{what}: {found['estimate']:.2f} nats ({shuffled})")
    return lines


def independence_table(found: dict[str, Any], domains: dict[str, str]) -> Table:
    """The table of `iclm evaluate --independence`: a row for each domain and measure; `domains` are their names by number."""
    table = Table(title="dependence of invariant and domain states at the answer, within each domain")
    for name in ("domain", "measure"):
        table.add_column(name)
    for name in ("figure", "shuffled or by chance", "p"):
        table.add_column(name, justify="right")
    for number, values in found.items():
        if number == "leakage":
            continue
        name = domains[number]
        if "skipped" in values:
            table.add_row(name, values["skipped"], "–", "–", "–")
            continue
        ksg, hsic, correlation = values["ksg"], values["hsic"], values["correlation"]
        rows = (
            ("KSG mutual information, nats", ksg["estimate"], ksg["permuted_mean"], ksg["p_value"]),
            ("linear CKA", values["cka"], values["cka_permuted_mean"], None),
            ("HSIC", hsic["statistic"], hsic["permuted_mean"], hsic["p_value"]),
            ("correlation, mean |r|", correlation["mean"], correlation["permuted_mean"], correlation["p_value"]),
        )
        for label, value, chance, p in rows:
            table.add_row(name, label, f"{value:.2f}", f"{chance:.2f}", "–" if p is None else f"{p:.3f}")
    leakage = found["leakage"]
    if "accuracy" in leakage:
        cells = f"{leakage['accuracy']:.2f}", f"{leakage['chance']:.2f}", f"{leakage['p_value']:.3f}"
        table.add_row("all", "accuracy of a probe that tells the domain", *cells)
    return table


def evaluation_table(report: dict[str, Any]) -> Table:
    """The table of `iclm evaluate`: a row for each file and module."""
    kinds = sorted({kind for row in report["data"] for m in row["modules"] for kind in m.get("by_kind", {})})
    table = Table(title=f"accuracy [95% interval] of {report['run']} ({report['answers']})")
    for name in ("data", "domain", "module"):
        table.add_column(name)
    for name in ("n", "accuracy"):
        table.add_column(name, justify="right")
    partial = any("partial" in m for row in report["data"] for m in row["modules"])
    if partial:
        table.add_column("partial match", justify="right")
    for kind in kinds:
        table.add_column(kind, justify="right")
    for row in report["data"]:
        for found in row["modules"]:
            cells = [row["file"], row["domain"] or "–", _module(report, found["module"]), str(found["n"]), share(found)]
            if partial:
                cells.append(share(found["partial"]))
            by_kind = found.get("by_kind", {})
            cells += [share(by_kind[kind]) if kind in by_kind else "–" for kind in kinds]
            table.add_row(*cells)
        if "majority" in row:
            empty = [""] * (len(kinds) + partial)
            table.add_row(row["file"], "", "majority answer", str(row["n"]), f"{row['majority']['value']:.2f}", *empty)
    return table


def loss_table(report: dict[str, Any]) -> Table:
    """The table of `iclm evaluate --loss`: a row for each file and module."""
    table = Table(title=f"loss of the answers, nats a token [95% interval], of {report['run']}")
    for name in ("data", "domain", "module"):
        table.add_column(name)
    for name in ("n", "tokens", "loss", "perplexity"):
        table.add_column(name, justify="right")
    for row in report["data"]:
        for found in row["modules"]:
            ends = "" if found["low"] is None else f" [{found['low']:.3f} {found['high']:.3f}]"
            cells = [
                row["file"],
                row["domain"] or "–",
                _module(report, found["module"]),
                f"{found['n']:,}",
                f"{found['tokens']:,}",
            ]
            table.add_row(*cells, f"{found['loss']:.3f}{ends}", f"{found['perplexity']:.4g}")
    return table


def _module(report: dict[str, Any], module: str) -> str:
    """What a row calls a module: its place, and what a user calls it."""
    name = report.get("names", {}).get(module, module)
    return module if name == module else f"{module} ({name})"


def modules_table(rows: list[dict[str, Any]]) -> Table:
    """The table of `iclm modules RUN list`: a row for each module."""
    table = Table(title="modules; norm: Frobenius norm of the update s B A over all layers")
    for name in ("module", "name", "domains"):
        table.add_column(name)
    for name in ("parameters", "norm", "code", "validation routes"):
        table.add_column(name, justify="right")
    for row in rows:
        share = "–" if row["share"] is None else f"{row['share']:.2f}"
        code = "yes" if row["code"] else "no"
        domains = ", ".join(row["domains"]) or "–"
        norm = "not finite" if row["norm"] is None else f"{row['norm']:.3g}"
        table.add_row(row["module"], row["name"], domains, f"{row['parameters']:,}", norm, code, share)
    return table


def conformance_table(rows: list[dict[str, Any]]) -> Table:
    """The table of `iclm data conformance`: a row for each official file."""
    table = Table(title="official files against our solvers, renderings and generators")
    for name in (
        "file",
        "problems",
        "labels found",
        "ambiguous",
        "bytes kept",
        "renderings equal",
        "smallest p",
        "passed",
    ):
        table.add_column(name, justify="left" if name == "file" else "right")
    for row in rows:
        p_values = row["p_values"]
        table.add_row(
            row["file"],
            str(row["problems"]),
            "–" if row["total"] is None else f"{row['agree']}/{row['total']}",
            "–" if row["ambiguous"] is None else str(row["ambiguous"]),
            "–" if row["round_trip"] is None else ("yes" if row["round_trip"] else "no"),
            "–" if row["rendering"] is None else f"{row['rendering']}/{row['problems']}",
            f"{min(p_values.values()):.3f}" if p_values else "–",
            "yes" if row["passed"] else "NO",
        )
    return table
