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
# # SMC over Pyro programs
#
# A state-space model, an autoregressive model and a diffusion have one thing in common: they are
# programs with *steps*. Declare the steps with `scan`, and `SMC` can stop between two of them, look
# at which particles do well, and copy those. This notebook writes two such programs, one with an
# exact answer and one on real data, and shows what to watch.

# %%
# SPDX-License-Identifier: Apache-2.0
import os
import warnings

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch

from pyro_tilt import diagnostics, scan
from pyro_tilt.infer import SMC, ImportanceSampler
from pyro_tilt.infer.smc import LineageError, OnlineSMC
from pyro_tilt.testing.linear_gaussian import linear_gaussian_chain

SMOKE = "PYRO_TILT_SMOKE" in os.environ
PARTICLES = 100 if SMOKE else 1000
RUNS = 2 if SMOKE else 6

# %% [markdown]
# ## A program with steps
#
# The state is a point in the plane that moves by a linear rule with Gaussian noise; at every step a
# noisy reading of one coordinate is seen. `linear_gaussian_chain` supplies the matrices, the
# readings, and the exact log evidence by the Kalman recursion. The program itself is ordinary Pyro:
# `step(carry, x)` makes one step and returns the new carry.

# %%
STEPS = 30
case = linear_gaussian_chain(beta=0.0, dim=2, num_steps=STEPS, observed=True, seed=1)
system, readings = case.system, case.observations


def step(x, t):
    loc = x @ system.transition.mT + system.shift
    x = pyro.sample(f"x_{t}", dist.MultivariateNormal(loc, scale_tril=system.noise))
    seen = dist.Normal(x @ system.emission.mT, system.emission_scale).to_event(1)
    pyro.sample(f"y_{t}", seen, obs=readings[t])
    return x


def chain():
    start = dist.MultivariateNormal(system.mean, system.covariance)
    x = pyro.sample(f"x_{STEPS}", start)
    return scan("chain", step, x, range(STEPS - 1, -1, -1))


result = SMC(chain, num_particles=PARTICLES, num_chains=RUNS, keep_paths=True, seed=0).run()
print(result)
print(f"log evidence {result.log_normalizer:.3f}, exact {case.log_evidence:.3f}")

# %% [markdown]
# Importance sampling runs the same program with as many particles but never looks before the end.
# Thirty readings are too many for that: almost all of its weight sits on a few draws.

# %%
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    plain = ImportanceSampler(chain, num_samples=PARTICLES, num_chains=RUNS, seed=0).run()
print("warned:", caught[-1].message)
for name, each in (("importance sampling", plain), ("SMC", result)):
    spread = each.chain_log_normalizers.std()
    print(
        f"{name:20} log evidence {each.log_normalizer:8.2f}, sd over runs {spread:.2f}, "
        f"effective draws {each.ess:.0f} of {len(each)}"
    )

# %% [markdown]
# ## Step by step, and across runs
#
# `plot_steps` shows the effective sample size after every step; a triangle marks a resampling, which
# happens where it falls below half of the particles. `plot_evidence` shows how the evidence is put
# together and, in the corner, where each independent run ended. The evidence of SMC is unbiased for
# any number of particles; only several runs say how far off a single one is.

# %%
fig, axes = plt.subplots(1, 2, figsize=(13, 4.4), layout="constrained")
diagnostics.plot_steps(result, ax=axes[0])
diagnostics.plot_evidence(result, exact=case.log_evidence, ax=axes[1])
plt.show()

# %% [markdown]
# ## Genealogies
#
# Resampling has a price. Copies share their past, and going back in time the particles descend from
# fewer and fewer ancestors. Each line below leads from a final particle to its ancestors; the black
# line counts how many different ones are left. The last states rest on all particles, the first
# ones on a handful: filtering is safe, smoothing the far past is not.
#
# How often and how to resample matters. Resampling at every step by independent draws (multinomial)
# adds noise of its own and throws lineages away for nothing; the default waits until the effective
# sample size has halved and then draws systematically.

# %%
fig, axes = plt.subplots(1, 2, figsize=(13, 4.8), layout="constrained")
for ax, scheme, threshold in zip(axes, ("systematic", "multinomial"), (0.5, 1.0)):
    few = SMC(
        chain,
        num_particles=100,
        resampling=scheme,
        ess_threshold=threshold,
        keep_paths=True,
        seed=2,
    ).run()
    diagnostics.plot_genealogy(few, ax=ax)
    words = f"{scheme}, ESS threshold {threshold}"
    ax.set_title(f"{words}: {ax.get_title(loc='left')}", loc="left", fontsize=10)
plt.show()

# %% [markdown]
# ## The forgotten state variable
#
# When a particle is copied, everything that belongs to it has to be copied too. Whatever comes in by
# the carry of the scan is. A variable that a step reads from outside is not: after a resampling
# each particle would go on with somebody else's value, and nothing would crash. Here every particle
# has a drift of its own, and the step takes it from the enclosing function.


# %%
def forgetful():
    drift = pyro.sample("drift", dist.Normal(0.0, 0.5))

    def walk(x, t):
        x = pyro.sample(f"x_{t}", dist.Normal(x + drift, 0.3))
        pyro.sample(f"y_{t}", dist.Normal(x, 0.5), obs=torch.tensor(0.4 * t))
        return x

    return scan("walk", walk, torch.tensor(0.0), range(8))


try:
    SMC(forgetful, num_particles=PARTICLES, seed=0).run()
except LineageError as error:
    print("LineageError:", error)

# %% [markdown]
# Before the real run, `SMC` moved 32 particles with an exchange after every step, replayed their
# paths without one, and compared. (Where validation is off, ask for it: `check_lineage=True`.) The
# remedy is to carry the drift along:


# %%
def remembering():
    drift = pyro.sample("drift", dist.Normal(0.0, 0.5))

    def walk(carry, t):
        x, drift = carry
        x = pyro.sample(f"x_{t}", dist.Normal(x + drift, 0.3))
        pyro.sample(f"y_{t}", dist.Normal(x, 0.5), obs=torch.tensor(0.4 * t))
        return x, drift

    return scan("walk", walk, (torch.tensor(0.0), drift), range(8))


right = SMC(remembering, num_particles=PARTICLES, seed=0).run()
wrong = SMC(forgetful, num_particles=PARTICLES, seed=0, check_lineage=False).run()
truth = ImportanceSampler(remembering, num_samples=100 * PARTICLES, seed=0).run()
for name, each in (("forgotten", wrong), ("carried", right), ("importance sampling", truth)):
    print(
        f"{name:20} E drift = {each.expectation('drift'):.3f}, "
        f"log evidence = {each.log_normalizer:.2f}"
    )

# %% [markdown]
# ## Twists and guides
#
# A *twist* tells the sampler ahead of time how well a state will do later: an estimate of
# $\log E[\exp(\text{later factors and observations}) \mid \text{state}]$. It enters the weights now and
# is taken out at the end, so that a wrong twist costs variance and never bias. A *guide* draws the
# steps from another kernel; its density ratio enters the weights.
#
# For the Gaussian chain both are known exactly. With the exact twist and the optimal kernel all weights
# are equal, and a single particle gives the exact evidence. The table also shows half the twist and
# one that has nothing to do with the problem. All of them agree on the evidence. A twist without a
# guide helps little here: it can prefer good states but not propose them, and a reading that
# surprises the kernel costs as much as before.

# %%
variants = {
    "bootstrap": {},
    "exact twist": {"twist": case.twist("exact")},
    "half the twist": {"twist": case.twist("half")},
    "wrong twist": {"twist": case.twist("wrong")},
    "twist and guide": {"twist": case.twist("exact"), "guide": case.guide},
}
found = {}
print(f"exact log evidence      {case.log_evidence:.4f}")
for name, options in variants.items():
    each = SMC(chain, num_particles=PARTICLES, num_chains=RUNS, seed=1, **options).run()
    found[name] = each
    print(
        f"{name:18} log Z = {each.log_normalizer:.4f}, "
        f"sd over runs {each.chain_log_normalizers.std():.4f}, "
        f"lowest ESS {each.steps['ess'].min() / PARTICLES:.1%}"
    )

# %%
fig, axes = plt.subplots(1, 3, figsize=(15, 4), layout="constrained")
for ax, name in zip(axes, ("bootstrap", "exact twist", "wrong twist")):
    diagnostics.plot_steps(found[name], ax=ax)
    ax.set_title(f"{name}\n{ax.get_title(loc='left')}", loc="left", fontsize=10)
plt.show()

# %% [markdown]
# ## Real data: the Nile
#
# The yearly flow of the Nile at Aswan from 1871 to 1970, in $10^8\,\mathrm m^3$ (Cobb 1978; Durbin and
# Koopman 2012). The level of the river fell around 1899, when the first dam was begun. A local-level
# model lets the level walk at random. If its steps are Gaussian they must be small all the time and
# cannot follow a sudden fall; a Student law with few degrees of freedom allows one large step among many
# small ones. No Kalman filter handles the second model. SMC takes both, and the two evidences
# compare them.

# %%
FLOW = """
1120 1160 963 1210 1160 1160 813 1230 1370 1140 995 935 1110 994 1020 960 1180 799 958 1140
1100 1210 1150 1250 1260 1220 1030 1100 774 840 874 694 940 833 701 916 692 1020 1050 969
831 726 456 824 702 1120 1100 832 764 821 768 845 864 862 698 845 744 796 1040 759
781 865 845 944 984 897 822 1010 771 676 649 846 812 742 801 1040 860 874 848 890
744 749 838 1050 918 986 797 923 975 815 1020 906 901 1170 912 746 919 718 714 740
"""
flow = torch.tensor([float(word) for word in FLOW.split()])
years = torch.arange(1871, 1971)
data = flow[:40] if SMOKE else flow


def local_level(move):
    """The level moves by ``move`` a year and is read with a standard deviation of 120."""

    def step(carry, y):
        level, year = carry
        level = level + pyro.sample(f"move_{year}", move)
        pyro.sample(f"flow_{year}", dist.Normal(level, 120.0), obs=y)
        return pyro.deterministic(f"level_{year}", level), year + 1

    def program(data):
        level = pyro.sample("level", dist.Normal(1000.0, 200.0))
        return scan("nile", step, (level, 1871), data)[0]

    return program


models = {
    "Gaussian, sd 10": local_level(dist.Normal(0.0, 10.0)),
    "Gaussian, sd 40": local_level(dist.Normal(0.0, 40.0)),
    "Student, 1.5 degrees, scale 5": local_level(dist.StudentT(1.5, 0.0, 5.0)),
}
nile = {
    name: SMC(program, num_particles=4 * PARTICLES, num_chains=RUNS, keep_paths=True, seed=0).run(
        data
    )
    for name, program in models.items()
}
for name, each in nile.items():
    spread = each.chain_log_normalizers.std()
    print(f"{name:30} log evidence {each.log_normalizer:.2f}, sd over runs {spread:.2f}")


# %% [markdown]
# The evidence rules the stiff Gaussian model out. Between the loose one and the Student model it
# does not decide: their difference is about the spread over runs, and the heavy tail that makes the
# Student model interesting also makes its evidence noisy.
#
# The levels below are means over whole paths of the final particles, with a band of one standard
# deviation. The stiff Gaussian model smears the fall over decades and the loose one wobbles with every
# wet year; the Student model stays flat, steps once, and stays flat again.


# %%
def smoothed(result):
    """Mean and standard deviation of the level in every year, over weighted paths."""
    weights = result.normalized_weights
    levels = torch.stack(
        [result.paths[f"move_{year}"] for year in years[: len(data)].tolist()]
    ).cumsum(0)
    levels = levels + result.samples["level"]
    mean = levels.double() @ weights
    return mean, ((levels.double() - mean[:, None]).square() @ weights).sqrt()


fig, axes = plt.subplots(1, 3, figsize=(15, 4), layout="constrained", sharey=True)
for ax, (name, each) in zip(axes, nile.items()):
    mean, sd = smoothed(each)
    shown = years[: len(data)]
    ax.plot(shown, data, ".", color="#888888", label="flow")
    ax.plot(shown, mean, color="#0072B2", label="level")
    ax.fill_between(shown, mean - sd, mean + sd, color="#0072B2", alpha=0.2)
    ax.set_title(f"{name}\nlog evidence {each.log_normalizer:.1f}", loc="left", fontsize=10.5)
    ax.set_xlabel("year")
axes[0].set_ylabel("flow ($10^8$ m³ a year)")
axes[0].legend(frameon=False)
plt.show()

# %% [markdown]
# Before reading much into the early years, look at the lineages of one run: how many different levels
# of 1871 does that picture rest on? Around 1899 nearly all particles die at once, and the few that
# had just taken a large step down found the families that live on.

# %%
fig, axes = plt.subplots(1, 2, figsize=(13, 4.6), layout="constrained")
heavy = nile["Student, 1.5 degrees, scale 5"]
diagnostics.plot_genealogy(heavy, ax=axes[0])
diagnostics.plot_evidence(heavy, ax=axes[1])
plt.show()

# %% [markdown]
# ## Data that arrive one at a time
#
# `OnlineSMC` is the same engine with the loop turned inside out: `start` draws the particles, and each
# `step` takes one datum. After every year the filter knows the level as of now, and how surprising the
# year was.


# %%
def begin():
    return pyro.sample("level", dist.Normal(1000.0, 200.0))


def one_year(level, y):
    level = level + pyro.sample("move", dist.StudentT(1.5, 0.0, 5.0))
    pyro.sample("flow", dist.Normal(level, 120.0), obs=y)
    return level


stream = OnlineSMC(begin, one_year, num_particles=4 * PARTICLES, seed=0).start()
levels, surprise, before = [], [], 0.0
for y in data:
    stream.step(y)
    now = float(stream.log_normalizer)
    weights = stream.result().normalized_weights
    levels.append(float(stream.carry.double() @ weights))
    surprise.append(before - now)
    before = now

fig, axes = plt.subplots(2, 1, figsize=(9, 5), layout="constrained", sharex=True)
axes[0].plot(years[: len(data)], data, ".", color="#888888", label="flow")
axes[0].plot(years[: len(data)], levels, color="#0072B2", label="level so far")
axes[0].legend(frameon=False)
axes[0].set_ylabel("flow ($10^8$ m³ a year)")
axes[1].bar(years[: len(data)], surprise, color="#D55E00")
axes[1].set_ylabel("surprise (nats)")
axes[1].set_xlabel("year")
plt.show()
print(f"log evidence by the stream {before:.2f}, by the scan {heavy.log_normalizer:.2f}")

# %% [markdown]
# The online filter reacts to the fall of 1899 over a few years, since it cannot know yet whether a dry
# year is a new level or only a dry year; the smoothed picture above could look ahead. The most
# surprising year, 1913, was only that.
#
# ## A checklist
#
# | look at | good | bad | then |
# |---|---|---|---|
# | `check_lineage` | passes | names a site | pass that variable through the carry |
# | ESS over steps | above a few per cent everywhere | dips to a handful | a twist or a guide, more particles |
# | distinct ancestors | enough at the step that you ask about | one or two | later steps only, more particles, a higher twist quality |
# | evidence across runs | agree within error | spread | more particles, do not report the number |
