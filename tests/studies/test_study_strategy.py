"""Cheap strategies as methods of a study, and the shallow rule: what it answers and what it misses."""

import pytest

from iclm.data import Example, Message, acre
from iclm.data.audit.strategies import BY_NAME, STRATEGIES, ContainmentRule, CountingRule, ShallowRule, needs_exclusion
from iclm.data.loading import read_source
from iclm.errors import ConfigurationError
from iclm.recipe import DataSource, parse_recipe
from iclm.studies.study.rows import bits, from_bits, from_given, given_of, kinds_of
from iclm.studies.study.strategy import run_strategy


def source(**values):
    return {"acre": "IID", "problems": 20, "format": "text", **values}


def recipe(*train, seed=0):
    return parse_recipe({"base": "no-such-model", "seed": seed, "data": {"train": list(train)}})


@pytest.mark.parametrize("objects", ["official", "strict"])
@pytest.mark.parametrize("form", ["symbolic", "text"])
@pytest.mark.parametrize("regime", ["IID", "Comp", "Sys"])
def test_the_shallow_rule_misses_what_is_indirect_and_nothing_else(regime, form, objects):
    found = [e for p in acre.generate(regime, "test", 60, 3) for e in acre.examples(p, form, objects)]
    rule = ShallowRule()
    assert rule.unfit(found) is None
    rule.fit([])
    for example, answers in zip(found, rule.predict(found), strict=True):
        assert (answers == (example.answer,)) == (example.kind != "indirect")
    share = sum(example.kind != "indirect" for example in found) / len(found)
    assert 0.8 < share < 0.95


@pytest.mark.parametrize("objects", ["official", "strict"])
@pytest.mark.parametrize("form", ["symbolic", "text"])
@pytest.mark.parametrize("regime", ["IID", "Comp", "Sys"])
def test_the_containment_rule_misses_what_needs_exclusion_and_nothing_else(regime, form, objects):
    problems = list(acre.generate(regime, "test", 60, 3))
    found = [e for p in problems for e in acre.examples(p, form, objects)]
    lit = [[set(trial.objects) for trial in p.trials if trial.is_on] for p in problems]
    excludes = [  # of the object ids themselves
        query.label == acre.ON and not any(trial <= set(query.objects) for trial in trials)
        for p, trials in zip(problems, lit, strict=True)
        for query in p.queries
    ]
    assert needs_exclusion(found) == excludes
    missed = [e.kind == "indirect" and n for e, n in zip(found, excludes, strict=True)]
    assert missed == excludes and 0 < sum(excludes) < sum(e.kind == "indirect" for e in found)
    rule = BY_NAME["containment rule"]()
    rule.fit([])
    right = [said == (e.answer,) for e, said in zip(found, rule.predict(found), strict=True)]
    assert right == [not n for n in excludes]
    marks = kinds_of(found)
    assert from_bits(marks["indirect by exclusion"], len(found)).tolist() == excludes


@pytest.mark.parametrize("form", ["symbolic", "text"])
@pytest.mark.parametrize("regime", ["IID", "Comp", "Sys"])
def test_the_counting_rule_tells_exclusion_from_what_is_not_settled_without_excluding(regime, form):
    problems = list(acre.generate(regime, "test", 300, 3))
    found = [e for p in problems for e in acre.examples(p, form)]
    rules = [BY_NAME[name]() for name in ("containment rule", "counting rule")]
    contains, counts = ([said[0] for said in rule.predict(found)] for rule in rules)
    queries = [(p, query) for p in problems for query in p.queries]
    for (problem, query), example, one, two in zip(queries, found, contains, counts, strict=True):
        dark = {item for trial in problem.trials if not trial.is_on for item in trial.objects}
        lit = [
            sum(item in trial.objects for trial in problem.trials if trial.is_on) for item in set(query.objects) - dark
        ]
        assert two == (example.choices[acre.ON] if max(lit, default=0) > 1 else one)
    hard, easy = needs_exclusion(found), [e.kind == "potential" for e in found]
    on = [said == e.choices[acre.ON] for said, e in zip(counts, found, strict=True)]
    shares = [sum(o for o, c in zip(on, chosen, strict=True) if c) / sum(chosen) for chosen in (hard, easy)]
    assert shares[0] > shares[1] + 0.05


def test_what_is_no_question_of_acre_needs_no_exclusion():
    found = read_source(DataSource.model_validate({"raven": "left_right", "problems": 2, "format": "text"}))
    assert not any(needs_exclusion(found))
    asked = Example((Message("user", "?"),), ("off", "undetermined", "on"), "on", kind="indirect")
    assert kinds_of([asked]) == {"indirect": bits([True])}  # without trials there is nothing to exclude


def test_choices_that_were_taken_are_written_in_a_digit_each():
    assert given_of([0, 2, 35, -1]) == "02z-" and from_given("02z-").tolist() == [0, 2, 35, -1]
    assert given_of([36]) is None and given_of([]) == ""


def test_the_rules_are_no_strategies_of_the_audit_but_can_be_named():
    assert ShallowRule not in STRATEGIES and BY_NAME["shallow rule"] is ShallowRule
    assert ContainmentRule not in STRATEGIES and BY_NAME["containment rule"] is ContainmentRule
    assert CountingRule not in STRATEGIES and BY_NAME["counting rule"] is CountingRule


def test_the_shortest_choices_are_equally_likely():
    strategy = BY_NAME["choices only, shortest"]()
    asked = [
        Example((Message("user", "?"),), choices, choices[0])
        for choices in (("a b", "a", "b"), ("aa", "bb"), ("c", "dd"))
    ]
    assert strategy.unfit(asked) is None
    assert strategy.predict(asked) == [("a", "b"), ("aa", "bb"), ("c",)]


def test_a_strategy_leaves_rows_like_those_of_a_model():
    sources = [
        DataSource.model_validate(source(acre=regime, split="test", format=form))
        for regime in ("IID", "Sys")
        for form in ("symbolic", "text")
    ]
    found = run_strategy("shallow rule", recipe(source(), source(format="symbolic")), sources)
    assert [(r["test_set"], r["format"], r["shifted"], r["module"]) for r in found.rows] == [
        ("ACRE IID", "symbolic", False, "strategy"),
        ("ACRE IID", "text", False, "strategy"),
        ("ACRE Sys", "symbolic", True, "strategy"),
        ("ACRE Sys", "text", True, "strategy"),
    ]
    for row, kinds in zip(found.rows, found.questions, strict=True):
        right = from_bits(row["answers"], 80)
        assert row["problems"] == 4 and row["n"] == 80 and right.sum() == row["correct"]
        for kind, (correct, n) in row["by_kind"].items():
            of_kind = from_bits(kinds[kind], 80)
            assert (right[of_kind].sum(), of_kind.sum()) == (correct, n)
        assert row["by_kind"]["indirect"][0] == 0
    assert (found.examples, found.trainable, found.device, found.dtype) == (160, 0, "cpu", None)


def test_a_strategy_learns_from_the_training_examples_of_its_own_domain():
    train = [source(seed=1), source(format="symbolic", seed=2)]
    test = DataSource.model_validate(source(split="test", format="symbolic"))
    found = run_strategy("majority", recipe(*train), [test])
    answers = [e.answer for e in read_source(DataSource.model_validate(train[1]))]
    common = max(sorted(set(answers)), key=answers.count)
    assert found.rows[0]["correct"] == sum(e.answer == common for e in read_source(test))


@pytest.mark.parametrize("name", ["majority", "prompt n-grams", "one item", "last item"])
def test_a_strategy_answers_the_same_again(name):
    test = [DataSource.model_validate(source(split="test"))]
    first, second = (run_strategy(name, recipe(source(), seed=4), test).rows for _ in range(2))
    assert first == second and 0 < first[0]["correct"] < 80


def test_a_strategy_that_does_not_fit_the_data_says_why():
    raven = {"raven": "center_single", "problems": 2, "format": "text"}
    with pytest.raises(
        ConfigurationError, match=r"'shallow rule' cannot be used on RAVEN center_single: .*three choices"
    ):
        run_strategy("shallow rule", recipe(raven), [DataSource.model_validate({**raven, "split": "test"})])
    with pytest.raises(ConfigurationError, match=r"strategy is 'x'; known are majority; "):
        run_strategy("x", recipe(source()), [])
