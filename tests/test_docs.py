"""The tables of docs/data.md, and that of diagnoses in docs/results.md, say what the committed result files say."""

import json
import re
from pathlib import Path

import pytest

from iclm.data import raven
from iclm.recipe import DataSource
from iclm.studies.study.rows import from_bits

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "data"
AUDITS = ("audit_acre_official.json", "audit_acre_strict.json", "audit_raven.json")


@pytest.fixture(scope="module")
def lines():
    return (ROOT / "docs" / "data.md").read_text(encoding="utf-8").splitlines()


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_the_table_of_shortcuts_is_what_the_audits_found(lines):
    splits = [split for name in AUDITS for split in json.loads((RESULTS / name).read_text())["splits"]]
    start = next(i for i, line in enumerate(lines) if line.startswith("| strategy |"))
    assert cells(lines[start])[1:] == [split["name"] for split in splits]
    rows = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows[cells(line)[0]] = cells(line)[1:]
    assert list(rows) == [strategy["name"] for strategy in splits[0]["strategies"]]
    for name, row in rows.items():
        for cell, split in zip(row, splits, strict=True):
            found = next(strategy for strategy in split["strategies"] if strategy["name"] == name)
            if found.get("accuracy") is None:
                assert cell == "–"
                continue
            figure = f"{found['accuracy']:.3f}"
            assert cell == (f"**{figure}**" if found["verdict"] == "shortcut" else figure), (name, split["name"])


def test_order_is_named_on_official_acre_only_and_choices_on_raven_only():
    verdicts = {}
    for name in AUDITS:
        for split in json.loads((RESULTS / name).read_text())["splits"]:
            verdicts[split["name"]] = {s["name"] for s in split["strategies"] if s["verdict"] == "shortcut"}
    assert "last item" in verdicts["ACRE official, symbolic"]
    assert "last item" not in verdicts["ACRE strict, symbolic"]
    for form in ("symbolic", "text"):
        assert "choices only, most alike" in verdicts[f"RAVEN center_single, {form}"]
        assert not verdicts[f"I-RAVEN center_single, {form}"]


@pytest.mark.parametrize(
    ("label", "pattern"),
    [("ACRE", "acre/"), ("RAVEN", "raven/raven_"), ("I-RAVEN", "raven/iraven_"), ("RAVEN-FAIR", "raven/ravenfair_")],
)
def test_the_table_of_conformance_adds_up(lines, label, pattern):
    rows = json.loads((RESULTS / "conformance.json").read_text())
    assert all(row["passed"] for row in rows)
    chosen = [row for row in rows if row["file"].startswith(pattern) and row["total"]]
    wanted = [label, *(str(sum(row[key] for row in chosen)) for key in ("agree", "ambiguous", "total"))]
    start = next(i for i, line in enumerate(lines) if line.startswith("| files |"))
    assert wanted in [cells(line) for line in lines[start + 2 :] if re.match(r"\|", line)]


def diagnosed(report):
    """The rows of the table of docs/results.md that a diagnosis gives."""
    verdicts = {verdict["figure"]: verdict["value"] for verdict in report["verdicts"]}
    sides = report["interventions"]["swap"]["routed"]
    assert [side["source"] for side in sides] == ["domain_0", "domain_1"] and all(side["n"] == 120 for side in sides)
    own, other = (
        sum(side["accuracy"][abs(number - shift)]["correct"] for number, side in enumerate(sides)) / 240
        for shift in (0, 1)
    )
    hsic = "dependence of invariant and domain states, normalised HSIC, "
    return [
        verdicts["routing accuracy"],
        own,
        other,
        verdicts[hsic + "symbolic"],
        verdicts[hsic + "text"],
        verdicts["domain told from invariant states"],
    ]


def test_the_table_of_panels_by_their_figures_is_what_the_study_found():
    read = [json.loads(line) for line in (ROOT / "results/study/jobs.jsonl").read_text().splitlines()]
    jobs = {line["id"]: line for line in read if line["state"] == "done"}
    counts = {}
    for line in (ROOT / "results/study/results.jsonl").read_text().splitlines():
        row = json.loads(line)
        if (row["train_set"], row["module"]) != ("raven", "mixture") or "distribute_four" not in row["test_set"]:
            continue
        source = DataSource.model_validate(jobs[row["job"]]["evaluate"][row["source"]])
        problems = raven.generate(source.raven, source.answers, source.problems, source.seed, source.split)
        for problem, right in zip(problems, from_bits(row["answers"], row["n"]), strict=True):
            figures = [sum(map(len, panel)) for panel in problem.panels[8:]]
            fewest, alike = figures[problem.target] == min(figures), len(set(figures)) == 1
            name = f"{row['method']}, {row['score']}"
            column = counts.setdefault(name, {}).setdefault(2 if alike else 0 if fewest else 1, [0, 0])
            column[0] += bool(right)
            column[1] += 1
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    block = text.partition("<!-- results: results/study/results.jsonl -->\n")[2].partition("<!-- /results -->")[0]
    shown = [cells(line) for line in block.splitlines()[2:]]
    methods = ("base", "lora", "iclm", "iclm-no-mi", "lora-wide")
    assert [row[0] for row in shown] == [
        name for name in (f"{method}, {score}" for method in methods for score in ("sum", "mean")) if name in counts
    ]
    assert shown == [[name, *("{} of {}".format(*counts[name][column]) for column in range(3))] for name, *_ in shown]


def test_the_table_of_diagnoses_is_what_they_found():
    folder = ROOT / "results" / "diagnosis"
    reports = [json.loads((folder / f"acre-iclm-seed-{seed}.json").read_text()) for seed in (0, 1, 2, 4)]
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    block = text.partition("<!-- results: results/diagnosis -->\n")[2].partition("<!-- /results -->")[0]
    shown = [cells(line)[1:] for line in block.splitlines()[2:]]
    assert shown == [[f"{value:.3f}" for value in row] for row in zip(*map(diagnosed, reports), strict=True)]
