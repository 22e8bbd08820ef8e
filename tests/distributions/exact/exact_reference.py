# SPDX-License-Identifier: Apache-2.0
"""Quadrature and summation that know nothing of the rules: references for the exact tilts."""

import itertools
import math
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from scipy import stats
from torch.nn.functional import logsigmoid

# Below this a goodness-of-fit p value fails; about 150 such tests are made with fixed seeds.
GATE = 1e-6


@dataclass
class Points:
    """Points, (N, *batch, *event), and the logarithms of the masses p(x) e^r(x) dx they carry."""

    values: torch.Tensor
    log_mass: torch.Tensor

    @property
    def log_z(self):
        return self.log_mass.logsumexp(0)

    def mean(self, statistic):
        """The tilted mean of a statistic given at every point."""
        weights = (self.log_mass - self.log_z).exp()
        weights = weights.reshape(weights.shape + (1,) * (statistic.dim() - weights.dim()))
        return (weights * torch.where(weights > 0, statistic, 0.0)).sum(0)


def nodes(low, high, size=1201):
    """Double-exponential quadrature between ends of which at most one is infinite."""
    t = torch.linspace(-5.0, 5.0, size, dtype=torch.float64).reshape((-1,) + (1,) * low.dim())
    step = 10.0 / (size - 1)
    inner, slope = math.pi / 2 * t.sinh(), math.pi / 2 * t.cosh()
    low, high = torch.broadcast_tensors(low, high)
    finite = low.isfinite() & high.isfinite()
    half = torch.where(finite, (high - low) / 2, 1.0)
    from_low = torch.where(low.isfinite(), low, 0.0) + half * 2 * torch.sigmoid(2 * inner)
    from_high = torch.where(high.isfinite(), high, 0.0) - half * 2 * torch.sigmoid(-2 * inner)
    between = torch.where(inner < 0, from_low, from_high)
    log_between = half.log() + math.log(4) + logsigmoid(2 * inner) + logsigmoid(-2 * inner)
    up, down = low + inner.exp(), high - inner.exp()
    x = torch.where(finite, between, torch.where(low.isfinite(), up, down))
    log_weight = torch.where(finite, log_between, inner)
    return x, log_weight + slope.log() + math.log(step)


def ends(base, batch):
    """The ends of the support of a scalar base, broadcast to the batch shape."""
    support = base.support
    support = getattr(support, "base_constraint", support)
    low, high = -math.inf, math.inf
    if isinstance(base, torch.distributions.VonMises):
        low, high = -math.pi, math.pi
    if hasattr(support, "lower_bound"):
        low = support.lower_bound
    if hasattr(support, "upper_bound"):
        high = support.upper_bound
    return [torch.as_tensor(end, dtype=torch.float64).expand(batch) for end in (low, high)]


def density_points(base, reward, low, high):
    x, log_weight = nodes(low, high)
    return Points(x, base.log_prob(x) + reward(x) + log_weight)


def scalar_points(base, reward, batch, kink=None):
    """The tilted law of a scalar base, integrated on both sides of a split."""
    low, high = ends(base, batch)
    split = torch.full(batch, 0.0 if kink is None else kink, dtype=torch.float64)
    middle = torch.where(low.isfinite() & high.isfinite(), (low + high) / 2, split)
    middle = torch.where(low.isfinite() & high.isinf(), low + 1.0, middle)
    parts = [density_points(base, reward, low, middle), density_points(base, reward, middle, high)]
    return Points(*(torch.cat(items) for items in zip(*((p.values, p.log_mass) for p in parts))))


def bin_probabilities(base, reward, edges):
    """Tilted probabilities between consecutive edges (K + 1, *batch), unnormalised."""
    return density_points(base, reward, edges[:-1], edges[1:]).log_mass.logsumexp(0).exp()


def grid_points(base, reward, mean, spread, batch):
    """The tilted law of a base on the plane by the trapezoidal rule, spectrally accurate."""
    line = torch.linspace(-14.0, 26.0, 401, dtype=torch.float64)
    mesh = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).flatten(0, 1)
    mesh = mesh.reshape((-1,) + (1,) * len(batch) + (2,))
    values = mean + spread * mesh
    area = (spread * (line[1] - line[0])).log().sum(-1)
    return Points(values, base.log_prob(values) + reward(values) + area)


def enumerated_points(base, reward, kind, batch):
    """Every value of a discrete base, or the first thousand counts."""
    if kind == "count":
        values = torch.arange(1000.0, dtype=torch.float64)
    elif kind == "multinomial":
        size, total = base.event_shape[0], base.total_count
        rows = itertools.product(range(total + 1), repeat=size)
        values = torch.tensor([row for row in rows if sum(row) == total], dtype=torch.float64)
    else:
        values = base.enumerate_support(expand=False)
        values = values.reshape((values.shape[0],) + base.event_shape)
    events = values.shape[1:]
    values = values.reshape((-1,) + (1,) * len(batch) + events).expand((-1, *batch, *events))
    log_prob = base.log_prob(values)
    if kind != "count":
        # torch clamps a probability of zero to the resolution of its dtype.
        log_prob = torch.where(log_prob < -30.0, -math.inf, log_prob)
    return Points(values, log_prob + reward(values))


def chi_square_gate(counts, probabilities):
    """Fails where counts of a law do not fit its probabilities; both (cells, laws)."""
    for count, probability in zip(counts.T, probabilities.T):
        expected = probability / probability.sum() * count.sum()
        assert count[expected < 1e-9].sum() == 0
        # Rare cells join the most frequent one, where they cannot make an expectation small.
        rare = expected < 5
        count, expected = count.double().clone(), expected.clone()
        for cells in (count, expected):
            cells[probability.argmax()] += cells[rare].sum()
        terms = ((count - expected) ** 2 / expected)[~rare]
        assert len(terms) > 1
        assert stats.chi2.sf(float(terms.sum()), len(terms) - 1) > GATE


def batch_of(base, reward):
    """The batch shape of a tilt."""
    return torch.broadcast_shapes(base.batch_shape, reward.batch_shape)


def mean_of(law):
    """The mean of a law, of a categorical over its indices, of affine images by their base."""
    if isinstance(law, torch.distributions.Categorical):
        return (law.probs * torch.arange(law.probs.shape[-1])).sum(-1)
    if type(law) is dist.TransformedDistribution:
        mean = law.base_dist.mean
        for transform in law.transforms:
            mean = transform(mean)
        return mean
    return law.mean
