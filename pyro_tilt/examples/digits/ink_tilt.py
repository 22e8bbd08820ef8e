# SPDX-License-Identifier: Apache-2.0
"""More ink by a linear tilt of the diffusion, beside importance sampling and steering by SMC."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import functional

from pyro_tilt.diffusion import NetworkDiffusion, from_diffusers
from pyro_tilt.examples.digits.classifier import Classifier
from pyro_tilt.examples.digits.data import IMAGE_SHAPE
from pyro_tilt.examples.digits.model import Denoiser, make_scheduler
from pyro_tilt.examples.digits.program import MAX_ROWS, digits_program
from pyro_tilt.examples.digits.report import mosaic
from pyro_tilt.examples.digits.rewards import ink_reward
from pyro_tilt.examples.digits.steering_outcome import Outcome, Target, describe
from pyro_tilt.examples.digits.steering_values import digits_with_estimates, posterior_mean_value
from pyro_tilt.infer import SMC, ImportanceSampler, LinearTilt, SamplerWarning, WeightedSamples
from pyro_tilt.infer.seeding import derive_seed
from pyro_tilt.poutine import align

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHAINS = 4
SHOWN = (2, 18)
HEADER = (
    "method",
    "draws",
    "mean ink",
    "gain",
    "effective sample size",
    "z_max",
    "KL",
    "still a digit",
    "network rows",
    "seconds",
    "certificate",
)
# A run shorter or longer than asked for by this share is run again with its own price of a draw.
_OFF = 0.05

Make = Callable[[int, int], WeightedSamples]


@dataclass(frozen=True)
class InkSettings:
    """What is compared; the defaults take under a minute on one core."""

    rows: int = 24_000
    reference: int = 8_000
    steps: int = 40
    seed: int = 0
    beta: float = 50.0
    caps: tuple[float, ...] = (1.0, 4.0, float("inf"))


@dataclass(frozen=True)
class InkRow:
    """
    One way to more ink.

    :ivar outcome: what it achieved.
    :ivar gain: mean ink above that of the base, in the standard deviations of a base draw.
    :ivar ess: an effective sample size.
    :ivar ess_of: of what.
    :ivar kl: from the base, as the method states it; None where it states none, or a negative
        one, which no divergence is (the network was extrapolated).
    :ivar z_max: the largest shift that the network was asked to follow, in standard deviations of
        the noise; None where its states are not shifted.
    """

    outcome: Outcome
    gain: float
    ess: float
    ess_of: str
    kl: float | None
    z_max: float | None = None


def as_diffusion(model: Denoiser, steps: int = 40) -> NetworkDiffusion:
    r"""
    The network as a diffusion model, whose ancestral steps are those of ``digits_program``.

    It starts from :math:`N(0, s_T^2 I)` with :math:`s_T^2 = 1 - \bar\alpha_T`, which is 0.999 at
    40 steps, where the program starts from :math:`N(0, I)`.

    :param model: from :func:`~pyro_tilt.examples.digits.load_denoiser`.
    :param steps: number of ancestral steps.
    """
    # The denoiser and not its network: both would count the rows of the other samplers.
    return from_diffusers(model, make_scheduler(), steps=steps, event_shape=IMAGE_SHAPE)


def at_rows(make: Make, rows: int, each: float, seed: int) -> WeightedSamples:
    """
    A run of about so many network rows, by a way whose price of a draw is only known afterwards.

    :param make: runs a number of draws from a seed.
    :param rows: the budget.
    :param each: a guess at the rows of one draw.
    :param seed: of the run.
    """
    result = make(_whole(rows / each), seed)
    for _ in range(3):
        spent = result.cost.network_rows or 0
        if abs(spent - rows) <= _OFF * rows:
            break
        result = make(_whole(rows * len(result) / spent), seed)
    return result


def _whole(draws: float) -> int:
    """A number of draws that chains of equal length make."""
    return CHAINS * max(2, round(draws / CHAINS))


def ways(model: Denoiser, settings: InkSettings) -> dict[str, Make]:
    """
    The ways compared, each a function of the number of draws and a seed.

    :param model: the denoiser.
    :param settings: see :class:`InkSettings`.
    """
    s, reward = settings, ink_reward()
    plain = align(partial(digits_program, model, steps=s.steps), reward, s.beta)
    program = partial(digits_with_estimates, model, steps=s.steps)
    estimated = align(program, reward, s.beta)
    quiet: dict[str, Any] = {"progress": False}
    base = as_diffusion(model, s.steps)

    def importance(draws: int, seed: int) -> WeightedSamples:
        options = quiet | {"num_samples": draws, "seed": seed, "max_batch": MAX_ROWS}
        return ImportanceSampler(plain, **options).run()

    def tilt(draws: int, seed: int, *, cap: float) -> WeightedSamples:
        options = quiet | {"num_samples": draws // CHAINS, "num_chains": CHAINS, "seed": seed}
        return LinearTilt(base, reward, beta=s.beta, max_z=cap, **options).run()

    def smc(draws: int, seed: int, *, tempered: bool) -> WeightedSamples:
        twist = posterior_mean_value(reward, s.beta, steps=s.steps, tempered=tempered)
        options = quiet | {"num_particles": draws // CHAINS, "num_chains": CHAINS, "seed": seed}
        return SMC(estimated, twist=twist, check_lineage=False, **options).run()

    return {
        "importance sampling": importance,
        **{_tilt_name(cap): partial(tilt, cap=cap) for cap in s.caps},
        "SMC, posterior mean": partial(smc, tempered=False),
        "SMC, tempered posterior mean": partial(smc, tempered=True),
    }


def _tilt_name(cap: float) -> str:
    return "LinearTilt, " + (f"max_z = {cap:g}" if cap < float("inf") else "no cap on z")


def compare_ink(
    model: Denoiser, judge: Classifier, settings: InkSettings
) -> tuple[Tensor, list[InkRow]]:
    """
    More ink by every way at equal network rows, and by many more draws as the reference.

    :param model: the denoiser.
    :param judge: a classifier that takes no part; a draw is *still a digit* where it is sure of
        one.
    :param settings: see :class:`InkSettings`.
    :returns: base draws, and the rows, of which the first is the reference.
    """
    target = Target(
        "more ink",
        ink_reward(),
        settings.beta,
        lambda images: (judge(images).exp().amax(-1) > 0.9).double(),
        "B is 90% sure of some digit",
    )
    found = ways(model, settings)
    with warnings.catch_warnings():
        # What they warn of stands in the table.
        warnings.simplefilter("ignore", SamplerWarning)
        reference = found["importance sampling"](settings.reference, derive_seed(settings.seed, 99))
        results = [
            at_rows(make, settings.rows, float(settings.steps), derive_seed(settings.seed, place))
            for place, make in enumerate(found.values())
        ]
    base = reference.samples["x_0"]
    ink = target.reward(base).double()
    names = ["reference: importance sampling", *found]
    rows = [_row(*each, target, ink) for each in zip(names, [reference, *results])]
    return base, rows


def _row(name: str, result: WeightedSamples, target: Target, ink: Tensor) -> InkRow:
    outcome = describe(name, result, target)
    gain = (outcome.reward[0] - float(ink.mean())) / float(ink.std())
    share = result.info.get("start_ess")
    if result.sampler != "LinearTilt":
        ess, of = float(result.ess), "of the weights"
        if outcome.ancestors < outcome.draws:
            ess, of = float(outcome.ancestors), "ancestors"
    elif share is None:
        ess, of = float(outcome.draws), "independent"
    else:
        # The ladder's ancestors are what is left of the base draws.
        ess, of = float(outcome.ancestors), f"ancestors, least share at a rung {share:.2f}"
    kl = result.info.get("kl", outcome.kl)
    kl = None if kl is not None and kl < 0.0 else kl
    return InkRow(outcome, gain, ess, of, kl, result.info.get("z_max"))


def ink_table(rows: Sequence[InkRow]) -> str:
    """
    The rows as a Markdown table.

    :param rows: from :func:`compare_ink`.
    """
    lines = [HEADER, ("---",) * len(HEADER), *(_cells(row) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cells(row: InkRow) -> tuple[str, ...]:
    each = row.outcome
    return (
        each.method,
        f"{each.draws:,}",
        f"{each.reward[0]:.4f} ± {each.reward[1]:.4f}",
        f"{row.gain:+.2f} sd",
        f"{row.ess:.0f} ({row.ess_of})",
        "" if row.z_max is None else f"{row.z_max:.1f}",
        "" if row.kl is None else f"{row.kl:.2f}",
        f"{each.confirmed:.3f}",
        f"{each.network_rows:,}",
        f"{each.seconds:.1f}",
        f"{each.law} ({each.target})",
    )


def ink_page(base: Tensor, rows: Sequence[InkRow]) -> Figure:
    """
    Equally weighted draws of every way, under draws of the base.

    :param base: base draws, ``(n, 1, 8, 8)``.
    :param rows: the ways to show.
    """
    from matplotlib.figure import Figure

    mean = float(ink_reward()(base).double().mean())
    pages = [(f"base: mean ink {mean:.3f}", base)]
    for row in rows:
        each, z = row.outcome, "" if row.z_max is None else f", z up to {row.z_max:.1f}"
        pages.append((f"{each.method}: mean ink {each.reward[0]:.3f}{z}", each.images))
    height = 1.22 * len(pages) + 0.1
    figure = Figure(figsize=(9.0, height), dpi=110)
    axes = figure.subplots(len(pages), 1, squeeze=False)[:, 0]
    top = 1.0 - 0.25 / height
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=top, hspace=0.28)
    for ax, (title, images) in zip(axes, pages):
        picture = functional.pad(mosaic(images, *SHOWN), (1, 1, 1, 1))
        ax.imshow(picture.numpy(), cmap="gray_r", vmin=0.0, vmax=1.0, interpolation="nearest")
        ax.set_title(title, fontsize=10)
        ax.axis("off")
    return figure
