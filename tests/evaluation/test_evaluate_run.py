"""What `iclm evaluate` and `iclm generate` find: figures by file and module, and which module answered."""

import json
from pathlib import Path

import pytest

from iclm.data import Example, raven
from iclm.data.acre import examples, generate, write_problems
from iclm.data.evals import write_evals
from iclm.errors import ConfigurationError, DataError
from iclm.evaluation.evaluate_run import (
    answer,
    evaluate_run,
    evaluation_source,
    evaluation_sources,
    guess_domain,
    read_for,
)
from iclm.recipe import DataSource

MODEL = {"lora_rank": 2, "router_dim": 8, "mi_projection": 8, "mi_queue": 32}
RECIPE = {"dtype": "float32", "training": {"batch_size": 8, "learning_rate": 0.01, "epochs": 2}}


def trained(folder, base, **values):
    from iclm.evaluation.runs import load_run
    from iclm.recipe import parse_recipe
    from iclm.training.run import train

    sources = [{"acre": "IID", "problems": 2, "format": form} for form in ("symbolic", "text")]
    recipe = {**RECIPE, "base": base, "model": MODEL, "data": {"train": sources}, **values}
    train(parse_recipe(recipe), folder, progress_bar=False)
    return load_run(folder, dtype="float32")


@pytest.fixture(scope="module")
def run(tiny_llama_folder, tmp_path_factory):
    """A run with a vq router, trained on the domains symbolic and text."""
    return trained(tmp_path_factory.mktemp("runs") / "vq", tiny_llama_folder)


@pytest.fixture(scope="module")
def lora(tiny_llama_folder, tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs") / "lora", tiny_llama_folder, method="lora")


@pytest.fixture(scope="module")
def oracle(tiny_llama_folder, tmp_path_factory):
    """A run whose own router is the oracle."""
    return trained(tmp_path_factory.mktemp("runs") / "oracle", tiny_llama_folder, model={**MODEL, "router": "oracle"})


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Evals files of both formats, one whose name tells nothing, and the problems as ACRE JSON."""
    folder = tmp_path_factory.mktemp("files")
    problems = list(generate("IID", "val", 3, seed=2))
    found = {}
    for form in ("symbolic", "text"):
        path = folder / f"IID_val_{form}.jsonl"
        write_evals(path, [e for p in problems for e in examples(p, form)], extras=True)
        found[form] = str(path)
    found["unknown"] = str(folder / "mystery.jsonl")
    Path(found["unknown"]).write_bytes(Path(found["text"]).read_bytes())
    found["acre"] = str(folder / "IID_val.json")
    write_problems(found["acre"], problems)
    found["raven"] = str(folder / "matrices.jsonl")
    raven.write_problems(found["raven"], raven.generate("center_single", "iraven", 3, 2, "val"))
    return found


def sources(run, *arguments, **options):
    return [evaluation_source(argument, run, **options) for argument in arguments]


# -- which domain a file is of -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "domain"),
    [
        ("IID_val_text.jsonl", "text"),
        ("text.jsonl", "text"),
        ("a-text-b.jsonl", "text"),
        ("context.jsonl", None),
        ("text_and_symbolic.jsonl", None),
        ("my task.jsonl", "my task"),
        ("my task v2.jsonl", None),
        ("val.jsonl", None),
    ],
)
def test_a_domain_is_guessed_from_a_word_of_the_file_name(name, domain):
    assert guess_domain(Path("text") / name, ["symbolic", "text", "my task"]) == domain


def test_the_domain_given_with_the_file_comes_before_the_guess(run, files):
    (source,) = sources(run, f"{files['text']}=symbolic")
    assert (str(source.file), source.domain) == (files["text"], "symbolic")


def write_rows(path, domains, **more):
    """Rows of these domains (None: a row that names none), as JSON lines."""
    rows = [
        {
            "input": [{"role": "user", "content": f"{i} + 1 = "}],
            "ideal": str(i + 1),
            **({} if d is None else {"domain": d}),
            **more,
        }
        for i, d in enumerate(domains)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("name", ["all.jsonl", "text_and_more.jsonl"])
def test_rows_keep_their_own_domain_whatever_the_file_is_called(run, tmp_path, name):
    path = write_rows(tmp_path / name, ["symbolic", "text", "symbolic"], choice_strings=["1", "2", "3"])
    (source,) = sources(run, path)
    assert [item.example.domain for item in read_for(run, source)] == ["symbolic", "text", "symbolic"]
    (source,) = sources(run, f"{path}=text")
    assert [item.example.domain for item in read_for(run, source)] == ["text"] * 3, "what is said comes first"
    table = tmp_path / name.replace(".jsonl", ".csv")
    table.write_text("q,a,d\n1 ,2,symbolic\n2 ,3,text\n")
    (source,) = sources(run, str(table), columns="{prompt: q, answer: a, domain: d}")
    assert [item.example.domain for item in read_for(run, source)] == ["symbolic", "text"]


def test_rows_without_a_domain_are_of_the_one_that_the_file_name_mentions(run, tmp_path):
    path = write_rows(tmp_path / "my_text.jsonl", ["symbolic", None], choice_strings=["1", "2"])
    (source,) = sources(run, path)
    assert [item.example.domain for item in read_for(run, source)] == ["symbolic", "text"]
    other = write_rows(tmp_path / "mine.jsonl", [None])
    assert [item.example.domain for item in read_for(run, sources(run, other)[0])] == ["mine"]


def test_domains_that_the_run_does_not_know_are_named(run, files):
    assert evaluate_run(run, sources(run, files["unknown"]))["unknown_domains"] == ["mystery"]
    assert evaluate_run(run, sources(run, files["text"]))["unknown_domains"] == []


def test_what_is_for_files_of_problems_is_refused_where_there_are_none(run, files):
    for options in ({"format": "text"}, {"objects": "strict"}):
        with pytest.raises(ConfigurationError, match=r"is for files of problems, and .*IID_val_text.jsonl are none"):
            evaluation_sources([files["text"]], run, **options)
    together = evaluation_sources([files["text"], files["acre"]], run, format="text")
    assert [source.format for source in together] == [None, "text"]


def test_a_file_name_may_hold_an_equals_sign(run, files, tmp_path):
    path = tmp_path / "lr=3" / "val=text.jsonl"
    path.parent.mkdir()
    path.write_bytes(Path(files["text"]).read_bytes())
    (source,) = sources(run, str(path))
    assert source.file == path


@pytest.mark.parametrize("options", [{"format": "xml"}, {"objects": "loose"}])
def test_an_unknown_option_of_a_source_is_refused(run, files, options):
    with pytest.raises(ConfigurationError, match=next(iter(options.values()))):
        evaluation_source(files["acre"], run, **options)


def test_the_limit_holds_for_every_kind_of_file(run, files):
    for argument, form in ((files["text"], None), (files["acre"], "text")):
        (source,) = sources(run, argument, format=form, limit=5)
        assert len(read_for(run, source)) == 5, argument


def test_problems_in_acre_json_need_a_format_and_get_its_domain(run, files):
    (source,) = sources(run, files["acre"])
    with pytest.raises(ConfigurationError, match="symbolic or text"):
        read_for(run, source)
    (source,) = sources(run, files["acre"], format="text")
    assert {item.domain for item in read_for(run, source)} == {run.domains["text"]}


def test_a_file_of_raven_problems_can_be_asked_for_panels(run, files):
    """What a model that was trained with `ask: panel` is asked later: the panel itself, with the eight as choices."""
    (letters,) = sources(run, f"{files['raven']}=text", format="text")
    other, panels = evaluation_sources([files["acre"], f"{files['raven']}=text"], run, format="text", ask="panel")
    assert len(read_for(run, other)) == 12, "what is asked of RAVEN is nothing to files of other problems"
    shown, asked = read_for(run, letters), read_for(run, panels)
    assert {item.example.choices for item in shown} == {tuple("ABCDEFGH")}
    assert all(len(item.example.choices) == 8 and item.example.answer.startswith("On an image") for item in asked)
    assert [len(a.prompt) < len(s.prompt) for a, s in zip(asked, shown, strict=True)] == [True] * 3


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        (["text"], {"ask": "panel"}, "--data names none"),
        (["acre"], {"ask": "panel", "format": "text"}, "--data names none"),
        (["raven"], {"ask": "panel", "columns": "{prompt: a}"}, "--data names none"),
        ([], {"ask": "panel"}, "--data names none"),
        ([], {"ask": "number"}, "'number'; use letter or panel"),
    ],
)
def test_panels_are_asked_of_raven_problems_alone(run, files, names, options, said):
    with pytest.raises(ConfigurationError, match=said):
        evaluation_sources([files[name] for name in names], run, **options)


# -- evaluation --------------------------------------------------------------------------------------------------------


def test_a_generated_source_is_named_by_what_it_is(run):
    from iclm.recipe import DataSource

    values = [{"raven": "center_single", "format": "text"}, {"corr2cause": "renamed", "split": "test"}]
    report = evaluate_run(run, [DataSource.model_validate({**v, "problems": 2}) for v in values])
    assert [row["file"] for row in report["data"]] == ["raven-center_single-train-text", "corr2cause-renamed-test"]


def test_every_module_is_evaluated_on_every_file_in_the_order_given(run, files):
    report = evaluate_run(run, sources(run, files["text"], files["symbolic"]), module="all")
    assert [row["file"] for row in report["data"]] == [files["text"], files["symbolic"]]
    assert [row["domain"] for row in report["data"]] == ["text", "symbolic"]
    for row in report["data"]:
        assert [found["module"] for found in row["modules"]] == ["mixture", "invariant", "domain_0", "domain_1"]
        assert row["n"] == 12 and row["majority"]["n"] == 12
        for found in row["modules"]:
            assert found["n"] == 12 and found["value"] == found["correct"] / 12
            assert found["low"] <= found["value"] <= found["high"]
            assert sum(kind["n"] for kind in found["by_kind"].values()) == 12
            assert sum(kind["correct"] for kind in found["by_kind"].values()) == found["correct"]
    json.dumps(report, allow_nan=False)


def test_the_domains_of_one_file_are_told_apart(run, tmp_path):
    mapping = {"prompt": "q", "answer": "a", "choices": ["no", "yes"], "domain": "domain"}
    table = "q,a,no,yes,domain\n" + "".join(f"{i} ,1,0,1,{d}\n" for i in range(3) for d in ("text", "symbolic", "text"))
    (tmp_path / "x.csv").write_text(table)
    source = DataSource.model_validate({"file": tmp_path / "x.csv", "columns": mapping})
    found = evaluate_run(run, [source], module="all")
    assert [(row["domain"], row["modules"][0]["n"]) for row in found["data"]] == [("text", 6), ("symbolic", 3)]
    assert {row["file"] for row in found["data"]} == {str(tmp_path / "x.csv")} and found["routing"][
        "accuracy"
    ] is not None


def test_a_module_may_be_asked_for_by_its_own_name(run, files):
    name = run.model.config.names[1]
    assert (
        name == "text"
        and run.model.config.place("text") == "domain_1"
        and run.model.config.place("mixture") == "mixture"
    )
    sources = [evaluation_source(str(next(iter(files.values()))), run, format="text")]
    by_name, by_place = (evaluate_run(run, sources, module=module)["data"] for module in ("text", "domain_1"))
    assert by_name == by_place and by_name[0]["modules"][0]["module"] == "domain_1"
    assert answer(run, "1 + 1 = ", module="text") == answer(run, "1 + 1 = ", module="domain_1")


def test_one_module_is_evaluated_as_among_all(run, files):
    everything = evaluate_run(run, sources(run, files["text"]), module="all")["data"][0]["modules"]
    for found in everything:
        alone = evaluate_run(run, sources(run, files["text"]), module=found["module"])["data"][0]["modules"]
        assert alone == [found]


def test_the_order_of_the_files_changes_no_figure(run, files):
    one = evaluate_run(run, sources(run, files["text"], files["symbolic"]), module="all")
    two = evaluate_run(run, sources(run, files["symbolic"], files["text"]), module="all")
    assert one["data"] == two["data"][::-1]
    for name in ("accuracy", "usage", "assignment", "normalized_mutual_information", "n"):
        assert one["routing"][name] == pytest.approx(two["routing"][name]), name


def test_routing_is_judged_over_all_files_together(run, files):
    report = evaluate_run(run, sources(run, files["text"], files["symbolic"]))
    assert report["routing"]["n"] == 24
    assert report["routing"]["domains"] == ["symbolic", "text"]
    assert 0 <= report["routing"]["chance"] <= 1
    assert sum(report["routing"]["usage"]) == pytest.approx(1)
    # a mean of hidden states tells lists of numbers from sentences, whatever the weights
    assert report["routing"]["accuracy"] == 1.0


def test_oracle_routing_replaces_the_mixture_by_the_one_routed_to_the_true_domain(run, files):
    report = evaluate_run(run, sources(run, files["text"]), module="all", routing="oracle")
    assert [found["module"] for found in report["data"][0]["modules"]] == [
        "oracle",
        "invariant",
        "domain_0",
        "domain_1",
    ]
    learned = evaluate_run(run, sources(run, files["text"]), module="all")
    assert report["data"][0]["modules"][1:] == learned["data"][0]["modules"][1:]


def test_oracle_routing_needs_a_domain_of_the_run(run, files):
    for generate_ in (False, True):
        with pytest.raises(ConfigurationError):
            evaluate_run(run, sources(run, files["unknown"]), routing="oracle", generate=generate_)


def test_a_run_is_asked_for_the_loss_of_free_answers(run, tmp_path):
    path = tmp_path / "val.jsonl"
    rows = [
        {"input": [{"role": "user", "content": f"{kind} {i} "}], "ideal": f"so {i}", "domain": kind}
        for i in range(3)
        for kind in ("text", "symbolic")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = evaluate_run(run, [DataSource(file=path)], module="all", loss=True)
    assert [row["domain"] for row in report["data"]] == ["text", "symbolic"] and report["answers"] == "loss"
    for row in report["data"]:
        assert [found["module"] for found in row["modules"]] == list(run.model.config.module_names)
        assert all(found["low"] <= found["loss"] <= found["high"] and found["n"] == 3 for found in row["modules"])
    assert report["routing"]["n"] == 6
    generated = evaluate_run(run, [DataSource(file=path)], generate=True, max_new_tokens=2)
    assert generated["routing"] == report["routing"]
    with pytest.raises(ConfigurationError, match="leave one of the two out"):
        evaluate_run(run, [DataSource(file=path)], loss=True, generate=True)
    with pytest.raises(ConfigurationError, match="leave out --generate, --loss"):
        evaluate_run(run, [DataSource(file=path)], loss=True, independence=True)


def test_oracle_routing_is_of_the_mixture(run, files):
    with pytest.raises(ConfigurationError, match="'text' is one module alone"):
        evaluate_run(run, sources(run, files["text"]), module="text", routing="oracle")


def test_oracle_routing_says_how_a_domain_is_given(run, files):
    with pytest.raises(ConfigurationError, match=r"its domain is 'mystery'; say FILE=DOMAIN"):
        evaluate_run(run, sources(run, files["unknown"]), routing="oracle")


def test_oracle_routing_needs_domain_modules(lora, files):
    with pytest.raises(ConfigurationError, match="plain LoRA"):
        evaluate_run(lora, sources(lora, files["text"]), routing="oracle")


def test_lora_has_one_module_and_no_routing(lora, files):
    report = evaluate_run(lora, sources(lora, files["text"]), module="all")
    assert [found["module"] for found in report["data"][0]["modules"]] == ["mixture"]
    assert report["method"] == "lora" and "routing" not in report


@pytest.mark.parametrize("generate_", [False, True])
def test_a_run_with_an_oracle_router_is_evaluated_where_domains_are_known(oracle, files, generate_):
    report = evaluate_run(oracle, sources(oracle, files["text"]), generate=generate_, max_new_tokens=2)
    assert report["data"][0]["modules"][0]["n"] == 12


def test_a_run_with_an_oracle_router_refuses_an_unknown_domain(oracle, files):
    with pytest.raises(ConfigurationError, match="domain"):
        evaluate_run(oracle, sources(oracle, files["unknown"]))


@pytest.mark.parametrize("options", [{"module": "domain_7"}, {"module": "nope"}, {"routing": "best"}])
def test_an_unknown_option_of_an_evaluation_is_refused(run, files, options):
    with pytest.raises(ConfigurationError, match=next(iter(options.values()))):
        evaluate_run(run, sources(run, files["text"]), **options)


def test_dependence_is_measured_with_all_modules_within_each_domain(run, files):
    rows = evaluate_run(run, sources(run, files["text"], files["symbolic"]), module="all")["data"]
    assert [list(row["dependence"]) for row in rows] == [["1"], ["0"]]
    assert "dependence" not in evaluate_run(run, sources(run, files["text"]))["data"][0]


def free_form(tmp_path, prompt, answers):
    path = tmp_path / "free.jsonl"
    write_evals(path, [Example(example.messages, (), a, kind=None) for example in prompt for a in answers])
    return str(path)


def test_independence_is_measured_on_the_states_of_all_files_together(run, files):
    report = evaluate_run(run, sources(run, files["symbolic"], files["text"]), independence=True)
    found = report["independence"]
    assert set(found) == {"0", "1", "leakage"}
    assert found["0"]["n"] == found["1"]["n"] == 12 and found["0"]["groups"] == 3
    assert found["leakage"]["n"] == 24
    assert [m["module"] for m in report["data"][0]["modules"]] == ["mixture"]
    assert "states" not in report["data"][0] and "independence" not in evaluate_run(run, sources(run, files["text"]))
    json.dumps(report, allow_nan=False)


def test_domains_that_the_run_does_not_know_are_not_taken_for_one(run, files, tmp_path):
    strangers = [f"{files[form]}={name}" for form, name in (("symbolic", "signs"), ("text", "words"))]
    report = evaluate_run(run, sources(run, files["text"], *strangers), independence=True)
    found, names = report["independence"], report["independence_domains"]
    assert {names[number]: found[number]["n"] for number in found if number != "leakage"} == {
        "text": 12,
        "signs": 12,
        "words": 12,
    }


def test_questions_of_a_file_without_groups_are_of_one_problem_where_they_share_it(run, tmp_path):
    rows = [e for problem in generate("IID", "val", 8, seed=3) for e in examples(problem, "text")]
    for name, extras in (("given", True), ("told", False)):
        write_evals(tmp_path / f"{name}.jsonl", rows, extras=extras)
    asked = (sources(run, f"{tmp_path / name}.jsonl=text") for name in ("given", "told"))
    given, told = ([{**m, "by_kind": None} for m in evaluate_run(run, s)["data"][0]["modules"]] for s in asked)
    assert given == told
    assert any("effect" in m for m in given), "the test needs answers of a problem that stand or fall together"


@pytest.mark.parametrize("options", [{"generate": True}, {"module": "invariant"}, {"module": "domain_0"}])
def test_independence_needs_the_states_of_a_mixture(run, lora, files, options):
    with pytest.raises(ConfigurationError, match="independence"):
        evaluate_run(run, sources(run, files["text"]), independence=True, **options)
    with pytest.raises(ConfigurationError, match="independence"):
        evaluate_run(lora, sources(lora, files["text"]), independence=True)


def test_greedy_answers_are_judged_exactly_and_partially(run, tmp_path):
    prompt = examples(next(iter(generate("IID", "val", 1, seed=9))), "text")[:1]
    said = answer(run, prompt[0].prompt, max_new_tokens=8)["answer"]
    words = [word for word in said.split() if word.isascii() and word.isalnum()]
    path = free_form(tmp_path, prompt, [said, "certainly not"])
    (row,) = evaluate_run(run, sources(run, path), generate=True, max_new_tokens=8)["data"]
    (found,) = row["modules"]
    assert row["n"] == found["n"] == 2
    assert found["correct"] == 1
    assert found["partial"]["n"] == 2
    if words:
        path = free_form(tmp_path / "part", prompt, [words[0]])
        (row,) = evaluate_run(run, sources(run, path), generate=True, max_new_tokens=8)["data"]
        assert row["modules"][0]["partial"]["correct"] == 1


def test_a_free_answer_cannot_be_scored_as_a_choice(run, tmp_path):
    prompt = examples(next(iter(generate("IID", "val", 1, seed=9))), "text")[:1]
    with pytest.raises(DataError, match="--generate"):
        evaluate_run(run, sources(run, free_form(tmp_path, prompt, ["x"])))


def test_a_prompt_longer_than_the_context_is_refused_with_its_line(run, tmp_path):
    rows = [
        {"input": [{"role": "user", "content": text}], "choice_strings": ["a", "b"], "ideal": "b"}
        for text in ("short", "zq " * 2000)
    ]
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"long\.jsonl:2.*4096"):
        evaluate_run(run, sources(run, str(path)))


@pytest.mark.parametrize("options", [{"module": "all"}, {"generate": True, "max_new_tokens": 1}], ids=str)
def test_progress_reaches_the_total_of_every_file(run, files, options):
    bars = []

    def progress(title, total):
        bars.append([title, total, 0])
        bar = bars[-1]

        def tick(count):
            bar[2] += count

        return tick

    evaluate_run(run, sources(run, files["text"], files["symbolic"]), progress=progress, **options)
    assert [bar[0] for bar in bars] == [files["text"], files["symbolic"]]
    assert all(done == total > 0 for _, total, done in bars), bars


# -- one prompt --------------------------------------------------------------------------------------------------------


def test_an_answer_says_which_module_was_used(run, files):
    prompt = examples(next(iter(generate("IID", "val", 1, seed=9))), "text")[0].prompt
    mixture = answer(run, prompt, max_new_tokens=4)
    assert mixture["domain_modules"] in (["domain_0"], ["domain_1"])
    assert mixture["domain_modules"][0] in mixture["used"] and "router" in mixture["used"]
    assert answer(run, prompt, module="invariant", max_new_tokens=4)["domain_modules"] == []
    for number, name in enumerate(("symbolic", "text")):
        result = answer(run, prompt, domain=name, max_new_tokens=4)
        assert result["domain_modules"] == [f"domain_{number}"] and name in result["used"]


def test_a_tokenizer_that_ends_texts_does_not_end_the_prompt(run, monkeypatch):
    prompt, seen = "[36, 24] -> ", []
    plain = answer(run, prompt, max_new_tokens=4)
    whole = type(run.tokenizer).__call__

    def ended(self, text, **options):
        found = whole(self, text, **options)
        found["input_ids"] = [[*ids, self.eos_token_id] for ids in found["input_ids"]]
        seen.append(text)
        return found

    monkeypatch.setattr(type(run.tokenizer), "__call__", ended)
    assert answer(run, prompt, max_new_tokens=4) == plain and seen


def test_routing_to_the_domain_that_the_router_chose_gives_the_same_answer(run):
    prompt = examples(next(iter(generate("IID", "val", 1, seed=9))), "text")[0].prompt
    chosen = answer(run, prompt, max_new_tokens=6)
    name = list(run.domains)[int(chosen["domain_modules"][0].removeprefix("domain_"))]
    assert answer(run, prompt, domain=name, max_new_tokens=6)["answer"] == chosen["answer"]


def test_lora_answers_without_domain_modules(lora):
    result = answer(lora, "[3] -> ", max_new_tokens=3)
    assert result["domain_modules"] == []


def test_a_domain_for_a_module_without_a_route_is_refused(run, lora):
    with pytest.raises(ConfigurationError, match="text"):
        answer(run, "x", module="invariant", domain="text")
    with pytest.raises(ConfigurationError, match="text"):
        answer(lora, "x", domain="text")


@pytest.mark.parametrize("prompt", ["", " \t", "\n\n"])
def test_an_empty_prompt_is_refused(run, prompt):
    with pytest.raises(DataError, match="empty"):
        answer(run, prompt)


def test_a_prompt_that_does_not_fit_is_refused_with_its_length(run):
    with pytest.raises(DataError, match="4096"):
        answer(run, "zq " * 2000)
    with pytest.raises(DataError, match="4096"):
        answer(run, "short", max_new_tokens=4096)


@pytest.mark.parametrize("options", [{"module": "domain_9"}, {"domain": "weather"}])
def test_an_unknown_module_or_domain_of_an_answer_is_refused(run, options):
    with pytest.raises(ConfigurationError, match=next(iter(options.values()))):
        answer(run, "x", **options)
