# SPDX-License-Identifier: Apache-2.0
"""What a molecule half written is going to be worth, learned for samplers that go step by step."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_tilt.examples.molecules.model import VOCABULARY
from pyro_tilt.infer.twists import LearnedTwist, learn_twists
from pyro_tilt.infer.twists.learned import floored
from pyro_tilt.infer.twists.twist import Twist
from pyro_tilt.language import NeuralLM
from pyro_tilt.ops.importance import as_double
from pyro_tilt.poutine import scan
from pyro_tilt.rewards import Reward

# A stop whose largest possible share of a step's mass is below e to this is not looked up.
_NEGLIGIBLE = -9.0


class Foreseen(NamedTuple):
    """
    The carry of a :class:`ForeseeingProgram`.

    :ivar tokens: so far, shape ``(..., t)``.
    :ivar law: log probabilities of the next token, ``(..., V)``.
    :ivar state: of the network before its last token was read, one row per particle; frozen where
        a sequence has ended.
    :ivar ahead: of the network after it.
    """

    tokens: Tensor
    law: Tensor
    state: Tensor
    ahead: Tensor


class ForeseeingProgram:
    """
    A recurrent language model whose carry holds the law of its next token.

    The sites and the law are those of :meth:`NeuralLM.program`. There the network reads a token at
    the start of the next step, here at the end of its own, so that what a step aims at can be
    summed over its tokens before any of them is proposed.

    :param model: a language model with a recurrent module and one stop token.
    """

    def __init__(self, model: NeuralLM) -> None:
        self.model = model

    def __call__(self) -> Tensor:
        model, reader = self.model, self.model.reader
        law, state = reader.start(torch.empty(1, 0, dtype=torch.long))

        def step(carry: Foreseen, t: int) -> Foreseen:
            first = not carry.tokens.shape[-1]
            law = carry.law[0] if first else carry.law
            token = pyro.sample(f"token_{t}", dist.Categorical(logits=law))
            before = carry.ahead
            if first:
                tokens = token.unsqueeze(-1)
                before = reader.spread(before, token.numel())
            else:
                tokens = torch.cat([carry.tokens, token.unsqueeze(-1)], -1)
            if t + 1 == model.max_tokens:
                return Foreseen(tokens, law, before, before)
            law, ahead = reader.advance(tokens, before)
            ended = reader.ended(tokens).reshape(-1, 1, 1)
            return Foreseen(tokens, law, before, torch.where(ended, before, ahead))

        start = Foreseen(torch.empty(1, 0, dtype=torch.long), law, state, state)
        tokens = scan("token_scan", step, start, range(model.max_tokens)).tokens
        pyro.deterministic("tokens_finished", model.finished(tokens))
        return pyro.deterministic("tokens", tokens, event_dim=1)


class NextTokenValues(nn.Module):
    """
    Values of every next token from what the network keeps of those before it.

    They stay within ``reach`` of the constant that the fit starts from. A molecule that turns out
    well where nothing was expected costs the LINEX loss e to the surprise, and some thousand paths
    cannot tell such places apart; further than this a sampler has little to gain.

    :param hidden: width of the network's last layer.
    :param tokens: size of the vocabulary.
    :param steps: of the program.
    :param width: of the hidden layer.
    :param reach: in nats.
    """

    mixes_steps = True

    def __init__(
        self, hidden: int, tokens: int, steps: int, *, width: int = 64, reach: float = 3.0
    ) -> None:
        super().__init__()
        self.hidden, self.reach = hidden, reach
        self.places = nn.Embedding(steps, 8)
        last = nn.Linear(width, tokens)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.body = nn.Sequential(nn.Linear(hidden + 8, width), nn.SiLU(), last)

    def every(self, hidden: Tensor, place: int | Tensor) -> Tensor:
        """
        Values of all tokens, shape ``(n, V)``.

        :param hidden: of the network, scaled, shape ``(n, hidden)``.
        :param place: position of the step, or of a step per row, shape ``(n,)``.
        """
        where = self.places.weight[place].expand(len(hidden), -1)
        values: Tensor = self.body(torch.cat([hidden, where], -1))
        return self.reach * torch.tanh(values / self.reach)

    def forward(self, features: Tensor, place: int | Tensor) -> Tensor:
        """
        Values of the tokens that were written.

        :param features: the hidden state and the token as a one-hot vector.
        :param place: as in :meth:`every`.
        """
        hidden, token = features[:, : self.hidden], features[:, self.hidden :]
        return (self.every(hidden, place) * token).sum(-1)


def features(carry: Foreseen) -> Tensor:
    """
    The last layer of the network before the last token, and that token as a one-hot vector.

    :param carry: of a :class:`ForeseeingProgram`.
    """
    top = carry.state[:, -1]
    token = nn.functional.one_hot(carry.tokens[..., -1], len(VOCABULARY))
    return torch.cat([top, token.reshape(len(top), -1).to(top)], -1)


def unfinished(carry: Foreseen) -> Tensor:
    """
    Whether the last token was open, shape ``(n,)``: after a stop nothing is left to decide.

    :param carry: of a :class:`ForeseeingProgram`.
    """
    return ~(carry.tokens[..., :-1] == VOCABULARY.stop).any(-1).reshape(-1)


class MoleculeValue(Twist):
    r"""
    Log soft values of a bounded reward of molecules: exact once they are written, else learned.

    Among particles that are weighed an exact value can only help. A chain that draws each token by
    its value compares it with what is learned of going on instead, and pays for the difference: it
    does better where ``exact`` is False and what is written goes by its learned value too.

    :param learned: made by :func:`~pyro_tilt.infer.twists.learn_twists`.
    :param reward: of tokens, between 0 and 1.
    :param beta: multiplies it.
    :param exact: whether molecules that are written are looked up.
    """

    def __init__(
        self, learned: LearnedTwist, reward: Reward, beta: float, *, exact: bool = True
    ) -> None:
        super().__init__()
        self.learned, self.reward, self.beta, self.exact = learned, reward, beta, exact

    def log_psi(self, carry: Any, x: Any) -> Tensor:
        """See :meth:`Twist.log_psi`; the carry is that of a :class:`ForeseeingProgram`."""
        values = self.learned.log_psi(carry, x).detach().clamp(0.0, self.beta)
        ended = carry.tokens[..., -1] == VOCABULARY.stop
        if self.exact and bool(ended.any()):
            values[ended] = self.beta * as_double(self.reward(carry.tokens[ended]))
        return values

    def aims(self, tokens: Tensor, hidden: Tensor, law: Tensor, place: int) -> Tensor:
        r"""
        :math:`A_t` of every next token, shape ``(n, V)``: its value, at the last step its reward.

        Where stops are exact, one is looked up if it may have a share of the mass, and counts as
        the best elsewhere.

        :param tokens: so far, shape ``(n, t)``.
        :param hidden: last layer of the network after them, shape ``(n, hidden)``.
        :param law: log probabilities of the next token, ``(n, V)``.
        :param place: position of the step.
        """
        twist, stop = self.learned, VOCABULARY.stop
        network = twist.network
        assert isinstance(network, NextTokenValues)
        last = place + 1 == twist.num_steps
        if last:
            values = torch.zeros_like(law, dtype=torch.float64)
        else:
            mean, spread = (each[place, : network.hidden] for each in (twist.mean, twist.spread))
            with torch.no_grad():
                raw = network.every((hidden - mean) / spread, place)
            values = (as_double(floored(raw)) + twist.offset[place]).clamp(0.0, self.beta)
        if not (self.exact or last):
            return values
        others = (as_double(law) + values).index_fill(
            -1, torch.tensor([stop], device=law.device), -torch.inf
        )
        share = as_double(law[:, stop]) + self.beta - others.logsumexp(-1)
        values[:, stop] = self.beta
        rows = (share > _NEGLIGIBLE).nonzero().squeeze(-1)
        if len(rows):
            finished = nn.functional.pad(tokens[rows], (0, 1), value=stop)
            values[rows, stop] = self.beta * as_double(self.reward(finished))
        return values

    def log_mgf(self, carry: Foreseen, x: Any, orders: Tensor) -> Tensor:
        r"""
        :math:`\log E[e^{s A_t} \mid y]`, summed over the tokens: no proposal, and no network row.

        :param carry: before the step.
        :param x: its element of ``xs``.
        :param orders: s, shape ``(K,)``.
        :returns: shape ``(n, K)``.
        """
        n = len(carry.tokens)
        law, tokens = carry.law.reshape(n, -1), carry.tokens.reshape(n, -1)
        hidden = carry.ahead.reshape(n, *carry.ahead.shape[-2:])[:, -1]
        place = self.learned.keys(x)
        aims = self.aims(tokens, hidden, law, place)
        ended = (tokens == VOCABULARY.stop).any(-1)
        looked_up = self.exact or place + 1 == self.learned.num_steps
        if looked_up and bool(ended.any()):
            # Nothing but another stop follows, and changes nothing.
            aims[ended] = self.beta * as_double(self.reward(tokens[ended])).unsqueeze(-1)
        weighed = orders.to(aims) * aims.unsqueeze(-1) + as_double(law).unsqueeze(-1)
        return weighed.logsumexp(1)

    @torch.no_grad()
    def log_ratio(self, model: NeuralLM, tokens: Tensor) -> Tensor:
        r"""
        Log ratio of the value-tilted chain to the model, :math:`\sum_t A_t(y_t) - \psi_1(y_{<t})`.

        :param model: the language model.
        :param tokens: whole sequences, shape ``(n, T)``.
        :returns: shape ``(n,)``.
        """
        network: Any = model.model
        read = nn.functional.pad(tokens[:, :-1], (1, 0), value=VOCABULARY.begin)
        start = network.initial_state(len(tokens)).transpose(0, 1).contiguous()
        hidden, _ = network.recurrent(network.embedding(read), start)
        laws = model.reader.choice.log_probs(network.head(hidden))
        total = torch.zeros(len(tokens), dtype=torch.float64)
        live = torch.ones(len(tokens), dtype=torch.bool)
        for place in range(tokens.shape[1]):
            rows = live.nonzero().squeeze(-1)
            if not len(rows):
                break
            law, token = laws[rows, place], tokens[rows, place]
            aims = self.aims(tokens[rows, :place], hidden[rows, place], law, place)
            normalizer = (aims + as_double(law)).logsumexp(-1)
            chosen = aims.gather(-1, token.unsqueeze(-1)).squeeze(-1)
            total[rows] += chosen - normalizer
            live[rows] = token != VOCABULARY.stop
        return total


def learn_value(
    model: NeuralLM,
    reward: Reward,
    beta: float,
    *,
    num_paths: int,
    updates: int,
    seed: int,
    progress: bool | None = None,
) -> MoleculeValue:
    """
    Fits a :class:`MoleculeValue` to molecules that the model writes.

    :param model: the language model.
    :param reward: of tokens, between 0 and 1.
    :param beta: multiplies it.
    :param num_paths: molecules to learn from; as many again choose and calibrate.
    :param updates: gradient steps per step of the program.
    :param seed: of the molecules and the fit.
    :param progress: see :func:`~pyro_tilt.infer.twists.learn_twists`.
    """
    like: Any = model.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width, size = like.recurrent.hidden_size, model.vocabulary_size
        network = NextTokenValues(width, size, model.max_tokens)
    learned = learn_twists(
        ForeseeingProgram(model),
        reward=reward,
        beta=beta,
        network=network,
        features=features,
        where=unfinished,
        standardize=False,
        num_particles=num_paths,
        rounds=1,
        steps=updates,
        batch_size=2048,
        lr=5e-3,
        weight_decay=2.0,
        seed=seed,
        progress=progress,
    )
    return MoleculeValue(learned, reward, beta)
