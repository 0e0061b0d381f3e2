"""What every independence loss promises, whatever its kind."""

import pytest
import torch
from safetensors.torch import load, save
from torch.utils._python_dispatch import TorchDispatchMode

from iclm.errors import ConfigurationError
from iclm.evaluation.independence import ksg_mutual_information
from iclm.model import ICLMConfig
from iclm.model.independence import LOSSES, build_independence

HIDDEN = 12
CRITICS = ("club", "infonce")


@pytest.fixture(params=sorted(LOSSES))
def kind(request):
    """Each kind of loss in turn."""
    return request.param


def make(kind, *, hidden=HIDDEN, projection=6, queue=0, **settings):
    config = ICLMConfig(hidden_size=hidden, mi_loss=kind, mi_projection=projection, mi_queue=queue, **settings)
    return build_independence(config).train()


def gaussian(tokens, correlation, seed, hidden=HIDDEN):
    """States of both sides, each dimension correlated with the same dimension of the other side."""
    source = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, tokens, hidden, generator=source).unbind(0)
    y = correlation * x + (1 - correlation**2) ** 0.5 * noise
    return x.requires_grad_(), y.requires_grad_()


def total(terms, weight=1.0):
    return weight * terms.value + (0 if terms.critic is None else terms.critic)


def teach(loss, correlation, steps, *, tokens=128, rate=1e-2, hidden=HIDDEN):
    """Train the critic, if there is one, on fresh pairs; none of them enters the queue."""
    if not list(loss.parameters()):
        return loss
    optimizer = torch.optim.Adam(loss.parameters(), rate)
    loss.eval()
    for step in range(steps):
        optimizer.zero_grad()
        loss(*gaussian(tokens, correlation, 1000 + step, hidden)).critic.backward()
        optimizer.step()
    loss.zero_grad()
    return loss.train()


def parameter_gradients(loss):
    return [parameter.grad for parameter in loss.parameters()]


def test_every_kind_of_the_configuration_is_built(kind):
    assert type(make(kind)) is LOSSES[kind]


# -- defined values and gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("projection", [6, None])
@pytest.mark.parametrize("past", [0, 20])
@pytest.mark.parametrize("tokens", [0, 1, 2])
def test_few_tokens_have_a_finite_value_and_gradients(kind, tokens, past, projection):
    loss = make(kind, projection=projection, queue=32)
    loss(*gaussian(past, 0.5, 1))
    x, y = gaussian(tokens, 0.5, 2)
    terms = loss(x, y)
    total(terms).backward()
    assert terms.value.shape == () and torch.isfinite(terms.value)
    for gradient in (x.grad, y.grad, *parameter_gradients(loss)):
        assert gradient is not None and torch.isfinite(gradient).all()


def test_no_tokens_say_nothing(kind):
    loss = teach(make(kind, queue=32), 0.5, 3)
    loss(*gaussian(20, 0.5, 1))
    queue = loss.queue.clone()
    x, y = gaussian(0, 0.5, 2)
    terms = loss(x, y)
    total(terms).backward()
    assert float(terms.value.detach()) == 0 and torch.equal(loss.queue, queue)
    assert all(not gradient.any() for gradient in (x.grad, y.grad, *parameter_gradients(loss)))


@pytest.mark.parametrize("scale", [0.0, 3.7, 1e4])
def test_constant_states_have_no_dependence(kind, scale):
    loss = teach(make(kind), 0.5, 3)
    x, y = (torch.full((16, HIDDEN), scale, requires_grad=True) for _ in range(2))
    terms = loss(x, y)
    total(terms).backward()
    assert float(terms.value.detach()) == pytest.approx(0, abs=1e-3)
    assert torch.isfinite(x.grad).all() and torch.isfinite(y.grad).all()


def test_one_constant_dimension_does_not_spoil_the_others(kind):
    loss = teach(make(kind, projection=None), 0.5, 3)
    x, y = gaussian(64, 0.5, 1)
    with torch.no_grad():
        x[:, 0] = 5.0
    terms = loss(x, y)
    total(terms).backward()
    assert torch.isfinite(terms.value) and x.grad.abs().max() < 100 and torch.isfinite(y.grad).all()


def test_identical_states_have_a_finite_value_and_gradient(kind):
    loss = teach(make(kind), 1.0, 10)
    x, _ = gaussian(32, 0.0, 1)
    terms = loss(x, x)
    total(terms).backward()
    assert torch.isfinite(terms.value) and torch.isfinite(x.grad).all()


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_state_that_is_not_finite_shows_and_does_not_stay(kind, broken):
    loss = make(kind, queue=32)
    loss(*gaussian(8, 0.5, 1))
    x, y = gaussian(8, 0.5, 2)
    with torch.no_grad():
        x[3, 4] = broken
    assert not torch.isfinite(loss(x, y).value)
    assert int(loss.filled) == 8 + 7 and torch.isfinite(loss.queue).all()
    assert torch.isfinite(loss(*gaussian(8, 0.5, 3)).value)


@pytest.mark.parametrize("bounded, most", [("plugin", 1.8), ("hsic", 1.0), ("cross_correlation", 1.0)])
def test_the_value_lies_in_its_range(bounded, most):
    for seed, (tokens, correlation) in enumerate([(2, 0.0), (5, 1.0), (64, 0.0), (64, 0.5), (64, 1.0), (64, -1.0)]):
        value = float(make(bounded)(*gaussian(tokens, correlation, seed)).value.detach())
        assert 0 <= value <= most + 1e-5, (tokens, correlation)


# -- what it measures ----------------------------------------------------------------------------------------------------


def test_dependent_states_score_above_independent_ones(kind):
    found = {}
    for correlation in (0.0, 0.8):
        loss = teach(make(kind, projection=HIDDEN), correlation, 40)
        found[correlation] = float(loss(*gaussian(256, correlation, 1)).value.detach())
    assert found[0.8] > 2 * max(found[0.0], 0.0) + 0.01


def test_lowering_the_loss_makes_states_independent(kind):
    """An encoder of six sources starts on the three that the other side is made of, and learns to leave them."""
    loss = make(kind, hidden=3, projection=3, queue=64)
    encoder = torch.cat([torch.eye(3), 0.5 * torch.eye(3)]).requires_grad_()
    groups = [{"params": [encoder], "lr": 0.01}, {"params": list(loss.parameters()), "lr": 0.01}]
    optimizer = torch.optim.Adam(groups)
    source = torch.Generator().manual_seed(0)
    held_out = torch.randn(400, 6, generator=torch.Generator().manual_seed(9))

    def measured():
        sides = loss.reduce(held_out @ encoder.detach()), loss.reduce(held_out[:, :3])
        if kind == "plugin":  # which does not see what is common to all dimensions
            sides = tuple(side[:, 1:] - side.mean(1, keepdim=True) for side in sides)
        return ksg_mutual_information(*(side.numpy() for side in sides))

    before = measured()
    for _ in range(120):
        sources = torch.randn(64, 6, generator=source)
        optimizer.zero_grad()
        total(loss(sources @ encoder, sources[:, :3])).backward()
        optimizer.step()
    assert before > 1 and measured() < 0.4 * before


# -- who gets which gradient ---------------------------------------------------------------------------------------------


def test_the_value_moves_states_and_the_critic_loss_moves_the_critic(kind):
    loss = teach(make(kind, queue=32), 0.7, 10)
    loss(*gaussian(20, 0.7, 1))
    assert (loss(*gaussian(8, 0.7, 2)).critic is not None) == (kind in CRITICS)
    x, y = gaussian(8, 0.7, 2)
    terms = loss(x, y)
    terms.value.backward()
    assert x.grad.abs().max() > 0 and y.grad.abs().max() > 0
    assert all(gradient is None for gradient in parameter_gradients(loss))
    if terms.critic is not None:
        x.grad = y.grad = None
        terms.critic.backward()
        assert x.grad is None and y.grad is None
        assert all(gradient.abs().max() > 0 for gradient in parameter_gradients(loss))


def test_one_backward_pass_trains_both_sides_with_the_weight_on_the_states_only(kind):
    loss = teach(make(kind), 0.7, 10)
    x, y = gaussian(16, 0.7, 2)
    terms = loss(x, y)
    sides = [torch.autograd.grad(terms.value, x, retain_graph=True)[0]]
    if terms.critic is not None:
        sides += torch.autograd.grad(terms.critic, list(loss.parameters()), retain_graph=True)
    total(terms, 0.25).backward()
    for found, expected in zip([4 * x.grad, *parameter_gradients(loss)], sides, strict=True):
        torch.testing.assert_close(found, expected)


def test_a_critic_that_has_learned_nothing_says_nothing_and_moves_no_state():
    for kind in CRITICS:
        x, y = gaussian(32, 0.9, 1)
        value = make(kind)(x, y).value
        value.backward()
        assert float(value.detach()) == pytest.approx(0, abs=1e-5)
        assert x.grad.abs().max() < 1e-6 and y.grad.abs().max() < 1e-6


def test_critic_training_raises_the_estimate_of_dependent_states():
    for kind in CRITICS:
        found = [float(teach(make(kind), 0.9, steps)(*gaussian(256, 0.9, 1)).value.detach()) for steps in (0, 5, 40)]
        assert found[0] < found[1] < found[2], kind


@pytest.mark.parametrize("of_critic", CRITICS)
def test_the_critic_learns_from_the_pairs_of_the_batch_alone(of_critic):
    """Past pairs in another pairing change the estimate, and nothing of what the critic learns."""
    loss = teach(make(of_critic, queue=40), 0.7, 10)
    loss(*gaussian(40, 0.7, 1))
    kept = loss.queue.clone()
    found = []
    for order in (torch.arange(40), torch.arange(40).flip(0)):
        loss.queue[:, 0] = kept[order, 0]
        loss.filled.fill_(40)
        loss.zero_grad()
        loss.eval()
        terms = loss(*gaussian(10, 0.7, 2))
        terms.critic.backward()
        found.append((terms.value.detach(), [gradient.clone() for gradient in parameter_gradients(loss)]))
    (one, first), (two, second) = found
    assert abs(float(one - two)) > 0.1
    for left, right in zip(first, second, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_a_detached_domain_side_gets_no_gradient_and_leaves_the_other_its_own(kind):
    found = []
    for detached in (False, True):
        loss = teach(make(kind, mi_detach_domain=detached), 0.7, 5)
        x, y = gaussian(16, 0.7, 2)
        terms = loss(x, y)
        total(terms).backward()
        found.append((terms.value.detach(), x.grad, y.grad))
    (value, x_grad, y_grad), (same_value, same_x_grad, nothing) = found
    assert y_grad.abs().max() > 0 and nothing is None
    assert torch.equal(value, same_value) and torch.equal(x_grad, same_x_grad)


# -- the queue -----------------------------------------------------------------------------------------------------------


def test_a_queue_does_not_shrink_the_gradient_of_the_batch(kind):
    """It is pairs / tokens times that of the same tokens within one large batch."""
    x, y = gaussian(40, 0.7, 2)
    queued, at_once = (teach(make(kind, queue=size), 0.7, 5) for size in (30, 0))
    queued(x[:30], y[:30])
    value = queued(x[30:], y[30:]).value
    (found,) = torch.autograd.grad(value, x)
    together = at_once(x, y).value
    (expected,) = torch.autograd.grad(together, x)
    torch.testing.assert_close(value, together)
    torch.testing.assert_close(found[30:], 40 / 10 * expected[30:], rtol=1e-4, atol=1e-7)
    assert found[30:].abs().max() > 0 and not found[:30].any()


def test_the_queue_keeps_the_latest_tokens_and_takes_them_in_while_training_only(kind):
    loss = make(kind, hidden=4, projection=None, queue=6)
    batches = [torch.full((4, 4), float(n), requires_grad=True) for n in range(3)]
    for batch in batches[:2]:
        loss(batch, batch)
    assert int(loss.filled) == 6 and loss.queue[:, 0, 0].tolist() == [0, 0, 1, 1, 1, 1]
    with torch.no_grad():
        loss(batches[2], batches[2])
    loss.eval()
    loss(batches[2], batches[2])
    assert loss.queue[:, 0, 0].tolist() == [0, 0, 1, 1, 1, 1]
    loss.train()
    wide = torch.full((9, 4), 7.0, requires_grad=True)
    loss(wide, wide)
    assert loss.queue.eq(7).all() and not loss.queue.requires_grad


@pytest.mark.parametrize("bounded", [name for name, loss in LOSSES.items() if loss.limit is not None])
def test_a_quadratic_loss_uses_a_bounded_number_of_pairs(bounded, monkeypatch):
    monkeypatch.setattr(LOSSES[bounded], "limit", 20)
    loss, alone = (teach(make(bounded, queue=size), 0.7, 5) for size in (64, 0))
    x, y = gaussian(60, 0.7, 1)
    loss(x[:24], y[:24])
    torch.testing.assert_close(loss(x[24:32], y[24:32]).value, alone(x[12:32], y[12:32]).value)
    torch.testing.assert_close(alone(x, y).value, alone(x[::3], y[::3]).value)
    assert int(loss.filled) == 32


# -- the same again ------------------------------------------------------------------------------------------------------


def test_state_round_trips_bitwise(kind):
    loss = teach(make(kind, queue=32), 0.7, 5)
    loss(*gaussian(20, 0.7, 1))
    again = make(kind, queue=32, seed=5)
    again.load_state_dict(load(save(loss.state_dict())))
    x, y = gaussian(8, 0.7, 2)
    left, right = loss(x, y), again(x, y)
    assert torch.equal(left.value, right.value) and torch.equal(total(left), total(right))
    assert torch.equal(loss.queue, again.queue) and torch.equal(loss.filled, again.filled)


def test_the_seed_alone_decides_the_start(kind):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    states = [make(kind).state_dict()]
    assert torch.equal(torch.get_rng_state(), before), "the global random state has moved"
    torch.manual_seed(2)
    states += [make(kind).state_dict(), make(kind, seed=1).state_dict()]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["projection"], states[2]["projection"])
    if kind in CRITICS:
        assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0] if "critic" in name)


def test_states_in_bf16_are_estimated_in_float32(kind):
    loss = teach(make(kind), 0.7, 5).eval()
    x, y = (states.detach().bfloat16().requires_grad_() for states in gaussian(20, 0.7, 1))
    terms = loss(x, y)
    total(terms).backward()
    assert terms.value.dtype == torch.float32 and x.grad.dtype == torch.bfloat16
    assert all(gradient.dtype == torch.float32 for gradient in parameter_gradients(loss))
    expected = loss(x.float(), y.float())
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(x, y)
    for found in (terms, inside):
        assert torch.equal(found.value, expected.value) and torch.equal(total(found), total(expected))


class LargestTensor(TorchDispatchMode):
    """Remember the number of elements of the largest tensor that any operation makes."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(item, torch.Tensor):
                self.size = max(self.size, item.numel())
        return result


def test_no_tensor_has_three_large_dimensions(kind):
    tokens, hidden = 96, 64
    loss = make(kind, hidden=hidden, projection=hidden)
    with LargestTensor() as largest:
        total(loss(*gaussian(tokens, 0.5, 1, hidden))).backward()
    assert largest.size <= tokens * 2 * 128  # a critic's layer: 128 wide


# -- errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shapes", [((4, HIDDEN), (5, HIDDEN)), ((4, 3), (4, 3)), ((2, 2, HIDDEN), (2, 2, HIDDEN))])
def test_states_of_other_shapes_are_refused(kind, shapes):
    with pytest.raises(ConfigurationError, match=rf"must be \[tokens, {HIDDEN}\]"):
        make(kind)(*(torch.zeros(shape) for shape in shapes))


def test_settings_that_cannot_be_built_are_refused():
    with pytest.raises(ConfigurationError, match="hidden_size is None"):
        build_independence(ICLMConfig())
    config = ICLMConfig(hidden_size=4)
    config.mi_loss = "mine"
    with pytest.raises(ConfigurationError, match="mi_loss is 'mine'; use one of plugin, club"):
        build_independence(config)
