"""Leaving a side of the model out is a matter of configuration."""

import pytest
import torch

from iclm.errors import ConfigurationError
from iclm.model import ICLMConfig, ICLMForCausalLM


@pytest.mark.parametrize("active", [1, 2])
def test_without_the_invariant_module_the_mixture_is_its_domain_modules(
    make_iclm, architecture, random_prompts, padded, active
):
    model = make_iclm(architecture, ablation="no_invariant", num_domains=3, active_domains=active, router="kmeans")
    assert model.config.module_names == ["mixture", "domain_0", "domain_1", "domain_2"]
    assert not any(name.endswith((".lora_A.0", ".lora_B.0")) for name, _ in model.named_parameters())
    assert model.aggregator is None and model.independence is None
    batch = padded(random_prompts())
    with torch.no_grad():
        output = model(**batch)
        states = torch.stack([model.encode(**batch, module=f"domain_{i}").hidden for i in range(3)])
        chosen = states[output.decision.indices, torch.arange(4)[:, None]]
        expected = model.head((chosen * output.decision.weights[:, :, None, None]).sum(1))
    torch.testing.assert_close(output.logits, expected, rtol=0, atol=2e-5)
    with pytest.raises(ConfigurationError, match="invariant"):
        model(**batch, module="invariant")


def test_without_the_invariant_module_a_batch_has_one_row_an_example_and_the_lm_loss_alone(make_iclm, labelled):
    model, batch = make_iclm(ablation="no_invariant", num_domains=3, router="fixed:1").train(), labelled()
    assert model.encode(batch["input_ids"], batch["attention_mask"]).plan.rows == 4
    output = model(**batch)
    assert set(output.terms) == {"lm"}
    output.loss.backward()
    moved = {int(n.rpartition(".")[2]) for n, p in model.named_parameters() if "lora_B" in n and p.grad is not None}
    assert moved == {2}


def test_without_domain_modules_it_is_one_module_above_the_split(make_iclm, architecture, labelled):
    model = make_iclm(architecture, ablation="no_domain", num_domains=3)
    lora = make_iclm(architecture, method="lora", split_layer=1)
    assert model.config.split_layer == 1 and model.config.module_names == ["mixture"]
    assert model.router is None and model.aggregator is None
    lora.load_state_dict(model.own_state_dict(), strict=False)
    batch = labelled()
    found, expected = model.train()(**batch), lora.train()(**batch)
    assert torch.equal(found.loss, expected.loss) and set(found.terms) == {"lm"}


@pytest.mark.parametrize("ablation", ["no_invariant", "no_domain"])
def test_fresh_it_gives_the_logits_of_its_base(make_iclm, load_tiny_base, random_prompts, ablation):
    model, ids = make_iclm(ablation=ablation, fresh=True), random_prompts([9])[0][None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, load_tiny_base()(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("ablation", ["no_invariant", "no_domain"])
@pytest.mark.parametrize("level", ["input", "token"])
def test_it_generates_saves_and_loads(make_iclm, random_prompts, padded, tmp_path, ablation, level, base_folders):
    model, batch = make_iclm(ablation=ablation, router_level=level), padded(random_prompts(), "left")
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        cached = model.generate(**batch, **settings)
        assert torch.equal(cached, model.generate(**batch, **settings, use_cache=False))
        model.save_pretrained(tmp_path)
        loaded = ICLMForCausalLM.from_pretrained(tmp_path, base=base_folders["llama"])
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_an_ablation_that_is_none_is_refused():
    with pytest.raises(ConfigurationError, match="ablation is 'nothing'"):
        ICLMConfig(ablation="nothing")
    with pytest.raises(ConfigurationError, match="ablation"):
        ICLMConfig(method="lora", ablation="no_domain")
