"""Domain modules added, removed and renamed: what is not asked to change is bitwise the same."""

import copy

import pytest
import torch

from iclm.errors import ConfigurationError
from iclm.model import ICLMConfig, ICLMForCausalLM
from iclm.model.surgery import (
    add_module,
    banks,
    fresh_weights,
    remove_module,
    rename_module,
    share_routed_to,
    weights_of,
)

CODED = ("vq", "kmeans", "bisecting_kmeans", "gumbel", "topk", "soft")


@pytest.fixture
def features_of(random_prompts, padded):
    """Router features of random prompts."""
    return lambda model, seed: model.router_features(**padded(random_prompts(seed=seed)))


def kept(model):
    return {name: tensor.clone() for name, tensor in model.own_state_dict().items()}


def rows(tensor, before, after, chosen):
    """The chosen rows of a tensor along the dimension that differs between the two states; itself where none does."""
    along = [axis for axis in range(before.dim()) if before.shape[axis] != after.shape[axis]]
    return tensor.index_select(along[0], torch.tensor(chosen)) if along else tensor


def assert_kept(before, after, numbers):
    """What a model had before is bitwise there after; domain module i is then `numbers[i]`, None where it is gone."""
    left = [i for i, new in enumerate(numbers) if new is not None]
    for name, tensor in before.items():
        stem, separator, module = name.rpartition(".lora_")
        if separator:
            side, _, number = module.partition(".")
            new = 0 if number == "0" else numbers[int(number) - 1]
            if new is None:
                continue
            new = 0 if number == "0" else 1 + new
            assert torch.equal(after[f"{stem}.lora_{side}.{new}"], tensor), name
        else:
            old = rows(tensor, tensor, after[name], left)
            assert torch.equal(rows(after[name], tensor, after[name], [numbers[i] for i in left]), old), name


def routes(model, batch):
    extra = {"domain_ids": torch.tensor([0, 1, 1, 0])} if model.config.router == "oracle" else {}
    with torch.no_grad():
        return model(**batch, **extra)


# -- adding ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("router", [*CODED, "oracle", "fixed:1"])
def test_a_new_module_changes_no_other(make_iclm, features_of, router):
    model = make_iclm(num_domains=3, router=router)
    before = kept(model)
    features = features_of(model, 7) if router in CODED else None
    assert add_module(model, "new", features=features) == 3
    assert_kept(before, kept(model), [0, 1, 2])
    assert model.config.names == ["domain_0", "domain_1", "domain_2", "new"]
    assert model.config.module_names[-1] == "domain_3"


def test_a_new_module_is_the_base_until_it_is_trained(make_iclm, architecture, features_of, random_prompts, padded):
    model, base = make_iclm(architecture), make_iclm(architecture, fresh=True, fit=False)
    add_module(model, "new", features=features_of(model, 7))
    batch = padded(random_prompts())
    with torch.no_grad():
        fresh, wanted = model(**batch, module="domain_2").logits, base(**batch, module="invariant").logits
    real = batch["attention_mask"].bool()
    assert torch.allclose(fresh[real], wanted[real], atol=1e-5)


def test_given_weights_are_those_of_the_module(make_iclm, features_of, random_prompts, padded):
    model = make_iclm()
    copied = {name: (a.clone(), b.clone()) for name, (a, b) in weights_of(model, 2).items()}
    add_module(model, "twin", weights=copied, features=features_of(model, 7))
    batch = padded(random_prompts())
    with torch.no_grad():
        assert torch.equal(model(**batch, module="domain_2").logits, model(**batch, module="domain_1").logits)
    assert not torch.equal(model(**batch, module="domain_2").logits, model(**batch, module="domain_0").logits)


@pytest.mark.parametrize("router", ["vq", "kmeans", "bisecting_kmeans", "topk", "gumbel"])
def test_prompts_go_to_the_nearest_code_and_the_others_are_answered_as_before(
    make_iclm, features_of, random_prompts, padded, router
):
    model = make_iclm(num_domains=2, router=router)
    batch = padded(random_prompts((5, 9, 3, 12, 7, 8)))
    before = routes(model, batch)
    one = model.router_features(batch["input_ids"][:1], batch["attention_mask"][:1])
    number = add_module(model, "new", features=one)
    assert torch.allclose(model.router.codes[-1], model.router.project(one)[0])
    after = routes(model, batch)
    assert after.route[0, 0] == number and float(after.decision.error[0]) < 1e-10
    assert share_routed_to(model, number, one) == 1.0
    same = (after.route == before.route)[:, 0]
    assert same.any() and (after.route[~same] == number).all()
    real = batch["attention_mask"].bool() & same[:, None]
    assert torch.allclose(after.logits[real], before.logits[real], atol=1e-6)


def test_the_code_is_the_mean_of_the_features_and_counts_as_many_examples(make_iclm, features_of):
    model = make_iclm(num_domains=2)
    features = features_of(model, 7)
    add_module(model, "new", features=features)
    codebook = model.router.quantiser._codebook
    wanted = model.router.project(features).mean(0)
    assert torch.allclose(model.router.codes[2], wanted, atol=1e-6)
    assert codebook.cluster_size[0, 2] == len(features)
    assert torch.allclose(codebook.embed_avg[0, 2], wanted * len(features), atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"router": "vq", "num_domains": 2},
        {"router": "vq", "num_domains": 10},
        {"router": "kmeans", "num_domains": 2, "active_domains": 2, "mix": "low_rank"},
        {"router": "soft", "num_domains": 2},
        {"router": "topk", "num_domains": 2, "router_level": "token"},
        {"router": "oracle", "num_domains": 2, "ablation": "no_invariant"},
    ],
    ids=lambda s: "-".join(map(str, s.values())),
)
def test_a_changed_model_is_saved_and_loaded_like_any_other(
    make_iclm, base_folders, features_of, random_prompts, padded, tmp_path, settings
):
    model = make_iclm(**settings)
    features = features_of(model, 7) if settings["router"] != "oracle" else None
    add_module(model, "new", features=features)
    remove_module(model, 0, with_code=True)
    model.save_pretrained(tmp_path)
    loaded = ICLMForCausalLM.from_pretrained(tmp_path, base=base_folders["llama"], dtype="float32")
    assert list(loaded.own_state_dict()) == list(model.own_state_dict())
    assert [name for name, _ in loaded.named_parameters()] == [name for name, _ in model.named_parameters()]
    batch = padded(random_prompts())
    one, two = routes(model, batch), routes(loaded, batch)
    assert torch.equal(one.logits, two.logits) and torch.equal(one.route, two.route)
    assert loaded.config.names == model.config.names and loaded.config.names[-1] == "new"


def test_a_step_of_the_new_module_leaves_the_others_alone(make_iclm, features_of, labelled, trainable, parameters_of):
    model = make_iclm(num_domains=2)
    add_module(model, "new", features=features_of(model, 7))
    before = [copy.deepcopy(parameters_of(model, m)) for m in range(4)]
    model.train()
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=0.01)
    model(**labelled(), route=torch.full((4,), 2)).loss.backward()
    optimizer.step()
    for m, wanted in enumerate(before):
        same = [torch.equal(p, wanted[name]) for name, p in parameters_of(model, m).items()]
        assert all(same) if m in (1, 2) else not all(same)


def test_a_module_is_added_before_the_router_is_fitted(make_iclm, random_prompts, padded):
    model = make_iclm(num_domains=2, fit=False)
    add_module(model, "new")
    model.fit_router([padded(random_prompts([3 + n % 10 for n in range(40)], seed=101))])
    assert model.router.codes.shape[0] == 3
    lengths = [3 + n % 10 for n in range(40)]
    assert routes(model, padded(random_prompts(lengths, seed=101))).route.unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("settings", "arguments", "words"),
    [
        ({"method": "lora"}, {}, "plain LoRA"),
        ({"ablation": "no_domain"}, {}, "no_domain"),
        ({"router": "random"}, {}, "draws among all"),
        ({"router": "vq"}, {"features": None}, "--data"),
        ({"router": "oracle"}, {"features": torch.zeros(1, 32)}, "no codes"),
        ({"router": "vq"}, {"features": torch.zeros(0, 32)}, r"\[0, 32\]"),
        ({"router": "vq"}, {"features": torch.zeros(2, 31)}, r"\[2, 31\]"),
        ({"router": "vq"}, {"features": torch.full((2, 32), torch.nan)}, "finite"),
        ({"router": "oracle"}, {"name": "invariant"}, "another module"),
        ({"router": "oracle"}, {"name": "domain_0"}, "another module"),
        ({"router": "oracle"}, {"name": ""}, "one line"),
        ({"router": "oracle"}, {"name": "a\nb"}, "one line"),
        ({"router": "oracle"}, {"weights": {}}, "lack"),
    ],
    ids=str,
)
def test_what_cannot_be_added_is_refused_and_changes_nothing(make_iclm, settings, arguments, words):
    model = make_iclm(**settings)
    before, config = kept(model), model.config.to_dict()
    with pytest.raises(ConfigurationError, match=words) as caught:
        add_module(model, **{"name": "new", **arguments})
    assert "\n" not in str(caught.value)
    after = kept(model)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert model.config.to_dict() == config


@pytest.mark.parametrize("what", ["shape", "layer", "number"])
def test_weights_that_do_not_fit_are_refused_with_the_layer(make_iclm, what):
    model = make_iclm(router="oracle")
    weights = fresh_weights(model, 0)
    name = next(iter(weights))
    a, b = weights.pop(name)
    if what == "shape":
        weights[name] = (a[:1], b)
    elif what == "number":
        weights[name] = (a, torch.full_like(b, torch.inf))
    else:
        weights["elsewhere"] = (a, b)
    with pytest.raises(ConfigurationError, match="elsewhere" if what == "layer" else name.replace(".", r"\.")):
        add_module(model, "new", weights=weights)
    assert model.config.num_domains == 2 and len(banks(model)[name].lora_A) == 3


# -- removing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("router", [*CODED, "oracle", "fixed:2"])
@pytest.mark.parametrize("number", [0, 1])
def test_removing_a_module_changes_no_other(make_iclm, router, number):
    model = make_iclm(num_domains=3, router=router)
    before = kept(model)
    remove_module(model, number, with_code=router in CODED)
    left = [i for i in range(3) if i != number]
    assert_kept(before, kept(model), [left.index(i) if i in left else None for i in range(3)])
    assert model.config.num_domains == 2 and model.config.module_names[-1] == "domain_1"


@pytest.mark.parametrize("router", ["vq", "kmeans", "topk"])
def test_routes_to_the_modules_that_are_left_stay(make_iclm, random_prompts, padded, router):
    model = make_iclm(num_domains=3, router=router)
    batch = padded(random_prompts([3 + n % 10 for n in range(24)], seed=3))
    before = routes(model, batch)
    number = int(before.route[0, 0])
    remove_module(model, number, with_code=True)
    after = routes(model, batch)
    stays = before.route[:, 0] != number
    assert stays.any() and not stays.all()
    assert torch.equal(after.route[stays], (before.route - (before.route > number).long())[stays])
    real = batch["attention_mask"].bool() & stays[:, None]
    assert torch.allclose(after.logits[real], before.logits[real], atol=1e-6)


@pytest.mark.parametrize("router", [*CODED, "oracle", "fixed:0"])
def test_adding_and_removing_is_nothing_at_all(make_iclm, features_of, router):
    model = make_iclm(num_domains=3, router=router)
    before = kept(model)
    add_module(model, "new", features=features_of(model, 7) if router in CODED else None)
    remove_module(model, 3, with_code=True)
    after = kept(model)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_fixed_router_goes_on_to_its_module(make_iclm, random_prompts, padded):
    model = make_iclm(num_domains=3, router="fixed:2")
    batch = padded(random_prompts())
    before = routes(model, batch)
    remove_module(model, 0)
    after = routes(model, batch)
    assert model.config.router == "fixed:1" and (after.route == 1).all()
    assert torch.equal(after.logits, before.logits)


@pytest.mark.parametrize(
    ("settings", "number", "words"),
    [
        ({"num_domains": 2}, 1, "a code of the vq router still points to it"),
        ({"num_domains": 2, "router": "kmeans"}, 0, "--with-code"),
        ({"num_domains": 2, "router": "soft"}, 0, "--with-code"),
        ({"num_domains": 2, "router": "oracle"}, 2, "0 to 1"),
        ({"num_domains": 2, "router": "oracle"}, -1, "0 to 1"),
        ({"num_domains": 1, "router": "oracle"}, 0, "last"),
        ({"num_domains": 2, "router": "fixed:1"}, 1, "fixed:1"),
        ({"num_domains": 2, "router": "random"}, 1, "draws among all"),
        ({"num_domains": 2, "active_domains": 2}, 1, "activates 2"),
        ({"method": "lora"}, 0, "plain LoRA"),
    ],
    ids=str,
)
def test_a_module_that_is_needed_is_not_removed(make_iclm, settings, number, words):
    model = make_iclm(**settings)
    before = kept(model)
    with pytest.raises(ConfigurationError, match=words) as caught:
        remove_module(model, number)
    assert "\n" not in str(caught.value)
    after = kept(model)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


# -- names -------------------------------------------------------------------------------------------------------------


def test_names_move_with_their_modules(make_iclm):
    model = make_iclm(num_domains=4, router="oracle")
    rename_module(model.config, 0, "first")
    rename_module(model.config, 3, "last")
    remove_module(model, 1)
    assert model.config.names == ["first", "domain_1", "last"]


@pytest.mark.parametrize("name", ["mixture", "domain_1", "route_0", "b", " x", "", "a\tb", 3])
def test_a_name_that_means_something_else_is_refused(name):
    config = ICLMConfig(num_domains=2, domain_names=["a", "b"])
    with pytest.raises(ConfigurationError):
        rename_module(config, 0, name)
    assert config.names == ["a", "b"]


@pytest.mark.parametrize("names", [["a"], ["a", "a"], "ab", ["a", "invariant"], ["a", None]], ids=str)
def test_a_configuration_with_such_names_is_refused(names):
    with pytest.raises(ConfigurationError, match="domain_names"):
        ICLMConfig(num_domains=2, domain_names=names)


@pytest.mark.parametrize(
    ("settings", "domains", "before", "names"),
    [
        ({"num_domains": 2}, {"a": 0, "b": 1}, [], ["a", "b"]),
        ({"num_domains": 3}, {"a": 0, "b": 1}, ["domain_0", "y", "z"], ["a", "y", "z"]),
        ({"num_domains": 3}, {"a": 0, "b": 1}, ["domain_0", "domain_1", "a"], ["domain_0", "b", "a"]),
        ({"num_domains": 2}, {"a": 0, "b": 1, "c": 2}, [], ["domain_0", "domain_1"]),
        ({"num_domains": 2, "router": "random"}, {"a": 0, "b": 1}, [], ["domain_0", "domain_1"]),
        ({"num_domains": 2, "router": "oracle"}, {"domain_1": 0, "mixture": 1}, [], ["domain_0", "domain_1"]),
    ],
    ids=str,
)
def test_modules_are_called_by_the_domains_that_are_theirs(settings, domains, before, names):
    assert ICLMConfig(**settings).names_after(domains, before) == names
