"""Parquet files and Hugging Face data sets: read if their packages are there, named if they are not."""

import json
import subprocess
import sys
from decimal import Decimal

import numpy as np
import pytest

from iclm.data.loading import read_source
from iclm.data.sources import ColumnMapping, hub, optional, read_examples, read_table
from iclm.errors import ConfigurationError, DataError
from iclm.recipe import DataSource

MAPPING = ColumnMapping("q", "a", choices="o")
ROWS = [{"q": f"question {i}", "a": "xy"[i % 2], "o": ["x", "y"], "unused": i} for i in range(600)]


@pytest.fixture
def no_optional_packages(monkeypatch):
    def refuse(name):
        raise ImportError(name)

    monkeypatch.setattr(optional.importlib, "import_module", refuse)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def parquet_file(path, rows):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.Table.from_pylist(rows), path)
    return path


def test_parquet_rows_of_all_batches_are_read_and_named(tmp_path):
    path = parquet_file(tmp_path / "x.parquet", ROWS)
    examples = read_table(path, MAPPING)
    assert [e.prompt for e in examples] == [row["q"] for row in ROWS]
    assert examples[-1].source == f"{path}:row 600"


def test_numbers_of_a_parquet_file_are_what_was_written(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {
        "q": ["one", "two"],
        "half": pa.array(np.array([0.1, 2.0], np.float16)),
        "single": pa.array([0.1, 16777216.0], pa.float32()),
        "double": pa.array([0.1, 1e-7], pa.float64()),
        "exact": pa.array([Decimal("0.10"), Decimal("12.50")], pa.decimal128(8, 2)),
    }
    parquet.write_table(pa.table(columns), tmp_path / "x.parquet")
    found = {
        n: [e.answer for e in read_table(tmp_path / "x.parquet", ColumnMapping("q", n))] for n in list(columns)[1:]
    }
    assert found == {
        "half": ["0.1", "2.0"],
        "single": ["0.1", "16777216.0"],
        "double": ["0.1", "1e-07"],
        "exact": ["0.10", "12.50"],
    }


def test_error_in_a_parquet_row_names_the_row(tmp_path):
    path = parquet_file(tmp_path / "x.parquet", [*ROWS[:300], ROWS[300] | {"a": "z"}])
    with pytest.raises(DataError, match=r"x\.parquet:row 301: the answer 'z' is not one of the choices"):
        read_table(path, MAPPING)


def test_parquet_text_that_is_no_utf8_names_the_row(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    raw = arrow.array([b"fine", b"\xff"], arrow.binary())
    broken = arrow.Array.from_buffers(arrow.string(), 2, raw.buffers())
    parquet.write_table(arrow.table({"q": broken, "a": ["x", "x"]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet:row 2: not UTF-8"):
        read_table(tmp_path / "x.parquet", ColumnMapping("q", "a"))


def test_parquet_without_a_mapped_column_names_those_it_has(tmp_path):
    path = parquet_file(tmp_path / "x.parquet", ROWS[:2])
    with pytest.raises(DataError, match=r"x\.parquet: there is no column `z`; the columns are `q`, `a`"):
        read_table(path, ColumnMapping("q", "z"))


@pytest.mark.parametrize("content", [b"", b"PAR1 nonsense PAR1"])
def test_file_that_is_no_parquet_is_a_one_line_error(tmp_path, content):
    pytest.importorskip("pyarrow")
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.parquet: not a usable Parquet file") as error:
        read_table(tmp_path / "x.parquet", MAPPING)
    assert "\n" not in str(error.value)


def test_parquet_without_rows_is_an_error(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"q": arrow.array([], arrow.string()), "a": arrow.array([], arrow.string())}),
                        tmp_path / "x.parquet")  # fmt: skip
    with pytest.raises(DataError, match="there are no examples"):
        read_table(tmp_path / "x.parquet", ColumnMapping("q", "a"))


@pytest.mark.parametrize(("name", "package"), [("x.parquet", "pyarrow"), ("folder", "datasets")])
def test_missing_package_is_named_with_how_to_install_it(tmp_path, no_optional_packages, name, package):
    (tmp_path / "folder").mkdir()
    (tmp_path / "x.parquet").write_bytes(b"")
    with pytest.raises(ConfigurationError, match=rf"needs the package `{package}`.*pip install 'iclm\[data\]'"):
        read_examples(tmp_path / name, MAPPING)


def test_readers_are_imported_without_any_optional_package():
    code = "import sys; sys.modules.update(dict.fromkeys(('pyarrow', 'datasets', 'pandas'))); import iclm.data.sources"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_folder_of_save_to_disk_is_read_by_split(tmp_path, offline):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(ROWS[:5])
    datasets.DatasetDict({"train": table, "val": table.select([2])}).save_to_disk(tmp_path / "both")
    (example,) = read_examples(tmp_path / "both", MAPPING, split="val")
    assert (example.prompt, example.source) == ("question 2", f"{tmp_path / 'both'}[val]:row 1")
    with pytest.raises(ConfigurationError, match="name the split to read; there are train, val"):
        read_examples(tmp_path / "both", MAPPING)
    with pytest.raises(ConfigurationError, match="there is no split 'test'; there are train, val"):
        read_examples(tmp_path / "both", MAPPING, split="test")
    table.save_to_disk(tmp_path / "one")
    assert len(read_examples(tmp_path / "one", MAPPING, limit=3)) == 3
    with pytest.raises(DataError, match="there is no column `z`"):
        read_examples(tmp_path / "one", ColumnMapping("q", "z"))


def test_a_recipe_reads_a_folder_that_was_saved_without_splits(tmp_path, offline):
    rows = [{"q": "1 + 1 =", "a": "2"}, {"q": "1 + 2 =", "a": "3"}]
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "one")
    columns = {"prompt": "q", "answer": "a"}
    assert [e.answer for e in read_source(DataSource(dataset=str(tmp_path / "one"), columns=columns))] == ["2", "3"]
    with pytest.raises(ConfigurationError, match="has no splits; leave out split 'val'"):
        read_source(DataSource(dataset=str(tmp_path / "one"), columns=columns, split="val"))


def test_folder_of_data_files_is_read(tmp_path, offline):
    pytest.importorskip("datasets")
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:3]))
    assert [e.source for e in read_examples(folder, MAPPING)] == [f"{folder}[train]:row {i}" for i in (1, 2, 3)]


def test_code_in_a_data_folder_is_never_run(tmp_path, offline):
    pytest.importorskip("datasets")
    folder, mark = tmp_path / "evil", tmp_path / "mark"
    folder.mkdir()
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\n")
    with pytest.raises(DataError, match="the folder is no data set"):
        read_examples(folder, MAPPING)
    assert not mark.exists()


def test_releases_that_can_run_code_are_refused(tmp_path, monkeypatch):
    class Old:
        __version__ = "3.6.0"

    monkeypatch.setattr(hub, "import_optional", lambda module, purpose: Old)
    with pytest.raises(ConfigurationError, match=r"needs datasets 4 or later.*found 3\.6\.0"):
        read_examples(tmp_path, MAPPING)


@pytest.mark.parametrize("name", ["hf:quiz", "hf:owner/quiz", "owner/quiz"])
def test_name_on_the_hub_is_streamed_in_the_split_that_was_asked_for(monkeypatch, name):
    asked = {}

    class Hub:
        __version__ = "5.0.0"

        @staticmethod
        def load_dataset(path, config, **options):
            asked.update(options, path=path, config=config)
            return datasets.IterableDataset.from_generator(lambda: iter(ROWS[:2]))

    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(hub, "import_optional", lambda module, purpose: Hub)
    examples = read_examples(name, MAPPING, split="val", config="easy", domain_by="file")
    assert asked == {"path": name.removeprefix("hf:"), "config": "easy", "split": "val", "streaming": True}
    assert (examples[0].domain, examples[1].source) == ("quiz", f"{name}[val]:row 2")


def test_data_set_that_cannot_be_loaded_is_a_one_line_error(monkeypatch):
    class Hub:
        __version__ = "5.0.0"

        @staticmethod
        def load_dataset(*_, **__):
            raise ConnectionError("no network\nsecond line")

    monkeypatch.setattr(hub, "import_optional", lambda module, purpose: Hub)
    with pytest.raises(DataError, match=r"owner/quiz: neither a file nor a data set that can be loaded: no network$"):
        read_examples("owner/quiz", MAPPING)


def test_data_set_needs_a_mapping_and_files_have_no_splits(tmp_path):
    with pytest.raises(ConfigurationError, match="a data set needs a mapping"):
        read_examples("hf:quiz")
    (tmp_path / "x.csv").write_text("q,a\nx,y\n")
    with pytest.raises(ConfigurationError, match="for data sets, not for files"):
        read_examples(tmp_path / "x.csv", ColumnMapping("q", "a"), split="val")
