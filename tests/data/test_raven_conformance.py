"""Conformance: every file of a folder is checked, and what is wrong with one is found."""

import json
from pathlib import Path

import pytest

from iclm.data.commands import generate_acre, generate_raven, render_file
from iclm.data.conformance import conformance
from iclm.errors import ConfigurationError

OFFICIAL = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture
def folder(tmp_path):
    """A small folder laid out like the official one."""
    (tmp_path / "acre").mkdir()
    generate_acre("IID", "val", 60, 1, tmp_path / "acre" / "IID_val.json")
    problems = tmp_path / "raven" / "raven_up_down.jsonl"
    generate_raven("up_down", "raven", 40, 1, problems, "test")
    generate_raven("up_down", "raven", 3, 1, tmp_path / "raven" / "xml" / "up_down", "test", form="xml")
    for format in ("text", "symbolic"):
        render_file(problems, format, "official", tmp_path / "raven" / "evals" / f"up_down_{format}.jsonl")
    render_file(problems, "symbolic", "official", tmp_path / "raven" / "official_symbolic.jsonl")
    return tmp_path


def test_every_file_has_a_row_that_says_what_was_checked(folder):
    seen = []
    rows = {row["file"]: row for row in conformance(folder, progress=lambda *done: seen.append(done))}
    assert list(rows) == [
        "acre/IID_val.json",
        "raven/official_symbolic.jsonl",
        "raven/raven_up_down.jsonl",
        "raven/evals/up_down_symbolic.jsonl",
        "raven/evals/up_down_text.jsonl",
        "raven/xml/up_down/*.xml",
    ]
    assert seen[-1] == (6, 6)
    assert all(row["passed"] for row in rows.values())
    assert rows["acre/IID_val.json"]["agree"] == 240
    assert set(rows["raven/raven_up_down.jsonl"]["p_values"]) == {"rules", "attributes", "answers"}
    assert rows["raven/evals/up_down_text.jsonl"]["rendering"] == 40
    assert rows["raven/official_symbolic.jsonl"]["total"] == 40
    assert rows["raven/xml/up_down/*.xml"]["problems"] == 3
    assert json.dumps(list(rows.values()))


def test_a_wrong_target_a_changed_byte_and_a_damaged_file_fail(folder):
    path = folder / "raven" / "raven_up_down.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    row = json.loads(lines[3])
    row["target"] = (row["target"] + 1) % 8
    path.write_text("".join([*lines[:3], json.dumps(row) + "\n", *lines[4:]]))
    text = folder / "raven" / "evals" / "up_down_text.jsonl"
    text.write_text(text.read_text().replace("Above", "above", 1))
    (folder / "acre" / "IID_val.json").write_text("[")
    rows = {row["file"]: row for row in conformance(folder)}
    assert not rows["raven/raven_up_down.jsonl"]["passed"]
    assert any("problem 3 (RAVEN_19_test)" in note for note in rows["raven/raven_up_down.jsonl"]["notes"])
    assert not rows["raven/evals/up_down_text.jsonl"]["passed"]
    assert rows["raven/evals/up_down_text.jsonl"]["rendering"] == 38
    assert not rows["acre/IID_val.json"]["passed"]
    assert "IID_val.json: line 1: not valid JSON" in rows["acre/IID_val.json"]["notes"][0]


def test_the_command_says_why_a_file_fails(folder, monkeypatch, capsys):
    from iclm import cli

    (folder / "acre" / "IID_val.json").write_text("[")
    monkeypatch.setattr("sys.argv", ["iclm", "data", "conformance", str(folder)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "not valid JSON" in line]
    assert stop.value.code == 1 and line.startswith("acre/IID_val.json: ")


def test_renderings_without_their_problems_are_not_passed(folder):
    (folder / "raven" / "official_symbolic.jsonl").rename(folder / "raven" / "official_text.jsonl")
    rows = {row["file"]: row for row in conformance(folder)}
    assert not rows["raven/official_text.jsonl"]["passed"]
    assert "neither its problems nor their symbolic rendering" in rows["raven/official_text.jsonl"]["notes"][0]


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="nothing to check; expected the sub-folders acre, raven or both"):
        conformance(tmp_path)


@pytest.mark.slow
def test_every_official_file_passes():
    if not OFFICIAL.is_dir():
        pytest.skip(f"{OFFICIAL} is not here")
    rows = conformance(OFFICIAL)
    assert [row["file"] for row in rows if not row["passed"]] == []
    assert len(rows) == 62
