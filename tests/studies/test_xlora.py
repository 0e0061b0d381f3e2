"""X-LoRA as a method of a study, on a tiny base: it learns, on the examples of the others in their order, and comes back."""

import json
import sys

import pytest
import torch

from iclm.data.collation import encode
from iclm.data.loading import read_sources, training_data
from iclm.errors import CheckpointError, ConfigurationError
from iclm.evaluation.scoring import score_plain
from iclm.model import load_tokenizer
from iclm.model.backbone import load_base
from iclm.recipe import parse_recipe
from iclm.studies.study import grid, job, xlora
from iclm.studies.study.recipe import StudyRecipe, XLora
from iclm.training.run import build_model, make_trainer, training_arguments
from iclm.training.stages import stages_of

pytest.importorskip("peft")
FORMATS = ("symbolic", "text")


@pytest.fixture
def make_recipe(tiny_llama_folder):
    """Make the recipe of a tiny training: 12 symbolic and 12 text examples in packs of four, 3 steps an epoch."""

    def make(model=(), training=(), problems=3, **values):
        train = [{"acre": "IID", "problems": problems, "format": format} for format in FORMATS]
        return parse_recipe(
            {
                "method": "lora",
                "base": str(tiny_llama_folder),
                "dtype": "float32",
                "model": {"lora_rank": 2, "num_domains": 2, **dict(model)},
                "data": {"train": train},
                "training": {"batch_size": 8, "logging_steps": 1, **dict(training)},
                **values,
            }
        )

    return make


@pytest.fixture
def make_trainers(tmp_path):
    """Make the trainer of X-LoRA and that of plain LoRA for one recipe."""

    def make(recipe, model=None):
        tokenizer = load_tokenizer(recipe.base)
        packs = training_data(recipe.data.train, tokenizer, max_tokens=None, pack=recipe.data.pack)[0]
        arguments = training_arguments(recipe, tmp_path / "trainer")
        arguments.disable_tqdm = True
        pad, stage = tokenizer.pad_token_id, stages_of(recipe.training)[0]
        theirs = xlora.XLoraTrainer(model or xlora.build(recipe, XLora()), arguments, packs, pad)
        return theirs, make_trainer(recipe, build_model(recipe), arguments, packs, pad, stage)

    return make


@pytest.fixture
def spec(tiny_llama_folder):
    """What a job of a study is given, by the method's name."""

    def source(regime, split, problems, format):
        return {"acre": regime, "split": split, "problems": problems, "format": format}

    study = {
        "base": str(tiny_llama_folder),
        "dtype": "float32",
        "model": {"lora_rank": 2, "router_dim": 4},
        "training": {"batch_size": 8},
        "data": {
            "acre": {
                "train": [source("IID", "train", 3, f) for f in FORMATS],
                "validation": [source("IID", "val", 2, f) for f in FORMATS],
                "test": [source(regime, "test", 2, f) for regime in ("IID", "Sys") for f in FORMATS],
                "model": {"num_domains": 2},
            }
        },
        "methods": {"lora": {"method": "lora"}, "xlora": {"kind": "xlora"}},
        "grid": [{"methods": ["lora", "xlora"], "seeds": [0]}],
    }

    def make(method="xlora", **changes):
        jobs = grid.jobs_of(StudyRecipe.model_validate({**study, **changes}), {})
        return next(found.spec for found in jobs if found.method == method and found.spec is not None)

    return make


def logits(model, seed=0, **kwargs):
    ids = torch.randint(2, 500, (3, 20), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model(input_ids=ids, **kwargs).logits


# -- the model ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", ["attention", "all-linear"])
def test_a_fresh_xlora_is_its_base_on_any_architecture(base_folders, make_recipe, architecture, targets):
    recipe = make_recipe(base=base_folders[architecture], model={"target_modules": targets, "num_domains": 3})
    model = xlora.build(recipe, XLora()).eval()
    torch.testing.assert_close(logits(model), logits(load_base(recipe.base, "float32")), atol=1e-5, rtol=0)
    starts = [p for name, p in xlora.trainable(model).items() if ".lora_A." in name]
    assert len(starts) % 3 == 0 and len({tuple(p.flatten().tolist()) for p in starts}) == len(starts) > 0


def test_it_has_the_parameters_of_its_adapters_and_the_gate(make_recipe):
    recipe = make_recipe(model={"num_domains": 3})
    names = xlora.trainable(xlora.build(recipe, XLora()))
    gate = {name: p for name, p in names.items() if "classifier" in name}
    one = sum(p.numel() for p in build_model(recipe).parameters() if p.requires_grad)  # plain LoRA of the same rank
    assert sum(p.numel() for p in gate.values()) == 3 * 32 + 3
    assert sum(p.numel() for p in names.values()) == 3 * one + sum(p.numel() for p in gate.values())


def test_the_seed_decides_the_start_and_settings_reach_the_gate(make_recipe):
    def state(recipe, **settings):
        return xlora.trainable(xlora.build(recipe, XLora(**settings)))

    first, again, other = state(make_recipe()), state(make_recipe()), state(make_recipe(seed=1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if "lora_B" not in name)
    layerwise = state(make_recipe(), layerwise_scalings=True, xlora_depth=2, xlora_size=8)
    shapes = [tuple(p.shape) for name, p in layerwise.items() if "classifier" in name]
    assert shapes == [(8, 32), (8,), (2 * 16, 8), (2 * 16,)]  # four projections in each of four layers


def test_everything_trained_is_float32_whatever_the_base_is(make_recipe, make_trainers):
    trainer, _ = make_trainers(make_recipe(dtype="bfloat16"))
    assert trainer.model.dtype == torch.bfloat16
    for parameter in xlora.trainable(trainer.model).values():
        assert parameter.dtype == torch.float32
        torch.nn.init.normal_(parameter, std=0.3)
    trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader()))).backward()
    scalings = trainer.model.base_model.get_latest_scalings()
    assert scalings.dtype == torch.float32 and scalings.std() > 1e-3
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in xlora.trainable(trainer.model).values())


# -- training ----------------------------------------------------------------------------------------------------------


def test_its_batches_hold_the_examples_of_the_other_methods_in_their_order(make_recipe, make_trainers):
    theirs, ours = (t.get_train_dataloader() for t in make_trainers(make_recipe(training={"epochs": 2}, problems=5)))
    for epoch in range(2):
        for loader in (theirs, ours):
            loader.batch_sampler.set_epoch(epoch)
        count = 0
        for plain, packed in zip(theirs, ours, strict=True):
            assert "branch_ids" in packed and "branch_ids" not in plain
            assert len(plain["input_ids"]) == len(packed["domain_ids"]) <= 8
            assert torch.equal(plain["domain_ids"], packed["domain_ids"])
            assert torch.equal(*(batch["labels"][batch["labels"] != -100] for batch in (plain, packed)))
            count += len(plain["input_ids"])
        assert count == 40


def test_its_loss_is_that_of_plain_lora_before_both_learn(make_recipe, make_trainers):
    theirs, ours = make_trainers(make_recipe())
    for plain, packed in zip(theirs.get_train_dataloader(), ours.get_train_dataloader(), strict=True):
        expected = float(ours.compute_loss(ours.model, packed))
        assert float(theirs.compute_loss(theirs.model, plain)) == pytest.approx(expected, abs=1e-5)


def test_batches_accumulated_to_a_step_weigh_by_their_labelled_tokens(make_recipe, make_trainers):
    trainer, _ = make_trainers(make_recipe())
    batches = list(trainer.get_train_dataloader())[:2]
    counts = [int((batch["labels"] != -100).sum()) for batch in batches]
    alone = [float(trainer.compute_loss(trainer.model, dict(batch))) for batch in batches]
    shares = [float(trainer.compute_loss(trainer.model, dict(b), num_items_in_batch=sum(counts))) for b in batches]
    mean = sum(c * loss for c, loss in zip(counts, alone, strict=True)) / sum(counts)
    assert sum(shares) == pytest.approx(mean, abs=1e-5)


def test_parts_of_a_batch_make_the_step_of_the_whole(make_recipe, make_trainers, monkeypatch):
    trainer, _ = make_trainers(make_recipe())
    model, batch = trainer.model, next(iter(trainer.get_train_dataloader()))
    for parameter in xlora.trainable(model).values():
        torch.nn.init.normal_(parameter, std=0.3)
    found, calls, forward = [], [], trainer.compute_loss
    monkeypatch.setattr(trainer, "compute_loss", lambda *a, **k: calls.append(len(a[1]["labels"])) or forward(*a, **k))
    for tokens in (10**6, 3 * batch["input_ids"].shape[1], 1):
        monkeypatch.setattr(xlora, "TOKENS_AT_ONCE", tokens)
        loss = trainer.training_step(model, dict(batch), (batch["labels"] != -100).sum())
        found.append((loss, {name: p.grad for name, p in xlora.trainable(model).items()}))
        model.zero_grad()
    assert calls == [8, 3, 3, 2, *[1] * 8]
    for loss, gradients in found[1:]:
        torch.testing.assert_close((loss, gradients), found[0], atol=1e-4, rtol=1e-3)


def test_gate_and_every_adapter_learn_and_the_base_does_not(make_recipe, make_trainers):
    recipe = make_recipe(training={"epochs": 15, "learning_rate": 2e-2, "warmup": 0.0})
    trainer, _ = make_trainers(recipe)
    model = trainer.model
    learned = {name: p.detach().clone() for name, p in xlora.trainable(model).items()}
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if name not in learned}
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 45 and sum(losses[-3:]) < 0.5 * sum(losses[:3])
    now = dict(model.named_parameters())
    assert not [name for name in learned if torch.equal(learned[name], now[name])]
    assert not [name for name in frozen if not torch.equal(frozen[name], now[name])]
    assert {name for name, p in now.items() if p.requires_grad} == set(learned)  # PEFT switches gradients off and on
    for name in learned:
        if ".lora_B.0." in name:
            assert not torch.allclose(now[name], now[name.replace(".lora_B.0.", ".lora_B.1.")], atol=1e-4)
    logits(model.eval())
    assert model.base_model.get_latest_scalings().std(dim=(0, 1)).max() > 1e-3  # it tells tokens apart


def test_scores_are_the_same_again_and_in_any_batch(make_recipe):
    recipe = make_recipe()
    model = xlora.build(recipe, XLora()).eval()
    with torch.no_grad():
        for parameter in xlora.trainable(model).values():
            torch.nn.init.normal_(parameter, std=0.3)
    examples = encode(read_sources(recipe.data.train), load_tokenizer(recipe.base))
    first, again, apart = (score_plain(model, examples, tokens_per_batch=limit) for limit in (4096, 4096, 1))
    base = score_plain(load_base(recipe.base, "float32"), examples)
    for one, other, alone, plain in zip(*(s.choices["mixture"] for s in (first, again, apart, base)), strict=True):
        assert one.tolist() == other.tolist()
        assert one.tolist() == pytest.approx(alone.tolist(), abs=1e-3)
        assert one.tolist() != pytest.approx(plain.tolist(), abs=0.1)  # the adapters do act


# -- what is left of it ------------------------------------------------------------------------------------------------


def test_a_finished_training_is_loaded_and_any_other_is_done_anew(make_recipe, tmp_path):
    recipe = make_recipe()
    tokenizer, out = load_tokenizer(recipe.base), tmp_path / "xlora"
    model, record = xlora.trained(recipe, XLora(), tokenizer, out)
    assert sorted(path.name for path in out.iterdir()) == ["log.jsonl", "model.safetensors", "run.json"]
    assert (record["examples_seen"], record["steps"], record["domains"]) == (24, 3, list(FORMATS))
    assert record["trainable_parameters"] == sum(p.numel() for p in xlora.trainable(model).values())
    expected = logits(model)
    assert not torch.equal(expected, logits(load_base(recipe.base, "float32")))
    weights = out / "model.safetensors"
    written = weights.stat().st_mtime_ns
    again, same = xlora.trained(recipe, XLora(), tokenizer, out)
    assert torch.equal(logits(again), expected) and same == record and not again.training
    assert weights.stat().st_mtime_ns == written
    for damage in (lambda: (out / "run.json").unlink(), lambda: weights.write_bytes(b"half")):
        damage()
        anew, _ = xlora.trained(recipe, XLora(), tokenizer, out)
        assert torch.equal(logits(anew), expected) and weights.stat().st_mtime_ns != written
        assert len((out / "log.jsonl").read_text().splitlines()) == 4
    with pytest.raises(CheckpointError, match="does not fit"):
        xlora.load(xlora.build(make_recipe(model={"num_domains": 3}), XLora()), out)


def test_a_job_leaves_rows_like_those_of_other_methods(spec, tmp_path):
    rows, done = {}, {}
    for method in ("lora", "xlora"):
        folder = tmp_path / method
        folder.mkdir()
        (folder / job.SPEC).write_text(json.dumps(spec(method)))
        done[method] = job.run_job(folder)
        rows[method] = [json.loads(line) for line in (folder / job.ROWS).read_text().splitlines()]
    assert {row["module"] for row in rows["xlora"]} == {"mixture"} and len(rows["xlora"]) == 4
    learned = ("answers", "correct", "by_kind", "seconds", "trainable", "method", "job", "routes")
    for ours, theirs in zip(rows["lora"], rows["xlora"], strict=True):
        assert set(theirs) == set(ours) - {"routes"}
        assert {k: v for k, v in theirs.items() if k not in learned} == {
            k: v for k, v in ours.items() if k not in learned
        }
        assert theirs["n"] == 8 == sum(n for _, n in theirs["by_kind"].values())
    assert rows["xlora"][0]["trainable"] > 2 * rows["lora"][0]["trainable"]
    assert "peft" in done["xlora"]["versions"] and "peft" not in done["lora"]["versions"]


# -- recipes -----------------------------------------------------------------------------------------------------------


def test_settings_of_the_gate_are_part_of_its_job_and_of_no_other(spec):
    methods = {"lora": {"method": "lora"}, "xlora": {"kind": "xlora", "xlora": {"layerwise_scalings": True}}}
    assert spec()["xlora"] == XLora().model_dump() and spec()["recipe"]["method"] == "lora"
    assert spec(methods=methods)["xlora"] == {**XLora().model_dump(), "layerwise_scalings": True}
    assert "xlora" not in spec("lora") and spec("lora", methods=methods) == spec("lora")


def test_it_has_tries_of_its_own(spec):
    search = {"tries": 2, "seed": 9, "space": {"training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}}
    first = spec(search=search)
    assert (first["trial"], first["split"], first["kind"]) == (0, "val", "xlora")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            {"kind": "xlora", "model": {"router": "soft"}},
            r"model\.router means nothing to X-LoRA; it takes lora_alpha, ",
        ),
        ({"kind": "xlora", "shots": 2}, "shots are for kind: base"),
        ({"kind": "xlora", "xlora": {"depth": 2}}, "xlora.depth"),
        ({"xlora": {}}, "xlora is for kind: xlora"),
        (
            {"kind": "xlora", "training": {"compile": True}},
            r"method xlora on acre: training\.compile is not for X-LoRA",
        ),
        ({"kind": "xlora", "training": {"gradient_checkpointing": True}}, r"training\.gradient_checkpointing is not"),
        ({"kind": "xlora", "training": {"start_from": "x"}}, r"training\.start_from is not for X-LoRA"),
        ({"kind": "xlora", "training": {"stages": "two_stage"}}, "two_stage"),
        ({"kind": "xlora", "xlora": {"top_k_lora": 3}}, "top_k_lora is 3; there are 2 adapters"),
        ({"kind": "xlora", "model": {"num_domains": 0}}, "num_domains is 0; X-LoRA needs"),
    ],
    ids=["router", "shots", "typo", "kind", "compile", "checkpointing", "start", "stages", "top-k", "adapters"],
)
def test_what_it_cannot_be_given_is_named_before_anything_runs(spec, method, message):
    with pytest.raises(ValueError, match=message):
        spec(methods={"lora": {"method": "lora"}, "xlora": method})


def test_without_peft_it_is_said_what_to_install(make_recipe, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigurationError, match=r"^X-LoRA needs the package `peft`.*pip install 'iclm\[peft\]'$"):
        xlora.build(make_recipe(), XLora())
