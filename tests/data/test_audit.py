"""The audit: what it counts, what it refuses, and that it names shortcuts and nothing else."""

import json
import random

import pytest

from iclm.data import Example, Message
from iclm.data.audit import MARGIN, STRATEGIES, audit, render_text
from iclm.errors import ConfigurationError, DataError


def example(prompt, answer, choices=("no", "yes"), **fields):
    messages = (prompt,) if isinstance(prompt, str) else prompt
    return Example(tuple(Message("user", text) for text in messages), tuple(choices), answer, **fields)


def coin_flips(count=400, seed=1):
    """Prompts that say nothing about their answers, which are balanced."""
    rng = random.Random(seed)
    words = [" ".join(rng.choice("abcdefgh") for _ in range(6)) for _ in range(count)]
    return [
        example(("Rules.", f"{number} {text}", f"{rng.choice('xyz')} ?"), rng.choice(["no", "yes"]))
        for number, text in enumerate(words)
    ]


def verdicts(report, split="x"):
    return {result.name for result in report.split(split).shortcuts}


def test_data_without_shortcut_has_none_named():
    report = audit({"x": coin_flips()})
    assert report.shortcuts == ()
    applicable = [r for r in report.split("x").strategies if r.n]
    assert {"majority", "answer position", "query only", "last token", "prompt n-grams"} <= {r.name for r in applicable}
    assert all(result.accuracy < 0.62 for result in applicable)


def test_one_answer_far_more_often_right_is_named():
    report = audit({"x": [example(f"{i} a", "yes" if i % 4 == 0 else "no") for i in range(400)]})
    assert {"majority", "answer position"} <= verdicts(report)
    assert report.split("x").strategy("majority").accuracy == 0.75


def test_instruction_that_all_prompts_share_is_not_taken_for_a_problem():
    shared = [example(("Rules.", f"question {i}"), "no") for i in range(30)]
    alone = [example(f"question {i}", "no") for i in range(30)]
    assert audit({"x": shared + alone}).split("x").problems == 60


def test_answer_in_one_position_is_named_where_texts_differ():
    examples = [
        example(f"question {i}", f"right {i}", (f"right {i}", f"wrong {i}") if i % 10 else (f"wrong {i}", f"right {i}"))
        for i in range(300)
    ]
    report = audit({"x": examples})
    assert "answer position" in verdicts(report)
    assert "majority" not in verdicts(report)
    assert report.split("x").positions == {0: 270, 1: 30}


def test_choices_that_differ_in_wording_are_named_by_the_choices_alone():
    rng = random.Random(2)
    examples = []
    for i in range(300):
        choices = [f"it is certain {i}", f"never {i}"]
        rng.shuffle(choices)
        examples.append(example(f"question {i}", f"it is certain {i}", choices))
    assert verdicts(audit({"x": examples})) == {"choices only, learned"}


def test_query_that_holds_the_answer_is_named():
    rng = random.Random(3)
    examples = []
    for i in range(300):
        answer = rng.choice(["no", "yes"])
        query = "is it surely so" if answer == "yes" else "is it hardly so"
        examples.append(example((f"context {i} {rng.random()}", f"{rng.choice('abc')} {query}"), answer))
    assert {"query only", "prompt n-grams"} <= verdicts(audit({"x": examples}))


def test_words_of_the_context_that_hold_the_answer_are_named_but_not_the_query():
    rng = random.Random(4)
    examples = []
    for i in range(300):
        answer = rng.choice(["no", "yes"])
        examples.append(example((f"{i} {'warm' if answer == 'yes' else 'cold'}", f"{rng.choice('abc')} ?"), answer))
    assert verdicts(audit({"x": examples})) == {"prompt n-grams"}


def demonstrations(shuffle, count=400, seed=5):
    """Lists of two objects; the answer is the state that the second was seen with, or the order is shuffled."""
    rng = random.Random(seed)
    examples = []
    for number in range(count):
        objects = rng.sample(range(90), 6)
        states = [rng.choice(["off", "on"]) for _ in objects]
        shown = [f"[{o}] -> {s}" for o, s in zip(objects, states, strict=True)]
        query = objects[:2]
        answer = states[1]
        if shuffle:
            rng.shuffle(query)
        examples.append(example((f"Task {number}.", *shown, f"{query} -> "), answer, ("off", "on")))
    return examples


def test_order_of_items_that_leaks_the_answer_is_named_and_shuffling_heals_it():
    leaking, healed = audit({"x": demonstrations(False)}), audit({"x": demonstrations(True)})
    assert leaking.split("x").strategy("last item").accuracy == 1.0
    assert "last item" in verdicts(leaking)
    assert "order of the items leaks the answer" in leaking.split("x").strategy("last item").sentence
    assert "last item" not in verdicts(healed)
    assert healed.split("x").strategy("last item").accuracy < 0.85


def test_verdict_follows_from_bound_reference_and_margin():
    report = audit({"a": demonstrations(False), "b": coin_flips()})
    for split in report.splits:
        for result in split.strategies:
            if result.n:
                assert (result.verdict == "shortcut") == (result.low > result.reference + MARGIN)
                assert result.low <= result.accuracy <= result.high
                assert result.reference >= (split.chance or 0)
            else:
                assert result.verdict == "not applicable"
                assert result.sentence


def test_no_strategy_is_scored_on_a_problem_it_was_fitted_on():
    """All questions of a problem have one answer and words of their own: only a leak between parts could tell it."""
    rng = random.Random(6)
    examples = []
    for problem in range(40):
        answer = rng.choice(["no", "yes"])
        name = f"word{problem}"
        examples += [example((f"{name} {name}", f"{name} {i}"), answer, group=name) for i in range(10)]
    ungrouped = [example([m.content for m in e.messages], e.answer) for e in examples]
    for given in (examples, ungrouped):
        report = audit({"x": given}).split("x")
        assert report.problems == 40
        assert report.strategy("prompt n-grams").accuracy < 0.7
        assert report.strategy("query only").accuracy < 0.7


def test_audit_is_the_same_in_each_run_and_can_be_written_as_json():
    splits = {"a": demonstrations(False, 60), "b": coin_flips(60)}
    first, second = audit(splits, seed=3), audit(splits, seed=3)
    assert json.loads(json.dumps(first.to_dict())) == second.to_dict()
    assert render_text(first) == render_text(second) == str(first)


def test_duplicates_and_conflicts_are_counted_within_and_between_splits():
    train = [example("p", "no", source="t:1"), example("p", "no", source="t:2"), example("q", "yes", source="t:3")]
    val = [example("q", "no", source="v:1"), example("q", "yes", source="v:2"), example("r", "no", source="v:3")]
    within, within_val, across = audit({"train": train, "val": val}).duplicates
    assert (within.repeated, within.conflicting, within.shown) == (1, 0, (("t:1", "t:2"),))
    assert (within_val.repeated, within_val.conflicting) == (0, 1)
    assert (across.first, across.second, across.repeated, across.conflicting) == ("train", "val", 1, 1)
    assert across.shown[0] == ("t:3", "v:1")


def test_role_of_a_message_tells_prompts_apart():
    one = Example((Message("user", "a"),), (), "x")
    two = Example((Message("system", "a"),), (), "x")
    assert audit({"x": [one, two]}).duplicates[0].repeated == 0


def test_lengths_count_prompt_longest_choice_and_end_of_text():
    def tokenizer(texts):
        return {"input_ids": [list(text) for text in texts]}

    examples = [example("abc ", "no", source="f:1"), example("abcdef ", "yes", source="f:2")]
    lengths = audit({"x": examples}, tokenizer=tokenizer, context=9).split("x").lengths
    assert (lengths.quantiles["min"], lengths.quantiles["max"]) == (4 + 3 + 1, 7 + 3 + 1)
    assert (lengths.unit, lengths.cut, lengths.longest) == ("tokens", 1, "f:2")
    assert audit({"x": examples}).split("x").lengths.unit == "words"
    assert "a context of 9 cuts 1 (50.0 %)" in render_text(audit({"x": examples}, tokenizer=tokenizer, context=9))


def test_counts_of_answers_domains_and_kinds_are_reported():
    examples = [example(f"p{i}", "no" if i else "yes", domain="d" if i < 2 else None, kind="k") for i in range(4)]
    split = audit({"x": examples}).split("x")
    assert split.answers == {"no": 3, "yes": 1}
    assert split.positions == {0: 3, 1: 1}
    assert (split.domains, split.kinds, split.chance) == ({"": 2, "d": 2}, {"k": 4}, 0.5)


def test_free_answers_have_no_positions_and_no_chance():
    rng = random.Random(7)
    examples = [example(f"p {i} {rng.random()}", str(rng.choice("abc")), ()) for i in range(60)]
    report = audit({"x": examples})
    split = report.split("x")
    assert (split.chance, split.positions) == (None, {})
    assert split.strategy("answer position").verdict == "not applicable"
    assert split.strategy("majority").n == 60
    assert report.shortcuts == ()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_handful_of_examples_can_be_audited(count):
    report = audit({"x": coin_flips(count)})
    assert len(report.split("x").strategies) == len(STRATEGIES)
    assert report.shortcuts == ()


def test_examples_of_mixed_forms_can_be_audited():
    mixed = coin_flips(40) + demonstrations(True, 40) + [example(f"free {i}", f"answer {i}", ()) for i in range(40)]
    assert audit({"x": mixed}).split("x").examples == 120


def test_empty_input_is_refused():
    with pytest.raises(ConfigurationError, match="nothing to audit"):
        audit({})
    with pytest.raises(DataError, match="split 'val' is empty"):
        audit({"train": coin_flips(2), "val": []})
    with pytest.raises(ConfigurationError, match="context is 0"):
        audit({"x": coin_flips(2)}, context=0)


@pytest.mark.parametrize("shuffle", [False, True])
def test_words_that_give_the_answer_away_are_named_whatever_the_order_of_the_choices(shuffle):
    rng = random.Random(3)
    examples = []
    for number in range(300):
        right, word = rng.choice([("yes", "certainly"), ("no", "hardly")])
        choices = rng.sample(["no", "yes"], 2) if shuffle else ["no", "yes"]
        examples.append(example(f"{number} is {word} so", right, choices))
    report = audit({"x": examples})
    assert "prompt n-grams" in verdicts(report)
    assert report.split("x").strategy("prompt n-grams").accuracy > 0.95


def test_an_accuracy_that_few_problems_decide_is_no_shortcut():
    """All questions of a problem have one answer and one last word: of 20 problems, not of 1,000 questions, is what is known."""
    named = narrow = 0
    for seed in range(10):
        rng = random.Random(seed)
        words = {p: (rng.choice("abcdefgh"), rng.choice(["no", "yes"])) for p in range(20)}
        examples = [
            example(("Rules.", f"{p} {q}", f"{words[p][0]} ?"), words[p][1], group=f"p{p}")
            for p in words
            for q in range(50)
        ]
        result = audit({"x": examples}).split("x").strategy("last token")
        named += result.verdict == "shortcut"
        narrow += result.high - result.low < 0.3
    assert named == narrow == 0


def test_a_question_among_other_choices_is_another_question():
    stem = "Which of these is true?"
    own = [example(stem, f"right {i}", (f"right {i}", f"wrong {i}", f"odd {i}")) for i in range(60)]
    report = audit({"x": own})
    (within,) = report.duplicates
    assert (within.repeated, within.conflicting, report.split("x").problems) == (0, 0, 60)
    again = [
        example(stem, "right 3", ("odd 3", "right 3", "wrong 3")),
        example(stem, "odd 4", ("odd 4", "wrong 4", "right 4")),
    ]
    free = [example(stem, "right 5", ()), example(stem, "nothing", ())]
    across = audit({"x": own, "y": again + free}).duplicates[-1]
    assert (across.first, across.second, across.repeated, across.conflicting) == ("x", "y", 2, 2)


def test_what_could_not_be_tested_is_not_called_free_of_shortcuts():
    report = audit({"x": [example("the same", "a", ("a", "b"), group="one") for _ in range(8)]})
    assert all(result.verdict == "not applicable" for result in report.split("x").strategies)
    assert "no strategy could be tested" in render_text(report) and "none found" not in render_text(report)


def test_the_longest_choice_is_the_one_of_most_tokens():
    def tokenizer(texts):
        return {"input_ids": [[0] * sum(3 if ord(sign) > 127 else 0.1 for sign in text).__ceil__() for text in texts]}

    examples = [example("q", "internationalisation", ("internationalisation", "日本語の答え"))]
    lengths = audit({"x": examples}, tokenizer=tokenizer, context=10).split("x").lengths
    assert (lengths.cut, lengths.quantiles["max"]) == (1, 20)


def test_a_file_that_exists_is_no_name_and_file(tmp_path, monkeypatch):
    from iclm.data.audit.command import audit_files

    monkeypatch.chdir(tmp_path)
    line = '{"input": [{"role": "user", "content": "%d"}], "choice_strings": ["0", "1"], "ideal": "%d"}\n'
    for name in ("a=b.jsonl", "b.jsonl"):
        (tmp_path / name).write_text("".join(line % (i, i % 2) for i in range(4 if name == "b.jsonl" else 6)))
    assert audit_files(["a=b.jsonl"]).split("a=b.jsonl").examples == 6
    assert audit_files(["c=b.jsonl"]).split("c").examples == 4
