"""The three answer sets: what distractors differ in from the right answer."""

from functools import cache

import pytest

from iclm.data.raven import CONFIGURATIONS, generate
from iclm.data.raven.statistics import centrality

GRIDS = ("distribute_four", "distribute_nine", "in_distribute_four_out_center_single")


@cache
def made(config, answers):
    """Generated problems."""
    return tuple(generate(config, answers, 150, seed=2))


def differences(right, other):
    """The (component, attribute) pairs in which two panels differ; a change of Number hides the others."""
    found = set()
    for number, (mine, theirs) in enumerate(zip(right, other, strict=True)):
        if len(mine) != len(theirs):
            found.add((number, "Number"))
            continue
        if {e.slot for e in mine} != {e.slot for e in theirs}:
            found.add((number, "Position"))
        for name, field in (("Type", 1), ("Size", 2), ("Color", 3), ("Angle", 4)):
            if [e[field] for e in mine] != [e[field] for e in theirs]:
                found.add((number, name))
    return found


def distractors(problem):
    """The right answer and the seven others."""
    answers = list(problem.answers)
    right = answers.pop(problem.target)
    return right, answers


@pytest.mark.parametrize("config", CONFIGURATIONS)
def test_raven_distractors_differ_in_exactly_one_attribute(config):
    for problem in made(config, "raven"):
        right, others = distractors(problem)
        assert all(len(differences(right, other)) == 1 for other in others)


@pytest.mark.parametrize("config", CONFIGURATIONS)
def test_raven_answer_is_the_most_central(config):
    if config in GRIDS:
        pytest.skip("a new Number brings new entities, which may outvote the answer")
    for problem in made(config, "raven"):
        scores = centrality(problem.answers)
        assert max(scores) == scores[problem.target]


@pytest.mark.parametrize("config", [name for name in CONFIGURATIONS if name not in GRIDS])
def test_iraven_halves_the_answers_three_times(config):
    for problem in made(config, "iraven"):
        right, _ = distractors(problem)
        changed = [frozenset(differences(right, answer)) for answer in problem.answers]
        attributes = frozenset().union(*changed)
        assert len(attributes) == 3
        assert len(set(changed)) == 8
        assert all(sum(name in change for change in changed) == 4 for name in attributes)
        assert len(set(centrality(problem.answers))) == 1


@pytest.mark.parametrize("config", CONFIGURATIONS)
def test_iraven_states_what_was_modified(config):
    for problem in made(config, "iraven"):
        right, _ = distractors(problem)
        assert problem.modified[problem.target] == ()
        for answer, modified in zip(problem.answers, problem.modified, strict=True):
            found = differences(right, answer)
            assert found <= set(modified)
            # A new Number takes some entities only and new slots: other changes of its component do not show as such.
            hidden = {pair for pair in modified if (pair[0], "Number") in modified and pair[1] != "Number"}
            assert set(modified) - hidden <= found


@pytest.mark.parametrize("config", GRIDS)
def test_iraven_bisects_three_attributes_where_it_can(config):
    depths = [max(map(len, problem.modified)) for problem in made(config, "iraven")]
    assert set(depths) <= {1, 2, 3}
    assert depths.count(3) / len(depths) > 0.85


@pytest.mark.parametrize("config", CONFIGURATIONS)
def test_fair_distractors_are_one_or_more_changes_away(config):
    depths = []
    for problem in made(config, "fair"):
        right, others = distractors(problem)
        found = [differences(right, other) for other in others]
        assert all(found)
        for change in found:
            # A name is changed once on a path, over both components; new entities of another Number hide it.
            names = [name for _, name in change]
            assert "Number" in names or "Angle" in names or len(set(names)) == len(names)
        depths += [len(change) for change in found]
    assert min(depths) == 1 and max(depths) >= 2


@pytest.mark.parametrize("answers", ["raven", "iraven", "fair"])
@pytest.mark.parametrize("config", CONFIGURATIONS)
def test_noise_and_angle_are_never_what_tells_an_answer_apart(config, answers):
    for problem in made(config, answers):
        right, others = distractors(problem)
        for other in others:
            names = differences(right, other)
            assert names - {(number, "Angle") for number in (0, 1)}


@pytest.mark.parametrize("answers", ["raven", "iraven", "fair"])
def test_targets_are_uniform(answers):
    counts = [0] * 8
    for config in CONFIGURATIONS:
        for problem in made(config, answers):
            counts[problem.target] += 1
    expected = sum(counts) / 8
    # The 0.999 quantile of chi-square with 7 degrees of freedom.
    assert sum((count - expected) ** 2 / expected for count in counts) < 24.3


@pytest.mark.parametrize("config", ["distribute_four", "distribute_nine"])
def test_a_changed_level_is_another_one_for_every_entity(config):
    from iclm.data.raven import generate

    seen = 0
    for problem in generate(config, "iraven", 150, seed=2):
        right = problem.answers[problem.target]
        for answer, modified in zip(problem.answers, problem.modified, strict=True):
            for number, name in modified:
                field = {"Type": 1, "Size": 2, "Color": 3}.get(name)
                if field is not None and (number, "Number") not in modified:
                    pairs = zip(right[number], answer[number], strict=True)
                    assert all(mine[field] != theirs[field] for mine, theirs in pairs)
                    seen += len({entity[field] for entity in right[number]}) > 1
    assert seen > 20, "the test needs entities that differ"
