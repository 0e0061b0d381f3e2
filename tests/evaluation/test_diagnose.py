"""What a diagnosis measures, on untrained ICLMs whose failures are made on purpose."""

import json

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import binomtest

from iclm.data.acre import examples, generate
from iclm.data.collation import encode
from iclm.errors import CheckpointError, ConfigurationError, DataError
from iclm.evaluation.comparison import difference_interval, mcnemar
from iclm.evaluation.diagnose import accuracy_gap, diagnose, training_section
from iclm.evaluation.metrics import Accuracy
from iclm.evaluation.runs import Run, load_run
from iclm.evaluation.scoring import score
from iclm.evaluation.sides import earlier_run, is_shifted, modules_off, recipe_sources
from iclm.recipe import DataSource

DOMAINS = ("symbolic", "text")
SECTIONS = ("routing", "independence", "overfitting", "forgetting", "interventions", "training", "features")


def source(form, regime="IID", problems=3, **values):
    values = {"acre": regime, "split": "val", "problems": problems, "format": form, **values}
    return DataSource.model_validate(values)


IID = [source(form) for form in DOMAINS]
OOD = [source(form, "Sys") for form in DOMAINS]


@pytest.fixture(scope="module")
def make_run(make_iclm, tiny_tokenizer, tmp_path_factory):
    """A run folder with an ICLM whose modules differ and whose router was fitted on ACRE, written without a training."""

    def make(name="run", **settings):
        folder = tmp_path_factory.mktemp("runs") / name
        model = make_iclm(fit=False, **settings)
        problems = list(generate("IID", "train", 4, seed=1))
        found = encode([e for form in DOMAINS for p in problems for e in examples(p, form)], tiny_tokenizer)
        width = max(len(item.prompt) for item in found)
        ids = torch.tensor([[*item.prompt, *[0] * (width - len(item.prompt))] for item in found])
        mask = torch.tensor([[1] * len(item.prompt) + [0] * (width - len(item.prompt)) for item in found])
        model.fit_router([{"input_ids": ids, "attention_mask": mask}])
        save(model, folder, tiny_tokenizer)
        return load_run(folder, dtype="float32")

    return make


def save(model, folder, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "run.json").write_text(json.dumps({"method": model.config.method, "domains": list(DOMAINS)}))


@pytest.fixture(scope="module")
def run(make_run):
    return make_run()


@pytest.fixture(scope="module")
def report(run):
    return diagnose(run, IID, OOD)


def row_of(report, module):
    (row,) = [row for row in report["overfitting"]["modules"] if row["module"] == module]
    return row


# -- the sections ------------------------------------------------------------------------------------------------------


def test_every_section_is_there_and_is_json(report):
    assert [name for name in report if name in SECTIONS] == list(SECTIONS)
    assert [name for name in SECTIONS if not report[name]["measured"]] == ["training"], "the run was made without a log"
    json.dumps(report, allow_nan=False)


def test_every_example_is_routed_and_counted_once(report):
    for side in ("iid", "ood"):
        table = report["routing"][side]["table"]
        assert table["domains"] == list(DOMAINS)
        assert [sum(column) for column in zip(*table["counts"], strict=True)] == [12, 12]
    # a mean of hidden states tells lists of numbers from sentences, whatever the weights
    assert report["routing"]["iid"]["accuracy"] == 1.0 and not report["routing"]["iid"]["collapsed"]


def test_a_router_that_sends_two_domains_to_one_module_has_collapsed(make_run):
    run = make_run(router="fixed:1")
    routing = diagnose(run, IID)["routing"]
    assert routing["iid"]["collapsed"] and not routing["learned"]
    assert routing["iid"]["table"]["counts"] == [[0, 0], [12, 12]]
    assert not diagnose(run, IID[:1])["routing"]["iid"]["collapsed"], "one domain needs one module"


def test_independence_is_measured_within_each_domain(run):
    section = diagnose(run, [source(form, problems=5) for form in DOMAINS])["independence"]
    assert list(section["by_domain"]) == list(DOMAINS)
    assert all(found["n"] == 20 and found["ksg"]["n"] == 20 for found in section["by_domain"].values())
    assert section["leakage"]["n"] == 40


def test_independence_is_not_measured_on_questions_of_few_problems(report):
    section = report["independence"]
    assert [found["n"] for found in section["by_domain"].values()] == [12, 12]
    assert all("12 examples of 3 problem(s)" in found["skipped"] for found in section["by_domain"].values())
    assert section["leakage"]["n"] == 24


def test_each_module_alone_is_compared_with_the_mixture(run, report):
    for row in report["overfitting"]["modules"]:
        assert ("ahead" in row) == (row["module"] not in ("mixture", "base"))
        if "ahead" in row:
            mixture = row_of(report, "mixture")["iid"]["overall"]["value"]
            assert row["ahead"]["value"] == pytest.approx(row["iid"]["overall"]["value"] - mixture)
            assert row["ahead"]["low"] <= row["ahead"]["value"] <= row["ahead"]["high"]


def test_domains_that_the_run_does_not_know_are_kept_apart(run):
    sources = [source("text", domain=name, problems=3) for name in ("rain", "snow")]
    report = diagnose(run, sources)
    assert list(report["independence"]["by_domain"]) == ["rain", "snow"]
    assert set(report["features"]["domain"]) == {"rain", "snow"}


def test_accuracies_are_those_of_the_modules_and_of_the_base_without_any(run, report):
    for module in (*run.model.config.module_names, "base"):
        row = row_of(report, module)
        assert row["iid"]["overall"]["n"] == row["ood"]["overall"]["n"] == 24
        parts = row["iid"]["by_domain"]
        assert sum(part["correct"] for part in parts.values()) == row["iid"]["overall"]["correct"]
    assert report["overfitting"]["majority"]["iid"]["overall"]["n"] == 24


def test_with_all_modules_off_every_module_scores_as_the_base_and_comes_back_bitwise(make_iclm, run, tiny_tokenizer):
    model = run.model
    problem = next(generate("IID", "val", 1, seed=3))
    found = encode(examples(problem, "text"), tiny_tokenizer)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fresh = make_iclm(fresh=True, fit=False, method="lora", split_layer=2)
    wanted = score(fresh, found, modules=("mixture",)).choices["mixture"]
    changed = score(model, found, modules=("invariant",)).choices["invariant"]
    with pytest.raises(KeyError), modules_off(model):
        for module in ("invariant", "domain_1"):
            got = score(model, found, modules=(module,)).choices[module]
            np.testing.assert_allclose(np.concatenate(got), np.concatenate(wanted), atol=1e-4)
        raise KeyError
    assert not np.allclose(np.concatenate(changed), np.concatenate(wanted), atol=1e-2)
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_without_data_out_of_distribution_there_is_no_gap(run):
    section = diagnose(run, IID)["overfitting"]
    assert all(row["gap"] is None and row["ood"] is None for row in section["modules"])
    assert "--ood" in section["reason"]


def test_interventions_move_nothing_but_the_module_that_was_changed(report):
    section = report["interventions"]
    assert section["isolated"] is True and section["effects"]["routes_changed"] == 0
    assert sum(row["n"] for row in section["swap"]["routed"]) == 24
    assert section["effect_examples"] == 8, "isolation is exact: a few examples do"


def test_features_are_placed_beside_the_codes_that_they_were_routed_to(run, report):
    section = report["features"]
    assert len(section["x"]) == len(section["y"]) == len(section["route"]) == 48
    codes = run.model.router.codes[:, :2].detach()
    assert section["codes"]["x"] == pytest.approx(codes[:, 0].tolist())
    points = torch.tensor([section["x"], section["y"]]).T
    nearest = torch.cdist(points, codes).argmin(1).tolist()
    assert nearest == section["route"], "two far domains are told apart in the leading dimensions"


def test_features_do_not_depend_on_how_prompts_are_batched(run, report, monkeypatch):
    monkeypatch.setattr("iclm.evaluation.diagnose.FEATURE_TOKENS", 1)
    alone = diagnose(run, IID, OOD)["features"]
    assert alone["x"] == pytest.approx(report["features"]["x"], abs=1e-3)
    assert alone["domain"] == report["features"]["domain"]


def test_a_limit_holds_for_every_source(run):
    data = diagnose(run, IID, OOD, limit=11)["data"]
    assert [row["n"] for side in data.values() for row in side] == [11] * 4


# -- forgetting --------------------------------------------------------------------------------------------------------


def test_a_run_has_forgotten_nothing_since_itself(run):
    rows = diagnose(run, IID, before=run)["forgetting"]["earlier"]["rows"]
    assert {row["module"] for row in rows} == set(run.model.config.module_names)
    assert all(row["lost"] == row["gained"] == 0 and row["p_value"] == 1.0 for row in rows)


def test_without_an_earlier_run_only_the_base_is_compared(run, report):
    earlier = report["forgetting"]["earlier"]
    assert not earlier["measured"] and "--before" in earlier["reason"]
    base = row_of(report, "base")["iid"]["overall"]["value"]
    (row,) = [
        row
        for row in report["forgetting"]["base"]
        if (row["module"], row["data"], row["domain"]) == ("mixture", "iid", None)
    ]
    assert row["before"] == base and row["now"] == row_of(report, "mixture")["iid"]["overall"]["value"]
    assert row["before"] - row["now"] == pytest.approx((row["lost"] - row["gained"]) / row["n"])


def test_the_end_of_the_first_stage_is_found_and_compared_by_its_invariant_module(make_run, tiny_tokenizer):
    run = make_run()
    assert earlier_run(run) is None
    stage = run.folder / "stages" / "invariant"
    kept = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    with torch.no_grad():
        for name, parameter in run.model.named_parameters():
            if ".lora_B." in name and not name.endswith(".0"):
                parameter.zero_()
    run.model.save_pretrained(stage)
    tiny_tokenizer.save_pretrained(stage)
    run.model.load_state_dict(kept)
    before = earlier_run(run)
    assert before is not None and before.folder == stage
    rows = diagnose(run, IID, before=before)["forgetting"]["earlier"]["rows"]
    assert {(row["module"], row["reference"]) for row in rows} == {("mixture", "invariant"), ("invariant", "invariant")}
    assert all(row["lost"] == row["gained"] == 0 for row in rows if row["module"] == "invariant")


def test_an_earlier_run_of_another_base_is_refused(run, make_iclm, tiny_tokenizer, tmp_path):
    save(make_iclm("qwen2"), tmp_path / "other", tiny_tokenizer)
    with pytest.raises(ConfigurationError, match="another base"):
        earlier_run(run, tmp_path / "other")
    with pytest.raises(CheckpointError, match="nowhere"):
        earlier_run(run, tmp_path / "nowhere")


def test_an_earlier_oracle_run_goes_by_its_own_numbers_of_the_domains(make_run):
    run = make_run(router="oracle")
    turned = Run(run.folder, run.model, run.tokenizer, {**run.record, "domains": list(reversed(DOMAINS))})
    report = diagnose(run, IID, before=turned)
    rows = report["forgetting"]["earlier"]["rows"]
    (row,) = [row for row in rows if row["module"] == "mixture" and row["domain"] is None]
    swap = report["interventions"]["swap"]["routed"]
    right = sum(found["accuracy"][1 - i]["correct"] for i, found in enumerate(swap))
    assert row["before"] == right / 24


# -- models without one of the sides -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({"method": "lora"}, {"routing", "independence", "interventions", "features"}),
        ({"ablation": "no_domain"}, {"routing", "independence", "interventions", "features"}),
        ({"ablation": "no_invariant"}, {"independence"}),
        ({"router": "oracle"}, {"features"}),
        ({"router": "random"}, {"features"}),
        ({"router_level": "token"}, {"features"}),
        ({"router": "kmeans", "num_domains": 3, "active_domains": 2}, set()),
        ({"router": "soft", "router_reduction": "none"}, set()),
        ({"num_domains": 1, "router_dim": 1}, set()),
    ],
    ids=lambda value: str(sorted(value)) if isinstance(value, set) else str(value),
)
def test_what_a_model_does_not_have_is_not_measured_with_a_reason(make_run, settings, missing):
    report = diagnose(make_run(**settings), IID, OOD)
    assert {name for name in SECTIONS if not report[name]["measured"]} == missing | {"training"}
    assert all("not applicable" in report[name]["reason"] for name in missing)
    names = [row["module"] for row in report["overfitting"]["modules"]]
    assert names == [*report["modules"], "base"]
    json.dumps(report, allow_nan=False)


# -- figures -----------------------------------------------------------------------------------------------------------


def test_newcombes_intervals_are_the_published_ones():
    # Newcombe 1998, table II, method 10: 56/70 - 48/80, 9/10 - 3/10, 10/10 - 0/20
    for (a, m, b, n), (low, high) in [
        ((56, 70, 48, 80), (0.0524, 0.3339)),
        ((9, 10, 3, 10), (0.1705, 0.8090)),
        ((10, 10, 0, 20), (0.6791, 1.0)),
    ]:
        found = difference_interval(Accuracy(a, m), Accuracy(b, n))
        assert found == pytest.approx((a / m - b / n, low, high), abs=2e-4)


def test_a_difference_needs_a_question_on_both_sides():
    with pytest.raises(ConfigurationError, match="n=0"):
        difference_interval(Accuracy(0, 0), Accuracy(1, 2))


def side(**counts):
    by_domain = {name: Accuracy(*pair).to_dict() for name, pair in counts.items()}
    overall = Accuracy(sum(c for c, _ in counts.values()), sum(n for _, n in counts.values()))
    return {"overall": overall.to_dict(), "by_domain": by_domain}


def test_the_gap_is_not_moved_by_another_mix_of_domains():
    # each domain is as accurate outside as inside, but there is more of the hard one outside
    gap = accuracy_gap(side(easy=(80, 80), hard=(10, 20)), side(easy=(20, 20), hard=(40, 80)))
    assert gap["overall"]["value"] == pytest.approx(0.0)
    assert gap["overall"]["low"] < 0 < gap["overall"]["high"]


def test_the_gap_of_one_domain_is_newcombes_and_that_of_two_is_narrower():
    inside, outside = Accuracy(30, 40), Accuracy(20, 40)
    d, low, high = difference_interval(inside, outside)
    one = accuracy_gap(side(a=(30, 40)), side(a=(20, 40)))["overall"]
    assert (one["value"], one["low"], one["high"]) == pytest.approx((d, low, high))
    two = accuracy_gap(side(a=(30, 40), b=(30, 40)), side(a=(20, 40), b=(20, 40)))["overall"]
    assert low < two["low"] < two["value"] == pytest.approx(d)
    assert two["high"] - two["low"] == pytest.approx((high - low) / np.sqrt(2))


def test_without_a_common_domain_the_gap_is_that_of_all_examples():
    gap = accuracy_gap(side(a=(30, 40)), side(b=(20, 40)))
    assert gap["by_domain"] == {} and gap["overall"]["value"] == pytest.approx(0.25)


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (0, 6), (5, 5), (9, 1)])
def test_mcnemar_counts_only_changed_answers(lost, gained):
    before = np.array([True] * lost + [False] * gained + [True, False] * 7)
    now = np.array([False] * lost + [True] * gained + [True, False] * 7)
    found = mcnemar(before, now)
    assert (found["lost"], found["gained"], found["n"]) == (lost, gained, lost + gained + 14)
    wanted = binomtest(lost, lost + gained, 0.5).pvalue if lost + gained else 1.0
    assert found["p_value"] == pytest.approx(wanted)
    assert found["p_value"] == pytest.approx({(0, 6): 2 / 64, (1, 0): 1.0}.get((lost, gained), wanted))


# -- sources -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "shifted"),
    [
        ({"acre": "IID"}, False),
        ({"acre": "Sys"}, True),
        ({"acre": "Sys", "shifted": False}, False),
        ({"acre": "IID", "shifted": True}, True),
        ({"raven": "center_single"}, False),
        ({"raven": "distribute_four"}, True),
        ({"file": "Sys_test_text.jsonl"}, True),
        ({"file": "IID_val.json"}, False),
        ({"file": "anything.jsonl"}, False),
        ({"file": "anything.jsonl", "shifted": True}, True),
        ({"corr2cause": "official", "split": "test"}, False),
        ({"corr2cause": "official", "variables": [5]}, False),
        ({"corr2cause": "official", "variables": [5, 6]}, True),
        ({"corr2cause": "paraphrased"}, True),
        ({"pvr": "max", "split": "val"}, False),
        ({"pvr": "max", "split": "holdout"}, True),
        ({"pvr": "max", "split": "holdout", "shift": "permutation"}, False),  # the training holds out other windows
        ({"pvr": "max", "split": "test", "shift": "permutation"}, False),
        ({"pvr": "max", "complexity": 1}, True),
        ({"pvr": "min"}, False),  # of one value all aggregations are that value
        ({"pvr": "min", "split": "holdout"}, True),
    ],
    ids=str,
)
def test_a_regime_or_configuration_that_was_not_trained_on_is_shifted(values, shifted):
    training = [
        DataSource.model_validate({**v, "problems": 1})
        for v in (
            {"acre": "IID", "format": "text"},
            {"raven": "center_single", "format": "text"},
            {"corr2cause": "official"},
            {"pvr": "max"},
        )
    ]
    if "acre" in values or "raven" in values:
        values = {**values, "format": "text"}
    values = values if "file" in values else {**values, "problems": 1}
    assert is_shifted(DataSource.model_validate(values), training) is shifted


@pytest.mark.parametrize(
    ("trained", "asked", "shifted"),
    [
        ({"acre": "Sys"}, {"acre": "Sys"}, False),
        ({"acre": "Sys"}, {"acre": "Sys", "split": "val"}, True),
        ({"acre": "Sys", "split": "val"}, {"acre": "Sys", "split": "test"}, False),
        ({"acre": "Comp", "objects": "strict"}, {"acre": "Comp", "objects": "strict", "split": "test"}, True),
        ({"acre": "Comp"}, {"acre": "Comp", "split": "test"}, False),
        ({"acre": "IID"}, {"acre": "IID", "split": "test"}, False),
    ],
    ids=str,
)
def test_a_regime_that_changes_after_training_is_shifted(trained, asked, shifted):
    one, other = (DataSource.model_validate({"problems": 1, "format": "text", **values}) for values in (trained, asked))
    assert is_shifted(other, [one]) is shifted


def test_a_training_file_tells_its_regime_by_its_official_name():
    assert is_shifted(
        DataSource.model_validate({"file": "Sys_val.json"}), [DataSource.model_validate({"file": "Sys_train.json"})]
    )
    assert not is_shifted(source("text"), [DataSource.model_validate({"file": "IID_train.json"})])
    assert is_shifted(source("text", "Comp"), [DataSource.model_validate({"file": "IID_train.json"})])
    named = DataSource.model_validate({"file": "Sys_test.json"})
    assert not is_shifted(named, [DataSource.model_validate({"file": "mine.jsonl"})]), (
        "nothing is known of the training"
    )


def test_the_validation_sources_of_the_recipe_are_parted(tmp_path):
    def write(*regimes):
        sources = [{"acre": r, "problems": 2, "format": "text"} for r in ("IID", *regimes)]
        (tmp_path / "recipe.yaml").write_text(
            yaml.safe_dump({"data": {"train": sources[:1], "validation": sources[1:]}})
        )

    write("Sys", "IID", "Comp")
    iid, ood = recipe_sources(tmp_path)
    assert ([s.acre for s in iid], [s.acre for s in ood]) == (["IID"], ["Sys", "Comp"])
    for regimes in ((), ("Sys",)):
        write(*regimes)
        with pytest.raises(ConfigurationError, match="--data"):
            recipe_sources(tmp_path)
    (tmp_path / "recipe.yaml").unlink()
    with pytest.raises(ConfigurationError, match="--data"):
        recipe_sources(tmp_path)


def test_no_data_and_free_answers_are_refused(run, tmp_path):
    with pytest.raises(ConfigurationError, match="--data"):
        diagnose(run, [])
    row = {"input": [{"role": "user", "content": "x"}], "ideal": "free"}
    (tmp_path / "free.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="choices"):
        diagnose(run, [DataSource.model_validate({"file": tmp_path / "free.jsonl"})])


def test_a_diverged_run_is_said_to_be_one(make_run):
    run = make_run()
    with torch.no_grad():
        next(p for n, p in run.model.named_parameters() if n.endswith("lora_B.1")).fill_(float("nan"))
    with pytest.raises(ConfigurationError, match="diverged"):
        diagnose(run, IID)


# -- the log -----------------------------------------------------------------------------------------------------------


def logged(run, tmp_path, *lines):
    (tmp_path / "log.jsonl").write_text("".join(line + "\n" for line in lines))
    return training_section(tmp_path, run.model.config)


def test_the_curves_of_the_log_are_kept_without_what_is_not_a_number(run, tmp_path):
    section = logged(
        run,
        tmp_path,
        '{"step": 5, "loss": 2.0, "loss_mi": 0.5, "router_perplexity": 1.5, "epoch": 0.1, "grad_norm": 3.0}',
        '{"step": 10, "loss": null, "loss_mi": 0.25}',
        '{"step": 10, "train_runtime": 3.0}',
    )
    assert section["curves"] == {
        "loss": {"step": [5], "value": [2.0]},
        "loss_mi": {"step": [5, 10], "value": [0.5, 0.25]},
        "router_perplexity": {"step": [5], "value": [1.5]},
    }


def test_the_steps_of_the_second_stage_follow_those_of_the_first(run, tmp_path):
    lines = [json.dumps({"step": step, "loss": 1.0, "stage": stage}) for stage in (1, 2) for step in (5, 10)]
    section = logged(run, tmp_path, *lines)
    assert section["curves"]["loss"]["step"] == [5, 10, 15, 20] and section["stages"] == [10]


def test_a_damaged_log_is_named_with_its_line(run, tmp_path):
    with pytest.raises(CheckpointError, match=r"log\.jsonl line 2"):
        logged(run, tmp_path, '{"step": 5, "loss": 2.0}', "{")
    assert not logged(run, tmp_path)["measured"]
