"""The plug-in mutual information, checked where the right value is known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from iclm.model import ICLMConfig
from iclm.model.independence import PluginMutualInformation, plugin_mutual_information


def simplex(tokens, symbols, seed, sharpness=1.0):
    source = torch.Generator().manual_seed(seed)
    return torch.softmax(torch.randn(tokens, symbols, generator=source, dtype=torch.float64) * sharpness, -1)


def brute_force(p, q):
    """KL(joint || product of marginals), one token and one cell at a time."""
    p, q = p.numpy(), q.numpy()
    joint = np.mean([np.outer(a, b) for a, b in zip(p, q, strict=True)], axis=0)
    first, second = joint.sum(1), joint.sum(0)
    cells = [(i, j) for i in range(len(first)) for j in range(len(second)) if joint[i, j] > 0]
    return sum(joint[i, j] * math.log(joint[i, j] / (first[i] * second[j])) for i, j in cells)


@given(st.integers(1, 12), st.integers(2, 6), st.integers(0, 99), st.sampled_from([0.01, 1.0, 6.0]))
def test_plugin_equals_the_definition(tokens, symbols, seed, sharpness):
    p, q = simplex(tokens, symbols, seed, sharpness), simplex(tokens, symbols, seed + 1000, sharpness)
    value = float(plugin_mutual_information(p, q))
    assert value == pytest.approx(brute_force(p, q), abs=1e-12)
    assert 0 <= value <= math.log(symbols) + 1e-12


def test_identical_symbols_have_the_entropy_of_the_symbol():
    p = torch.eye(8).repeat(5, 1)
    assert float(plugin_mutual_information(p, p)) == pytest.approx(math.log(8), abs=1e-5)
    skewed = torch.eye(2)[torch.tensor([0, 0, 0, 1])]
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert float(plugin_mutual_information(skewed, skewed)) == pytest.approx(entropy, abs=1e-6)


def test_independent_symbols_have_none():
    p, q = torch.eye(8).repeat_interleave(8, 0), torch.eye(8).repeat(8, 1)
    assert float(plugin_mutual_information(p, q)) == pytest.approx(0, abs=1e-6)


def test_it_is_symmetric_and_does_not_mind_the_order_of_tokens():
    p, q = simplex(20, 5, 1, 3.0), simplex(20, 5, 2, 3.0)
    value = plugin_mutual_information(p, q)
    order = torch.randperm(20)
    torch.testing.assert_close(plugin_mutual_information(q, p), value)
    torch.testing.assert_close(plugin_mutual_information(p[order], q[order]), value)


@pytest.mark.parametrize("symbols", [2, 64, 2048])
def test_it_is_never_negative_nor_above_ln_c_in_float32(symbols):
    for sharpness in (0.0, 1e-4, 1.0, 50.0):
        p, q = (simplex(16, symbols, seed, sharpness).float() for seed in (1, 2))
        for other in (p, q):
            value = float(plugin_mutual_information(p, other))
            assert 0 <= value <= math.log(symbols) + 1e-4


@pytest.mark.parametrize("tokens, sharpness", [(16, 1e-3), (16, 0.0), (1, 1.0), (16, 200.0)])
def test_gradient_is_finite(tokens, sharpness):
    states = torch.randn(tokens, 2, 32) * sharpness
    p, q = torch.softmax(states.requires_grad_(), -1).unbind(1)
    plugin_mutual_information(p, q).backward()
    assert torch.isfinite(states.grad).all()


def test_gradient_near_uniform_points_to_less_dependence():
    """Clamped cells gave the paper's code a zero gradient here."""
    states = (
        torch.randn(16, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1e-2
    ).requires_grad_()
    p = torch.softmax(states, -1)
    value = plugin_mutual_information(p, p)
    value.backward()
    assert states.grad.abs().max() > 0
    with torch.no_grad():
        p = torch.softmax(states - 0.5 * states.grad / states.grad.norm() * states.norm(), -1)
    assert plugin_mutual_information(p, p) < value


def test_gradient_is_right():
    states = torch.randn(5, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: plugin_mutual_information(*torch.softmax(s, -1).unbind(1)), (states,))


def test_no_tokens_give_zero():
    assert float(plugin_mutual_information(torch.zeros(0, 4), torch.zeros(0, 4))) == 0.0


class LargestTensor(TorchDispatchMode):
    """Remember the number of elements of the largest tensor that any operation makes."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(item, torch.Tensor):
                self.size = max(self.size, item.numel())
        return result


def test_no_tensor_is_larger_than_c_by_c():
    p = torch.softmax(torch.randn(96, 256, requires_grad=True), -1)
    with LargestTensor() as largest:
        plugin_mutual_information(p, p).backward()
    assert largest.size == 256 * 256


def estimate(kind, *, projection, queue, batches, tokens=16, hidden=576):
    """The last estimate after batches of states that are "identical" or "independent"."""
    config = ICLMConfig(hidden_size=hidden, mi_projection=projection, mi_queue=queue)
    loss, source = PluginMutualInformation(config).train(), torch.Generator().manual_seed(0)
    for _ in range(batches):
        invariant = torch.randn(tokens, hidden, generator=source, requires_grad=True)
        domain = invariant if kind == "identical" else torch.randn(tokens, hidden, generator=source)
        value = loss(invariant, domain).value
    return float(value.detach())


def test_queue_and_projection_tell_independent_from_identical():
    settings = {"projection": 64, "queue": 1024, "batches": 65}
    assert estimate("identical", **settings) > 3 * estimate("independent", **settings)


def test_sixteen_tokens_in_all_dimensions_cannot_tell_them():
    settings = {"projection": None, "queue": 0, "batches": 1}
    assert estimate("identical", **settings) < 1.5 * estimate("independent", **settings)


def test_one_token_with_a_queue_has_a_gradient():
    loss = PluginMutualInformation(ICLMConfig(hidden_size=32, mi_projection=8, mi_queue=64)).train()
    past = torch.randn(40, 32, requires_grad=True)
    loss(past, past)
    one = torch.randn(1, 32, requires_grad=True)
    value = loss(one, one).value
    value.backward()
    assert torch.isfinite(one.grad).all() and one.grad.abs().max() > 0


def test_one_token_without_a_queue_is_zero_and_finite():
    loss = PluginMutualInformation(ICLMConfig(hidden_size=32, mi_projection=8, mi_queue=0)).train()
    one = torch.randn(1, 32, requires_grad=True)
    value = loss(one, one).value
    value.backward()
    assert float(value) == pytest.approx(0, abs=1e-6) and torch.isfinite(one.grad).all()


def test_one_hot_states_give_the_mutual_information_of_their_symbols():
    """Two bits, of which the second side repeats the first and draws the other anew: ln 2."""
    first = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    second = torch.tensor([0, 1, 0, 1, 2, 3, 2, 3])
    loss = PluginMutualInformation(ICLMConfig(hidden_size=4, mi_projection=None, mi_queue=0))
    value = loss(100 * torch.eye(4)[first], 100 * torch.eye(4)[second]).value
    assert float(value) == pytest.approx(math.log(2), abs=1e-6)


def test_a_shift_common_to_all_dimensions_is_not_seen():
    loss = PluginMutualInformation(ICLMConfig(hidden_size=4, mi_projection=None, mi_queue=0))
    common = torch.randn(256, 1, generator=torch.Generator().manual_seed(0)).expand(-1, 4)
    assert float(loss(common, common).value) == pytest.approx(0, abs=1e-6)


# Value, norm of the gradient by the invariant state and by the domain state, in three batches with a queue: as they were
# when the plug-in estimate was the only loss. A training that was begun then is to go on with the same numbers.
PINNED = {
    8: [
        (0.219739169, 0.10009593, 0.0793468925),
        (0.157651648, 0.0855282501, 0.0611561841),
        (0.0839216113, 0.050011429, 0.0680275751),
    ],
    None: [
        (0.51201576, 0.119086069, 0.121025733),
        (0.353783458, 0.0868957704, 0.0888051689),
        (0.277384937, 0.0823447895, 0.0811677772),
    ],
}


@pytest.mark.parametrize("projection", PINNED)
def test_values_and_gradients_are_pinned(projection):
    loss = PluginMutualInformation(ICLMConfig(hidden_size=32, mi_projection=projection, mi_queue=24, seed=3)).train()
    source = torch.Generator().manual_seed(5)
    for expected in PINNED[projection]:
        invariant = torch.randn(10, 32, generator=source, requires_grad=True)
        noise = torch.randn(10, 32, generator=source)
        domain = (0.5 * invariant + noise).detach().requires_grad_()
        value = loss(invariant, domain).value
        value.backward()
        found = (float(value.detach()), float(invariant.grad.norm()), float(domain.grad.norm()))
        assert found == pytest.approx(expected, rel=1e-5)
    shapes = {name: list(tensor.shape) for name, tensor in loss.state_dict().items()}
    dim = projection or 32
    assert shapes == {**({"projection": [32, 8]} if projection else {}), "queue": [24, 2, dim], "filled": []}
