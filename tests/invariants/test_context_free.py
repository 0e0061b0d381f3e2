"""Invariant 3: routes and logits of an example do not depend on padding, batch or mode."""

import copy

import pytest
import torch

ROUTERS = [("vq", 2, 1), ("vq", 5, 2), ("random", 5, 1)]


@pytest.fixture(scope="module")
def models():
    """ICLMs made already."""
    return {}


@pytest.fixture(params=ROUTERS, ids=lambda r: f"{r[0]}-{r[1]}-{r[2]}")
def model(request, make_iclm, architecture, models):
    """An ICLM in evaluation mode whose modules differ, for each router that reads the prompt."""
    key = (architecture, *request.param)
    if key not in models:
        models[key] = make_model(make_iclm, *key)
    return models[key].eval()


def make_model(make_iclm, architecture, router, domains, active):
    return make_iclm(
        architecture,
        router=router,
        num_domains=domains,
        active_domains=active,
        codebook_decay=0.5,
        aggregator="concat",
        split_layer=2,
    )


@pytest.fixture
def alone(model, random_prompts):
    """Prompts, and logits and route of each on its own."""
    prompts = random_prompts((5, 9, 3, 12, 7, 7, 4, 10), seed=4)
    with torch.no_grad():
        outputs = [model(prompt[None]) for prompt in prompts]
    return prompts, [o.logits[0] for o in outputs], torch.cat([o.route for o in outputs])


def assert_same(batch, output, logits, routes):
    assert torch.equal(output.route, routes)
    for row, own in enumerate(logits):
        real = batch["attention_mask"][row] == 1
        torch.testing.assert_close(output.logits[row][real], own, rtol=0, atol=1e-5)


def test_the_prompts_of_these_tests_take_different_routes(alone):
    assert len(alone[2].unique(dim=0)) > 1


@pytest.mark.parametrize("extra", [0, 1, 200])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_neither_route_nor_logits(model, alone, padded, side, extra):
    prompts, logits, routes = alone
    batch = padded(prompts, side, extra)
    with torch.no_grad():
        assert_same(batch, model(**batch), logits, routes)


def test_what_stands_in_the_padding_changes_nothing(model, alone, padded):
    prompts, logits, routes = alone
    batch = padded(prompts, "left", 6)
    batch["input_ids"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 77)
    with torch.no_grad():
        assert_same(batch, model(**batch), logits, routes)


def test_neighbours_and_batch_size_change_neither_route_nor_logits(model, alone, padded):
    prompts, logits, routes = alone
    with torch.no_grad():
        for members in ([0, 1], [1, 0, 3], [7, 5, 3, 1, 3, 3]):
            batch = padded([prompts[i] for i in members])
            assert_same(batch, model(**batch), [logits[i] for i in members], routes[members])


def test_training_mode_changes_neither_route_nor_logits(model, alone, padded):
    prompts, logits, routes = alone
    kept = copy.deepcopy(model.router.state_dict())
    batch = padded(prompts, "left", 2)
    try:
        output = model.train()(**batch)  # with gradients: the codebook is learning
    finally:
        model.eval().router.load_state_dict(kept)
    assert_same(batch, output, logits, routes)


def test_one_position_alone_works_in_training_mode(model, alone):
    prompts, _, _ = alone
    assert torch.isfinite(model.train()(prompts[0][None, :1]).logits).all()


def test_no_attention_mask_means_no_padding(model, alone):
    prompts, logits, routes = alone
    output = model(prompts[1][None], attention_mask=torch.ones(1, 9, dtype=torch.long))
    assert torch.equal(output.route[0], routes[1])
    torch.testing.assert_close(output.logits[0], logits[1], rtol=0, atol=1e-5)


def test_labels_do_not_change_the_route(model, labelled, random_prompts):
    batch = labelled((6, 9, 4, 11), answer=3)
    other = {**batch, "labels": batch["labels"].clone()}
    other["input_ids"] = torch.where(batch["labels"] != -100, batch["input_ids"] % 400 + 7, batch["input_ids"])
    other["labels"] = torch.where(batch["labels"] != -100, other["input_ids"], -100)
    with torch.no_grad():
        prompts = [p[: length - 3] for p, length in zip(random_prompts((6, 9, 4, 11)), (6, 9, 4, 11), strict=True)]
        expected = torch.cat([model(prompt[None]).route for prompt in prompts])
        assert torch.equal(model(**batch).route, expected)
        assert torch.equal(model(**other).route, expected)
