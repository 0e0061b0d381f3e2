"""Invariant 7: idle domain modules cost nothing: R = B * (1 + active) rows through the upper layers, whatever K."""

import pytest
import torch

from iclm.model.modules import AdaptedLayer, LoRABank


@pytest.fixture
def rows_seen():
    """Count the rows that enter each decoder layer: `rows_seen(model, call)` gives a list of sets, one a layer."""

    def count(model, call):
        layers = next(m for m in model.base.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 4)
        seen, handles = [set() for _ in layers], []
        for number, layer in enumerate(layers):
            inner = layer.layer if isinstance(layer, AdaptedLayer) else layer
            handles.append(
                inner.register_forward_pre_hook(
                    lambda _, args, kwargs, n=number: seen[n].add((args or (kwargs["hidden_states"],))[0].shape[0]),
                    with_kwargs=True,
                )
            )
        try:
            call()
        finally:
            for handle in handles:
                handle.remove()
        return seen

    return count


@pytest.mark.parametrize("domains, active, split", [(2, 1, 0), (5, 1, 2), (5, 2, 2), (9, 1, 2)])
def test_upper_layers_see_a_row_for_each_active_module(
    make_iclm, labelled, rows_seen, architecture, domains, active, split
):
    settings = {"num_domains": domains, "active_domains": active, "split_layer": split, "router": "random"}
    model, batch = make_iclm(architecture, **settings), labelled()
    expected = [{4}] * split + [{4 * (1 + active)}] * (4 - split)
    assert rows_seen(model.eval(), lambda: model(batch["input_ids"], batch["attention_mask"])) == expected
    assert rows_seen(model.train(), lambda: model(**batch).loss.backward()) == expected


def test_routing_every_row_to_one_module_evaluates_no_other(make_iclm, labelled, architecture):
    model, used = make_iclm(architecture, num_domains=5, router="fixed:1"), []
    bank = next(m for m in model.modules() if isinstance(m, LoRABank))
    bank.register_forward_hook(lambda *_: used.append(model.runtime.activation.plan.active))
    model(**labelled())
    assert used == [(0, 2)]
    for number in (1, 3, 4, 5):  # what is not touched cannot spoil the result either
        with torch.no_grad():
            for layer in (m for m in model.modules() if isinstance(m, LoRABank)):
                layer.lora_B[str(number)].fill_(float("nan"))
    assert torch.isfinite(model(**labelled()).loss)


def test_the_invariant_module_alone_evaluates_no_domain_module(
    make_iclm, random_prompts, padded, rows_seen, architecture
):
    model, batch = make_iclm(architecture, num_domains=5), padded(random_prompts())
    with torch.no_grad():
        for layer in (m for m in model.modules() if isinstance(m, LoRABank)):
            for number in range(1, 6):
                layer.lora_A[str(number)].fill_(float("nan"))
    seen = rows_seen(
        model, lambda: torch.isfinite(model(**batch, module="invariant").logits).all() or pytest.fail("nan")
    )
    assert seen == [{4}] * 4


def test_the_router_costs_no_extra_pass(make_iclm, random_prompts, padded):
    model, calls = make_iclm(num_domains=2, split_layer=2), []
    model.get_decoder().register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        model(**padded(random_prompts()))
    assert len(calls) == 1


def test_generation_keeps_to_the_active_rows(make_iclm, random_prompts, padded, rows_seen, architecture):
    model = make_iclm(architecture, num_domains=5, split_layer=2)

    def call():
        model.generate(**padded(random_prompts(), "left"), max_new_tokens=3, do_sample=False, pad_token_id=0)

    with torch.no_grad():
        assert rows_seen(model, call) == [{4}, {4}, {8}, {8}]


def test_the_head_runs_at_labelled_positions_only(make_iclm, labelled):
    model, sizes = make_iclm(router="fixed:0").train(), []
    model.get_output_embeddings().register_forward_hook(lambda _, args, __: sizes.append(args[0].shape[:-1].numel()))
    assert model(**labelled(answer=2)).logits is None
    assert set(sizes) == {8}


def test_parameters_do_not_grow_by_copies_of_the_base(make_iclm, load_tiny_base, architecture):
    base = sum(p.numel() for p in load_tiny_base(architecture).parameters())
    small, large = make_iclm(architecture, num_domains=2), make_iclm(architecture, num_domains=5)
    assert sum(p.numel() for p in large.parameters()) < 1.5 * base
    own = [sum(t.numel() for n, t in m.own_state_dict().items() if "lora" in n) for m in (small, large)]
    assert own[1] == own[0] * 6 / 3
