"""The invariants for every kind of router, by input and by token, at the split and above it."""

import copy

import pytest
import torch

from iclm.data.collation import Branch, collate, make_pack
from iclm.model import ICLMForCausalLM, Route
from iclm.model.modules import AdaptedLayer, LoRABank

KINDS = ("vq", "kmeans", "bisecting_kmeans", "gumbel", "soft", "topk", "oracle", "random", "fixed:1")
CASES = [("llama", kind, level, None, 1) for kind in KINDS for level in ("input", "token")]
CASES += [("llama", kind, level, 2, 2) for kind in ("vq", "topk", "random") for level in ("input", "token")]
CASES += [
    ("llama", kind, level, layer, 1) for kind in ("vq", "soft") for level in ("input", "token") for layer in (3, -1)
]
CASES += [(a, kind, "token", -1, 1) for a in ("qwen2", "gpt_neox", "gemma3") for kind in ("vq", "gumbel")]


@pytest.fixture(scope="module")
def models():
    """ICLMs made already."""
    return {}


@pytest.fixture(params=CASES, ids=lambda c: "-".join(map(str, c)))
def model(request, make_iclm, models):
    """An ICLM in evaluation mode whose modules differ."""
    architecture, kind, level, layer, active = request.param
    if request.param not in models:
        models[request.param] = make_iclm(
            architecture,
            router=kind,
            router_level=level,
            router_layer=layer,
            num_domains=4,
            active_domains=active,
            codebook_decay=0.5,
            mi_queue=0,
        )
    return models[request.param].eval()


@pytest.fixture(autouse=True)
def keep(model):
    """What a training step moves is put back."""
    kept = copy.deepcopy(model.own_state_dict())
    yield
    model.eval().load_state_dict(kept, strict=False)


def told(model, examples):
    """The domains of the examples, where the router has to be told."""
    return {"domain_ids": torch.arange(examples) % 4} if model.config.router == "oracle" else {}


def run(model, batch, **extra):
    with torch.no_grad():
        return model(**batch, **told(model, len(batch["input_ids"])), **extra)


def active_of(model):
    return 4 if model.config.router == "soft" else model.config.active_domains


def test_weights_are_a_share_of_one_and_exactly_zero_for_idle_modules(model, random_prompts, padded):
    route = run(model, padded(random_prompts((5, 9, 3, 12, 7, 10)))).decision
    active = active_of(model)
    assert route.indices.shape == route.weights.shape == (6, active)
    assert route.indices.min() >= 0 and route.indices.max() < 4
    assert all(len(set(row)) == active for row in route.indices.tolist())
    dense = route.dense(4)
    torch.testing.assert_close(dense.sum(1), torch.ones(6))
    assert ((dense != 0).sum(1) <= active).all()


def test_only_the_rows_of_active_modules_run_above_the_split(model, random_prompts, padded):
    rows = []
    layers = [m for m in model.modules() if isinstance(m, AdaptedLayer) and m.adapted]
    handles = [m.layer.register_forward_pre_hook(lambda _, args: rows.append(len(args[0]))) for m in layers]
    try:
        run(model, padded(random_prompts((5, 9, 3))))
    finally:
        for handle in handles:
            handle.remove()
    extra = [3] * sum(m in layers for m in _frozen_pass(model))
    assert rows == extra + [3 * (1 + active_of(model))] * len(layers)


def _frozen_pass(model):
    """The adapted layers that the extra pass of a router above the split goes through."""
    config = model.config
    if config.feature_layer <= config.split_layer:
        return []
    layers = [m for m in model.modules() if isinstance(m, AdaptedLayer)]
    return layers[-(config.num_hidden_layers - config.split_layer) :][: config.feature_layer - config.split_layer]


def test_padding_and_neighbours_change_nothing(model, random_prompts, padded):
    prompts = random_prompts((5, 9, 3, 12, 7, 10), seed=4)
    extra = told(model, 6)
    with torch.no_grad():
        alone = [
            model(p[None], **{name: value[i : i + 1] for name, value in extra.items()}) for i, p in enumerate(prompts)
        ]
        for side, width in (("left", 0), ("right", 3), ("left", 40)):
            batch = padded(prompts, side, width)
            together = model(**batch, **extra)
            for row, own in enumerate(alone):
                real = batch["attention_mask"][row] == 1
                assert torch.equal(together.route[row], own.route[0])
                torch.testing.assert_close(together.logits[row][real], own.logits[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize("how", [{"do_sample": False}, {"do_sample": False, "num_beams": 2}], ids=["greedy", "beam"])
def test_cached_generation_equals_uncached(model, random_prompts, padded, how):
    batch = padded(random_prompts((5, 9, 3, 12), seed=6), "left", 1)
    settings = {**batch, **told(model, 4), **how, "max_new_tokens": 5, "min_new_tokens": 5, "pad_token_id": 0}
    with torch.no_grad():
        cached, uncached = (model.generate(**settings, use_cache=use) for use in (True, False))
    assert torch.equal(cached, uncached)


def test_the_answer_does_not_change_the_route(model, labelled):
    batch = labelled((6, 9, 4, 11), answer=3)
    answer = batch["labels"] != -100
    other = {**batch, "input_ids": torch.where(answer, batch["input_ids"] % 400 + 7, batch["input_ids"])}
    other["labels"] = torch.where(answer, other["input_ids"], -100)
    one, two = run(model, batch).decision, run(model, other).decision
    assert torch.equal(one.indices, two.indices)
    torch.testing.assert_close(one.weights, two.weights)
    if one.tokens is not None:
        prompt = batch["labels"] == -100
        assert torch.equal(one.tokens.indices[prompt], two.tokens.indices[prompt])
        for row, at in answer.nonzero().tolist():
            assert torch.equal(one.tokens.indices[row, at], one.indices[row]), "an answer follows its prompt"


def test_packed_examples_give_the_loss_and_gradients_of_examples_apart(model):
    source = torch.Generator().manual_seed(3)
    prefix = tuple(torch.randint(2, 500, (7,), generator=source).tolist())
    ends = [tuple(torch.randint(2, 500, (n,), generator=source).tolist()) for n in (5, 3, 6)]
    branches = [Branch(prefix + end, 2, 1) for end in ends]
    found = []
    for packs in ([make_pack(branches)], [make_pack([branch]) for branch in branches]):
        model.train()
        model.config.router_weight, model.config.mi_weight = 0.0, 0.3
        batch = collate(packs, 0)
        torch.manual_seed(0)
        kept = copy.deepcopy(model.router.state_dict())
        model.zero_grad()
        with pytest.MonkeyPatch.context() as patch:
            if model.config.router == "gumbel":  # one noise for all tokens, in whatever order they come
                patch.setattr(torch.Tensor, "exponential_", lambda self: self.fill_(1.0))
            output = model(**batch)
        output.loss.backward()
        model.router.load_state_dict(kept)
        found.append((output, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    (packed, one), (apart, two) = found
    torch.testing.assert_close(packed.loss, apart.loss, rtol=0, atol=1e-5)
    assert torch.equal(packed.route, apart.route)
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_a_row_for_every_module_holds_the_mixture_too(model, random_prompts, padded):
    batch = padded(random_prompts((5, 9, 3)))
    examples, positions = torch.arange(3), batch["attention_mask"].sum(1) - 1
    with torch.no_grad():
        expected = model(**batch, **told(model, 3)).logits[examples, positions]
        every = model.encode(**batch, **told(model, 3), every_module=True)
        found = model.logits(every, every.at(examples, positions), examples, positions)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
        for number, name in enumerate(model.config.module_names[1:]):
            alone = model(**batch, module=name).logits[examples, positions]
            torch.testing.assert_close(model.head(every.at(examples, positions)[:, number]), alone, rtol=0, atol=2e-5)


def test_a_training_step_moves_what_is_in_use_and_nothing_else(model, labelled):
    batch = labelled((6, 9, 4, 11))
    model.zero_grad()
    output = model.train()(**batch, **told(model, 4))
    output.loss.backward()
    assert torch.isfinite(output.loss)
    used = output.decision.indices if output.decision.tokens is None else output.decision.tokens.indices
    expected = {0, *(1 + used.unique()).tolist()}
    for bank in (m for m in model.modules() if isinstance(m, LoRABank)):
        assert {int(name) for name, p in bank.lora_B.items() if p.grad is not None} == expected
    gates = [p for name, p in model.named_parameters() if name.startswith("router.")]
    assert len(gates) == (2 if model.config.router in ("gumbel", "soft", "topk") else 0)
    for parameter in gates:
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all() and parameter.grad.abs().sum() > 0


def test_saved_and_loaded_it_routes_and_answers_bitwise_the_same(model, base_folders, random_prompts, padded, tmp_path):
    model.save_pretrained(tmp_path)
    architecture = "gemma3" if model.base.config.model_type.startswith("gemma3") else model.base.config.model_type
    loaded = ICLMForCausalLM.from_pretrained(tmp_path, base=base_folders[architecture])
    batch = padded(random_prompts((5, 9, 3)))
    one, two = run(model, batch), run(loaded, batch)
    assert torch.equal(one.logits, two.logits)
    assert torch.equal(one.route, two.route) and torch.equal(one.decision.weights, two.decision.weights)
    assert not list(tmp_path.glob("*.pkl")) and not list(tmp_path.glob("*.joblib"))


def test_a_given_route_goes_before_the_routers(model, random_prompts, padded):
    batch, route = padded(random_prompts((5, 9, 3))), torch.tensor([3, 0, 2])
    with torch.no_grad():
        assert torch.equal(model(**batch, route=route).route[:, 0], route)
        given = Route.to(route)
        torch.testing.assert_close(model(**batch, route=given).logits, model(**batch, route=route).logits)
