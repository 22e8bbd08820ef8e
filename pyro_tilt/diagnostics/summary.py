# SPDX-License-Identifier: Apache-2.0
"""A result in numbers: what law was sampled, how well, and what it cost."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyro_tilt.diagnostics import reading
from pyro_tilt.diagnostics.summary_text import render
from pyro_tilt.ops.importance import effective_sample_size, log_evidence

if TYPE_CHECKING:
    from pyro_tilt.infer.weighted_samples import WeightedSamples

SMALL_SITE = 16
"""Sites with at most this many values are listed with their means."""

MANY_UNFINISHED = 0.25
"""A larger mass at False of a site named ``..._finished`` is warned of."""

# Truth values are no labels: their mean is a share.
_LABELS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

_VERDICTS = ("ok", "strained", "broken")


@dataclass(frozen=True)
class Summary:
    """
    What :func:`summary` returns: ``str`` gives the table, :meth:`to_dict` the numbers.

    :ivar numbers: the entries of the table; a number that is unknown is None or nan.
    :ivar warnings: one sentence for each thing a reader should know before trusting the draws.
    :ivar verdict: ``"ok"``, ``"strained"`` or ``"broken"``, the worst that the warnings say.
    """

    numbers: dict[str, Any]
    warnings: list[str]
    verdict: str

    def __str__(self) -> str:
        return render(self.numbers, self.warnings, self.verdict)

    def to_dict(self) -> dict[str, Any]:
        """The entries for JSON: plain numbers, with None in place of nan and infinities."""
        found = {"verdict": self.verdict, "warnings": list(self.warnings), **self.numbers}
        cleaned: dict[str, Any] = _json_ready(found)
        return cleaned


def summary(result: WeightedSamples) -> Summary:
    """
    Sums up a result for a person to read.

    Means of sites are those of :meth:`~pyro_tilt.infer.WeightedSamples.expectation`; reward, KL and
    evidence take the raw weights. The KL is that of the law which the draws follow, exact, an
    estimate or a bound as its ``kind`` says; :func:`kl_to_base` gives that of their target. k-hat
    is held against ``min(.7, 1 - 1/log10 N)`` and is never silent above it. A program tells by a
    deterministic site of booleans named ``..._finished`` which draws came to their end, as language
    programs with a stop token do; where more than a quarter of the mass did not, that is said. The
    reward *before* is the one of the base program given its observations, from the base proposals
    that the sampler kept.

    :param result: the result of a sampler.

    >>> import pyro, pyro.distributions as dist
    >>> from pyro_tilt.infer import ImportanceSampler
    >>> program = lambda: pyro.sample("x", dist.Normal(0.0, 1.0))
    >>> result = ImportanceSampler(program, reward=lambda x: x, num_samples=4000, seed=0).run()
    >>> found = summary(result)
    >>> found.verdict, found.to_dict()["draws"]
    ('ok', 4000)
    >>> print(str(found).splitlines()[0])
    ImportanceSampler: 4,000 weighted draws
    """
    capped = result.stats.get("capped")
    numbers: dict[str, Any] = {
        "sampler": result.sampler,
        "kind": result.kind,
        "draws": len(result),
        "chains": list(result.chain_sizes),
        "beta": result.beta,
        "certificate": result.certificate.to_dict(),
        "log_evidence": _evidence(result),
        "ess": _ess(result),
        "lowest_ess": _lowest_ess(result),
        "pareto_k": _tail(result),
        "acceptance": _acceptance(result),
        "clipping": _clipping(result),
        "capped": None if capped is None else int(capped.sum()),
        "unfinished": _unfinished(result),
        "reward": _reward(result),
        "kl": _kl(result),
        "cost": result.cost.to_dict(),
        "sites": _sites(result),
        "smoothed": result.kind == "weighted" and result.psis_log_weights is not None,
    }
    found = _warnings(numbers)
    verdict = max((level for level, _ in found), key=_VERDICTS.index, default="ok")
    return Summary(numbers, [text for _, text in found], verdict)


def _evidence(result: WeightedSamples) -> dict[str, Any]:
    chains = reading.array(result.chain_log_normalizers).reshape(-1)
    several = len(chains) > 1 and bool(np.isfinite(chains).all())
    return {
        "value": float(result.log_normalizer),
        "error": float(result.log_normalizer_error),
        "per_chain": chains.tolist(),
        "spread": float(chains.std(ddof=1)) if several else None,
        "disagreement": _disagreement(result) if several else None,
    }


def _disagreement(result: WeightedSamples) -> float | None:
    """
    The p-value of equal evidence in all runs, by the chi-square of their own errors.

    Only weighted draws of one-shot samplers carry an error of each run in their weights.
    """
    if result.kind != "weighted" or result.steps:
        return None
    runs = [log_evidence(result.log_weights[part]) for part in reading.chain_slices(result)]
    value = np.array([float(v) for v, _ in runs])
    error = np.array([float(e) for _, e in runs])
    if not (np.isfinite(value).all() and np.isfinite(error).all() and (error > 0.0).all()):
        return None
    from scipy.stats import chi2

    precision = error**-2.0
    mean = (precision @ value) / precision.sum()
    return float(chi2.sf(precision @ (value - mean) ** 2, len(value) - 1))


def _ess(result: WeightedSamples) -> dict[str, Any]:
    total = float(effective_sample_size(result.log_weights))
    chains = [
        float(effective_sample_size(result.log_weights[part]))
        for part in reading.chain_slices(result)
    ]
    count = len(result)
    return {"value": total, "fraction": total / count if count else None, "per_chain": chains}


def _lowest_ess(result: WeightedSamples) -> dict[str, Any] | None:
    found = reading.lowest_ess(result)
    return None if found is None else asdict(found)


def _tail(result: WeightedSamples) -> dict[str, Any] | None:
    tail = reading.tail(result)
    if tail is None:
        return None
    return {
        "value": tail.k,
        "threshold": tail.threshold,
        "verdict": tail.verdict,
        "reason": tail.reason,
    }


def _acceptance(result: WeightedSamples) -> dict[str, Any] | None:
    if "acceptance_rate" not in result.info and "proposals" not in result.stats:
        return None
    total = result.info.get("total_proposals")
    if total is None and "proposals" in result.stats:
        total = float(result.stats["proposals"].sum())
    return {
        "rate": result.info.get("acceptance_rate"),
        "proposals": None if total is None else int(total),
    }


def _clipping(result: WeightedSamples) -> dict[str, Any] | None:
    names = {"mass": "clipped_mass", "mass_upper": "clipped_mass_upper", "baseline": "baseline"}
    found = {short: result.info.get(name) for short, name in names.items()}
    found = {n: v if v is not None and math.isfinite(v) else None for n, v in found.items()}
    return found if found["mass"] is not None or found["mass_upper"] is not None else None


def _unfinished(result: WeightedSamples) -> dict[str, float] | None:
    """The mass at False of each site of booleans that is named ``..._finished``."""
    weight = reading.analysis_weights(result)
    flags = {
        name: value
        for name, value in result.samples.items()
        if name.endswith("_finished") and value.dtype == torch.bool and value.dim() == 1
    }
    if not flags or not weight.any():
        return None
    return {name: float(weight[reading.array(~flag) > 0.0].sum()) for name, flag in flags.items()}


def _reward(result: WeightedSamples) -> dict[str, Any] | None:
    after, before = reading.after(result), reading.before(result)
    if after is None:
        return None
    found: dict[str, Any] = {"after": after.mean, "after_error": after.error}
    if before is not None:
        gain = _estimate("reward_gain", result)
        found |= {
            "before": before.mean,
            "before_error": before.error,
            "before_impossible": before.impossible,
            "gain": gain["value"],
            "gain_error": gain["error"],
        }
    return found


def _kl(result: WeightedSamples) -> dict[str, Any] | None:
    if "reward" not in result.stats:
        return None
    from pyro_tilt.diagnostics.draws_kl import kl_of_draws

    found, kind = kl_of_draws(result)
    return {"value": float(found.value), "error": float(found.error), "kind": kind}


def _estimate(name: str, result: WeightedSamples) -> dict[str, Any]:
    from pyro_tilt.diagnostics import estimators

    found = getattr(estimators, name)(result)
    return {"value": float(found.value), "error": float(found.error)}


def _sites(result: WeightedSamples) -> dict[str, Any]:
    weight = reading.analysis_weights(result)
    sites: dict[str, dict[str, Any]] = {}
    for name, value in result.samples.items():
        shape = list(value.shape[1:])
        sites[name] = {"shape": shape, "mean": None, "sd": None}
        if value.dtype in _LABELS:
            sites[name]["discrete"] = True
        if math.prod(shape) <= SMALL_SITE and weight.any():
            live = torch.as_tensor(weight > 0.0, device=value.device)
            flat = reading.array(value[live]).reshape(int(live.sum()), math.prod(shape))
            mean = weight[weight > 0.0] @ flat
            sd = np.sqrt(weight[weight > 0.0] @ (flat - mean) ** 2)
            sd = sd if len(flat) > 1 else np.full(sd.shape, np.nan)
            sites[name] |= {
                "mean": mean.reshape(shape).tolist(),
                "sd": sd.reshape(shape).tolist(),
            }
    return sites


def _warnings(numbers: dict[str, Any]) -> list[tuple[str, str]]:
    found = [_tail_warning(numbers["pareto_k"]), _ess_warning(numbers), _step_warning(numbers)]
    if numbers["capped"]:
        found.append(
            (
                "strained",
                f"{numbers['capped']:,} of {numbers['draws']:,} draws hit the proposal cap "
                "and do not follow the stated law; raise the cap",
            )
        )
    clipping = numbers["clipping"]
    if clipping is not None and (clipping["mass"] or 0.0) > 0.1:
        found.append(
            (
                "strained",
                f"the baseline clips {clipping['mass']:.1%} of the target's mass; raise it, or "
                "lower epsilon",
            )
        )
    for name, mass in (numbers["unfinished"] or {}).items():
        if mass > MANY_UNFINISHED:
            text = (
                f"{mass:.1%} of the mass was cut off before its end ({name} is False): raise the "
                "limit, or let the reward read that site"
            )
            found.append(("strained", text))
    found.append(_spread_warning(numbers["log_evidence"]))
    return [warning for warning in found if warning is not None]


def _tail_warning(tail: dict[str, Any] | None) -> tuple[str, str] | None:
    if tail is None or tail["verdict"] == "ok":
        return None
    if tail["verdict"] == "unknown":
        return "strained", f"k-hat is not known ({tail['reason']}): nothing vouches for the weights"
    means = (
        "the weights have no finite mean at this tail: distrust every estimate"
        if tail["verdict"] == "broken"
        else "estimates rest on few draws; draw more, lower beta, or use another sampler"
    )
    text = f"k-hat {tail['value']:.2f} is above its threshold {tail['threshold']:.2f}: {means}"
    return tail["verdict"], text


def _ess_warning(numbers: dict[str, Any]) -> tuple[str, str] | None:
    ess, count = numbers["ess"], numbers["draws"]
    value, fraction = ess["value"], ess["fraction"]
    if count == 0:
        return "broken", "the result has no draws"
    if value == 0.0:
        return "broken", "every weight is zero: no draw has mass under the target"
    if count == 1 and numbers["kind"] == "weighted" and numbers["beta"] != 0.0:
        return "broken", "a single weighted draw follows the base program, whatever its weight"
    level = reading.ess_level(value, count)
    if level == "ok":
        return None
    return level, f"effective sample size {value:.1f} of {count:,} draws ({fraction:.1%}) is low"


def _step_warning(numbers: dict[str, Any]) -> tuple[str, str] | None:
    lowest = numbers["lowest_ess"]
    if lowest is None:
        return None
    level = reading.ess_level(lowest["value"], lowest["particles"])
    if level == "ok":
        return None
    return level, (
        f"at step {lowest['step']} the effective sample size fell to {lowest['value']:.1f} of "
        f"{lowest['particles']:,} particles: all that follows descends from few; take more "
        "particles, or a twist that sees the mass coming"
    )


def _spread_warning(evidence: dict[str, Any]) -> tuple[str, str] | None:
    spread, p_value = evidence["spread"], evidence["disagreement"]
    if spread is None or (spread <= 0.5 and (p_value is None or p_value >= 1e-3)):
        return None
    low, high = min(evidence["per_chain"]), max(evidence["per_chain"])
    return (
        "broken" if spread > 2.0 else "strained",
        f"log evidence differs across runs, from {low:.3g} to {high:.3g} (sd {spread:.2g}): "
        "some runs missed mass",
    )


def _json_ready(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _json_ready(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_json_ready(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
