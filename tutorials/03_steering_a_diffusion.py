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
# # Steering a diffusion step by step
#
# A diffusion draws its output in many small steps. Weighing whole runs wastes most of them: a run
# that goes wrong early is carried to its end all the same. A program that declares its steps by
# `scan` lets a sampler step in between.
#
# All such samplers need a guess of what is still to come. The exact one is the *log soft value*
#
# $$ V_t(x_t) = \log \mathbb{E}\bigl[e^{\beta r(x_0)} \mid x_t\bigr]. $$
#
# It is hardly ever known. What differs between samplers is what a wrong guess does to them. We see
# that first on a diffusion so small that everything is known, then on handwritten digits.

# %%
# SPDX-License-Identifier: Apache-2.0
import os
import warnings
from functools import partial

import matplotlib.pyplot as plt
import torch

from pyro_tilt import align, diagnostics
from pyro_tilt.infer import LCB, SMC, BestOfN, BlockBestOfN, SamplerWarning, SoftBestOfM
from pyro_tilt.infer.twists import PosteriorMeanTwist, learn_twists
from pyro_tilt.testing.mixture_diffusion import mixture_diffusion

SMOKE = "PYRO_TILT_SMOKE" in os.environ
DRAWS = 300 if SMOKE else 4000
warnings.simplefilter("ignore", SamplerWarning)

# %% [markdown]
# ## A diffusion that is solved exactly
#
# Eight steps lead from noise to a mixture of three modes. The reward $\tanh(x - 0.5)$ prefers the
# right, and $\beta = 4$. Quadrature gives the law of every step, the exact values, and $\log Z$.

# %%
case = mixture_diffusion(beta=4.0)
aligned = case.aligned()
edges = torch.linspace(-3.0, 4.0, 29)
target = case.probabilities(edges)


def distance(result, corrected=False):
    """Total variation from the exact aligned law, over 30 bins."""
    log_weights = result.analysis_log_weights("residual" if corrected else "auto")
    if log_weights is None:
        log_weights = result.log_weights
    bins = torch.bucketize(result.samples["x_0"], edges.double())
    weights = (log_weights - log_weights.logsumexp(0)).exp()
    found = torch.zeros_like(target).index_add(0, bins, weights)
    return 0.5 * (found - target).abs().sum().item()


# %% [markdown]
# ## Twists
#
# A guess handed to SMC is called a *twist*. Here are three.
#
# * **Exact**: from quadrature.
# * **Posterior mean**: the reward of the denoised estimate, $\beta\, r(\hat x_0(x_t))$. It costs
#   nothing that the diffusion does not compute anyway, and it puts a point where there is a law.
# * **Learned**: fitted to the sampler's own runs by `learn_twists`.


# %%
def after_step(denoise):
    # The element of xs is the t of the state that the step made.
    return lambda x, t: denoise(x, t - 1) if t else x


learned = learn_twists(
    aligned,
    num_particles=200 if SMOKE else 4000,
    steps=20 if SMOKE else 300,
    seed=0,
    progress=False,
)
twists = {
    "none": None,
    "posterior mean": PosteriorMeanTwist(after_step(case.denoise), case.reward, case.beta),
    "learned": learned,
    "exact": case.twist(),
}
x = torch.linspace(-2.5, 3.0, 100, dtype=torch.float64)
fig, axes = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained")
for ax, t in zip(axes, (5, 1)):
    for (name, twist), color in zip(list(twists.items())[1:], ("#E69F00", "#0072B2", "black")):
        value = twist(x, t)
        ls = ":" if name == "exact" else "-"
        ax.plot(x, value, label=name, color=color, ls=ls, lw=2)
    ax.set(title=f"log values at t = {t}", xlabel="state", ylabel="log value")
axes[0].legend()
plt.show()

# %% [markdown]
# ## SMC: a wrong twist costs variance
#
# SMC runs all particles together. After each step it weighs them by the change of the twist and,
# where the weights have become uneven, copies the good ones. At the end the twist is taken out again
# and the true reward enters. So the twist decides how well the particles are spent, and not what
# they converge to.

# %%
print(f"exact log Z {case.log_normalizer:.3f}")
runs = {}
for name, twist in twists.items():
    run = SMC(aligned, num_particles=DRAWS, twist=twist, num_chains=4, seed=1).run()
    runs[name] = run
    print(
        f"{name:15} log Z {run.log_normalizer.item():.3f} ± {run.log_normalizer_error.item():.3f}  "
        f"ESS {run.ess / len(run):5.1%}  distance {distance(run):.3f}"
    )
print()
print(runs["exact"].certificate)

# %% [markdown]
# The distances are those of finite samples: even perfect draws would show a few thousandths. Note
# how late the effective sample size falls without a twist: the reward enters at the end, when
# nothing can be done about it any more.

# %%
fig, ax = plt.subplots(figsize=(8, 3.2), layout="constrained")
colors = ("#888888", "#E69F00", "#0072B2", "black")
for (name, run), color in zip(runs.items(), colors):
    ess = torch.cat([run.steps["ess"][0], torch.tensor([run.ess / 4])]) / DRAWS
    ax.plot(ess, label=name, color=color, marker="o", ms=3, ls=":" if name == "exact" else "-")
ax.set(xlabel="step (the last point: at the end)", ylabel="ESS share", ylim=(0, 1.05))
ax.set_title("effective sample size, first chain")
ax.legend()
plt.show()

# %% [markdown]
# ## LCB: draws one by one, and two distances
#
# SMC gives a crowd that is right together. `LCB` gives independent draws. Each step proposes from
# the program and accepts with probability $\min(1, e^{V(x) - b})$, where the baseline $b$ is learned
# for the state that the step starts from. Rejected chains propose again.
#
# Its certificate measures what the baseline clips. It speaks of the *value-tilted chain*: the chain
# that follows the values it was given. If the values are wrong, that chain is not the aligned law,
# and no certificate of clipping can know it. Here the exact values are compared with half of them.

# %%
chains = {}
for name in ("exact", "half"):
    chains[name] = LCB(
        aligned,
        value=case.twist(name),
        num_samples=DRAWS,
        epsilon=0.05,
        path_weights=8,
        seed=2,
        progress=False,
    ).run()
    run = chains[name]
    print(
        f"{name:6} values: {run.info['proposals_per_step']:.2f} proposals per step, "
        f"certificate: TV about {run.certificate.estimated_total_variation:.3f}, "
        f"true distance {distance(run):.3f}, after path weights {distance(run, corrected=True):.3f}"
    )
print()
print(chains["half"].certificate)

# %% [markdown]
# Both certificates are good and both are true. With half the values the draws are far from the
# aligned law all the same, and the certificate said that it does not cover that. The *path weights*
# do: they know what each step did, whatever the values, and the weighted draws aim at the aligned
# law itself.
#
# ## Selection: fast, greedy, and a law of its own
#
# * `SoftBestOfM` (SVDD) proposes $m$ states per step and keeps one by its value. With exact values
#   its bias falls like $1/m$; with wrong ones it stays.
# * `BlockBestOfN` (CoDe) keeps the best of each block. It is a search.
# * `BestOfN` keeps the best of whole runs. Its law is known exactly. It is not the tilt.

# %%
options = {"num_samples": DRAWS, "seed": 3}
selected = {
    "soft best of 16, exact values": SoftBestOfM(
        aligned, value=case.twist(), m=16, exact_values=True, **options
    ).run(),
    "soft best of 16, half values": SoftBestOfM(
        aligned, value=case.twist("half"), m=16, **options
    ).run(),
    "best of 8 by blocks of 2": BlockBestOfN(
        case.program, reward=case.reward, value=case.twist(), n=8, block=2, **options
    ).run(),
    "best of 8 runs": BestOfN(case.program, reward=case.reward, n=8, **options).run(),
}
shown = {"SMC, exact twist": runs["exact"], "LCB, half values": chains["half"], **selected}
for name, run in shown.items():
    reward = run.expectation(lambda s: case.reward(s["x_0"])).item()
    print(f"{name:30} E r {reward:.3f}  distance {distance(run):.3f}  {run.certificate.law}")
print(f"{'exact aligned law':30} E r {case.reward_mean:.3f}")

# %%
fig, axes = plt.subplots(2, 3, figsize=(12, 5.2), layout="constrained", sharey=True, sharex=True)
centres = (edges[1:] + edges[:-1]) / 2
base = case.probabilities(edges, aligned=False)
for ax, (name, run) in zip(axes.flat, shown.items()):
    draws = run.get_samples(DRAWS, seed=0)["x_0"]
    counts = torch.histc(draws.float(), bins=28, min=-3.0, max=4.0) / len(draws)
    ax.bar(
        centres.tolist(), counts.tolist(), width=0.25, color="#0072B2", alpha=0.45, label="draws"
    )
    ax.plot(centres, target[1:-1], color="black", label="aligned law")
    ax.plot(centres, base[1:-1], color="#888888", ls=":", label="base")
    ax.set_title(f"{name} ({run.certificate.law})", fontsize=10)
axes[0, 0].legend(fontsize=8)
plt.show()

# %% [markdown]
# A reward that is higher than that of the aligned law is no success: best-of-n strays further from
# the base than the reward it earns is worth at this $\beta$.
#
# ## Digits
#
# Now a real diffusion: 40 steps of a small network that draws 8x8 digits. We ask for a 3, in the
# words of a classifier: $r = \log P_A(3 \mid x_0)$, $\beta = 2$. A second classifier B, trained on
# other images, will say whether it agrees.

# %%
from pyro_tilt.examples.digits import digits_program, load_classifier, load_denoiser, reads_as
from pyro_tilt.examples.digits.steering import spend, targets
from pyro_tilt.examples.digits.steering_methods import SteeringSettings, methods
from pyro_tilt.examples.digits.steering_outcome import describe
from pyro_tilt.examples.digits.steering_report import show
from pyro_tilt.examples.digits.steering_values import (
    digits_with_estimates,
    fit_bounded_value,
    posterior_mean_value,
)

STEPS = 6 if SMOKE else 40
PARTICLES = 60 if SMOKE else 300
denoiser, reader, judge = load_denoiser(), load_classifier("a"), load_classifier("b")
reward = reads_as(reader, 3)
three = align(partial(digits_program, denoiser, steps=STEPS, record="all"), reward, 2.0)
estimated = align(partial(digits_with_estimates, denoiser, steps=STEPS), reward, 2.0)


def steer(program, twist):
    return SMC(
        program,
        twist=twist,
        num_particles=PARTICLES,
        seed=0,
        keep_paths=True,
        check_lineage=False,
        progress=False,
    ).run()


# %% [markdown]
# The posterior mean as it stands first, then tempered by $\bar\alpha_t$. At the first steps
# $\hat x_0 = (x_t - \sigma_t \hat\epsilon) / \sqrt{\bar\alpha_t}$ divides the network's error by
# 0.03. The classifier has strong opinions on what comes out, and SMC believes them.

# %%
raw = steer(estimated, posterior_mean_value(reward, 2.0, steps=STEPS, tempered=False))
tempered = steer(estimated, posterior_mean_value(reward, 2.0, steps=STEPS))
for name, run in (("posterior mean", raw), ("tempered", tempered)):
    print(
        f"{name:15} ancestors {len(run.stats['ancestor'].unique()):4d} of {PARTICLES}, "
        f"smallest ESS {run.steps['ess'].min() / PARTICLES:.1%}, log Z {run.log_normalizer:.2f}"
    )
fig, axes = plt.subplots(1, 2, figsize=(12, 3.6), layout="constrained")
for ax, (name, run) in zip(axes, (("posterior mean", raw), ("tempered", tempered))):
    diagnostics.plot_genealogy(run, ax=ax)
    ax.set_title(f"{name}: {ax.get_title(loc='left') or ax.get_title()}", loc="left", fontsize=10)
plt.show()

# %% [markdown]
# The final weights of both runs look fine. The genealogy does not: in the first run almost all
# initial noises were dropped on the word of a useless estimate. Always look at the number of
# ancestors beside the effective sample size.
#
# ### Learned values, and how they fail
#
# `learn_twists` fits values by the LINEX loss $e^{A - V} + V$, where $A$ is what a path still earned.
# It is right for any reward. But this reward is nearly an on-off switch: one digit in ten is a 3, and
# for the others $e^{\beta r}$ is close to nothing. A 3 that comes out where the network expected none
# costs $e^{A - V}$, without limit. A few such surprises rule the fit. Where it does no better than a
# constant on paths that it did not see, `learn_twists` keeps the constant, which steers nothing.
#
# Because this reward is bounded above by 0, there is another loss. $e^{\beta r}$ lies in $[0, 1]$, and
# its conditional mean is a probability. `fit_bounded_value` fits it by the cross-entropy, where no
# surprise costs more than its own log loss, and then asks unseen paths how far to trust the network
# at each step.

# %%
training = 60 if SMOKE else 500
linex = learn_twists(
    three,
    num_particles=training,
    rounds=1,
    steps=10 if SMOKE else 100,
    seed=0,
    progress=False,
)
probability = fit_bounded_value(
    denoiser,
    reward,
    2.0,
    steps=STEPS,
    num_paths=2 * training,
    updates=20 if SMOKE else 400,
    progress=False,
)
runs = {"LINEX": steer(three, linex), "cross-entropy": steer(three, probability)}
fit = probability.report
fig, axes = plt.subplots(1, 2, figsize=(11, 3.2), layout="constrained")
axes[0].plot(range(1, STEPS), fit.log_loss, color="#0072B2", label="fitted probability")
axes[0].axhline(fit.constant_log_loss, color="#888888", ls=":", label="best constant")
axes[0].plot(range(1, STEPS), probability.trust, color="#009E73", lw=1, label="trust")
axes[0].set(title="cross-entropy on unseen paths, and trust", xlabel="step", ylim=(0, 1.05))
for (name, run), color in zip(runs.items(), ("#D55E00", "#0072B2")):
    axes[1].plot(range(1, STEPS), run.steps["ess"] / PARTICLES, label=name, color=color)
axes[1].set(title="SMC: effective sample size, share", xlabel="step", ylim=(0, 1.05))
for ax in axes:
    ax.legend(fontsize=8)
plt.show()
for name, run in runs.items():
    print(
        f"{name:14} ancestors {len(run.stats['ancestor'].unique()):4d} of {PARTICLES}, "
        f"log Z {run.log_normalizer:.2f}"
    )

# %% [markdown]
# An effective sample size that stays at one is no success: that twist says nothing yet. Where the
# learned twist does speak, it jumps from step to step. The fitted probability comes in smoothly. In
# the first half of the steps it knows next to nothing, and no fit could do much better: a noisy
# image hardly tells its digit.
#
# ### All methods at the same number of network rows
#
# Every method may send the same number of images through the network; training is counted apart.
# *corrected* is the mean reward under the residual weights, where the method gives them.

# %%
settings = SteeringSettings(
    rows=600 if SMOKE else 8000,
    steps=STEPS,
    training_paths=training,
    training_updates=20 if SMOKE else 400,
    proposals=3 if SMOKE else 8,
    num_inner=4 if SMOKE else 32,
)
goal = targets(settings, reader, judge)[0]
outcomes = []
print(f"{'method':29} draws  ancestors  reward  confirmed  corrected (ESS)  log Z   KL     law")
for number, method in enumerate(methods(denoiser, goal, settings, progress=False)):
    each = describe(method.name, spend(method, settings.rows, number), goal)
    outcomes.append(each)
    corrected = f"{each.corrected[0]:8.3f} ({each.corrected_ess:.0f})" if each.corrected else ""
    log_z = f"{each.log_z[0]:6.2f}" if each.log_z else ""
    kl = f"{'≤' if each.kl_is_bound else ' '}{each.kl:.2f}" if each.kl is not None else ""
    print(
        f"{each.method:29} {each.draws:5d}  {each.ancestors:9d}  {each.reward[0]:6.3f}  "
        f"{each.confirmed:9.2f}  {corrected:15}  {log_z:6}  {kl:5}  {each.law}"
    )

# %%
fig, axes = plt.subplots(len(outcomes), 1, figsize=(8, 1.35 * len(outcomes)), layout="constrained")
for ax, each in zip(axes, outcomes):
    show(ax, each)
plt.show()

# %% [markdown]
# What to take from it:
#
# * **SMC** stays right with poor values, and pays by losing ancestors.
# * **LCB and SVDD** with the learned probability do what they were asked: they follow the values.
#   These are cautious wherever they are unsure, which suits SMC, whereas a chain that has nothing
#   else to go by is steered too little, and most of its digits are no 3. LCB's certificate is small
#   and says in words that it excludes this. The residual weights see it. They put the evidence right
#   and leave few effective draws, too few for the corrected rewards to be trusted.
# * **LCB and SVDD** with the posterior mean follow better values, at a higher price: every proposal
#   passes through the network.
# * **Best of 16** keeps a 3 where there is one among 16 runs. At one digit in ten that holds five times
#   in six. Selection by blocks does better with the same rows, as it looks in between.
# * Whole-run **rejection** is exact and, at one digit in ten, not even expensive. Where the tilt is
#   mild, steering step by step is not needed. It begins to pay where $e^{-\log Z}$ runs is too many.
#
# ## What each certificate says
#
# | sampler | word | of which target | a wrong value costs |
# |---|---|---|---|
# | `SMC` | consistent | the aligned law | variance, ancestors |
# | `LCB` by steps | bounded or consistent | the value-tilted chain | bias that it does not measure, unless path weights correct it |
# | `SoftBestOfM` | consistent in $m$ if you vouch for the values, else search | the aligned law | bias at every $m$ |
# | `BlockBestOfN` | search | none | it keeps maxima |
# | `BestOfN` | exact | its own order-statistic law | uses none |
#
# `python -m pyro_tilt.examples.digits --steer` runs the whole comparison, for more ink as well, and
# writes the table and a page of pictures.
