# SPDX-License-Identifier: Apache-2.0
"""Adaptive importance sampling on pre-logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from pyro_tilt.infer.aisp.decoding import PerturbedDecoding
from pyro_tilt.infer.aisp.gaussian import PrelogitGaussian
from pyro_tilt.infer.aisp.slopes import LogitSlopes
from pyro_tilt.infer.best_of_n import refuse_factors, warn_of_excluded
from pyro_tilt.infer.certificate import Certificate
from pyro_tilt.infer.pooled import refuse_shared_minibatches
from pyro_tilt.infer.proposal import Draws, ProgramProposal
from pyro_tilt.infer.sampler import Run, Sampler, check_count
from pyro_tilt.infer.seeding import preserved_rng, seeded
from pyro_tilt.infer.weighted_samples import WeightedSamples
from pyro_tilt.ops.importance import effective_sample_size
from pyro_tilt.poutine import align
from pyro_tilt.poutine.align import Of

__all__ = ["AISP"]

_DECODINGS = {"greedy": "greedy", "sample": "sampled"}


class AISP(Sampler):
    r"""Searches perturbations of a language model's pre-logits by adaptive importance sampling.

    The input :math:`z_t` of the layer that makes the logits becomes :math:`z_t + v_t` for the first
    ``tau`` tokens, with :math:`V \sim N(U, \sigma^2 I)`, and y(V) is decoded greedily. In each of
    ``iterations`` rounds ``n`` perturbations are drawn, decoded and weighed, and U becomes their
    weighted mean (arXiv 2510.26219):

    .. math:: \log w = \frac{r(y(V))}{\lambda} - \frac{1 - \alpha}{\sigma^2} \langle U, V \rangle,
        \qquad U \leftarrow \sum_i \bar w_i V_i

    (:class:`~pyro_tilt.infer.aisp.PrelogitGaussian` says what this tends to). :math:`\lambda` is
    the inverse of beta. ``alpha`` weakens the penalty on U: where a search settles, it does so for
    :math:`\lambda (1 - \alpha)` in place of :math:`\lambda` (``info["effective_lam"]``), so that
    with .999 it is the number of iterations that limits how far U goes.

    What a search is after is tilted from the law :math:`\pi_0` of greedy decoding under noise,
    which is *not* the law that the model samples. ``decode="sample"`` draws the tokens from the
    perturbed logits instead; weights are then those of perturbations and tokens together, and
    :math:`\pi_0` tends to the model's own law as sigma goes to 0. In the first round (U = 0) the
    weights are softmax of :math:`r/\lambda`, and one drawn by them would be soft best-of-n on
    :math:`\pi_0`.

    How far noise goes is a matter of the logits that it reaches. With J the slope of the logits in
    the hidden state and p the law of the next token, it moves that law by

    .. math:: \tfrac12\, \sigma^2 \operatorname{tr}\bigl(J^\top
        (\operatorname{diag} p - p p^\top) J\bigr)

    nats on average, to second order (derived here). By default sigma is such that the sum over the
    first ``tau`` tokens is ``noise`` nats at U = 0, measured on ``n`` plain draws before the
    search; states that are c times as large, and a module that undoes it, make sigma c times as
    large and change nothing else. Larger noise looks further, but most of what an iteration
    keeps is noise: with ``alpha`` near 1 the mean U walks, and after k iterations tokens are
    decoded under about :math:`1 + k / \mathrm{ESS}` times the variance of the first. Where
    ``steps["reward"]`` falls with the iterations, sigma is too large. The same walk keeps
    ``kl_bound`` at or above about :math:`\tau d / (2\,\mathrm{ESS})` for states of width d,
    whatever sigma is.

    Certificate: *search*. The best-seen of a search follows no law that is known; the final draws
    follow that of a perturbed model whose divergence from :math:`\pi_0` is at most
    :math:`\|U\|^2 / (2\sigma^2)` (``stats["kl_bound"]``). There is no evidence (``log_normalizer``
    is nan).

    ``steps`` has one entry per iteration, means over the searches: ``reward`` of the draws,
    ``best`` seen so far, ``ess`` of the weights, ``kl_bound``.

    :param program: a Pyro program of categorical sites, without observations; see
        :class:`~pyro_tilt.infer.Sampler` for it and all options not named here.
    :param module: the part of the model that maps hidden states to logits, called once per token
        with ``(particles, d)`` or ``(particles, positions, d)``.
    :param reward: the reward of whole draws.
    :param of: what it reads, as in :func:`~pyro_tilt.poutine.align`.
    :param int tau: tokens that are perturbed; None for all.
    :param int n: perturbations per iteration.
    :param int iterations: updates of U.
    :param float sigma: standard deviation of a perturbation; None measures one (``info["sigma"]``).
    :param float noise: with ``sigma=None``, the nats that noise may move a sequence by (default 1).
    :param float lam: :math:`\lambda`; or ``beta``, its inverse. Default 0.3.
    :param float alpha: at most 1.
    :param str decode: ``"greedy"`` or ``"sample"``.
    :param stop_tokens: tokens after which the model no longer computes a row; by default those of
        ``program.model``, as for a :class:`~pyro_tilt.language.NeuralLM`.
    :param str returns: ``"best"``, one draw per search, the one with the largest reward seen in any
        iteration or among the final draws; or ``"final"``, all final draws.
    :param int num_samples: independent searches (default 1).
    :param int num_final: draws of each search from its last Gaussian; by default n.
    :raises TypeError: for a module that is none.
    :raises ValueError: for lam and beta at once, numbers out of range, a program that does not call
        the module or has sites that are not categorical.
    :raises ZeroWeights: if every draw has reward -inf; the draws are attached to the error.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> head = nn.Linear(2, 3, bias=False)
        >>> head.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
        >>> def program():
        ...     logits = head(torch.tensor([0.5, 0.0]))
        ...     return pyro.sample("token", dist.Categorical(logits=logits))
        >>> result = AISP(
        ...     program, module=head, reward=lambda y: y.double(), n=32, iterations=8, seed=0
        ... ).run()
        >>> result.samples["token"].tolist(), result.certificate.law
        ([2], 'search')
    """

    def __init__(
        self,
        program: Callable[..., Any],
        *,
        module: nn.Module,
        reward: Any,
        of: Of = None,
        tau: int | None = None,
        n: int = 32,
        iterations: int = 32,
        sigma: float | None = None,
        noise: float | None = None,
        lam: float | None = None,
        beta: float | None = None,
        alpha: float = 0.999,
        decode: str = "greedy",
        stop_tokens: Sequence[int] | None = None,
        returns: str = "best",
        num_samples: int = 1,
        num_final: int | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
        if reward is None:
            raise ValueError("AISP weighs draws by their reward: give reward=")
        if lam is not None and beta is not None:
            raise ValueError("lam is the inverse of beta; give one of them")
        if beta is not None and not 0.0 < beta < math.inf:
            raise ValueError(f"beta must be positive and finite, got {beta!r}")
        lam = 0.3 if lam is None and beta is None else lam if beta is None else 1.0 / beta
        for name, given, known in (
            ("decode", decode, ("greedy", "sample")),
            ("returns", returns, ("best", "final")),
        ):
            if given not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}; got {given!r}")
        assert lam is not None
        if sigma is not None and noise is not None:
            raise ValueError("noise= is what sigma=None measures sigma by; give one of them")
        self.noise = 1.0 if noise is None else float(noise)
        if not 0.0 < self.noise < math.inf:
            raise ValueError(f"noise must be positive and finite, got {noise!r}")
        self.sigma = None if sigma is None else float(sigma)
        # Checks the numbers; a sigma that is to be measured stands as 1 until then.
        spread = 1.0 if self.sigma is None else self.sigma
        self.start = PrelogitGaussian(torch.zeros(1, 1), spread, float(lam), float(alpha))
        self.n = check_count("n", n)
        super().__init__(align(program, reward, 1.0, of=of), num_samples=num_samples, **options)
        if not self.vectorized:
            raise NotImplementedError("AISP perturbs all particles at once: no vectorized=False")
        self.module, self.decode, self.returns = module, decode, returns
        self.tau = None if tau is None else check_count("tau", tau, at_least=0)
        self.iterations = check_count("iterations", iterations, at_least=0)
        self.num_final = check_count("num_final", self.n if num_final is None else num_final)
        found = getattr(getattr(program, "model", None), "stop_tokens", None) or ()
        self.stop_tokens = tuple(found if stop_tokens is None else stop_tokens)
        self._like: Tensor | None = None

    def _sample(self, run: Run) -> WeightedSamples:
        refuse_factors("AISP", run.proposal)
        refuse_shared_minibatches(run)
        if self.sigma is None:
            self.start = replace(self.start, sigma=self._measured(run))
        parts, filled = [], 0
        most = max(1, self.max_batch // max(self.n, self.num_final))
        with run.bar(self.num_samples * max(1, self.iterations)) as bar:
            while filled < self.num_samples:
                count = min(self.num_samples - filled, most)
                parts.append(self._search(run.proposal, count, filled, bar))
                filled += count
        return self._result(run, parts)

    def _search(self, proposal: ProgramProposal, count: int, first: int, bar: Any) -> _Found:
        """``count`` independent searches side by side."""
        q = self._gaussian(proposal, count)
        found = _Found()
        for _ in range(self.iterations):
            shifts, draws = self._decoded(proposal, q, self.n)
            rewards = draws.reward.reshape(count, self.n)
            found.see(draws, count)
            size = effective_sample_size(q.log_weights(shifts, rewards))
            q = q.updated(shifts, rewards)
            found.note(rewards, size, q.kl_bound())
            bar.update(count)
        _, draws = self._decoded(proposal, q, self.num_final)
        found.see(draws, count)
        found.final, found.kl_bound = draws, q.kl_bound()
        found.search = first + torch.arange(count)
        if not self.iterations:
            bar.update(count)
        return found

    def _measured(self, run: Run) -> float:
        """The sigma whose noise moves a sequence by ``noise`` nats on average."""
        tau = self._tau(run.proposal)
        slopes = LogitSlopes(self.module, tau, self.n, stop_tokens=self.stop_tokens)
        with seeded(run.calibration_seed), torch.no_grad(), slopes:
            run.proposal.draw(self.n)
        if not slopes.total > 0.0:
            raise ValueError(
                f"the {tau} tokens that noise reaches have laws that it does not move; give sigma="
            )
        return math.sqrt(2.0 * self.noise * self.n / slopes.total)

    def _tau(self, proposal: ProgramProposal) -> int:
        """How many tokens are perturbed."""
        whole = len(proposal.latents)
        return whole if self.tau is None else min(self.tau, whole)

    def _gaussian(self, proposal: ProgramProposal, count: int) -> PrelogitGaussian:
        like = self._like
        assert like is not None
        mean = torch.zeros(
            (count, self._tau(proposal), like.shape[-1]), dtype=like.dtype, device=like.device
        )
        return PrelogitGaussian(mean, self.start.sigma, self.start.lam, self.start.alpha)

    def _decoded(
        self, proposal: ProgramProposal, q: PrelogitGaussian, n: int
    ) -> tuple[Tensor, Draws]:
        shifts = q.draw(n)
        decoding = PerturbedDecoding(
            self.module,
            shifts.flatten(0, 1),
            greedy=self.decode == "greedy",
            stop_tokens=self.stop_tokens,
        )
        with decoding:
            return shifts, proposal.draw(len(q.mean) * n)

    def _proposal(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ProgramProposal:
        proposal = super()._proposal(args, kwargs)
        # One more plain run shows the width of the states, and that the module is called at all.
        decoding = PerturbedDecoding(self.module, None, greedy=self.decode == "greedy")
        with preserved_rng(), torch.no_grad(), decoding:
            self.program.program(*args, **kwargs)  # type: ignore[attr-defined]
        if decoding.like is None:
            raise ValueError(
                f"the program does not call module= {type(self.module).__name__}; give the module "
                "that maps hidden states to logits, as a model's lm_head"
            )
        self._like = decoding.like
        return proposal

    def _result(self, run: Run, parts: list[_Found]) -> WeightedSamples:
        best = self.returns == "best"
        draws = Draws.cat([part.best if best else part.final for part in parts])
        repeats = 1 if best else self.num_final
        bounds = torch.cat([part.kl_bound for part in parts])
        zeros = torch.zeros_like(draws.log_weights)
        rows = self.num_samples * (self.iterations * self.n + self.num_final)
        rows += self.n if self.sigma is None else 0
        stats = {"reward": draws.reward, "kl_bound": bounds.repeat_interleave(repeats)}
        if not best:
            stats["search"] = torch.cat([p.search for p in parts]).repeat_interleave(repeats)
            found = torch.cat([part.best.reward for part in parts])
            stats["best_reward"] = found.repeat_interleave(repeats)
        kind = "best-seen draw" if best else "law of the final Gaussian"
        result = WeightedSamples(
            kind="iid",
            samples=draws.samples,
            log_weights=zeros,
            log_normalizer=zeros.new_tensor(math.nan),
            log_normalizer_error=zeros.new_tensor(math.nan),
            certificate=Certificate(
                target=f"{_DECODINGS[self.decode]} decoding under Gaussian pre-logits, tilted by "
                "the reward",
                law="search",
                covers=f"independent searches; the {kind} of each (n={self.n}, "
                f"iterations={self.iterations})",
                excludes="the Gaussian form of the search, its noise and the bias of a finite n; "
                "the law that the model samples, which greedy decoding under noise is not"
                if self.decode == "greedy"
                else "the Gaussian form of the search, its noise and the bias of a finite n; what "
                "noise of a positive sigma does to the law that the model samples",
            ),
            cost=run.cost(rows),
            stats=stats,
            steps=_steps(parts),
            info={
                "n": float(self.n),
                "lam": self.start.lam,
                "sigma": self.start.sigma,
                "effective_lam": self.start.effective_lam,
                "kl_bound": float(bounds.mean()),
            },
            sampler=type(self).__name__,
            program=self.program,
            args=run.args,
            kwargs=run.kwargs,
        )
        warn_of_excluded(result, f"all {self.n} perturbations of every iteration")
        return result


@dataclass
class _Found:
    """What some searches have seen so far."""

    trace: list[Tensor] = field(default_factory=list)
    best: Draws = field(init=False)
    final: Draws = field(init=False)
    kl_bound: Tensor = field(init=False)
    search: Tensor = field(init=False)
    count: int = 0

    def see(self, draws: Draws, count: int) -> None:
        """Keeps the draw with the largest reward of every search, the first of equals."""
        width = len(draws) // count
        column = draws.reward.reshape(count, width).argmax(-1)
        rows = torch.arange(count, device=column.device)
        here = draws.index(rows * width + column)
        if self.count:
            later = (here.reward > self.best.reward).long()
            here = Draws.cat([self.best, here]).index(rows + count * later)
        self.best, self.count = here, count

    def note(self, rewards: Tensor, ess: Tensor, kl_bound: Tensor) -> None:
        """Adds an iteration to the record, sums over the searches."""
        values = [rewards.double().mean(-1), self.best.reward.double(), ess, kl_bound]
        self.trace.append(torch.stack([each.sum().cpu() for each in values]))


def _steps(parts: list[_Found]) -> dict[str, Tensor]:
    if not parts[0].trace:
        return {}
    total = torch.stack([torch.stack(part.trace) for part in parts]).sum(0)
    mean = total / sum(part.count for part in parts)
    return dict(zip(("reward", "best", "ess", "kl_bound"), mean.unbind(-1), strict=True))
