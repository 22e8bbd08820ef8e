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
# # Best-of-n, exactly
#
# Draw n texts, keep the one with the largest reward. Much of the alignment that people run is this
# and its relatives. Their laws for finite n are known exactly. This notebook computes them on a model
# small enough to list all it can say, runs the samplers beside them, and asks of each rule what it
# costs in divergence from the base, and whether it ever reaches the tilt
#
# $$ \pi^*(y) = p(y)\, e^{\beta r(y)} / Z. $$

# %%
# SPDX-License-Identifier: Apache-2.0
import math
import os

import matplotlib.pyplot as plt
import torch

from pyro_tilt import rewards
from pyro_tilt.diagnostics import (
    Estimate,
    FrontierPoint,
    kl,
    plot_frontier,
    reward_kl_frontier,
)
from pyro_tilt.infer import GSI, BestOfN, ExpBestOfN, ImportanceSampler, SoftBestOfN
from pyro_tilt.language import TabularLM, laws

SMOKE = "PYRO_TILT_SMOKE" in os.environ
DRAWS = 500 if SMOKE else 10_000
BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "0.5"
torch.set_default_dtype(torch.float64)

# %% [markdown]
# ## A model that can be listed
#
# Four letters, words of four, a Markov chain: 256 words. There are two rewards. The first is the
# number of different letters, so that many words share a reward. The second adds an opinion about
# each word, so that no two do.

# %%
lm = TabularLM.random(4, 4, order=1, scale=1.2, seed=3)
words, base = lm.enumerate(), lm.law()
program = lm.program()

tied = torch.nn.functional.one_hot(words, 4).amax(-2).sum(-1).double()
opinion = torch.randn(len(words), generator=torch.Generator().manual_seed(1))
untied = tied + 0.5 * opinion


def reward_from(table):
    """The reward of a table, with the bounds that it has."""
    low, high = float(table.min()), float(table.max())
    return rewards.Bounded(lambda tokens: table[lm.index(tokens)], low=low, high=high, event_dim=1)


letters, liked = reward_from(tied), reward_from(untied)
for count in tied.unique():
    print(f"{int(count)} different letters: probability {float(base[tied == count].sum()):.4f}")

# %% [markdown]
# ## The law
#
# Let $F$ be the distribution function of the reward under the base, and $C(y)$ the words that share
# the reward of $y$. Then
#
# $$ P_n(y) = \frac{p(y)}{p(C(y))} \bigl( F(r_y)^n - F(r_y^-)^n \bigr). $$
#
# Between classes of equal reward it is an order statistic. Within a class it is the base: which of two
# equals is kept does not matter. `laws.best_of_n` is this formula, `BestOfN` the sampler.

# %%
N = 8
law = laws.best_of_n(base, tied, N)
result = BestOfN(program, reward=letters, n=N, num_samples=DRAWS, seed=0).run()
print(result.certificate)

seen = torch.bincount(lm.index(result.samples["tokens"]), minlength=len(words)) / DRAWS
by_base = base.argsort(descending=True)
fig, axes = plt.subplots(1, 2, figsize=(12, 3.6), layout="constrained")
levels = tied.unique().tolist()
for offset, (name, table, color) in enumerate(
    (("base", base, GREY), (f"best of {N}, law", law, BLUE), (f"best of {N}, draws", seen, ORANGE))
):
    heights = [float(table[tied == level].sum()) for level in levels]
    places = [level + 0.27 * (offset - 1) for level in levels]
    axes[0].bar(places, heights, width=0.25, color=color, label=name)
axes[0].set(title="by reward", xlabel="different letters", ylabel="probability", xticks=levels)
axes[0].legend()
top = by_base[tied[by_base] == 4]
places = list(range(len(top)))
axes[1].bar(places, (law[top] / law[top].sum()).tolist(), color=BLUE, alpha=0.5, label="law")
axes[1].plot(places, base[top] / base[top].sum(), "_", color="black", ms=12, label="base")
axes[1].plot(places, seen[top] / seen[top].sum(), "o", color=ORANGE, ms=4, label="draws")
axes[1].set(title="among the words of four letters", xlabel="word, by rank", ylabel="probability")
axes[1].legend()
plt.show()

# %% [markdown]
# ## What it costs
#
# Papers quote $\log n - (n-1)/n$ as *the* KL divergence of best-of-n. It is an upper bound. It is
# close where no outcome and no class of equal rewards has much mass, and far too high otherwise: with
# ties the divergence cannot exceed $-\log p(C_{\max})$, however large n is.
#
# `kl.best_of_n_estimate` is nearer. It needs the mass of what was selected, and of *everything that
# has the same reward*. Fed with the probability of the selected word alone it is nearly the bound again,
# and that is the mistake to avoid.

# %%
ns = [1, 2, 4, 8, 16, 32, 64, 128, 256]
bound = [kl.best_of_n_bound(n) for n in ns]
fig, axes = plt.subplots(1, 2, figsize=(12, 3.8), layout="constrained")
for ax, (name, table) in zip(axes, (("with ties", tied), ("without ties", untied))):
    mass = kl.class_mass(table, table, base)
    selected = [laws.best_of_n(base, table, n) for n in ns]
    exact = [float(kl.exact(each, base)) for each in selected]
    by_class, by_word = (
        [float((p * kl.best_of_n_estimate(m, n)).sum()) for p, n in zip(selected, ns)]
        for m in (mass, base)
    )
    ax.plot(ns, bound, ls="--", color=GREY, lw=2, label=r"bound $\log n - (n-1)/n$")
    ax.plot(ns, by_word, "x", color=PINK, ms=8, label="estimator, mass of the word")
    ax.plot(ns, by_class, "s", color=ORANGE, ms=5, label="estimator, mass of the class")
    ax.plot(ns, exact, color=BLUE, lw=2, label="exact")
    ax.set(title=name, xlabel="n", ylabel="KL to the base (nats)", xscale="log", ylim=(-0.2, 4.9))
    ax.legend(loc="upper left")
    print(f"{name}, n = 128: bound {bound[-2]:.2f}, by class {by_class[-2]:.2f}, {exact[-2]:.2f}")
plt.show()

# %% [markdown]
# On a model that cannot be listed the class has to be estimated. The result keeps base draws for that:
# the share of them that has the reward of a selected draw.

# %%
shares = kl.class_mass(result.stats["reward"], result.base.reward)
estimate = kl.best_of_n_estimate(shares, N).mean()
print(f"from draws {estimate:.3f}, exact {kl.exact(law, base):.3f}, bound {bound[3]:.3f}")

# %% [markdown]
# Two more accounts need no run of best-of-n at all. The mean reward for every n comes from one set of
# base draws, without bias. The win rate over the base, a tie counting half, is at most $n/(n+1)$, and
# less with ties.

# %%
curve = kl.best_of_n_curve(result.base.reward, ns)
print("   n   mean reward: curve   exact     win rate  at most")
for n, mean in zip(ns, curve.tolist()):
    chosen = laws.best_of_n(base, tied, n)
    wins = float(kl.win_rate(chosen, base, tied))
    reached = float((chosen * tied).sum())
    print(f"{n:4}   {mean:18.3f}   {reached:.3f}     {wins:.3f}     {kl.win_rate_bound(n):.3f}")

# %% [markdown]
# ## Best-of-n is no tilt
#
# Under a tilt $\log(q/p)$ is a straight line in the reward. Below, each rule has $n = 16$, and the tilt
# has $\beta = 2$. Best-of-n is curved: it knows the order of the rewards and not their size. The two
# soft rules keep a draw by its weight $e^{\beta r}$, and bend towards the line:
#
# * `SoftBestOfN` keeps draw $i$ with probability $e^{\beta r_i} / \sum_j e^{\beta r_j}$,
# * `ExpBestOfN` keeps the largest $\beta r_i + E_i$ with standard exponential noise $E_i$.

# %%
BETA = 2.0
tilt = laws.tilt(base, untied, BETA)
order = untied.argsort()
rules = {
    "best-of-n": (laws.best_of_n(base, untied, 16), GREEN),
    "soft best-of-n": (laws.soft_best_of_n(base, untied, BETA, 16), ORANGE),
    "exp best-of-n": (laws.exp_best_of_n(base, untied, BETA, 16), BLUE),
}
fig, ax = plt.subplots(figsize=(7.5, 4), layout="constrained")
ax.plot(untied[order], (tilt / base).log()[order], color="black", lw=4, alpha=0.3, label="tilt")
for name, (chosen, color) in rules.items():
    ax.plot(untied[order], (chosen / base).log()[order], color=color, lw=1.8, label=name)
ax.axhline(math.log(16), color=GREY, ls=":", label="log n")
ax.set(
    title="what 16 draws can do",
    xlabel="reward",
    ylabel="log (law / base)",
    ylim=(-9, 4),
    xlim=(1, 5),
)
ax.legend(loc="lower right")
plt.show()

# %% [markdown]
# No rule makes an outcome more than $n$ times as likely as it was: all end below $\log n$. That is why
# a stronger tilt takes more draws.
#
# ## How fast they reach it
#
# For soft best-of-n the bias falls like $1/n$ and so $\mathrm{KL}(\pi^* \| P_n)$ like $1/n^2$, with a
# known constant. The simple bound $\log(1 + \mathrm{CV}^2/n)$, with the relative variance of the
# weights, is of order $1/n$ and safe for every n. Exp best-of-n is in another class. A draw whose noisy
# weight exceeds the largest weight there is, a *hit*, follows the tilt exactly, and the chance that
# none of n hits is $(1 - a)^n$.

# %%
ns = [1, 2, 4, 8, 16, 32, 64, 128, 256]
soft = [laws.soft_best_of_n(base, untied, BETA, n) for n in ns]
exp = [laws.exp_best_of_n(base, untied, BETA, n) for n in ns]
hit = float(laws.exp_best_of_n_parts(base, untied, BETA, 1).hit_probability)


def distance(p, q):
    """The total variation distance of two laws."""
    return 0.5 * float((p - q).abs().sum())


fig, axes = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
of = (base, untied, BETA)
bounds = [float(laws.soft_best_of_n_kl_bound(*of, n)) for n in ns]
rates = [float(laws.soft_best_of_n_kl_rate(*of, n)) for n in ns]
axes[0].plot(ns, bounds, "--", color=GREY, label=r"bound $\log(1 + \mathrm{CV}^2/n)$")
axes[0].plot(ns, [float(kl.exact(tilt, p)) for p in soft], "o-", color=ORANGE, label="exact")
axes[0].plot(ns, rates, ":", color="black", label=r"leading term, $\propto 1/n^2$")
axes[0].set(
    title="soft best-of-n", xlabel="n", ylabel="KL(tilt || law)", xscale="log", yscale="log"
)
fresh = [laws.truncated_rejection(*of, n) for n in ns]
axes[1].plot(ns, [(1.0 - hit) ** n for n in ns], "--", color=GREY, label="$(1 - a)^n$")
for name, each, color in (
    ("soft best-of-n", soft, ORANGE),
    ("truncated rejection", fresh, GREEN),
    ("exp best-of-n", exp, BLUE),
):
    axes[1].plot(ns, [distance(tilt, p) for p in each], "o-", color=color, label=name)
axes[1].set(title="all rules", xlabel="n", ylabel="total variation", yscale="log", ylim=(1e-10, 2))
for ax in axes:
    ax.legend(loc="lower left")
plt.show()

# %% [markdown]
# The samplers say the same in their certificates. `SoftBestOfN` is *consistent*: right as n grows, no
# distance promised. It keeps the mean weight of each group, with which `expectation(...,
# corrected=True)` takes the bias back. `ExpBestOfN` stops at the first hit, marks hits, and certifies a
# distance from the share of misses.


# %%
def of_tokens(samples):
    return untied[lm.index(samples["tokens"])]


target = float((tilt * untied).sum())
options = {"reward": liked, "beta": BETA, "num_samples": DRAWS, "seed": 0, "progress": False}
print(f"E r under the tilt: {target:.4f}")
for n in (4, 32):
    soft_run = SoftBestOfN(program, n=n, **options).run()
    exp_run = ExpBestOfN(program, n=n, **options).run()
    plain, corrected = (
        float(soft_run.expectation(of_tokens, corrected=fix)) for fix in (False, True)
    )
    print(f"\nn = {n}")
    by_law = [
        float((rule(base, untied, BETA, n) * untied).sum())
        for rule in (laws.soft_best_of_n, laws.exp_best_of_n)
    ]
    print(f"soft: E r plain {plain:.4f}, by its law {by_law[0]:.4f}, corrected {corrected:.4f}")
    print("     ", soft_run.certificate)
    drawn = exp_run.cost.base_draws / len(exp_run)
    reached = float(exp_run.expectation(of_tokens))
    print(f"exp:  E r {reached:.4f}, by its law {by_law[1]:.4f}, {drawn:.1f} draws each")
    print("     ", exp_run.certificate)

# %% [markdown]
# ## Two models, and a threshold that does not go away
#
# Guided speculative inference draws from a cheap draft $\pi_S$ and corrects for the target model
# $\pi_B$ by the reward $\tilde r = r + \frac1\beta \log \frac{\pi_B}{\pi_S}$. If what it keeps has
# $\tilde r$ below a threshold u, a choice among n draws of the target replaces it.
#
# The published rule is biased, however large n is. Outcomes above u come from the draft, and from the
# fallback once more, which may return anything. If $a$ is the mass of the tilt above u, the limit is
# $(2 - a)\,\pi^*$ above and $(1 - a)\,\pi^*$ below. `fallback="debiased"` draws the replacement below u
# alone. `laws.exact_accept` does without a threshold: it accepts as rejection sampling does.
#
# The draft here is the same model at a higher temperature.

# %%
draft_lm = lm.tempered(1.6)
draft = draft_lm.law()
U = 3.5
pair = (draft, base, untied, BETA)
methods = {
    "published": (lambda n: laws.gsi(*pair, n, U), ORANGE),
    "debiased": (lambda n: laws.gsi(*pair, n, U, fallback="debiased"), BLUE),
    "no threshold": (lambda n: laws.gsi(*pair, n, -math.inf), GREY),
    "exact accept": (lambda n: laws.exact_accept(*pair, n), GREEN),
}
fig, axes = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
for name, (rule, color) in methods.items():
    distances = [float(kl.exact(tilt, rule(n))) for n in ns]
    style = "--" if name == "no threshold" else "o-"
    axes[0].plot(ns, distances, style, color=color, label=name, ms=5)
limit = float(kl.exact(tilt, laws.gsi_limit(*pair, U)))
axes[0].axhline(limit, color="black", ls=":", label=f"limit, {limit:.3f}")
axes[0].set(
    title=f"threshold {U}", xlabel="n", ylabel="KL(tilt || law)", yscale="log", ylim=(1e-6, 3)
)
axes[0].set_xscale("log")
axes[0].legend(loc="lower left")

thresholds = torch.linspace(0.0, 5.5, 111).tolist()
biases = [float(kl.exact(tilt, laws.gsi_limit(*pair, u))) for u in thresholds]
kept = [float(laws.gsi_acceptance(*pair, 64, u)) for u in thresholds]
axes[1].plot(thresholds, biases, color=ORANGE, label="KL(tilt || limit), published")
axes[1].plot(thresholds, kept, color=GREY, label="draft kept, n = 64")
axes[1].axvline(U, color="black", ls=":")
axes[1].set(title="what the threshold does", xlabel="threshold u", ylim=(-0.03, 1.05))
axes[1].legend(loc="center left")
plt.show()

# %% [markdown]
# On the left the debiased rule lies on the one without a threshold: both are at the mercy of n draws of
# the draft. With few draws the published rule is the nearer of the two, as its fallback asks the better
# model; from about $n = 8$ on it is the farther one, and stays so.
#
# On the right, a very low threshold always keeps the draft, a very high one never does, and both are
# right in the limit. In between, where the target is asked now and then, as intended, the bias is
# largest. The samplers know:
# the published rule is a *search*, the debiased one consistent. The exact rule needs a bound on
# $\beta \tilde r$ and certifies a distance.

# %%
highest = float((BETA * laws.tilted_rewards(*pair)).max())
variants = {
    "published": {"threshold": U},
    "debiased": {"threshold": U, "fallback": "debiased"},
    "exact accept": {"accept": "exact", "log_bound": highest},
}
print(f"E r under the tilt of the target: {target:.4f}")
for name, choice in variants.items():
    run = GSI(program, draft=draft_lm.program(), n=64, **options, **choice).run()
    reached = float(run.stats["reward"].mean())
    expected = float((methods[name][0](64) * untied).sum())
    share = float(run.stats["accepted"].mean())
    print(f"{name:13} E r {reached:.4f}, by its law {expected:.4f}   draft kept {share:.2f}")
    print(f"{'':13} {run.certificate.law}  {run.certificate.excludes}")

# %% [markdown]
# ## Reward for divergence
#
# Among all laws of one divergence from the base a tilt has the largest expected reward. The tilts are
# the frontier; everything else lies on it or below. `reward_kl_frontier` runs any set of samplers and
# gives points, each with the divergence of the law that its draws really follow: of the tilt for
# samplers that aim at it, of the rule's own law of $n$ draws for best-of-n and its relatives. It says of
# each whether that is exact, an estimate or a bound; points known otherwise can stand beside them.


# %%
def exact_point(label, chosen):
    reached = float((chosen * untied).sum())
    spent = float(kl.exact(chosen, base))
    return FrontierPoint(label, kl=Estimate(spent, 0.0), reward=Estimate(reached, 0.0))


common = {"reward": liked, "num_samples": DRAWS, "seed": 0, "progress": False}
betas, sizes = (0.5, 1.0, 2.0, 3.0), (2, 4, 8, 16, 32, 64)
run_points = reward_kl_frontier(
    {
        "importance sampling": [
            ImportanceSampler(program, beta=beta, **common) for beta in (0.0, *betas)
        ],
        "exp best-of-256": [ExpBestOfN(program, beta=beta, n=256, **common) for beta in betas],
        "best-of-n": [BestOfN(program, n=n, **common) for n in sizes],
        "soft best-of-4": [SoftBestOfN(program, beta=beta, n=4, **common) for beta in betas],
    }
)
for point in run_points:
    strength = "" if point.beta is None else f"beta {point.beta:g}"
    sign = "<=" if point.kl_is_bound else "= "
    print(
        f"{point.label:20} {strength:9} KL {sign} {point.kl!s:18} E r = {point.reward} ({point.kl_kind})"
    )

# %%
exact_points = [
    *(exact_point("best-of-n", laws.best_of_n(base, untied, n)) for n in sizes),
    *(
        exact_point("soft best-of-4", laws.soft_best_of_n(base, untied, b, 4))
        for b in (*betas, 8.0)
    ),
    *(
        exact_point("GSI, published, n = 64", laws.gsi(draft, base, untied, b, 64, U))
        for b in betas
    ),
]
strengths = (10.0 * torch.linspace(0.0, 1.0, 80) ** 2).tolist()
frontier = [exact_point("tilts", laws.tilt(base, untied, b)) for b in strengths]
fig, axes = plt.subplots(1, 2, figsize=(13, 4.8), layout="constrained")
for ax, points in zip(axes, (run_points, exact_points)):
    ax.plot(
        [p.kl.value for p in frontier],
        [p.reward.value for p in frontier],
        color="black",
        alpha=0.3,
        lw=4,
        label="frontier: the tilts",
        zorder=0,
    )
    plot_frontier(points, ax=ax)
axes[0].set_title("samplers, as run", loc="left")
axes[1].set_title("laws, exactly", loc="left")
plt.show()

# %% [markdown]
# All of these rules spend their divergence well: here best-of-n runs close below the frontier at every
# n, and a biased GSI runs close below it too. A point near the frontier does not say *which* law the
# draws follow. GSI under its threshold is off the tilt it aims at, and is no other tilt either. If the law
# matters, because evidence, expectations or another $\beta$ are to be read off the draws, then choose
# by the certificate:
#
# | rule | law for n draws | reaches the tilt |
# |---|---|---|
# | `BestOfN` | order statistic, known | never |
# | `SoftBestOfN` | known | bias of order $1/n$, taken back by `corrected=True` |
# | `ExpBestOfN` | known | exactly, given a hit |
# | `GSI`, published | known | not under a finite threshold |
# | `GSI`, debiased | known | bias of order $1/n$ |
# | `GSI(accept="exact")` | known | exactly, given that a draw is accepted |
