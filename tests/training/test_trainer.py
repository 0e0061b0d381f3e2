"""ICLMTrainer: what is trained on in which order, the loss, and the ways to spread a step that must change nothing."""

import itertools
import math
import shutil
import warnings

import pytest
import torch
import transformers

from iclm.data.collation import recut
from iclm.errors import CheckpointError, ConfigurationError
from iclm.training.trainer import ICLMTrainer, router_batches

# The mutual information is not linear in the examples, so a batch in two halves has another one; and codes follow each
# batch. Without both, how a step is cut into batches changes nothing.
LINEAR = {"mi_weight": 0.0, "router": "oracle"}


@pytest.fixture
def seen(monkeypatch):
    """The batches that training computes a loss on."""
    batches = []
    original = ICLMTrainer.compute_loss

    def record(self, model, inputs, *args, **kwargs):
        batches.append(inputs["input_ids"].tolist())
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(ICLMTrainer, "compute_loss", record)
    return batches


def own(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.own_state_dict().items()}


def assert_close(one, two, tolerance):
    assert one.keys() == two.keys()
    far = {n: float((one[n].double() - two[n].double()).abs().max()) for n in one if one[n].numel()}
    worst = max(far, key=far.get)
    assert far[worst] <= tolerance, f"{worst} differs by {far[worst]}"


def lines(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def test_iclm_and_lora_see_the_same_batches_in_the_same_order(make_recipe, make_trainer, seen):
    found = {}
    for method in ("iclm", "lora"):
        seen.clear()
        make_trainer(make_recipe(method=method, training={"epochs": 2})).train()
        found[method] = list(seen)
    assert found["iclm"] == found["lora"]
    assert len(found["iclm"]) == 6


def test_every_epoch_has_all_examples_in_an_order_of_its_own(make_recipe, make_trainer, seen):
    trainer = make_trainer(make_recipe(method="lora", training={"epochs": 2, "batch_size": 4}, data={"pack": False}))
    trainer.train()
    rows = [[token for token in row if token] for batch in seen for row in batch]
    half = len(rows) // 2
    assert half == len(trainer.train_dataset) == 24
    assert sorted(rows[:half]) == sorted(rows[half:]), "both epochs have the same examples"
    assert rows[:half] != rows[half:], "the second epoch repeats the order of the first"


def test_a_batch_holds_at_most_batch_size_examples(make_recipe, make_trainer):
    for pack in (True, False):
        trainer = make_trainer(make_recipe(data={"pack": pack}, training={"batch_size": 8}))
        sizes = [
            sum(len(trainer.train_dataset[number].branches) for number in numbers)
            for numbers in trainer.batches(trainer.train_dataset)
        ]
        assert max(sizes) <= 8 and sum(sizes) == 24


@pytest.mark.parametrize("method", ["iclm", "lora"])
def test_the_loss_falls_when_one_problem_is_learned_by_heart(make_recipe, make_trainer, method):
    one = {"acre": "IID", "problems": 1, "format": "symbolic"}
    recipe = make_recipe(
        method=method,
        data={"train": [{**one, "domain": "a"}]},
        model={"num_domains": 1, "target_modules": "all-linear", "lora_rank": 8, "split_layer": 0},
        training={"epochs": 20, "learning_rate": 0.02, "warmup": 0.0},
    )
    trainer = make_trainer(recipe)
    trainer.train()
    loss = lines(trainer, "loss_lm")
    assert len(loss) == 20
    assert loss[-1] < 0.6 * loss[0]


def test_the_log_holds_every_term_of_the_loss(make_recipe, make_trainer):
    trainer = make_trainer(make_recipe())
    trainer.train()
    config = trainer.model.config
    weights = {
        "lm": 1.0,
        "invariant": config.invariant_weight,
        "domain": config.domain_weight,
        "mi": config.mi_weight,
        "router": config.router_weight,
    }
    first = trainer.state.log_history[0]
    assert first["loss"] == pytest.approx(sum(w * first[f"loss_{name}"] for name, w in weights.items()), abs=1e-5)


def test_the_log_of_lora_holds_its_one_term(make_recipe, make_trainer):
    trainer = make_trainer(make_recipe(method="lora"))
    trainer.train()
    first = trainer.state.log_history[0]
    assert {name for name in first if name.startswith("loss")} == {"loss", "loss_lm"}
    assert first["loss"] == pytest.approx(first["loss_lm"], abs=1e-5)


def test_the_logged_terms_do_not_depend_on_gradient_accumulation(make_recipe, make_trainer):
    found = []
    for batch_size, accumulation in ((8, 1), (4, 2)):
        training = {"batch_size": batch_size, "gradient_accumulation": accumulation, "warmup": 0.0}
        data = {"train": [{"acre": "IID", "problems": 2, "format": "symbolic"}]}
        trainer = make_trainer(make_recipe(model=LINEAR, data=data, training=training))
        trainer.train()
        found.append(trainer.state.log_history[0])
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], abs=1e-5)
    for name in ("loss_lm", "loss_invariant", "loss_domain"):
        assert found[0][name] == pytest.approx(found[1][name], abs=1e-5), name


def test_evaluate_gives_the_loss_of_the_packs_and_leaves_the_model_as_it_is(make_recipe, make_trainer, assert_bitwise):
    trainer = make_trainer(make_recipe())
    trainer.train()
    before = own(trainer)
    trainer.eval_dataset = trainer.train_dataset
    one, two = trainer.evaluate(), trainer.evaluate(trainer.train_dataset)
    assert math.isfinite(one["eval_loss"])
    assert one["eval_loss"] == two["eval_loss"]
    assert_bitwise(before, own(trainer))


def test_a_batch_is_evaluated_alone_whatever_other_processes_have(make_recipe, make_trainer):
    trainer = make_trainer(make_recipe())
    trainer.fit_router()
    trainer.model.eval()
    batch = next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))
    items = (batch["labels"][:, 1:] != -100).sum()
    with torch.no_grad():
        alone = trainer.model(**batch).loss
        assert torch.equal(trainer.compute_loss(trainer.model, batch, num_items_in_batch=2 * items), alone)


def test_evaluate_without_packs_is_refused(make_recipe, make_trainer):
    with pytest.raises(ValueError, match="no packs"):
        make_trainer(make_recipe()).evaluate()


def test_evaluating_between_steps_does_not_change_the_training(make_recipe, make_trainer, assert_bitwise):
    states = []
    for strategy in ("no", "steps"):
        trainer = make_trainer(make_recipe(training={"epochs": 2}))
        trainer.args.eval_strategy, trainer.args.eval_steps = strategy, 2
        trainer.eval_dataset = trainer.train_dataset
        trainer.train()
        states.append(own(trainer))
    assert_bitwise(*states)


def test_two_batches_of_four_accumulated_equal_one_of_eight(make_recipe, make_trainer):
    states = []
    for batch_size, accumulation in ((8, 1), (4, 2)):
        training = {
            "batch_size": batch_size,
            "gradient_accumulation": accumulation,
            "warmup": 0.0,
            "epochs": 3,
            "learning_rate": 1e-2,
        }
        # one problem in each domain: a step sees both, whichever way it is cut
        one = {"acre": "IID", "problems": 1, "format": "symbolic"}
        data = {"train": [{**one, "domain": "a"}, {**one, "domain": "b", "seed": 5}], "pack": False}
        trainer = make_trainer(make_recipe(model={**LINEAR, "mix": "low_rank"}, data=data, training=training))
        assert trainer.train().global_step == 3
        states.append(own(trainer))
    assert_close(*states, 1e-5)


def test_gradient_checkpointing_changes_nothing(make_recipe, make_trainer):
    states = []
    for checkpointing in (False, True):
        recipe = make_recipe(model={"lora_dropout": 0.2}, training={"gradient_checkpointing": checkpointing})
        trainer = make_trainer(recipe)
        trainer.train()
        assert trainer.model.is_gradient_checkpointing == checkpointing
        states.append(own(trainer))
    assert_close(*states, 1e-6)


@pytest.mark.parametrize("router", ["vq", "oracle"])
def test_packing_does_not_change_the_loss_of_the_first_batch(make_recipe, make_trainer, router):
    found = []
    for pack in (True, False):
        recipe = make_recipe(model={"router": router}, data={"pack": pack}, training={"batch_size": 24})
        trainer = make_trainer(recipe)
        assert len(trainer.train_dataset) == (6 if pack else 24)
        trainer.train()
        found.append(trainer.state.log_history[0])
    for name in ("loss_lm", "loss_invariant", "loss_domain", "loss_mi", *(["loss_router"] if router == "vq" else [])):
        assert found[0][name] == pytest.approx(found[1][name], abs=1e-5), name


def test_training_on_one_domain_leaves_the_other_module_bitwise_unchanged(make_recipe, make_trainer, parameters_of):
    recipe = make_recipe(
        model={"router": "oracle"},
        data={"train": [{"acre": "IID", "problems": 4, "format": "symbolic"}]},
        training={"weight_decay": 0.1, "epochs": 2, "learning_rate": 1e-2, "gradient_accumulation": 2, "batch_size": 4},
    )
    trainer = make_trainer(recipe)
    before = own(trainer)
    trainer.train()
    idle, busy = parameters_of(trainer.model, 2), parameters_of(trainer.model, 1)
    assert all(torch.equal(before[name], parameter) for name, parameter in idle.items())
    assert not any(torch.equal(before[name], parameter) for name, parameter in busy.items())
    assert not any(parameter in trainer.optimizer.state for parameter in idle.values())


def test_the_router_is_fitted_before_the_first_step(make_recipe, make_trainer):
    trainer = make_trainer(make_recipe(training={"router_examples": 9}))
    assert not bool(trainer.model.router.fitted)
    assert trainer.fit_router() == 16, "whole batches of 8 until there are 9"
    assert bool(trainer.model.router.fitted)
    fresh = make_trainer(make_recipe())
    fresh.train()
    assert bool(fresh.model.router.fitted)


def test_the_router_is_started_from_every_domain(make_recipe, make_trainer):
    """Two batches of eight are of one domain each; the second is asked for only where the first lacks a domain."""
    trainer = make_trainer(make_recipe(training={"router_examples": 1}))
    packs, drawn = trainer.train_dataset, {}
    for examples in (1, 24):
        batches = list(router_batches(packs, 8, trainer.args.seed, 0, examples))
        drawn[examples] = [batch["domain_ids"].tolist() for batch in batches]
    assert {number for batch in drawn[1] for number in batch} == {0, 1}
    assert drawn[1][0] == drawn[24][0] and len(drawn[1]) == 2 < len(drawn[24])
    alone = [pack for pack in packs if pack.branches[0].domain == 0]
    assert len(list(router_batches(alone, 8, trainer.args.seed, 0, 1))) == 1


def test_a_router_that_learns_nothing_needs_no_start(make_recipe, make_trainer):
    assert make_trainer(make_recipe(model={"router": "oracle"})).fit_router() == 0
    assert make_trainer(make_recipe(method="lora")).fit_router() == 0


def test_the_aggregator_has_a_learning_rate_of_its_own(make_recipe, make_trainer):
    recipe = make_recipe(
        model={"mix": "low_rank"},
        training={"learning_rate": 0.5, "aggregator_learning_rate": 0.25, "weight_decay": 0.1},
    )
    trainer = make_trainer(recipe)
    groups = trainer.create_optimizer().param_groups
    assert [group["lr"] for group in groups] == [0.5, 0.25]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.1]
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    assert all("lora_" in names[id(p)] for p in groups[0]["params"])
    assert all(names[id(p)].startswith("aggregator.") for p in groups[1]["params"])
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in trainer.model.parameters())


def test_a_recipe_reaches_the_trainer_arguments(make_recipe, tmp_path):
    from iclm.training.run import training_arguments

    section = {
        "epochs": 3,
        "batch_size": 5,
        "auto_find_batch_size": True,
        "gradient_accumulation": 2,
        "learning_rate": 0.125,
        "schedule": "linear",
        "warmup": 0.25,
        "weight_decay": 0.5,
        "max_grad_norm": 0.75,
        "save_steps": 7,
        "logging_steps": 4,
    }
    arguments = training_arguments(make_recipe(training=section, seed=9), tmp_path)
    assert (arguments.num_train_epochs, arguments.per_device_train_batch_size) == (3, 5)
    assert arguments.auto_find_batch_size
    assert (arguments.gradient_accumulation_steps, arguments.learning_rate) == (2, 0.125)
    assert (arguments.lr_scheduler_type, arguments.weight_decay, arguments.max_grad_norm) == ("linear", 0.5, 0.75)
    assert (arguments.save_steps, arguments.logging_steps) == (7, 4)
    assert arguments.get_warmup_steps(100) == 25
    assert (arguments.seed, arguments.data_seed) == (9, 9)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_trainer_arguments_use_no_name_that_is_deprecated(make_recipe, tmp_path, checkpointing):
    from iclm.training.run import training_arguments

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        arguments = training_arguments(make_recipe(training={"gradient_checkpointing": checkpointing}), tmp_path)
    assert arguments.gradient_checkpointing is checkpointing


def memory_for(monkeypatch, trainer_or_model, rows, after=0):
    """Let a forward pass of more than so many sequences run out of memory, the first `after` of them excepted."""
    kind = type(getattr(trainer_or_model, "model", trainer_or_model))
    forward, passes = kind.forward, itertools.count(1)

    def small(self, input_ids, **kwargs):
        if len(input_ids) > rows and next(passes) > after:
            raise RuntimeError("CUDA out of memory. Tried to allocate more than there is")
        return forward(self, input_ids, **kwargs)

    monkeypatch.setattr(kind, "forward", small)


def test_a_second_training_is_logged_as_the_first(make_recipe, make_trainer):
    trainer = make_trainer(make_recipe(training={"learning_rate": 1e-9, "aggregator_learning_rate": 1e-9}))
    trainer.train()
    first = lines(trainer, "loss_lm")
    trainer._terms["lm"].append(torch.tensor(1e6))  # what an interrupted training leaves
    trainer.train()
    assert lines(trainer, "loss_lm") == pytest.approx(first, abs=1e-4) and len(first) == 3


def test_resuming_takes_the_last_checkpoint_where_none_is_named(make_recipe, make_trainer, seen, assert_bitwise):
    recipe = make_recipe(training={"save_steps": 1, "epochs": 2})
    whole = make_trainer(recipe)
    with pytest.raises(CheckpointError, match="holds no checkpoint to resume from"):
        whole.train(resume_from_checkpoint=True)
    whole.train()
    shutil.rmtree(f"{whole.args.output_dir}/checkpoint-6")
    seen.clear()
    resumed = make_trainer(recipe)
    resumed.train(resume_from_checkpoint=True)
    assert len(seen) == 1, "the last of six steps"
    assert_bitwise(own(resumed), own(whole))


def test_a_loss_of_ones_own_is_refused(make_recipe, make_trainer):
    trainer = make_trainer(make_recipe())
    with pytest.raises(ConfigurationError, match="compute_loss_func is given; the losses of an ICLM are its own"):
        ICLMTrainer(trainer.model, trainer.args, trainer.train_dataset, compute_loss_func=lambda *args: 0)


def test_rows_in_place_of_packs_are_refused_with_what_is_for_them(make_recipe, make_trainer):
    trainer = make_trainer(make_recipe())
    rows = [{"input_ids": [1, 2], "labels": [1, 2]}]
    for name, arguments in (("train_dataset", (rows, None)), ("eval_dataset", (trainer.train_dataset, rows))):
        with pytest.raises(ConfigurationError, match=f"{name} holds dict, not packs .* transformers' own Trainer"):
            ICLMTrainer(trainer.model, trainer.args, *arguments)
    with pytest.raises(ConfigurationError, match="data_collator is given"):
        ICLMTrainer(trainer.model, trainer.args, trainer.train_dataset, data_collator=list)


@pytest.mark.parametrize("kind", ["fsdp", "deepspeed"])
def test_sharded_parameters_are_refused(make_recipe, make_trainer, monkeypatch, kind):
    made = transformers.Trainer.create_accelerator_and_postprocess

    def create(trainer):
        made(trainer)
        setattr(trainer, f"is_{kind}_enabled", True)

    monkeypatch.setattr(transformers.Trainer, "create_accelerator_and_postprocess", create)
    with pytest.raises(ConfigurationError, match="FSDP and DeepSpeed shard parameters"):
        make_trainer(make_recipe())


def test_workers_and_the_size_of_evaluation_batches_are_those_asked_for(
    make_recipe, make_trainer, seen, assert_bitwise
):
    plain, trainer = (make_trainer(make_recipe(data={"pack": False})) for _ in range(2))
    trainer.args.dataloader_num_workers, trainer.args.per_device_eval_batch_size = 2, 3
    assert trainer.get_train_dataloader().num_workers == 2
    for each in (plain, trainer):
        each.train()
    assert_bitwise(own(trainer), own(plain))
    seen.clear()
    trainer.evaluate(trainer.train_dataset)
    assert {len(batch) for batch in seen} == {3}


def test_packs_are_cut_where_memory_runs_out(make_recipe, make_trainer, monkeypatch, assert_bitwise):
    """A pack of one problem holds four branches, which only batches of two or fewer have room for."""
    smaller = make_trainer(make_recipe(method="lora", training={"batch_size": 2}))
    smaller.train_dataset = recut(smaller.train_dataset, 2)
    smaller.train()
    trainer = make_trainer(make_recipe(method="lora", training={"batch_size": 8, "auto_find_batch_size": True}))
    forward = type(trainer.model).forward

    def small(self, input_ids, branch_ids=None, **kwargs):
        if branch_ids is not None and sum(int(row.max()) for row in branch_ids) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate more than there is")
        return forward(self, input_ids, branch_ids=branch_ids, **kwargs)

    monkeypatch.setattr(type(trainer.model), "forward", small)
    trainer.train()
    assert trainer.state.global_step == 12 == smaller.state.global_step
    assert_bitwise(own(trainer), own(smaller))


def test_memory_that_runs_out_with_single_examples_is_an_error_of_one_line(make_recipe, make_trainer, monkeypatch):
    trainer = make_trainer(make_recipe(method="lora", training={"batch_size": 2, "auto_find_batch_size": True}))
    memory_for(monkeypatch, trainer, 0)
    with pytest.raises(
        ConfigurationError, match="memory runs out with batches of one example too; give shorter"
    ) as caught:
        trainer.train()
    assert "\n" not in str(caught.value)


def test_where_memory_runs_out_training_starts_again_with_smaller_batches(make_recipe, make_trainer, seen, monkeypatch):
    recipe = make_recipe(method="lora", training={"batch_size": 8, "auto_find_batch_size": True}, data={"pack": False})
    trainer = make_trainer(recipe)
    memory_for(monkeypatch, trainer, 4)
    trainer.train()
    sizes = [len(batch) for batch in seen]
    assert sizes[0] == 8, "it tried what was asked for"
    done = sizes[next(i for i, size in enumerate(sizes) if size <= 4) :]
    assert max(done) == 4 and sum(done) == len(trainer.train_dataset), "every example once in batches that fit"
    assert lines(trainer, "loss_lm") and trainer.state.global_step == len(done)


def test_the_attempt_that_goes_through_is_the_training_with_the_smaller_batch(
    make_recipe, make_trainer, monkeypatch, assert_bitwise
):
    training = {"batch_size": 5, "learning_rate": 1e-2, "weight_decay": 0.1}
    settings = {"method": "lora", "model": {"lora_dropout": 0.2}, "data": {"pack": False}}
    smaller = make_trainer(make_recipe(training={**training, "batch_size": 4}, **settings))
    smaller.train()
    trainer = make_trainer(make_recipe(training={**training, "auto_find_batch_size": True}, **settings))
    memory_for(monkeypatch, trainer, 4, after=3)
    trainer.train()
    assert_bitwise(own(trainer), own(smaller))
    assert lines(trainer, "loss_lm") == lines(smaller, "loss_lm")


def test_the_token_budget_shrinks_with_the_batch(make_recipe, make_trainer, seen, monkeypatch):
    training = {"batch_size": 100, "batch_tokens": 600, "auto_find_batch_size": True}
    trainer = make_trainer(make_recipe(method="lora", training=training, data={"pack": False}))
    forward = type(trainer.model).forward

    def small(self, input_ids, **kwargs):
        if input_ids.numel() > 400:
            raise RuntimeError("CUDA out of memory. Tried to allocate more than there is")
        return forward(self, input_ids, **kwargs)

    monkeypatch.setattr(type(trainer.model), "forward", small)
    trainer.train()
    size = trainer._train_batch_size
    rows = [row for batch in seen[-trainer.state.global_step :] for row in batch]
    assert len(rows) == len(trainer.train_dataset)
    assert max(len(batch) * len(batch[0]) for batch in seen[-trainer.state.global_step :]) <= 600 * size // 100 <= 440
    assert size > 50, "the budget shrank with the batch, not only the batch down to where it counts"


@pytest.mark.parametrize("pack", [True, False])
def test_batches_of_a_token_budget_are_weighted_by_their_labels(make_recipe, make_trainer, seen, pack):
    """One accumulated step over all batches of an epoch, cut by the budget, is the step of one batch of everything."""
    found = []
    for training in ({"batch_size": 24}, {"batch_size": 24, "batch_tokens": 300, "gradient_accumulation": 100}):
        seen.clear()
        settings = {"learning_rate": 1e-2, "warmup": 0.0, "schedule": "constant_with_warmup", "max_grad_norm": 0}
        trainer = make_trainer(make_recipe(model=LINEAR, data={"pack": pack}, training={**settings, **training}))
        trainer.train()
        assert trainer.state.global_step == 1
        found.append((trainer.state.log_history[0], len(seen), {len(batch) * len(batch[0]) for batch in seen}))
    assert found[0][1] == 1 < found[1][1] and len(found[1][2]) > 1
    for name in ("loss", "loss_lm", "loss_invariant", "loss_domain", "grad_norm"):
        assert found[0][0][name] == pytest.approx(found[1][0][name], rel=1e-4), name


def test_without_leave_to_shrink_the_batch_memory_that_runs_out_is_an_error(make_recipe, make_trainer, monkeypatch):
    def none(self, input_ids, **kwargs):
        raise RuntimeError("CUDA out of memory. Tried to allocate more than there is")

    trainer = make_trainer(make_recipe(method="lora", training={"batch_size": 8}))
    monkeypatch.setattr(type(trainer.model), "forward", none)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.train()


def test_a_training_of_one_step_learns(make_recipe, make_trainer):
    """The share of warm-up is rounded up to a step, whose learning rate is 0."""
    trainer = make_trainer(make_recipe(training={"batch_size": 64}))
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if ".lora_B." in name}
    trainer.train()
    assert trainer.state.global_step == 1
    after = dict(trainer.model.named_parameters())
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


def test_a_line_of_several_steps_has_their_mean(make_recipe, make_trainer):
    trainer = make_trainer(make_recipe(training={"logging_steps": 3}))
    trainer.train()
    config = trainer.model.config
    weights = {name: getattr(config, f"{name}_weight") for name in ("invariant", "domain", "mi", "router")}
    (line,) = (entry for entry in trainer.state.log_history if "loss" in entry)
    assert line["step"] == 3
    terms = {"lm": 1.0, **weights}
    assert line["loss"] == pytest.approx(sum(w * line[f"loss_{name}"] for name, w in terms.items() if w), abs=1e-4)
