"""Recipes: the shipped ones load, fields agree with the model's configuration, and mistakes are named in one line."""

import inspect
from pathlib import Path

import pytest
import yaml

from iclm.errors import ConfigurationError
from iclm.recipe import (
    DataSection,
    DataSource,
    ModelSection,
    Recipe,
    TrainingSection,
    dump_recipe,
    load_recipe,
    parse_recipe,
)
from iclm.yaml_file import apply_overrides

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted(
    [*ROOT.glob("recipes/*.yaml"), *ROOT.glob("recipes/ablations/*.yaml"), *ROOT.glob("src/iclm/studies/*.yaml")]
)
SECTIONS = (Recipe, ModelSection, DataSection, DataSource, TrainingSection)
SOURCE = {"acre": "IID", "problems": 2, "format": "text"}


def minimal(**values):
    return {"data": {"train": [dict(SOURCE)]}, **values}


def change(*overrides, **values):
    return parse_recipe(apply_overrides(minimal(**values), overrides))


def refused(call, *arguments, **keywords):
    """The message of the error that a call must raise; one line."""
    with pytest.raises(ConfigurationError) as caught:
        call(*arguments, **keywords)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_shipped_recipe_loads(path):
    recipe = load_recipe(path)
    assert recipe.data.train
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe


def test_there_are_shipped_recipes():
    assert {"acre.yaml", "acre_lora.yaml", "acre_files.yaml", "quickstart.yaml"} <= {path.name for path in SHIPPED}


ABLATIONS = {
    "mi_none": {"model.mi_weight": 0.0},
    "mi_strong": {"model.mi_weight": 1.0},
    "no_invariant": {"model.ablation": "no_invariant"},
    "no_domain": {"model.ablation": "no_domain"},
    "joint": {"training.epochs": 2},
    "two_stage": {"training.stages": "two_stage"},
    "router_kmeans": {"model.router": "kmeans"},
    "router_oracle": {"model.router": "oracle"},
    "router_random": {"model.router": "random"},
}


def flat(values, prefix=""):
    """The leaves of nested mappings by dotted name."""
    found = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_changes_one_thing_of_its_base(name):
    base, changed = (flat(load_recipe(ROOT / "recipes/ablations" / f"{n}.yaml").model_dump()) for n in ("base", name))
    assert {key: value for key, value in changed.items() if value != base[key]} == ABLATIONS[name]


def test_there_is_no_other_ablation_and_each_makes_a_configuration():
    from iclm.model import ICLMConfig

    paths = sorted((ROOT / "recipes/ablations").glob("*.yaml"))
    assert {path.stem for path in paths} == {"base", *ABLATIONS}
    for path in paths:
        ICLMConfig(**load_recipe(path).model.model_dump())


def test_two_stage_and_joint_make_as_many_passes():
    joint, two = (load_recipe(ROOT / "recipes/ablations" / f"{name}.yaml").training for name in ("joint", "two_stage"))
    assert joint.epochs == two.invariant_epochs + two.epochs == 2


def test_the_two_acre_recipes_train_on_the_same_examples_in_the_same_way():
    iclm, lora = (load_recipe(ROOT / "recipes" / name) for name in ("acre.yaml", "acre_lora.yaml"))
    assert (iclm.method, lora.method) == ("iclm", "lora")
    assert iclm.data.train == lora.data.train
    assert (iclm.training, iclm.base, iclm.seed) == (lora.training, lora.base, lora.seed)


def test_the_model_section_has_the_fields_types_and_defaults_of_the_configuration():
    from iclm.model import ICLMConfig

    sizes = {"vocab_size", "hidden_size", "num_hidden_layers"}
    elsewhere = {"self", "base", "method", "seed", "domain_names", *sizes, "kwargs"}
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(ICLMConfig.__init__).parameters.items()
        if name not in elsewhere
    }
    fields = ModelSection.model_fields
    assert list(fields) == list(parameters)
    assert {name: field.default for name, field in fields.items()} == {n: p.default for n, p in parameters.items()}
    assert {n: ModelSection.__annotations__[n] for n in fields} == {n: p.annotation for n, p in parameters.items()}


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_field_has_a_description(section):
    lacking = [name for name, field in section.model_fields.items() if not (field.description or "").strip()]
    assert lacking == []


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("training.learning_rate=1e-3", ("training", "learning_rate"), 0.001),
        ("training.learning_rate=5E-4", ("training", "learning_rate"), 0.0005),
        ("training.learning_rate=0.5", ("training", "learning_rate"), 0.5),
        ("training.epochs=3", ("training", "epochs"), 3),
        ("data.pack=false", ("data", "pack"), False),
        ("training.gradient_checkpointing=true", ("training", "gradient_checkpointing"), True),
        ("training.save_steps=null", ("training", "save_steps"), None),
        ("model.split_layer=", ("model", "split_layer"), None),
        ("model.target_modules=[q_proj, v_proj]", ("model", "target_modules"), ["q_proj", "v_proj"]),
        ("model.router=fixed:1", ("model", "router"), "fixed:1"),
        ("base=org/name=x", ("base",), "org/name=x"),
        ("method=lora", ("method",), "lora"),
    ],
)
def test_an_override_sets_its_field(override, place, value):
    found = change(override)
    for name in place:
        found = getattr(found, name)
    assert found == value and type(found) is type(value)


def test_an_override_names_an_entry_of_a_list_by_number():
    values = minimal()
    values["data"]["train"].append(dict(SOURCE))
    recipe = parse_recipe(apply_overrides(values, ["data.train.1.problems=7", "data.train.0.seed=3"]))
    assert [source.problems for source in recipe.data.train] == [2, 7]
    assert [source.seed for source in recipe.data.train] == [3, 0]


def test_an_override_replaces_a_whole_entry_or_list():
    assert change("data.train.0={file: a.jsonl}").data.train[0].file == Path("a.jsonl")
    assert len(change("data.train=[{file: a.jsonl}, {file: b.jsonl}]").data.train) == 2


def test_an_override_makes_a_section_that_the_file_lacks_or_leaves_empty():
    assert change("model.num_domains=5").model.num_domains == 5
    assert change("model.num_domains=5", model=None).model.num_domains == 5


def test_of_two_overrides_of_one_field_the_last_holds():
    assert change("seed=1", "seed=2").seed == 2


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.epochs", "section.field=value"),
        ("=3", "section.field=value"),
        ("training.epochs=[1", "YAML"),
        ("data.train.7.problems=1", "0 to 0"),
        ("data.train.one.problems=1", "0 to 0"),
        ("data.train.-1=x", "0 to 0"),
        ("data.train.0.acre.x=1", "not a section"),
        ("seed.x=1", "not a section"),
        ("model.target_modules.0.x=1", "not a section"),
        ("training..epochs=1", "not a recipe key"),
    ],
)
def test_an_override_that_cannot_be_used_is_refused(override, words):
    assert words in refused(change, override, seed=1, model={"target_modules": ["q_proj"]})


@pytest.mark.parametrize(
    ("override", "key", "hint"),
    [
        ("model.num_domain=3", "model.num_domain ", "did you mean num_domains?"),
        ("trainig.epochs=3", "trainig ", "did you mean training?"),
        ("training.learning_rat=3", "training.learning_rat ", "did you mean learning_rate?"),
        ("data.train.0.formats=text", "data.train.0.formats ", "did you mean format?"),
        ("data.zzz=1", "data.zzz ", "known are train, validation"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(override, key, hint):
    message = refused(change, override)
    assert key in message and hint in message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.epochs=two", "training.epochs"),
        ("training.epochs=0", "training.epochs"),
        ("training.epochs=1.5", "training.epochs"),
        ("training.epochs=true", "training.epochs"),
        ("training.learning_rate=-1", "training.learning_rate"),
        ("training.learning_rate=.nan", "training.learning_rate"),
        ("training.warmup=1", "training.warmup"),
        ("model.num_domains=[2]", "model.num_domains"),
        ("seed=-1", "seed"),
        ("method=peft", "method"),
        ("data.train=[]", "data.train"),
        ("data.train.0.problems=0", "data.train.0.problems"),
        ("data.train.0.format=json", "data.train.0.format"),
        ("data.train.0.problems=null", "problems"),
        ("data.train.0.file=x.json", "data.train.0"),
        ("data=null", "data"),
        ("training=3", "training"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_its_place(override, words):
    assert words in refused(change, override)


@pytest.mark.parametrize("value", ["&a [*a]", "[" * 3000 + "]" * 3000], ids=["circle", "deep"])
def test_an_override_without_end_is_refused(value):
    assert "nested too deeply or contains itself" in refused(change, f"data.train={value}")


GENERATED = {
    "acre": SOURCE,
    "raven": {"raven": "center_single", "problems": 2, "format": "text"},
    "corr2cause": {"corr2cause": "official", "problems": 2},
    "pvr": {"pvr": "min", "problems": 2},
}


@pytest.mark.parametrize(
    ("source", "setting"),
    [
        (GENERATED["acre"], {"answers": "fair"}),
        (GENERATED["acre"], {"columns": {"prompt": "q"}}),
        (GENERATED["acre"], {"choices": ["yes", "no"]}),
        (GENERATED["acre"], {"config": "main"}),
        (GENERATED["acre"], {"variables": [3]}),
        (GENERATED["raven"], {"objects": "strict"}),
        (GENERATED["corr2cause"], {"objects": "strict"}),
        (GENERATED["pvr"], {"balanced": True}),
        ({"file": "a.csv"}, {"config": "main"}),
        ({"dataset": "d"}, {"shift": "permutation"}),
    ],
    ids=lambda part: next(iter(part)),
)
def test_a_setting_that_means_nothing_to_a_source_is_refused(source, setting):
    (name,) = setting
    message = refused(parse_recipe, {"data": {"train": [{**source, **setting}]}})
    assert f"{name} is for " in message and f"this source is of {next(iter(source))}, leave it out" in message


@pytest.mark.parametrize(
    "source", [*GENERATED.values(), {"file": "a.csv"}, {"dataset": "d"}], ids=lambda s: next(iter(s))
)
def test_a_source_with_all_its_defaults_written_out_is_the_same(source):
    found = DataSource.model_validate(source)
    assert DataSource.model_validate(found.model_dump(mode="json")) == found


def test_a_recipe_without_data_is_refused():
    assert "data" in refused(parse_recipe, {"method": "iclm"})


# thirty lines that say a thousand million values
DOUBLED = "".join(f"a{n}: &a{n} [{f'*a{n - 1}, *a{n - 1}' if n else '1, 1'}]\n" for n in range(30)).encode()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        (b"", "the file is empty"),
        (b"- 1\n", "mapping"),
        (b"data: &d {train: *d}\n", "the recipe is nested too deeply or contains itself"),
        (b"data: &a [*a]\n", "the recipe is nested too deeply or contains itself"),
        (DOUBLED, "or repeats itself too often"),
        (b"data: " + b"[" * 3000 + b"]" * 3000, "the recipe is nested too deeply or contains itself"),
        (b"method: iclm\ndata: [1\n", "not valid YAML"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"method: lora\n", "data"),
    ],
    ids=["missing", "empty", "list", "circle", "round", "doubled", "deep", "broken", "binary", "incomplete"],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path, content, words):
    path = tmp_path / "recipe.yaml"
    if content is not None:
        path.write_bytes(content)
    message = refused(load_recipe, path)
    assert str(path) in message and words in message


def test_a_recipe_is_data_and_never_code(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("method: !!python/object/apply:os.system ['true']\n")
    assert "YAML" in refused(load_recipe, path)


def test_a_recipe_written_out_reads_back_as_itself():
    recipe = parse_recipe(
        {
            "method": "lora",
            "base": "a folder/with ünicode",
            "seed": 7,
            "model": {"target_modules": ["q_proj"], "mi_projection": None, "lora_alpha": 1e-7},
            "data": {"train": [{"file": "x.jsonl", "domain": "mine: #1", "limit": 3}], "validation": [SOURCE]},
            "training": {"learning_rate": 1e-5, "save_steps": 10, "report_to": ["tensorboard"]},
        }
    )
    text = dump_recipe(recipe)
    assert parse_recipe(yaml.safe_load(text)) == recipe
    written = yaml.safe_load(text)
    assert written["model"].keys() == ModelSection.model_fields.keys(), "every field is written out"
    assert written["training"].keys() == TrainingSection.model_fields.keys()


@pytest.mark.parametrize("name", ["1e5", "12e3", "2E1"])
def test_a_quoted_name_that_looks_like_a_number_stays_a_name(tmp_path, name):
    path = tmp_path / "recipe.yaml"
    path.write_text(f'data:\n  train:\n    - {{file: x.jsonl, domain: "{name}"}}\n')
    recipe = load_recipe(path)
    assert recipe.data.train[0].domain == name
    path.write_text(dump_recipe(recipe))
    assert load_recipe(path) == recipe


def test_numbers_with_an_exponent_need_no_dot(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("data: {train: [{file: x.jsonl}]}\ntraining: {learning_rate: 1e-3}\n")
    assert load_recipe(path).training.learning_rate == 0.001


def test_files_are_looked_for_beside_the_recipe(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "data.jsonl").write_text("beside")
    (tmp_path / "recipes" / "recipe.yaml").write_text("data: {train: [{file: data.jsonl}]}\n")
    monkeypatch.chdir(tmp_path)
    found = load_recipe("recipes/recipe.yaml").data.train[0].file
    assert found.read_text() == "beside"


def test_a_file_beside_the_recipe_comes_before_one_of_the_same_name_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "data.jsonl").write_text("beside")
    (tmp_path / "data.jsonl").write_text("elsewhere")
    (tmp_path / "recipes" / "recipe.yaml").write_text("data: {train: [{file: data.jsonl}]}\n")
    monkeypatch.chdir(tmp_path)
    assert load_recipe("recipes/recipe.yaml").data.train[0].file.read_text() == "beside"


def test_the_recipe_of_a_run_finds_its_files_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "data.jsonl").write_text("beside")
    (tmp_path / "recipes" / "recipe.yaml").write_text("data: {train: [{file: data.jsonl}]}\n")
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("recipes/recipe.yaml")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "recipe.yaml").write_text(dump_recipe(recipe))
    monkeypatch.chdir(tmp_path / "runs")
    assert load_recipe("recipe.yaml").data.train[0].file.read_text() == "beside"


def test_reading_a_recipe_does_not_change_what_it_was_read_from():
    values = minimal()
    parse_recipe(values)
    assert values == minimal()
    one, two = parse_recipe(minimal()), parse_recipe(minimal())
    one.training.epochs = 9
    one.model.num_domains = 9
    assert (two.training.epochs, two.model.num_domains) == (1, 2)


def write(folder, **files):
    """Write recipes by name into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


BASE = """
base: one
seed: 3
model: {num_domains: 3, target_modules: [q_proj, v_proj], mi_weight: 0.5}
data: {train: [{file: a.jsonl}, {file: b.jsonl}], max_tokens: 100}
"""


def test_sections_of_an_extending_recipe_merge_and_everything_else_replaces(tmp_path):
    child = """
extends: base.yaml
base: two
model: {mi_weight: 0.0, target_modules: [k_proj]}
data: {train: [{file: c.jsonl}]}
training: {epochs: 4}
"""
    write(tmp_path, base=BASE, child=child)
    recipe = load_recipe(tmp_path / "child.yaml", ["model.num_domains=4"])
    assert (recipe.base, recipe.seed, recipe.training.epochs) == ("two", 3, 4)
    assert (recipe.model.num_domains, recipe.model.mi_weight) == (4, 0.0)
    assert recipe.model.target_modules == ["k_proj"]
    assert [source.file.name for source in recipe.data.train] == ["c.jsonl"]
    assert recipe.data.max_tokens == 100


def test_a_value_of_an_extending_recipe_may_be_null(tmp_path):
    write(tmp_path, base=BASE, child="extends: base.yaml\ndata: {max_tokens: null}\n")
    assert load_recipe(tmp_path / "child.yaml").data.max_tokens is None


def test_a_recipe_extends_over_several_levels_and_folders(tmp_path):
    write(tmp_path / "below", base=BASE)
    write(tmp_path, middle="extends: below/base.yaml\nseed: 5\nmodel: {mi_weight: 0.25}\n")
    write(tmp_path / "above", top="extends: ../middle.yaml\nmodel: {lora_rank: 2}\n")
    recipe = load_recipe(tmp_path / "above" / "top.yaml")
    assert (recipe.base, recipe.seed) == ("one", 5)
    assert (recipe.model.num_domains, recipe.model.mi_weight, recipe.model.lora_rank) == (3, 0.25, 2)


def test_files_stay_relative_to_the_recipe_that_names_them(tmp_path, monkeypatch):
    write(tmp_path / "below", base=BASE + "training: {start_from: run}\n")
    write(tmp_path / "above", top="extends: ../below/base.yaml\ndata: {validation: [{file: a.jsonl}]}\n")
    (tmp_path / "below" / "run").mkdir()
    for place in ("below", "above"):
        (tmp_path / place / "a.jsonl").write_text(place)
    (tmp_path / "b.jsonl").write_text("current folder")
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("above/top.yaml")
    assert [source.file.read_text() for source in recipe.data.train] == ["below", "current folder"]
    assert recipe.data.validation[0].file.read_text() == "above"
    assert recipe.training.start_from.samefile(tmp_path / "below" / "run")


def test_a_base_and_a_data_set_that_lie_in_a_folder_are_found_from_everywhere(tmp_path, monkeypatch):
    for place in ("recipes/bases/mine", "here/theirs"):
        (tmp_path / place).mkdir(parents=True)
    data = "data: {train: [{dataset: theirs, columns: {prompt: a, answer: b}}]}\n"
    monkeypatch.chdir(tmp_path / "here")
    for name, found in (("bases/mine", tmp_path / "recipes/bases/mine"), ("org/model", None), ("smollm2-135m", None)):
        write(tmp_path / "recipes", own=f"base: {name}\n{data}", more="extends: own.yaml\n")
        for recipe in (load_recipe(tmp_path / "recipes/own.yaml"), load_recipe("../recipes/more.yaml")):
            assert Path(recipe.base) == (found or Path(name)) and (found is None or Path(recipe.base).is_absolute())
            assert recipe.data.train[0].dataset == str(tmp_path / "here/theirs")
    assert load_recipe(tmp_path / "recipes/own.yaml", ["base=theirs"]).base == str(tmp_path / "here/theirs")


def test_a_run_keeps_the_merged_recipe(tmp_path):
    write(tmp_path, base=BASE, child="extends: base.yaml\nseed: 9\n")
    recipe = load_recipe(tmp_path / "child.yaml")
    write(tmp_path / "run", recipe=dump_recipe(recipe))
    assert "extends" not in yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert load_recipe(tmp_path / "run" / "recipe.yaml") == recipe


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"child": "extends: nowhere.yaml\n"}, "extends nowhere.yaml: there is no such file"),
        ({"child": "extends: child.yaml\n"}, "closes a circle"),
        ({"child": "extends: a.yaml\n", "a": "extends: b.yaml\n", "b": "extends: child.yaml\n"}, "closes a circle"),
        ({"child": "extends: [a.yaml, b.yaml]\n"}, "name one recipe file"),
        ({"child": "extends: a.yaml\n", "a": "- 1\n"}, "a.yaml: a recipe is a mapping"),
        ({"child": "extends: a.yaml\n", "a": BASE + "sed: 1\n"}, "which extends"),
        ({"child": "extends: a.yaml\n", "a": "data: 3\n"}, "data"),
        ({"child": "extends: a.yaml\n", "a": BASE + "extends:\n  model: {}\n"}, "name one recipe file"),
    ],
    ids=["missing", "itself", "circle", "two", "no recipe", "unknown key", "no section", "no name"],
)
def test_a_recipe_that_cannot_be_extended_is_named(tmp_path, files, words):
    write(tmp_path, **files)
    assert words in refused(load_recipe, tmp_path / "child.yaml")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["training.mi_start=0.7", "training.mi_ramp=0.4"], "at most 1"),
        (["training.mi_start=1.5"], "training.mi_start"),
        (["training.invariant_rate=-1"], "training.invariant_rate"),
        (["training.invariant_epochs=0"], "training.invariant_epochs"),
        (["training.stages=three"], "training.stages"),
        (["training.stages=two_stage", "method=lora"], "method: lora"),
        (["training.stages=two_stage", "model.ablation=no_domain"], "no_domain"),
        (["training.router_learning_rate=0"], "training.router_learning_rate"),
        (["training.invariant_rate=0.5"], "two_stage"),
        (["training.invariant_epochs=2"], "two_stage"),
        (["dtype=float16"], "dtype"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(overrides, words):
    assert words in refused(change, *overrides)


def test_a_file_that_is_gone_is_still_the_one_beside_the_recipe(tmp_path, monkeypatch):
    """So that a job that read it keeps its name, and goes on when the file is back."""
    (tmp_path / "recipes").mkdir()
    path = tmp_path / "recipes" / "recipe.yaml"
    path.write_text("data: {train: [{file: here.jsonl, domain: a}]}\n")
    monkeypatch.chdir(tmp_path)
    beside = tmp_path / "recipes" / "here.jsonl"
    for _ in ("there", "gone"):
        assert load_recipe(path).data.train[0].file == beside
        beside.write_text("") if not beside.exists() else beside.unlink()
    beside.unlink(missing_ok=True)
    (tmp_path / "here.jsonl").write_text("")
    assert load_recipe(path).data.train[0].file == tmp_path / "here.jsonl"


def test_names_of_packaged_bases_are_no_paths():
    from iclm import yaml_file
    from iclm.model import backbone

    assert set(yaml_file.PACKAGED) == set(backbone.PACKAGED)


def test_an_independence_loss_that_nothing_would_follow_is_refused():
    values = {
        "data": {"train": [{"acre": "IID", "problems": 2, "format": "text"}]},
        "model": {"mi_detach_domain": True},
        "training": {"stages": "two_stage"},
    }
    with pytest.raises(
        ConfigurationError, match=r"model\.mi_detach_domain leaves the independence loss to the invariant module"
    ):
        parse_recipe(values)
    parse_recipe({**values, "training": {"stages": "two_stage", "invariant_rate": 0.1}})
    parse_recipe({**values, "model": {"mi_detach_domain": True, "mi_weight": 0.0}})
