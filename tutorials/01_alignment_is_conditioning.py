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
# # Alignment is conditioning
#
# A generative model is a law $p(x)$. A reward $r(x)$ says which of its outputs we like. The law
# that likes them more, and strays from $p$ no further than it must, is
#
# $$ q(x) = \frac{p(x)\, e^{\beta r(x)}}{Z}, \qquad Z = \mathbb{E}_p\, e^{\beta r(x)}. $$
#
# Among all laws with the same expected reward, $q$ is the nearest to $p$ in Kullback-Leibler
# divergence. ($\beta$ multiplies the reward. Papers on RLHF often write $\beta$ for the KL
# coefficient, which is its inverse.)
#
# That formula is Bayes' rule: $p$ is a prior and $e^{\beta r}$ a likelihood. So a Pyro user aligns
# a model as they would condition one.

# %%
# SPDX-License-Identifier: Apache-2.0
import os

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS, Importance, Predictive

from pyro_tilt import Tilted, align, diagnostics, poutine, rewards
from pyro_tilt.infer import LCB, ImportanceSampler, Rejection

SMOKE = "PYRO_TILT_SMOKE" in os.environ
DRAWS = 500 if SMOKE else 20_000
pyro.set_rng_seed(1)

# %% [markdown]
# ## One distribution
#
# For a single distribution and a reward whose structure is known, the tilt has a closed form, and
# `Tilted` finds it. Tilting a Gaussian linearly moves its mean.

# %%
q = Tilted(dist.Normal(0.0, 1.0), rewards.Linear(torch.tensor(1.5)), beta=2.0)
print("mean", q.mean.item(), " log Z", q.log_normalizer.item())
print(q.tractability)

# %% [markdown]
# The reward need not be linear. A skewed base and a reward with a kink have no closed form; for
# one dimension `Tilted` integrates numerically and says how exactly.

# %%
kinked = Tilted(dist.Gamma(3.0, 1.5), lambda x: -(x - 1.0).abs() + 2.0 * (x > 4.0), beta=1.2)
print(kinked.tractability)

x = torch.linspace(0.01, 8.0, 500)
fig, ax = plt.subplots(figsize=(7, 3.2))
ax.plot(x, kinked.base.log_prob(x).exp(), color="0.5", label="base: Gamma(3, 1.5)")
ax.plot(x, kinked.log_prob(x).exp(), color="#0072B2", label="aligned")
ax.hist(
    kinked.sample((DRAWS,)).numpy(), bins=80, range=(0, 8), density=True, alpha=0.3, color="#0072B2"
)
ax.set(xlabel="x", ylabel="density", title="A tilt with a kink and a jump")
ax.legend()
plt.show()

# %% [markdown]
# ## One program, two tilts
#
# Take $z \sim N(0,1)$ and $x \mid z \sim N(z, 1)$, with reward $r = x$ and $\beta = 1$. "Tilt the
# model by $e^x$" can mean two things.
#
# | | joint tilt | conditional tilt |
# |---|---|---|
# | law | $p(z)\,p(x\mid z)\,e^{x} / Z$ | $p(z)\cdot p(x \mid z)\, e^{x} / Z(z)$ |
# | what the reward may change | everything | only how $x$ is drawn given $z$ |
# | $\mathbb{E} z$, $\mathbb{E} x$ | 1, 2 | 0, 1 |
# | written as | `align(program, reward)` | a `Tilted` sample site |


# %%
def program():
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    return pyro.sample("x", dist.Normal(z, 1.0))


def conditional_program():
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    return pyro.sample("x", Tilted(dist.Normal(z, 1.0), rewards.Linear(torch.tensor(1.0))))


joint = align(program, rewards.Linear(torch.tensor(1.0)), beta=1.0)
for name, model in (("joint", joint), ("conditional", conditional_program)):
    result = ImportanceSampler(model, num_samples=DRAWS, seed=0).run()
    means = {site: round(result.expectation(site).item(), 2) for site in ("z", "x")}
    print(f"{name:12}", means, " log Z", round(result.log_normalizer.item(), 2))

# %% [markdown]
# ### Why they must not be confused
#
# Give a sample site an unnormalised density, as is tempting, and Pyro's engines disagree without a
# word: gradient-based engines read it as the joint tilt, engines that propose from the site itself
# read it as the conditional one. Below, the site's normaliser is declared constant although it
# depends on $z$. `Tilted` accepts that only as the user's own word.


# %%
def careless_program():
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    reward = rewards.Linear(torch.tensor(1.0))
    return pyro.sample("x", Tilted(dist.Normal(z, 1.0), reward, log_normalizer="constant"))


def nuts_mean(model, site="z"):
    mcmc = MCMC(
        NUTS(model),
        num_samples=50 if SMOKE else 1500,
        warmup_steps=20 if SMOKE else 300,
        disable_progbar=True,
    )
    mcmc.run()
    return mcmc.get_samples()[site].mean().item()


def importance_mean(model, site="z"):
    posterior = Importance(model, num_samples=100 if SMOKE else 3000).run()
    weights = posterior.get_normalized_weights()
    draws = torch.stack([trace.nodes[site]["value"] for trace in posterior.exec_traces])
    return (weights * draws).sum().item()


for name, model in (
    ("careless site", careless_program),
    ("align (joint tilt)", joint),
    ("Tilted (conditional tilt)", conditional_program),
    ("joint_tilt of the Tilted site", poutine.joint_tilt(conditional_program)),
):
    print(
        f"{name:32} E z:  NUTS {nuts_mean(model):5.2f}   Importance {importance_mean(model):5.2f}"
    )

# %% [markdown]
# The first line disagrees with itself. The others agree between engines, and each means what its
# name says. `poutine.joint_tilt` turns the conditional tilt into the joint one on purpose.
#
# ## A regression, aligned
#
# Observations stay what they are; the reward adds to them. Five measurements, a line through them,
# and a preference: the prediction at $t = 4$ should not exceed 3. The reward is minus the squared
# excess, which is bounded above by 0.

# %%
times = torch.tensor([0.0, 0.7, 1.1, 1.8, 2.3])
heights = torch.tensor([0.4, 0.6, 1.6, 1.9, 2.7])
NOISE = 0.6
LIMIT_TIME, LIMIT = 4.0, 3.0


def regression(times, heights=None):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.5))
    intercept = pyro.sample("intercept", dist.Normal(0.0, 1.5))
    with pyro.plate("data", len(times)):
        pyro.sample("heights", dist.Normal(intercept + slope * times, NOISE), obs=heights)
    return intercept + slope * LIMIT_TIME


prudence = rewards.Bounded(
    lambda prediction: -((prediction - LIMIT).clamp(min=0.0) ** 2), low=-float("inf"), high=0.0
)
prudent = align(regression, prudence, beta=4.0)

# %% [markdown]
# Exact rejection needs a bound on the likelihood too. A Gaussian density is at most
# $1/(\sigma\sqrt{2\pi})$, which is the bound that `log_bound` states below; the sampler checks it on
# every proposal.

# %%
log_bound = float(dist.Normal(0.0, NOISE).log_prob(torch.tensor(0.0))) * len(times)
options = {"num_samples": 300 if SMOKE else 4000, "seed": 0}
runs = {
    "importance": ImportanceSampler(prudent, **{**options, "num_samples": DRAWS}).run(
        times, heights
    ),
    "rejection": Rejection(prudent, log_bound=log_bound, **options).run(times, heights),
    "LCB": LCB(prudent, epsilon=0.05, **options).run(times, heights),
}
for name, result in runs.items():
    prediction = result.expectation(lambda s: s["intercept"] + s["slope"] * LIMIT_TIME)
    print(
        f"{name:11} prediction {prediction.item():.3f}   log Z {result.log_normalizer.item():.3f}"
    )
    print(f"{'':11} {result.certificate}\n")

# %% [markdown]
# Three samplers, one law, three different things that can be promised about it:
#
# * **importance sampling** keeps every base draw and weighs it; right in the limit,
# * **rejection** keeps only some, and those follow the law exactly,
# * **LCB** learns from base draws how far down the acceptance bar may go before more than
#   $\varepsilon$ of the target's mass is clipped, and so accepts far more often.

# %%
print("proposals for one draw:")
for name in ("rejection", "LCB"):
    print(f"  {name:10} {1 / runs[name].info['acceptance_rate']:.1f}")

fig, axes = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
grid = torch.linspace(-0.2, 4.4, 50)
unaligned = ImportanceSampler(regression, num_samples=DRAWS, seed=0).run(times, heights)
for ax, (title, result) in zip(
    axes, (("without the reward", unaligned), ("aligned", runs["rejection"]))
):
    draws = result.get_samples(60)
    lines = draws["intercept"].unsqueeze(-1) + draws["slope"].unsqueeze(-1) * grid
    ax.plot(grid, lines.T, color="#0072B2", alpha=0.12)
    ax.plot(times, heights, "o", color="black", label="observed")
    ax.plot([LIMIT_TIME, LIMIT_TIME], [LIMIT, 7.0], color="#D55E00", lw=3, label="unwanted")
    ax.set(title=title, xlabel="time", ylabel="height", ylim=(-1, 7))
    ax.legend(loc="upper left")
plt.show()

# %% [markdown]
# New predictions come from the aligned draws. Pyro's own `Predictive` ignores factors and would
# answer for the program without its reward; `result.predictive()` is its replacement.

# %%
later = torch.tensor([3.0, 4.0])
aligned_heights = runs["rejection"].predictive()(later)["heights"]
print("aligned mean heights at 3 and 4:", [round(v, 2) for v in aligned_heights.mean(0).tolist()])
base_heights = Predictive(prudent, num_samples=2000)(later)["heights"]
print("Predictive answers from the prior:", [round(v, 2) for v in base_heights.mean(0).tolist()])

# %% [markdown]
# ## What it cost
#
# Every result knows how much KL divergence the alignment spent, how much reward it bought, and what
# it took. `reweight` moves a result to another $\beta$ without a new draw, and `beta_for_kl` asks
# which $\beta$ spends a given budget.

# %%
print(runs["importance"].summary())

# %%
from pyro_tilt.infer import beta_for_kl

budget = 0.2
beta = beta_for_kl(runs["importance"], budget)
print(f"beta that spends {budget} nats: {beta:.2f}")
cautious = runs["importance"].reweight(beta=beta)
print("KL spent:", diagnostics.kl_to_base(cautious))
