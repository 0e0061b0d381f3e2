"""The tables of the estimators, and that docs/independence.md shows those of the committed run."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from iclm.report.estimators import estimators_markdown, estimators_table

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results" / "independence" / "estimators.jsonl"
DOCS = ROOT / "docs" / "independence.md"


def row(
    estimator, mean, *, kind="measure", distribution="gaussian", truth=0.25, n=200, rejected=None, sd=0.0312, rho=0.5
):
    return {
        **{"estimator": estimator, "kind": kind, "distribution": distribution, "dims": 4, "rho": rho, "n": n},
        **{"truth": truth, "mean": mean, "sd": sd, "rejected": rejected, "repetitions": 10, "seconds": 0.1},
    }


ROWS = [
    row("ksg", 0.2514),
    row("hsic", 0.1, rejected=0.7),
    row("club", 0.3, kind="loss"),
    row("ksg", -0.0001, n=1000, truth=0.0, rho=0.0),
    row("ksg", 5.0, distribution="identical", truth=None, sd=None, rho=1.0),
    row("leakage", 0.7, distribution="mean shift 1", truth=0.6915, rejected=1.0, rho=None),
]


def lines_with(text, *words):
    return [line for line in text.splitlines() if all(word in line for word in words)]


def shown(rows):
    console = Console(file=io.StringIO(), width=160)
    console.print(estimators_table(rows))
    return console.file.getvalue()


def test_markdown_has_a_line_for_each_distribution_and_size_and_a_column_for_each_estimator():
    text = estimators_markdown(ROWS)
    assert [line for line in text.splitlines() if line.endswith(":")] == ["Measures:", "Losses:", "Leakage:"]
    assert "| pairs | d | ρ | MI | n | KSG | HSIC |" in text
    assert "| gaussian | 4 | 0.50 | 0.25 | 200 | 0.251 ± 0.031 | 0.100 ± 0.031, 70% |" in text
    assert "| gaussian | 4 | 0.00 | 0.00 | 1000 | 0.000 ± 0.031 | – |" in text
    assert "| identical | 4 | 1.00 | ∞ | 200 | 5.000 | – |" in text
    assert "| mean shift 1 | 4 | 0.69 | 200 | 0.700 ± 0.031, 100% |" in text
    assert "| gaussian | 4 | 0.50 | 0.25 | 200 | 0.300 ± 0.031 |" in text


def test_the_terminal_shows_the_same_cells():
    text = shown(ROWS)
    assert lines_with(text, "gaussian", "0.251 ± 0.031", "0.100 ± 0.031, 70%")
    assert lines_with(text, "identical", "∞", "5.000")
    assert lines_with(text, "mean shift 1", "0.700 ± 0.031, 100%")
    assert all(title in text for title in ("Measures", "Losses", "Leakage"))


def test_a_table_without_lines_is_left_out():
    assert "Losses" not in estimators_markdown(ROWS[:2]) and "Leakage" not in shown(ROWS[:2])
    assert estimators_markdown([]).strip() == shown([]).strip() == ""


@pytest.fixture(scope="module")
def committed():
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]


def test_the_documentation_shows_the_tables_of_the_committed_run(committed):
    text = DOCS.read_text(encoding="utf-8")
    _, _, rest = text.partition("<!-- results: results/independence/estimators.jsonl -->\n")
    block, end, _ = rest.partition("<!-- /results -->")
    assert end and block == estimators_markdown(committed)


def test_the_documentation_names_every_loss_and_measure():
    from iclm.evaluation import independence
    from iclm.model.independence import LOSSES

    overview, _, _ = DOCS.read_text(encoding="utf-8").partition("\n## ")
    table = [line for line in overview.splitlines() if line.startswith("| `")]
    named = {line.split("`")[1] for line in table}
    measures = {"mutual_information_report", "linear_cka", "hsic_test", "correlation_report", "domain_leakage"}
    assert named == {*LOSSES, *measures} and measures <= set(independence.__all__)


def test_the_committed_run_is_what_the_study_does_by_default(committed):
    from iclm.model.independence import LOSSES
    from iclm.studies.estimators import CRITICS, MEASURES, SAMPLES, SHIFTS, distributions

    tried = {(p.name, p.dims, n) for p in distributions() for n in SAMPLES}
    for kind, names in (("measure", MEASURES), ("loss", LOSSES)):
        for name in names:
            found = [r for r in committed if (r["kind"], r["estimator"]) == (kind, name)]
            assert {(r["distribution"], r["dims"], r["n"]) for r in found} == tried
            assert {r["repetitions"] for r in found} == {3 if kind == "loss" and name in CRITICS else 10}
    assert sum(r["estimator"] == "leakage" for r in committed) == len(SHIFTS) * len(SAMPLES)


def test_the_false_positives_of_every_test_are_about_as_many_as_its_level_says(committed):
    for name in ("ksg_pca", "hsic", "correlation", "leakage"):
        none = 0.5 if name == "leakage" else 0.0
        rows = [r for r in committed if r["estimator"] == name and r["kind"] == "measure" and r["truth"] == none]
        tests = sum(r["repetitions"] for r in rows)
        assert tests >= 20
        # 8 of 60 or 5 of 20 would happen about once in 100 times at a level of 5%
        assert sum(r["rejected"] * r["repetitions"] for r in rows) < (8 if tests >= 60 else 5), name
