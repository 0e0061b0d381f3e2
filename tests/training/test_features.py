"""Features of a router above the split: what the plain path reads, computed once, and found out when damaged or stale."""

import json
import shutil
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from iclm.data.collation import Branch, Pack, collate, make_pack
from iclm.data.loading import training_data
from iclm.errors import ConfigurationError
from iclm.model import ICLMForCausalLM, load_tokenizer
from iclm.training import features as of
from iclm.training.features import features_key, reads_above, with_features
from iclm.training.run import build_model, train
from iclm.training.trainer import ICLMTrainer

LAST = {"router_layer": -1, "mix": "low_rank"}
LAYERS = (3, -1)  # both above the split of the tiny models, which lies at 2 of 4


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """Where the features are kept."""
    monkeypatch.setenv("ICLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / of.FOLDER


@pytest.fixture
def packs(tiny_tokenizer, make_recipe):
    """24 training examples in 6 packs."""
    recipe = make_recipe()
    return training_data(recipe.data.train, tiny_tokenizer, max_tokens=None, pack=True)[0]


@pytest.fixture
def computed(monkeypatch):
    """The numbers of the packs of every batch that was computed."""
    found = []
    original = of._compute

    def record(model, packs, numbers, pad):
        found.append(list(numbers))
        return original(model, packs, numbers, pad)

    monkeypatch.setattr(of, "_compute", record)
    return found


def apart(packs):
    """The same examples, each in a sequence of its own."""
    return [make_pack([Branch(pack.prefix + b.tokens, b.labelled, b.domain)]) for pack in packs for b in pack.branches]


def rows(packs):
    """The features of all examples, in order."""
    return torch.cat([pack.features for pack in packs])


def same(one, two):
    return len(one) == len(two) and all(torch.equal(a.features, b.features) for a, b in zip(one, two, strict=True))


def held(path):
    """What a file holds; the order of its metadata is not always the same."""
    with safe_open(path, framework="pt") as file:
        return file.metadata(), file.get_tensor("features").tolist()


def file_in(folder):
    """The one file that is kept."""
    (path,) = folder.iterdir()
    return path


# -- what the features are ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "apart"])
def test_features_are_those_of_each_prompt_alone(make_iclm, architecture, packs, layer, packed):
    model = make_iclm(architecture, router_layer=layer)
    found = with_features(model, packs if packed else apart(packs), 0)
    assert [len(pack.features) for pack in found] == [len(pack.branches) for pack in found]
    prompts = [torch.tensor(pack.branches[0].tokens[: -pack.branches[0].labelled]) for pack in apart(packs)]
    alone = torch.cat([model.router_features(p[None], torch.ones_like(p)[None]) for p in prompts])
    torch.testing.assert_close(rows(found), alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "apart"])
@pytest.mark.parametrize("router", ["vq", "soft"])
def test_loss_routes_and_gradients_are_those_of_the_plain_path(
    make_iclm, architecture, packs, trainable, layer, packed, router
):
    packs = packs if packed else apart(packs)
    found = []
    for given in (packs, with_features(make_iclm(architecture, router_layer=layer), packs, 0)):
        model = make_iclm(architecture, router=router, router_layer=layer, num_domains=3, mi_queue=0).train()
        model.fit_router([collate(packs, 0)])
        batch = collate([given[number] for number in (4, 1, 5, 2)], 0)
        assert ("router_features" in batch) == (given is not packs)
        output = model(**batch)
        output.loss.backward()
        found.append((output, {name: p.grad for name, p in trainable(model).items() if p.grad is not None}))
    (plain, gradients), (cached, others) = found
    torch.testing.assert_close(cached.loss, plain.loss, rtol=0, atol=1e-5)
    assert torch.equal(cached.route, plain.route)
    torch.testing.assert_close(cached.decision.weights, plain.decision.weights, rtol=0, atol=1e-5)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_the_features_decide_and_the_base_is_not_read(make_iclm, packs, monkeypatch):
    model = make_iclm(router_layer=-1)
    batch = collate(with_features(model, packs, 0), 0)
    expected = model(**batch).route
    monkeypatch.setattr(ICLMForCausalLM, "_read", None)
    assert torch.equal(model(**batch).route, expected)
    turned = {**batch, "router_features": batch["router_features"].flip(0)}
    assert torch.equal(model(**turned).route, expected.flip(0))
    assert len(set(expected.flatten().tolist())) > 1, "a route that is everywhere the same shows nothing"


def test_a_router_at_the_split_takes_given_features_too(make_iclm, packs):
    model = make_iclm(num_domains=3)
    batch = collate(packs, 0)
    given = model.batch_features(batch)
    assert torch.equal(model(**batch).route, model(**batch, router_features=given).route)
    assert not torch.equal(model(**batch).route, model(**batch, router_features=-given).route)


@pytest.mark.parametrize("shape", [(23, 32), (24, 31), (24,), (6, 32)], ids=str)
def test_features_of_another_shape_are_refused(make_iclm, packs, shape):
    model, batch = make_iclm(router_layer=-1), collate(packs, 0)
    batch["router_features"] = torch.zeros(shape)
    for call in (lambda: model(**batch), lambda: model.fit_router([batch])):
        with pytest.raises(
            ConfigurationError, match=r"router_features is \[.*\]; for this batch it must be \[24, 32\]"
        ):
            call()


def test_features_for_a_router_by_token_are_refused(make_iclm, packs):
    model, batch = make_iclm(router_layer=-1, router_level="token"), collate(packs, 0)
    with pytest.raises(ConfigurationError, match="router_level 'token'"):
        model(**batch, router_features=torch.zeros(24, 32))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"router_layer": 1},
        {"router_layer": 0},
        {"router_layer": -1, "router": "oracle"},
        {"router_layer": -1, "router": "random"},
        {"router_layer": -1, "router": "fixed:1"},
        {"router_layer": -1, "router_level": "token"},
        {"method": "lora"},
    ],
    ids=str,
)
def test_where_nothing_is_read_above_the_split_nothing_is_computed(make_iclm, packs, folder, computed, settings):
    model = make_iclm(**settings, fit=False)
    found = with_features(model, packs, 0)
    assert not reads_above(model)
    assert all(one is other for one, other in zip(found, packs, strict=True))
    assert computed == [] and not folder.exists()


def test_a_batch_has_features_only_where_all_its_packs_have_them(make_iclm, packs):
    known = with_features(make_iclm(router_layer=-1), packs, 0)
    assert "router_features" not in collate([known[0], packs[1]], 0)
    assert torch.equal(
        collate([known[3], known[0]], 0)["router_features"], torch.cat([known[3].features, known[0].features])
    )


def test_features_do_not_make_a_pack_another_one(make_iclm, packs):
    assert with_features(make_iclm(router_layer=-1), packs, 0) == packs


def test_the_longest_pack_is_computed_first_and_every_pack_once(packs):
    lengths = [5000, 40, 3000, 9000, *[100] * 90]
    made = [Pack((), (Branch(tuple(range(length)), 1, 0),)) for length in lengths]
    batches = of._batches(made)
    assert batches[0] == [3]
    assert sorted(number for batch in batches for number in batch) == list(range(len(made)))
    assert batches[1] == [0]
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[number] for number in batch) <= of.TOKENS
    assert of._batches(made[:1]) == [[0]]


# -- the disk ----------------------------------------------------------------------------------------------------------


def test_a_warm_cache_gives_the_same_bits_and_computes_one_pack(make_iclm, packs, folder, computed, recwarn):
    cold = with_features(make_iclm(router_layer=-1), packs, 0)
    assert sorted(number for batch in computed for number in batch) == list(range(len(packs)))
    path = file_in(folder)
    before = path.stat().st_mtime_ns
    computed.clear()
    warm = with_features(make_iclm(router_layer=-1), packs, 0)
    assert [len(numbers) for numbers in computed] == [1]
    assert same(cold, warm)
    assert path.stat().st_mtime_ns == before
    assert not recwarn.list


def test_progress_is_shown_on_stderr_where_asked_for(make_iclm, packs, folder, capsys):
    for shown in (False, True):
        with_features(make_iclm(router_layer=-1), packs, 0, progress_bar=shown)
        out, err = capsys.readouterr()
        assert ("router features" in err) == shown and not out
        file_in(folder).unlink()


def test_the_file_is_safetensors_with_its_key_and_digest(make_iclm, packs, folder):
    model = make_iclm(router_layer=-1)
    found = with_features(model, packs, 0)
    path = file_in(folder)
    assert path.name == f"{features_key(model, packs)}.safetensors"
    assert torch.equal(load_file(path)["features"], rows(found))
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["key"] == path.stem


def other_text(packs):
    last = packs[-1].branches[-1]
    changed = replace(last, tokens=((last.tokens[0] + 1) % 500, *last.tokens[1:]))
    return [*packs[:-1], replace(packs[-1], branches=(*packs[-1].branches[:-1], changed))]


def other_prefix(packs):
    return [replace(packs[0], prefix=((packs[0].prefix[0] + 1) % 500, *packs[0].prefix[1:])), *packs[1:]]


def longer_prompt(packs):
    branch = packs[0].branches[0]
    shorter = replace(branch, labelled=branch.labelled - 1)
    return [replace(packs[0], branches=(shorter, *packs[0].branches[1:])), *packs[1:]]


def moved_boundary(packs):
    """The tokens of the first pack in the same order, the last of the prefix counted to the first branch."""
    pack = packs[0]
    first = replace(pack.branches[0], tokens=(pack.prefix[-1], *pack.branches[0].tokens))
    return [replace(pack, prefix=pack.prefix[:-1], branches=(first, *pack.branches[1:])), *packs[1:]]


OTHER_DATA = {
    "token": other_text,
    "prefix": other_prefix,
    "label": longer_prompt,
    "boundary": moved_boundary,
    "order": lambda packs: packs[::-1],
    "fewer": lambda packs: packs[:-1],
    "apart": apart,
}


@pytest.mark.parametrize("change", OTHER_DATA.values(), ids=OTHER_DATA)
def test_other_data_have_another_key(make_iclm, packs, change):
    model = make_iclm(router_layer=-1)
    assert features_key(model, change(packs)) != features_key(model, packs)


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [({"router_layer": 3}, "float32"), ({"router_layer": -1}, "bfloat16")],
    ids=["layer", "dtype"],
)
def test_another_layer_or_dtype_has_another_key(make_iclm, packs, settings, dtype):
    model, other = make_iclm(router_layer=-1), make_iclm(**settings, dtype=dtype)
    assert features_key(model, packs) != features_key(other, packs)


def test_another_base_has_another_key(make_iclm, packs):
    assert features_key(make_iclm("llama", router_layer=-1), packs) != features_key(
        make_iclm("qwen2", router_layer=-1), packs
    )


def test_compiled_layers_other_threads_and_another_torch_have_another_key(make_iclm, packs, monkeypatch):
    model = make_iclm(router_layer=-1)
    keys = [features_key(model, packs)]
    model.compiled = True
    keys.append(features_key(model, packs))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 97)
    keys.append(features_key(model, packs))
    monkeypatch.setattr(torch, "__version__", "0.0")
    keys.append(features_key(model, packs))
    assert len(set(keys)) == 4


@pytest.mark.parametrize(
    "settings",
    [
        {"split_layer": 1},
        {"router": "kmeans", "num_domains": 5},
        {"lora_rank": 4, "aggregator": "concat", "seed": 8},
    ],
    ids=str,
)
def test_what_the_base_does_not_see_shares_the_file(make_iclm, packs, folder, computed, settings):
    cold = with_features(make_iclm(router_layer=-1), packs, 0)
    computed.clear()
    changed = [replace(p, branches=tuple(replace(b, domain=b.domain + 1) for b in p.branches)) for p in packs]
    warm = with_features(make_iclm(**{"router_layer": -1, **settings}), changed, 0)
    assert [len(numbers) for numbers in computed] == [1]
    assert same(cold, warm) and file_in(folder)
    assert [b.domain for p in warm for b in p.branches] == [b.domain + 1 for p in packs for b in p.branches]


def truncate(path, _):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path, _):
    path.write_bytes(b"")


def garbage(path, _):
    path.write_bytes(b"\xff" * 4000)


def flip(path, _):
    data = bytearray(path.read_bytes())
    data[-5] ^= 0x10
    path.write_bytes(bytes(data))


def other_key(path, tensors):
    save_file(tensors, path, {"key": "0" * 64, "sha256": of._digest(tensors["features"])})


def no_metadata(path, tensors):
    save_file(tensors, path)


def other_name(path, tensors):
    features = tensors["features"]
    save_file({"other": features}, path, {"key": path.stem, "sha256": of._digest(features)})


def fewer(path, tensors):
    features = tensors["features"][:-1].clone()
    save_file({"features": features}, path, {"key": path.stem, "sha256": of._digest(features)})


def half(path, tensors):
    features = tensors["features"].half()
    save_file({"features": features}, path, {"key": path.stem, "sha256": of._digest(features)})


def not_a_number(path, tensors):
    features = tensors["features"].clone()
    features[7, 3] = float("nan")
    save_file({"features": features}, path, {"key": path.stem, "sha256": of._digest(features)})


DAMAGE = (truncate, empty, garbage, flip, other_key, no_metadata, other_name, fewer, half, not_a_number)


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_file_is_warned_of_and_made_anew(make_iclm, packs, folder, damage, recwarn):
    model = make_iclm(router_layer=-1)
    cold = with_features(model, packs, 0)
    path = file_in(folder)
    whole, data = held(path), path.read_bytes()
    damage(path, load_file(path))
    assert path.read_bytes() != data
    found = with_features(model, packs, 0)
    (warning,) = [str(w.message) for w in recwarn.list]
    assert str(path) in warning and "is damaged: " in warning and "written anew" in warning and "\n" not in warning
    assert same(cold, found)
    assert held(path) == whole
    recwarn.clear()
    with_features(model, packs, 0)
    assert not recwarn.list


def test_a_file_of_other_examples_under_this_name_is_noticed(make_iclm, packs, folder, recwarn):
    model = make_iclm(router_layer=-1)
    cold = with_features(model, packs, 0)
    path = file_in(folder)
    whole = held(path)
    changed = other_text(packs)
    with_features(model, changed, 0)
    shutil.copy(folder / f"{features_key(model, changed)}.safetensors", path)
    assert same(with_features(model, packs, 0), cold)
    assert held(path) == whole
    (warning,) = [str(w.message) for w in recwarn.list]
    assert str(path) in warning and "of other examples or another base" in warning


def test_a_base_that_changed_behind_its_fingerprint_is_noticed(make_iclm, packs, folder, recwarn):
    """A change below the rounding of the fingerprint, or of the base's configuration, is in no key."""
    model = make_iclm(router_layer=-1)
    with_features(model, packs, 0)
    path = file_in(folder)
    stale = held(path)
    with torch.no_grad():
        model.get_decoder().norm.weight.mul_(1 + 2e-4)
    found = with_features(model, packs, 0)
    (warning,) = [str(w.message) for w in recwarn.list]
    assert f"{path} is stale" in warning and "\n" not in warning
    assert held(path) != stale
    recwarn.clear()
    assert same(with_features(model, packs, 0), found)
    assert not recwarn.list


@pytest.mark.parametrize("hindrance", ["file for a folder", "folder for a file", "disk full"])
def test_where_nothing_can_be_written_it_goes_on_after_one_warning(
    make_iclm, packs, folder, monkeypatch, recwarn, hindrance
):
    model = make_iclm(router_layer=-1)
    expected = with_features(model, packs, 0)
    path = file_in(folder)
    path.unlink()
    if hindrance == "file for a folder":
        folder.rmdir()
        folder.write_text("")
    elif hindrance == "folder for a file":
        path.mkdir()
    else:

        def full(*args, **kwargs):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(of, "save", full)
    assert same(with_features(model, packs, 0), expected)
    (warning,) = [str(w.message) for w in recwarn.list]
    assert "not kept for the next training" in warning
    assert not any(p.is_file() for p in folder.parent.rglob("*") if p != folder)


def test_features_that_are_not_finite_are_an_error_and_are_not_kept(make_iclm, packs, folder):
    model = make_iclm(router_layer=-1)
    with torch.no_grad():
        model.get_decoder().norm.weight[3] = float("inf")
    with pytest.raises(ConfigurationError, match="not finite"):
        with_features(model, packs, 0)
    assert not folder.exists()


# -- training ----------------------------------------------------------------------------------------------------------


def log_of(out):
    """The log of a run without what depends on the clock."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "runtime" not in k and "per_second" not in k} for line in lines]


@pytest.fixture
def passes(monkeypatch):
    """How often the frozen base was read in passes of its own, and how often there was a loss."""
    count = Counter()
    read, loss = ICLMForCausalLM._read, ICLMTrainer.compute_loss

    def counted_read(self, *args):
        count["reads"] += 1
        return read(self, *args)

    def counted_loss(self, *args, **kwargs):
        count["steps"] += 1
        return loss(self, *args, **kwargs)

    monkeypatch.setattr(ICLMForCausalLM, "_read", counted_read)
    monkeypatch.setattr(ICLMTrainer, "compute_loss", counted_loss)
    return count


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("pack", [True, False], ids=["packed", "apart"])
@pytest.mark.parametrize("router", ["vq", "gumbel"])
def test_training_is_bitwise_the_same_cold_and_warm_and_reads_the_base_once(
    make_recipe, tmp_path, weights, assert_bitwise, passes, computed, folder, layer, pack, router
):
    model = {"router_layer": layer, "router": router, "num_domains": 3, "lora_dropout": 0.1}
    recipe = make_recipe(model=model, data={"pack": pack}, training={"epochs": 3, "learning_rate": 1e-2})
    counts = []
    for name in ("cold", "warm"):
        passes.clear()
        train(recipe, tmp_path / name, progress_bar=False)
        counts.append(dict(passes))
    cold, warm = counts
    assert cold["steps"] == warm["steps"] >= 9
    assert warm["reads"] == 1, "the longest pack, to see whether the file still holds"
    assert cold["reads"] == len(computed) - 1, "nothing else is read, for the router's start as in three epochs"
    *batches, again = computed
    assert sorted(number for batch in batches for number in batch) == list(range(6 if pack else 24))
    assert again == batches[0] and len(again) == 1
    assert_bitwise(weights(tmp_path / "cold"), weights(tmp_path / "warm"))
    assert log_of(tmp_path / "cold") == log_of(tmp_path / "warm")
    assert file_in(folder)


@pytest.mark.parametrize("router", ["vq", "topk"])
@pytest.mark.parametrize("active", [1, 2])
def test_training_with_the_cache_is_training_without_up_to_rounding(
    make_recipe, tmp_path, weights, folder, passes, router, active
):
    found = []
    for cached in (True, False):
        recipe = make_recipe(
            model={**LAST, "router": router, "num_domains": 3, "active_domains": active},
            training={"epochs": 2, "cache_features": cached},
        )
        out = tmp_path / str(cached)
        passes.clear()
        train(recipe, out, progress_bar=False)
        found.append((log_of(out), weights(out)))
        if not cached:
            assert passes["reads"] >= passes["steps"] + 1, "a pass in every step, and those of the router's start"
    (log, state), (plain_log, plain) = found
    assert [line.keys() for line in log] == [line.keys() for line in plain_log]
    for line, other in zip(log, plain_log, strict=True):
        for name in line:
            assert line[name] == pytest.approx(other[name], abs=2e-5), name
    for name, tensor in plain.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-4, atol=2e-5, msg=name)
    assert file_in(folder)


def test_without_the_switch_nothing_is_kept(make_recipe, tmp_path, folder):
    train(make_recipe(model=LAST, training={"cache_features": False}), tmp_path / "run", progress_bar=False)
    assert not folder.exists()


def test_a_router_at_the_split_trains_as_if_there_were_no_cache(
    make_recipe, tmp_path, weights, assert_bitwise, passes, folder
):
    counts = []
    for cached in (True, False):
        passes.clear()
        train(make_recipe(training={"cache_features": cached}), tmp_path / str(cached), progress_bar=False)
        counts.append(dict(passes))
    assert_bitwise(weights(tmp_path / "True"), weights(tmp_path / "False"))
    assert counts[0] == counts[1]
    assert not folder.exists()


@pytest.mark.parametrize("state", ["warm", "lost", "damaged"])
def test_a_resumed_training_ends_bitwise_where_an_uninterrupted_one_does(
    make_recipe, tmp_path, weights, assert_bitwise, folder, state
):
    recipe = make_recipe(
        model={**LAST, "lora_dropout": 0.1, "num_domains": 3},
        training={"epochs": 2, "save_steps": 2, "learning_rate": 1e-2},
    )
    train(recipe, tmp_path / "whole", progress_bar=False)
    steps = iter(range(1, 5))

    def stop(logs):
        if next(steps) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", progress_bar=False, on_log=stop)
    if state == "lost":
        shutil.rmtree(folder)
    elif state == "damaged":
        flip(file_in(folder), None)
    with pytest.warns(UserWarning, match="is damaged") if state == "damaged" else nullcontext():
        train(recipe, tmp_path / "run", progress_bar=False, resume=True)
    assert_bitwise(weights(tmp_path / "whole"), weights(tmp_path / "run"))


def test_both_of_two_stages_do_without_the_extra_pass(make_recipe, tmp_path, weights, assert_bitwise, passes):
    recipe = make_recipe(model=LAST, training={"stages": "two_stage", "invariant_epochs": 1, "epochs": 2})
    reads = []
    for name in ("cold", "warm"):
        passes.clear()
        train(recipe, tmp_path / name, progress_bar=False)
        reads.append(passes["reads"])
    assert reads == [2, 1]
    for part in (".", "stages/invariant"):
        assert_bitwise(weights(tmp_path / "cold" / part), weights(tmp_path / "warm" / part))


def test_the_trainer_needs_nothing_but_the_packs(make_recipe, make_trainer, passes):
    recipe = make_recipe(model=LAST)
    trainer = make_trainer(recipe)
    trainer.train_dataset = with_features(trainer.model, trainer.train_dataset, trainer.pad)
    passes.clear()
    trainer.train()
    assert passes == {"steps": 3}


def test_trained_adapters_change_nothing_of_what_the_router_reads(make_recipe, tmp_path, tiny_llama_folder):
    recipe = make_recipe(model=LAST, training={"learning_rate": 0.1})
    trained, _ = train(recipe, tmp_path / "run", progress_bar=False)
    tokenizer = load_tokenizer(tiny_llama_folder)
    packs = training_data(recipe.data.train, tokenizer, max_tokens=None, pack=True)[0]
    shutil.rmtree(tmp_path / "cache")
    fresh = with_features(build_model(recipe), packs, 0)
    shutil.rmtree(tmp_path / "cache")
    assert same(with_features(trained, packs, 0), fresh)
