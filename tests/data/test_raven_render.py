"""The RAVEN renderings: published bytes, the open form, and back from symbols."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclm.data import Example, Message, read_evals
from iclm.data.raven import ANSWER_SETS, CONFIGURATIONS, examples, iter_problems, make_problem, render
from iclm.data.raven.parse import parse_example
from iclm.errors import ConfigurationError, DataError

OFFICIAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "raven"


def official(path):
    """A published file; skips where it is absent."""
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    return path


@pytest.mark.parametrize("format", ["text", "symbolic"])
@pytest.mark.parametrize("prefix", ["", "iraven_"])
@pytest.mark.parametrize("config", CONFIGURATIONS)
def test_rendering_equals_the_published_bytes(config, prefix, format):
    published = official(OFFICIAL / "evals" / f"{prefix}{config}_{format}.jsonl")
    problems = iter_problems(official(OFFICIAL / f"{prefix or 'raven_'}{config}.jsonl"))
    made = "".join(json.dumps(render(problem, format)) + "\n" for problem in problems)
    assert made == published.read_text()


def test_published_validation_symbols_are_read_and_rendered_again_in_both_formats():
    symbols = official(OFFICIAL / "official_center_single_val_symbolic.jsonl")
    problems = [parse_example(example) for example in read_evals(symbols)]
    assert len(problems) == 1000
    for format in ("symbolic", "text"):
        made = "".join(json.dumps(render(problem, format)) + "\n" for problem in problems)
        assert made == official(OFFICIAL / f"official_center_single_val_{format}.jsonl").read_text()


@pytest.mark.parametrize("format", ["text", "symbolic"])
def test_open_form_asks_for_the_ninth_panel_and_shows_no_answers(format):
    problem = make_problem("in_distribute_four_out_center_single", "raven", 0, 0)
    choice, asked = render(problem, format), render(problem, format, open=True)
    assert list(asked) == ["input", "ideal"]
    turns = [message["content"] for message in asked["input"]]
    assert turns[1:9] == [message["content"] for message in choice["input"][1:9]]
    assert turns[9:] == ["The answer is "]
    letter = choice["ideal"]
    shown = next(m["content"] for m in choice["input"] if m["content"].startswith(f"{letter}. "))
    assert asked["ideal"] == shown.removeprefix(f"{letter}. ")
    assert "letter" not in turns[0]


@pytest.mark.parametrize("format", ["text", "symbolic"])
def test_an_open_question_may_choose_among_the_panels_that_multiple_choice_shows(format):
    problem = make_problem("left_center_single_right_center_single", "iraven", 3, 0)
    (letters,), (panels,) = examples(problem, format), examples(problem, format, open=True, choices=True)
    shown = {m.content[0]: m.content[3:] for m in letters.messages if m.content[1:3] == ". " and m.content[0].isalpha()}
    assert panels.choices == tuple(shown.values()) and len(panels.choices) == 8
    assert panels.answer == shown[letters.answer]
    assert panels.messages == examples(problem, format, open=True)[0].messages


def test_examples_carry_kind_group_and_domain():
    problem = make_problem("up_down", "iraven", 0, 8)
    (example,) = examples(problem, "symbolic", domain="raven")
    assert (example.kind, example.group, example.domain) == ("up_down", "up_down:RAVEN_8_test", "raven")
    assert example.choices == tuple("ABCDEFGH")
    assert example.answer == problem.letter
    (free,) = examples(problem, "text", open=True)
    assert free.choices == () and free.domain is None


def test_extras_are_written_on_request_only():
    problem = make_problem("up_down", "iraven", 0, 8)
    assert list(render(problem, "text")) == ["input", "choice_strings", "ideal"]
    assert list(render(problem, "text", extras=True)) == ["input", "choice_strings", "ideal", "type", "group"]


def test_unknown_format_is_refused():
    with pytest.raises(ConfigurationError, match="format is 'html'; it must be one of text, symbolic"):
        render(make_problem("up_down", "raven", 0, 0), "html")


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(list(CONFIGURATIONS)), st.sampled_from(ANSWER_SETS), st.integers())
def test_symbols_hold_the_whole_problem_but_its_rules(config, answers, seed):
    problem = make_problem(config, answers, seed, 0)
    again = parse_example(examples(problem, "symbolic")[0])
    assert (again.config, again.panels, again.target) == (config, problem.panels, problem.target)
    assert again.rules == ()


@pytest.mark.parametrize(
    ("position", "text", "message"),
    [
        (1, "1. a red circle", "panel 0: 'a red circle' is no panel in symbols"),
        (3, "4. [(A, A, B, A,)] ", "panel 2: .* it must begin with '3. '"),
        (3, "3. [(A, A, B, A, TL)] ", "panel 2: .* is no panel of center_single in symbols"),
        (9, "A. [(A, A, B, A,)]", "panel 8: .* is no panel of center_single"),
        (9, "A. [(A, A, A, A,)] ", "panel 8: Type is 0"),
        (9, "A. [(J, A, B, A,)] ", "panel 8: Size is 9|is no panel"),
    ],
)
def test_other_symbols_are_refused_with_their_panel(position, text, message):
    (example,) = examples(make_problem("center_single", "raven", 0, 0), "symbolic")
    messages = list(example.messages)
    messages[position] = Message("user", text)
    with pytest.raises(DataError, match=message):
        parse_example(Example(tuple(messages), example.choices, example.answer, source="a.jsonl:7"))


def test_other_prompts_are_refused():
    with pytest.raises(DataError, match=r"a\.jsonl:1: not a multiple-choice RAVEN prompt"):
        parse_example(Example((Message("user", "x"),), (), "y", source="a.jsonl:1"))
