"""What transformers and its users pass to every model: honoured, or refused, never ignored where it would change a number."""

import os

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, Trainer, TrainingArguments

from iclm.errors import ConfigurationError
from iclm.model import ICLMForCausalLM


@pytest.fixture(scope="module")
def model(make_iclm):
    return make_iclm(num_domains=2, router="vq")


@pytest.fixture(scope="module")
def batch(random_prompts, padded):
    return padded(random_prompts())


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "iclm"
    model.save_pretrained(folder)
    return folder


def positions_of(mask):
    return (mask.cumsum(-1) - 1).clamp_min(0)


@torch.no_grad()
def test_positions_that_follow_the_mask_are_taken_and_others_refused(model, batch):
    own = model(**batch).logits
    assert torch.equal(model(**batch, position_ids=positions_of(batch["attention_mask"])).logits, own)
    flat = torch.cat([torch.arange(4), torch.arange(8)])[None]
    with pytest.raises(ConfigurationError, match=r"position_ids .* branch_ids"):
        model(input_ids=batch["input_ids"][2:3, :12].repeat(1, 1), position_ids=flat)
    with pytest.raises(ConfigurationError, match="position_ids"):
        model(**batch, position_ids=3 * positions_of(batch["attention_mask"]))


@torch.no_grad()
@pytest.mark.parametrize("fresh", [False, True])
def test_decoding_by_hand_needs_no_flag(make_iclm, load_tiny_base, batch, fresh):
    model = make_iclm(num_domains=2, router="vq", fresh=fresh)
    ids, past, found = batch["input_ids"][1:2, :9], None, []
    for _ in range(5):
        output = model(ids, past_key_values=past)
        past, ids = output.past_key_values, output.logits[:, -1:].argmax(-1)
        found.append(int(ids))
    expected = model.generate(batch["input_ids"][1:2, :9], max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert found == expected[0, 9:].tolist()
    assert model.train()(batch["input_ids"]).past_key_values is None


def test_an_example_without_a_prompt_is_read_whole_and_said_to_be(make_iclm, batch):
    model = make_iclm(num_domains=2, router="vq")
    routes = model(**batch).route
    assert len(set(routes[:, 0].tolist())) == 2
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    model.train()
    for side in (batch, {name: tensor.flip(1) for name, tensor in batch.items()}):  # padding on either side
        with pytest.warns(UserWarning, match="has no prompt, and the router reads it whole"):
            found = model(**side, labels=labels if side is batch else labels.flip(1))
        assert found.route[:, 0].tolist() == (model.eval()(**side).route[:, 0].tolist())
        model.train()
    with pytest.warns(UserWarning, match="no prompt"):
        assert model.batch_features({**batch, "labels": labels}).any(1).all()


@torch.no_grad()
def test_in_evaluation_labels_give_the_loss_and_the_logits(model, labelled):
    batch = labelled()
    plain = model(batch["input_ids"], batch["attention_mask"], prompt_mask=batch["labels"] == -100)
    for kept in (0, 3):
        found = model(**batch, logits_to_keep=kept)
        assert found.loss is not None and found.past_key_values is None
        torch.testing.assert_close(found.logits, plain.logits[:, -kept:], rtol=0, atol=1e-5)
    assert model.train()(**batch).logits is None
    model.eval()


def test_the_trainer_of_transformers_gets_logits_to_measure(saved, tmp_path, labelled):
    batch = labelled((6, 6, 6, 6))
    rows = [{name: values[i] for name, values in batch.items()} for i in range(4)]
    arguments = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True)
    model = AutoModelForCausalLM.from_pretrained(saved)
    trainer = Trainer(model, arguments, eval_dataset=rows, compute_metrics=lambda found: {"n": len(found.predictions)})
    assert trainer.predict(rows).predictions.shape == (4, 6, model.config.vocab_size)
    assert trainer.evaluate()["eval_n"] == 4


@torch.no_grad()
def test_which_logits_are_kept(model, batch):
    every = model(**batch).logits
    at = torch.tensor([0, 3, -1])
    torch.testing.assert_close(model(**batch, logits_to_keep=at).logits, every[:, at])
    torch.testing.assert_close(model(**batch, logits_to_keep=99).logits, every)
    values = model(**batch, return_dict=False)
    assert isinstance(values, tuple) and torch.equal(values[0], every)


@torch.no_grad()
def test_a_mask_is_what_is_not_zero(model, batch):
    every = model(**batch).logits
    for mask in (batch["attention_mask"] * 2, batch["attention_mask"].bool(), batch["attention_mask"].float()):
        assert torch.equal(model(batch["input_ids"], mask).logits, every)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"inputs_embeds": torch.zeros(1, 2, 4)}, "inputs_embeds"),
        (
            {"input_ids": torch.ones(1, 3, dtype=torch.long), "output_hidden_states": True},
            "hidden states are not returned",
        ),
        ({"input_ids": torch.ones(1, 3, dtype=torch.long), "output_attentions": True}, "attention weights are not"),
        ({"input_ids": torch.ones(1, 3, dtype=torch.long), "past_key_values": DynamicCache()}, "makes its own cache"),
        ({"input_ids": torch.ones(1, 3, dtype=torch.long), "cu_seq_lens_q": torch.ones(2)}, "branch_ids"),
    ],
    ids=["embeddings", "states", "attentions", "cache", "flattened"],
)
def test_what_an_iclm_cannot_honour_is_refused_by_name(model, given, why):
    with pytest.raises(ConfigurationError, match=why):
        model(**given)


@pytest.mark.parametrize("name", ["half", "bfloat16", "float", "double"])
def test_no_way_to_another_dtype(model, name):
    with pytest.raises(ConfigurationError, match="keeps its dtypes"):
        getattr(model, name)()


# -- from_pretrained ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"quantization_config": {"load_in_4bit": True}}, "quantization='nf4'"),
        ({"nonsense": 3}, "nonsense is no option"),
        ({"device_map": {"base": "cpu", "router": "cpu"}}, "names 2 places"),
    ],
)
def test_options_of_loading_that_mean_nothing_are_refused(saved, given, why):
    for loader in (ICLMForCausalLM, AutoModelForCausalLM):
        with pytest.raises(ConfigurationError, match=why):
            loader.from_pretrained(saved, **given)
    with pytest.raises(ConfigurationError, match="give the folder itself"):
        ICLMForCausalLM.from_pretrained(saved, subfolder="x")


def test_options_of_loading_are_those_of_transformers(saved, model, batch):
    found, info = ICLMForCausalLM.from_pretrained(saved, output_loading_info=True, device_map={"": "cpu"})
    assert not any(info.values())
    assert torch.equal(found(**batch).logits, model(**batch).logits)
    assert AutoModelForCausalLM.from_pretrained(saved, torch_dtype=torch.bfloat16).dtype == torch.bfloat16
    assert AutoModelForCausalLM.from_pretrained(saved, dtype="bfloat16").dtype == torch.bfloat16


def test_a_base_in_the_current_folder_is_found_from_every_folder(tiny_llama_folder, tmp_path, monkeypatch, batch):
    (tmp_path / "bases").mkdir()
    os.symlink(tiny_llama_folder, tmp_path / "bases" / "llama")
    monkeypatch.chdir(tmp_path)
    model = ICLMForCausalLM.from_base("bases/llama", num_domains=2, router="oracle", dtype="float32").eval()
    model.save_pretrained(tmp_path / "saved")
    monkeypatch.chdir("/")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    route = torch.tensor([0, 1, 0, 1])
    assert torch.equal(again(**batch, route=route).logits, model(**batch, route=route).logits)
