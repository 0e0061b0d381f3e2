"""The continual blocks of README.md and docs/: each is, character by character, what results/continual/ gives."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "continual"
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def tables():
    from iclm.report.continual import texts
    from iclm.studies.continual.results import collect, summarise

    return texts(summarise(collect([RESULTS])))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_block_is_what_the_committed_results_give(path):
    from iclm.report.blocks import CONTINUAL, with_blocks

    text = path.read_text(encoding="utf-8")
    if "<!-- continual:" in text or "<!-- /continual" in text:
        assert with_blocks(text, tables(), path.name, CONTINUAL) == text, (
            f"iclm continual report results/continual --write {path.relative_to(ROOT)}"
        )


def test_there_is_a_block_and_every_committed_table_is_made_of_the_rows_beside_it():
    assert any("<!-- continual:" in path.read_text(encoding="utf-8") for path in FILES)
    committed = (RESULTS / "tables.md").read_text(encoding="utf-8")
    assert all(table in committed for table in tables().values())


@pytest.mark.parametrize(("name", "count"), [("short", 23), ("ewc", 4), ("long", 3)])
def test_a_committed_sequence_is_known_to_its_recipe(name, count):
    """So that `iclm continual RECIPE --known results/continual` does none of them again."""
    from iclm.studies.continual.recipe import load_continual, with_boundaries
    from iclm.studies.continual.runner import sequence_jobs

    recipe = load_continual(ROOT / "recipes" / "continual" / f"{name}.yaml")
    told = [with_boundaries(recipe, boundaries) for boundaries in ("known", "unknown")]
    known = {job.folder: job.spec["recipe"] for each in told for job in sequence_jobs(each, name)}
    lines = map(json.loads, (RESULTS / "sequences.jsonl").read_text(encoding="utf-8").splitlines())
    found = [line for line in lines if line["sequence"] == name]
    assert len(found) == count and not {line["job"] for line in found} - set(known)
    assert all(line["recipe"]["model"] == known[line["job"]]["model"] for line in found)
    rows = map(json.loads, (RESULTS / "rows.jsonl").read_text(encoding="utf-8").splitlines())
    assert {row["job"] for row in rows if row["sequence"] == name} == {line["job"] for line in found}


def test_the_figures_of_the_long_sequence_are_of_the_tasks_that_opened_a_module():
    (done,) = [
        line
        for line in map(json.loads, (RESULTS / "sequences.jsonl").read_text(encoding="utf-8").splitlines())
        if (line["sequence"], line["method"]) == ("long", "iclm")
    ]
    opened = {task: f"domain_{unit['module']}" for unit in done["units"] if unit["opened"] for task in unit["tasks"]}
    assert len(opened) == 9 and len(done["tasks"]) == 12
    right = {
        (row["module"], row["tested_on"]): row["correct"] / row["n"]
        for row in map(json.loads, (RESULTS / "rows.jsonl").read_text(encoding="utf-8").splitlines())
        if row["job"] == done["job"] and row["trained_through"] == 12
    }
    own, mixture = (
        f"{sum(right[module, task] for task, module in pairs) / 9:.3f}".removeprefix("0")
        for pairs in (opened.items(), dict.fromkeys(opened, "mixture").items())
    )
    text = " ".join((ROOT / "docs" / "continual.md").read_text(encoding="utf-8").split())
    assert (
        f"nine tasks that opened one, they are at {own} and the mixture, on the same tasks at the end, at {mixture}."
        in text
    )
