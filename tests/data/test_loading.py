"""Sources of a recipe that are generated: what they hold, what they are called, and which go together."""

import hashlib
import re
from typing import get_args

import pytest
from pydantic import ValidationError

from iclm.data import acre, corr2cause, pvr, raven
from iclm.data.loading import (
    distribution,
    domain_numbers,
    overlap,
    pinned,
    problem_kind,
    read_source,
    read_sources,
    read_training,
    source_name,
    trained_on,
)
from iclm.errors import ConfigurationError, DataError
from iclm.recipe import SPLITS, DataSource


def source(**values):
    return DataSource.model_validate({"problems": 12, **values})


def test_the_recipe_offers_what_the_generators_do():
    def values_of(field):
        return get_args(get_args(DataSource.model_fields[field].annotation)[0])

    assert values_of("corr2cause") == corr2cause.VARIANTS
    assert values_of("pvr") == pvr.AGGREGATIONS
    assert get_args(DataSource.model_fields["shift"].annotation) == pvr.SHIFTS
    assert SPLITS == pvr.SPLITS


@pytest.mark.parametrize(
    "values",
    [
        {"acre": "IID", "format": "text", "split": "tst"},
        {"raven": "left_right", "format": "text", "split": "holdout"},
        {"corr2cause": "official", "split": "holdout"},
        {"pvr": "max", "split": "all"},
    ],
)
def test_an_unknown_split_of_generated_problems_is_found_when_the_recipe_is_read(values):
    with pytest.raises(ValidationError, match=r"split is '\w+'; of these problems it is one of train, val, test"):
        source(**values)


@pytest.mark.parametrize("balanced", [False, True])
def test_corr2cause_questions_are_those_of_the_generator(balanced):
    found = read_source(source(corr2cause="renamed", variables=[4, 5], balanced=balanced, split="val", seed=3))
    made = corr2cause.generate([4, 5], 12, 3, "renamed", balanced, split="val", domain="corr2cause")
    assert found == list(made) and len(found) == 12
    assert {example.domain for example in found} == {"corr2cause"}
    assert all(example.group and example.kind in corr2cause.RELATIONS for example in found)
    assert [corr2cause.solve_example(example) for example in found] == [example.answer for example in found]


def test_wordings_of_a_seed_ask_the_same_of_classes_that_no_other_split_has():
    asked = {name: read_source(source(corr2cause=name, split="test")) for name in corr2cause.VARIANTS}
    groups = {name: [example.group for example in found] for name, found in asked.items()}
    assert groups["official"] == groups["renamed"] == groups["paraphrased"]
    assert len({tuple(example.prompt for example in found) for found in asked.values()}) == 3
    answers = {tuple(example.answer for example in found) for found in asked.values()}
    assert len(answers) == 1
    trained = {example.group for seed in range(3) for example in read_source(source(corr2cause="official", seed=seed))}
    assert trained and not trained & set(groups["official"])


def test_pvr_problems_are_those_of_the_generator():
    given = {"pvr": "max", "complexity": 1, "shift": "permutation", "split": "holdout", "seed": 2, "domain": "digits"}
    found = read_source(source(**given))
    assert found == list(pvr.examples(1, "max", "holdout", 12, 2, shift="permutation", domain="digits"))
    assert {example.kind for example in found} == {"max-1"} and len({example.group for example in found}) == 12
    assert {example.domain for example in read_source(source(pvr="max"))} == {"pvr"}


@pytest.mark.parametrize(
    "values", [{"corr2cause": "official"}, {"pvr": "mod_sum"}], ids=lambda values: next(iter(values))
)
def test_a_limit_and_a_seed_hold_for_every_generated_source(values):
    assert read_source(source(**values, limit=5)) == read_source(source(**values))[:5]
    assert read_source(source(**values, seed=1)) != read_source(source(**values))


def test_the_wordings_of_corr2cause_are_one_domain_beside_acre():
    wordings = [source(corr2cause=name) for name in corr2cause.VARIANTS]
    found = read_sources([*wordings, source(acre="IID", problems=1, format="text")])
    assert domain_numbers(found) == {"corr2cause": 0, "text": 1}


NAMED = [
    ({"acre": "Comp", "split": "val", "format": "text"}, "ACRE Comp", "acre-Comp-val-text"),
    (
        {"raven": "center_single", "format": "symbolic"},
        "RAVEN center_single",
        "raven-center_single-train-symbolic",
    ),
    ({"corr2cause": "renamed", "split": "test"}, "CORR2CAUSE renamed", "corr2cause-renamed-test"),
    ({"corr2cause": "renamed", "variables": [5, 4, 3]}, "CORR2CAUSE renamed", "corr2cause-renamed-train"),
    ({"corr2cause": "official", "variables": [6, 4]}, "CORR2CAUSE official 4,6", "corr2cause-official-4,6-train"),
    ({"pvr": "mod_sum", "complexity": 1, "split": "test"}, "PVR mod_sum-1", "pvr-mod_sum-1-test"),
    ({"pvr": "max", "split": "holdout"}, "PVR max-0 holdout", "pvr-max-0-holdout"),
    ({"file": "a/quiz.jsonl"}, None, "a/quiz.jsonl"),
    ({"dataset": "org/name"}, None, "org/name"),
]


@pytest.mark.parametrize(("values", "drawn_from", "name"), NAMED, ids=[name for *_, name in NAMED])
def test_a_source_is_called_by_what_it_holds(values, drawn_from, name):
    found = source(**values)
    assert (distribution(found), source_name(found)) == (drawn_from, name)
    assert found.generated == (drawn_from is not None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "give one of acre, raven, corr2cause and pvr"),
        ({"corr2cause": "official", "pvr": "max"}, "give one of"),
        ({"corr2cause": "official", "file": "x.jsonl"}, "give one of"),
        ({"corr2cause": "official", "problems": None}, r"generated problems need problems \(how many\)$"),
        ({"acre": "IID", "problems": None}, "how many.*and format"),
        ({"pvr": "max", "format": "text"}, "format is for ACRE and RAVEN; .* leave it out"),
        ({"corr2cause": "official", "complexity": 1}, "complexity is for pvr"),
        ({"pvr": "max", "balanced": True}, "balanced is for corr2cause"),
        ({"acre": "IID", "format": "text", "variables": [4]}, "variables is for corr2cause"),
        ({"corr2cause": "plain"}, "'official', 'renamed' or 'paraphrased'"),
        ({"corr2cause": "official", "variables": [7]}, "less than or equal to 6"),
        ({"corr2cause": "official", "variables": []}, "at least 1 item"),
        ({"pvr": "sum"}, "'mod_sum'"),
        ({"pvr": "max", "complexity": 3}, "less than or equal to 2"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value) or "nothing",
)
def test_a_source_that_cannot_be_generated_is_refused(values, message):
    with pytest.raises(ValidationError) as caught:
        source(**values)
    (fault,) = caught.value.errors()
    assert re.search(message, fault["msg"]), fault["msg"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"corr2cause": "official", "variables": [2], "balanced": True}, "no hypothesis is valid"),
        ({"pvr": "max", "shift": "permutation"}, "needs complexity 1 or 2"),
    ],
    ids=["balanced", "shift"],
)
def test_what_a_generator_cannot_do_is_told_when_the_source_is_read(values, message):
    with pytest.raises(ConfigurationError, match=message):
        read_source(source(**values))


@pytest.mark.parametrize("format", ["symbolic", "text"])
def test_raven_problems_may_ask_for_the_panel(format, tmp_path):
    letters, panels = (
        source(raven="center_single", format=format, split="test", ask=ask) for ask in ("letter", "panel")
    )
    asked, by_letter = read_source(panels), read_source(letters)
    assert [example.answer_index for example in asked] == [example.answer_index for example in by_letter]
    assert [example.group for example in asked] == [example.group for example in by_letter]
    assert all(len(example.prompt) < len(other.prompt) for example, other in zip(asked, by_letter, strict=True))
    assert distribution(panels) == distribution(letters)
    assert source_name(panels) == source_name(letters) + "-panel"
    file = tmp_path / "problems.jsonl"
    raven.write_problems(file, raven.generate("center_single", "iraven", 12, 0, "test"))
    filed = DataSource(file=file, format=format, ask="panel")
    assert [(e.prompt, e.choices, e.answer) for e in read_source(filed)] == [
        (e.prompt, e.choices, e.answer) for e in asked
    ]


def test_only_raven_problems_ask_for_a_panel(tmp_path):
    for values in (
        {"acre": "IID", "format": "text"},
        {"pvr": "min"},
        {"file": "a.csv", "columns": {"prompt": "a", "answer": "b"}},
    ):
        with pytest.raises(ValidationError, match="ask: panel is for RAVEN problems"):
            source(ask="panel", **values)
    file = tmp_path / "lines.jsonl"
    file.write_text('{"input": [{"role": "user", "content": "Well?"}], "ideal": "yes"}\n')
    with pytest.raises(ConfigurationError, match=r"lines\.jsonl holds no RAVEN problems; ask: panel is for those"):
        read_source(DataSource(file=file, ask="panel"))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"acre": "IID", "format": "text"}, {"acre": "IID", "format": "symbolic", "problems": 9}, True),
        ({"acre": "IID", "format": "text"}, {"acre": "IID", "format": "text", "objects": "strict"}, True),
        ({"acre": "IID", "format": "text"}, {"acre": "IID", "format": "text", "seed": 1}, False),
        ({"acre": "IID", "format": "text"}, {"acre": "Sys", "format": "text"}, False),
        ({"acre": "IID", "format": "text"}, {"acre": "IID", "format": "text", "split": "val"}, False),
        ({"raven": "left_right", "format": "text"}, {"raven": "left_right", "format": "text", "answers": "fair"}, True),
        (
            {"raven": "left_right", "format": "text"},
            {"raven": "left_center_single_right_center_single", "format": "text", "ask": "panel"},
            True,
        ),
        ({"corr2cause": "official"}, {"corr2cause": "renamed", "seed": 3}, True),  # there are few
        ({"corr2cause": "official", "variables": [3]}, {"corr2cause": "official", "variables": [4]}, False),
        ({"pvr": "max"}, {"pvr": "max", "seed": 1}, False),
        ({"file": "a.jsonl"}, {"file": "./a.jsonl", "limit": 3}, True),
        ({"file": "a.jsonl"}, {"file": "b.jsonl"}, False),
        ({"dataset": "squad"}, {"dataset": "squad", "split": "test"}, False),
    ],
)
def test_sources_that_can_ask_the_same_problems_overlap(one, other, same):
    sources = [DataSource.model_validate({"problems": 4, **values}) for values in (one, other)]
    assert overlap(*sources) is overlap(*reversed(sources)) is same
    assert overlap(sources[0], sources[0])


def test_the_seed_of_a_training_takes_the_place_of_its_sources():
    train = [DataSource(acre="IID", problems=4, format="text", seed=9)]
    test = DataSource(acre="IID", problems=4, format="symbolic", seed=3)
    assert trained_on(test, train, [0, 1]) is None and trained_on(test, train, [0, 3]) == 3
    assert trained_on(train[0], train, [0]) is None  # the seed that is given is not the one trained with


@pytest.mark.parametrize(("field", "value"), [("problems", 4), ("format", "text")])
def test_what_is_for_problems_is_refused_of_a_plain_file(tmp_path, field, value):
    (tmp_path / "x.jsonl").write_text('{"input": [{"role": "user", "content": "?"}], "ideal": "2"}\n')
    with pytest.raises(ConfigurationError, match=rf"x\.jsonl holds no ACRE or RAVEN problems; {field} is for those"):
        read_source(DataSource.model_validate({"file": tmp_path / "x.jsonl", field: value}))


def test_how_choices_are_scored_is_said_in_the_name_and_in_each_example():
    values = {"raven": "distribute_four", "format": "text", "ask": "panel", "score": "mean"}
    assert source_name(source(**values)) == "raven-distribute_four-train-text-panel-mean"
    assert all(example.per_token for example in read_source(source(**values)))
    assert not any(example.per_token for example in read_source(source(**{**values, "score": "sum"})))


def test_a_file_of_another_content_than_was_noted_is_refused(tmp_path):
    line = '{"input": [{"role": "user", "content": "1 + 1 ="}], "ideal": "2"}\n'
    (tmp_path / "x.jsonl").write_text(line)
    noted = pinned(DataSource(file=tmp_path / "x.jsonl"))
    assert noted.sha256 == hashlib.sha256(line.encode()).hexdigest() and pinned(noted) is noted
    assert [example.answer for example in read_source(noted)] == ["2"]
    (tmp_path / "x.jsonl").write_text(line.replace('"2"', '"3"'))
    with pytest.raises(DataError, match=rf"x\.jsonl has another content than that whose sha256 is {noted.sha256}"):
        read_source(noted)
    assert read_source(DataSource(file=tmp_path / "x.jsonl"))[0].answer == "3"
    missing = DataSource(file=tmp_path / "y.jsonl")
    assert pinned(missing) is missing
    with pytest.raises(ValidationError, match="sha256 is that of a file, and this source has none"):
        source(raven="center_single", format="text", sha256=noted.sha256)


LINE = '{"input": [{"role": "user", "content": "%s"}], "choice_strings": ["a", "b"], "ideal": "a"%s}\n'


def two_files(tmp_path, more=""):
    """train.jsonl in two folders, as sources."""
    for folder in ("medicine", "law"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.jsonl").write_text(LINE % (folder, more))
    return [DataSource(file=tmp_path / folder / "train.jsonl") for folder in ("medicine", "law")]


def test_files_of_one_name_become_one_domain_only_where_that_is_said(tmp_path):
    sources = two_files(tmp_path)
    with pytest.raises(
        ConfigurationError,
        match=r"medicine/train.jsonl and .*law/train.jsonl would be one domain by their name, train;",
    ):
        read_training(sources)
    assert len(read_sources(sources)) == 2  # what is only asked may be of any domain
    named = [
        source.model_copy(update={"domain": name}) for source, name in zip(sources, ("medicine", "law"), strict=True)
    ]
    assert list(domain_numbers(read_training(named))) == ["medicine", "law"]
    one = [source.model_copy(update={"domain": "both"}) for source in sources]
    assert list(domain_numbers(read_training(one))) == ["both"]
    assert len(read_training([sources[0], sources[0]])) == 2


def test_rows_that_name_their_domain_need_no_name_of_the_file(tmp_path):
    found = read_training(two_files(tmp_path, ', "domain": "train"'))
    assert [example.domain for example in found] == ["train", "train"]


def test_official_problems_are_known_by_an_upper_case_name_too(tmp_path):
    acre.write_problems(tmp_path / "IID_VAL.JSON", acre.generate("IID", "val", 2, 0))
    assert problem_kind(tmp_path / "IID_VAL.JSON") == "ACRE"
