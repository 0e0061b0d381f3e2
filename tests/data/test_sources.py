"""Any data a user has becomes examples: tables, evals files, and how domains are told."""

import json
import re
import tracemalloc

import pytest

from iclm.data import Example, Message
from iclm.data.sources import ColumnMapping, iter_table, prompt_format, read_examples, read_table
from iclm.errors import ConfigurationError, DataError

HEADER = "question,right,a,b,c,topic\n"
MAPPING = ColumnMapping("question", "right", choices=("a", "b", "c"), domain="topic")
ROWS = [
    {"context": "All cats purr.", "question": "Does Tom?", "answers": ["no", "yes"], "label": 1},
    {"context": "No dog purrs.", "question": "Does Rex?", "answers": ["no", "yes"], "label": 0},
]
BY_INDEX = ColumnMapping("{context}\n{question}", "label", choices="answers", answer_as="index")


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_csv_row_becomes_an_example(tmp_path):
    path = write(tmp_path, "quiz.csv", HEADER + "What purrs?,cat,cat,dog,cow,animals\n")
    assert read_table(path, MAPPING) == [
        Example((Message("user", "What purrs?"),), ("cat", "dog", "cow"), "cat", domain="animals", source=f"{path}:2")
    ]


def test_tsv_is_split_at_tabs_and_a_delimiter_can_be_given(tmp_path):
    mapping = ColumnMapping("q", "a")
    assert read_table(write(tmp_path, "x.tsv", "q\ta\n1,5?\tone\n"), mapping)[0].prompt == "1,5?"
    assert read_table(write(tmp_path, "x.csv", "q;a\n1,5?;one\n"), mapping, delimiter=";")[0].answer == "one"


@pytest.mark.parametrize(
    ("name", "sign"), [("x.csv", ";"), ("x.csv", "\t"), ("x.csv", "|"), ("x.tsv", ","), ("x.tsv", ";")]
)
def test_a_delimiter_that_parts_the_header_need_not_be_given(tmp_path, name, sign):
    text = HEADER + "Is 1~5 > 1?,yes,yes,no,,numbers\n"
    path = write(tmp_path, name, text.replace(",", sign).replace("~", "," if sign != "," else "."))
    (found,) = read_table(path, MAPPING)
    assert (found.answer, found.choices, found.domain) == ("yes", ("yes", "no"), "numbers")
    with pytest.raises(DataError, match=re.escape(f"separated by {sign!r}: give that as delimiter")):
        read_table(path, MAPPING, delimiter="^")


def test_a_column_whose_name_holds_a_delimiter_is_one_column(tmp_path):
    path = write(tmp_path, "x.csv", '"q;a"\nwhat\n')
    assert read_table(path, ColumnMapping("q;a", "q;a"))[0].answer == "what"


def test_line_numbers_stay_true_after_quoted_line_breaks(tmp_path):
    path = write(tmp_path, "x.csv", 'q,a\n"one\ntwo\nthree",x\nfour,y\n"five\nsix",\n')
    examples = iter_table(path, ColumnMapping("q", "a"))
    assert next(examples).source == f"{path}:2"
    assert next(examples).source == f"{path}:5"
    with pytest.raises(DataError, match=r"x\.csv:6: column `a` is empty"):
        next(examples)


def test_choice_columns_empty_at_the_end_are_left_out(tmp_path):
    path = write(tmp_path, "x.csv", HEADER + "q,no,yes,no,,\n")
    assert read_table(path, MAPPING)[0].choices == ("yes", "no")
    assert read_table(path, MAPPING)[0].domain is None


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "list.json", "x.csv", "x.parquet"])
def test_same_rows_give_the_same_examples_whatever_the_file(tmp_path, name):
    path = tmp_path / name
    if name == "list.json":
        path.write_text("\ufeff" + json.dumps(ROWS, indent=1), encoding="utf-8")
        places = ["2", "11"]
    elif name == "x.parquet":
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.Table.from_pylist(ROWS), path)
        places = ["row 1", "row 2"]
    elif name == "x.csv":
        cells = [
            f'{row["context"]},{row["question"]},"{json.dumps(row["answers"]).replace(chr(34), 2 * chr(34))}",'
            for row in ROWS
        ]
        path.write_text("context,question,answers,label\n" + f"{cells[0]}1\n{cells[1]}0\n")
        places = ["2", "3"]
    else:
        path.write_text(lines(ROWS))
        places = ["1", "2"]
    first, second = read_table(path, BY_INDEX)
    assert (first.prompt, first.choices, first.answer) == ("All cats purr.\nDoes Tom?", ("no", "yes"), "yes")
    assert second.answer == "no"
    assert [first.source, second.source] == [f"{path}:{place}" for place in places]


def test_answer_may_be_a_letter_or_a_number_from_one(tmp_path):
    path = write(tmp_path, "x.jsonl", lines([{"q": "q", "o": ["x", "y"], "l": "B", "n": "1"}]))
    assert read_table(path, ColumnMapping("q", "l", choices="o", answer_as="letter"))[0].answer == "y"
    by_number = ColumnMapping("q", "n", choices="o", answer_as="index", first_index=1)
    assert read_table(path, by_number)[0].answer == "x"


def test_nested_columns_and_lists_of_messages_are_read(tmp_path):
    row = {"chat": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}
    row |= {"choices": {"text": ["x", "y"], "label": ["A", "B"]}, "key": "A", "id": 7}
    mapping = ColumnMapping("chat", "key", choices="choices.text", group="id", answer_as="letter")
    (example,) = read_table(write(tmp_path, "x.jsonl", lines([row])), mapping)
    assert example.messages == (Message("system", "s"), Message("user", "u"))
    assert (example.answer, example.group) == ("x", "7")


def test_booleans_are_answers_true_and_false(tmp_path):
    path = write(tmp_path, "x.jsonl", lines([{"q": "q", "a": True}]))
    assert read_table(path, ColumnMapping("q", "a", fixed_choices=("true", "false")))[0].answer == "true"


def test_braces_of_a_value_are_no_template(tmp_path):
    path = write(tmp_path, "x.jsonl", lines([{"q": "{a.__class__} {", "a": "x"}]))
    assert read_table(path, ColumnMapping("{{{q}}}", "a"))[0].prompt == "{{a.__class__} {}"


def test_a_column_of_an_empty_cell_is_not_said_to_be_missing(tmp_path):
    path = write(tmp_path, "x.jsonl", lines([{"q": "q", "a": "x", "c": None}]))
    with pytest.raises(DataError, match=r"x\.jsonl:1: column `c\.text` is empty"):
        read_table(path, ColumnMapping("q", "a", choices="c.text"))


@pytest.mark.parametrize("field", ["choices", "fixed_choices"])
@pytest.mark.parametrize("value", [5, True, 0.5, {"a": "b"}])
def test_choices_that_are_no_list_are_refused(field, value):
    with pytest.raises(ConfigurationError, match=f"mapping: `{field}` is .*; it must be a"):
        ColumnMapping.from_dict({"prompt": "q", "answer": "a", field: value})


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "is an answer to nothing"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "q"}]}],
            "`messages` must be a list .* turn 0 is not one",
        ),
        ([{"role": "user", "content": "q"}, "?"], "turn 1 is not one"),
    ],
)
def test_a_conversation_is_blamed_by_its_own_name(tmp_path, turns, message):
    path = write(tmp_path, "x.jsonl", lines([{"messages": [*turns, {"role": "assistant", "content": "a"}]}]))
    with pytest.raises(DataError, match=message) as caught:
        read_examples(path)
    assert "`input`" not in str(caught.value)


@pytest.mark.parametrize("mapping", [None, ColumnMapping("q", "a")])
def test_a_packed_file_is_to_be_unpacked(tmp_path, mapping):
    path = write(tmp_path, "x.jsonl.gz", b"\x1f\x8b")
    with pytest.raises(
        ConfigurationError, match=r"x\.jsonl\.gz: the name must end in one of \.csv.*, and be unpacked first"
    ):
        read_examples(path, mapping)


FULL = {"question": "q", "right": "x", "a": "x", "b": "y", "c": "z", "topic": None}
BAD_TABLES = {
    "missing column": ("x.csv", "question,right,a,b,topic\n", "1: there is no column `c`; the columns are `question`"),
    "other delimiter": (
        "x.csv",
        "question;right;a;b;topic\n",
        "1: there is no column `c`; the columns are `question`, `right`, `a`",
    ),
    "column twice": ("x.csv", "a,a\n", "1: the column `a` is there twice"),
    "empty header": ("x.csv", "\n", "1: the first line is empty"),
    "header only": ("x.csv", HEADER, "1: there are no examples; the file or split is empty"),
    "empty csv": ("x.csv", "", "1: the first line is empty"),
    "empty jsonl": ("x.jsonl", "\n", "1: there are no examples"),
    "empty list": ("x.json", "[ ]", "1: there are no examples"),
    "too few cells": ("x.csv", HEADER + "q,cat\n", "2: the row has 2 cells; the header has 6"),
    "blank line": ("x.csv", HEADER + "q,x,x,y,z,t\n\nq,x,x,y,z,t\n", "3: an empty line"),
    "open quote": ("x.csv", HEADER + 'q,x,x,y,z,t\n"q,x,x,y,z,t\nq\n', "3: a quoted cell is not closed"),
    "bytes": ("x.csv", HEADER.encode() + b"q,\xff\n", r"2: not UTF-8 \(byte 2 of the line\)"),
    "answer not a choice": ("x.csv", HEADER + "q,cow,x,y,z,t\n", "2: the answer 'cow' is not one of the choices"),
    "letter as text": ("x.csv", HEADER + "q,b,x,y,z,t\n", "2: the answer 'b' .*declare answer_as: letter"),
    "index as text": ("x.csv", HEADER + "q,2,x,y,z,t\n", "2: the answer '2' .*declare answer_as: index"),
    "gap in choices": ("x.csv", HEADER + "q,x,x,,z,t\n", "2: column `b` is empty, but a later choice is not"),
    "no choices": ("x.csv", HEADER + "q,x,,,,t\n", "2: there are no choices"),
    "choice twice": ("x.csv", HEADER + "q,x,x,x,z,t\n", "2: the choices .* the same choice twice"),
    "list cut off": ("x.json", f'[\n{json.dumps(FULL)},\n{{"q": ', "3: not valid JSON"),
    "list of numbers": ("x.json", "[\n1]", "2: found '1' in the list; each item must be a JSON object"),
    "no comma": ("x.json", f"[{json.dumps(FULL)}\n{{}}]", "2: not valid JSON: found '{', expected , or ]"),
    "list not UTF-8": ("x.json", b'[\n{"q": "\xff"}]', "2: not UTF-8"),
    "mixed answers": (
        "x.jsonl",
        lines([FULL | {"right": right, "a": "1", "b": "2"} for right in (1, "2")]),
        r"2: column `right` holds text, but an integer at .*x\.jsonl:1; all answers must be of one type",
    ),
    "list as a choice": ("x.jsonl", lines([FULL | {"a": ["x"]}]), "1: column `a` holds a list"),
    "null prompt": ("x.jsonl", lines([FULL | {"question": None}]), "1: column `question` is empty"),
    "field missing": ("x.jsonl", lines([FULL, {"question": "q"}]), "2: there is no column `right`"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_table_is_a_one_line_error_naming_file_and_line(tmp_path, case):
    name, content, message = BAD_TABLES[case]
    path = write(tmp_path, name, content)
    with pytest.raises(DataError, match=message) as error:
        read_table(path, MAPPING)
    assert str(error.value).startswith(f"{path}:")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.json"])
def test_line_of_100_megabytes_is_refused_without_loading_it(tmp_path, name):
    path = tmp_path / name
    with open(path, "wb") as stream:
        stream.write({"x.csv": b"q,a\nx,y\n", "x.jsonl": b'{"q": "x", "a": "y"}\n'}.get(name, b'[{"q": 1},\n'))
        stream.write({"x.csv": b"", "x.jsonl": b""}.get(name, b'{"q": "'))
        stream.seek(100 * 2**20, 1)
        stream.write(b"\n")
    number = 3 if name == "x.csv" else 2
    tracemalloc.start()
    with pytest.raises(DataError, match=rf"x\.\w+:{number}: the (line|object) is longer than 1 MiB"):
        read_table(path, ColumnMapping("q", "q"), max_line_bytes=2**20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**20


def test_limit_of_a_line_is_64_mebibytes_by_default(tmp_path):
    path = tmp_path / "x.jsonl"
    with open(path, "wb") as stream:
        stream.seek(64 * 2**20)
        stream.write(b"\n")
    with pytest.raises(DataError, match=r"x\.jsonl:1: the line is longer than 64 MiB, the limit"):
        read_examples(path)


def test_cells_longer_than_the_csv_modules_own_limit_are_read(tmp_path):
    import csv

    before = csv.field_size_limit()
    path = write(tmp_path, "x.csv", "q,a\n" + "x" * 200_000 + ",y\n")
    assert len(read_table(path, ColumnMapping("q", "a"))[0].prompt) == 200_000
    assert csv.field_size_limit() == before


def test_json_list_is_read_an_object_at_a_time(tmp_path):
    path = tmp_path / "x.json"
    with open(path, "w", encoding="utf-8") as stream:
        stream.write("[")
        for number in range(20_000):
            stream.write(("," if number else "") + json.dumps({"q": 'é[{"' * 100, "a": str(number)}) + "\n")
        stream.write("]")
    mapping = ColumnMapping("q", "a")
    tracemalloc.start()
    count = 0
    for count, example in enumerate(iter_table(path, mapping), start=1):
        assert (example.answer, example.source) == (str(count - 1), f"{path}:{count}")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000
    assert path.stat().st_size > 4 * peak


def test_limit_reads_no_further(tmp_path):
    path = write(tmp_path, "x.csv", HEADER + "q,x,x,y,z,t\n" + "broken\n")
    assert len(read_table(path, MAPPING, limit=1)) == 1
    with pytest.raises(ConfigurationError, match="positive integer"):
        iter_table(path, MAPPING, limit=0)


BAD_MAPPINGS = {
    "unknown key": ({"prompt": "q", "answer": "a", "anwser": "b"}, "there is no key `anwser`"),
    "no answer": ({"prompt": "q"}, "the key `answer` is missing"),
    "answer form": ({"prompt": "q", "answer": "a", "choices": "c", "answer_as": "number"}, "must be one of text"),
    "index without choices": ({"prompt": "q", "answer": "a", "answer_as": "index"}, "needs `choices`"),
    "both choices": ({"prompt": "q", "answer": "a", "choices": "c", "fixed_choices": ["x"]}, "not both"),
    "attribute": ({"prompt": "{q[0]}", "answer": "a"}, "nothing more in braces"),
    "conversion": ({"prompt": "{q!r}", "answer": "a"}, "nothing more in braces"),
    "open brace": ({"prompt": "{q", "answer": "a"}, "cannot be used"),
    "no field": ({"prompt": "{{q}}", "answer": "a"}, "names no column"),
    "choices a number": ({"prompt": "q", "answer": "a", "choices": [1]}, "a column or a list of columns"),
    "fixed choices a text": ({"prompt": "q", "answer": "a", "fixed_choices": "xy"}, "a list of texts"),
}


@pytest.mark.parametrize("case", BAD_MAPPINGS)
def test_bad_mapping_is_a_configuration_error(case):
    values, message = BAD_MAPPINGS[case]
    with pytest.raises(ConfigurationError, match=message):
        ColumnMapping.from_dict(values)


def test_domain_is_told_by_argument_column_file_or_format(tmp_path):
    path = write(tmp_path, "quiz.csv", HEADER + "What is that?,x,x,y,z,animals\n")
    assert read_examples(path, MAPPING)[0].domain == "animals"
    assert read_examples(path, MAPPING, domain="mine")[0].domain == "mine"
    assert read_examples(path, MAPPING, domain_by="file")[0].domain == "quiz"
    assert read_examples(path, MAPPING, domain_by="format")[0].domain == "text"
    with pytest.raises(ConfigurationError, match="not both"):
        read_examples(path, MAPPING, domain="mine", domain_by="file")
    with pytest.raises(ConfigurationError, match="domain_by is 'column'"):
        read_examples(path, MAPPING, domain_by="column")


def test_format_of_a_prompt_is_told_by_its_words():
    instruction = Message("system", "Find the pattern in the following and give the answer as a single number.")
    symbolic = Example(
        (instruction, Message("user", "1. [(E, C, B, A,)] "), Message("user", "The answer is ")), (), "x"
    )
    worded = Example((instruction, Message("user", "A gray cube in metal is visible. The light is ")), (), "x")
    assert (prompt_format(symbolic), prompt_format(worded)) == ("symbolic", "text")


def test_file_without_mapping_must_be_evals(tmp_path):
    with pytest.raises(ConfigurationError, match=r"x\.jsonl:1: not in evals form .* columns `context`, `question`"):
        read_examples(write(tmp_path, "x.jsonl", lines(ROWS)))
    with pytest.raises(
        ConfigurationError, match=r"x\.csv: a table needs a mapping of its columns .* only evals JSONL has none"
    ):
        read_examples(write(tmp_path, "x.csv", HEADER))
    talk = {"messages": [{"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": "2"}]}
    (found,) = read_examples(write(tmp_path, "x.jsonl", lines([{**talk, "domain": "sums"}])))
    assert (found.messages, found.answer, found.domain) == ((Message("user", "1 + 1"),), "2", "sums")
    for broken in (talk["messages"][:1], [], "1 + 1", [{"role": "assistant"}]):
        with pytest.raises(
            DataError, match=r"x\.jsonl:2: `messages` must be a conversation that ends with a turn of role assistant"
        ):
            list(read_examples(write(tmp_path, "x.jsonl", lines([talk, {"messages": broken}]))))


def test_unknown_names_are_told_apart(tmp_path):
    with pytest.raises(DataError, match="none: no such file; for a data set on the hub, write hf:NAME"):
        read_examples("none", MAPPING)
    with pytest.raises(DataError, match=r"none\.csv: no such file"):
        read_examples(tmp_path / "none.csv", MAPPING)
    with pytest.raises(ConfigurationError, match="must end in one of"):
        read_examples(write(tmp_path, "x.xls", ""), MAPPING)
    with pytest.raises(ConfigurationError, match="is not the name of a data set"):
        read_examples("hf:../x", MAPPING)
