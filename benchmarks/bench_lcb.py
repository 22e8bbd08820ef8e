# SPDX-License-Identifier: Apache-2.0
"""Stepwise LCB on the two-mode toy at B = 5: exact values, everything learned, and every rule.

About three minutes of one core. Laws with exact values are sums over a grid, without draws. The
learned value reads the first coordinate, so that the chain tilted by it is known on the grid too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness import Row
from pyro_tilt.infer import LCB, WeightedSamples
from pyro_tilt.infer.stepwise import LearnedBaselines, learn_baselines
from pyro_tilt.infer.twists import learn_twists
from pyro_tilt.ops import ClippedLaw, chernoff_bound
from pyro_tilt.testing.grid_chain import interpolate
from pyro_tilt.testing.two_mode_toy import EDGE, TwoModeToy, two_mode_toy

TITLE = "Stepwise LCB on the two-mode toy, B = 5"
B, EPSILON = 5.0, 0.05
PATHS, TRAINING, TEST = 50_000, 10_000, 50_000
EDGES = torch.linspace(-10.0, 9.0, 59, dtype=torch.float64)
BOUND = (0.0, B + 1e-6)
LAMBDAS = tuple(2.0 ** (k / 4) for k in range(-8, 25))
FIGURE = Path(__file__).with_name("figures") / "lcb_rules.png"
Value = Callable[[Tensor, int], Tensor]


def run() -> list[Row]:
    toy = two_mode_toy(beta=B)
    exact = exact_rules(toy)
    learned, rows = learned_rules(toy)
    FIGURE.parent.mkdir(exist_ok=True)
    draw(exact, learned, rows.pop())
    return [*exact_rows(toy, exact), *rows]


# Exact values: baselines of every state of the grid, and the law that they give.


def log_mgf(toy: TwoModeToy, t: int, s: Tensor) -> Tensor:
    """Exact log-MGFs of the value at the points of the grid, shape (G, K)."""
    if t:
        return torch.stack([toy.chain.log_mgf(float(each), t) for each in s], -1)
    rewarded = torch.expm1(toy.chain.log_soft_values[1]) / math.expm1(toy.beta)
    return torch.log1p(torch.expm1(toy.beta * s) * rewarded.unsqueeze(-1))


def chernoff(toy: TwoModeToy, t: int, epsilon: float, sharp: bool) -> Tensor:
    lam = torch.tensor(LAMBDAS, dtype=torch.float64)
    psi = log_mgf(toy, t, torch.cat([lam.new_ones(1), 1.0 + lam]))
    return chernoff_bound(psi[:, 1:], psi[:, :1], lam, epsilon, sharp=sharp).amin(1)


def quantile(toy: TwoModeToy, t: int, rate: float) -> Tensor:
    """The base quantile of the value at 1 - 1/rate in every state."""
    values, order = toy.chain.log_soft_values[t].sort()
    below = toy.chain.transitions[t][:, order].cumsum(1)
    index = (below < 1.0 - 1.0 / rate).sum(1).clamp(max=len(values) - 1)
    return values[index]


def law_of(
    toy: TwoModeToy, baseline: Callable[[int], Tensor], capped: bool = True
) -> tuple[float, float]:
    """Proposals per step and distance of the final law.

    Baselines are floored at log Z and, where ``capped``, end at the largest value of the step.
    """
    chain = toy.chain
    start = chain.densities[-1] * chain.log_soft_values[-1].exp()
    sampler = aim = start / start.sum()
    cost = 0.0
    for t in range(toy.num_steps - 1, -1, -1):
        values = chain.log_soft_values[t].expand(len(chain.grid), -1)
        b = torch.maximum(baseline(t), chain.log_mgf(1.0, t))
        if capped:
            b = b.clamp(max=float(values.max()))
        law = ClippedLaw(chain.transitions[t].log(), values, b)
        cost += float(sampler @ law.expected_proposals) / toy.num_steps
        sampler, aim = sampler @ law.log_prob.exp(), aim @ law.target_log_prob.exp()
    return cost, 0.5 * float((sampler - aim).abs().sum())


def exact_rules(toy: TwoModeToy) -> dict[str, list[tuple[float, float]]]:
    """For each rule the curve of proposals and distance over its dial, its own point first."""
    parts, flat = toy.num_steps, torch.full_like(toy.chain.grid, B)
    dials = (EPSILON, 0.4, 0.15, 0.02, 0.005)

    def curve(rule: Callable[[int, float], Tensor], settings: Sequence[float]) -> list:
        return [law_of(toy, lambda t, s=s: rule(t, s)) for s in settings]

    return {
        "global bound": [law_of(toy, lambda t: flat, capped=False)],
        "plain Chernoff": curve(lambda t, e: chernoff(toy, t, e / parts, False), dials),
        "sharpened Chernoff": curve(lambda t, e: chernoff(toy, t, e / parts, True), dials),
        "exchange rate": curve(lambda t, m: quantile(toy, t, m), (631, 50, 150, 2000, 10_000)),
        "budget": curve(
            lambda t, n: toy.chain.log_mgf(1.0, t) + math.log(n), (10.4, 3.0, 5.0, 20.0, 40.0)
        ),
    }


def sampled_with_exact_values(toy: TwoModeToy) -> WeightedSamples:
    """The sampler itself under log-MGFs from the grid."""
    tables: dict[int, Tensor] = {}

    def mgf(x: Tensor, t: int, s: Tensor) -> Tensor:
        if t not in tables:
            tables[t] = log_mgf(toy, t, s)
        return torch.stack(
            [interpolate(toy.chain.grid, each, x[..., 0]) for each in tables[t].T], -1
        )

    return LCB(
        toy.program,
        reward=toy.reward,
        beta=B,
        value=toy.twist("exact"),
        log_mgf=mgf,
        epsilon=EPSILON,
        value_bound=BOUND,
        num_samples=20_000,
        seed=0,
        progress=False,
        check_lineage=False,
    ).run()


def exact_rows(toy: TwoModeToy, rules: dict[str, list[tuple[float, float]]]) -> list[Row]:
    sampled = sampled_with_exact_values(toy).info["proposals_per_step"]
    rows = [
        Row(
            "exact values, sharpened Chernoff, sampled: proposals per step",
            f"{sampled:.2f}",
            "at most 3",
            sampled <= 3.0,
        )
    ]
    for name, points in rules.items():
        cost, distance = points[0]
        aim = {
            "sharpened Chernoff": ("at most 3 and 0.005", cost <= 3.0 and distance <= 0.005),
            "global bound": ("71 and 0", abs(cost - 71.0) < 1.5 and distance < 1e-9),
        }.get(name, ("-", True))
        measured = f"{cost:.2f}, {distance:.4f}"
        rows.append(Row(f"exact values, {name}: proposals per step, TV of the law", measured, *aim))
    return rows


# Everything learned from samples.


def probabilities(toy: TwoModeToy, value: Value) -> Tensor:
    """The law of the first coordinate over the bins, of the chain tilted by a value of it."""
    grid = toy.chain.grid
    states = torch.stack([grid, torch.zeros_like(grid)], -1)
    law = toy.chain.densities[-1] / toy.chain.densities[-1].sum()
    for t in range(toy.num_steps - 1, 0, -1):
        law = law @ (toy.chain.transitions[t].log() + value(states, t)).softmax(-1)
    gaps = toy.kernel_mean(states, 0)[:, :1], toy.kernel_scales[0] * math.sqrt(2.0)

    def cdf(edges: Tensor) -> Tensor:
        return 0.5 * torch.erfc((gaps[0] - edges) / gaps[1])

    low, below = cdf(EDGES.clamp(max=EDGE)), cdf(EDGES)
    total = 1.0 + math.expm1(B) * cdf(EDGES.new_tensor([EDGE]))
    tilted = (math.exp(B) * low + below - low) / total
    ends = tilted.new_zeros(len(grid), 1)
    return law @ torch.cat([ends, tilted, ends + 1.0], 1).diff(dim=1)


def distance(result: WeightedSamples, law: Tensor, weighted: bool = False) -> float:
    """Total variation of the binned draws from a law over the bins."""
    first = result.samples["x_0"][:, 0].contiguous()
    weights = torch.ones(len(first), dtype=torch.float64)
    if weighted:
        assert result.residual_log_weights is not None
        weights = result.residual_log_weights.exp()
    mass = torch.zeros_like(law).index_add(0, torch.bucketize(first, EDGES), weights)
    return 0.5 * float((mass / mass.sum() - law).abs().sum())


def noise(law: Tensor, count: int) -> float:
    """What the distance is on average for that many draws of the very law."""
    spread = (law * (1.0 - law) / count).sqrt()
    return 0.5 * math.sqrt(2.0 / math.pi) * float(spread.sum())


def learned_rules(toy: TwoModeToy) -> tuple[dict[str, tuple[float, float]], list]:
    """Points of the learned rules, the rows, and last the noise of the points."""
    twist = learn_twists(
        toy.program,
        reward=toy.reward,
        beta=B,
        features=lambda x: x[..., :1],
        num_particles=PATHS // 2,
        held_out=0.5,
        rounds=1,
        ess_threshold=0.0,
        seed=0,
        progress=False,
    )

    def value(x: Tensor, t: int) -> Tensor:
        return twist(x, t).clamp(*BOUND)

    options = {
        "reward": toy.reward,
        "beta": B,
        "value": value,
        "value_bound": BOUND,
        "tilt_start": False,
        "progress": False,
    }

    def train(**rule) -> LearnedBaselines:
        found = {"draws_per_state": 2, "num_chains": TRAINING, "seed": 1, **options, **rule}
        return learn_baselines(toy.program, epsilon=EPSILON, **found)

    def test(baselines: LearnedBaselines, count: int, **extra) -> WeightedSamples:
        return LCB(
            toy.program,
            baseline=baselines,
            num_samples=count,
            seed=2,
            check_lineage=False,
            **options,
            **extra,
        ).run()

    own, true = probabilities(toy, value), toy.probabilities(EDGES)
    main = test(train(), TEST, path_weights="fresh", num_inner=20)
    rows = learned_rows(main, own, true)
    points = {"learned Chernoff": (main.info["proposals_per_step"], distance(main, own))}
    others = {
        "learned Chernoff, split by cost": {"split": "cost"},
        "learned marginal": {"rule": "marginal"},
        "learned exchange rate": {"rule": "exchange", "exchange_rate": 150.0},
        "learned budget": {"rule": "budget"},
    }
    for name, rule in others.items():
        result = test(train(**rule), TEST)
        points[name] = result.info["proposals_per_step"], distance(result, own)
        measured = "{:.2f}, {:.4f}".format(*points[name])
        label = f"{name}: proposals per step, TV to its value-tilted chain"
        rows.append(Row(label, measured, "-", True))
    return points, [*rows, noise(own, TEST)]


def learned_rows(result: WeightedSamples, own: Tensor, true: Tensor) -> list[Row]:
    cost, near = result.info["proposals_per_step"], distance(result, own)
    before, after = distance(result, true), distance(result, true, weighted=True)
    estimate = result.certificate.estimated_total_variation
    return [
        Row("learned Chernoff: proposals per step", f"{cost:.2f}", "at most 6", cost <= 6.0),
        Row(
            "learned: TV to its own value-tilted chain (binned, with noise)",
            f"{near:.4f} (noise {noise(own, TEST):.4f}, certificate's estimate {estimate:.3f})",
            "at most 0.02",
            near <= 0.02,
        ),
        Row("learned: TV to the true target, unweighted", f"{before:.3f}", "-", True),
        Row(
            "learned: TV to the true target, by path weights",
            f"{after:.4f} ({result.info['path_effective_sample_size']:,.0f} effective of {TEST:,})",
            "at most 0.05",
            after <= 0.05,
        ),
    ]


def draw(
    exact: dict[str, list[tuple[float, float]]],
    learned: dict[str, tuple[float, float]],
    floor: float,
) -> None:
    """Proposals against distance, exact curves and learned points."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colors = ("#000000", "#56B4E9", "#0072B2", "#E69F00", "#009E73")
    figure, ax = plt.subplots(figsize=(7.6, 5.0), layout="constrained")
    for (name, points), color in zip(exact.items(), colors):
        if name == "global bound":
            ax.axvline(points[0][0], color=color, linestyle=":", label=f"{name} (TV 0)")
            continue
        ordered = sorted(points)
        ax.plot(*zip(*ordered), color=color, linewidth=1.5, label=f"{name}, exact values")
        ax.plot(*points[0], marker="o", color=color)
    styles = ("D", "P", "s", "^", "v")
    shades = ("#0072B2", "#56B4E9", "#CC79A7", "#E69F00", "#009E73")
    for (name, point), marker, color in zip(learned.items(), styles, shades):
        ax.plot(
            *point,
            marker=marker,
            markersize=8,
            color=color,
            markeredgecolor="black",
            linestyle="none",
            label=name,
        )
    ax.axhline(floor, color="#888888", linestyle="--", label=f"noise of {TEST:,} draws")
    ax.set(xscale="log", yscale="log")
    ax.set_xlabel("proposals per step")
    ax.set_ylabel("TV of the final law from its value-tilted chain")
    ax.set_title(f"two-mode toy, B = {B:g}, 19 steps", loc="left", fontsize=10.5)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_xticks([1, 2, 3, 5, 10, 20, 40, 71], ["1", "2", "3", "5", "10", "20", "40", "71"])
    ax.minorticks_off()
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(FIGURE, dpi=140)
    plt.close(figure)
