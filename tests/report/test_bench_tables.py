"""Benchmarks as tables: from rows made by hand, and the committed figures against the documentation."""

import json
from pathlib import Path

import pytest

from iclm.recipe import parse_recipe
from iclm.report.bench import bench_caption, bench_markdown, bench_table, learning_cells, learning_markdown

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results" / "bench"
FILES = ("step", "memory", "generate", "evaluate")


def row(name="step_half", ratio=1.2, unit="s", k=2):
    return {"name": name, "k": k, "ratio": ratio, "low": 1.1, "high": 1.3, "ours": 3.604, "theirs": 3.0, "unit": unit}


def of(*rows, rounds=5):
    return {"rows": rows, "rounds": rounds}


def test_a_figure_stands_beside_its_goal():
    lines = bench_markdown(
        [of(row(), row(ratio=1.0), row("score_speedup", 6.0)), of(row("step_half_vs_peft", 0.7))]
    ).splitlines()
    assert "| 2 | 1.20 | 1.10 to 1.30 | 3.6 s | 3 s | ≤ 1.15, missed |" in lines[2]
    assert [line.split(" | ")[-1] for line in lines[3:]] == ["≤ 1.15, met |", "≥ 5, met |", "– |"]
    assert len({line.count("|") for line in lines}) == 1
    assert bench_table(of(row())).row_count == 1


def test_one_round_has_no_range():
    once = {**row("memory_half"), "low": 1.2, "high": 1.2}
    assert "| 2 | 1.20 | – | 3.6 GiB |" in bench_markdown([of({**once, "unit": "GiB"}, rounds=1)])
    assert "| 1.20 to 1.20 |" in bench_markdown([of(once, rounds=2)]), "two rounds that agree have one"


def learned(method, split, accuracies, step):
    """Rows of one training with two validation sources of 10 questions, evaluated after every 10 steps of 4 examples."""
    return [
        {
            **{"method": method, "split": split, "examples": 40 * i, "steps": 10 * i, "step_seconds": step},
            **{"set": name, "n": 10, "correct": round(10 * accuracy)},
        }
        for i, accuracy in enumerate(accuracies, 1)
        for name in ("a", "b")
    ]


def test_accuracy_is_compared_after_equal_examples_and_after_equal_seconds():
    rows = [
        *learned("lora", 0.0, [0.4, 0.6], 2.0),
        *learned("iclm", 0.0, [0.3, 0.9], 4.0),
        *learned("iclm", 0.75, [0.3, 0.5], 1.0),
    ]
    header, lines = learning_cells(rows)
    assert header == ["contestant", "after 40 examples", "after 80 examples", "step", "after equal seconds"]
    assert lines[0] == ["plain LoRA, all layers", "0.40", "0.60", "1.00", "0.60"]
    assert lines[1] == ["ICLM, split 0", "0.30", "0.90", "2.00", "0.30"], "half of the examples in as many seconds"
    assert lines[2] == ["ICLM, split 0.75", "0.30", "0.50", "0.50", "–"], "it stopped before"
    assert len({line.count("|") for line in learning_markdown(rows).splitlines()}) == 1


@pytest.fixture(scope="module")
def committed():
    return {name: json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in FILES}


def block(document, mark):
    text = (ROOT / document).read_text(encoding="utf-8")
    found = text.partition(f"<!-- results: {mark} -->\n")[2].partition("<!-- /results -->")
    assert found[1], f"{document} has no table of {mark}"
    return found[0]


@pytest.mark.parametrize("document", ["README.md", "docs/speed.md"])
def test_the_documentation_shows_the_committed_figures(committed, document):
    assert block(document, "results/bench") == bench_markdown(committed.values())


def test_the_documentation_shows_what_compiling_gave():
    found = json.loads((RESULTS / "compiled.json").read_text(encoding="utf-8"))
    found["rows"] = [row for row in found["rows"] if row["name"].startswith("compile_")]
    assert len(found["rows"]) == 2
    assert block("docs/speed.md", "results/bench/compiled.json") == bench_markdown([found])


def test_the_documentation_shows_what_a_split_costs():
    rows = [json.loads(line) for line in (RESULTS / "learning.jsonl").read_text(encoding="utf-8").splitlines()]
    assert block("docs/speed.md", "results/bench/learning.jsonl") == learning_markdown(rows)
    # a field that came later has its default in older rows
    assert len({parse_recipe(row["recipe"]).model_dump_json() for row in rows}) == 1


def test_the_committed_figures_say_how_they_were_made(committed):
    for name, found in committed.items():
        assert found["command"].startswith(f"iclm bench {name} ") and found["machine"]["threads"] == 2
        assert "AMD EPYC" in bench_caption(found)
        assert all(row["low"] <= row["ratio"] <= row["high"] for row in found["rows"])
    assert {"torch", "transformers", "peft"} <= set(committed["step"]["versions"])


def test_the_documentation_says_of_what_and_in_how_many_rounds_each_figure_is(committed):
    text = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    words = {1: "one round", 5: "five rounds", 7: "seven rounds"}
    given = {name: f"{found['workload']['batch']} examples of 96 tokens" for name, found in committed.items()}
    given["generate"] = f"{committed['generate']['workload']['batch']} prompts of 96 tokens"
    problems = int(committed["evaluate"]["command"].partition("--problems ")[2].split()[0])
    given["evaluate"] = f"{2 * 4 * problems} ACRE questions"
    lines = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("- `")}
    for name, found in committed.items():
        assert given[name] in lines[name] and words[found["rounds"]] in lines[name]
        assert found["command"].partition(" --out ")[0] + "\n" in text, "the command that made the figures"
