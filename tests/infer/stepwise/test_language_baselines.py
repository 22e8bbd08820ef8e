# SPDX-License-Identifier: Apache-2.0
"""Baselines of language programs from their default features, by enumeration of all prefixes."""

import pytest
import torch

from pyro_tilt.infer import LCB
from pyro_tilt.infer.stepwise import learn_baselines, load_baselines
from pyro_tilt.infer.stepwise.baselines import StateRule, baselines_from_mgf
from pyro_tilt.language import Decoding, NeuralLM, TabularLM

VOCABULARY, LENGTH, BETA, EPSILON = 3, 4, 3.0, 0.1
SCORES = torch.rand(VOCABULARY**LENGTH, generator=torch.Generator().manual_seed(4)).double()


class Gated(torch.nn.Module):
    """Logits of three tokens from a gated recurrent network of random weights."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.recurrent = torch.nn.GRU(VOCABULARY, 6, batch_first=True)
            self.head = torch.nn.Linear(6, VOCABULARY)
            self.head.weight.data *= 4.0

    def initial_state(self, batch):
        return torch.zeros(batch, 1, 6)

    def forward(self, tokens, state):
        read = torch.nn.functional.one_hot(tokens, VOCABULARY).float()
        found, last = self.recurrent(read, state.transpose(0, 1).contiguous())
        return self.head(found), last.transpose(0, 1)


def prefixes(t):
    return torch.cartesian_prod(*[torch.arange(VOCABULARY)] * t).reshape(-1, t)


def code(tokens):
    powers = VOCABULARY ** torch.arange(tokens.shape[-1] - 1, -1, -1)
    return (tokens * powers).sum(-1)


def reward(tokens):
    return SCORES[code(tokens)]


class Known:
    """All laws, values and states of a model, by enumeration."""

    def __init__(self, model):
        self.model = model
        self.program = model.program()
        self.laws = []
        for t in range(LENGTH):
            before = prefixes(t) if t else None
            with torch.no_grad():
                law = model.next_log_probs(before)
            self.laws.append(law.detach().double().reshape(-1, VOCABULARY).log_softmax(-1))
        values = [BETA * SCORES]
        for law in reversed(self.laws):
            values.append((law + values[-1].reshape(-1, VOCABULARY)).logsumexp(-1))
        self.values = values[::-1]
        tilted = [torch.zeros(1).double()]
        for law, here, ahead in zip(self.laws, self.values, self.values[1:]):
            share = law + ahead.reshape(-1, VOCABULARY) - here.unsqueeze(-1)
            tilted.append((tilted[-1].unsqueeze(-1) + share).flatten())
        self.tilted = [each.exp() for each in tilted]

    def value(self, carry, t):
        return self.values[t + 1][code(carry.tokens)]

    def log_mgf(self, carry, t, orders):
        at = [0] if carry.tokens is None else code(carry.tokens)
        ahead = self.values[t + 1].reshape(-1, VOCABULARY)[at]
        terms = orders[:, None] * ahead[:, None] + self.laws[t][at][:, None]
        return terms.logsumexp(-1)

    def cost(self, baselines):
        """Clipped mass and mean proposals of each step, over the states of the tilted chain."""
        found = []
        for t in range(LENGTH):
            carry = Decoding(prefixes(t) if t else None, None, VOCABULARY)
            b, v = baselines(carry, t).reshape(-1, 1), self.values[t]
            A = self.values[t + 1].reshape(-1, VOCABULARY)
            kept = (self.laws[t] + torch.minimum(A, b)).logsumexp(-1)
            clipped = -torch.expm1(kept - v)
            proposals = (b.squeeze(-1) - kept).exp()
            found.append([float(self.tilted[t] @ each) for each in (clipped, proposals)])
        return torch.tensor(found).double().T


MODELS = {
    "tabular": lambda: TabularLM.random(VOCABULARY, LENGTH, seed=7, scale=1.2),
    "gated": lambda: NeuralLM(Gated(), max_tokens=LENGTH, begin_token=0),
}


@pytest.fixture(scope="module", params=MODELS)
def known(request):
    return Known(MODELS[request.param]())


def options(known):
    return {"reward": reward, "beta": BETA, "value": known.value, "tilt_start": False}


def learn(known, **given):
    fast = {"num_chains": 3000, "steps": 150, "epsilon": EPSILON, "progress": False}
    return learn_baselines(known.program, seed=0, **{**fast, **options(known), **given})


def sharpest(known):
    """What the Chernoff baselines of known log-MGFs clip and cost."""
    rule = StateRule("chernoff", EPSILON / (LENGTH + 1), 1.0, 0.0)

    def baselines(carry, t):
        n = 1 if carry.tokens is None else len(carry.tokens)
        return baselines_from_mgf(rule, known.log_mgf, carry, t, n, "step")

    return known.cost(baselines)


@pytest.mark.parametrize("rule", ["chernoff", "marginal"])
def test_default_features_make_baselines_near_the_exact_ones(known, rule):
    learned = learn(known, rule=rule)
    mass, proposals = known.cost(learned)
    share = EPSILON / (LENGTH + 1)
    # Calibrated on 750 chains at one standard error to the safe side.
    assert float(mass.sum()) < 1.2 * EPSILON and float(mass.max()) < 1.6 * share
    best = sharpest(known)[1]
    assert float(proposals.sum()) < 1.15 * float(best.sum())
    assert float((proposals / best).max()) < 1.3
    torch.testing.assert_close(learned.report.proposals, proposals, rtol=0.1, atol=0.0)


def test_heads_tell_every_prefix_from_every_other(known):
    """
    Log-MGFs of single prefixes, gated as means over single prefixes and an optimiser would be.

    Of n pairs n p fall on a prefix of mass p, each with a relative variance of
    E[e^{2sA}] / E[e^{sA}]^2 - 1; the optimiser may add a tenth of the order.
    """
    learned = learn(known)
    orders = torch.tensor([1.0, 2.0]).double()
    for t in range(1, LENGTH):
        carry = Decoding(prefixes(t), None, VOCABULARY)
        right, law = known.log_mgf(carry, t, orders), known.tilted[t]
        gap = learned.log_mgf(carry, t)[:, :2] - right
        error = (law @ gap.square()).sqrt()
        single = (known.log_mgf(carry, t, 2.0 * orders) - 2.0 * right).expm1()
        # Half of the chains train, with four draws each.
        noise = (single.sum(0) / (0.5 * 3000 * 4)).sqrt()
        assert bool((error < 2.0 * noise + 0.1 * orders).all())
        spread = (law @ (right - law @ right).square()).sqrt()
        assert bool((error < 0.5 * spread).all())


def test_the_sampler_goes_by_them(known, tmp_path):
    learned = learn(known)
    learned.save(tmp_path / "baselines.pt")
    back = load_baselines(tmp_path / "baselines.pt")
    assert back.heads[0].widths == learned.heads[0].widths == [1, 6, 9, 12]
    draws = [
        LCB(
            known.program,
            baseline=each,
            num_samples=4000,
            seed=5,
            check_lineage=False,
            progress=False,
            **options(known),
        ).run()
        for each in (learned, back)
    ]
    assert torch.equal(*(each.samples["tokens"] for each in draws))
    mass, proposals = known.cost(learned)
    assert draws[0].info["proposals_per_step"] == pytest.approx(float(proposals.mean()), rel=0.05)
    # The clipping of a path adds up over its steps, to first order.
    assert draws[0].info["clipping"] == pytest.approx(float(mass.sum()), rel=0.35)
    counts = torch.bincount(code(draws[0].samples["tokens"]), minlength=81).double()
    distance = 0.5 * float((counts / 4000 - known.tilted[-1]).abs().sum())
    noise = float((known.tilted[-1] / 4000).sqrt().sum()) * 0.4
    assert distance < float(mass.sum()) + 2.0 * noise


def test_prompts_and_starts_that_are_tilted(known):
    """A prompt stands in every carry but the first, which holds nothing."""
    length = LENGTH - (1 if isinstance(known.model, TabularLM) else 0)
    program = known.model.program([2])

    def score(tokens):
        return 0.5 * (tokens == 1).double().sum(-1)

    def value(carry, t):
        return torch.zeros(1).double() if carry.tokens is None else score(carry.tokens)

    tilt = {"reward": score, "beta": 1.0, "value": value}
    learned = learn_baselines(
        program, **tilt, tilt_start=False, num_chains=400, steps=10, seed=0, progress=False
    )
    widths = [1] + [3 + 3 * t for t in range(2, length + 1)]
    assert learned.heads[0].widths == widths
    run = LCB(program, **tilt, baseline=learned, tilt_start=False, num_samples=50, progress=False)
    assert bool((run.run().samples["tokens"][:, 0] == 2).all())


def test_features_of_ones_own_may_grow():
    known = Known(MODELS["tabular"]())
    read = []

    def features(carry):
        read.append(carry.tokens.shape[1])
        return torch.nn.functional.one_hot(carry.tokens, VOCABULARY).flatten(1).float()

    learned = learn(known, features=features, steps=20, num_chains=500)
    assert read == [1, 2, 3] and learned.heads[0].widths == [1, 3, 6, 9]
    carry = Decoding(prefixes(2), None, VOCABULARY)
    assert learned(carry, 2).shape == (9,)
    with pytest.raises(ValueError, match=r"\(N, 9\) at step 3, got \(9, 6\)"):
        learned(carry, 3)
