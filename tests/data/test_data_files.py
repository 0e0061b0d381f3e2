"""Atomic writing: a file is there whole or not at all."""

import os
from pathlib import Path

import pytest

from iclm.data.files import (
    atomic_write,
    atomic_write_bytes,
    check_file,
    check_folder_place,
    check_own,
    open_for_reading,
    remove_own,
)
from iclm.errors import ConfigurationError, DataError


def test_written_text_is_utf8_with_its_own_line_endings(tmp_path):
    with atomic_write(tmp_path / "a.txt") as stream:
        stream.write("é\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9\n"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_bytes_are_written_as_given_whole_or_not_at_all(tmp_path):
    path = tmp_path / "b" / "a.bin"
    with atomic_write_bytes(path) as stream:
        stream.write(b"\r\n\xff\x00")
    assert path.read_bytes() == b"\r\n\xff\x00"
    with pytest.raises(RuntimeError), atomic_write_bytes(path, overwrite=True) as stream:
        stream.write(b"half")
        raise RuntimeError
    with pytest.raises(ConfigurationError, match="exists"), atomic_write_bytes(path):
        pass
    assert path.read_bytes() == b"\r\n\xff\x00"
    assert os.listdir(path.parent) == ["a.bin"]


def test_missing_parent_folders_are_made(tmp_path):
    with atomic_write(tmp_path / "b" / "c" / "a.txt") as stream:
        stream.write("x")
    assert (tmp_path / "b" / "c" / "a.txt").read_text() == "x"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_when_the_block_fails(tmp_path, error):
    with pytest.raises(error), atomic_write(tmp_path / "b" / "c" / "a.txt") as stream:
        stream.write("half")
        raise error
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_keeps_the_old_file(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path, overwrite=True) as stream:
        stream.write("half")
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_existing_file_is_refused_unless_overwrite(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ConfigurationError, match=r"a\.txt exists; pass --overwrite to replace it"), atomic_write(path):
        pass
    assert path.read_text() == "old"
    with atomic_write(path, overwrite=True) as stream:
        stream.write("new")
    assert path.read_text() == "new"


def test_file_that_appears_meanwhile_is_not_replaced(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(ConfigurationError, match="exists"), atomic_write(path) as stream:
        stream.write("ours")
        path.write_text("theirs")
    assert path.read_text() == "theirs"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_folder_as_target_is_refused_even_with_overwrite(tmp_path):
    with pytest.raises(ConfigurationError, match="is a folder"), atomic_write(tmp_path, overwrite=True):
        pass


def test_what_is_no_regular_file_is_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with (
        pytest.raises(ConfigurationError, match="is a device or a pipe, which is not replaced"),
        atomic_write(tmp_path / "pipe", overwrite=True),
    ):
        pass
    assert (tmp_path / "pipe").is_fifo()
    with pytest.raises(ConfigurationError, match="is a device or a pipe"):
        check_file(tmp_path / "pipe", overwrite=True)


def test_a_link_stays_and_what_it_names_is_replaced_with_its_permissions(tmp_path):
    place = tmp_path / "elsewhere" / "kept.txt"
    place.parent.mkdir()
    place.write_text("old")
    place.chmod(0o600)
    (tmp_path / "link").symlink_to(place)
    with atomic_write(tmp_path / "link", overwrite=True) as stream:
        stream.write("new")
    assert (tmp_path / "link").is_symlink() and place.read_text() == "new" and place.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "link"]


@pytest.mark.parametrize("name", ["file/a.txt", "x" * 400, "x" * 400 + "/a.txt", "a\0b"])
def test_path_that_cannot_be_written_is_a_configuration_error(tmp_path, name):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ConfigurationError), atomic_write(tmp_path / name) as stream:
        stream.write("x")
    with pytest.raises(ConfigurationError):
        check_file(tmp_path / name)
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_can_be_checked_before_the_work_that_ends_in_it(tmp_path):
    check_file(tmp_path / "new" / "folder" / "a.txt")
    assert not os.listdir(tmp_path), "nothing is made"
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ConfigurationError, match="--overwrite"):
        check_file(tmp_path / "a.txt")
    check_file(tmp_path / "a.txt", overwrite=True)
    with pytest.raises(ConfigurationError, match=r"a\.txt is a file"):
        check_file(tmp_path / "a.txt" / "b.txt")


def test_a_folder_that_may_not_be_written_to_is_found_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place) != tmp_path)
    with pytest.raises(ConfigurationError, match=r"cannot write .*a\.txt: no permission to write to "):
        check_file(tmp_path / "new" / "a.txt")
    with pytest.raises(ConfigurationError, match=r"new cannot be written: no permission to write to "):
        check_folder_place(tmp_path / "new")


OWN = ("a.json", "made/*.txt", "work/**")


def test_only_ones_own_files_are_removed_from_a_folder_with_those_that_are_empty_then(tmp_path):
    for name in ("a.json", "made/one.txt", "work/deep/anything", "other/b.txt"):
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text("x")
    (tmp_path / "out" / "made" / "link.txt").symlink_to(tmp_path / "out" / "other")
    with pytest.raises(
        ConfigurationError, match="out holds other, which is none of its files; a result is replaced only"
    ):
        check_own(tmp_path / "out", OWN, "a result")
    remove_own(tmp_path / "out", OWN)
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == [
        "out",
        "out/other",
        "out/other/b.txt",
    ]


@pytest.mark.parametrize("name", ["made/deep/one.txt", "made/two.md", "a.json/b", "work"])
def test_a_file_that_no_pattern_names_is_foreign_wherever_it_lies(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("x")
    with pytest.raises(ConfigurationError, match="which is none of its files"):
        check_own(tmp_path, OWN, "a result")
    remove_own(tmp_path, OWN)
    assert (tmp_path / name).is_file()


@pytest.mark.parametrize(
    ("name", "message"), [("none.json", "no such file"), (".", "this is a folder"), ("a\0b", "not a file name")]
)
def test_file_that_cannot_be_read_is_a_data_error(tmp_path, name, message):
    with pytest.raises(DataError, match=message):
        open_for_reading(tmp_path / name)


def test_a_file_where_a_folder_is_needed_is_said_to_be_one(tmp_path):
    (tmp_path / "a.json").write_text("x")
    with (
        pytest.raises(ConfigurationError, match=r"cannot write .*b\.json: .*a\.json is a file"),
        atomic_write(tmp_path / "a.json" / "b.json"),
    ):
        pass
