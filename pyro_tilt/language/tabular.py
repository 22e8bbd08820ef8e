# SPDX-License-Identifier: Apache-2.0
"""A language model that is a table, so that all it can say is known exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_tilt.language.checks import check_tables, check_tokens, given_tokens, whole_number
from pyro_tilt.language.tabular_program import TabularProgram
from pyro_tilt.language.values import mean_values, prefix_lookup, soft_values
from pyro_tilt.rewards import evaluate

__all__ = ["TabularLM"]

MAX_OUTCOMES = 2**21


class TabularLM:
    r"""
    A language model given by tables of next-token logits, small enough to be enumerated.

    Table :math:`t` holds the logits of token :math:`t` given the :math:`k_t \le t` tokens before
    it, the oldest first; the last table serves all later tokens, so that ``[initial, transition]``
    is a Markov chain of any length and one full table per position is any law at all. Probabilities
    are those of the tempered logits, :math:`\mathrm{softmax}(\text{logits} / \text{temperature})`,
    everywhere: what is scored is what is sampled. After ``stop_token`` a sequence is filled with
    it. A sequence without one within ``length`` has the probability of being cut there, and is told
    apart by :meth:`finished` and by the site ``tokens_finished`` of a program: a reward or a
    :class:`~pyro_tilt.rewards.Constraint` may read it.

    :param logits: tables of shape ``(V,) * (k + 1)``, ``-inf`` for impossible tokens; one tensor
        is a table without context.
    :param length: tokens of a sequence, by default the number of tables.
    :param temperature: divides the logits; above 0.
    :param stop_token: ends a sequence; None for sequences of full length.
    :param vocabulary: what :meth:`decode` writes for each token; by default its number.
    :raises ValueError: for tables that do not fit, NaN or ``+inf``, a context without any possible
        token, a temperature that is not positive, an unknown stop token, too few or many words.

    >>> lm = TabularLM([torch.tensor([0.5, 0.5]), torch.tensor([[0.9, 0.1], [0.3, 0.7]])], 3)
    >>> lm.enumerate().shape, round(float(lm.law().sum()), 6)
    (torch.Size([8, 3]), 1.0)
    """

    def __init__(
        self,
        logits: Tensor | Sequence[Tensor],
        length: int | None = None,
        *,
        temperature: float = 1.0,
        stop_token: int | None = None,
        vocabulary: Sequence[str] | None = None,
    ) -> None:
        tables = [logits] if isinstance(logits, Tensor) else list(logits)
        check_tables(tables)
        if not 0.0 < temperature < math.inf:
            raise ValueError(f"temperature must be positive and finite, got {temperature}")
        self.vocabulary_size = tables[0].shape[-1]
        self.length = len(tables) if length is None else whole_number("length", length)
        if not len(tables) <= self.length:
            raise ValueError(
                f"length must be at least the number of tables, got {self.length} for "
                f"{len(tables)} tables"
            )
        if stop_token is not None:
            stop_token = whole_number("stop_token", stop_token, at_least=-1)
            if not 0 <= stop_token < self.vocabulary_size:
                raise ValueError(
                    f"stop_token {stop_token} is not in the vocabulary of {self.vocabulary_size} "
                    "tokens"
                )
        words = None if vocabulary is None else [str(word) for word in vocabulary]
        if words is not None and len(words) != self.vocabulary_size:
            raise ValueError(f"vocabulary has {len(words)} words for {self.vocabulary_size} tokens")
        self.vocabulary = words
        self.temperature = float(temperature)
        self.stop_token = stop_token
        self.log_probs = [(table / temperature).log_softmax(-1) for table in tables]
        self._sequences: Tensor | None = None

    def __repr__(self) -> str:
        stops = "" if self.stop_token is None else f", stop_token={self.stop_token}"
        return f"TabularLM(vocabulary_size={self.vocabulary_size}, length={self.length}{stops})"

    @classmethod
    def random(
        cls,
        vocabulary_size: int,
        length: int,
        *,
        order: int | None = None,
        scale: float = 1.0,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        **options: Any,
    ) -> TabularLM:
        """
        A model whose logits are Gaussian noise.

        :param vocabulary_size: number of tokens.
        :param length: tokens of a sequence.
        :param order: tokens of context; None for all of them.
        :param scale: standard deviation of the logits.
        :param seed: of the noise; no random state is touched.
        :param dtype: of the tables.
        :param options: see :class:`TabularLM`.

        >>> TabularLM.random(3, 4, order=1).log_prob(torch.tensor([0, 1, 2, 0])).shape
        torch.Size([])
        """
        generator = torch.Generator().manual_seed(seed)
        context = length - 1 if order is None else min(order, length - 1)
        tables = [
            scale
            * torch.randn((vocabulary_size,) * (k + 1), generator=generator, dtype=torch.float64)
            for k in range(context + 1)
        ]
        return cls([table.to(dtype) for table in tables], length, **options)

    def next_log_probs(self, tokens: Tensor | None) -> Tensor:
        """
        Log probabilities of the next token.

        :param tokens: the tokens so far, ``(..., t)`` with t below ``length``; None for none.
        :returns: shape ``(..., V)``.
        :raises ValueError: for a sequence that is already complete, or unknown tokens.
        """
        t = 0 if tokens is None else tokens.shape[-1]
        if t >= self.length:
            raise ValueError(f"a sequence of {t} tokens has no next one; length is {self.length}")
        table = self._table(t)
        order = table.dim() - 1
        if tokens is None or t == 0:
            return table if tokens is None else table.expand(*tokens.shape[:-1], -1)
        self._check_tokens(tokens)
        context = self._code(tokens[..., t - order :])
        found = table.reshape(-1, self.vocabulary_size)[context]
        if self.stop_token is None:
            return found
        ended = (tokens == self.stop_token).any(-1, keepdim=True)
        stop = torch.full_like(table.reshape(-1, self.vocabulary_size)[0], -math.inf)
        stop[self.stop_token] = 0.0
        return torch.where(ended, stop, found)

    def log_prob(self, sequences: Tensor) -> Tensor:
        """
        Exact log probability of sequences, or of their beginnings.

        :param sequences: tokens, shape ``(..., t)`` with t at most ``length``.
        :returns: shape ``(...)``; ``-inf`` for another token after the stop token.
        :raises ValueError: for unknown tokens or too long a sequence.
        """
        if sequences.shape[-1] > self.length:
            raise ValueError(
                f"sequences of {sequences.shape[-1]} tokens are longer than length={self.length}"
            )
        self._check_tokens(sequences)
        total = self.log_probs[0].new_zeros(sequences.shape[:-1])
        for t in range(sequences.shape[-1]):
            law = self.next_log_probs(sequences[..., :t])
            total = total + law.gather(-1, sequences[..., t : t + 1]).squeeze(-1)
        return total

    def enumerate(self) -> Tensor:
        """
        All sequences in lexicographic order, shape ``(S, length)``.

        Those with another token after the stop token are left out; those that have probability
        zero for other reasons stay, so that models of one vocabulary share their outcomes.

        :raises ValueError: for more than two million sequences.
        """
        if self._sequences is None:
            grid = self._grid()
            if self.stop_token is not None:
                stops = grid == self.stop_token
                ended = stops.cumsum(-1) > 0
                grid = grid[(stops | ~ended).all(-1)]
            self._sequences = grid
        return self._sequences

    def index(self, sequences: Tensor) -> Tensor:
        """
        The rows of :meth:`enumerate` that sequences stand in.

        :param sequences: shape ``(..., length)``.
        :returns: shape ``(...)``.
        :raises ValueError: for a sequence that is not among them.

        >>> lm = TabularLM.random(3, 2)
        >>> lm.index(torch.tensor([[0, 2], [2, 1]])).tolist()
        [2, 7]
        """
        if sequences.shape[-1] != self.length:
            raise ValueError(
                f"sequences must have {self.length} tokens, got shape {tuple(sequences.shape)}"
            )
        self._check_tokens(sequences)
        codes = self._code(self.enumerate())
        found = torch.searchsorted(codes, self._code(sequences).contiguous())
        found = found.clamp(max=len(codes) - 1)
        if not bool((codes[found] == self._code(sequences)).all()):
            raise ValueError("sequences go on after the stop token; fill them with it")
        return found

    def log_law(self) -> Tensor:
        """Log probabilities of the rows of :meth:`enumerate`, shape ``(S,)``."""
        return self.log_prob(self.enumerate())

    def law(self) -> Tensor:
        """Probabilities of the rows of :meth:`enumerate`, shape ``(S,)``."""
        return self.log_law().exp()

    def reward_table(self, reward: Any) -> Tensor:
        """
        The reward of every row of :meth:`enumerate`.

        :param reward: a function of sequences ``(S, length)`` to ``(S,)``, or that table itself.
        :returns: shape ``(S,)``.
        :raises ValueError: for a wrong shape, NaN or ``+inf``.
        """
        sequences = self.enumerate()
        return evaluate(
            reward if callable(reward) else lambda _: torch.as_tensor(reward),
            sequences,
            shape=(len(sequences),),
        )

    def soft_values(self, reward: Any, beta: float) -> list[Tensor]:
        r"""
        Exact soft values :math:`V(y_{<t}) = \log E[e^{\beta r(y)} \mid y_{<t}]` by recursion.

        :param reward: see :meth:`reward_table`.
        :param beta: multiplies the reward.
        :returns: for t = 0, ..., length the values of all beginnings of t tokens, shape
            ``(V,) * t``; the first is the log normaliser and the last the log tilt itself.
            Beginnings that go on after the stop token have the value 0.

        >>> lm = TabularLM.random(2, 3)
        >>> values = lm.soft_values(lambda y: y.sum(-1).double(), beta=2.0)
        >>> direct = (lm.log_law() + 2.0 * lm.enumerate().sum(-1)).logsumexp(0)
        >>> bool(torch.isclose(values[0], direct))
        True
        """
        return soft_values(self, self.reward_table(reward), beta)

    def mean_values(self, reward: Any) -> list[Tensor]:
        r"""
        Exact mean values :math:`E[r(y) \mid y_{<t}]`, in the shapes of :meth:`soft_values`.

        :param reward: see :meth:`reward_table`.

        >>> lm = TabularLM.random(2, 3)
        >>> reward = lambda y: y.sum(-1).double()
        >>> direct = (lm.law() * reward(lm.enumerate())).sum()
        >>> bool(torch.isclose(lm.mean_values(reward)[0], direct))
        True
        """
        return mean_values(self, self.reward_table(reward))

    def value_function(self, values: Sequence[Tensor]) -> Callable[[Any, Any], Tensor]:
        """
        A table of values as the twist or value that samplers over steps ask for.

        :param values: one table per number of tokens, as from :meth:`soft_values`.
        :returns: a function of the carry of :meth:`program` and of the step to one value per
            particle.
        """
        return prefix_lookup(self, values)

    def finished(self, sequences: Tensor) -> Tensor:
        """
        Whether sequences came to their stop token, shape ``(...)``; True without a stop token.

        :param sequences: shape ``(..., t)``.
        """
        if self.stop_token is None:
            return torch.ones(sequences.shape[:-1], dtype=torch.bool, device=sequences.device)
        return (sequences == self.stop_token).any(-1)

    def decode(self, tokens: Tensor) -> list[str]:
        """
        The texts of sequences, their words set apart by spaces, up to the stop token.

        :param tokens: shape ``(n, t)``.

        >>> lm = TabularLM.random(3, 3, stop_token=2, vocabulary=["a", "b", "."])
        >>> lm.decode(torch.tensor([[0, 1, 1], [1, 2, 2]]))
        ['a b b', 'b .']
        """
        self._check_tokens(tokens)
        words = self.vocabulary or [str(token) for token in range(self.vocabulary_size)]
        rows = tokens.tolist()
        if self.stop_token is not None:
            rows = [
                row[: row.index(self.stop_token) + 1] if self.stop_token in row else row
                for row in rows
            ]
        return [" ".join(words[token] for token in row) for row in rows]

    def program(self, prompt: Sequence[int] = (), *, name: str = "token") -> TabularProgram:
        """
        The model as a Pyro program that returns the sequence, its prompt included.

        Its sites are ``token_t`` with t from the length of the prompt on, in a scan over t whose
        carry is a :class:`~pyro_tilt.language.Decoding`, then ``tokens_finished`` where there is a
        stop token, and at last ``tokens``, the whole sequence. Several prompts are several
        programs.

        :param prompt: the first tokens.
        :param name: of the sites, and with an s of the sequence.
        :returns: a program without arguments, which can ``decode``; its value has shape
            ``(length,)``, with the particles in front under a sampler.
        :raises ValueError: for a prompt that is too long, has unknown tokens or the stop token.

        >>> import pyro
        >>> pyro.set_rng_seed(0)
        >>> TabularLM.random(3, 4).program(prompt=[2])().shape
        torch.Size([4])
        """
        return TabularProgram(self, self._prompt(prompt), name)

    def given(self, prompt: Sequence[int]) -> TabularLM:
        """
        The law of what follows a prompt, as a model of its own.

        :param prompt: the first tokens, fewer than ``length``.

        >>> lm = TabularLM.random(3, 3, order=1)
        >>> rest = lm.given([2])
        >>> gap = lm.log_prob(torch.tensor([2, 0, 1])) - lm.log_prob(torch.tensor([2]))
        >>> bool(torch.isclose(rest.log_prob(torch.tensor([0, 1])), gap))
        True
        """
        start = self._prompt(prompt).tolist()
        tables = []
        for t in range(len(start), self.length):
            table = self._table(t)
            first = t - (table.dim() - 1)
            tables.append(table[tuple(start[first:])] if first < len(start) else table)
        return TabularLM(
            [self.temperature * table for table in tables],
            temperature=self.temperature,
            stop_token=self.stop_token,
            vocabulary=self.vocabulary,
        )

    def tempered(self, temperature: float) -> TabularLM:
        """
        The same logits at another temperature.

        :param temperature: the new one, not a factor of the old one.
        """
        return TabularLM(
            [self.temperature * table for table in self.log_probs],
            self.length,
            temperature=temperature,
            stop_token=self.stop_token,
            vocabulary=self.vocabulary,
        )

    def _table(self, t: int) -> Tensor:
        return self.log_probs[min(t, len(self.log_probs) - 1)]

    def _grid(self) -> Tensor:
        if self.vocabulary_size**self.length > MAX_OUTCOMES:
            raise ValueError(
                f"{self.vocabulary_size} tokens at {self.length} positions are too many sequences "
                f"to enumerate (at most {MAX_OUTCOMES})"
            )
        tokens = torch.arange(self.vocabulary_size, device=self.log_probs[0].device)
        return torch.cartesian_prod(*[tokens] * self.length).reshape(-1, self.length)

    def _code(self, tokens: Tensor) -> Tensor:
        """The number that tokens write in base V, the first most significant."""
        code = torch.zeros(tokens.shape[:-1], dtype=torch.long, device=tokens.device)
        for t in range(tokens.shape[-1]):
            code = code * self.vocabulary_size + tokens[..., t]
        return code

    def _prompt(self, prompt: Sequence[int]) -> Tensor:
        device = self.log_probs[0].device
        tokens = given_tokens(prompt, self.vocabulary_size, "prompt", device)
        if tokens.dim() != 1 or len(tokens) >= self.length:
            raise ValueError(
                f"prompt must be a list of fewer than length={self.length} tokens, got shape "
                f"{tuple(tokens.shape)}; several prompts are several programs"
            )
        if self.stop_token is not None and bool((tokens == self.stop_token).any()):
            raise ValueError(f"prompt holds the stop token {self.stop_token}, which ends it")
        return tokens

    def _check_tokens(self, tokens: Tensor) -> None:
        check_tokens(tokens, self.vocabulary_size, "tokens")
