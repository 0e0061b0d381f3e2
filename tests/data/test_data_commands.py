"""What the data commands do."""

import json

import pytest

from iclm.data import read_evals
from iclm.data.acre import read_problems
from iclm.data.commands import SolveResult, generate_acre, generate_raven, render_file, solve_file
from iclm.data.raven import CONFIGURATIONS, iter_folder
from iclm.data.raven import read_problems as read_raven
from iclm.errors import ConfigurationError, DataError


@pytest.fixture
def comp_file(tmp_path):
    """A generated file with an official name."""
    path = tmp_path / "Comp_val.json"
    generate_acre("Comp", "val", 20, 5, path)
    return path


@pytest.fixture
def raven_file(tmp_path):
    """A generated file of RAVEN problems."""
    path = tmp_path / "raven.jsonl"
    generate_raven("center_single", "iraven", 30, 5, path)
    return path


def test_solver_agrees_with_every_published_label(official_file):
    result = solve_file(official_file)
    assert result.agree == result.total == 4 * len(read_problems(official_file))
    assert result.disagreements == ()
    assert str(result) == f"agreement 1.0000 ({result.total}/{result.total})"


def test_generated_file_has_as_many_problems_as_asked_and_is_solved(comp_file):
    assert len(read_problems(comp_file)) == 20
    assert str(solve_file(comp_file)) == "agreement 1.0000 (80/80)"


def test_generating_reports_what_was_made(tmp_path):
    seen = []
    summary = generate_acre("Sys", "train", 700, 0, tmp_path / "a.json", progress=lambda *done: seen.append(done))
    assert seen == [(500, 700), (700, 700)]
    assert (summary["problems"], summary["queries"]) == (700, 2800)
    assert sum(summary["labels"].values()) == sum(summary["types"].values()) == 2800
    assert json.dumps(summary)


@pytest.mark.parametrize("count", [0, -1])
def test_no_problems_cannot_be_generated(tmp_path, count):
    with pytest.raises(ConfigurationError, match="positive integer"):
        generate_acre("IID", "val", count, 0, tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []


def test_interrupted_generation_leaves_nothing(tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_acre("IID", "val", 10, 0, tmp_path / "new" / "a.json", progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_unless_asked(comp_file, tmp_path):
    before = comp_file.read_bytes()
    with pytest.raises(ConfigurationError, match="exists; pass --overwrite"):
        generate_acre("Comp", "val", 3, 6, comp_file)
    with pytest.raises(ConfigurationError, match="exists; pass --overwrite"):
        render_file(comp_file, "text", "official", comp_file)
    assert comp_file.read_bytes() == before
    generate_acre("Comp", "val", 3, 6, comp_file, overwrite=True)
    assert len(read_problems(comp_file)) == 3


def test_rendering_writes_four_lines_a_problem(comp_file, tmp_path):
    out = tmp_path / "out.jsonl"
    summary = render_file(comp_file, "symbolic", "official", out)
    assert (summary["problems"], summary["queries"], summary["regime"]) == (20, 80, "Comp")
    lines = [json.loads(text) for text in out.read_text().splitlines()]
    assert [list(row) for row in lines] == [["input", "choice_strings", "ideal"]] * 80


def test_extras_tell_type_and_problem(comp_file, tmp_path):
    out = tmp_path / "out.jsonl"
    render_file(comp_file, "text", "strict", out, extras=True)
    problems = read_problems(comp_file)
    read = read_evals(out)
    assert [example.kind for example in read] == [query.type for problem in problems for query in problem.queries]
    assert [example.group for example in read] == [problem.id for problem in problems for _ in range(4)]


def test_strict_rendering_of_an_unnamed_file_asks_for_the_regime(comp_file, tmp_path):
    unnamed = comp_file.rename(tmp_path / "a.json")
    out = tmp_path / "out.jsonl"
    with pytest.raises(ConfigurationError, match="need the regime"):
        render_file(unnamed, "text", "strict", out)
    assert not out.exists()
    render_file(unnamed, "text", "strict", out, regime="Comp", split="val")
    assert out.exists()


@pytest.mark.parametrize("command", [solve_file, lambda file: render_file(file, "text", "official", f"{file}.out")])
def test_evals_file_is_no_file_of_problems(comp_file, tmp_path, command):
    out = tmp_path / "out.jsonl"
    render_file(comp_file, "text", "official", out)
    with pytest.raises(DataError, match=r"out\.jsonl: line 1: an evals file, which is rendered already; expected ACRE"):
        command(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Comp_val.json", "out.jsonl"]


def test_wrong_labels_are_found_and_the_first_few_named(comp_file):
    problems = json.loads(comp_file.read_text())
    for problem in problems[3:]:
        problem[7]["label"] = (problem[7]["label"] + 1) % 3
    comp_file.write_text(json.dumps(problems))
    result = solve_file(comp_file)
    assert (result.agree, result.total, len(result.disagreements)) == (63, 80, 5)
    right = (problems[3][7]["label"] - 1) % 3
    assert result.disagreements[0] == f"problem 3 query 1: label {(right + 1) % 3}, solver says {right}"
    assert result.agreement == pytest.approx(63 / 80)


def test_one_wrong_label_is_never_rounded_away():
    assert str(SolveResult(99_999, 100_000)) == "agreement 0.9999 (99999/100000)"


def test_generating_raven_reports_what_was_made(tmp_path):
    seen = []
    path = tmp_path / "a.jsonl"
    summary = generate_raven("all", "raven", 100, 0, path, "val", progress=lambda *done: seen.append(done))
    assert seen == [(500, 700), (700, 700)]
    assert summary["problems"] == sum(summary["targets"].values()) == 700
    assert sum(summary["rules"].values()) == 100 * 4 * (3 + 2 * 4)
    assert summary["configs"] == list(CONFIGURATIONS)
    assert json.dumps(summary)
    problems = read_raven(path)
    assert [problem.config for problem in problems] == [name for name in CONFIGURATIONS for _ in range(100)]
    assert all(problem.id.endswith("_val") for problem in problems)


def test_raven_is_written_as_lines_or_as_a_folder_of_xml(tmp_path, raven_file):
    generate_raven("center_single", "iraven", 30, 5, tmp_path / "xml", form="xml")
    assert [p.panels for p in iter_folder(tmp_path / "xml")] == [p.panels for p in read_raven(raven_file)]
    assert str(solve_file(tmp_path / "xml")) == str(solve_file(raven_file))
    one = solve_file(tmp_path / "xml" / "RAVEN_0_train.xml")
    assert (one.agree, one.total) == (1, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": "grid"}, "config is 'grid'"),
        ({"answers": "x"}, "answers is 'x'"),
        ({"problems": 0}, "number of problems is 0"),
        ({"split": "dev"}, "split is 'dev'"),
        ({"form": "csv"}, "form is 'csv'; it must be one of jsonl, xml"),
        ({"config": "all", "form": "xml"}, "config is 'all'; XML is written to one folder a configuration"),
    ],
)
def test_unusable_raven_options_are_refused_and_nothing_is_left(tmp_path, changes, message):
    options = {"config": "up_down", "answers": "raven", "problems": 1, "seed": 0, "out": tmp_path / "new" / "a"}
    with pytest.raises(ConfigurationError, match=message):
        generate_raven(**(options | changes))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["jsonl", "xml"])
def test_interrupted_raven_generation_leaves_nothing(tmp_path, form):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_raven("up_down", "raven", 10, 0, tmp_path / "a", progress=stop, form=form)
    assert list(tmp_path.iterdir()) == []


def test_raven_is_not_overwritten_unless_asked(raven_file):
    before = raven_file.read_bytes()
    with pytest.raises(ConfigurationError, match="exists; pass --overwrite"):
        generate_raven("center_single", "raven", 3, 6, raven_file)
    assert raven_file.read_bytes() == before
    generate_raven("center_single", "raven", 3, 6, raven_file, overwrite=True)
    assert len(read_raven(raven_file)) == 3


def test_rendering_raven_writes_a_line_a_problem(raven_file, tmp_path):
    choice, asked = tmp_path / "choice.jsonl", tmp_path / "open.jsonl"
    summary = render_file(raven_file, "text", "official", choice, extras=True)
    assert (summary["problems"], summary["queries"], summary["open"]) == (30, 30, False)
    render_file(raven_file, "text", "official", asked, open=True)
    problems = read_raven(raven_file)
    assert [example.answer for example in read_evals(choice)] == [problem.letter for problem in problems]
    assert [e.group for e in read_evals(choice)] == [f"center_single:{problem.id}" for problem in problems]
    assert all(not example.choices for example in read_evals(asked))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objects": "strict"}, "objects is 'strict', but .* holds RAVEN problems; it is for ACRE"),
        ({"regime": "Comp"}, "regime is 'Comp', but"),
        ({"split": "val"}, "split is 'val', but"),
    ],
)
def test_options_of_acre_are_refused_for_raven(raven_file, tmp_path, options, message):
    with pytest.raises(ConfigurationError, match=message):
        render_file(raven_file, "text", **({"objects": "official", "out": tmp_path / "out"} | options))
    assert not (tmp_path / "out").exists()


def test_open_form_is_refused_for_acre(comp_file, tmp_path):
    with pytest.raises(ConfigurationError, match="holds ACRE problems; the open form is for RAVEN"):
        render_file(comp_file, "text", "official", tmp_path / "out", open=True)


def test_wrong_raven_targets_are_found_and_each_named(raven_file):
    rows = [json.loads(line) for line in raven_file.read_text().splitlines()]
    for row in rows[10:]:
        row["target"] = (row["target"] + 1) % 8
    raven_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = solve_file(raven_file)
    assert (result.total, result.wrong + result.ambiguous) == (30, 20)
    assert len(result.disagreements) == 20
    letters = "ABCDEFGH"
    given, right = letters[rows[10]["target"]], letters[rows[10]["target"] - 1]
    assert result.disagreements[0] == f"problem 10 (RAVEN_10_train): target {given}; solver says {right}"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", r"x: the file is empty; expected ACRE JSON \(a list\), RAVEN JSON lines, or RAVEN XML"),
        (b"hello", "x: line 1: not a file of problems; expected ACRE"),
        (b"\xff\xfe<\0", "x: line 1: not a file of problems"),
        (b"[[]]", "x: problem 0: 0 panels; an ACRE file"),
        (b'{"a": 1}', "x:1: the field `target` is missing; expected one RAVEN problem a line"),
        (b"<html></html>", "x: the right answer is neither|x: the root element is <html>"),
        (b"<!DOCTYPE x><Data/>", "x:1: a document type declaration"),
    ],
)
def test_files_that_hold_no_problems_are_refused(tmp_path, raw, message):
    (tmp_path / "x").write_bytes(raw)
    with pytest.raises(DataError, match=message):
        solve_file(tmp_path / "x")


def test_missing_files_are_said(tmp_path):
    with pytest.raises(DataError, match="none: no such file"):
        solve_file(tmp_path / "none")


def test_a_missing_file_is_said_though_what_would_be_replaced_exists(comp_file, tmp_path):
    before = comp_file.read_bytes()
    with pytest.raises(DataError, match="none: no such file"):
        render_file(tmp_path / "none", "text", "official", comp_file, overwrite=True)
    assert comp_file.read_bytes() == before
