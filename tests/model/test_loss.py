"""The five-term loss: weights as configured, labels only on answers, accumulation exact."""

import pytest
import torch
import torch.nn.functional as F

WEIGHTS = {
    "lm": None,
    "invariant": "invariant_weight",
    "domain": "domain_weight",
    "mi": "mi_weight",
    "router": "router_weight",
}


@pytest.fixture
def model(make_iclm):
    """An ICLM in training mode, weights all different, whose queue and codebook a test may change."""
    weights = {"invariant_weight": 0.2, "domain_weight": 0.3, "mi_weight": 0.5, "router_weight": 0.7}
    return make_iclm(num_domains=2, mi_queue=0, codebook_decay=0.999999, **weights).train()


def test_loss_is_the_weighted_sum_of_its_terms(model, labelled):
    output = model(**labelled())
    terms, config = output.terms, model.config
    assert set(terms) == set(WEIGHTS)
    expected = terms["lm"] + sum(getattr(config, w) * terms[name] for name, w in WEIGHTS.items() if w)
    torch.testing.assert_close(output.loss.detach(), expected)
    assert all(float(term) > 0 and not term.requires_grad for term in terms.values())


@pytest.mark.parametrize("name", [name for name in WEIGHTS if name != "lm"])
def test_each_weight_alone_changes_the_loss_by_its_term(make_iclm, labelled, name):
    """The paper's code kept 1.0 whatever was configured."""
    weights = {"invariant_weight": 0.2, "domain_weight": 0.3, "mi_weight": 0.5, "router_weight": 0.7}
    outputs = []
    for value in (0.25, 1.25, 0.0):
        model = make_iclm(num_domains=2, mi_queue=0, **{**weights, WEIGHTS[name]: value}).train()
        outputs.append(model(**labelled()))
    low, high, none = outputs
    torch.testing.assert_close(high.loss - low.loss, low.terms[name], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(low.loss - none.loss, 0.25 * low.terms[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name, idle, busy", [("invariant", 1, 0), ("domain", 0, 1)])
def test_each_modules_own_term_trains_that_module_alone(make_iclm, labelled, parameters_of, name, idle, busy):
    """Without aggregation of the two (its share of the loss removed), the term reaches one module only."""
    found = []
    for weight in (0.0, 1.0):
        settings = {"invariant_weight": 0.0, "domain_weight": 0.0, "mi_weight": 0.0, f"{name}_weight": weight}
        model = make_iclm(router="fixed:0", **settings).train()
        model(**labelled()).loss.backward()
        found.append({n: {k: p.grad for k, p in parameters_of(model, n).items()} for n in (idle, busy)})
    torch.testing.assert_close(found[0][idle], found[1][idle])
    assert any((found[0][busy][k] - found[1][busy][k]).abs().max() > 1e-4 for k in found[0][busy])


def test_terms_are_the_cross_entropies_of_mixture_and_modules(model, labelled):
    batch = labelled()
    model.eval()
    plain = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        output = model(**batch)
        logits = {
            "lm": model(**plain, route=output.route).logits,
            "invariant": model(**plain, module="invariant").logits,
        }
        domains = torch.stack([model(**plain, module=f"domain_{i}").logits for i in range(2)])
        logits["domain"] = domains[output.route[:, 0], torch.arange(4)]
    for name, values in logits.items():
        expected = F.cross_entropy(values[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100)
        torch.testing.assert_close(output.terms[name], expected, rtol=0, atol=1e-5)


def test_only_labelled_tokens_count(make_iclm, labelled):
    """Tokens after the label, which nothing may read, do not change the loss; neither does a longer padding."""
    model = make_iclm(router="fixed:0", mi_queue=0)
    batch = labelled((6, 9, 4, 11), answer=1)
    longer = {name: F.pad(values, (0, 7), value=-100 if name == "labels" else 0) for name, values in batch.items()}
    longer["input_ids"] = longer["input_ids"].masked_fill(longer["attention_mask"] == 0, 99)
    with torch.no_grad():
        torch.testing.assert_close(model(**longer).loss, model(**batch).loss, rtol=0, atol=1e-5)
        logits = model(batch["input_ids"], batch["attention_mask"]).logits
        rows, at = (batch["labels"][:, 1:] != -100).nonzero(as_tuple=True)
        assert at.tolist() == [4, 7, 2, 9]
        expected = F.cross_entropy(logits[rows, at], batch["input_ids"][rows, at + 1])
        torch.testing.assert_close(model(**batch).terms["lm"], expected, rtol=0, atol=1e-5)


def test_accumulated_microbatches_give_the_gradient_of_one_batch(make_iclm, labelled, trainable, architecture):
    settings = {"router": "vq", "mi_weight": 0.0, "domain_weight": 0.3, "router_weight": 0.4, "mix": "gate"}
    model = make_iclm(architecture, num_domains=2, **settings).train()
    whole = labelled((6, 9, 4, 11), answer=2)
    whole["labels"][1, :8] = -100  # the examples differ in their number of labels
    whole["labels"][3, 8] = whole["input_ids"][3, 8]
    items = int((whole["labels"] != -100).sum())
    with torch.no_grad():
        prompts = model(**whole).route
    found = []
    for parts in ([slice(0, 4)], [slice(0, 1), slice(1, 3), slice(3, 4)]):
        model.zero_grad()
        for part in parts:
            batch = {name: values[part] for name, values in whole.items()}
            model(**batch, route=prompts[part], num_items_in_batch=torch.tensor(items)).loss.backward()
        found.append({name: p.grad.clone() for name, p in trainable(model).items() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name in found[0]:
        torch.testing.assert_close(
            found[1][name], found[0][name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_items_of_one_batch_are_the_default(make_iclm, labelled):
    model, batch = make_iclm(num_domains=2), labelled()
    with torch.no_grad():
        torch.testing.assert_close(model(**batch, num_items_in_batch=8).loss, model(**batch).loss)


def test_a_batch_without_any_label_has_loss_zero_and_can_be_trained_on(make_iclm, labelled):
    batch = labelled()
    batch["labels"].fill_(-100)
    model = make_iclm(router="fixed:0").train()
    loss = model(**batch).loss
    loss.backward()
    assert float(loss) == 0.0
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_gradients_reach_adapters_and_aggregator_and_nothing_of_the_base(make_iclm, labelled, architecture, trainable):
    model = make_iclm(architecture, router="fixed:0", mix="low_rank").train()
    model(**labelled()).loss.backward()
    with_gradient = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    idle = {n for n in trainable(model) if n.endswith(("lora_A.2", "lora_B.2"))}
    assert with_gradient == trainable(model).keys() - idle


def test_mi_term_has_a_gradient_worth_the_name(make_iclm, labelled, trainable):
    """In the paper's code it contributed less than 0.003 of a loss of 15."""
    norms = {}
    for weight in (0.0, 1.0):
        model = make_iclm(
            router="fixed:0", mi_weight=weight, mi_queue=64, invariant_weight=0.0, domain_weight=0.0
        ).train()
        for seed in range(3):
            model.zero_grad()
            model(**labelled(seed=seed)).loss.backward()
        norms[weight] = torch.cat([p.grad.flatten() for p in trainable(model).values() if p.grad is not None])
    assert (norms[1.0] - norms[0.0]).norm() > 1e-3 * norms[0.0].norm()


def test_plain_lora_has_the_language_modelling_loss_only(make_iclm, labelled):
    output = make_iclm(method="lora")(**labelled())
    assert set(output.terms) == {"lm"} and output.route is None
    assert float(output.loss) == float(output.terms["lm"])


def test_loss_before_the_first_step_is_that_of_the_base(make_iclm, load_tiny_base, labelled, architecture):
    """A head started at random began at ln V and worse."""
    batch = labelled()
    for settings in ({"aggregator": "concat"}, {"mix": "low_rank"}):
        found = make_iclm(architecture, fresh=True, **settings)(**batch).terms["lm"]
        torch.testing.assert_close(found, load_tiny_base(architecture)(**batch).loss, rtol=0, atol=1e-5)


@torch.no_grad()
def test_every_term_is_a_share_of_the_accumulated_step(make_iclm, labelled):
    model = make_iclm(num_domains=2, mi_weight=0.5, mi_queue=0)
    whole, part = (model(**labelled(), num_items_in_batch=items).terms for items in (8, 16))
    assert {"lm", "mi", "router", "invariant", "domain"} >= set(whole) >= {"lm", "mi", "router"}
    for name, term in whole.items():
        torch.testing.assert_close(part[name], term / 2, msg=name)


@torch.no_grad()
def test_the_domain_side_is_the_weighted_mean_of_the_active_modules(make_iclm, labelled):
    model = make_iclm(num_domains=3, active_domains=2, router="topk", domain_weight=0.3, mi_queue=0)
    batch, seen = labelled(), []
    model.independence.register_forward_pre_hook(lambda _, states: seen.append(states[1]))
    output = model(**batch)
    rows, at = (batch["labels"][:, 1:] != -100).nonzero(as_tuple=True)
    plain = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    encoded = model.encode(**plain, route=output.decision)
    states = encoded.at(rows, at)[:, 1:]
    weights = output.decision.weights[rows]
    assert float(weights.min()) > 0.01, "the test needs two modules with a say"
    domain = (states * weights[..., None]).sum(1)
    expected = F.cross_entropy(model.head(domain), batch["labels"][rows, at + 1])
    torch.testing.assert_close(output.terms["domain"], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(seen[0], domain, rtol=0, atol=1e-5)


def test_a_critic_has_its_small_share_of_the_loss_in_training_only(make_iclm, labelled):
    model = make_iclm(num_domains=2, mi_loss="club", mi_weight=0.5, mi_queue=0).train()
    output, config = model(**labelled()), model.config
    weights = {
        "lm": 1.0,
        "critic": 0.01,
        **{n: getattr(config, f"{n}_weight") for n in ("invariant", "domain", "mi", "router")},
    }
    assert float(output.terms["critic"]) > 0.1
    expected = sum(weights[name] * term for name, term in output.terms.items())
    torch.testing.assert_close(output.loss.detach(), expected)


def test_an_evaluation_has_no_critic(make_iclm, labelled):
    model = make_iclm(num_domains=2, mi_loss="club", mi_weight=0.5, mi_queue=0)
    assert "critic" not in model.eval()(**labelled()).terms


@torch.no_grad()
def test_the_loss_of_a_base_in_bfloat16_is_computed_in_float32(make_iclm, labelled):
    model = make_iclm(router="fixed:0", dtype="bfloat16", mi_weight=0.0)
    batch = labelled()
    logits = model(batch["input_ids"], batch["attention_mask"]).logits.float()
    rows, at = (batch["labels"][:, 1:] != -100).nonzero(as_tuple=True)
    expected = F.cross_entropy(logits[rows, at], batch["labels"][rows, at + 1])
    found = model(**batch).terms["lm"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
