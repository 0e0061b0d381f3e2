"""Tables for the terminal: every row and column that was measured is shown."""

import io

import pytest
from rich.console import Console

from iclm.report.tables import (
    dependence_lines,
    evaluation_table,
    independence_table,
    quickstart_table,
    routing_lines,
    share,
)

COLUMNS = ["IID symbolic", "Sys text"]


def shown(table, width=300):
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()


def accuracy(value, **more):
    return {"correct": 1, "n": 4, "value": value, "low": 0.25, "high": 0.75, **more}


def cells(method, module, value):
    regimes = [column.split() for column in COLUMNS]
    return [accuracy(value, method=method, module=module, regime=r, format=f) for r, f in regimes]


@pytest.fixture
def summary():
    rows = cells("iclm", "mixture", 0.11) + cells("iclm", "invariant", 0.12) + cells("iclm", "domain_0", 0.13)
    rows += cells("iclm", "domain_1", 0.14) + cells("iclm", "oracle", 0.15)
    rows += cells("lora", "mixture", 0.16) + cells("base", "mixture", 0.17)
    majority = {column: accuracy(0.18) for column in COLUMNS}
    return {"queries_per_column": 4, "columns": COLUMNS, "rows": rows, "majority": majority}


def test_the_quickstart_table_has_a_row_for_every_module_method_and_baseline(summary):
    lines = [line for line in shown(quickstart_table(summary)).splitlines() if "0.1" in line]
    labels = [line.strip("│ ").split("│")[0].strip() for line in lines]
    assert labels == [
        "ICLM: mixture",
        "invariant module alone",
        "domain module 0 alone",
        "domain module 1 alone",
        "mixture, oracle routing",
        "plain LoRA, same examples",
        "untouched base model",
        "majority answer",
    ]
    values = [float(line.split("│")[2].split()[0]) for line in lines]
    assert values == [0.11, 0.12, 0.13, 0.14, 0.15, 0.16, 0.17, 0.18]


def test_the_quickstart_table_marks_the_columns_out_of_distribution(summary):
    text = shown(quickstart_table(summary))
    assert "Sys text (o.o.d.)" in text
    assert "IID symbolic (o.o.d.)" not in text and "IID symbolic" in text


def test_ten_domain_modules_are_listed_in_the_order_of_their_numbers(summary):
    rows = [row for number in range(12) for row in cells("iclm", f"domain_{number}", 0.5)]
    lines = shown(quickstart_table({**summary, "rows": rows})).splitlines()
    numbers = [int(line.split("domain module ")[1].split()[0]) for line in lines if "domain module" in line]
    assert numbers == list(range(12))


def test_an_accuracy_is_shown_with_its_interval():
    assert share(accuracy(0.5)) == "0.50 [0.25 0.75]"
    assert share(accuracy(None)) == "–"


def evaluation(**more):
    modules = [{"module": "mixture", **accuracy(0.31, **more)}, {"module": "invariant", **accuracy(0.32, **more)}]
    row = {"file": "a.jsonl", "domain": None, "n": 4, "modules": modules, "majority": accuracy(0.33)}
    return {"run": "runs/a", "answers": "likeliest choice", "data": [row, {**row, "file": "b.jsonl", "domain": "text"}]}


def test_the_evaluation_table_has_a_row_for_every_file_module_and_majority():
    lines = [line for line in shown(evaluation_table(evaluation())).splitlines() if "jsonl" in line]
    found = [tuple(cell.strip() for cell in line.strip("│").split("│")) for line in lines]
    assert [(cell[0], cell[1], cell[2], cell[4][:4]) for cell in found] == [
        ("a.jsonl", "–", "mixture", "0.31"),
        ("a.jsonl", "–", "invariant", "0.32"),
        ("a.jsonl", "", "majority answer", "0.33"),
        ("b.jsonl", "text", "mixture", "0.31"),
        ("b.jsonl", "text", "invariant", "0.32"),
        ("b.jsonl", "", "majority answer", "0.33"),
    ]


def test_the_evaluation_table_has_a_column_for_partial_match_and_for_every_kind():
    more = {"partial": accuracy(0.41), "by_kind": {"direct": accuracy(0.42), "potential": accuracy(0.43)}}
    text = shown(evaluation_table(evaluation(**more)))
    assert all(word in text for word in ("partial match", "direct", "potential", "0.41 [", "0.42 [", "0.43 ["))


def test_routing_accuracy_stands_beside_chance():
    routing = {
        "accuracy": 0.95,
        "chance": 0.52,
        "assignment": {"0": "text", "1": "symbolic"},
        "usage": [0.4, 0.6],
        "perplexity": 1.96,
    }
    lines = routing_lines(routing)
    assert "0.950" in lines[0] and "0.520" in lines[0] and "domain_0 ← text, domain_1 ← symbolic" in lines[0]
    assert "0.40, 0.60" in lines[1] and "1.96 of 2" in lines[1]


def test_routing_without_domains_shows_the_usage_only():
    (line,) = routing_lines({"accuracy": None, "usage": [1.0, 0.0], "perplexity": 1.0})
    assert "1.00, 0.00" in line


def found(estimate):
    return {"estimate": estimate, "permuted_mean": 0.01, "permuted_sd": 0.02, "n": 50}


def test_dependence_names_the_domains():
    one, two = dependence_lines({"0": found(0.5), "1": found(0.25)}, ["symbolic", "text"])
    assert "symbolic: 0.50 nats" in one and "text: 0.25 nats" in two and "n = 50" in one


def test_dependence_that_was_not_measured_says_why():
    (skipped,) = dependence_lines({"0": {"n": 8, "skipped": "8 examples: too few"}}, ["symbolic", "text"])
    assert skipped.endswith("symbolic: not measured (8 examples: too few)")


def test_dependence_of_an_unknown_domain_is_not_given_the_name_of_another():
    (line,) = dependence_lines({"-1": found(0.5)}, ["symbolic", "text"])
    assert "text" not in line and "symbolic" not in line
    assert dependence_lines({"-1": found(0.5)}, [])


def test_the_table_of_independence_has_a_row_for_each_domain_and_measure():
    within = {
        "n": 40,
        "ksg": {"estimate": 1.234, "permuted_mean": 0.01, "p_value": 0.048},
        "cka": 0.5,
        "cka_permuted_mean": 0.1,
        "hsic": {"statistic": 0.25, "permuted_mean": 0.02, "p_value": 0.005},
        "correlation": {"mean": 0.3, "permuted_mean": 0.05, "p_value": 0.5},
    }
    found = {"0": within, "1": {"n": 3, "skipped": "3 examples"}, "leakage": {"n": 3, "skipped": "one domain"}}
    table = independence_table(found, {"0": "text", "1": "law"})
    columns = [list(column.cells) for column in table.columns]
    assert columns[0] == ["text"] * 4 + ["law"]
    assert columns[2] == ["1.23", "0.50", "0.25", "0.30", "–"]
    assert columns[4][0] == "0.048" and columns[4][1] == "–"
    leaking = {**found, "leakage": {"accuracy": 0.9, "chance": 0.5, "p_value": 0.01}}
    assert list(independence_table(leaking, {"0": "text", "1": "law"}).columns[2].cells)[-1] == "0.90"
