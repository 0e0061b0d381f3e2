"""Scoring: whatever is shared or packed, a score is that of its (prompt, choice) pair run on its own."""

from dataclasses import replace

import pytest
import torch

from iclm.data.acre import examples as acre_examples
from iclm.data.acre import generate
from iclm.data.collation import EncodedExample, encode
from iclm.data.example import Example, Message
from iclm.errors import ConfigurationError, DataError
from iclm.evaluation.scoring import Scores, chains, rescored, score, score_plain, shared_start
from iclm.model.modules import LoRABank

ROUTES = ("route_0", "route_1", "route_2")
ALL = ("mixture", "oracle", "invariant", "domain_0", "domain_1", "domain_2", *ROUTES)


def item(prompt, choices, group=None, domain=0):
    names = tuple(f"choice {number}" for number in range(len(choices)))
    example = Example((Message("user", "prompt"),), names, names[0], source=f"item in {group}", group=group)
    return EncodedExample(tuple(prompt), tuple(map(tuple, choices)), tuple(choices[0]), domain, example)


def random_tokens(n, seed):
    return torch.randint(10, 500, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


P = [random_tokens(n, seed) for n, seed in ((9, 1), (4, 2), (7, 3), (3, 4))]
CASES = {
    "one-token": [item(P[0] + [20], [[5], [6], [7]], "a", 0), item(P[0] + [21, 22], [[5], [6], [7]], "a", 0)],
    "same-start": [item(P[1], [[5, 6], [5, 7], [5, 8]]), item(P[2], [[5, 6, 7], [5, 6, 8], [5, 9], [5]], None, 2)],
    "several-chains": [item(P[1], [[5], [6, 7], [8, 9, 3]], None, 1), item(P[3], [[5, 6], [7, 8]], None, 2)],
    "chains-that-share-a-start": [item(P[2], [[5, 6, 7], [5, 8, 9]], None, 1)],
    "long-chains-that-share-a-start": [item(P[2], [[5, 6, 7, 8, 9], [5, 6, 3, 4, 5], [5, 4], [2]], None, 1)],
    "group-of-several-chains": [
        item(P[0] + [20], [[5, 6], [7, 8, 4], [9]], "g", 1),
        item(P[0] + [21, 22, 23], [[5, 6], [7, 8, 4], [9]], "g", 1),
        item(P[0], [[5, 6], [7, 8, 4], [9]], "g", 1),
    ],
    "same-prompt-twice": [item(P[1], [[5, 6], [5, 7]], "t", 0), item(P[1], [[5, 6], [5, 7]], "t", 0)],
    "prompt-that-begins-another": [
        item([*P[1], 5, 6, 20], [[5, 6, 7], [5, 3]], "n", 2),
        item(P[1], [[5, 6, 7], [5, 3]], "n", 2),
    ],
    "prompt-of-one-token": [item([20], [[5], [6, 7]], None, 0), item([20], [[5], [6]], None, 0)],
}


def brute_force(model, item, module):
    """Log-likelihood of each choice, one forward pass a pair, and the route."""
    found, route = [], None
    for choice in item.choices:
        ids = torch.tensor([[*item.prompt, *choice]])
        prompt_mask = torch.zeros_like(ids)
        prompt_mask[0, : len(item.prompt)] = 1
        extra = {"module": module, "prompt_mask": prompt_mask}
        if module == "oracle":
            extra = {"route": torch.tensor([item.domain])}
        elif module in ROUTES:
            extra = {"route": torch.tensor([ROUTES.index(module)])}
        with torch.no_grad():
            output = model(ids, **extra)
        table = torch.log_softmax(output.logits[0].float(), -1)
        at = range(len(item.prompt) - 1, ids.shape[1] - 1)
        found.append(sum(float(table[position, token]) for position, token in zip(at, choice, strict=True)))
        route = int(output.route[0, 0]) if module == "mixture" and output.route is not None else route
    return found, route


def assert_scores(scores, model, items, modules):
    for module in modules:
        for number, one in enumerate(items):
            expected, route = brute_force(model, one, module)
            assert scores.choices[module][number].tolist() == pytest.approx(expected, abs=2e-4), f"{module} {number}"
            if module == "mixture" and route is not None:
                assert scores.routes[number] == route


@pytest.fixture(scope="module")
def models():
    """ICLMs made already."""
    return {}


@pytest.fixture
def model(make_iclm, architecture, models):
    """An ICLM with three domains whose modules differ."""
    if architecture not in models:
        models[architecture] = make_iclm(architecture, num_domains=3, router="vq", mix="gate")
    return models[architecture]


@pytest.mark.parametrize("case", CASES)
def test_scores_of_all_modules_are_those_of_each_pair_alone(model, case):
    scores = score(model, CASES[case], modules=ALL)
    assert_scores(scores, model, CASES[case], ALL)


@pytest.fixture
def llama(make_iclm, models):
    """The Llama among them, for what does not depend on the architecture."""
    if "llama" not in models:
        models["llama"] = make_iclm("llama", num_domains=3, router="vq", mix="gate")
    return models["llama"]


@pytest.mark.parametrize("case", CASES)
def test_scores_without_packs_are_the_same(llama, case):
    packed, apart = (score(llama, CASES[case], modules=ALL, pack=pack) for pack in (True, False))
    for module in ALL:
        for one, other in zip(packed.choices[module], apart.choices[module], strict=True):
            assert one.tolist() == pytest.approx(other.tolist(), abs=2e-5)
    assert_scores(apart, llama, CASES[case], ("mixture", "domain_1"))


@pytest.mark.parametrize("limit", [1, 60, 4096])
def test_a_plain_model_scores_as_the_fresh_plain_lora_made_from_it(load_tiny_base, make_iclm, architecture, limit):
    items = [one for case in CASES.values() for one in case]
    plain = score_plain(load_tiny_base(architecture), items, tokens_per_batch=limit)
    ours = score(make_iclm(architecture, method="lora", fresh=True), items)
    assert list(plain.choices) == ["mixture"] and not len(plain.routes) and not plain.states
    for one, other in zip(plain.choices["mixture"], ours.choices["mixture"], strict=True):
        assert one.tolist() == pytest.approx(other.tolist(), abs=1e-4)


MANY = [item(P[0], [[token] for token in range(10, 210)], None, 1)]  # in bfloat16 some of so many logits would be equal


@pytest.mark.parametrize("aggregator", ["mix", "concat", "logits", "probas"])
def test_choices_do_not_tie_because_the_base_is_in_bfloat16(make_iclm, aggregator):
    modules = ("mixture", "invariant", "domain_1")
    model = make_iclm(dtype="bfloat16", num_domains=3, router="vq", aggregator=aggregator)
    found = score(model, MANY, modules=modules)
    for module in modules:
        assert len(set(found.choices[module][0].tolist())) == 200, module
        rounded = brute_force(model, MANY[0], module)[0]
        assert found.choices[module][0].tolist() == pytest.approx(rounded, abs=0.05)
        # `probas` mixes in float32, but what it mixes was rounded
        assert len(set(rounded)) < 200 or (aggregator, module) == ("probas", "mixture")


def test_a_plain_model_in_bfloat16_is_scored_in_float32_too_and_stays_as_it_was(load_tiny_base, architecture):
    model = load_tiny_base(architecture, "bfloat16")
    found = score_plain(model, MANY).choices["mixture"][0]
    assert len(set(found.tolist())) == 200
    kept, head = found.tolist(), model.get_output_embeddings()
    with pytest.raises(IndexError):
        score_plain(model, [item([10**6], [[5]])])
    assert not head._forward_hooks and model(torch.tensor([[5, 6]])).logits.dtype == torch.bfloat16
    assert score_plain(model, MANY).choices["mixture"][0].tolist() == kept


def test_a_plain_model_scores_nothing_without_choices(load_tiny_base):
    with pytest.raises(DataError, match="no choices"):
        score_plain(load_tiny_base(), [replace(item(P[0], [[5]]), choices=())])


@pytest.mark.parametrize("module", ["mixture", "oracle", "invariant", "domain_2", "route_1"])
def test_one_module_scores_as_it_does_among_all(llama, module):
    items = [one for case in ("one-token", "several-chains", "group-of-several-chains") for one in CASES[case]]
    alone, among = score(llama, items, modules=[module]), score(llama, items, modules=ALL)
    for one, other in zip(alone.choices[module], among.choices[module], strict=True):
        assert one.tolist() == pytest.approx(other.tolist(), abs=2e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"active_domains": 2, "aggregator": "concat"},
        {"router": "random", "split_layer": 0},
        {"router": "soft", "aggregator": "logits"},
        {"router_level": "token", "router": "vq"},
        {"router_level": "token", "router": "topk", "active_domains": 2},
        {"ablation": "no_invariant", "router": "random"},
        {"ablation": "no_invariant", "router": "random", "active_domains": 2},
    ],
    ids=str,
)
def test_scores_hold_for_other_models_too(make_iclm, settings):
    model = make_iclm(**{"num_domains": 3, **settings})
    items = [*CASES["several-chains"], *CASES["group-of-several-chains"]]
    modules = [*model.config.module_names, *ROUTES]
    assert_scores(score(model, items, modules=modules), model, items, modules)
    for alone in ("mixture", "route_1"):
        assert_scores(score(model, items, modules=[alone]), model, items, [alone])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mixture", ["mixture", "oracle", "route_2"])
def test_a_mixture_with_the_invariant_module_scores_as_among_all(llama, case, mixture):
    few, among = score(llama, CASES[case], modules=(mixture, "invariant")), score(llama, CASES[case], modules=ALL)
    for module in (mixture, "invariant"):
        for one, other in zip(few.choices[module], among.choices[module], strict=True):
            assert one.tolist() == pytest.approx(other.tolist(), abs=2e-5)
    if mixture == "mixture":
        assert few.routes.tolist() == among.routes.tolist()


@pytest.fixture
def rows_seen(monkeypatch):
    """`rows_seen(model, ...)` scores and gives the sequences of every batch and the rows that its adapters saw."""

    def count(model, items, modules):
        found, bank, run = [], next(m for m in model.modules() if isinstance(m, LoRABank)), model.encode
        handle = bank.register_forward_pre_hook(lambda _, args: found[-1].append(args[0].shape[0]))
        monkeypatch.setattr(model, "encode", lambda ids, *a, **k: found.append([ids.shape[0]]) or run(ids, *a, **k))
        try:
            score(model, items, modules=modules, pack=False, tokens_per_batch=40)
        finally:
            handle.remove()
            monkeypatch.undo()
        return found

    return count


@pytest.mark.parametrize("domains, active", [(5, 1), (5, 2), (1, 1)])
def test_a_mixture_with_the_invariant_module_needs_no_row_of_an_idle_module(
    make_iclm, rows_seen, architecture, domains, active
):
    model = make_iclm(architecture, num_domains=domains, active_domains=active, router="random")
    items = [item(random_tokens(n, n), [[5], [6, 7]]) for n in (2, 3, 9, 12, 20)]
    for modules in (["mixture"], ["mixture", "invariant"], ["invariant", "mixture"]):
        found = rows_seen(model, items, modules)
        assert len(found) > 1 and all(rows == batch * (1 + active) for batch, rows in found)
    for modules in (["route_0"], ["invariant", "route_0"]):
        assert all(rows == batch * 2 for batch, rows in rows_seen(model, items, modules))
    assert all(rows == batch for batch, rows in rows_seen(model, items, ["invariant"]))
    everything = (*model.config.module_names, "route_0")
    assert all(rows == batch * (1 + domains) for batch, rows in rows_seen(model, items, everything))


def test_a_forced_route_weighs_its_module_alone_where_the_router_mixes_several(make_iclm):
    model, items = make_iclm(num_domains=3, active_domains=2), CASES["several-chains"]
    modules = ("mixture", "invariant", *ROUTES)
    assert_scores(score(model, items, modules=modules), model, items, modules)


def test_a_forced_route_needs_no_router(make_iclm):
    model, items = make_iclm(num_domains=3, fit=False), CASES["several-chains"]
    for modules in (["route_1"], ["route_1", "invariant"], ["route_1", "route_0"]):
        scores = score(model, items, modules=modules)
        assert_scores(scores, model, items, modules)
        assert scores.routes.tolist() == [-1] * len(items)


def test_a_route_to_a_module_that_is_not_there_is_refused(llama, make_iclm):
    for module in ("route_3", "route_-1", "route_x", "route_"):
        for modules in ([module], ["mixture", module]):
            with pytest.raises(ConfigurationError, match=f"{module}.*route_0 to route_2"):
                score(llama, CASES["one-token"], modules=modules)
    with pytest.raises(ConfigurationError, match=r"route_0.*no domain modules"):
        score(make_iclm(method="lora"), CASES["one-token"], modules=["route_0"])


def test_plain_lora_is_scored_as_the_mixture(make_iclm):
    model = make_iclm(method="lora")
    items = CASES["group-of-several-chains"]
    scores = score(model, items)
    assert_scores(scores, model, items, ("mixture",))
    assert len(scores.routes) == 0


@pytest.mark.parametrize("limit", [1, 40, 100000])
def test_order_and_scores_do_not_depend_on_the_size_of_a_batch(llama, limit):
    items = [one for case in ("several-chains", "one-token", "group-of-several-chains") for one in CASES[case]]
    done = []
    scores = score(llama, items, modules=("mixture", "invariant"), tokens_per_batch=limit, progress=done.append)
    assert_scores(scores, llama, items, ("mixture", "invariant"))
    assert sum(done) == len(items)


@pytest.mark.parametrize("limit", [1, 10000])
def test_progress_counts_every_example_once_without_packs(llama, limit):
    items, done = CASES["several-chains"], []
    score(llama, items, pack=False, tokens_per_batch=limit, progress=done.append)
    assert sum(done) == len(items)


def test_no_batch_has_more_padded_tokens_than_asked_for(llama, monkeypatch):
    sizes, encode_batch = [], llama.encode
    monkeypatch.setattr(llama, "encode", lambda ids, *a, **k: sizes.append(ids.shape) or encode_batch(ids, *a, **k))
    items = [item(random_tokens(n, n), [[5], [6]]) for n in (2, 3, 2, 3, 2, 20, 2, 25)]
    score(llama, items, tokens_per_batch=40)
    assert sum(rows for rows, _ in sizes) == len(items)
    assert max(rows * tokens for rows, tokens in sizes) <= 40


def test_acre_problems_score_as_each_pair_alone(llama, tiny_tokenizer):
    problems = list(generate("IID", "train", 1, seed=5))
    items = encode([e for p in problems for e in acre_examples(p, "symbolic")], tiny_tokenizer)
    assert_scores(score(llama, items, modules=("mixture", "domain_1")), llama, items, ("mixture", "domain_1"))


def test_fewest_chains_score_all_choices():
    assert [c.tokens for c in chains([(1,), (2,), (3,)])] == [()]
    assert [c.tokens for c in chains([(1, 2), (1, 3)])] == [(1,)]
    found = chains([(1,), (2, 3), (2, 4, 5), (6, 7)])
    assert sorted(c.tokens for c in found) == [(2, 4), (6,)]
    scored = [(number, chain.tokens) for chain in found for number in chain.choices]
    assert sorted(number for number, _ in scored) == [0, 1, 2, 3]
    choices = [(1,), (2, 3), (2, 4, 5), (6, 7)]
    assert all(tokens[: len(choices[number]) - 1] == choices[number][:-1] for number, tokens in scored)


def test_queries_of_a_problem_are_run_as_one_sequence(llama, monkeypatch):
    shapes, encode_batch = [], llama.encode
    monkeypatch.setattr(llama, "encode", lambda ids, *a, **k: shapes.append(ids.shape[0]) or encode_batch(ids, *a, **k))
    score(llama, CASES["group-of-several-chains"])
    assert shapes == [1]


def test_routes_are_the_routers_and_not_the_true_domains(llama):
    items = [item(random_tokens(4 + n, 50 + n), [[5], [6]], None, n % 3) for n in range(9)]
    router = [brute_force(llama, one, "mixture")[1] for one in items]
    assert router != [one.domain for one in items], "the test needs a router that errs"
    assert score(llama, items, modules=ALL).routes.tolist() == router
    assert score(llama, items, modules=["mixture"]).routes.tolist() == router
    assert score(llama, items, modules=["oracle"]).routes.tolist() in ([-1] * 9, router)
    assert score(llama, items, modules=["invariant"]).routes.tolist() == [-1] * 9


@pytest.mark.parametrize("modules", [("mixture",), ("mixture", "invariant"), ("mixture", "domain_1"), ALL])
def test_states_are_those_of_both_sides_where_the_answer_is_predicted(llama, modules):
    # of choices that begin alike the token before they part, not the last of the prompt
    items = [*CASES["one-token"], *CASES["several-chains"], CASES["same-start"][0], *CASES["chains-that-share-a-start"]]
    starts = [[], [], [], [], [5], [5]]
    found = score(llama, items, modules=modules, states=True)
    for number, (one, start) in enumerate(zip(items, starts, strict=True)):
        ids, route = torch.tensor([[*one.prompt, *start]]), int(found.routes[number])
        with torch.no_grad():
            for side, module in (("invariant", "invariant"), ("domain", f"domain_{route}")):
                prompt_mask = torch.ones_like(ids)
                prompt_mask[0, len(one.prompt) :] = 0
                expected = llama.encode(ids, module=module, prompt_mask=prompt_mask).hidden[0, -1]
                torch.testing.assert_close(torch.from_numpy(found.states[side][number]), expected, rtol=0, atol=2e-5)


def test_there_are_no_invariant_states_without_the_invariant_module(make_iclm):
    model, items = make_iclm(num_domains=3, ablation="no_invariant"), CASES["one-token"]
    for modules in (["mixture"], ["mixture", "domain_1"]):
        assert set(score(model, items, modules=modules, states=True).states) == {"domain"}
    with pytest.raises(ConfigurationError, match="invariant"):
        score(model, items, modules=["mixture", "invariant"])


def test_states_without_the_router_are_those_of_the_forced_route_or_none(llama):
    items = CASES["one-token"]
    for modules in (["route_1"], ["route_1", "invariant"], ["route_1", "domain_0", "route_2"]):
        states = score(llama, items, modules=modules, states=True).states
        with torch.no_grad():
            expected = llama.encode(torch.tensor([items[0].prompt]), module="domain_1").hidden[0, -1]
        torch.testing.assert_close(torch.from_numpy(states["domain"][0]), expected, rtol=0, atol=2e-5)
    assert score(llama, items, modules=["invariant", "domain_1"], states=True).states == {}


def test_example_without_choices_names_its_source(llama):
    free = EncodedExample((5, 6), (), (7,), 0, Example((Message("user", "p"),), (), "x", source="file:4"))
    with pytest.raises(DataError, match="file:4"):
        score(llama, [free])


def test_unknown_module_and_unknown_domain_are_refused(llama):
    with pytest.raises(ConfigurationError, match="domain_7"):
        score(llama, CASES["one-token"], modules=["domain_7"])
    for domain in (-1, 3):
        with pytest.raises(ConfigurationError, match="oracle"):
            score(llama, [item(P[0], [[5], [6]], "x", domain)], modules=["oracle"])


def test_an_oracle_router_that_is_asked_names_the_example_of_unknown_domain(make_iclm):
    items = [item(P[0], [[5], [6]], "known", 1), item(P[1], [[5], [6]], "stray", -1)]
    for modules in (["mixture"], ["mixture", "domain_0"]):
        with pytest.raises(ConfigurationError, match=r"stray.*oracle"):
            score(make_iclm(num_domains=3, router="oracle"), items, modules=modules)


def test_modules_that_need_no_route_are_scored_without_one(make_iclm):
    """An unfitted router, or unknown domains under the oracle router, are no obstacle to single modules."""
    for settings in ({"router": "vq", "fit": False}, {"router": "oracle"}):
        model = make_iclm(num_domains=3, **settings)
        items = [item(P[1], [[5], [6]], None, -1)]
        for modules in (("invariant",), ("invariant", "domain_1")):
            assert_scores(score(model, items, modules=modules), model, items, modules)


def test_predictions_are_the_likeliest_choices(llama):
    items = CASES["several-chains"]
    scores = score(llama, items)
    expected = [int(torch.tensor(values).argmax()) for values in scores.choices["mixture"]]
    assert scores.predictions("mixture").tolist() == expected


def test_nothing_to_score_gives_nothing(llama):
    scores = score(llama, [], modules=("mixture",), states=True)
    assert scores.choices == {"mixture": []} and len(scores.routes) == 0 and scores.states == {}


@pytest.mark.parametrize(
    ("choices", "start"),
    [([[5], [6]], 0), ([[5, 6], [5, 7]], 1), ([[5, 6, 7], [5, 6, 8], [5, 9]], 1), ([[5, 6], [5]], 0), ([[5, 6, 7]], 2)],
)
def test_choices_part_where_their_tokens_first_differ(choices, start):
    assert shared_start([tuple(choice) for choice in choices]) == start


def test_a_score_that_is_no_number_answers_nothing():
    values = [torch.tensor(row).numpy() for row in ([0.0, 1.0], [float("nan")] * 2, [2.0, float("-inf")])]
    found = Scores({"mixture": values})
    assert found.predictions("mixture").tolist() == [1, -1, -1] and not found.finite
    assert Scores({"mixture": values[:1]}).finite


def test_a_mean_is_the_sum_over_the_number_of_tokens(llama):
    items = [*CASES["several-chains"], *CASES["group-of-several-chains"]]
    means = [replace(one, example=replace(one.example, per_token=True)) for one in items]
    for modules in (("mixture",), ALL):
        sums, found = (score(llama, given, modules=modules) for given in (items, means))
        for module in modules:
            for one, total, mean in zip(items, sums.choices[module], found.choices[module], strict=True):
                lengths = [len(choice) for choice in one.choices]
                assert mean.tolist() == pytest.approx(
                    [value / n for value, n in zip(total, lengths, strict=True)], abs=1e-5
                )


def test_the_same_questions_scored_in_another_way_are_not_asked_again(llama):
    items = [*CASES["several-chains"], *CASES["group-of-several-chains"]]
    means = [replace(one, example=replace(one.example, per_token=True)) for one in items]
    sums, found = (score(llama, given, modules=ALL) for given in (items, means))
    for first, asked, second, given in ((sums, items, found, means), (found, means, sums, items)):
        again = rescored(first, asked, given)
        assert again.routes.tolist() == second.routes.tolist() and again.finite
        for module in ALL:
            for one, other in zip(again.choices[module], second.choices[module], strict=True):
                assert one.tolist() == pytest.approx(other.tolist(), rel=1e-6)
