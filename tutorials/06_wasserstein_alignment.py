# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Wasserstein alignment
#
# Tilting reweighs what a model can already draw: an aligned law is near its base if it is few *nats*
# away. Transport moves the draws instead, and calls a law near if its mass has not travelled far,
#
# $$ W_c(q, p) = \min \mathbb{E}\, c(X, Y) \quad\text{over couplings of } X \sim p,\ Y \sim q. $$
#
# Under this closeness the aligned law is had by a *proximal map*: move every draw uphill, as far as
# the reward pays for the way,
#
# $$ T_\lambda(x) = \arg\max_y\; r(y) - \lambda\, c(x, y). $$
#
# This notebook shows the map at work, a price on the transport against a bound on it, what the
# certificate proves, and one reward that is hopeless to tilt by and trivial to transport to. The cost
# throughout is half the squared distance.

# %%
# SPDX-License-Identifier: Apache-2.0
import math
import os
import warnings

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch

from pyro_tilt import rewards
from pyro_tilt.infer import ImportanceSampler, ProximalTransport, SamplerWarning

SMOKE = "PYRO_TILT_SMOKE" in os.environ
DRAWS = 200 if SMOKE else 4000
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "0.6"
torch.set_default_dtype(torch.float64)
pyro.set_rng_seed(0)

# %% [markdown]
# ## Draws on the move
#
# The base is a program, three unequal clusters in the plane. The reward is concave, with a ridge that
# none of them lies on.

# %%
WEIGHTS = torch.tensor([0.5, 0.3, 0.2])
CENTRES = torch.tensor([[-1.6, -0.6], [1.4, -1.2], [0.9, 1.7]])
SPREADS = torch.tensor([[0.35, 0.5], [0.5, 0.25], [0.3, 0.3]])


def clusters():
    parts = dist.Normal(CENTRES, SPREADS).to_event(1)
    return pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(WEIGHTS), parts))


def ridge(x):
    across = x[..., 0] - 1.2 * x[..., 1] + 0.6
    return -(1.0 + across.square()).sqrt() - 0.1 * (x[..., 0] + x[..., 1] - 1.0).square()


reward = rewards.Concave(ridge, event_dim=1)
options = {"num_samples": DRAWS, "seed": 1}
PENALTIES = (3.0, 0.6, 0.1)
runs = {lam: ProximalTransport(clusters, reward, penalty=lam, **options).run() for lam in PENALTIES}

line = torch.linspace(-3.2, 3.2, 121)
grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
SHOWN = 90


def draw_arrows(ax, result):
    ax.contourf(line, line, ridge(grid), levels=14, cmap="Greys", alpha=0.45)
    start, end = result.stats["base_value"][:SHOWN], result.samples["x"][:SHOWN]
    move = end - start
    ax.quiver(
        *start.T,
        *move.T,
        angles="xy",
        scale_units="xy",
        scale=1,
        width=0.004,
        color=BLUE,
        alpha=0.7,
    )
    ax.plot(*start.T, ".", color="black", ms=4, label="base draw")
    ax.plot(*end.T, ".", color=ORANGE, ms=5, label="moved")
    ax.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal")


fig, axes = plt.subplots(1, 3, figsize=(13, 4.5), layout="constrained")
for ax, (lam, result) in zip(axes, runs.items()):
    draw_arrows(ax, result)
    cost = result.info["transport_cost"]
    ax.set_title(rf"$\lambda$ = {lam}: mean cost {cost:.2f}")
axes[0].legend(loc="lower right")
plt.show()

# %% [markdown]
# Darker ground is higher reward. A high price moves nothing far; a low one brings every draw to the
# ridge, and then along it. No draw is thrown away, none counts more than another.
#
# ## What is certified
#
# For any point $\hat y$ with gradient $g$ of the strongly concave problem, the maximum is at most
# $\|g\|^2 / 2\lambda$ away. The mean of these bounds is a *duality gap*: no law does better than this
# one by more.

# %%
for lam, result in runs.items():
    info = result.info
    print(
        f"lambda {lam}: objective {info['value']:.4f} ± {info['value_error']:.4f}, "
        f"gap {result.certificate.gap:.1e}"
    )
print()
print(runs[0.6].certificate)

# %% [markdown]
# The gap is against the draws at hand. The standard error beside the objective says what another
# sample of the base would give. A search cut short keeps an honest certificate, only a wider one
# (and the first three of these warn that theirs says little):

# %%
steps = [1, 2, 4, 6, 8, 12, 16, 24]
gaps, short = [], []
best = ProximalTransport(clusters, reward, penalty=0.1, tolerance=1e-13, **options).run()
for count in steps:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplerWarning)
        cut = ProximalTransport(
            clusters, reward, penalty=0.1, tolerance=1e-13, max_steps=count, **options
        ).run()
    gaps.append(cut.certificate.gap)
    short.append(max(best.info["value"] - cut.info["value"], 1e-16))

fig, ax = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
ax.semilogy(steps, gaps, "o-", color=BLUE, label="certified gap")
ax.semilogy(steps, short, "s--", color=ORANGE, label="true shortfall")
ax.set(
    xlabel="gradients per draw", ylabel="objective", title="The certificate lies above the error"
)
ax.legend()
plt.show()

# %% [markdown]
# ## Ball against penalty
#
# A price is hard to choose, a budget less so. `radius` bounds the mean cost, and the run finds the
# price $\lambda$ that spends it: the minimiser of the dual $\lambda\rho + \mathbb{E}\, r^\lambda$,
# where $r^\lambda(x) = \max_y r(y) - \lambda c(x, y)$.

# %%
RADII = (0.02, 0.1, 0.3, 0.8)
balls = {rho: ProximalTransport(clusters, reward, radius=rho, **options).run() for rho in RADII}
for rho, ball in balls.items():
    print(
        f"radius {rho:4}: lambda {ball.info['penalty']:.4f}, mean reward {ball.info['value']:.4f}, "
        f"mean cost {ball.info['transport_cost']:.4f}, gap {ball.certificate.gap:.0e}"
    )

prices = torch.logspace(-1.6, 1.2, 7 if SMOKE else 25)
front = [ProximalTransport(clusters, reward, penalty=float(lam), **options).run() for lam in prices]
fig, axes = plt.subplots(1, 2, figsize=(11.5, 3.8), layout="constrained")
costs = [result.info["transport_cost"] for result in front]
heights = [float(result.stats["reward"].mean()) for result in front]
axes[0].plot(costs, heights, "-", color=GREY, label="penalties")
axes[0].plot(
    balls.keys(), [ball.info["value"] for ball in balls.values()], "o", color=BLUE, label="balls"
)
axes[0].set(xlabel="mean transport cost", ylabel="mean reward", title="One frontier, two handles")
axes[0].legend(loc="lower right")
for rho, colour in ((0.1, BLUE), (0.3, ORANGE)):
    dual = [float(lam) * rho + result.info["value"] for lam, result in zip(prices, front)]
    axes[1].semilogx(prices, dual, color=colour, label=rf"dual, $\rho$ = {rho}")
    axes[1].plot(balls[rho].info["penalty"], balls[rho].info["value"], "o", color=colour)
axes[1].set(xlabel=r"$\lambda$", ylim=(-2.2, -0.6), title="The dual touches the primal (dots)")
axes[1].legend()
plt.show()

# %% [markdown]
# Where the map jumps with $\lambda$, no single price spends the budget. Two maps at the same price are
# then mixed, every draw with the same odds, which is optimal. Tokens show it: one change gains what it
# gains, and 1.25 changes on average must be shared out.

# %%
from pyro_tilt.infer import TokenScores

scores = torch.tensor([[0.0, 2.0, 0.5], [1.0, 0.0, 0.3], [0.0, 0.0, 1.4], [0.2, 0.9, 0.0]])
tokens = dist.Categorical(torch.ones(4, 3)).to_event(1)
shared = ProximalTransport(
    tokens, TokenScores(scores), cost="hamming", radius=1.25, **options
).run()
print("odds of the farther map:", round(shared.info["mixing"], 3))
for name, map_ in (("near", ~shared.stats["far"]), ("far", shared.stats["far"])):
    changed = shared.stats["transport_cost"][map_]
    print(f"  {name:4} {int(map_.sum()):5} draws, {changed.mean():.3f} tokens changed")
print("mean:", round(float(shared.stats["transport_cost"].mean()), 3), shared.certificate.law)

# %% [markdown]
# ## One reward, two notions of near
#
# Take the uniform law on the corners of a hypercube, $x \in \{-1, 1\}^d$, and a reward that wants one
# sum to vanish,
#
# $$ r(x) = -\tfrac{\kappa}{2} \langle a, x\rangle^2 . $$
#
# To tilt by it for large $\kappa$ is to find a signed sum of the $a_i$ that is zero: the partition
# problem (Moitra, Risteski and Rohatgi 2026, arXiv 2602.16570). Rejection has to wait for one, and its
# acceptance $\mathbb{E}\, e^{r}$ falls exponentially where the good corners are exponentially few.
# Transport does not stay on the corners. Its map is a line of algebra in any dimension,
# $T(x) = x - \kappa \langle a, x\rangle\, a / (\lambda + \kappa \|a\|^2)$.
#
# Here $a_i$ are integers of about $d$ bits, planted so that a solution exists, and $\kappa = 10$.

# %%
KAPPA = 10.0
DIMENSIONS = (4, 6, 8, 10) if SMOKE else (4, 6, 8, 10, 12, 14, 16, 18)


def partition(d, seed):
    """Weights of d bits that some choice of signs balances."""
    generator = torch.Generator().manual_seed(1000 * seed + d)
    a = torch.randint(1, 2**d, (d,), generator=generator).double()
    signs = torch.ones(d)
    signs[d // 2 :] = -1.0
    a[-1] += (signs * a).sum()
    return a.abs().clamp(min=1.0)


def corners(d):
    return 2.0 * torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * d) - 1.0


def hypercube(d):
    return lambda: 2.0 * pyro.sample("b", dist.Bernoulli(0.5 * torch.ones(d)).to_event(1)) - 1.0


acceptance, gained = [], []
for d in DIMENSIONS:
    accept, rise = [], []
    for seed in range(2 if SMOKE else 6):
        a = partition(d, seed)
        balance = rewards.Quadratic.from_hessian(-KAPPA * torch.outer(a, a))
        accept.append(float(balance(corners(d)).exp().mean()))
        moved = ProximalTransport(
            hypercube(d), balance, penalty=1.0, num_samples=500, seed=seed
        ).run()
        assert moved.certificate.law == "exact"
        rise.append(moved.info["transport_cost"])
    acceptance.append(math.exp(sum(math.log(p) for p in accept) / len(accept)))
    gained.append(sum(rise) / len(rise))

fig, axes = plt.subplots(1, 2, figsize=(11.5, 3.8), layout="constrained")
axes[0].semilogy(DIMENSIONS, acceptance, "o-", color=ORANGE, label="acceptance of the tilt")
axes[0].semilogy(
    DIMENSIONS, [2.0 * 2.0**-d for d in DIMENSIONS], ":", color="black", label=r"$2 \cdot 2^{-d}$"
)
axes[0].set(xlabel="dimension d", title="KL closeness: exponentially rare")
axes[0].legend()
axes[1].plot(DIMENSIONS, gained, "o-", color=BLUE)
axes[1].axhline(0.5, color="black", ls=":")
axes[1].set(
    xlabel="dimension d",
    ylim=(0, 1),
    ylabel="mean transport cost",
    title="Wasserstein: one short move",
)
plt.show()

# %% [markdown]
# The two planted corners are all that the tilt has to live on, whereas every corner lies at a squared
# distance of about one from the plane $\langle a, x \rangle = 0$, whatever the dimension. The answers
# differ, as they must: transport leaves the hypercube. Which of the two notions is right is a question
# about the use, not about the sampler. If only corners will do, say so by `support=`, and the problem is
# hard again.
#
# In the plane the two answers can be seen side by side, for a smooth base and the same kind of reward.

# %%
a = torch.tensor([1.0, -1.3])
balance = rewards.Quadratic.from_hessian(-8.0 * torch.outer(a, a))
tilted = ImportanceSampler(clusters, reward=balance, num_samples=20 * DRAWS, seed=0).run()
moved = ProximalTransport(clusters, balance, penalty=1.0, **options).run()
fig, axes = plt.subplots(1, 3, figsize=(13, 4.5), layout="constrained")
for ax, (title, points) in zip(
    axes,
    (
        ("base", moved.stats["base_value"][:1000]),
        (
            f"tilted: {tilted.ess:.0f} of {len(tilted)} draws count",
            tilted.get_samples(1000, seed=0)["x"],
        ),
        ("transported: every draw", moved.samples["x"][:1000]),
    ),
):
    ax.plot(*points.T, ".", ms=3, color=BLUE, alpha=0.4)
    ax.axline((0.0, 0.0), slope=float(-a[0] / a[1]), color=ORANGE, lw=1)
    ax.set(title=title, xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
plt.show()

# %% [markdown]
# The tilt keeps the part of the base that lies near the line already, and forgets the clusters that do
# not. Transport takes every cluster to its nearest stretch of the line. The left cluster holds half of the
# base's mass; it keeps about that half when moved, and its share under the tilt is decided by how much of it
# happens to reach the line.

# %%
for name, points in (
    ("tilted", tilted.get_samples(4000, seed=0)["x"]),
    ("moved", moved.samples["x"]),
):
    print(f"{name:7} share left of zero: {float((points[:, 0] < 0).double().mean()):.2f}")
