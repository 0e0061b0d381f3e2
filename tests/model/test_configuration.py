"""ICLMConfig: what cannot work is refused with the name of the field."""

import pytest
import torch

from iclm.errors import ConfigurationError
from iclm.model import ICLMConfig

BAD = [
    ({"method": "dora"}, "method"),
    ({"num_domains": 0}, "num_domains"),
    ({"num_domains": -1}, "num_domains"),
    ({"num_domains": 2, "active_domains": 3}, "active_domains"),
    ({"active_domains": 0}, "active_domains"),
    ({"lora_rank": 0}, "lora_rank"),
    ({"lora_dropout": 1.0}, "lora_dropout"),
    ({"lora_dropout": -0.1}, "lora_dropout"),
    ({"router": "nearest"}, "router"),
    ({"router": "fixed:9"}, "fixed:i"),
    ({"router": "fixed:2"}, "fixed:i"),
    ({"router": "fixed:-1"}, "fixed:i"),
    ({"router": "fixed:"}, "fixed:i"),
    ({"router_dim": 0}, "router_dim"),
    ({"codebook_decay": 1.0}, "codebook_decay"),
    ({"codebook_decay": 0.0}, "codebook_decay"),
    ({"aggregator": "sum"}, "aggregator"),
    ({"mix": "full"}, "mix"),
    ({"mi_queue": -1}, "mi_queue"),
    ({"mi_temperature": 0.0}, "mi_temperature"),
    ({"router_weight": -0.1}, "router_weight"),
    ({"mi_weight": -1}, "mi_weight"),
    ({"invariant_weight": -1}, "invariant_weight"),
    ({"domain_weight": float("nan")}, "domain_weight"),
    ({"num_hidden_layers": 4, "split_layer": 5}, "split_layer"),
    ({"num_hidden_layers": 4, "split_layer": -1}, "split_layer"),
    ({"num_hidden_layers": 4, "split_layer": 2, "router_layer": 5}, "router_layer"),
    ({"num_hidden_layers": 4, "split_layer": 2, "router_layer": -2}, "router_layer"),
    ({"router_level": "word"}, "router_level"),
    ({"router_reduction": "tsne"}, "router_reduction"),
    ({"router": "soft", "router_temperature": 0.0}, "router_temperature"),
    ({"router_temperature": float("inf")}, "router_temperature"),
    ({"mi_loss": "dcor"}, "mi_loss"),
    ({"mi_detach_domain": "yes"}, "mi_detach_domain"),
    ({"mix": "low_rank", "aggregator": "logits"}, "low_rank"),
    ({"mix": "gate", "aggregator": "concat"}, "concat"),
    ({"ablation": "both"}, "ablation"),
    ({"dead_code_threshold": -1.0}, "dead_code_threshold"),
]
UNCHECKED = [
    ({"mi_projection": 0}, "mi_projection"),
    ({"mi_projection": -4}, "mi_projection"),
    ({"mix": "low_rank", "mix_rank": 0}, "mix_rank"),
    ({"router": "oracle", "num_domains": 3, "active_domains": 2}, "active_domains"),
    ({"router": "fixed:0", "num_domains": 3, "active_domains": 2}, "active_domains"),
    ({"lora_alpha": "16"}, "lora_alpha"),
    ({"lora_dropout": None}, "lora_dropout"),
    ({"router_weight": float("inf")}, "router_weight"),
    ({"mi_temperature": float("inf")}, "mi_temperature"),
    ({"codebook_decay": "0.9"}, "codebook_decay"),
    ({"mi_weight": True}, "mi_weight"),
    ({"seed": "a"}, "seed"),
    ({"target_modules": 5}, "target_modules"),
    ({"target_modules": ["q_proj", 5]}, "target_modules"),
]


@pytest.mark.parametrize("settings, field", BAD + UNCHECKED, ids=str)
def test_value_out_of_range_is_refused_by_name_in_one_line(settings, field):
    with pytest.raises(ConfigurationError, match=field) as caught:
        ICLMConfig(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", [{"split_layer": 9}, {"router_layer": 5, "split_layer": 2}], ids=str)
def test_layers_are_checked_against_the_base(make_iclm, settings):
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        make_iclm(**settings)


@pytest.mark.parametrize("targets", ["q_proj", ["nothing"], [], ["q_proj", "nothing"]], ids=str)
def test_target_modules_that_match_nothing_are_refused(make_iclm, targets):
    with pytest.raises(ConfigurationError, match="target_modules"):
        make_iclm(target_modules=targets)


def test_named_target_modules_get_adapters_and_no_other(make_iclm):
    names = make_iclm(target_modules=["q_proj", "down_proj"], split_layer=1).own_state_dict()
    assert {n.split(".lora_")[0].rpartition(".")[2] for n in names if "lora" in n} == {"q_proj", "down_proj"}
    assert {n.split("layers.")[1][0] for n in names if "lora" in n} == {"1", "2", "3"}


def test_plain_lora_has_one_module_on_every_layer(make_iclm):
    model = make_iclm(method="lora")
    assert model.config.num_domains == 0 and model.config.split_layer == 0
    assert model.config.module_names == ["mixture"]
    assert not [n for n in model.own_state_dict() if "lora" not in n]


def test_default_split_is_a_quarter_of_the_layers(make_iclm):
    assert make_iclm().config.split_layer == 1 and make_iclm(method="lora").config.split_layer == 0


def test_module_names_are_what_can_be_asked_for(make_iclm):
    model = make_iclm(num_domains=2)
    assert model.config.module_names == ["mixture", "invariant", "domain_0", "domain_1"]
    for module in ("domain_2", "domain_-1", "nobody", ""):
        with pytest.raises(ConfigurationError, match="module"):
            model(torch.ones(1, 3, dtype=torch.long), module=module)


def test_arguments_of_forward_that_do_not_fit_are_refused(make_iclm):
    model, ids = make_iclm(num_domains=2), torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(ConfigurationError, match="attention_mask"):
        model(ids, attention_mask=torch.ones(2, 4, dtype=torch.long))
    with pytest.raises(ConfigurationError, match="route"):
        model(ids, route=torch.tensor([0]))
    with pytest.raises(ConfigurationError, match="domain"):
        model(ids, route=torch.tensor([0, 2]))
    with pytest.raises(ConfigurationError, match="branch_ids"):
        model(ids, branch_ids=torch.ones_like(ids))


def test_dtype_of_the_base_cannot_be_changed_by_to(make_iclm):
    model = make_iclm()
    with pytest.raises(ConfigurationError, match="dtype"):
        model.to(torch.bfloat16)
    assert model.to("cpu") is model


def test_a_setting_that_there_is_not_is_refused_with_what_was_meant(tiny_llama_folder):
    from iclm.model import ICLMForCausalLM

    with pytest.raises(ConfigurationError, match=r"routr is not a setting of an ICLM; did you mean router\?"):
        ICLMForCausalLM.from_base(str(tiny_llama_folder), routr="kmeans")
    with pytest.raises(ConfigurationError, match="config is given, so num_domains would change nothing"):
        ICLMForCausalLM.from_base(str(tiny_llama_folder), ICLMConfig(num_domains=2), num_domains=4)
