"""The LoRA module bank."""

import copy
import io
import math
import threading

import peft
import pytest
import torch
from torch import nn

from iclm.errors import BackboneError
from iclm.model import ActivationPlan, ICLMForCausalLM, Route
from iclm.model.modules import Activation, LoRABank, Runtime


@pytest.fixture
def bank():
    """A bank of four modules of rank 3 that differ."""
    torch.manual_seed(0)
    bank = LoRABank(nn.Linear(6, 5).requires_grad_(False), range(4), 3, 0.0)
    for parameter in bank.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    return bank


def activation_of(plan):
    activation = Activation(lambda hidden: plan, 3, 2.5)
    activation.route(torch.zeros(plan.sequences, 1, 6))
    return activation


@pytest.mark.parametrize("route", [[[2], [0], [2]], [[0, 1], [1, 2], [2, 0]], [[1], [1], [1]]], ids=str)
def test_bank_equals_the_module_of_each_row_computed_by_hand(bank, route):
    plan = ActivationPlan.mixture(Route.to(torch.tensor(route)))
    x = torch.randn(plan.rows, 7, 6)
    bank.choose(activation_of(plan), x.dtype)
    found = bank(x)
    for row, module in enumerate(plan.module.tolist()):
        low_rank = bank.lora_B[str(module)] @ bank.lora_A[str(module)] * 2.5
        torch.testing.assert_close(found[row], bank.base(x[row]) + x[row] @ low_rank.T)


def test_bank_of_one_module_is_scaled_too(bank):
    x = torch.randn(2, 7, 6)
    bank.choose(activation_of(ActivationPlan.everywhere((3,), 2, None, x.device)), x.dtype)
    found = bank(x)
    torch.testing.assert_close(found, bank.base(x) + 2.5 * (x @ bank.lora_A["3"].T) @ bank.lora_B["3"].T)


def test_bank_that_has_chosen_nothing_is_the_frozen_layer(bank):
    x = torch.randn(2, 7, 6)
    assert torch.equal(bank(x), bank.base(x))
    bank.choose(activation_of(ActivationPlan.everywhere((3,), 2, None, x.device)), x.dtype)
    bank.forget()
    assert torch.equal(bank(x), bank.base(x))


def test_activation_is_put_back_after_an_exception():
    runtime = Runtime()
    outer, inner = object(), object()
    with runtime.use(outer):
        with pytest.raises(ZeroDivisionError), runtime.use(inner):
            raise ZeroDivisionError
        assert runtime.activation is outer
    assert runtime.activation is None


def test_an_exception_in_forward_leaves_the_model_usable(make_iclm):
    model = make_iclm(router="oracle")
    ids = torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="domain"):
        model(ids)
    assert model.runtime.activation is None
    assert torch.isfinite(model(ids, domain_ids=torch.tensor([0, 1])).logits).all()


def test_start_is_kaiming_for_a_and_zero_for_b(make_iclm):
    model = make_iclm(fresh=True, target_modules=["q_proj", "down_proj"])
    for bank in (m for m in model.modules() if isinstance(m, LoRABank)):
        bound = 1 / math.sqrt(bank.base.in_features)
        for a, b in zip(bank.lora_A.values(), bank.lora_B.values(), strict=True):
            assert a.abs().max() <= bound and a.std() > 0.4 * bound and not b.any()
        assert not torch.equal(bank.lora_A["0"], bank.lora_A["1"])


PEFT_TARGETS = {"gpt_neox": ["query_key_value", "dense"]}


def peft_twin(architecture, load_tiny_base, model):
    """PEFT's LoRA on the same base with the weights of a plain-LoRA ICLM."""
    targets = PEFT_TARGETS.get(architecture, ["q_proj", "k_proj", "v_proj", "o_proj"])
    config = peft.LoraConfig(r=2, lora_alpha=4.0, target_modules=targets, task_type="CAUSAL_LM")
    twin = peft.get_peft_model(load_tiny_base(architecture), config)
    copied = 0
    banks = {n.replace(".layer.", "."): m for n, m in model.base.named_modules() if isinstance(m, LoRABank)}
    with torch.no_grad():
        for name, bank in banks.items():
            layer = twin.base_model.model.get_submodule(name)
            layer.lora_A["default"].weight.copy_(bank.lora_A["0"])
            layer.lora_B["default"].weight.copy_(bank.lora_B["0"])
            copied += 1
    assert copied == sum(isinstance(m, peft.tuners.lora.LoraLayer) for m in twin.modules())
    return twin, banks


def test_plain_lora_equals_peft_with_the_same_weights(make_iclm, load_tiny_base, architecture, labelled):
    model, batch = make_iclm(architecture, method="lora"), labelled()
    twin, banks = peft_twin(architecture, load_tiny_base, model)
    plain = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        real = batch["attention_mask"] == 1
        torch.testing.assert_close(model(**plain).logits[real], twin(**plain).logits[real], rtol=0, atol=1e-5)
    ours, theirs = model.train()(**batch).loss, twin.train()(**batch).loss
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    ours.backward()
    theirs.backward()
    for name, bank in banks.items():
        layer = twin.base_model.model.get_submodule(name)
        for mine, other in ((bank.lora_A["0"], layer.lora_A), (bank.lora_B["0"], layer.lora_B)):
            torch.testing.assert_close(mine.grad, other["default"].weight.grad, rtol=1e-4, atol=1e-5)


def test_dropout_acts_in_training_only(make_iclm, random_prompts):
    model, ids = make_iclm(lora_dropout=0.5, router="fixed:0"), random_prompts([8])[0][None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, model(ids).logits)
        model.train()
        assert not torch.equal(model(ids).logits, model(ids).logits)
    assert not model.base.training


@pytest.mark.parametrize("recomputed", [False, True])
def test_a_pass_in_another_thread_changes_nothing(make_iclm, random_prompts, recomputed):
    """A second pass, with other modules, begins in the middle of the first one's top layer, or of its recomputation."""
    model = make_iclm(num_domains=2, router="oracle", fit=False)
    ids = torch.stack(random_prompts((7, 7)))
    routes = [torch.tensor([0, 0]), torch.tensor([1, 1])]
    attention = model.base.model.layers[-1].layer.self_attn
    others, calls = [], []

    def run(number):
        return model(ids, route=routes[number]).logits

    def second(*_):
        calls.append(threading.current_thread() is threading.main_thread())
        if sum(calls) == 1 + recomputed and not others:
            others.append(threading.Thread(target=lambda: found.append(run(1).detach())))
            others[0].start()
            others[0].join(0.3)

    def both():
        model.zero_grad()
        logits = run(0)
        logits.square().sum().backward()
        return logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    model.train()
    model.gradient_checkpointing_enable()
    (logits, gradients), other = both(), run(1).detach()
    found = []
    handle = attention.register_forward_pre_hook(second)
    again, interrupted = both()
    handle.remove()
    others[0].join()
    assert torch.equal(again, logits) and torch.equal(found[0], other)
    assert not torch.equal(logits, other), "the test needs modules that differ"
    assert interrupted.keys() == gradients.keys()
    assert all(torch.equal(interrupted[name], gradient) for name, gradient in gradients.items())


@torch.no_grad()
def test_a_copied_or_pickled_model_is_one_of_its_own(make_iclm, random_prompts):
    model = make_iclm(num_domains=2, router="oracle", fit=False)
    ids, route = torch.stack(random_prompts((7, 7))), torch.tensor([0, 1])
    expected, file = model(ids, route=route).logits, io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(other(ids, route=route).logits, expected)
        assert other.runtime is not model.runtime
        assert all(layer.runtime is other.runtime for layer in other.adapted_layers())


def test_a_base_that_carries_a_peft_adapter_is_refused(load_tiny_base):
    wrapped = peft.get_peft_model(load_tiny_base(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    for base in (wrapped, wrapped.base_model.model):
        with pytest.raises(BackboneError, match="carries a PEFT adapter; call merge_and_unload"):
            ICLMForCausalLM.from_base(base, num_domains=2, router="oracle")
    assert ICLMForCausalLM.from_base(wrapped.merge_and_unload(), num_domains=2, router="oracle", mi_projection=8)
