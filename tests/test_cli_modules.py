"""`iclm modules RUN`: what it shows and changes, and that a run is changed whole or not at all."""

import io
import json
import os
import re
import shutil
import sys
from pathlib import Path

import peft
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from iclm import cli
from iclm.evaluation.diagnose import _module_pairs
from iclm.evaluation.runs import load_run
from iclm.model import ICLMForCausalLM
from iclm.training import run_modules

MODEL = {
    "lora_rank": 4,
    "router_dim": 8,
    "mi_projection": 8,
    "mi_queue": 32,
    "split_layer": 0,
    "target_modules": ["q_proj", "v_proj"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_llama_folder):
    """A folder with a run of two domains, an adapter of PEFT, and questions of a third domain; not to be changed."""
    from iclm.model import load_base
    from iclm.recipe import load_recipe
    from iclm.training.run import train

    folder = tmp_path_factory.mktemp("place")
    sources = [{"acre": "IID", "problems": 2, "format": form} for form in ("symbolic", "text")]
    recipe = {
        "base": tiny_llama_folder,
        "dtype": "float32",
        "model": MODEL,
        "data": {"train": sources, "validation": [{**source, "split": "val"} for source in sources]},
        "training": {"batch_size": 8, "logging_steps": 1, "learning_rate": 1e-2, "warmup": 0.0},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    train(load_recipe(folder / "recipe.yaml"), folder / "run", progress_bar=False)
    lines = [
        {
            "input": [{"role": "user", "content": f"Is {n} a prime number? "}],
            "choice_strings": ["no", "yes"],
            "ideal": "no",
        }
        for n in range(12)
    ]
    (folder / "primes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["v_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(load_base(tiny_llama_folder, "float32"), settings)
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(folder / "adapter")
    return folder


@pytest.fixture
def workplace(place, tmp_path, monkeypatch):
    """A copy of that folder to work in."""
    copy = shutil.copytree(place, tmp_path / "work")
    monkeypatch.chdir(copy)
    return copy


@pytest.fixture
def iclm(monkeypatch, capsys):
    """Run the command line in this process; gives exit code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["iclm", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code or 0
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def done(iclm):
    """The JSON object of a command that ends well."""

    def run(*arguments):
        code, out, err = iclm(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return run


@pytest.fixture
def refused(iclm):
    """The one line of a command that is refused."""

    def run(*arguments):
        code, out, err = iclm(*arguments)
        assert (code, out) == (2, ""), err or out
        (line,) = err.splitlines()
        assert line.startswith("error: ")
        return line

    return run


def snapshot(folder):
    """Every file of a folder with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


IMPORT = ("modules", "run", "import", "adapter", "--name", "primes", "--data", "primes.jsonl")


# -- list --------------------------------------------------------------------------------------------------------------


def test_a_run_shows_its_modules_without_its_base(done, workplace, monkeypatch):
    run = load_run("run")
    monkeypatch.setattr(ICLMForCausalLM, "__init__", lambda *args: pytest.fail("the model was built"))
    rows = done("modules", "run", "list")["modules"]
    assert [(row["module"], row["number"], row["name"]) for row in rows] == [
        ("invariant", None, "invariant"),
        ("domain_0", 0, "symbolic"),
        ("domain_1", 1, "text"),
    ]
    assert [row["code"] for row in rows] == [False, True, True]
    assert [row["domains"] for row in rows] == [[], ["symbolic"], ["text"]]
    assert [row["share"] for row in rows] == [None] * 3
    for number, row in enumerate(rows):
        named = dict(run.model.named_parameters())
        pairs = [(p, named[n.replace("lora_A", "lora_B")]) for n, p in named.items() if n.endswith(f"lora_A.{number}")]
        squares = sum(float((4.0 * (b @ a)).detach().square().sum()) for a, b in pairs)  # alpha / rank = 16 / 4
        assert row["norm"] == pytest.approx(squares**0.5, rel=1e-4) and row["norm"] > 0
        assert row["parameters"] == sum(a.numel() + b.numel() for a, b in pairs)


def test_modules_of_a_training_that_diverged_have_no_norm(iclm, done, workplace):
    state = load_file("run/model.safetensors")
    name = next(name for name in state if name.endswith("lora_B.2"))
    save_file({**state, name: torch.full_like(state[name], torch.inf)}, "run/model.safetensors")
    assert [row["norm"] is None for row in done("modules", "run", "list")["modules"]] == [False, False, True]
    assert "not finite" in iclm("modules", "run", "list")[1]


def test_the_table_has_every_module(iclm, workplace):
    code, out, _ = iclm("modules", "run", "list")
    assert code == 0
    assert all(name in out for name in ("invariant", "domain_0", "symbolic", "domain_1", "text", "yes"))


def test_a_diagnosis_tells_the_share_of_the_validation_routes(iclm, done, workplace):
    assert iclm("diagnose", "run", "--limit", 4)[0] == 0
    usage = json.loads(Path("run/diagnosis/diagnosis.json").read_text())["routing"]["iid"]["usage"]
    assert [row["share"] for row in done("modules", "run", "list")["modules"]] == [None, *usage]


@pytest.mark.parametrize("folder", ["nowhere", "adapter"])
def test_a_folder_that_is_no_run_is_named(refused, workplace, folder):
    assert f"error: {folder} " in refused("modules", folder, "list")


def test_a_run_may_be_called_like_a_command(done, workplace):
    os.rename("run", "list")
    assert len(done("modules", "list", "list")["modules"]) == 3


# -- rename ------------------------------------------------------------------------------------------------------------


def test_a_new_name_is_shown_everywhere_and_nothing_else_is_changed(iclm, done, workplace):
    before = snapshot("run")
    assert done("modules", "run", "rename", "text", "prose", "--out", "named")["before"] == "text"
    assert snapshot("run") == before
    after = snapshot("named")
    assert after.keys() == before.keys()
    assert {name for name in before if after[name] != before[name]} == {"config.json", "run.json"}
    rows = done("modules", "named", "list")["modules"]
    assert [(row["name"], row["domains"]) for row in rows[1:]] == [("symbolic", ["symbolic"]), ("prose", ["text"])]
    report = done("evaluate", "named", "--data", "primes.jsonl", "--module", "all")
    assert report["names"] == {"domain_0": "symbolic", "domain_1": "prose"}
    assert [found["module"] for found in report["data"][0]["modules"]][2:] == ["domain_0", "domain_1"]
    assert "domain_1 (prose)" in iclm("evaluate", "named", "--data", "primes.jsonl", "--module", "all")[1]
    answer = done("generate", "named", "--prompt", "[3] -> ", "--domain", "text", "--max-new-tokens", 2)
    assert (answer["domain_modules"], answer["names"]) == (["domain_1"], ["prose"])


def test_a_run_is_renamed_in_its_place(iclm, done, workplace):
    code, out, _ = iclm("modules", "run", "rename", "domain_0", "symbols", "--overwrite")
    assert (code, out) == (0, "rename: domain_0 (symbols), before symbolic; written to run\n")
    assert done("modules", "run", "list")["modules"][1]["name"] == "symbols"
    assert json.loads(Path("run/run.json").read_text())["changes"][0]["name"] == "symbols"
    assert sorted(os.listdir()) == sorted(["adapter", "primes.jsonl", "recipe.yaml", "run"])


@pytest.mark.parametrize(
    ("module", "name", "words"),
    [
        ("domain_2", "x", "there are invariant, domain_0 (symbolic), domain_1 (text)"),
        ("invariant", "x", "the invariant module has no other name"),
        ("domain_0", "mixture", "another module"),
        ("domain_0", "domain_1", "another module"),
        ("domain_0", "text", "'text' is the domain of domain_1"),
    ],
)
def test_a_name_or_module_that_cannot_be_is_refused(refused, workplace, module, name, words):
    before = snapshot(".")
    assert words in refused("modules", "run", "rename", module, name, "--overwrite")
    assert snapshot(".") == before


# -- import ------------------------------------------------------------------------------------------------------------


def test_an_adapter_becomes_a_module_that_its_prompts_go_to(done, workplace, random_prompts, padded):
    before = snapshot("run")
    found = done(*IMPORT, "--out", "wider")
    assert (found["module"], found["prompts"], found["routed"], found["rank"]) == ("domain_2", 12, 1.0, 2)
    assert snapshot("run") == before
    old, new = load_run("run"), load_run("wider")
    assert new.domains == {"symbolic": 0, "text": 1, "primes": 2} and "domain_modules" not in new.record
    assert new.model.config.names == ["symbolic", "text", "primes"]
    theirs = peft.PeftModel.from_pretrained(
        load_run("run").model.base.__class__.from_pretrained(old.record["base"]), "adapter"
    )
    batch = padded(random_prompts())
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        ours, wanted = new.model(**batch, module="domain_2").logits, theirs.eval()(**batch).logits
        same = [
            new.model(**batch, module=name).logits.equal(old.model(**batch, module=name).logits)
            for name in ("invariant", "domain_0", "domain_1")
        ]
    assert (ours[real] - wanted[real]).abs().max() <= 1e-5 and all(same)
    report = done("evaluate", "wider", "--data", "primes.jsonl=primes")
    assert report["routing"]["usage"] == [0.0, 0.0, 1.0]
    assert done("evaluate", "wider", "--data", "primes.jsonl=primes", "--routing", "oracle")["data"][0]["n"] == 12
    answer = done("generate", "wider", "--prompt", "Is 7 a prime number? ", "--max-new-tokens", 2)
    assert answer["domain_modules"] == ["domain_2"] and "primes" in answer["used"]


def test_a_wider_run_has_no_diagnosis_of_the_narrower_one_nor_its_page(iclm, done, workplace):
    assert iclm("diagnose", "run", "--limit", 2)[0] == 0
    assert iclm("report", "run")[0] == 0
    done(*IMPORT, "--overwrite")
    assert not Path("run/diagnosis").exists() and not Path("run/report.html").exists()
    assert Path("run/log.jsonl").is_file()
    assert iclm("diagnose", "run", "--limit", 2)[0] == 0


def test_a_domain_that_has_no_module_does_not_get_the_new_one(done, workplace):
    path = Path("run/run.json")
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "domains": ["symbolic", "text", "late"]}))
    done(*IMPORT, "--overwrite")
    assert load_run("run").domains == {"symbolic": 0, "text": 1, "primes": 2, "late": 3}
    done("modules", "run", "remove", "primes", "--with-code", "--overwrite")
    assert load_run("run").domains == {"symbolic": 0, "text": 1, "late": 2}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("adapter", "--name", "primes"), "--data FILE"),
        (("adapter", "--name", "text", "--data", "primes.jsonl"), "'text' is the domain of domain_1 (text)"),
        (("adapter", "--name", "invariant", "--data", "primes.jsonl"), "another module"),
        (("nowhere", "--name", "x", "--data", "primes.jsonl"), "nowhere"),
        (("run", "--name", "x", "--data", "primes.jsonl"), "adapter_config.json"),
        (("adapter", "--name", "x", "--data", "nowhere.jsonl"), "nowhere.jsonl"),
    ],
    ids=" ".join,
)
def test_an_import_that_cannot_be_is_refused_and_leaves_nothing(refused, workplace, arguments, words):
    before = snapshot(".")
    assert words in refused("modules", "run", "import", *arguments, "--out", "wider")
    assert snapshot(".") == before and not Path("wider").exists()


# -- remove ------------------------------------------------------------------------------------------------------------


def test_a_module_is_not_removed_while_a_code_points_to_it(refused, workplace):
    before = snapshot(".")
    words = refused("modules", "run", "remove", "text", "--overwrite")
    assert "domain_1 (text)" in words and "--with-code" in words
    assert snapshot(".") == before


def test_the_modules_that_are_left_keep_weights_codes_and_domains(done, workplace):
    done(*IMPORT, "--overwrite")
    before = load_file("run/model.safetensors")
    found = done("modules", "run", "remove", "symbolic", "--with-code", "--out", "less")
    assert (found["module"], found["name"]) == ("domain_0", "symbolic")
    after = load_file("less/model.safetensors")
    for name, tensor in after.items():
        stem, separator, rest = name.rpartition(".lora_")
        if separator:
            side, number = rest.split(".")
            assert torch.equal(tensor, before[f"{stem}.lora_{side}.{int(number) + (number != '0')}"]), name
    assert torch.equal(after["router.quantiser._codebook.embed"], before["router.quantiser._codebook.embed"][:, 1:])
    run = load_run("less")
    assert run.domains == {"text": 0, "primes": 1} and run.model.config.names == ["text", "primes"]
    assert not Path("less/log.jsonl").exists() and Path("less/recipe.yaml").is_file()
    log = Path("run/log.jsonl").read_text()
    assert Path("less/log_before_removal.jsonl").read_text() == log
    assert [change["change"] for change in run.record["changes"]] == ["import", "remove"]
    pairs = _module_pairs(run.model, load_run("run").model)
    assert pairs[2:] == [("domain_0", "domain_1"), ("domain_1", "domain_2")], "compared by what they are called"
    answer = done("generate", "less", "--prompt", "Is 7 a prime number? ", "--max-new-tokens", 2)
    assert answer["domain_modules"] == ["domain_1"]
    done("modules", "run", "remove", "symbolic", "--with-code", "--overwrite")
    done("modules", "run", "remove", "text", "--with-code", "--overwrite")
    assert Path("run/log_before_removal.jsonl").read_text() == log, "also after a second removal"


def test_domains_without_a_module_of_their_number_are_told_apart(done, workplace):
    """Where modules without a domain lie between, the record says which module is whose."""
    recipe = yaml.safe_load(Path("recipe.yaml").read_text())
    recipe["model"]["num_domains"] = 3
    Path("three.yaml").write_text(yaml.safe_dump(recipe))
    done("train", "three.yaml", "--out", "three")
    done("modules", "three", "import", "adapter", "--name", "primes", "--data", "primes.jsonl", "--overwrite")
    assert json.loads(Path("three/run.json").read_text())["domain_modules"] == {"symbolic": 0, "text": 1, "primes": 3}
    assert load_run("three").domains["primes"] == 3
    done("modules", "three", "remove", "domain_2", "--with-code", "--overwrite")
    assert "domain_modules" not in json.loads(Path("three/run.json").read_text())
    assert load_run("three").domains["primes"] == 2


def test_the_tasks_of_a_sequence_follow_their_modules(done, workplace):
    record = json.loads(Path("run/run.json").read_text())
    homes = {"first": 0, "second": 1, "again": 1}
    Path("run/run.json").write_text(json.dumps({**record, "homes": homes}))
    done("modules", "run", "remove", "symbolic", "--with-code", "--out", "less")
    assert json.loads(Path("less/run.json").read_text())["homes"] == {"second": 0, "again": 0}


def test_the_last_module_is_not_removed(done, refused, workplace):
    done("modules", "run", "remove", "text", "--with-code", "--overwrite")
    assert "last domain module" in refused("modules", "run", "remove", "symbolic", "--with-code", "--overwrite")


@pytest.mark.parametrize("command", [("rename", "text", "words"), ("export", "text")], ids=" ".join)
def test_a_folder_that_holds_something_else_too_is_not_replaced(done, refused, workplace, command):
    done("modules", "run", *command, "--out", "made")
    (workplace / "made" / "thesis.tex").write_text("mine")
    before = snapshot("made")
    assert "holds thesis.tex" in refused("modules", "run", *command, "--out", "made", "--overwrite")
    assert snapshot("made") == before
    (workplace / "made" / "thesis.tex").unlink()
    done("modules", "run", *command, "--out", "made", "--overwrite")


# -- export ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["invariant", "domain_1", "text"])
def test_a_module_is_given_to_peft(done, workplace, module, random_prompts, padded):
    found = done("modules", "run", "export", module, "--out", "given/one")
    run = load_run("run")
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained("given/one").eval()
    batch = padded(random_prompts())
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        ours, wanted = run.model(**batch, module=found["module"]).logits[real], theirs(**batch).logits[real]
    assert (ours - wanted).abs().max() <= 1e-5
    assert sorted(os.listdir("given")) == ["one"]
    assert sorted(os.listdir("given/one")) == ["adapter_config.json", "adapter_model.safetensors"]


def test_an_exported_module_comes_back_bitwise(done, workplace):
    done("modules", "run", "export", "text", "--out", "out")
    done("modules", "run", "import", "out", "--name", "again", "--data", "primes.jsonl", "--overwrite")
    state = load_file("run/model.safetensors")
    twins = [name for name in state if re.search(r"lora_[AB]\.3$", name)]
    assert twins and all(torch.equal(state[name], state[name[:-1] + "2"]) for name in twins)


def test_an_adapter_folder_is_replaced_only_when_asked(done, refused, workplace):
    assert "--overwrite" in refused("modules", "run", "export", "text", "--out", "adapter")
    assert "not an adapter folder" in refused("modules", "run", "export", "text", "--out", "run", "--overwrite")
    done("modules", "run", "export", "text", "--out", "adapter", "--overwrite")
    assert json.loads(Path("adapter/adapter_config.json").read_text())["r"] == 4


# -- whole or not at all -----------------------------------------------------------------------------------------------


def test_where_a_changed_run_goes_must_be_said(refused, workplace):
    assert "--out NEW" in refused("modules", "run", "rename", "text", "x")
    assert "exists" in refused("modules", "run", "rename", "text", "x", "--out", "run")
    assert "not a run folder" in refused("modules", "run", "rename", "text", "x", "--out", "adapter")
    assert "not a run folder" in refused("modules", "run", "rename", "text", "x", "--out", "adapter", "--overwrite")
    assert "is a file" in refused("modules", "run", "rename", "text", "x", "--out", "recipe.yaml/x")
    assert "in each other" in refused("modules", "run", "rename", "text", "x", "--out", "run/x")


def test_the_current_folder_is_not_pulled_from_under_a_shell(refused, workplace, monkeypatch):
    monkeypatch.chdir("run")
    before = snapshot(".")
    assert "elsewhere" in refused("modules", ".", "rename", "text", "x", "--overwrite")
    assert snapshot(".") == before


@pytest.mark.parametrize("when", ["writing", "swapping"])
def test_a_change_that_fails_leaves_the_run_as_it_was(workplace, monkeypatch, when):
    before = snapshot(".")
    if when == "writing":

        def broken(*args):
            raise KeyboardInterrupt

        monkeypatch.setattr(run_modules, "write_record", broken)
    else:
        real, calls = os.rename, []

        def broken(source, target):
            calls.append(target)
            if len(calls) == 2:  # the old run is away, the new one not yet there
                raise OSError("no")
            real(source, target)

        monkeypatch.setattr(os, "rename", broken)
    with pytest.raises((KeyboardInterrupt, ValueError)):
        run_modules.remove("run", "text", with_code=True, overwrite=True)
    assert snapshot(".") == before
    assert sorted(os.listdir()) == sorted(["adapter", "primes.jsonl", "recipe.yaml", "run"])


def test_a_run_behind_a_link_is_changed_and_the_link_stays(done, workplace):
    os.rename("run", "real")
    os.symlink("real", "run")
    done("modules", "run", "rename", "text", "prose", "--overwrite")
    assert Path("run").is_symlink() and Path("real/run.json").is_file()
    assert done("modules", "real", "list")["modules"][2]["name"] == "prose"


# -- the README --------------------------------------------------------------------------------------------------------


def test_the_example_of_the_readme_makes_a_model_of_adapters(workplace, base_folders, random_prompts, padded):
    text = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) if "from_adapters" in b]
    os.makedirs("adapters")
    for name in ("medicine", "law"):
        shutil.copytree("adapter", f"adapters/{name}")
    batch = padded(random_prompts([3 + n for n in range(8)]))
    values = {"batches": [{**batch, "domain_ids": torch.arange(8) % 2}]}
    exec(compile(block.replace("smollm2-135m", base_folders["llama"]), "README.md", "exec"), values)
    loaded = ICLMForCausalLM.from_pretrained("my-iclm")
    assert loaded.config.names == ["medicine", "law"]
    with torch.no_grad():
        out = loaded(**padded(random_prompts()))
    assert set(out.route.flatten().tolist()) <= {0, 1} and torch.isfinite(out.logits).all()
