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
# # The tractability landscape
#
# Which reward can be aligned to, under which notion of closeness, and at what price? Two things decide
# it. The *closeness*: under KL the aligned law is the base reweighted by $e^{\beta r}$, under Wasserstein
# it is the base moved uphill. And the *structure of the reward*: a linear one is easy everywhere, a
# convex one of few features is easy under KL, a concave one under Wasserstein.
#
# `plan` knows the map. This notebook walks over it: each primitive in a few lines, what is hard, and why.

# %%
# SPDX-License-Identifier: Apache-2.0
import os

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch

from pyro_tilt import diffusion, plan, rewards
from pyro_tilt.infer import ConvexTilt, LinearTilt, ProximalTransport, QuadraticTilt

SMOKE = "PYRO_TILT_SMOKE" in os.environ
DRAWS = 200 if SMOKE else 4000
STEPS = 20 if SMOKE else 100
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "0.6"
torch.set_default_dtype(torch.float64)
pyro.set_rng_seed(0)

# %% [markdown]
# The base is a diffusion whose data are three clusters in the plane, so that its predictions are exact
# and every tilt can be checked.

# %%
LOCS = torch.tensor([[-2.0, -0.4], [1.4, 1.3], [0.8, -1.8]])
SCALES = torch.tensor([[0.5, 0.6], [0.45, 0.35], [0.35, 0.5]])
WEIGHTS = torch.tensor([0.5, 0.3, 0.2])
mixture = dist.MixtureSameFamily(dist.Categorical(WEIGHTS), dist.Normal(LOCS, SCALES).to_event(1))
base = diffusion.MixtureDiffusion(mixture, diffusion.VP.linear(STEPS))

line = torch.linspace(-4.2, 4.2, 141)
grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)


def show(ax, draws, log_tilt, title):
    """Draws over the contours of the exact tilt."""
    height = (mixture.log_prob(grid) + log_tilt(grid)).exp()
    ax.contour(line, line, height / height.max(), levels=[0.03, 0.2, 0.6], colors=[GREY])
    ax.plot(*draws[:800].T, ".", color=BLUE, ms=2.5, alpha=0.6)
    ax.set(xlim=(-4.2, 4.2), ylim=(-4.2, 4.2), aspect="equal")
    ax.set_title(title, fontsize=10)


# %% [markdown]
# ## Ask first
#
# A plan lists every primitive, says which apply and why the others do not, what law each would earn, what
# it would cost, and picks one. Where nothing is known from structure it makes a small pilot of base draws
# under a fixed seed.

# %%
theta = torch.tensor([1.1, 0.6])
found = plan(base, rewards.Linear(theta))
found

# %%
print(found)

# %% [markdown]
# `found.run(...)` runs the choice; `found.run(method="ImportanceSampler", ...)` another one that applies.
# The plan is data too: `found.choice`, `found.entries`, `found.to_dict()`.
#
# ## Under KL: everything from linear tilts
#
# **Linear.** If $x_t = a x_0 + s\epsilon$, the tilt by $\langle\theta, x_0\rangle$ shifts the state at which
# the model is asked by $\frac{s^2}{a}\theta$, at every noise level. One run of the sampler, whatever the
# size of $\theta$ (Moitra, Risteski and Rohatgi 2026, arXiv 2602.16570, Theorem 3.2).
#
# **Isotropic, negative.** $-\frac c2|x|^2$ is the density of a noisy observation, so the tilt is the law
# of the data given it (derived here).
#
# **Positive, of low rank.** $e^{\frac12|Lx|^2}$ is a Gaussian mixture of linear tilts (Theorem 5.2 there;
# the lattice that makes it cheap is derived here).
#
# **Convex, of few features.** $e^{f(Ax)}$ lies below a mixture of linear tilts, and rejection makes up the
# difference. That this works is claimed in arXiv 2605.11361; the envelopes are derived here. The acceptance
# follows from the normalisers, before a draw is made.

# %%
bowl = rewards.Quadratic(-0.4 * torch.eye(2), torch.tensor([0.4, 0.8]))
ridge = rewards.Quadratic(0.35 * torch.outer(torch.tensor([1.0, -0.8]), torch.tensor([1.0, -0.8])))
kink = rewards.LowDim(
    lambda u: 1.5 * u.abs().sum(-1), torch.tensor([[0.3, 1.0]]), convex=True, lipschitz=1.5
)
options = {"num_samples": DRAWS, "seed": 0, "progress": False}
tilts = {
    "linear": (LinearTilt(base, theta, **options), rewards.Linear(theta)),
    "isotropic, negative": (QuadraticTilt(base, bowl, **options), bowl),
    "rank one, positive": (QuadraticTilt(base, ridge, **options), ridge),
    "convex, one feature": (ConvexTilt(base, kink, **options), kink),
}
fig, axes = plt.subplots(1, 4, figsize=(15, 4), layout="constrained")
for ax, (name, (sampler, reward)) in zip(axes, tilts.items()):
    result = sampler.run()
    show(ax, result.samples["x_0"], reward, f"{name}: {type(sampler).__name__}")
    chosen = plan(base, reward).choice
    shown = result.info.get("acceptance_rate", 1.0)
    print(
        f"{name:20} plan picks {chosen.name:14} foretold {chosen.acceptance:.3f}, was {shown:.3f}"
    )
plt.show()

# %% [markdown]
# Grey lines are the exact tilts. The draws are of a sampler with finitely many steps, and the certificate
# says so: *consistent* in the number of steps.

# %%
print(result.certificate)

# %% [markdown]
# ## What is hard under KL
#
# A *negative* quadratic of rank one is where the ease ends. On the uniform law of a hypercube, with whole
# numbers $a$, the tilt by $-\kappa\langle a, x\rangle^2$ puts its mass on the signs that split the numbers
# into equal halves: whoever can sample it solves the partition problem (Theorem 4.1 of arXiv 2602.16570).
# Positive quadratics of high rank are hard as well (Theorem A.1). The plan says so where it matters, and
# where it cannot be escaped, it picks nothing rather than something that only looks like an answer.


# %%
def numbers(d):
    """Whole numbers of d bits that have at least one partition into equal halves."""
    generator = torch.Generator().manual_seed(d)
    drawn = torch.randint(1, 2**d, (d - 1,), generator=generator)
    signs = 2 * torch.randint(0, 2, (d - 1,), generator=generator) - 1
    return torch.cat([drawn, (signs * drawn).sum().abs().clamp(min=1)[None]]).double()


def hypercube(d):
    def signs():
        bits = pyro.sample("bits", dist.Bernoulli(torch.full((d,), 0.5)).to_event(1))
        return pyro.deterministic("signs", 2.0 * bits - 1.0, event_dim=1)

    return signs


def partition_reward(d):
    a = numbers(d)
    return rewards.Quadratic(-(d + 5.0) * torch.outer(a, a))


hard = plan(hypercube(12), partition_reward(12))
print(hard)

# %% [markdown]
# `run` refuses as well, and names the way to insist.

# %%
try:
    hard.run(100)
except ValueError as error:
    print(error)

# %% [markdown]
# ## The same reward under Wasserstein
#
# There the aligned law is had by moving each draw, $T(x) = \arg\max_y r(y) - \frac\lambda2|y - x|^2$, and
# for this reward that is one line of algebra (derived here):
#
# $$ T(x) = x - \frac{2\kappa\,\langle a, x\rangle}{\lambda + 2\kappa\,|a|^2}\, a . $$

# %%
easy = plan(hypercube(12), partition_reward(12), closeness="wasserstein")
moved = easy.run(100, seed=0)
a = numbers(12)
print("picked:", easy.choice.name, "|", moved.certificate)
print("mean |<a, x>| before and after:")
print(
    float((moved.stats["base_value"] @ a).abs().mean()),
    float((moved.samples["signs"] @ a).abs().mean()),
)


# %% [markdown]
# It is no contradiction: transport leaves the corners of the cube. The two notions of closeness ask
# different questions, and what is hard in one is easy in the other.


# %%
def acceptance(d):
    """The exact acceptance of rejection, over all 2^d corners."""
    corners = torch.tensor([-1.0, 1.0])
    sums = torch.zeros(1)
    for number in numbers(d):
        sums = (sums[:, None] + corners * number).flatten()
    return float((-(d + 5.0) * sums.square()).exp().mean())


dims = range(4, 9 if SMOKE else 19, 2)
rates = [acceptance(d) for d in dims]
calls = []
for d in dims:
    run = plan(hypercube(d), partition_reward(d), closeness="wasserstein").run(50, seed=0)
    calls.append(run.cost.reward_calls / 50)

fig, axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
axes[0].semilogy(dims, rates, "o-", color=ORANGE, label="acceptance, exact")
axes[0].semilogy(dims, [2.0 ** (1 - d) for d in dims], ":", color="black", label=r"$2^{1-d}$")
axes[0].set(xlabel="dimension", ylabel="acceptance", title="KL: the partition problem")
axes[0].legend()
axes[1].plot(dims, calls, "D-", color=BLUE)
axes[1].set(
    xlabel="dimension",
    ylabel="reward calls per draw",
    ylim=(0, 4),
    title="Wasserstein: one line of algebra",
)
plt.show()

# %% [markdown]
# ## When the base escapes
#
# Hardness is about all bases at once, known by their scores alone. This base is a mixture that we know, so
# a negative rank-one tilt of it has a closed form; and by its scores, one tangent tilt with rejection does
# well as long as the feature is spread over a few standard deviations. Both are in the plan, with the theorem
# beside them.

# %%
groove = rewards.Quadratic(torch.diag(torch.tensor([-4.0, 0.0])), torch.tensor([3.0, 0.0]))
escaped = plan(base, groove)
for entry in escaped.applicable:
    rate = "-" if entry.acceptance is None else f"{entry.acceptance:.3f}"
    print(f"{entry.name:18} {entry.law:11} acceptance {rate}")
print("picked:", escaped.choice.name)
print("hard in general:", escaped.hardness[0].source)

# %%
fig, axes = plt.subplots(1, 3, figsize=(12.5, 4.2), layout="constrained")
for ax, method in zip(axes, ("ConvexTilt", "Mixture algebra")):
    draws = escaped.run(DRAWS, seed=1, method=method, progress=False).samples["x_0"]
    show(ax, draws, groove, f"KL: {method}")
walked = ProximalTransport(base.program(record="last"), groove, penalty=1.0, **options).run()
ax = axes[2]
start, end = walked.stats["base_value"][:150], walked.samples["x_0"][:150]
ax.quiver(
    *start.T, *(end - start).T, angles="xy", scale_units="xy", scale=1, width=0.003, color=GREY
)
ax.plot(*end.T, ".", color=GREEN, ms=4)
ax.set(xlim=(-4.2, 4.2), ylim=(-4.2, 4.2), aspect="equal")
ax.set_title("Wasserstein: ProximalTransport", fontsize=10)
plt.show()

# %% [markdown]
# Under KL the law keeps to where the base has mass, and reweighs it; under Wasserstein every draw walks
# towards the groove at $x_1 = 3/8$, as far as the reward pays for.
#
# ## No structure at all
#
# For a callable of which nothing is known, the plan falls back on draws and says what they are worth: a
# pilot foretells the share of effective draws, and heavy weights are not trusted.

# %%
for beta in (0.5, 3.0, 12.0):
    blind = plan(base, lambda x: (1.3 * x[..., 0]).sin() + x[..., 1].cos(), beta)
    entry = blind.entry("ImportanceSampler")
    trust = "" if entry.trusted else ", not to be trusted"
    picked = "nothing" if blind.choice is None else f"{blind.choice.name} ({blind.choice.law})"
    print(f"beta {beta:4}: share {entry.acceptance:.3f}{trust}; picked {picked}")

# %% [markdown]
# ## The map
#
# | closeness | reward | primitive | guarantee |
# |---|---|---|---|
# | KL | linear | shifted scores | consistent in the steps; one run |
# | KL | isotropic negative, low-rank positive | start at a point; mixture of linear tilts | the same |
# | KL | convex, few features | mixture of linear tilts and rejection | the same; acceptance foretold |
# | KL | negative rank one, high-rank positive | none in general (NP-hard) | rejection, SMC: weaker |
# | Wasserstein | linear, quadratic, largest of affine | closed form | exact |
# | Wasserstein | concave, any dimension | accelerated gradient | certified gap |
# | Wasserstein | Lipschitz, few features | branch and bound | certified gap |
# | Wasserstein | anything else | local ascent | none |
#
# `benchmarks/bench_landscape.py` measures it square by square against exact laws.
