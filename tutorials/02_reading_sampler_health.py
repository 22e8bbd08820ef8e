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
# # Reading sampler health
#
# A sampler that fails does not crash. It hands over draws like any other. This notebook runs the
# same problem at three strengths, so that the base model covers the aligned law well, barely, and
# not at all, and shows what each plot looks like in each case. The exact answer is known throughout.
#
# The problem: ten independent standard Gaussians, reward their scaled sum $r(x) = \sum_i x_i/\sqrt{10}$.
# The aligned law at $\beta$ is the base moved by $\beta$ along that direction, with
# $\log Z = \beta^2/2$ and $\mathrm{KL} = \beta^2/2$: the price of alignment in nats is what decides how
# many base draws it takes, about $e^{\mathrm{KL}}$ and more.

# %%
# SPDX-License-Identifier: Apache-2.0
import os
import warnings

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch

from pyro_tilt import align, diagnostics, rewards
from pyro_tilt.infer import LCB, ImportanceSampler, Rejection, SamplerWarning

SMOKE = "PYRO_TILT_SMOKE" in os.environ
DRAWS = 500 if SMOKE else 4000
DIM = 10
warnings.simplefilter("always", SamplerWarning)


def program():
    return pyro.sample("x", dist.Normal(torch.zeros(DIM), torch.ones(DIM)).to_event(1))


def name_panel(ax, name):
    ax.set_title(f"{name}\n{ax.get_title(loc='left')}", loc="left")


reward = rewards.Linear(torch.full((DIM,), DIM**-0.5))
STRENGTHS = {"good": 0.8, "strained": 2.6, "broken": 5.0}

# %% [markdown]
# ## Importance sampling at three strengths

# %%
results = {}
for name, beta in STRENGTHS.items():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results[name] = ImportanceSampler(
            align(program, reward, beta), num_samples=DRAWS, num_chains=4, seed=0
        ).run()
    result = results[name]
    along = result.expectation(lambda s: s["x"].sum(-1) / DIM**0.5).item()
    print(
        f"{name:9} beta {beta}: E r = {along:.2f} (exact {beta:.2f}), "
        f"log Z = {result.log_normalizer.item():.2f} (exact {beta**2 / 2:.2f})"
    )
    told = [str(w.message) for w in caught if issubclass(w.category, SamplerWarning)]
    for warning in dict.fromkeys(told):
        print("          warned:", warning)

# %% [markdown]
# The broken run is wrong by a lot, and its own standard error would not have said so: a sample that
# has not seen the region that matters cannot know its own error. That is why the library reports the
# tail shape $\hat k$ of the weights beside the effective sample size, and warns above
# $\min(0.7,\, 1 - 1/\log_{10} N)$.
#
# ### Weights and $\hat k$
#
# In a healthy run many draws share the weight. In a broken one a handful own it all.

# %%
fig, axes = plt.subplots(1, 3, figsize=(15, 4), layout="constrained")
for ax, (name, result) in zip(axes, results.items()):
    diagnostics.plot_weights(result, ax=ax)
    name_panel(ax, name)
plt.show()

# %% [markdown]
# ### Evidence across independent runs
#
# Each chain here is an independent run. Good runs agree within their bands. In the broken case the
# curves climb in jumps, each jump one lucky draw, and the runs disagree: the surest sign that the
# number is not to be trusted.

# %%
fig, axes = plt.subplots(1, 3, figsize=(15, 4), layout="constrained")
for ax, (name, result) in zip(axes, results.items()):
    diagnostics.plot_evidence(result, ax=ax)
    ax.axhline(STRENGTHS[name] ** 2 / 2, color="black", ls=":", label="exact")
    name_panel(ax, name)
    ax.legend(fontsize=8)
plt.show()

# %% [markdown]
# ### Reward before and after
#
# The two histograms overlap in the good case. Where they hardly touch, no reweighting of base draws
# will bridge them.

# %%
fig, axes = plt.subplots(1, 3, figsize=(15, 4), layout="constrained")
for ax, (name, result) in zip(axes, results.items()):
    diagnostics.plot_reward(result, ax=ax)
    name_panel(ax, name)
plt.show()

# %% [markdown]
# ## One page of health
#
# `plot_health` puts the right plots on one page, with the certificate in words. The good run:

# %%
diagnostics.plot_health(results["good"])
plt.show()

# %% [markdown]
# and the broken one:

# %%
diagnostics.plot_health(results["broken"])
plt.show()

# %% [markdown]
# ## Rejection and learned Chernoff baselines
#
# Rejection samplers fail differently. Their draws are independent and cannot degenerate; what grows
# is the number of proposals. Exact rejection needs a bound on the reward, so here the reward is
# squashed into [0, 1].
#
# LCB asks for no bound on the weights: it accepts with probability $\min(1, e^{A - b})$, where
# $A = \beta r$ and the baseline $b$ is learned from base draws so that at most a fraction
# $\varepsilon$ of the target's mass lies clipped above it. What to watch is the *clipped mass*, with
# its upper confidence bound where the reward is bounded.


# %%
def squash(x):
    return torch.sigmoid(2.0 * x.sum(-1) / DIM**0.5)


bounded = rewards.Bounded(squash, low=0.0, high=1.0)
problem = align(program, bounded, beta=6.0)
exact = Rejection(problem, num_samples=DRAWS, seed=0).run()
careful = LCB(problem, num_samples=DRAWS, epsilon=0.02, seed=0).run()
hasty = LCB(problem, num_samples=DRAWS, epsilon=0.4, seed=0).run()
print(f"{'sampler':22} proposals/draw  E r     clipped mass")
for name, result in (
    ("rejection", exact),
    ("LCB, epsilon 0.02", careful),
    ("LCB, epsilon 0.4", hasty),
):
    gain = result.stats["reward"].mean().item()
    clipped = result.info.get("clipped_mass", 0.0)
    print(f"{name:22} {1 / result.info['acceptance_rate']:8.2f}       {gain:.4f}  {clipped:.4f}")

# %%
fig, axes = plt.subplots(1, 3, figsize=(15, 4), layout="constrained")
for ax, (name, result) in zip(
    axes, (("rejection", exact), ("careful LCB", careful), ("hasty LCB", hasty))
):
    diagnostics.plot_acceptance(result, ax=ax)
    name_panel(ax, name)
plt.show()

# %% [markdown]
# The hasty run is cheaper and biased towards lower rewards, by no more than its clipped mass. That
# bias can be taken back: an accepted draw with weight $e^{(A-b)_+}$ is exact for the target.

# %%
for name, result in (("careful", careful), ("hasty", hasty)):
    plain = result.stats["reward"].mean().item()
    corrected = result.expectation(lambda s: squash(s["x"]), corrected=True).item()
    print(f"{name:8} E r plain {plain:.4f}, corrected {corrected:.4f}")
print(f"exact    E r {exact.stats['reward'].mean().item():.4f}")

# %%
print(hasty.summary())

# %% [markdown]
# ## A checklist
#
# | look at | good | bad | then |
# |---|---|---|---|
# | $\hat k$ | below its threshold | above | more draws, a lower $\beta$, LCB or rejection |
# | effective sample size | a sizeable fraction of N | a handful | the same |
# | evidence across runs | agree within error | spread | do not report the number |
# | clipped mass (LCB) | below $\varepsilon$, upper bound too | above | smaller $\varepsilon$, or the residual weights |
# | capped draws | none | any | raise the cap; they are flagged in `stats["capped"]` |
# | acceptance rate | above a few per mille | lower | a tighter bound, LCB, or importance sampling |
#
# None of these sees a mode that the base model itself never produces. A reward cannot summon what
# the base does not contain.
