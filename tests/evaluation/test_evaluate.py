"""Evaluation: what is counted, and that it leaves the model as it was."""

import json

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from iclm.data.acre import examples as acre_examples
from iclm.data.acre import generate
from iclm.data.collation import EncodedExample, encode
from iclm.data.example import Example, Message
from iclm.errors import ConfigurationError
from iclm.evaluation.evaluate import evaluate, evaluate_choices, evaluate_generation, greedy, module_names, routing_of
from iclm.evaluation.scoring import Scores, score


@pytest.fixture(scope="module")
def items(tiny_tokenizer):
    """24 examples of two domains."""
    return encoded(tiny_tokenizer, 3)


def encoded(tokenizer, problems):
    """Four questions of each of so many problems in each of two domains."""
    domains = {"symbolic": 0, "text": 1}
    examples = []
    for form in domains:
        for problem in generate("IID", "train", problems, seed=4):
            for example in acre_examples(problem, form):
                examples.append(type(example)(**{**fields_of(example), "domain": form}))
    return encode(examples, tokenizer, domains=domains)


def fields_of(example):
    return {name: getattr(example, name) for name in type(example).__slots__}


@pytest.fixture(scope="module")
def model(make_iclm):
    """An ICLM whose modules differ and whose router errs now and then."""
    return make_iclm("llama", num_domains=2, router="random", mix="gate")


ALL = ("mixture", "invariant", "domain_0", "domain_1")


def test_names_of_all_modules_or_one(model, make_iclm):
    assert module_names(model, "all") == ALL
    assert module_names(model, "domain_1") == ("domain_1",)
    assert module_names(model, "all", oracle=True) == ("oracle", *ALL[1:])
    assert module_names(model, "mixture", oracle=True) == ("oracle",)
    with pytest.raises(ConfigurationError, match="domain_2"):
        module_names(model, "domain_2")
    lora = make_iclm(method="lora")
    assert module_names(lora, "all") == ("mixture",)
    with pytest.raises(ConfigurationError, match="plain LoRA"):
        module_names(lora, "all", oracle=True)


def test_accuracy_counts_the_examples_whose_likeliest_choice_is_the_answer(model, items):
    results, figures = evaluate(model, items, ALL, pad=0)
    scores = score(model, items, modules=ALL)
    assert [r.module for r in results] == list(ALL)
    for result in results:
        right = [
            item.example.choices[int(np.argmax(values))] == item.example.answer
            for item, values in zip(items, scores.choices[result.module], strict=True)
        ]
        assert result.correct == tuple(right) and result.overall.correct == sum(right) and result.overall.n == 24
        kinds = {item.example.kind for item in items}
        assert set(result.by_kind) == kinds
        assert sum(a.n for a in result.by_kind.values()) == 24
        for kind, accuracy in result.by_kind.items():
            assert accuracy.correct == sum(r for r, i in zip(right, items, strict=True) if i.example.kind == kind)
    assert figures["n"] == 24
    json.dumps([r.to_dict() for r in results])


def test_the_first_of_equally_likely_choices_is_the_answer_given(items):
    scores = Scores({"mixture": [np.zeros(len(item.choices)) for item in items]})
    (result,) = evaluate_choices(scores, items)
    assert result.correct == tuple(item.example.answer_index == 0 for item in items)


def test_routes_are_the_routers_and_absent_where_it_was_not_asked(model, items):
    _, figures = evaluate(model, items, ("mixture",), pad=0)
    assert figures["routes"].tolist() == score(model, items).routes.tolist()
    assert len(set(figures["routes"].tolist())) == 2
    json.dumps(routing_of(figures["routes"], items, 2))
    _, single = evaluate(model, items, ("invariant",), pad=0)
    assert "routes" not in single


def test_true_domains_are_not_reported_as_the_routers_choice(model, items):
    """With --module mixture --routing oracle the router is not asked, and so has no figures."""
    _, told = evaluate(model, items, ("oracle",), pad=0)
    assert "routes" not in told


def test_dependence_is_measured_within_each_domain_that_has_problems_enough(model, items, tiny_tokenizer):
    _, figures = evaluate(model, encoded(tiny_tokenizer, 5), ALL, pad=0, dependence=True)
    assert set(figures["dependence"]) == {"0", "1"}
    json.dumps(figures["dependence"])
    few = evaluate(model, items, ALL, pad=0, dependence=True)[1]["dependence"]
    assert all(found["n"] == 12 and "12 examples of 3 problem(s)" in found["skipped"] for found in few.values())
    _, single = evaluate(model, items, ("invariant",), pad=0, dependence=True)
    assert "dependence" not in single


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_leaves_mode_and_state_as_they_were(make_iclm, items, training):
    model = make_iclm(num_domains=2, lora_dropout=0.5).train(training)
    before = {name: tensor.clone() for name, tensor in model.own_state_dict().items()}
    first = score(model.eval(), items[:8]).choices["mixture"]
    model.train(training)
    evaluate(model, items[:8], ("mixture",), pad=0)
    assert model.training == training
    second = score(model.eval(), items[:8]).choices["mixture"]
    assert all(np.array_equal(one, two) for one, two in zip(first, second, strict=True))
    after = model.own_state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in model.parameters())


def test_mode_is_put_back_after_an_error(model, items):
    model.train()
    try:
        with pytest.raises(ConfigurationError):
            evaluate(model, items, ("domain_9",), pad=0)
        assert model.training
    finally:
        model.eval()


def test_no_examples_give_empty_results(model):
    (result,), figures = evaluate(model, [], ("mixture",), pad=0)
    assert result.overall.n == 0 and result.overall.value is None and figures["n"] == 0


@pytest.fixture(scope="module")
def memoriser(make_iclm, items):
    """An ICLM trained until it answers the symbolic examples by heart."""
    from iclm.data.collation import collate, training_packs

    torch.manual_seed(0)
    model = make_iclm("llama", fresh=True, num_domains=2, router="oracle", lora_rank=16, target_modules="all-linear")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    batch = collate(training_packs(items[:12], 1), 0)
    model.train()
    for _ in range(120):
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def test_training_makes_answers_right_by_choice_and_by_generation(memoriser, items, tiny_tokenizer):
    """Labels, scoring, decoding and matching speak of the same answer."""
    known = items[:12]
    results, _ = evaluate(memoriser, known, ("oracle",), pad=0)
    assert results[0].overall.correct >= 11
    done = []
    result, responses = evaluate_generation(memoriser, tiny_tokenizer, known, "oracle", progress=done.append)
    assert sum(done) == 12
    assert result.overall.correct >= 11
    right = [text == item.example.answer for text, item in zip(responses, known, strict=True)]
    assert result.correct == tuple(right)
    assert result.partial is not None and result.partial.correct >= result.overall.correct


@pytest.mark.parametrize("module", ["mixture", "oracle", "invariant", "domain_1"])
def test_responses_do_not_depend_on_the_batch(model, items, tiny_tokenizer, module):
    some = [items[i] for i in (0, 13, 1, 14, 5, 22)]
    _, together = evaluate_generation(model, tiny_tokenizer, some, module, max_new_tokens=5)
    _, alone = evaluate_generation(model, tiny_tokenizer, some, module, batch_size=1, max_new_tokens=5)
    assert together == alone


def test_responses_are_greedy_continuations_of_the_prompt(model, items, tiny_tokenizer):
    some = items[:3]
    _, responses = evaluate_generation(model, tiny_tokenizer, some, "domain_0", max_new_tokens=4)
    for item, response in zip(some, responses, strict=True):
        ids = torch.tensor([item.prompt])
        for _ in range(4):
            with torch.no_grad():
                following = model(ids, module="domain_0").logits[0, -1].argmax()
            if int(following) == tiny_tokenizer.eos_token_id:
                break
            ids = torch.cat([ids, following.view(1, 1)], 1)
        text = tiny_tokenizer.decode(ids[0, len(item.prompt) :], skip_special_tokens=True)
        assert response == text.removeprefix(" ")


def test_generation_is_evaluated_in_evaluation_mode(make_iclm, items, tiny_tokenizer):
    model = make_iclm(num_domains=2, lora_dropout=0.5)
    _, expected = evaluate_generation(model, tiny_tokenizer, items[:6], "mixture", max_new_tokens=6)
    model.train()
    _, found = evaluate_generation(model, tiny_tokenizer, items[:6], "mixture", max_new_tokens=6)
    assert found == expected and model.training


def test_generation_of_no_examples_gives_empty_results(model, tiny_tokenizer):
    result, responses = evaluate_generation(model, tiny_tokenizer, [], "mixture")
    assert responses == [] and result.overall.n == 0


@torch.no_grad()
def test_greedy_is_the_likeliest_token_each_time_whatever_the_base_says(
    make_iclm, tiny_tokenizer, random_prompts, padded
):
    model = make_iclm(num_domains=2, router="vq")
    batch = padded(random_prompts([7] * 12, seed=3), side="left")
    ids, route = batch["input_ids"], model.route(**batch)
    for _ in range(8):
        ids = torch.cat([ids, model(ids, route=route).logits[:, -1].argmax(-1, keepdim=True)], 1)
    ends = [(row == tiny_tokenizer.eos_token_id).nonzero()[:1, 0].tolist() for row in ids[:, 7:]]
    wanted = [row[: (end or [8])[0]].tolist() for row, end in zip(ids[:, 7:], ends, strict=True)]
    expected = tiny_tokenizer.batch_decode(wanted, skip_special_tokens=True)
    model.generation_config = GenerationConfig(
        repetition_penalty=1.8, no_repeat_ngram_size=1, num_beams=2, do_sample=True, min_new_tokens=8, eos_token_id=5
    )
    kept = model.generation_config
    assert greedy(model, tiny_tokenizer, ids[:, :7], batch["attention_mask"], 8) == expected
    assert model.generation_config is kept


@torch.no_grad()
def test_greedy_ends_where_answers_were_trained_to_end_and_where_the_base_does(make_iclm, tiny_tokenizer, monkeypatch):
    model = make_iclm(num_domains=2, router="vq")
    ids = torch.tensor([[7, 8, 9]])
    seen = []
    monkeypatch.setattr(model, "generate", lambda ids, **_: seen.append(model.generation_config.eos_token_id) or ids)
    for own in (None, 5, [5, 6], tiny_tokenizer.eos_token_id):
        model.generation_config = GenerationConfig(eos_token_id=own)
        greedy(model, tiny_tokenizer, ids, torch.ones_like(ids), 2)
    eos = tiny_tokenizer.eos_token_id
    assert seen == [[eos], sorted([eos, 5]), sorted([eos, 5, 6]), [eos]]


def item(number, group=None, domain="d", answer="a"):
    example = Example((Message("user", f"q {number}"),), ("a", "b"), answer, domain=domain, group=group)
    return EncodedExample((1, 2), ((5,), (6,)), (5,), 0, example)


def test_an_answer_has_room_to_end_or_go_on(make_iclm, tiny_tokenizer, monkeypatch):
    from iclm.evaluation.evaluate import evaluate_generation

    seen = []

    def greedy(model, tokenizer, ids, mask, limit, **extra):
        seen.append(limit)
        return [""] * len(ids)

    monkeypatch.setattr("iclm.evaluation.evaluate.greedy", greedy)
    evaluate_generation(make_iclm(num_domains=2, router="random"), tiny_tokenizer, [item(0)], "mixture")
    assert seen == [2], "one token and the end of text: else what goes on after the longest answer would pass for it"
