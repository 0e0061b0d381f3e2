"""The loss of answers: what the training counts, by module, with an interval over problems."""

import math

import numpy as np
import pytest
import torch

from iclm.data import Example, Message
from iclm.data.collation import collate, encode, training_packs
from iclm.evaluation.evaluate import prompt_routes
from iclm.evaluation.losses import answer_losses, loss_of


def free(prompt, answer, group=None):
    return Example((Message("user", prompt),), (), answer, domain="text", group=group)


@pytest.fixture
def asked(tiny_tokenizer):
    texts = [
        ("two and two make ", "four"),
        ("the light is ", "on"),
        ("say ", "a longer answer of some words"),
        ("1 ", "2"),
    ]
    return encode([free(*text) for text in texts], tiny_tokenizer, domains={"text": 0})


def test_the_loss_of_the_mixture_is_what_the_training_counts(make_iclm, tiny_tokenizer, asked):
    model, end = make_iclm(), tiny_tokenizer.eos_token_id
    (found,), routes = answer_losses(model, asked, ["mixture"], pad=0, end=end)
    batch = collate(training_packs(asked, end, pack=False), 0)
    with torch.no_grad():
        expected = model(**batch).terms["lm"].item()
    assert found.loss == pytest.approx(expected, rel=1e-4)
    assert (found.n, found.tokens) == (4, sum(len(item.answer) + 1 for item in asked))
    assert found.to_dict()["perplexity"] == pytest.approx(math.exp(expected), rel=1e-3)
    assert routes.tolist() == prompt_routes(model, tiny_tokenizer, asked, batch_size=3).tolist()


def test_each_module_alone_is_that_module(make_iclm, tiny_tokenizer, asked):
    """By hand, one answer after the other."""
    model, end = make_iclm(), tiny_tokenizer.eos_token_id
    names = list(model.config.module_names)
    found, _ = answer_losses(model, asked, names, pad=0, end=end)
    assert [one.module for one in found] == names
    for one in found[1:]:
        lost = 0.0
        for item in asked:
            answer = (*item.answer, end)
            ids = torch.tensor([[*item.prompt, *answer]])
            with torch.no_grad():
                logits = model(ids, attention_mask=torch.ones_like(ids), module=one.module).logits[0].float()
            table = torch.log_softmax(logits[len(item.prompt) - 1 : -1], dim=-1)
            lost -= table.gather(1, torch.tensor(answer)[:, None]).sum().item()
        assert one.loss == pytest.approx(lost / one.tokens, rel=1e-4)
    assert len({round(one.loss, 4) for one in found}) > 1


def test_the_interval_takes_problems_as_independent():
    """Two problems, each asked three times alike, know as much as two answers."""
    once = loss_of("mixture", [-2.0, -6.0], [2, 3], ["a", "b"])
    often = loss_of("mixture", [-2.0, -6.0] * 3, [2, 3] * 3, ["a", "b"] * 3)
    assert once.loss == often.loss == pytest.approx(8 / 5)
    assert (once.low, once.high) == pytest.approx((often.low, often.high)) and once.low >= 0
    assert loss_of("mixture", [-2.0], [2], ["a"]).high is None


def test_the_interval_holds_the_true_loss_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        tokens = rng.integers(1, 6, size=40)
        lost = np.array([rng.exponential(1.5, size=count).sum() for count in tokens])
        found = loss_of("mixture", -lost, tokens, range(40))
        held += found.low <= 1.5 <= found.high
    assert 0.91 <= held / 400 <= 0.98
