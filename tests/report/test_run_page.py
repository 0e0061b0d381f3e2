"""The page of a run: what is on it, that it stands alone, that texts are escaped, and what is refused."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from iclm.errors import CheckpointError, ConfigurationError
from iclm.model import ICLMForCausalLM
from iclm.report.diagnosis import FAILED, FAILURES, HEALTHY, NOT_MEASURED, write_diagnosis
from iclm.report.run_page import run_page, write_run_page

QUICKSTART = Path(__file__).resolve().parents[2] / "results" / "quickstart" / "quickstart.json"
EMPTY = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_llama_folder):
    """A run folder with two domain modules, written by hand; not to be changed."""
    folder = tmp_path_factory.mktemp("made") / "run"
    model = ICLMForCausalLM.from_base(tiny_llama_folder, num_domains=2, dtype="float32")
    model.save_pretrained(folder)
    record = {
        "method": "iclm",
        "base": "tiny",
        "domains": ["symbolic", "text"],
        "examples_seen": 1234,
        "steps": 56,
        "train_seconds": 78.4,
        "trainable_parameters": 5000,
        "base_parameters": 1000000,
        "device": "cpu",
        "threads": 2,
        "versions": {"iclm": "0.1.0", "torch": "2.13.0"},
        "changes": [{"change": "rename", "module": "domain_0", "before": "a", "name": "b"}],
    }
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "recipe.yaml").write_text("base: tiny\nmethod: iclm\n")
    lines = [{"step": step, "loss": 5 / step, "loss_lm": 3 / step, "epoch": 0.1} for step in (10, 20, 30)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def run(made, tmp_path):
    """A copy of it."""
    return shutil.copytree(made, tmp_path / "run")


class Page(HTMLParser):
    """The elements and texts of a page; fails where an element is not closed in its turn."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.texts.append(" ".join(data.split()))

    @property
    def text(self):
        return "\n".join(text for text in self.texts if text)

    @property
    def images(self):
        return [attrs for tag, attrs in self.tags if tag == "img"]

    def classes(self, tag):
        return [attrs.get("class") for found, attrs in self.tags if found == tag]


def test_the_page_says_what_was_trained(run):
    page = Page(run_page(run))
    for text in ("iclm", "symbolic, text", "5,000, 0.50% of the base's 1,000,000", "1,234", "78 s", "cpu, 2 threads"):
        assert text in page.texts, text
    assert "rename b" in page.texts and "iclm 0.1.0, torch 2.13.0" in page.texts
    assert "base: tiny method: iclm" in page.texts
    assert {"invariant", "domain_0", "domain_1"} <= set(page.texts)
    assert len(page.images) == 1 and "by optimizer step" in page.images[0]["alt"]


def test_the_page_shows_what_a_diagnosis_found(run, make_diagnosis):
    write_diagnosis(make_diagnosis(), run / "diagnosis")
    page = Page(run_page(run))
    assert page.classes("li") == ["healthy"] * len(FAILURES)
    assert [text for text in page.texts if text.casefold() in FAILURES] == [name.capitalize() for name in FAILURES]
    assert len(page.images) == 5
    assert "routing accuracy" in page.texts
    assert "0.50" in {row.split(" ")[0] for row in page.texts}, "shares of the validation routes"


def test_of_each_failure_the_worst_verdict_stands_first(run, make_diagnosis):
    report = make_diagnosis()
    report["routing"]["ood"] |= {"accuracy": 0.5, "p_value": 0.5}  # worse than that of the training distribution
    report["independence"] = {"measured": False, "reason": "not applicable: there is a reason"}
    write_diagnosis(report, run / "diagnosis")
    page = Page(run_page(run))
    assert page.classes("li")[:2] == ["failed", "not-measured"]
    assert f"routing: {FAILED}" in page.texts and f"independence: {NOT_MEASURED}" in page.texts
    assert f"overfitting: {HEALTHY}" in page.texts
    summary = page.text[: page.text.index("The worst verdict")]
    assert "routing accuracy, out of distribution: 0.500" in summary and "there is a reason" in summary


def test_the_page_stands_alone(run, make_diagnosis):
    write_diagnosis(make_diagnosis(), run / "diagnosis")
    html = run_page(run)
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    sources = [value for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "href", "srcset")]
    assert sources and all(value.startswith("data:image/png;base64,") for value in sources)
    assert "url(" not in html and "@import" not in html
    assert html == run_page(run), "the same files give the same page"


def test_texts_of_a_run_are_escaped(run, make_diagnosis):
    nasty = "<img src=x onerror=alert(1)>&amp;"
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "base": nasty, "domains": [nasty, "text"]}))
    (run / "recipe.yaml").write_text(f"base: '{nasty}'\n")
    report = make_diagnosis()
    report["independence"]["by_domain"] = {nasty: report["independence"]["by_domain"].popitem()[1]}
    write_diagnosis(report, run / "diagnosis")
    page = Page(run_page(run))
    assert all(attrs.get("src", "").startswith("data:") for attrs in page.images)
    assert nasty in page.texts and sum(nasty in text for text in page.texts) >= 4


def test_what_is_missing_is_said(run):
    (run / "log.jsonl").unlink()
    (run / "recipe.yaml").unlink()
    page = Page(run_page(run))
    assert f"iclm diagnose {run}" in page.texts and not page.images
    assert "holds no log.jsonl" in page.text and "holds no recipe" in page.text


def test_the_table_of_the_quickstart_is_on_the_page_of_its_run(run):
    shutil.copy(QUICKSTART, run / "quickstart.json")
    page = Page(run_page(run))
    assert "plain LoRA, same examples" in page.texts and "Beside plain LoRA" in page.texts


def test_a_diagnosis_elsewhere_is_taken_when_named(run, tmp_path, make_diagnosis):
    write_diagnosis(make_diagnosis(), tmp_path / "apart")
    assert len(Page(run_page(run, diagnosis=tmp_path / "apart")).images) == 5
    with pytest.raises(
        CheckpointError, match=rf"nowhere holds no diagnosis.json; give a folder that `iclm diagnose {run}"
    ):
        run_page(run, diagnosis=tmp_path / "nowhere")


def test_a_diagnosis_of_other_modules_is_refused(run, make_diagnosis):
    write_diagnosis(make_diagnosis(modules=3), run / "diagnosis")
    with pytest.raises(CheckpointError, match=r"other modules \(mixture, invariant, domain_0, domain_1, domain_2\)"):
        run_page(run)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("diagnosis/diagnosis.json", "{}", "there is no 'modules' in it"),
        ("diagnosis/diagnosis.json", "[]", "is damaged"),
        ("diagnosis/diagnosis.json", '{"modules": ["mixture", "invariant", "domain_0", "domain_1"]}', "no 'routing'"),
        ("quickstart.json", '{"rows": 3}', "is damaged, or of another version"),
        ("run.json", '{"domains": ["a"], "steps": "many"}', "is damaged"),
        ("run.json", '{"domains": ["a"], "versions": 3}', "is damaged"),
        ("log.jsonl", "no log", "line 1 is damaged"),
        ("recipe.yaml", b"\xff", "cannot be read"),
    ],
)
def test_a_damaged_file_is_named_and_no_page_is_written(run, name, content, words):
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=re.escape(words)) as error:
        write_run_page(run)
    assert str(run / name) in str(error.value) and not (run / "report.html").exists()


def test_the_page_lies_in_the_run_folder_unless_told_otherwise(run, tmp_path):
    assert write_run_page(run) == run / "report.html"
    assert write_run_page(run, out=tmp_path / "new" / "page.html").read_text() == (run / "report.html").read_text()


def test_a_file_that_exists_is_replaced_only_when_told_so(run, tmp_path):
    out = tmp_path / "page.html"
    out.write_text("mine")
    with pytest.raises(ConfigurationError, match="exists; pass --overwrite to replace it"):
        write_run_page(run, out=out)
    assert out.read_text() == "mine"
    write_run_page(run, out=out, overwrite=True)
    assert out.read_text().lstrip().startswith("<!DOCTYPE html>")


def test_a_folder_that_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(CheckpointError, match=r"holds no run\.json"):
        write_run_page(tmp_path / "mine")
    assert not list((tmp_path / "mine").iterdir())
