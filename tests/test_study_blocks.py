"""The study blocks of README.md and docs/: each is, character by character, what results/study/ gives."""

from pathlib import Path

import pytest

from iclm.errors import ICLMError
from iclm.report.blocks import with_blocks

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "study"


def texts_of(results):
    """The tables by name that a folder of results gives; none where there are no results."""
    from iclm.report.study_tables import texts
    from iclm.studies.study.results import collect
    from iclm.studies.study.summary import summarise

    return texts(summarise(collect([results]))) if results.is_dir() else {}


def stale(paths, results):
    """What is wrong with the study blocks of some files: one line for each file."""
    contents = {path: path.read_bytes().decode("utf-8") for path in paths}
    with_block = {path: text for path, text in contents.items() if "<!-- study:" in text or "<!-- /study" in text}
    found = []
    if with_block:
        known = texts_of(results)
        for path, text in with_block.items():
            try:
                if with_blocks(text, known, path.name) != text:
                    found.append(
                        f"{path.name} is not what {results.name} gives: iclm study report {results} --write {path}"
                    )
            except ICLMError as error:
                found.append(str(error))
    return found


def test_every_study_block_is_what_the_committed_results_give():
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
    assert paths[0].is_file() and stale(paths, RESULTS) == []


# -- the check itself, on files made for it ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(collected, tmp_path_factory):
    """A folder of results, and a document with a block of it."""
    from iclm.report.study import write_blocks, write_report
    from iclm.studies.study.summary import summarise

    folder = tmp_path_factory.mktemp("made")
    summary = summarise(collected)
    write_report(collected, summary, folder / "study")
    (folder / "doc.md").write_text("a\n<!-- study: acre/accuracy -->\n<!-- /study -->\n")
    write_blocks(summary, [folder / "doc.md"])
    return folder


def test_a_block_as_written_is_found_right(made):
    assert stale([made / "doc.md"], made / "study") == []


def test_a_changed_digit_is_found(made, tmp_path):
    text = (made / "doc.md").read_text()
    place = text.index("0.", text.index("| iclm |"))
    (tmp_path / "doc.md").write_text(text[: place + 2] + ("1" if text[place + 2] != "1" else "2") + text[place + 3 :])
    (found,) = stale([tmp_path / "doc.md"], made / "study")
    assert found.startswith("doc.md is not what study gives")


def test_a_block_without_results_is_found(made, tmp_path):
    (found,) = stale([made / "doc.md"], tmp_path / "none")
    assert found.startswith("doc.md: there is no table 'acre/accuracy'")


def test_an_end_without_a_begin_is_found(tmp_path):
    (tmp_path / "doc.md").write_text("<!-- /study -->\n")
    assert len(stale([tmp_path / "doc.md"], tmp_path / "none")) == 1


def test_a_document_without_blocks_needs_no_results(tmp_path):
    (tmp_path / "doc.md").write_text("text\n")
    assert stale([tmp_path / "doc.md"], tmp_path / "none") == []
