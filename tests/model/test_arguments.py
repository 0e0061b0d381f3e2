"""What transformers and its users pass to every model: honoured, or refused, never ignored where it would change a number."""

import os
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, GenerationConfig, Trainer, TrainingArguments

from iclm.errors import BackboneError, CheckpointError, ConfigurationError
from iclm.model import ICLMConfig, ICLMForCausalLM, Route
from iclm.training.trainer import ICLMTrainer


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
def test_positions_without_a_mask_are_those_after_the_cache(model, batch):
    ids = batch["input_ids"][1:2, :9]
    past = model(ids[:, :6]).past_key_values
    for start in (0, 3, 7):
        with pytest.raises(ConfigurationError, match="position_ids are not those"):
            model(ids[:, 6:], past_key_values=past, position_ids=torch.arange(start, start + 3)[None])
    found = model(ids[:, 6:], past_key_values=past, position_ids=torch.arange(6, 9)[None])
    torch.testing.assert_close(found.logits, model(ids, route=found.decision).logits[:, 6:], rtol=0, atol=1e-5)
    with pytest.raises(ConfigurationError, match="position_ids are not those"):
        model(ids, position_ids=torch.arange(9)[None] + 7)


@torch.no_grad()
@pytest.mark.parametrize(
    "options", [{}, {"use_cache": False}, {"num_beams": 3}, {"num_return_sequences": 2, "num_beams": 2}]
)
def test_generation_takes_positions_that_are_its_own(model, random_prompts, padded, options):
    batch = padded(random_prompts((5, 9, 3)), side="left")
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, **options}
    found = model.generate(**batch, position_ids=positions_of(batch["attention_mask"]), **options)
    assert torch.equal(found, model.generate(**batch, **options))


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


@torch.no_grad()
def test_labels_with_a_cache_are_those_of_the_tokens_after_it(model, batch):
    ids = batch["input_ids"][1:2, :9]
    labels = ids.clone()
    labels[:, :7] = -100  # the first of the later part is nobody's next token
    whole = model(ids, labels=labels, prompt_mask=torch.arange(9)[None] < 6).loss
    for mask in (None, torch.ones_like(ids)):
        past = model(ids[:, :6]).past_key_values
        found = model(ids[:, 6:], mask, labels=ids[:, 6:], past_key_values=past)
        torch.testing.assert_close(found.loss, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["labels", "prompt_mask", "branch_ids", "attention_mask"])
def test_what_has_another_shape_than_the_tokens_is_refused_by_name(model, labelled, name):
    batch = labelled()
    batch[name] = torch.ones_like(batch["input_ids"])[:, 1:]
    with pytest.raises(ConfigurationError, match=rf"{name} is \[4, 10\]; it must be \[4, 11\]"):
        model(**batch)
    if name != "branch_ids":
        with pytest.raises(ConfigurationError, match=f"{name} is"):
            model.batch_features(batch)


def test_recomputed_layers_keep_no_cache_and_say_so(make_iclm, labelled):
    model = make_iclm(num_domains=2, router="oracle", fit=False).train()
    ids, domains = labelled()["input_ids"], torch.tensor([0, 1, 0, 1])
    given = model(ids, domain_ids=domains, use_cache=True)
    given.logits.square().sum().backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.gradient_checkpointing_enable()
    with pytest.warns(UserWarning, match="no cache is kept"):
        found = model(ids, domain_ids=domains, use_cache=True)
    assert given.past_key_values is not None and found.past_key_values is None
    found.logits.square().sum().backward()
    for name, gradient in plain.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient)
    with pytest.raises(ConfigurationError, match="would append to it again"):
        model(ids[:, :1], past_key_values=given.past_key_values, domain_ids=domains)
    with torch.no_grad():
        assert model(ids, domain_ids=domains, use_cache=True).past_key_values is not None


def test_a_replica_of_data_parallel_is_refused(model, batch):
    with pytest.raises(ConfigurationError, match="torchrun"):
        model._replicate_for_data_parallel()(**batch)


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
        assert torch.equal(model.route(batch["input_ids"], mask).error, model.route(**batch).error)
        assert torch.equal(model.router_features(batch["input_ids"], mask), model.router_features(**batch))


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
    for dtype in (torch.bfloat16, "torch.HalfTensor"):
        with pytest.raises(ConfigurationError, match="keeps its dtypes"):
            model.type(dtype)


def test_own_parameters_are_in_float32_whatever_the_default(load_tiny_base):
    base = load_tiny_base(dtype="bfloat16")
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = ICLMForCausalLM.from_base(base, num_domains=2, router="vq", mix="low_rank", mi_projection=8)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {t.dtype for t in model.own_state_dict().values() if t.is_floating_point()} == {torch.float32}
    other = ICLMForCausalLM.from_base(load_tiny_base(dtype="bfloat16"), num_domains=2, router="vq", mi_projection=8)
    own = model.state_dict()
    assert all(torch.equal(own[name], p) for name, p in other.state_dict().items() if "lora_" in name)


@pytest.mark.parametrize("size", [{"new_num_tokens": 700}, {"new_num_tokens": 50}, {"pad_to_multiple_of": 64}])
def test_a_vocabulary_of_another_size_is_refused_before_anything_changes(model, batch, size):
    with torch.no_grad():
        before = model(**batch).logits
        with pytest.raises(ConfigurationError, match="resize the base before from_base"):
            model.resize_token_embeddings(**size)
        assert torch.equal(model(**batch).logits, before)
    assert model.resize_token_embeddings() is model.get_input_embeddings()


# -- caches and routes that are given -----------------------------------------------------------------------------------


@torch.no_grad()
def test_a_cache_goes_on_with_its_own_module_and_route_alone(make_iclm, batch):
    model = make_iclm(num_domains=2, router="vq")
    ids = batch["input_ids"][1:2, :9]
    longer = torch.cat([ids, ids[:, :1]], 1)
    own = model.route(ids, torch.ones_like(ids)).indices[:, 0]
    for module in ("mixture", "invariant", "domain_0", "domain_1"):
        past = model(ids, module=module).past_key_values
        right = model(longer, module=module, route=own if module == "mixture" else None).logits[:, -1]
        for other in {"mixture", "invariant", "domain_0", "domain_1"} - {module}:
            with pytest.raises(ConfigurationError, match="past_key_values holds the keys and values of another module"):
                model(longer[:, -1:], past_key_values=past, module=other)
        torch.testing.assert_close(
            model(longer[:, -1:], past_key_values=past, module=module).logits[:, -1], right, rtol=0, atol=1e-5
        )
    past = model(ids).past_key_values
    with pytest.raises(ConfigurationError, match="another module"):
        model.encode(longer[:, -1:], past_key_values=past, every_module=True)
    for other in (1 - own, 1 - own[:, None], own.repeat(2), Route(own[:, None], torch.full((1, 1), 0.5))):
        with pytest.raises(ConfigurationError, match="route differs from that of past_key_values"):
            model(longer[:, -1:], past_key_values=past, route=other)
    with pytest.raises(ConfigurationError, match="another module"):
        model.generate(ids, past_key_values=past, module="domain_0", max_new_tokens=2)
    model(longer[:, -1:], past_key_values=past, route=own)
    past.reset()
    model(ids, past_key_values=past, route=1 - own)  # another prompt
    assert torch.equal(past.route.indices[:, 0], 1 - own)


@torch.no_grad()
@pytest.mark.parametrize("cache", [True, False])
def test_a_route_that_is_given_holds_for_every_beam(make_iclm, random_prompts, padded, cache):
    model = make_iclm(num_domains=2, router="vq")
    batch = padded(random_prompts((6, 9)), side="left")
    options = {"num_beams": 3, "max_new_tokens": 4, "use_cache": cache}
    expected = model.generate(**batch, **options)
    route = model.route(**batch)
    assert torch.equal(model.generate(**batch, route=route, **options), expected)
    assert torch.equal(model.generate(**batch, route=route.indices[:, 0], **options), expected)
    others = 1 - route.indices[:, 0]
    single = [model.generate(batch["input_ids"][1:], route=others[1:], **options)[0, 9:]]
    assert torch.equal(model.generate(**batch, route=others, **options)[1, 9:][: len(single[0])], single[0])
    with pytest.raises(ConfigurationError, match="route is for 1 examples; the batch has 2"):
        model(**batch, route=route.select(torch.tensor([0])))


@torch.no_grad()
@pytest.mark.parametrize("cache", [True, False])
def test_a_route_by_token_that_is_given_holds_for_every_copy(make_iclm, random_prompts, padded, cache):
    model = make_iclm(num_domains=3, router="vq", router_level="token")
    batch = padded(random_prompts((8, 11)), side="left")
    route = model.route(**batch)
    assert len(route.tokens.indices[1].unique()) > 1, "the test needs tokens that go apart"
    for options in ({"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}):
        found = []
        for given in ({"route": route}, {}):
            torch.manual_seed(0)
            found.append(model.generate(**batch, **given, max_new_tokens=4, use_cache=cache, **options))
        assert torch.equal(*found)
    twice = route.repeat(2)
    both = {name: values.repeat_interleave(2, 0) for name, values in batch.items()}
    expected = model(**batch, route=route).logits.repeat_interleave(2, 0)
    torch.testing.assert_close(model(**both, route=twice).logits, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_prompt_mask_may_be_given_without_a_cache(make_iclm, batch):
    model = make_iclm(num_domains=2, router="vq")
    ids = batch["input_ids"][1:2, :9]
    mask = torch.ones_like(ids)
    mask[:, 4:] = 0
    found = [
        model.generate(ids, prompt_mask=mask, use_cache=cache, max_new_tokens=4, do_sample=False)
        for cache in (True, False)
    ]
    assert torch.equal(*found)


def test_a_router_is_started_from_batches_of_which_there_is_one(make_iclm, batch):
    model = make_iclm(num_domains=2, router="vq", fit=False)
    with pytest.raises(ConfigurationError, match="fit_router got no batch"):
        model.fit_router([])
    assert model.fit_router([{"input_ids": batch["input_ids"]}] * 3) == 3 * len(batch["input_ids"])


@torch.no_grad()
def test_under_autocast_a_router_decides_in_full_precision(make_iclm, random_prompts, padded):
    model = make_iclm(num_domains=3, router="gumbel")
    batch = padded(random_prompts([3 + n % 10 for n in range(40)], seed=7))
    seen = []
    handle = model.router.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    with torch.autocast("cpu", torch.bfloat16):
        model(**batch)
    handle.remove()
    assert seen == [False]


def test_a_trainer_that_keeps_the_labels_to_itself_is_warned_of(make_iclm, labelled, tmp_path):
    batch = labelled((6, 6, 6, 6))
    rows = [{name: values[i] for name, values in batch.items()} for i in range(4)]
    settings = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "max_steps": 1, "label_smoothing_factor": 0.1}
    arguments = TrainingArguments(str(tmp_path), **settings)
    with pytest.warns(UserWarning, match="kept the labels to itself, as label_smoothing_factor"):
        Trainer(make_iclm(num_domains=2, router="vq"), arguments, train_dataset=rows).train()
    with pytest.raises(ConfigurationError, match=r"label_smoothing_factor is 0\.1"):
        ICLMTrainer(make_iclm(num_domains=2, router="vq"), arguments, [])


# -- from_pretrained ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"quantization_config": {"load_in_4bit": True}}, "quantization='nf4'"),
        ({"nonsense": 3}, "nonsense is no option"),
        ({"state_dict": {"router.mean": torch.zeros(3)}}, "state_dict is given; the weights are those of the folder"),
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


def test_a_loaded_base_from_the_current_folder_is_found_from_every_folder(tiny_llama_folder, tmp_path, monkeypatch):
    os.symlink(tiny_llama_folder, tmp_path / "llama")
    monkeypatch.chdir(tmp_path)
    base = AutoModelForCausalLM.from_pretrained("llama")
    ICLMForCausalLM.from_base(base, num_domains=2, router="oracle").save_pretrained(tmp_path / "saved")
    monkeypatch.chdir("/")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "saved").config.base["name"] == str(tmp_path / "llama")


def test_a_loaded_base_in_float16_is_refused(tiny_llama_folder):
    base = AutoModelForCausalLM.from_pretrained(tiny_llama_folder, dtype=torch.float16)
    with pytest.raises(BackboneError, match=r"was loaded in float16.* give its name and dtype='float16'"):
        ICLMForCausalLM.from_base(base, num_domains=2, router="oracle")


def test_one_configuration_serves_several_bases(base_folders):
    config = ICLMConfig(num_domains=2, router="oracle")
    made = [ICLMForCausalLM.from_base(str(folder), config) for folder in list(base_folders.values())[:2]]
    assert made[0].config.base["fingerprint"] != made[1].config.base["fingerprint"] and not config.base


def test_what_generates_is_saved_and_read_back(make_iclm, tmp_path):
    model = make_iclm(num_domains=2, router="vq")
    model.generation_config = GenerationConfig(eos_token_id=[1, 5], max_new_tokens=7)
    model.save_pretrained(tmp_path)
    for loader in (ICLMForCausalLM, AutoModelForCausalLM):
        found = loader.from_pretrained(tmp_path, base=model.config.base["name"]).generation_config
        assert (found.eos_token_id, found.max_new_tokens) == ([1, 5], 7)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"generation_config\.json is damaged"):
        ICLMForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("loader", [ICLMForCausalLM, AutoModelForCausalLM])
def test_options_of_the_base_reach_it_by_every_way(saved, tiny_llama_folder, tmp_path, loader):
    assert loader.from_pretrained(saved, attn_implementation="eager").base.config._attn_implementation == "eager"
    os.symlink(tiny_llama_folder, tmp_path / "moved")
    found = loader.from_pretrained(saved, base=str(tmp_path / "moved"))
    assert found.base.config._name_or_path == str(tmp_path / "moved")
    base = AutoModelForCausalLM.from_pretrained(tiny_llama_folder)
    assert loader.from_pretrained(saved, base=base).base is base
    given = ICLMForCausalLM.from_pretrained(saved, attn_implementation="eager").config
    again = loader.from_pretrained(saved, config=given, dtype="bfloat16")
    assert again.base.config._attn_implementation != "eager" and given.base["dtype"] == "float32"
    assert loader.from_pretrained(saved, device_map="balanced").device.type in ("cpu", "cuda")


def test_a_loaded_base_is_taken_as_it_is_or_refused(saved, load_tiny_base):
    for given in ({"dtype": torch.bfloat16}, {"torch_dtype": "bfloat16"}, {"attn_implementation": "eager"}):
        with pytest.raises(ConfigurationError, match=r"is .*, but base is a loaded model"):
            ICLMForCausalLM.from_pretrained(saved, base=load_tiny_base(), **given)
    same = {"dtype": "float32", "attn_implementation": load_tiny_base().config._attn_implementation}
    assert ICLMForCausalLM.from_pretrained(saved, base=load_tiny_base(), **same).dtype == torch.float32


def test_a_hub_id_is_said_to_need_a_download(model):
    for config in (None, model.config):
        with pytest.raises(CheckpointError, match=r"huggingface_hub\.snapshot_download\('someone/iclm'\)"):
            ICLMForCausalLM.from_pretrained("someone/iclm", config=config)


def test_what_is_no_hub_id_is_not_said_to_be_one(tmp_path):
    for name in (str(tmp_path / "gone"), "gone", "runs/a/b"):
        with pytest.raises(CheckpointError, match=r"is no folder with a saved ICLM$"):
            ICLMForCausalLM.from_pretrained(name)


def test_saving_over_another_model_is_refused_before_anything_is_written(model, tiny_llama_folder, saved, tmp_path):
    folder = shutil.copytree(tiny_llama_folder, tmp_path / "base")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigurationError, match="holds a model of type llama"):
        model.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    model.save_pretrained(saved)  # an ICLM may be replaced
    (tmp_path / "config.json").write_text("{")  # and what is damaged
    model.save_pretrained(tmp_path)
    assert ICLMForCausalLM.from_pretrained(tmp_path).config.num_domains == 2


def test_only_the_main_process_writes(model, tmp_path):
    model.save_pretrained(tmp_path / "iclm", is_main_process=False)
    assert not (tmp_path / "iclm").exists()


@pytest.mark.parametrize(
    "ids", [torch.ones(4), torch.ones(2, 0), torch.ones(0, 3)], ids=["flat", "no-token", "no-sequence"]
)
def test_ids_that_are_no_batch_of_sequences_are_refused(model, ids):
    with pytest.raises(ConfigurationError, match=r"input_ids is \[.*\]; it must be \[batch, tokens\]"):
        model(input_ids=ids.long())


@pytest.mark.parametrize("settings", [{"module": "invariant"}, {"module": "domain_1"}])
def test_a_route_is_not_ignored_where_one_module_runs_alone(model, settings):
    ids = torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(
        ConfigurationError, match=r"route is given, but '(invariant|domain_1)' of this model is one module"
    ):
        model(input_ids=ids, route=torch.tensor([0, 1]), **settings)
