"""CORR2CAUSE examples: wording, labels, statistics, determinism, files."""

import hashlib
import os
import random
import re
import subprocess
import sys
from collections import Counter
from itertools import groupby, islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import iclm
from iclm.data import read_evals
from iclm.data.corr2cause import (
    LABELLINGS,
    RELATIONS,
    SPLITS,
    VARIANTS,
    equivalence_classes,
    generate,
    infer_class,
    parse_hypothesis,
    parse_premise,
    read_csv,
    render_hypothesis,
    render_premise,
    solve,
    solve_example,
    split_of,
    write_corr2cause,
)
from iclm.data.corr2cause.generator import plan
from iclm.errors import ConfigurationError, DataError

# A published premise and what the published files say of it.
PREMISE = (
    "Suppose there is a closed system of 4 variables, A, B, C and D. All the statistical relations among these 4 "
    "variables are as follows: A correlates with C. A correlates with D. B correlates with C. B correlates with D. "
    "C correlates with D. However, A is independent of B. A and D are independent given B and C. A and D are "
    "independent given C. B and D are independent given A and C. B and D are independent given C."
)
WORDINGS = {
    "parent": ("A directly causes C.", "A directly affects C."),
    "non-parent ancestor": ("A causes something else which causes C.", "A influences C through some mediator(s)."),
    "child": ("C directly causes A.", "C directly affects A."),
    "non-child descendant": ("C is a cause for A, but not a direct one.", "C influences A through some mediator(s)."),
    "has_collider": (
        "There exists at least one collider (i.e., common effect) of A and C.",
        "A and C together cause some other variable(s).",
    ),
    "has_confounder": (
        "There exists at least one confounder (i.e., common cause) of A and C.",
        "Some variable(s) cause(s) both A and C.",
    ),
}
ANY = (st.sets(st.integers(3, 5), min_size=1), st.integers(1, 30), st.integers(), st.sampled_from(VARIANTS))
PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "data" / "corr2cause" / "test.csv"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache folder of our own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ICLM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def premise_of(example):
    """The premise's text."""
    return example.messages[1].content.removeprefix("Premise: ")


def hypothesis_of(example):
    """The hypothesis's text."""
    return example.messages[2].content.removeprefix("Hypothesis: ").removesuffix("\nAnswer: ")


def test_premise_has_the_published_wording():
    given_ = [(0, 1, 0), (0, 3, 0b0110), (0, 3, 0b0100), (1, 3, 0b0101), (1, 3, 0b0100)]
    assert render_premise(4, given_) == PREMISE
    assert render_premise(4, given_, "paraphrased") == PREMISE
    renamed = re.sub(r"\b[A-D]\b", lambda letter: "ZYXW"["ABCD".index(letter[0])], PREMISE)
    assert render_premise(4, given_, "renamed") == renamed


@pytest.mark.parametrize(
    ("variables", "independences", "end"),
    [
        (2, [], "these 2 variables are as follows: A correlates with B."),
        (2, [(0, 1, 0)], "these 2 variables are as follows: A is independent of B."),
    ],
)
def test_premise_without_correlations_or_independences(variables, independences, end):
    text = render_premise(variables, independences)
    assert text.startswith("Suppose there is a closed system of 2 variables, A and B. All")
    assert text.endswith(end)


@pytest.mark.parametrize("relation", RELATIONS)
def test_hypotheses_have_the_published_wordings(relation):
    first, second = WORDINGS[relation]
    assert render_hypothesis(relation, 0, 2, 4) == first
    assert render_hypothesis(relation, 0, 2, 4, "paraphrased") == second
    assert render_hypothesis(relation, 0, 2, 4, "renamed") == re.sub(r"\bA\b", "Z", re.sub(r"\bC\b", "X", first))


def test_renamed_variables_run_from_the_end_of_the_alphabet():
    assert render_hypothesis("parent", 0, 2, 4, "renamed") == "Z directly causes X."
    assert "6 variables, Z, Y, X, W, V and U." in render_premise(6, [], "renamed")


def test_published_labels_of_a_premise():
    # D is the effect of a collider: A -> C <- B, C -> D, the only graph of its class.
    assert infer_class(parse_premise(PREMISE)) == ((0, 0, 0b0011, 0b0100),)
    assert solve(PREMISE, "A directly causes C.") == 1
    assert solve(PREMISE, "C directly causes A.") == 0
    assert solve(PREMISE, "A causes something else which causes D.") == 1
    assert solve(PREMISE, "D is a cause for A, but not a direct one.") == 0
    assert solve(PREMISE, "There exists at least one collider (i.e., common effect) of A and B.") == 1
    assert solve(PREMISE, "There exists at least one confounder (i.e., common cause) of A and D.") == 0


@settings(deadline=None, max_examples=40)
@given(*ANY)
def test_generated_labels_are_the_solvers(variables, n, seed, variant):
    made = list(generate(variables, n, seed, variant))
    assert len(made) == n
    for example in made:
        assert solve_example(example) == example.answer


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10**6), st.sampled_from(VARIANTS), st.booleans())
def test_generated_labels_of_six_variables_are_the_solvers(seed, variant, balanced):
    for example in generate(6, 12, seed, variant, balanced):
        assert solve_example(example) == example.answer


@settings(deadline=None, max_examples=40)
@given(*ANY)
def test_text_reads_back_as_what_was_rendered(variables, n, seed, variant):
    for example in generate(variables, n, seed, variant):
        premise = parse_premise(premise_of(example))
        assert render_premise(len(premise.names), premise.independences, variant) == premise_of(example)
        relation, x, y = parse_hypothesis(hypothesis_of(example), premise.names)
        assert render_hypothesis(relation, x, y, len(premise.names), variant) == hypothesis_of(example)


def test_variants_ask_the_same_questions_in_other_words():
    official, renamed, paraphrased = (list(generate(range(3, 6), 60, 4, variant)) for variant in VARIANTS)
    letters = str.maketrans("ABCDE", "ZYXWV")
    for a, b, c in zip(official, renamed, paraphrased, strict=True):
        assert a.answer == b.answer == c.answer
        assert a.group == b.group == c.group
        assert premise_of(a) == premise_of(c)
        assert premise_of(a) != premise_of(b)
        assert parse_premise(premise_of(a)).independences == parse_premise(premise_of(b)).independences
        assert hypothesis_of(a) != hypothesis_of(c)
        if a.kind in ("parent", "child"):
            assert hypothesis_of(b) == hypothesis_of(a).translate(letters)


@pytest.mark.parametrize("labelling", LABELLINGS)
def test_all_examples_are_every_hypothesis_of_every_class_once(labelling):
    made = list(generate(range(2, 5), None, 0, labelling=labelling))
    assert len(made) == 2 * 6 + 5 * 3 * 6 + 20 * 6 * 6
    assert len({example.prompt for example in made}) >= len(made) * 0.9
    assert len({example.group for example in made}) == 27
    assert plan(range(2, 7), None).total() == 12 + 90 + 720 + 8520 + 2201 * 90


def test_examples_of_a_class_come_together_and_share_all_but_the_last_message():
    made = list(generate(5, 200, 1))
    for group, members in groupby(made, key=lambda example: example.group):
        members = list(members)
        assert len({example.messages[:-1] for example in members}) == 1
        assert group.startswith("corr2cause-n5-")
        assert len(members) == 6 or group == made[-1].group
    assert len({example.group for example in made}) == 34


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 60), st.integers(), st.sampled_from([None, 2, 5]))
def test_balanced_labels_differ_by_one_at_most(n, seed, per_class):
    answers = Counter(example.answer for example in generate(range(2, 6), n, seed, balanced=True, per_class=per_class))
    assert abs(answers["Yes"] - answers["No"]) <= n % 2


def test_balanced_totals_are_as_planned():
    made = list(generate(range(3, 6), None, 0, balanced=True))
    answers = Counter(example.answer for example in made)
    assert answers["Yes"] == answers["No"] == plan(range(3, 6), None, balanced=True).total() // 2


def test_published_order_of_names_puts_causes_first_and_shuffled_names_do_not():
    def backward(labelling):
        made = generate(5, None, 0, labelling=labelling)
        return sum(example.answer == "Yes" for example in made if example.kind == "child")

    assert backward("upward") == 0
    assert backward("shuffled") > 100


def test_splits_share_no_class():
    groups = [{example.group for example in generate(5, None, 0, split=split, per_class=1)} for split in SPLITS]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 142
    shares = Counter(split_of(chosen) for chosen in equivalence_classes(5))
    assert shares["train"] > 100
    assert min(shares.values()) > 5


def test_more_examples_than_there_are_come_with_other_names():
    made = list(generate(3, 200, 0))
    assert len(made) == 200
    assert (
        len({example.messages[:-1] for example in made}) == 11
    )  # premises, of one problem where they are of one class
    assert len({example.group for example in made}) == 5
    assert all(solve_example(example) == example.answer for example in made)


def test_first_examples_of_a_seed_are_pinned():
    text = "".join(example.prompt + example.answer for example in generate(range(2, 6), 50, 0))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "bf87ea487174116d"


def test_generator_streams_and_ignores_global_random_state():
    random.seed(1)
    expected = random.random()
    random.seed(1)
    made = list(islice(generate(4, 10**12, 0), 20))
    assert random.random() == expected
    assert list(islice(generate(4, 10**12, 0), 20)) == made
    assert list(islice(generate(4, 10**12, 1), 20)) != made


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 40), st.integers(), st.sampled_from(VARIANTS))
def test_file_reads_back_as_what_was_generated(tmp_path_factory, n, seed, variant):
    out = tmp_path_factory.mktemp("out") / "a.jsonl"
    summary = write_corr2cause(out, range(2, 5), n, seed, variant)
    read = read_evals(out)
    made = list(generate(range(2, 5), n, seed, variant))
    fields = ("messages", "choices", "answer", "kind", "group")
    assert [[getattr(e, f) for f in fields] for e in read] == [[getattr(e, f) for f in fields] for e in made]
    assert summary["problems"] == n == sum(summary["answers"].values()) == sum(summary["relations"].values())
    assert summary["premises"] == len({example.group for example in made})


def test_what_comes_again_is_counted_once(tmp_path):
    summary = write_corr2cause(tmp_path / "a.jsonl", [2, 3], 500, 0)
    made = read_evals(tmp_path / "a.jsonl")
    assert summary["problems"] == len(made) == 500
    assert summary["different"] == len({e.messages for e in made}) < 250
    assert summary["premises"] == len({e.messages[:-1] for e in made}) < 20
    assert summary["classes"] == len({e.group for e in made}) < summary["premises"]


def test_a_published_file_may_begin_with_a_byte_order_mark(tmp_path):
    rows = (
        "input,label\n"
        + '"Premise: Suppose there is a closed system of 2 variables, A and B. All the statistical relations among these 2 variables are as follows: A correlates with B.\nHypothesis: A directly causes B.",0\n'
    )
    for name, text in (("plain.csv", rows), ("marked.csv", "\ufeff" + rows)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    plain, marked = (list(read_csv(tmp_path / name)) for name in ("plain.csv", "marked.csv"))
    assert [e.messages for e in plain] == [e.messages for e in marked] and len(plain) == 1


def test_writing_shows_progress(tmp_path):
    seen = []
    write_corr2cause(tmp_path / "a.jsonl", 4, None, 0, progress=lambda *done: seen.append(done))
    assert seen == [(500, 720), (720, 720)]


def test_nothing_is_overwritten_unless_asked(tmp_path):
    write_corr2cause(tmp_path / "a.jsonl", 3, 5, 0)
    with pytest.raises(ConfigurationError, match="exists; pass --overwrite"):
        write_corr2cause(tmp_path / "a.jsonl", 3, 9, 0)
    assert len(read_evals(tmp_path / "a.jsonl")) == 5
    write_corr2cause(tmp_path / "a.jsonl", 3, 9, 0, overwrite=True)
    assert len(read_evals(tmp_path / "a.jsonl")) == 9


def test_two_processes_with_one_seed_write_the_same_bytes(tmp_path):
    code = (
        "import sys; from iclm.data.corr2cause import write_corr2cause as w; "
        "w(sys.argv[1], range(2, 6), 300, 7, 'renamed', balanced=True)"
    )
    environment = os.environ | {
        "PYTHONHASHSEED": "1",
        "PYTHONPATH": str(Path(iclm.__path__[0]).parent),
        "ICLM_CACHE": str(tmp_path / "cache"),
    }
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "theirs.jsonl")], check=True, env=environment)
    write_corr2cause(tmp_path / "ours.jsonl", range(2, 6), 300, 7, "renamed", balanced=True)
    assert (tmp_path / "ours.jsonl").read_bytes() == (tmp_path / "theirs.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((7, 1, 0), {}, "number of variables is 7; it must be 2 to 6"),
        (((), 1, 0), {}, "variables is empty"),
        ((None, 1, 0), {}, "number of variables is None; it must be 2 to 6"),
        (((3, "4"), 1, 0), {}, "number of variables is '4'; it must be 2 to 6"),
        ((3, 0, 0), {}, "number of examples is 0; it must be a positive integer, or None"),
        ((3, 1, "x"), {}, "seed is 'x'; it must be an integer"),
        ((3, 1, 0, "foreign"), {}, "variant is 'foreign'; it must be one of official, renamed, paraphrased"),
        ((3, 1, 0), {"labelling": "down"}, "labelling is 'down'; it must be one of shuffled, upward"),
        ((3, 1, 0), {"split": "dev"}, "split is 'dev'; it must be one of train, val, test"),
        ((3, 1, 0), {"per_class": 0}, "per_class is 0; it must be an integer of 1 or more"),
        ((3, 1, 0), {"per_class": 1, "balanced": True}, "per_class is 1; it must be an integer of 2 or more"),
        ((2, 1, 0), {"balanced": True}, "no hypothesis is valid in the classes of 2 variables"),
    ],
)
def test_unusable_arguments_are_refused_at_once(arguments, options, message):
    with pytest.raises(ConfigurationError, match=message):
        generate(*arguments, **options)


@pytest.mark.parametrize(
    ("premise", "hypothesis", "message"),
    [
        ("Nothing is known.", "A directly causes B.", "no premise of CORR2CAUSE"),
        (PREMISE, "A hates B.", "no hypothesis of CORR2CAUSE"),
        (PREMISE, "A directly causes E.", "must be about two of A, B, C, D"),
        (PREMISE, "A directly causes A.", "must be about two of A, B, C, D"),
        (PREMISE.replace("A correlates with C", "A likes C"), "A directly causes B.", "only correlations"),
        (PREMISE.replace("A correlates with C. ", ""), "A directly causes B.", "every pair of variables"),
        (PREMISE.replace("given C.", "given Q."), "A directly causes B.", "speaks of Q"),
        (PREMISE.replace(" A and D are independent given C.", ""), "A directly causes B.", "true of no causal graph"),
    ],
)
def test_texts_that_cannot_be_solved_are_named(premise, hypothesis, message):
    with pytest.raises(DataError, match=message):
        solve(premise, hypothesis)


def test_published_form_is_read(tmp_path):
    file = tmp_path / "test.csv"
    hypothesis = "A directly causes C."
    file.write_text(f'input,label,num_variables,template\n"Premise: {PREMISE}\nHypothesis: {hypothesis}",1,4,parent\n')
    (example,) = read_csv(file, domain="corr")
    assert (example.answer, example.kind, example.domain) == ("Yes", "parent", "corr")
    assert (premise_of(example), hypothesis_of(example)) == (PREMISE, hypothesis)
    assert solve_example(example) == "Yes"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "needs the columns input and label"),
        ("input,label\nhello,1\n", "row 1: the input must be 'Premise"),
        ('input,label\n"Premise: x\nHypothesis: y",2\n', "row 1: label is '2'; it must be 0 or 1"),
    ],
)
def test_other_csv_files_are_refused(tmp_path, content, message):
    file = tmp_path / "a.csv"
    file.write_text(content)
    with pytest.raises(DataError, match=message):
        list(read_csv(file))


@pytest.mark.slow
def test_published_labels_are_the_solvers_but_for_the_known_mistakes():
    if not PUBLISHED.is_file():
        pytest.skip(f"{PUBLISHED} is not here")
    published = list(read_csv(PUBLISHED))
    assert len(published) == 1162
    assert sum(solve_example(example) != example.answer for example in published) == 18


def test_a_class_is_split_by_its_own_name_and_not_by_its_place():
    from iclm.data.corr2cause import equivalence_classes, split_of

    pairs = zip(equivalence_classes(4), equivalence_classes(5), strict=False)
    assert any(split_of(one) != split_of(other) for one, other in pairs)
