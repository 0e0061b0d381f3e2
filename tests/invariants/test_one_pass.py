"""Invariant 4: the row-expanded forward equals running each module on its own, gradients too."""

import copy

import pytest
import torch
import torch.nn.functional as F

from iclm.data.collation import Branch, collate, make_pack
from iclm.model import Route
from iclm.model.losses import before_labels
from iclm.model.packing import Packing

AGGREGATORS = [
    {"aggregator": "mix", "mix": "fixed"},
    {"aggregator": "mix", "mix": "gate"},
    {"aggregator": "mix", "mix": "low_rank"},
    {"aggregator": "concat"},
    {"aggregator": "logits"},
    {"aggregator": "probas"},
]
CASES = [(2, 1, 0, AGGREGATORS[1]), (2, 1, 2, AGGREGATORS[3]), (5, 2, 2, AGGREGATORS[2]), (5, 1, 3, AGGREGATORS[0])]
CASES += [(5, 2, 1, AGGREGATORS[4]), (5, 2, 1, AGGREGATORS[5])]
BY_ARCHITECTURE = [("llama", *case) for case in CASES]
BY_ARCHITECTURE += [(a, *case) for a in ("qwen2", "gpt_neox", "gemma3") for case in (CASES[0], CASES[2], CASES[5])]
WEIGHTS = {"mi_weight": 0.3, "invariant_weight": 0.2, "domain_weight": 0.4, "router_weight": 0.0}


@pytest.fixture(
    params=BY_ARCHITECTURE, ids=lambda c: f"{c[0]}-K{c[1]}-active{c[2]}-split{c[3]}-{'-'.join(c[4].values())}"
)
def model(request, make_iclm):
    """An ICLM whose modules differ; routes are given."""
    architecture, domains, active, split, aggregator = request.param
    settings = {
        "num_domains": domains,
        "active_domains": active,
        "split_layer": split,
        "router": "oracle" if active == 1 else "random",
    }
    return make_iclm(architecture, **settings, **aggregator, **WEIGHTS)


def some_route(model, examples, seed=0):
    """A different set of active domains for each example, with unequal weights."""
    source = torch.Generator().manual_seed(seed)
    domains, active = model.config.num_domains, model.config.active_domains
    indices = torch.stack([torch.randperm(domains, generator=source)[:active] for _ in range(examples)])
    return Route(indices, torch.softmax(torch.rand(examples, active, generator=source) * 2, dim=1))


def states_one_by_one(model, batch, route):
    """Invariant states [batch, tokens, hidden] and active domain states [batch, tokens, active, hidden]."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    invariant = model.encode(ids, mask, module="invariant").hidden
    domain = torch.stack(
        [model.encode(ids, mask, module=f"domain_{i}").hidden for i in range(model.config.num_domains)]
    )
    examples = torch.arange(len(ids))[:, None]
    return invariant, domain[route.indices, examples].transpose(1, 2)


def mix_by_hand(model, invariant, domains, weights):
    """What the aggregator's documentation says, written out."""
    aggregator, head = model.aggregator, model.head
    domain = (domains * weights[..., None]).sum(-2)
    if model.config.aggregator in ("logits", "probas"):
        logits = head(torch.cat([invariant[..., None, :], domains], -2))
        shares = torch.cat([torch.full_like(weights[..., :1], 0.5), weights / 2], -1)[..., None]
        if model.config.aggregator == "logits":
            return (logits * shares).sum(-2)
        return (logits.softmax(-1) * shares).sum(-2).log() + (logits.logsumexp(-1, keepdim=True) * shares).sum(-2)
    if model.config.aggregator == "concat":
        return head.finish(torch.cat([invariant, domain], -1) @ aggregator.weight.T)
    if model.config.mix == "gate":
        weight = torch.sigmoid(aggregator.logit)
        return head(weight * invariant + (1 - weight) * domain)
    mixed = (invariant + domain) / 2
    if model.config.mix == "low_rank":
        mixed = mixed + torch.cat([invariant, domain], -1) @ aggregator.down.T @ aggregator.up.T
    return head(mixed)


def loss_by_hand(model, batch, route):
    """The documented loss from one forward pass a module."""
    invariant, domains = states_one_by_one(model, batch, route)
    weights = route.weights[:, None].expand(-1, domains.shape[1], -1)
    domain = (domains * weights[..., None]).sum(2)
    where = batch["labels"][:, 1:] != -100
    targets = batch["labels"][:, 1:][where]
    invariant, domain, domains, weights = (side[:, :-1][where] for side in (invariant, domain, domains, weights))
    config = model.config
    loss = F.cross_entropy(mix_by_hand(model, invariant, domains, weights), targets)
    loss = loss + config.invariant_weight * F.cross_entropy(model.head(invariant), targets)
    loss = loss + config.domain_weight * F.cross_entropy(model.head(domain), targets)
    return loss + config.mi_weight * model.independence(invariant, domain).value


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_mixture_is_the_aggregation_of_modules_run_one_by_one(model, random_prompts, padded):
    batch = padded(random_prompts(), "left", 2)
    route = some_route(model, 4)
    with torch.no_grad():
        invariant, domains = states_one_by_one(model, batch, route)
        expected = mix_by_hand(model, invariant, domains, route.weights[:, None].expand(-1, domains.shape[1], -1))
        assert (invariant - domains[:, :, 0]).abs().max() > 0.1, (
            "the modules must differ for this test to mean something"
        )
        logits = model(**batch, route=route).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5)


def test_a_row_for_every_module_gives_the_states_of_each_module_alone(model, random_prompts, padded):
    batch = padded(random_prompts(), "right", 2)
    with torch.no_grad():
        every = model.encode(**batch, every_module=True, route=some_route(model, 4))
        for number, name in enumerate(model.config.module_names[1:]):
            alone = model.encode(**batch, module=name).hidden
            torch.testing.assert_close(every.hidden[every.plan.slots[:, number]], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_modules_run_one_by_one(model, labelled, checkpointing):
    batch, route = labelled(), some_route(model, 4)
    model.train()
    expected_loss = loss_by_hand(model, batch, route)
    expected = gradients(model, expected_loss)
    model.independence.filled.fill_(0)
    if checkpointing:
        model.gradient_checkpointing_enable()
    loss = model(**batch, route=route).loss
    torch.testing.assert_close(loss, expected_loss, rtol=0, atol=1e-5)
    assert_same_gradients(gradients(model, loss), {n: g for n, g in expected.items() if used(n, route)})


def used(name, route):
    if "lora_" not in name:
        return True
    number = int(name.rpartition(".")[2])
    return number == 0 or number - 1 in route.indices


def test_checkpointed_layers_are_recomputed_with_their_own_plan(model, labelled):
    """Two forward passes with different routes before the backward pass of the first."""
    first, second = labelled(seed=1), labelled((8, 5, 6), seed=2)
    routes = some_route(model, 4, seed=1), some_route(model, 3, seed=2)
    model.train()
    found = {}
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        assert model.is_gradient_checkpointing == checkpointing
        model.independence.filled.fill_(0)
        loss = model(**first, route=routes[0]).loss
        later = model(**second, route=routes[1]).loss
        found[checkpointing] = gradients(model, loss), gradients(model, later)
    assert_same_gradients(found[True][0], found[False][0])
    assert_same_gradients(found[True][1], found[False][1])


def test_dropout_is_the_same_in_the_checkpointed_recomputation(make_iclm, labelled):
    model = make_iclm(lora_dropout=0.5, router="fixed:0", mi_weight=0.0).train()
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(0)
        found.append(gradients(model, model(**labelled()).loss))
    assert_same_gradients(found[1], found[0])


def packs_of(seed=0):
    """Three packs: four branches on a long prefix, a single example, two branches that share nothing."""
    source = torch.Generator().manual_seed(seed)

    def tokens(n):
        return tuple(torch.randint(2, 500, (n,), generator=source).tolist())

    prefix = tokens(9)
    first = [Branch(prefix + tokens(n), labels, d) for n, labels, d in ((5, 2, 0), (3, 1, 1), (6, 4, 0), (4, 4, 1))]
    return [first, [Branch(tokens(8), 3, 1)], [Branch((2, *tokens(6)), 2, 0), Branch((3, *tokens(5)), 2, 1)]]


@pytest.mark.parametrize("router, split, active", [("vq", 0, 1), ("vq", 2, 2), ("oracle", 2, 1)])
def test_packed_examples_train_as_they_would_apart(make_iclm, architecture, router, split, active):
    groups = packs_of()
    packed = collate([make_pack(group) for group in groups], 0)
    apart = collate([make_pack([branch]) for group in groups for branch in group], 0)
    assert "branch_ids" in packed and "branch_ids" not in apart
    assert packed["attention_mask"].sum() < apart["attention_mask"].sum()
    model = make_iclm(
        architecture, router=router, num_domains=3, split_layer=split, active_domains=active, aggregator="concat"
    )
    model.config.mi_weight = 0.3
    kept = copy.deepcopy(model.router.state_dict())
    found = []
    for batch in (apart, packed):
        model.router.load_state_dict(kept)
        model.independence.filled.fill_(0)
        model.train()
        output = model(**batch)
        found.append((output, gradients(model, output.loss)))
    (one, one_gradients), (two, two_gradients) = found
    assert torch.equal(one.route, two.route)
    assert one.terms.keys() == two.terms.keys() >= {"lm", "invariant", "domain", "mi"}
    for name in one.terms:
        torch.testing.assert_close(
            two.terms[name], one.terms[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert_same_gradients(two_gradients, one_gradients)


def test_packed_router_features_are_those_of_each_prompt_alone(make_iclm, architecture):
    groups = packs_of(3)
    packed = collate([make_pack(group) for group in groups], 0)
    model = make_iclm(architecture, num_domains=3)
    packing = Packing.of(packed["branch_ids"])
    prompt_mask = before_labels(packed["labels"], packed["branch_ids"])
    features = model.router_features(packed["input_ids"], packed["attention_mask"], prompt_mask, packing)
    for row, branch in enumerate(branch for group in groups for branch in group):
        prompt = torch.tensor(branch.tokens[: len(branch.tokens) - branch.labelled])[None]
        alone = model.router_features(prompt, torch.ones_like(prompt))
        torch.testing.assert_close(features[row], alone[0], rtol=0, atol=1e-5)
