"""Prompts by the tokenizer's chat template: the same tokens in training, in scores and where a run is asked."""

import copy
import json

import pytest
from pydantic import ValidationError

from iclm.data.collation import encode, prompt_text
from iclm.data.example import Example, Message
from iclm.data.loading import read_source
from iclm.errors import DataError
from iclm.recipe import DataSection, DataSource, parse_recipe

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<s>{{ m.role }}: {{ m.content }}<eos>{% endfor %}{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
TALK = (Message("system", "Be brief."), Message("user", "1 + 1 = "))


@pytest.fixture(scope="module")
def chatty(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def asked(messages=TALK, **values):
    return Example(messages, ("2", "3"), "2", **{"chat": True, "source": "x:1", **values})


def test_the_template_writes_the_prompt_up_to_the_answer(chatty):
    text = "<s>system: Be brief.<eos><s>user: 1 + 1 = <eos><s>assistant: "
    assert prompt_text(asked(), chatty) == (text, "")
    (found,) = encode([asked()], chatty)
    assert list(found.prompt) == chatty(text, add_special_tokens=False)["input_ids"]
    assert chatty.decode([*found.prompt, *found.answer]) == text + "2"
    assert chatty.eos_token_id in found.prompt and chatty.eos_token_id not in found.answer


def test_prompts_of_both_kinds_in_one_call_stay_what_they_are(chatty):
    plain, chat = asked(chat=False), asked()
    together = encode([chat, plain, chat], chatty)
    assert together[0] == together[2] == encode([chat], chatty)[0] and together[1] == encode([plain], chatty)[0]
    assert chatty.decode(together[1].prompt) == "Be brief.\n1 + 1 ="


def test_what_no_template_can_write_is_named(tiny_tokenizer, chatty):
    with pytest.raises(DataError, match=r"x:1: no prompt .*: the tokenizer has none; leave out chat: true"):
        encode([asked()], tiny_tokenizer)
    with pytest.raises(DataError, match=r"x:1: no prompt .*: no tools here"):
        encode([asked((Message("tool", "3"),))], chatty)


def test_generated_problems_and_files_may_be_asked_so(tmp_path):
    (tmp_path / "x.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "2"}]}\n'
    )
    for values in ({"acre": "IID", "problems": 1, "format": "text"}, {"file": tmp_path / "x.jsonl"}):
        for chat in (False, True):
            found = read_source(DataSource.model_validate({**values, "chat": chat}))
            assert found and all(example.chat is chat for example in found)


def test_a_run_asks_in_one_way():
    sources = [
        {"acre": "IID", "problems": 1, "format": "text", "chat": chat, "seed": int(chat)} for chat in (True, False)
    ]
    with pytest.raises(ValidationError, match="some sources have chat: true and others not"):
        DataSection.model_validate({"train": sources})
    with pytest.raises(ValidationError, match="some sources have chat"):
        DataSection.model_validate({"train": sources[:1], "validation": sources[1:]})


def test_a_run_that_was_trained_so_is_asked_so(tiny_llama_folder, chatty, tmp_path, monkeypatch):
    import shutil

    from transformers import AutoTokenizer

    from iclm.evaluation import evaluate_run as module
    from iclm.evaluation.runs import load_run
    from iclm.training.run import train

    shutil.copytree(tiny_llama_folder, tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "base")
    talk = [{"role": "user", "content": "1 + 1 = "}, {"role": "assistant", "content": "2"}]
    (tmp_path / "x.jsonl").write_text(json.dumps({"messages": talk, "choice_strings": ["2", "3"]}) + "\n")
    source = {"file": str(tmp_path / "x.jsonl"), "chat": True}
    recipe = {"base": str(tmp_path / "base"), "method": "lora", "data": {"train": [source]}, "model": {"lora_rank": 2}}
    train(parse_recipe(recipe), tmp_path / "run", progress_bar=False)
    run = load_run(tmp_path / "run")
    assert run.chat
    (encoded,) = module.read_for(run, module.evaluation_source(str(tmp_path / "x.jsonl"), run))
    text = "<s>user: 1 + 1 = <eos><s>assistant: "
    assert run.tokenizer.decode(encoded.prompt) == text
    seen = []
    monkeypatch.setattr(
        module, "greedy", lambda model, tokenizer, ids, *rest, **extra: seen.append(ids[0].tolist()) or ["2"]
    )
    assert module.answer(run, "1 + 1 = ")["answer"] == "2"
    assert seen == [list(encoded.prompt)]
