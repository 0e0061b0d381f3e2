"""Tiny random base models of four architectures with a tokenizer, and ICLMs made from them."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import settings as hypothesis_settings

hypothesis_settings.register_profile("iclm", deadline=None)
hypothesis_settings.load_profile("iclm")

ARCHITECTURES = ("llama", "qwen2", "gpt_neox", "gemma3")
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
    "initializer_range": 0.15,
}


def _tiny_config(architecture, **tokens):
    import transformers

    if architecture == "gpt_neox":
        return transformers.GPTNeoXConfig(**SIZES, **tokens, rotary_pct=0.5, tie_word_embeddings=False)
    grouped = {**SIZES, **tokens, "num_key_value_heads": 2}
    if architecture == "llama":
        return transformers.LlamaConfig(**grouped, tie_word_embeddings=False)
    if architecture == "qwen2":
        return transformers.Qwen2Config(**grouped, tie_word_embeddings=True)
    return transformers.Gemma3TextConfig(
        **grouped,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"] * 2,
        final_logit_softcapping=20.0,
    )


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A byte-level BPE tokenizer trained on both renderings of ACRE; it adds no start token and covers any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from iclm.data.acre import examples, generate

    problems = list(generate("IID", "train", 8, seed=11))
    texts = [e.prompt + e.answer for form in ("text", "symbolic") for p in problems for e in examples(p, form)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


@pytest.fixture(scope="session")
def base_folders(tmp_path_factory, tiny_tokenizer):
    """Folder of a tiny random base model with its tokenizer, by architecture."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("bases")
    tokens = {"vocab_size": len(tiny_tokenizer), "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    folders = {}
    for number, architecture in enumerate(ARCHITECTURES):
        torch.manual_seed(number)
        model = AutoModelForCausalLM.from_config(_tiny_config(architecture, **tokens), dtype=torch.float32)
        model.save_pretrained(root / architecture)
        tiny_tokenizer.save_pretrained(root / architecture)
        folders[architecture] = str(root / architecture)
    return folders


@pytest.fixture(params=ARCHITECTURES)
def architecture(request):
    """Each supported base architecture in turn."""
    return request.param


@pytest.fixture(scope="session")
def tiny_llama_folder(base_folders):
    """Folder of a tiny random Llama with a tokenizer that covers both renderings of ACRE."""
    return base_folders["llama"]


@pytest.fixture(scope="session")
def load_tiny_base(base_folders):
    """Load the tiny base of an architecture in float32."""
    from iclm.model import load_base

    return lambda architecture="llama", dtype="float32", **kwargs: load_base(
        base_folders[architecture], dtype, **kwargs
    )


@pytest.fixture
def four_bit(monkeypatch):
    """Let 4-bit bases be loaded, without a GPU on the CPU, by kernels with gradients; skips without bitsandbytes."""
    bitsandbytes = pytest.importorskip("bitsandbytes", minversion="0.50")

    from iclm.model import quantization

    monkeypatch.setattr(quantization, "require_bitsandbytes", lambda name: None)
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: False)


@pytest.fixture(scope="session")
def random_prompts():
    """Prompts of random tokens: `random_prompts(lengths, seed)` gives a list of 1-D tensors."""
    import torch

    def make(lengths=(5, 9, 3, 12), seed=0):
        source = torch.Generator().manual_seed(seed)
        return [torch.randint(2, 500, (length,), generator=source) for length in lengths]

    return make


@pytest.fixture(scope="session")
def padded():
    """Batch prompts: `padded(prompts, side, extra)` gives input_ids and attention_mask."""
    import torch

    def make(prompts, side="right", extra=0):
        width = max(map(len, prompts)) + extra
        ids, mask = (
            torch.zeros(len(prompts), width, dtype=torch.long),
            torch.zeros(len(prompts), width, dtype=torch.long),
        )
        for row, prompt in enumerate(prompts):
            where = slice(0, len(prompt)) if side == "right" else slice(width - len(prompt), width)
            ids[row, where], mask[row, where] = prompt, 1
        return {"input_ids": ids, "attention_mask": mask}

    return make


@pytest.fixture(scope="session")
def labelled(random_prompts, padded):
    """A training batch whose last `answer` tokens are labels, padded on the right: `labelled(lengths, answer, seed)`."""

    def make(lengths=(6, 9, 4, 11), answer=2, seed=0):
        batch = padded(random_prompts(lengths, seed))
        batch["labels"] = batch["input_ids"].clone()
        for row, length in enumerate(lengths):
            batch["labels"][row, : length - answer] = -100
            batch["labels"][row, length:] = -100
        return batch

    return make


@pytest.fixture(scope="session")
def differ():
    """Give every adapter of an ICLM, and its aggregator, weights as after training, so that its modules differ."""
    import torch

    def change(model, seed=0, size=0.3):
        source = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=source) * size)
                elif name.startswith("aggregator"):
                    parameter.add_(torch.randn(parameter.shape, generator=source) * 0.05)
        return model

    return change


@pytest.fixture(scope="session")
def make_iclm(load_tiny_base, differ, random_prompts, padded):
    """Make an ICLM in evaluation mode: `make_iclm(architecture, fresh=False, fit=True, **settings)`.

    Unless `fresh`, its modules differ; with `fit`, a vq router is started from random prompts.
    """
    import copy

    from iclm.model import ICLMForCausalLM

    bases = {}

    def make(architecture="llama", *, fresh=False, fit=True, dtype="float32", **settings):
        settings = {"lora_rank": 2, "lora_alpha": 4.0, "router_dim": 8, "mi_projection": 8, "mi_queue": 32, **settings}
        if (architecture, dtype) not in bases:
            bases[architecture, dtype] = load_tiny_base(architecture, dtype)
        model = ICLMForCausalLM.from_base(copy.deepcopy(bases[architecture, dtype]), **settings)
        if not fresh:
            differ(model)
        if fit:
            lengths = [3 + n % 10 for n in range(40)]
            model.fit_router([padded(random_prompts(lengths, seed=101))])
        return model.eval()

    return make


@pytest.fixture(scope="session")
def trainable():
    """The parameters that are trained, by name."""
    return lambda model: {name: p for name, p in model.named_parameters() if p.requires_grad}


@pytest.fixture(scope="session")
def parameters_of():
    """The adapter parameters of one module by its number (0 invariant, 1 + i domain i), by name."""

    def find(model, number):
        ends = (f"lora_A.{number}", f"lora_B.{number}")
        return {name: p for name, p in model.named_parameters() if name.endswith(ends)}

    return find


@pytest.fixture(scope="session")
def make_collected():
    """Finished jobs made by hand: `make_collected({"lora": {"mixture": 0.5}, ...}, seeds=(0, 1, 2))`.

    ACRE IID and Sys in two formats, so many problems of four questions each, one of every kind; of every second problem the
    indirect one needs exclusion. A number is the accuracy of a
    module; a list of them one for each kind. `lines` changes what the jobs of a method say of themselves.
    """
    import numpy as np

    from iclm.studies.study.results import Collected, FinishedJob
    from iclm.studies.study.rows import BY_EXCLUSION, bits

    kinds = ("direct", "indirect", "potential", "screen_off")
    sources = [(regime, form) for regime in ("IID", "Sys") for form in ("symbolic", "text")]

    def make(methods, seeds=(0, 1, 2), problems=12, lines=None, strict=False, data="acre"):
        n = 4 * problems
        evaluate = [
            {"acre": regime, "format": form, "split": "test", "seed": 0, "problems": problems, "domain": None}
            for regime, form in sources
        ]
        marks = {kind: bits([i % 4 == at for i in range(n)]) for at, kind in enumerate(kinds)}
        marks[BY_EXCLUSION] = bits([i % 8 == 1 for i in range(n)])
        jobs = []
        for seed in seeds:
            for number, (method, modules) in enumerate(methods.items()):
                changes = (lines or {}).get(method, {})
                if seed not in changes.get("seeds", seeds):
                    continue
                line = {
                    "id": f"{data}-{method}-{seed}",
                    "name": f"{data}/{method}/seed-{seed}",
                    "method": method,
                    "kind": changes.get("kind", "trained"),
                    "data": data,
                    "seed": seed,
                    "trial": None,
                    "shots": 0,
                    "device": "cpu",
                    "processor": "AMD EPYC 9V74",
                    "threads": 2,
                    "dtype": "float32",
                    "train_seconds": 10.0 + number + seed / 10,
                    "total_seconds": 20.0,
                    "versions": {"iclm": "0.1.0", "python": "3.12"},
                    "recipe": {"base": "tiny", "training": {"learning_rate": 0.001}},
                    "evaluate": evaluate,
                    "chosen": changes.get("chosen", {}),
                    "reference": "lora",
                    "tuned_as": changes.get("tuned_as"),
                    "tuned_on": None,
                    "compared_with": changes.get("compared_with", []),
                }
                rows = []
                for source, (regime, form) in enumerate(sources):
                    for place, (module, accuracy) in enumerate(modules.items()):
                        draws = np.random.default_rng([seed, number, source, place]).random(n)
                        right = draws < np.resize(accuracy, n)
                        of_kind = {k: [int(right[at::4].sum()), problems] for at, k in enumerate(kinds)}
                        rows.append(
                            {
                                "method": method,
                                "seed": seed,
                                "trial": None,
                                "split": "test",
                                "train_set": data,
                                "job": line["id"],
                                "device": "cpu",
                                "seconds": line["train_seconds"],
                                "examples": 24,
                                "trainable": 1000,
                                "module": module,
                                "source": source,
                                "test_set": f"ACRE {regime}",
                                "shifted": regime != "IID",
                                "format": form,
                                "strict": strict,
                                "majority": 0.4,
                                "problems": 4,
                                "n": n,
                                "correct": int(right.sum()),
                                "by_kind": of_kind,
                                "answers": bits(right.tolist()),
                            }
                        )
                jobs.append(FinishedJob(line, rows, [marks] * len(sources)))
        return Collected(jobs)

    return make


@pytest.fixture(scope="session")
def collected(make_collected):
    """Finished jobs of a study with a base, plain LoRA, an ICLM with its modules, an ablation of it, and a shallow rule."""
    modules = {"mixture": 0.8, "invariant": 0.7, "domain_0": 0.5, "domain_1": 0.6, "oracle": 0.8}
    methods = {
        "base": {"mixture": 0.4},
        "lora": {"mixture": 0.6},
        "iclm": modules,
        "iclm-no-mi": {**modules, "mixture": 0.75},
        "shallow": {"strategy": [1.0, 0.0, 1.0, 1.0]},
    }
    chosen = {"training.learning_rate": 0.001}
    lines = {
        "base": {"kind": "base", "seeds": [0]},
        "lora": {"chosen": chosen},
        "iclm": {"chosen": chosen},
        "iclm-no-mi": {"chosen": chosen, "tuned_as": "iclm"},
        "shallow": {"kind": "strategy"},
    }
    found = make_collected(methods, lines=lines)
    found.not_run["acre/iclm/seed-3"] = "not run"
    return found
