"""Interventions: a module that is changed moves alone, the swap is the routed mixture on its diagonal, all is put back."""

import json

import numpy as np
import pytest
import torch

from iclm.data.collation import EncodedExample
from iclm.data.example import Example, Message
from iclm.errors import ConfigurationError, DataError
from iclm.evaluation.comparison import paired_difference
from iclm.evaluation.intervention import interventions, module_effects, perturbed, swap_matrix
from iclm.evaluation.scoring import score

SINGLE = ("invariant", "domain_0", "domain_1", "domain_2")
ROUTES = ("route_0", "route_1", "route_2")


def item(number, domain=-1, name=None):
    """An example of random tokens with three choices, of which the first or the last is right."""
    tokens = torch.randint(10, 500, (4 + number % 5,), generator=torch.Generator().manual_seed(number)).tolist()
    answer = "a" if number % 2 else "c"
    example = Example(
        (Message("user", f"prompt {number}"),), ("a", "b", "c"), answer, domain=name, source=f"item {number}"
    )
    choices = ((5,), (6, 7), (8, 9))
    return EncodedExample(tuple(tokens), choices, choices["abc".index(answer)], domain, example)


ITEMS = [item(number, number % 3) for number in range(14)]


@pytest.fixture(scope="module")
def models():
    """ICLMs made already."""
    return {}


@pytest.fixture
def model(make_iclm, architecture, models):
    """An ICLM with three domain modules that differ, and a router that uses all of them."""
    if architecture not in models:
        models[architecture] = make_iclm(architecture, num_domains=3, router="random", mix="gate")
    return models[architecture]


@pytest.fixture
def llama(make_iclm, models):
    """The Llama among them, for what does not depend on the architecture."""
    if "llama" not in models:
        models["llama"] = make_iclm("llama", num_domains=3, router="random", mix="gate")
    return models["llama"]


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(model, before):
    """Names of the parameters and buffers that are not bitwise as before."""
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def own(parameters_of, model, number, kind):
    """Names of what an intervention on a module changes."""
    return {name for name in parameters_of(model, number) if kind == "noise" or ".lora_B." in name}


def correct(scores, module, chosen):
    right = [
        ITEMS[i].example.choices[int(np.argmax(scores.choices[module][i]))] == ITEMS[i].example.answer for i in chosen
    ]
    return sum(right), len(right)


def test_diagonal_of_the_swap_is_the_routed_mixture(model):
    matrix, scores = swap_matrix(model, ITEMS, pad=0), score(model, ITEMS, modules=("mixture", *ROUTES))
    assert len(set(scores.routes.tolist())) == 3, "the test needs a router that uses every module"
    for i, row in enumerate(matrix.routed):
        sent = np.flatnonzero(scores.routes == i)
        assert row.source == f"domain_{i}" and row.n == len(sent)
        assert row.accuracy[i] == row.mixture
        for number in sent:
            assert np.array_equal(scores.choices[f"route_{i}"][number], scores.choices["mixture"][number])


def test_each_cell_of_the_swap_is_the_accuracy_with_that_module_alone(model):
    matrix, routes = swap_matrix(model, ITEMS, pad=0), score(model, ITEMS).routes
    columns = [score(model, ITEMS, modules=[module]) for module in ROUTES]
    for i, row in enumerate(matrix.routed):
        sent = np.flatnonzero(routes == i)
        assert [(a.correct, a.n) for a in row.accuracy] == [
            correct(s, m, sent) for s, m in zip(columns, ROUTES, strict=True)
        ]
    assert sum(row.n for row in matrix.routed) == len(ITEMS)
    assert len({a.correct for row in matrix.routed for a in row.accuracy}) > 1, "the test needs cells that differ"


def test_the_advantage_of_a_route_is_that_of_the_same_questions(model):
    matrix, scores = swap_matrix(model, ITEMS, pad=0), score(model, ITEMS, modules=ROUTES)
    answers = np.array([item.example.answer_index for item in ITEMS])
    right = np.stack([scores.predictions(module) == answers for module in ROUTES]).astype(float)
    own = right[scores.routes, np.arange(len(ITEMS))]
    assert matrix.advantage == paired_difference(own, (right.sum(0) - own) / 2, list(range(len(ITEMS))))
    assert matrix.to_dict()["advantage"]["low"] == matrix.advantage[1]


def test_rows_by_domain_are_the_known_domains_by_name_or_number(llama):
    items = [item(0, 2, "shapes"), item(1, 2, "shapes"), item(2, 0), item(3), item(4, -1, "new")]
    rows = swap_matrix(llama, items, pad=0).by_domain
    assert [(row.source, row.n) for row in rows] == [("0", 1), ("new", 1), ("shapes", 2)]
    scores = score(llama, items, modules=ROUTES)
    for row, chosen in zip(rows, ([2], [4], [0, 1]), strict=True):
        for j, module in enumerate(ROUTES):
            right = [scores.predictions(module)[i] == items[i].example.answer_index for i in chosen]
            assert row.accuracy[j].correct == sum(right)


def test_a_module_that_no_example_is_sent_to_has_an_empty_row(make_iclm):
    matrix = swap_matrix(make_iclm(num_domains=2, router="fixed:1"), ITEMS, pad=0)
    assert [row.n for row in matrix.routed] == [0, len(ITEMS)]
    assert all(accuracy.value is None for accuracy in matrix.routed[0].accuracy)
    json.dumps(matrix.to_dict(), allow_nan=False)


def test_equal_modules_have_equal_columns(model, parameters_of):
    before = state_of(model)
    try:
        with torch.no_grad():
            for number in (2, 3):
                pairs = zip(parameters_of(model, number).values(), parameters_of(model, 1).values(), strict=True)
                for parameter, first in pairs:
                    parameter.copy_(first)
        matrix, scores = swap_matrix(model, ITEMS, pad=0), score(model, ITEMS, modules=ROUTES)
    finally:
        model.load_state_dict(before)
    for row in (*matrix.routed, *matrix.by_domain):
        assert row.accuracy == (row.mixture,) * 3
    for one, *others in zip(*(scores.choices[module] for module in ROUTES), strict=True):
        assert all(one.tolist() == pytest.approx(other.tolist(), abs=2e-5) for other in others)


@pytest.mark.parametrize("kind", ["off", "noise"])
def test_changing_a_module_moves_it_and_no_other_by_a_bit(model, kind):
    names = ("mixture", *SINGLE)
    before = score(model, ITEMS, modules=names)
    for number, module in enumerate(SINGLE):
        with perturbed(model, number, kind, scale=0.5):
            after = score(model, ITEMS, modules=names)
        assert after.routes.tolist() == before.routes.tolist()
        for name in names:
            same = [np.array_equal(a, b) for a, b in zip(after.choices[name], before.choices[name], strict=True)]
            if name == module:
                assert not any(same)
            elif name == "mixture" and number:  # where the router chose another module, nothing moves
                assert same == (before.routes != number - 1).tolist()
            elif name != "mixture":
                assert all(same), f"{name} moved when {module} was changed"


def test_effects_are_exactly_zero_off_the_diagonal(model):
    found = module_effects(model, ITEMS, pad=0)
    assert found.isolated and found.modules == SINGLE and len(found.effects) == 8
    for kind in ("off", "noise"):
        matrix = np.array(found.moved(kind))
        assert matrix.shape == (4, 4) and (np.diag(matrix) > 0).all()
        assert not (matrix - np.diag(np.diag(matrix))).any()
    assert [effect.routes_changed for effect in found.effects] == [0] * 8
    assert all(effect.moved["mixture"] > 0 for effect in found.effects)


def test_effects_are_those_of_scoring_by_hand(llama):
    names = ("mixture", *SINGLE)
    found, before = module_effects(llama, ITEMS, pad=0, kinds=("noise",), seed=3), score(llama, ITEMS, modules=names)
    with perturbed(llama, 2, "noise", seed=3):
        after = score(llama, ITEMS, modules=names)
    effect, everyone = found.effects[2], range(len(ITEMS))
    assert (effect.module, effect.kind) == ("domain_1", "noise")
    for name in names:
        moves = [
            abs(b - a)
            for x, y in zip(before.choices[name], after.choices[name], strict=True)
            for a, b in zip(x, y, strict=True)
        ]
        assert effect.moved[name] == pytest.approx(sum(moves) / len(moves))
        assert (effect.accuracy[name].correct, effect.accuracy[name].n) == correct(after, name, everyone)
        assert (found.before[name].correct, found.before[name].n) == correct(before, name, everyone)


@pytest.mark.parametrize("kind", ["off", "noise"])
def test_only_the_modules_own_weights_change_and_come_back_after_an_exception(model, parameters_of, kind):
    before, caught = state_of(model), RuntimeError("stop")
    for number in range(4):
        with pytest.raises(RuntimeError, match="stop"), perturbed(model, number, kind):
            assert changed(model, before) == own(parameters_of, model, number, kind)
            raise caught
        assert changed(model, before) == set()


def test_weights_come_back_when_the_change_itself_fails(llama, monkeypatch):
    before, normal = state_of(llama), torch.randn
    draws = iter(range(5))
    monkeypatch.setattr(torch, "randn", lambda *a, **k: normal(*a, **k) if next(draws) < 4 else 1 / 0)
    with pytest.raises(ZeroDivisionError), perturbed(llama, 1, "noise"):
        pytest.fail("the block was entered")
    assert changed(llama, before) == set()


def test_a_report_leaves_mode_and_weights_as_they_were(make_iclm):
    model = make_iclm(num_domains=2, router="random", lora_dropout=0.5)
    before, expected = state_of(model), interventions(model, ITEMS, pad=0).to_dict()
    model.train()
    assert interventions(model, ITEMS, pad=0).to_dict() == expected, "dropout must be off"
    assert model.training and changed(model, before) == set()


def test_a_module_switched_off_is_the_base_model(model, load_tiny_base, architecture):
    ids, base = torch.tensor([ITEMS[4].prompt]), load_tiny_base(architecture)
    with perturbed(model, 2, "off"), torch.no_grad():
        torch.testing.assert_close(model(ids, module="domain_1").logits, base(ids).logits, rtol=0, atol=2e-5)


def test_noise_is_a_function_of_the_seed_with_the_scale_asked_for(llama, parameters_of):
    parameters = parameters_of(llama, 1)
    before = {name: p.detach().clone() for name, p in parameters.items()}

    def noise(**options):
        with perturbed(llama, 1, "noise", **options):
            return {name: (p.detach() - before[name]) for name, p in parameters.items()}

    one, again, other, half = noise(seed=7), noise(seed=7), noise(seed=8), noise(seed=7, scale=0.5)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)
    for name, tensor in one.items():
        torch.testing.assert_close(half[name], tensor / 2, rtol=1e-4, atol=1e-5)
    ratio = torch.cat([(one[n] / before[n].std(correction=0)).flatten() for n in one])
    assert float(ratio.std()) == pytest.approx(1.0, abs=0.05) and abs(float(ratio.mean())) < 0.05


def test_noise_does_not_touch_the_global_generator(llama):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with perturbed(llama, 1, "noise", seed=9):
        assert torch.equal(torch.rand(3), expected)


def test_modules_that_share_weights_are_reported_as_not_isolated(make_iclm, parameters_of):
    """What the report is there to find: a change of one module that another one feels."""
    model = make_iclm(num_domains=2, router="random")
    pairs = zip(parameters_of(model, 2).values(), parameters_of(model, 1).values(), strict=True)
    for parameter, other in pairs:
        parameter.data = other.data
    before, report = state_of(model), interventions(model, ITEMS, pad=0, kinds=("noise",))
    assert not report.isolated and report.to_dict()["isolated"] is False
    matrix = report.effects.moved("noise")
    assert matrix[1][2] > 0 and matrix[2][1] > 0 and matrix[0][1] == matrix[0][2] == matrix[1][0] == 0
    assert changed(model, before) == set()


def test_the_report_holds_both_tables_and_is_json(llama):
    done = []
    report = interventions(llama, ITEMS, pad=0, scale=0.5, seed=4, progress=done.append)
    assert sum(done) == len(ITEMS) * (1 + 2 * 4)
    assert report.swap == swap_matrix(llama, ITEMS, pad=0)
    assert report.effects == module_effects(llama, ITEMS, pad=0, scale=0.5, seed=4)
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert values["isolated"] is True and values["effects"]["moved"]["off"] == report.effects.moved("off")
    assert values["swap"]["modules"] == ["domain_0", "domain_1", "domain_2"]
    assert [len(row["accuracy"]) for row in values["swap"]["routed"]] == [3, 3, 3]


@pytest.mark.parametrize(
    "settings",
    [
        {"active_domains": 2, "router": "vq", "aggregator": "concat"},
        {"router": "oracle", "split_layer": 0},
        {"router": "soft", "aggregator": "probas", "router_layer": -1},
        {"router": "vq", "router_level": "token"},
        {"ablation": "no_invariant", "router": "random"},
    ],
    ids=str,
)
def test_other_routers_and_aggregators_are_isolated_too(make_iclm, settings):
    model = make_iclm(num_domains=3, **settings)
    report = interventions(model, ITEMS, pad=0)
    assert report.isolated and sum(row.n for row in report.swap.routed) == len(ITEMS)
    assert not any(effect.routes_changed for effect in report.effects.effects)
    assert all((np.diag(report.effects.moved(kind)) > 0).all() for kind in ("off", "noise"))
    assert report.effects.modules == tuple(model.config.module_names[1:])


def test_a_model_without_domain_modules_is_refused(make_iclm):
    for settings in ({"method": "lora"}, {"ablation": "no_domain"}):
        model = make_iclm(**settings)
        for call in (swap_matrix, module_effects, interventions):
            with pytest.raises(ConfigurationError, match="interventions need domain modules"):
                call(model, ITEMS, pad=0)
        with pytest.raises(ConfigurationError, match="interventions need domain modules"), perturbed(model, 0, "off"):
            pass


@pytest.mark.parametrize(
    "number, kind, scale, message",
    [
        (4, "off", 1.0, "module number 4"),
        (-1, "off", 1.0, "module number -1"),
        (1, "swap", 1.0, "swap.*off or noise"),
        (1, "noise", -0.1, "-0.1"),
        (1, "noise", float("nan"), "nan"),
        (1, "noise", float("inf"), "inf"),
    ],
)
def test_bad_interventions_are_refused_and_change_nothing(llama, number, kind, scale, message):
    before = state_of(llama)
    with pytest.raises(ConfigurationError, match=message), perturbed(llama, number, kind, scale=scale):
        pass
    assert changed(llama, before) == set()


def test_bad_kinds_are_refused_before_anything_is_scored(llama, monkeypatch):
    monkeypatch.setattr(llama, "encode", lambda *a, **k: pytest.fail("scored"))
    for kinds, message in (((), "empty"), (("off", "on"), "'on'")):
        for call in (module_effects, interventions):
            with pytest.raises(ConfigurationError, match=message):
                call(llama, ITEMS, pad=0, kinds=kinds)


def test_examples_without_choices_and_no_examples_are_refused(llama):
    free = EncodedExample((5, 6), (), (7,), 0, Example((Message("user", "p"),), (), "x", source="file:4"))
    for call in (swap_matrix, module_effects, interventions):
        with pytest.raises(DataError, match="file:4"):
            call(llama, [free], pad=0)
        with pytest.raises(DataError, match="no examples"):
            call(llama, [], pad=0)


def test_noise_that_overflows_is_an_error_and_not_a_nan(llama):
    before = state_of(llama)
    with pytest.raises(ConfigurationError, match="not finite under noise of invariant"):
        module_effects(llama, ITEMS, pad=0, kinds=("noise",), scale=1e30)
    assert changed(llama, before) == set()
