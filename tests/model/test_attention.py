"""The attention with a backward pass of our own: values of the kernel, gradients of the formula, and when it stands back."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from iclm.model import attention as attention_module
from iclm.model.attention import NAME, attention, use_fast_attention
from iclm.model.packing import Packing

TOKENS, DIM = 23, 16


class Layer(torch.nn.Module):
    """As much of an attention layer as the function looks at."""

    def __init__(self, groups):
        super().__init__()
        self.num_key_value_groups = groups
        self.is_causal = True


def masks():
    branch = torch.tensor([[0] * 9 + [1] * 6 + [2] * 8, [0] * 12 + [1] * 5 + [-1] * 6, [0] * 3 + [1] * 20])
    from transformers import LlamaConfig

    packed = Packing.of(branch).attention(LlamaConfig(attn_implementation="sdpa"), torch.bfloat16)
    padded = torch.ones(TOKENS, TOKENS).tril().bool()[None, None].repeat(3, 1, 1, 1)
    padded[1, :, :, :5] = False  # its first five queries see nothing
    return {"causal": None, "packed": packed, "padded on the left": padded, "shared": padded[:1]}


def inputs(heads, groups, dtype=torch.bfloat16, rows=3):
    generator = torch.Generator().manual_seed(0)
    shapes = [(rows, heads, TOKENS, DIM)] + [(rows, heads // groups, TOKENS, DIM)] * 2
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def test_values_of_another_size_than_keys_are_left_to_the_kernel():
    q, k, v = (torch.randn(1, 2, 5, size, dtype=torch.bfloat16, requires_grad=True) for size in (8, 8, 6))
    out, _ = attention(Layer(1), q, k, v, None)
    out.float().sum().backward()
    assert v.grad is not None and q.grad.shape == q.shape


def gradients(function, tensors, grad):
    copies = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    out = function(*copies)
    out.backward(grad.to(out.dtype))
    return out.detach(), [copy.grad.float() for copy in copies]


@pytest.mark.parametrize("block", [1, 4_000, 1_000_000])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("kind", ["causal", "packed", "padded on the left", "shared"])
def test_values_are_the_kernels_and_gradients_as_near_the_truth_as_bfloat16_allows(kind, groups, block, monkeypatch):
    monkeypatch.setattr(attention_module, "BLOCK", block)
    mask, tensors, layer = masks()[kind], inputs(6, groups), Layer(groups)
    seen = torch.ones(3, 1, TOKENS, 1, dtype=torch.bool) if mask is None else mask.any(-1, keepdim=True)
    grad = torch.randn(3, 6, TOKENS, DIM, generator=torch.Generator().manual_seed(1)) * seen  # padding gives no loss

    def ours(q, k, v):
        return attention(layer, q, k, v, mask)[0].transpose(1, 2)

    def theirs(q, k, v):
        return sdpa_attention_forward(layer, q, k, v, mask)[0].transpose(1, 2)

    def exact(q, k, v):
        q, k, v = (tensor.double() for tensor in (q, k, v))
        k, v = (tensor.repeat_interleave(groups, 1) for tensor in (k, v))
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)

    values, found = gradients(ours, tensors, grad)
    kernel, expected = gradients(theirs, tensors, grad)
    _, truth = gradients(exact, tensors, grad)
    assert torch.equal(values, kernel)
    for ours_, theirs_, true in zip(found, expected, truth, strict=True):
        off = (ours_ - true).norm() / true.norm()
        assert off < 0.01 and off < 2 * (theirs_ - true).norm() / true.norm()


def fails(*args, **kwargs):
    raise AssertionError("our backward pass must not be used here")


@pytest.mark.parametrize("change", ["float32", "no gradient", "long", "dropout", "a cache", "sinks", "float mask"])
def test_anything_else_is_left_to_transformers(change, monkeypatch):
    monkeypatch.setattr(attention_module._Attention, "apply", fails)
    if change == "long":
        monkeypatch.setattr(attention_module, "LONGEST", TOKENS - 1)
    q, k, v = inputs(6, 3, torch.float32 if change == "float32" else torch.bfloat16)
    mask, options = None, {}
    if change == "dropout":
        options = {"dropout": 0.5}
    elif change == "a cache":
        q = q[:, :, -1:]
    elif change == "sinks":
        options = {"s_aux": torch.zeros(6)}
    elif change == "float mask":
        mask = torch.zeros(3, 1, TOKENS, TOKENS, dtype=torch.bfloat16)
    with torch.set_grad_enabled(change != "no gradient"):
        torch.manual_seed(0)
        found = attention(Layer(3), q, k, v, mask, **options)[0]
        torch.manual_seed(0)
        assert torch.equal(found, sdpa_attention_forward(Layer(3), q, k, v, mask, **options)[0])


def test_a_step_in_bfloat16_uses_it_and_moves_the_adapters_the_same_way(load_tiny_base, monkeypatch):
    from iclm.model import ICLMForCausalLM

    ids = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(0))
    moved = {}
    for name in ("ours", "transformers'"):
        if name != "ours":
            monkeypatch.setattr(attention_module, "_is_slow", lambda *args: False)
        base = load_tiny_base("llama", dtype=torch.bfloat16)
        model = ICLMForCausalLM.from_base(base, method="lora", target_modules="attention").train()
        assert base.config._attn_implementation == NAME
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if "lora_B" in parameter_name:
                    parameter.fill_(0.01)
        model(input_ids=ids, labels=ids).loss.backward()
        moved[name] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    ours, theirs = moved.values()
    assert not torch.equal(ours, theirs), "both ran the same backward pass"
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.999


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_only_the_default_attention_is_replaced(load_tiny_base, implementation):
    base = load_tiny_base("llama", attn_implementation=implementation)
    use_fast_attention(base)
    assert base.config._attn_implementation == (NAME if implementation == "sdpa" else "eager")
