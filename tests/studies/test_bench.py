"""Benchmarks on a tiny base: what is compared does the same work, and figures come from the rounds."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from iclm.errors import ConfigurationError, DataError
from iclm.report.bench import bench_caption
from iclm.studies.bench import contestants, evaluate, generate, learning, memory, step
from iclm.studies.bench.contestants import Workload
from iclm.studies.bench.record import record, write
from iclm.studies.bench.timing import GOALS, compare, is_met, take_turns


@pytest.fixture
def workload(tiny_llama_folder):
    return Workload(base=str(tiny_llama_folder), batch=4, tokens=12, rank=2, dtype="float32")


def trained(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


# -- timing ------------------------------------------------------------------------------------------------------------


def test_contestants_take_turns_and_the_rounds_of_the_warm_up_do_not_count():
    order = []
    works = {name: lambda name=name: order.append(name) or float(len(order)) for name in "ab"}
    found = take_turns(works, 5, warmup=2)
    assert order == ["a", "b"] * 7
    assert found == {"a": [5.0, 7.0, 9.0, 11.0, 13.0], "b": [6.0, 8.0, 10.0, 12.0, 14.0]}


def test_work_that_returns_nothing_is_timed():
    found = take_turns({"sleep": lambda: __import__("time").sleep(0.01)}, 5)
    assert all(0.01 <= seconds < 1 for seconds in found["sleep"])


def test_a_median_of_less_than_five_rounds_is_refused():
    with pytest.raises(ConfigurationError, match="at least 5"):
        take_turns({}, 4)


def test_a_ratio_is_the_median_of_the_rounds_own_ratios():
    found = compare("step_half", 2, [1.0, 2.0, 9.0], [1.0, 1.0, 3.0], "s")
    assert (found.ratio, found.low, found.high, found.ours, found.theirs) == (2.0, 1.0, 3.0, 2.0, 1.0)


def test_goals_are_bounds_from_either_side():
    assert is_met("step_half", 1.15) and not is_met("step_half", 1.16)
    assert is_met("score_speedup", 5.0) and not is_met("score_speedup", 4.9)
    assert is_met("step_half_vs_peft", 0.5) is None
    assert set(GOALS) == {
        *("step_half", "step_full", "step_k16", "memory_half", "decode_half", "prefill_half"),
        *("step_lora_vs_peft", "score_speedup"),
    }


# -- contestants -------------------------------------------------------------------------------------------------------


def test_text_of_k_domains_uses_k_parts_of_the_vocabulary(workload):
    batch = workload.examples(500, 4, count=8)
    assert batch["input_ids"].shape == (8, 12) and (batch["labels"] != -100).sum(1).tolist() == [2] * 8
    parts = [set(batch["input_ids"][i::4].flatten().tolist()) for i in range(4)]
    assert sum(map(len, parts)) == len(set.union(*parts)), "domains share tokens"
    assert torch.equal(batch["input_ids"], workload.examples(500, 4, count=8)["input_ids"])


@pytest.mark.parametrize("kind", ["iclm", "lora", "peft", "xlora"])
def test_a_step_of_every_contestant_trains_its_adapters_and_only_them(workload, kind):
    made = {
        "iclm": lambda: contestants.iclm(workload, 0.5, 3),
        "lora": lambda: contestants.lora(workload),
        "peft": lambda: contestants.peft_lora(workload),
        "xlora": lambda: contestants.xlora(workload, 2),
    }[kind]()
    before = trained(made.model)
    frozen = {name: p.detach().clone() for name, p in made.model.named_parameters() if not p.requires_grad}
    made.step()
    made.step()  # the first moves B alone: it is zero, so A has no gradient yet
    after = dict(made.model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in frozen.items())
    assert any("lora_A" in name and not torch.equal(after[name], value) for name, value in before.items())
    assert all(p.grad is None for p in after.values()), "a step ends with no gradient left"


def test_both_loras_have_as_many_parameters_and_the_same_start(workload):
    ours, theirs = contestants.lora(workload), contestants.peft_lora(workload)
    assert sum(p.numel() for p in trained(ours.model).values()) == sum(
        p.numel() for p in trained(theirs.model).values()
    )
    assert torch.equal(ours.batch["input_ids"], theirs.batch["input_ids"])
    losses = [float(c.model(**c.batch).loss.detach()) for c in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_router_of_the_benchmark_uses_every_module(workload):
    made = contestants.iclm(replace(workload, tokens=48), 0.5, 4)
    route = made.model(**made.batch).route
    assert sorted(route[:, 0].tolist()) == [0, 1, 2, 3]


# -- the benchmarks ----------------------------------------------------------------------------------------------------


def test_steps_give_every_figure_of_the_goals(workload):
    found = step.run(workload, (2, 16), ("peft-lora", "xlora"), rounds=5)
    names = [(row.name, row.k) for row in found]
    assert names == [
        *(("step_half", 2), ("step_full", 2), ("step_half_vs_peft", 2)),
        *(("step_half", 16), ("step_full", 16), ("step_half_vs_peft", 16)),
        *(("step_half_vs_xlora", 2), ("step_k16", 16), ("step_lora_vs_peft", 1)),
    ]
    assert all(row.low <= row.ratio <= row.high and row.unit == "s" for row in found)


def test_compiled_models_stand_beside_the_same_ones_uncompiled(workload, monkeypatch):
    from iclm.model import ICLMForCausalLM

    compiled = []
    monkeypatch.setattr(ICLMForCausalLM, "compile_layers", lambda self: compiled.append(self.config.method))
    found = step.run(workload, (2,), (), rounds=5, compiled=True)
    assert compiled == ["lora", "iclm", "iclm"], "half and full; the others stay as they are"
    assert [(row.name, row.k) for row in found][-2:] == [("compile_half", 2), ("compile_lora", 1)]


def test_generation_gives_prefill_and_decode(workload):
    found = generate.run(workload, (2,), rounds=5)
    assert [(row.name, row.k) for row in found] == [("prefill_half", 2), ("decode_half", 2)]
    assert all(row.ours > 0 and row.theirs > 0 for row in found)


def test_generation_reads_as_many_prompts_as_the_workload_says(workload, monkeypatch):
    seen = []
    monkeypatch.setattr(contestants, "lora", lambda workload, compiled: seen.append(workload.batch) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate.run(workload, (2,), rounds=5)
    assert seen == [4]


def test_pairs_read_on_their_own_get_the_scores_of_packed_ones(workload, tiny_tokenizer):
    from iclm.data.collation import encode
    from iclm.data.loading import read_sources
    from iclm.evaluation.scoring import score
    from iclm.recipe import DataSource

    sources = [DataSource(acre="IID", split="test", problems=2, format=form) for form in ("symbolic", "text")]
    examples = encode(read_sources(sources), tiny_tokenizer)
    model = contestants.iclm(workload, 0.5, 2).model.eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    ours = score(model, examples, pad=tiny_tokenizer.pad_token_id).choices["mixture"]
    for tokens in (1, 4096):
        theirs = evaluate.score_pairs(model, examples, tiny_tokenizer.pad_token_id, tokens)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)


def test_scoring_gives_the_speed_up(workload):
    (found,) = evaluate.run(workload, (2,), problems=2, rounds=5)
    assert found.name == "score_speedup" and found.ratio > 1 and found.unit == "examples/s"


def test_memory_is_that_of_a_process_of_its_own(workload):
    held = torch.zeros(300_000_000, dtype=torch.uint8) + 1  # of this process, and no concern of theirs
    found = memory.run(workload, (2,), ("lora",))
    assert [(row.name, row.k, row.unit) for row in found] == [("memory_half", 2, "GiB")]
    assert 0.05 < found[0].ours < 4 and 0.7 < found[0].ratio < 1.4
    assert memory.peak_bytes() > len(held)


def test_a_process_that_fails_says_why(workload):
    with pytest.raises(ConfigurationError, match=r"memory of iclm could not be measured.*no such folder"):
        memory.measure("iclm", Workload(base="./nowhere"), 2)


@pytest.mark.parametrize(
    ("k", "against", "words"), [((), (), "empty"), ((0,), (), "2,6,16"), ((2,), ("qlora",), "peft-lora")]
)
def test_what_cannot_be_compared_is_said(k, against, words):
    with pytest.raises(ConfigurationError, match=words):
        step.check(k, against)


def test_a_record_says_what_was_measured_on_what(workload, tmp_path):
    found = record([compare("step_half", 2, [1.0], [1.0], "s")], "step", workload, 5)
    assert found["workload"]["batch"] == 4 and found["versions"]["torch"] == torch.__version__
    write(found, tmp_path / "step.json")
    assert json.loads((tmp_path / "step.json").read_text()) == found
    with pytest.raises(Exception, match="exists"):
        write(found, tmp_path / "step.json")


def test_a_record_of_scoring_says_what_was_asked_and_no_batch_that_was_not(workload):
    found = record([], "evaluate", workload, 5, evaluate.asked(12))["workload"]
    assert (found["problems"], found["questions"], found["formats"]) == (12, 96, ["symbolic", "text"])
    assert not {"batch", "tokens"} & set(found) and found["rank"] == 2
    assert "96 questions of 12 ACRE problems a format" in bench_caption(record([], "", workload, 5, evaluate.asked(12)))


def test_memory_refuses_a_rival_that_it_does_not_measure(workload, monkeypatch):
    monkeypatch.setattr(memory, "measure", lambda *_: pytest.fail("measured"))
    with pytest.raises(ConfigurationError, match=r"against names 'xlora', .* use lora, peft-lora$"):
        memory.run(workload, (2,), ("lora", "xlora"))


# -- learning ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def overrides(tiny_llama_folder):
    sources = "{{acre: IID, split: {}, problems: {}, format: {}}}"
    train = ", ".join(sources.format("train", 4, form) for form in ("symbolic", "text"))
    return [
        f"base={tiny_llama_folder}",
        "dtype=float32",
        f"data.train=[{train}]",
        f"data.validation=[{sources.format('val', 2, 'text')}]",
        "training.batch_size=8",
    ]


def test_every_contestant_is_evaluated_at_the_same_examples_and_kept(overrides, tmp_path):
    out = tmp_path / "learning.jsonl"
    rows = learning.run(out, overrides=overrides, splits=(0.0, 0.5), points=2)
    assert [(r["method"], r["split"], r["split_layer"]) for r in rows[::2]] == [
        ("lora", 0.0, 0),
        ("iclm", 0.0, 0),
        ("iclm", 0.5, 2),
    ]
    assert [r["examples"] for r in rows] == [16, 32] * 3 and {r["n"] for r in rows} == {8}
    assert all(0 < r["step_seconds"] < r["seconds"] for r in rows)
    before = out.read_bytes()
    again = learning.run(out, overrides=overrides, splits=(0.5, 0.25), points=2)
    assert out.read_bytes().startswith(before), "finished trainings are not run again"
    assert {(r["method"], r["split"]) for r in again} == {("lora", 0.0), ("iclm", 0.5), ("iclm", 0.25)}


def test_results_of_another_recipe_or_of_another_kind_are_not_mixed_in(overrides, tmp_path):
    out = tmp_path / "learning.jsonl"
    learning.run(out, overrides=overrides, splits=(), points=1)
    with pytest.raises(ConfigurationError, match="another recipe"):
        learning.run(out, overrides=[*overrides, "training.learning_rate=0.1"], splits=(), points=1)
    out.write_text("no results\n")
    with pytest.raises(DataError, match="no file of results"):
        learning.run(out, overrides=overrides, splits=(), points=1)


@pytest.fixture
def never(monkeypatch):
    """No training may begin."""
    monkeypatch.setattr(learning, "_train", lambda *_: pytest.fail("trained"))


def kept(layer=0, **changed):
    """A row of a training of the tiny base, evaluated after steps 2 and 4."""
    row = {"method": "iclm", "split": 0.0, "split_layer": layer, "layers": 30, "seed": 0, "steps": 4}
    return {**row, **learning._here(learning.learning_recipe(["dtype=float32"])), **changed}


def written(path, rows, overrides):
    settings = learning.learning_recipe(overrides).model_dump(mode="json", exclude={"method", "seed"})
    path.write_text("".join(json.dumps({**row, "recipe": settings}) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_that_cannot_be_written_is_found_before_the_first_training(overrides, tmp_path, never, overwrite):
    with pytest.raises(ConfigurationError, match="is a folder"):
        learning.run(tmp_path, overrides=overrides, overwrite=overwrite)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="is a file"):
        learning.run(tmp_path / "file" / "learning.jsonl", overrides=overrides, overwrite=overwrite)


@pytest.mark.parametrize("points", [1, 4])
def test_results_at_other_points_are_not_mixed_in(overrides, tmp_path, never, points):
    rows = [kept(steps=2), kept(steps=4)]
    out = written(tmp_path / "learning.jsonl", rows, overrides)
    with pytest.raises(
        ConfigurationError, match=rf"after 2, 4 steps, and {points} points are after .*4; .*--overwrite"
    ):
        learning.run(out, overrides=overrides, splits=(0.5,), points=points)
    assert learning._difference(rows, learning._here(learning.learning_recipe(overrides)), (), 2) is None


@pytest.mark.parametrize("name", ["device", "threads", "dtype", "torch"])
def test_results_of_another_machine_are_not_mixed_in(overrides, tmp_path, never, name):
    out = written(tmp_path / "learning.jsonl", [kept(**{name: "other"})], overrides)
    before = out.read_bytes()
    with pytest.raises(ConfigurationError, match=f"of {name} other, and here it is ") as error:
        learning.run(out, overrides=overrides, points=1)
    assert out.read_bytes() == before and "\n" not in str(error.value)


def test_a_split_is_rounded_down_as_the_default_is_and_results_of_another_layer_are_not_mixed_in(
    overrides, tmp_path, never
):
    layers = [learning.Contestant("iclm", split, 0).layer(30) for split in (0.0, 0.25, 0.5, 0.75, 0.3, 0.7)]
    assert layers == [0, 30 // 4, 15, 22, 9, 21]
    assert learning.Contestant("iclm", 0.29, 0).layer(100) == 29
    out = written(tmp_path / "learning.jsonl", [kept(8, split=0.25)], overrides)
    with pytest.raises(ConfigurationError, match=r"of split 0\.25 at layer 8 of 30, and here that is layer 7"):
        learning.run(out, overrides=overrides, splits=(0.25,), seeds=(1,), points=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"splits": (1.0,)}, "share of the layers"), ({"points": 0}, "at least 1")],
    ids=["split", "points"],
)
def test_a_learning_benchmark_that_makes_no_sense_is_refused(overrides, options, words):
    with pytest.raises(ConfigurationError, match=words):
        learning.run(None, overrides=overrides, **options)
