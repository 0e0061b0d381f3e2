"""Compiled layers: the numbers of the plain ones, gradients too, and a warning where they cannot be compiled."""

import warnings

import pytest
import torch

from iclm.model import compiling


def fails(*args, **kwargs):
    raise RuntimeError("no C++ compiler was found\nand more lines")


def test_where_compiling_fails_there_is_one_warning_and_the_model_runs(make_iclm, labelled, monkeypatch):
    monkeypatch.setattr(torch, "compile", fails)
    model = make_iclm()
    with pytest.warns(UserWarning, match="run uncompiled: no C.. compiler was found$") as caught:
        assert model.compile_layers() is False
    assert len(caught) == 1
    assert torch.isfinite(model(**labelled()).loss)


def test_what_was_compiled_is_kept_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("ICLM_CACHE", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr(torch, "compile", lambda function, **kwargs: function)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compiling.can_compile(torch.device("cpu"))
    import os

    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "compiled")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
    compiling.can_compile(torch.device("cpu"))
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_compiled_layers_give_the_loss_and_gradients_of_plain_ones(make_iclm, labelled, architecture, checkpointing):
    found = {}
    for compiled in (False, True):
        model = make_iclm(architecture, num_domains=3, router="oracle", mi_weight=0.0).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        if compiled:
            assert model.compile_layers()
        batch = {**labelled(), "domain_ids": torch.tensor([0, 2, 2, 1])}
        for _ in range(2):  # other modules are active in the second
            model.zero_grad()
            loss = model(**batch).loss
            loss.backward()
            batch["domain_ids"] = torch.tensor([0, 0, 1, 1])
        found[compiled] = (
            loss.detach(),
            {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None},
        )
    torch.testing.assert_close(found[True][0], found[False][0], rtol=0, atol=1e-5)
    assert set(found[True][1]) == set(found[False][1])
    for name, grad in found[False][1].items():
        torch.testing.assert_close(found[True][1][name], grad, rtol=1e-4, atol=1e-5)
