"""What a result says of the software that made it."""

import torch
import transformers

from iclm.version import __version__, software, source_digest


def write(folder, **files):
    folder.mkdir()
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")
    return source_digest(folder)


def test_the_digest_of_a_source_tells_contents_and_names_apart_and_nothing_else(tmp_path):
    one = write(tmp_path / "one", a_py="x = 1\n", b_py="", c_txt="notes")
    assert one == write(tmp_path / "same", b_py="", a_py="x = 1\n", c_txt="other notes")
    changed = [
        {"a_py": "x = 2\n", "b_py": ""},
        {"a_py": "x = 1\n"},
        {"a_py": "", "b_py": "x = 1\n"},
        {"a_py": "x = 1\n", "d_py": ""},
    ]
    others = [write(tmp_path / str(number), **files) for number, files in enumerate(changed)]
    assert len({one, *others}) == 5 and all(len(digest) == 12 for digest in others)


def test_a_result_names_what_it_depends_on():
    found = software()
    assert found == {
        "iclm": __version__,
        "source": source_digest(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": found["python"],
    }
