"""The independence losses where the right value is known, or can be written out by brute force."""

import math

import numpy as np
import pytest
import torch

from iclm.model import ICLMConfig
from iclm.model.independence import CLUB, HSIC, CrossCorrelation, InfoNCE, hsic

DIM = 4


def config(**settings):
    return ICLMConfig(**{"hidden_size": DIM, "mi_projection": None, "mi_queue": 0, **settings})


def gaussian(tokens, correlation, seed=0, dim=DIM):
    source = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, tokens, dim, generator=source).unbind(0)
    return x, correlation * x + (1 - correlation**2) ** 0.5 * noise


def standardised(states):
    return (states - states.mean(0)) / states.std(0, correction=0)


def whitened(tokens, dim=DIM):
    """States whose covariance is the identity, to rounding."""
    x = torch.randn(tokens, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (torch.linalg.qr(x - x.mean(0)).Q * tokens**0.5).float()


# -- CLUB ----------------------------------------------------------------------------------------------------------------


def know(loss, correlation):
    """Give the critic the true conditional N(r x, 1 - r^2). GELU(z) - GELU(-z) = z lets it be linear."""
    first, _, last = loss.critic
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.zero_()
        first.weight[:DIM], first.weight[DIM : 2 * DIM] = torch.eye(DIM), -torch.eye(DIM)
        last.weight[:DIM, : 2 * DIM] = correlation * torch.cat([torch.eye(DIM), -torch.eye(DIM)], 1)
        last.bias[DIM:] = 2 * math.atanh(math.log(1 - correlation**2) / 2)
    return loss


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.6, 0.9])
def test_club_with_the_true_conditional_of_gaussians_is_its_closed_form(correlation):
    """E_p(x,y) log q(y|x) - E_p(x)p(y) log q(y|x) = r^2 / (1 - r^2) a dimension, an upper bound of MI."""
    loss = know(CLUB(config()), correlation)
    value = float(loss(*gaussian(40000, correlation)).value.detach())
    closed_form = DIM * correlation**2 / (1 - correlation**2)
    information = -DIM / 2 * math.log(1 - correlation**2)
    assert value == pytest.approx(closed_form, rel=0.03, abs=0.03)
    assert value >= information - 0.03


def test_the_critic_of_club_is_best_at_the_true_conditional():
    pairs = gaussian(4000, 0.6)
    loss = CLUB(config())
    found = {r: float(know(loss, r)(*pairs).critic.detach()) for r in (0.0, 0.3, 0.6, 0.8)}
    assert min(found, key=found.get) == 0.6
    # the entropy of y given x, without its constant
    assert found[0.6] == pytest.approx(0.5 * (math.log(1 - 0.36) + 1), abs=0.02)


def test_club_is_the_difference_of_means_over_matching_and_over_all_pairs():
    loss = CLUB(config())
    with torch.no_grad():
        for number, parameter in enumerate(loss.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.3)
    x, y = gaussian(24, 0.6)
    left, right = standardised(x), standardised(y)
    mean, log_variance = loss._conditional(loss.critic(left))
    conditional = torch.distributions.Normal(mean[:, None], (0.5 * log_variance).exp()[:, None])
    table = conditional.log_prob(right[None]).sum(-1)  # [i, j]: log q(y_j | x_i)
    torch.testing.assert_close(loss(x, y).value, table.diagonal().mean() - table.mean(), rtol=1e-4, atol=1e-4)
    constant = 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(loss(x, y).critic, -table.diagonal().mean() / DIM - constant, rtol=1e-4, atol=1e-4)


# -- InfoNCE -------------------------------------------------------------------------------------------------------------


def scaled(loss, factor):
    with torch.no_grad():
        for number, parameter in enumerate(loss.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * factor)
    return loss


@pytest.mark.parametrize("factor", [0.1, 1.0, 10.0])
def test_infonce_never_exceeds_log_n(factor):
    for tokens in (1, 2, 50):
        for x, y in (gaussian(tokens, 0.0), gaussian(tokens, 1.0)):
            value = float(scaled(InfoNCE(config()), factor)(x, y).value.detach())
            assert value <= math.log(tokens) + 1e-6


def test_infonce_is_the_mean_log_probability_of_the_matching_state():
    loss = scaled(InfoNCE(config()), 0.3)
    x, y = gaussian(12, 0.6)
    scores = loss.invariant_critic(standardised(x)) @ loss.domain_critic(standardised(y)).T
    chosen = [math.log(12) + float(torch.softmax(row, 0)[i].log()) for i, row in enumerate(scores)]
    terms = loss(x, y)
    assert float(terms.value.detach()) == pytest.approx(np.mean(chosen), abs=1e-5)
    assert float(terms.critic.detach()) == pytest.approx(-np.mean(chosen), abs=1e-5)


def test_infonce_with_a_trained_critic_finds_the_information_of_gaussians():
    loss = InfoNCE(config(hidden_size=1))
    optimizer = torch.optim.Adam(loss.parameters(), 1e-2)
    for step in range(80):
        optimizer.zero_grad()
        loss(*gaussian(256, 0.8, seed=100 + step, dim=1)).critic.backward()
        optimizer.step()
    value = np.mean([float(loss(*gaussian(512, 0.8, seed=s, dim=1)).value.detach()) for s in range(8)])
    assert value == pytest.approx(-0.5 * math.log(1 - 0.64), abs=0.08)


# -- HSIC ----------------------------------------------------------------------------------------------------------------


def test_hsic_of_identical_states_is_one_also_when_rotated_or_scaled():
    x = whitened(100)
    rotation = torch.linalg.qr(torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(1))).Q
    for other in (x, 3 * x + 2, x @ rotation):
        assert float(HSIC(config())(x, other).value) == pytest.approx(1, abs=1e-4)


def test_hsic_is_the_trace_of_centred_kernels():
    x, y = gaussian(30, 0.6)

    def kernel(states):
        states = standardised(states).double().numpy()
        squared = ((states[:, None] - states[None]) ** 2).sum(-1)
        median = np.sort(squared[~np.eye(30, dtype=bool)])[(30 * 29 - 1) // 2]
        return np.exp(-squared / (2 * median))

    centre = np.eye(30) - 1 / 30
    k, m = kernel(x) @ centre, kernel(y) @ centre
    expected = np.trace(k @ m) / math.sqrt(np.trace(k @ k) * np.trace(m @ m))
    assert float(HSIC(config())(x, y).value) == pytest.approx(expected, abs=1e-5)


def test_hsic_sees_a_dependence_without_correlation():
    half = torch.randn(200, 1, generator=torch.Generator().manual_seed(0))
    x = torch.cat([half, -half])
    noise = torch.randn(400, 1, generator=torch.Generator().manual_seed(1))
    settings = config(hidden_size=1)
    assert float(HSIC(settings)(x, x**2).value) > 10 * float(HSIC(settings)(x, noise).value)
    assert float(CrossCorrelation(settings)(x, x**2).value) < 1e-6


def test_the_bandwidth_of_hsic_is_a_constant_in_the_gradient(monkeypatch):
    x, y = (states.requires_grad_() for states in gaussian(30, 0.6))
    (found,) = torch.autograd.grad(HSIC(config())(x, y).value, x)
    bandwidth, kept = hsic._bandwidth, []
    monkeypatch.setattr(hsic, "_bandwidth", lambda distances: kept.append(float(bandwidth(distances))) or kept[-1])
    (expected,) = torch.autograd.grad(HSIC(config())(x, y).value, x)
    assert len(kept) == 2
    torch.testing.assert_close(found, expected)


# -- cross-correlation ---------------------------------------------------------------------------------------------------


def test_cross_correlation_is_that_of_numpy():
    x, y = gaussian(50, 0.6)
    expected = np.corrcoef(x.numpy().T, y.numpy().T)[:DIM, DIM:]
    assert float(CrossCorrelation(config())(x, y).value) == pytest.approx(np.mean(expected**2), abs=1e-6)


def test_cross_correlation_of_rotated_identical_states_is_one_by_d():
    x = whitened(100)
    rotation = torch.linalg.qr(torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(1))).Q
    for other in (x, -x, x @ rotation):
        assert float(CrossCorrelation(config())(x, other).value) == pytest.approx(1 / DIM, abs=1e-5)
    one = x[:, :1].expand(-1, DIM)
    assert float(CrossCorrelation(config())(one, one).value) == pytest.approx(1, abs=1e-5)


def test_cross_correlation_of_independent_states_is_one_by_n_minus_one():
    values = [float(CrossCorrelation(config())(*gaussian(21, 0.0, seed)).value) for seed in range(300)]
    assert np.mean(values) == pytest.approx(1 / 20, rel=0.08)
