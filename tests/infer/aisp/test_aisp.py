# SPDX-License-Identifier: Apache-2.0
"""AISP on small networks whose decoding can be done by hand."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import nn

from pyro_tilt import scan
from pyro_tilt.infer import AISP, ZeroWeights, counted
from pyro_tilt.infer.aisp import aisp as module_under_test
from pyro_tilt.infer.aisp.decoding import PerturbedDecoding
from pyro_tilt.language import NeuralLM

V, D, T = 4, 3, 3


class Markov(nn.Module):
    """Hidden states that depend on the last token alone."""

    def __init__(self, seed=0, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        weights = torch.randn(V + 1 + V, D, generator=generator, dtype=torch.float64).to(dtype)
        self.embedding = nn.Embedding(V + 1, D, _weight=weights[: V + 1])
        self.head = nn.Linear(D, V, bias=False, dtype=dtype)
        self.head.weight.data = weights[V + 1 :]

    def logits(self, last):
        return self.head(self.embedding(last))

    def initial_state(self, batch):
        return torch.zeros(batch, 1)

    def forward(self, tokens, state):
        return self.logits(tokens), state

    def program(self):
        def step(carry, t):
            last = torch.tensor(V) if carry is None else carry[..., -1]
            token = pyro.sample(f"token_{t}", dist.Categorical(logits=self.logits(last)))
            token = token.unsqueeze(-1)
            return token if carry is None else torch.cat([carry, token], -1)

        return pyro.deterministic("tokens", scan("s", step, None, range(T)), event_dim=1)


NET = Markov()


def by_hand(shifts, net=NET):
    """Greedy decoding under perturbations (rows, tau, D)."""
    tokens = torch.full((len(shifts), 1), V)
    for t in range(T):
        hidden = net.embedding(tokens[:, -1])
        if t < shifts.shape[1]:
            hidden = hidden + shifts[:, t]
        tokens = torch.cat([tokens, net.head(hidden).argmax(-1, keepdim=True)], -1)
    return tokens[:, 1:]


def reward(tokens):
    return (tokens == 2).double().sum(-1) + 0.1 * tokens[..., 0]


def search(net=NET, **options):
    defaults = {"module": net.head, "reward": reward, "n": 16, "iterations": 4, "seed": 0}
    defaults.update(sigma=0.7, lam=0.5, alpha=0.5, progress=False, num_samples=5)
    return AISP(net.program, **{**defaults, **options})


@pytest.mark.parametrize("tau", [0, 1, 2, 3])
def test_decoding_is_greedy_under_the_perturbation(tau):
    shifts = torch.randn(40, tau, D, dtype=torch.float64)
    sampler = search(tau=tau)
    proposal = sampler._proposal((), {})
    with PerturbedDecoding(NET.head, shifts, greedy=True):
        draws = proposal.draw(40)
    assert torch.equal(draws.samples["tokens"], by_hand(shifts))
    if tau:
        assert len(draws.samples["tokens"][:, :tau].unique(dim=0)) > 1
    # From the horizon on tokens are what greedy decoding makes of those before.
    greedy = by_hand(torch.zeros(1, 0, D).double())
    assert tau or bool((draws.samples["tokens"] == greedy).all())


def test_the_hook_is_gone_after_a_run_and_after_an_error():
    search().run()
    with pytest.raises(ValueError, match="NaN"):
        search(reward=lambda y: reward(y) * math.nan).run()
    assert not NET.head._forward_pre_hooks


def test_small_noise_is_greedy_decoding():
    greedy = by_hand(torch.zeros(1, 0, D).double())
    result = search(sigma=1e-9, returns="final").run()
    assert bool((result.samples["tokens"] == greedy).all())


def test_one_iteration_reweighs_the_prior(monkeypatch):
    """After one iteration U is the mean of V under softmax(r / lam), and no other draw counts."""
    seen = []
    right = module_under_test.PrelogitGaussian.updated

    def note(self, shifts, rewards):
        made = right(self, shifts, rewards)
        seen.append((shifts, rewards, made.mean))
        return made

    monkeypatch.setattr(module_under_test.PrelogitGaussian, "updated", note)
    result = search(iterations=1).run()
    ((shifts, rewards, mean),) = seen
    assert shifts.shape == (5, 16, T, D)
    torch.testing.assert_close(rewards, reward(by_hand(shifts.flatten(0, 1))).reshape(5, 16))
    weights = (rewards / 0.5).softmax(-1)
    torch.testing.assert_close(mean, (weights[..., None, None] * shifts).sum(1))
    bound = mean.square().sum((-1, -2)) / (2 * 0.7**2)
    torch.testing.assert_close(result.stats["kl_bound"], bound)
    assert result.info["kl_bound"] == pytest.approx(float(bound.mean()))


def test_searches_are_the_single_search_in_parallel_and_the_best_is_kept():
    result = search(iterations=6, num_final=8, returns="final").run()
    assert len(result) == 40
    assert result.stats["search"].tolist() == [k for k in range(5) for _ in range(8)]
    final = result.stats["reward"].reshape(5, 8).amax(-1)
    best = result.stats["best_reward"][::8]
    assert bool((best >= final).all())
    same = search(iterations=6, num_final=8).run()
    assert torch.equal(same.stats["reward"], best)
    torch.testing.assert_close(same.stats["reward"], reward(same.samples["tokens"]))
    rows = 5 * (6 * 16 + 8)
    assert (same.cost.base_draws, same.cost.reward_calls) == (rows, rows)
    assert {name: len(value) for name, value in same.steps.items()} == dict.fromkeys(
        ("reward", "best", "ess", "kl_bound"), 6
    )
    assert bool((same.steps["best"].diff() >= 0).all())


def test_a_search_finds_what_chance_does_not():
    """All tokens equal to 2 are rare under noise; the search walks there."""
    target = lambda y: (y == 2).double().sum(-1)  # noqa: E731
    noise = search(iterations=0, num_final=160, num_samples=20, reward=target, returns="final")
    drawn = search(
        iterations=9, num_final=16, num_samples=20, alpha=0.9, reward=target, returns="final"
    )
    before, after = (float(each.run().stats["reward"].mean()) for each in (noise, drawn))
    assert after > before + 1.0
    assert drawn.run().info["effective_lam"] == pytest.approx(0.05)


def test_the_divergence_of_what_is_decoded_is_below_the_bound():
    shift = torch.full((1, T, D), 0.35, dtype=torch.float64)
    sigma = 0.7
    bound = float(shift.square().sum() / (2 * sigma**2))
    noise = sigma * torch.randn(
        200_000, T, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    code = torch.tensor([16, 4, 1])
    counts = [
        torch.bincount((by_hand(each) * code).sum(-1), minlength=64).double() + 0.5
        for each in (noise + shift, noise)
    ]
    after, before = (each / each.sum() for each in counts)
    found = float((after * (after / before).log()).sum())
    assert 0.05 < found < bound


def test_sampled_decoding_without_noise_is_the_model():
    result = search(
        decode="sample", sigma=1e-9, iterations=0, num_final=50_000, num_samples=1, returns="final"
    ).run()
    law = torch.ones(1, dtype=torch.float64)
    last = torch.tensor([V])
    for _ in range(T):
        law = (law[:, None] * NET.logits(last).softmax(-1)).flatten().detach()
        last = torch.arange(V).repeat(len(law) // V)
    code = torch.tensor([16, 4, 1])
    counts = torch.bincount((result.samples["tokens"] * code).sum(-1), minlength=64).double()
    expected = law * 50_000
    statistic = float(((counts - expected).square() / expected).sum())
    assert stats.chi2.sf(statistic, 63) > 1e-4
    assert "sampled decoding" in result.certificate.target


def test_a_network_with_stop_tokens_and_a_shared_first_token():
    """Rows that have ended are left out of the calls; each particle has a first law of its own."""
    net = Markov(seed=3)
    lm = NeuralLM(net, max_tokens=T, begin_token=0, stop_token=1)
    shifts = torch.randn(60, T, D, dtype=torch.float64)
    sampler = AISP(lm.program(), module=net.head, reward=reward)
    assert sampler.stop_tokens == (1,)
    proposal = sampler._proposal((), {})
    with PerturbedDecoding(net.head, shifts, greedy=True, stop_tokens=(1,)) as decoding:
        draws = proposal.draw(60)
    assert decoding.calls == T
    tokens, ended = torch.zeros(60, 1).long(), torch.zeros(60).bool()
    for t in range(T):
        logits = net.head(net.embedding(tokens[:, -1]) + shifts[:, t])
        token = torch.where(ended, torch.tensor(1), logits.argmax(-1))
        tokens, ended = torch.cat([tokens, token[:, None]], -1), ended | (token == 1)
    assert 0 < int(ended.sum()) < 60
    assert torch.equal(draws.samples["tokens"], tokens[:, 1:])


class Scaled(Markov):
    """The network with states ``scale`` times as large and a head that undoes it."""

    def __init__(self, scale):
        super().__init__()
        self.embedding.weight.data *= scale
        self.head.weight.data /= scale


def expected_steepness(tau=T):
    """The trace of the Fisher information of each token in its state, over the law of texts."""
    weight = NET.head.weight.detach()
    law, last, total = torch.ones(1, dtype=torch.float64), torch.tensor([V]), 0.0
    for _ in range(tau):
        p = NET.logits(last).detach().softmax(-1)
        mean = p @ weight
        trace = (p * weight.square().sum(-1)).sum(-1) - mean.square().sum(-1)
        total += float(law @ trace)
        law = (law[:, None] * p).flatten()
        last = torch.arange(V).repeat(len(p))
    return total


@pytest.mark.parametrize("tau", [1, 2, 3])
def test_sigma_is_what_moves_the_model_by_as_many_nats(tau):
    options = {"sigma": None, "noise": 0.3, "tau": tau, "n": 4000, "num_samples": 1}
    sampler = search(iterations=0, num_final=1, **options)
    result = sampler.run()
    # The mean square of one normal per state, over 4000 states per token.
    exact = math.sqrt(2 * 0.3 / expected_steepness(tau))
    assert result.info["sigma"] == pytest.approx(exact, rel=0.06)
    assert result.cost.base_draws == 4001


def test_sigma_does_what_it_says():
    """The divergence of sampled decoding under noise, by enumeration of the first token."""
    sigma = search(sigma=None, noise=0.02, tau=1, n=4000, num_samples=1).run().info["sigma"]
    noise = sigma * torch.randn(20_000, D, generator=torch.Generator().manual_seed(1)).double()
    plain = NET.logits(torch.tensor(V)).detach().log_softmax(-1)
    moved = NET.head(NET.embedding(torch.tensor(V)) + noise).detach().log_softmax(-1)
    nats = (moved.exp() * (moved - plain)).sum(-1).mean()
    assert float(nats) == pytest.approx(0.02, rel=0.1)


def test_sigma_follows_the_scale_of_the_states_and_nothing_else_does():
    plain, large = (
        search(net=net, sigma=None, decode="greedy", seed=4) for net in (Markov(), Scaled(50.0))
    )
    first, second = plain.run(), large.run()
    assert second.info["sigma"] == pytest.approx(50.0 * first.info["sigma"], rel=1e-6)
    assert torch.equal(first.samples["tokens"], second.samples["tokens"])
    assert first.info["kl_bound"] == pytest.approx(second.info["kl_bound"], rel=1e-6)
    again = plain.run()
    assert again.info["sigma"] == first.info["sigma"]
    assert search().run().info["sigma"] == 0.7


def test_tokens_after_a_stop_do_not_count_towards_sigma():
    net = Markov(seed=3)
    options = {"sigma": None, "n": 4000, "num_samples": 1, "iterations": 0, "num_final": 1}
    lm = NeuralLM(net, max_tokens=T, begin_token=0, stop_token=1)
    found = AISP(
        lm.program(), module=net.head, reward=reward, seed=0, progress=False, **options
    ).run()
    weight, total, law = net.head.weight.detach(), 0.0, {(0,): 1.0}
    for _ in range(T):
        following = {}
        for text, mass in law.items():
            p = net.logits(torch.tensor(text[-1])).detach().softmax(-1)
            trace = p @ weight.square().sum(-1) - (p @ weight).square().sum()
            total += mass * float(trace)
            for token in range(V):
                if token != 1:
                    following[(*text, token)] = mass * float(p[token])
        law = following
    assert found.info["sigma"] == pytest.approx(math.sqrt(2.0 / total), rel=0.06)


def test_a_module_that_ignores_its_input_has_no_sigma():
    net = Markov()
    net.head.weight.data.zero_()
    with pytest.raises(ValueError, match="give sigma="):
        search(net=net, sigma=None).run()


def test_certificate_seeds_and_rows():
    counted(NET.head)
    result = search().run()
    certificate = result.certificate
    assert certificate.law == "search"
    assert "greedy decoding under noise is not" in certificate.excludes
    assert torch.equal(result.samples["tokens"], search().run().samples["tokens"])
    assert not torch.equal(
        search(seed=1, returns="final").run().samples["tokens"],
        search(returns="final").run().samples["tokens"],
    )
    # The states of the particles differ from the first token on.
    assert result.cost.network_rows == result.cost.base_draws * T
    small = search(max_batch=32).run()
    assert len(small) == 5
    beta = search(lam=None, beta=4.0)
    assert beta.start.lam == 0.25


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n": 0}, ValueError, "n must be"),
        ({"iterations": -1}, ValueError, "iterations"),
        ({"tau": -1}, ValueError, "tau"),
        ({"sigma": 0.0}, ValueError, "sigma"),
        ({"noise": 1.0}, ValueError, "give one of them"),
        ({"sigma": None, "noise": 0.0}, ValueError, "noise must be"),
        ({"lam": -1.0}, ValueError, "lam"),
        ({"alpha": 2.0}, ValueError, "alpha"),
        ({"beta": 1.0}, ValueError, "give one of them"),
        ({"lam": None, "beta": 0.0}, ValueError, "beta must be positive"),
        ({"decode": "beam"}, ValueError, "decode must be one of"),
        ({"returns": "all"}, ValueError, "returns must be one of"),
        ({"reward": None}, ValueError, "give reward="),
        ({"module": 3}, TypeError, "torch.nn.Module"),
        ({"num_final": 0}, ValueError, "num_final"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        search(**options)


def test_bad_programs():
    with pytest.raises(ValueError, match="does not call module"):
        search(module=nn.Linear(2, 2)).run()
    with pytest.raises(ValueError, match="must read hidden states"):
        search(module=NET.embedding).run()

    def normal():
        NET.head(torch.zeros(D).double())
        return pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))

    with pytest.raises(ValueError, match="'x' is no categorical token"):
        AISP(normal, module=NET.head, reward=lambda x: x).run()
    with pytest.raises(ZeroWeights):
        search(reward=lambda y: torch.full(y.shape[:-1], -math.inf)).run()
