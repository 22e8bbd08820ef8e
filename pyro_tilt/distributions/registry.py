# SPDX-License-Identifier: Apache-2.0
"""Which tilts are known exactly: rules by the types of base and reward, as torch finds a KL."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import Distribution

from pyro_tilt.rewards import Reward

__all__ = ["ExactTilt", "find_tilt", "register_tilt"]


@dataclass(frozen=True)
class ExactTilt:
    """
    What is known of the law :math:`p(x) e^{r(x)} / Z`.

    :param law: the tilted law, with the batch and event shape of the base; None where only
        the normaliser is known.
    :param log_normalizer: :math:`\\log Z`, of the base's batch shape.
    :param method: ``"closed form"``, ``"enumeration"`` or ``"quadrature"``.
    :param error: bound on the error of ``log_normalizer``, and for a quadrature law on its
        total variation from the tilt as well.
    """

    law: TorchDistributionMixin | None
    log_normalizer: Tensor
    method: str
    error: float = 0.0


Rule = Callable[..., ExactTilt | None]
RuleT = TypeVar("RuleT", bound=Rule)

_RULES: dict[tuple[type, type], list[Rule]] = {}
_MATCHES: dict[tuple[type, type], tuple[Rule, ...]] = {}


def register_tilt(base: type[Distribution], reward: type[Any]) -> Callable[[RuleT], RuleT]:
    """
    Decorate ``rule(base, reward) -> ExactTilt | None`` as the tilt of a family by a reward type.

    The reward that a rule receives has beta folded in. A rule returns None to decline, and the
    next match is tried; it raises ``ValueError`` where the tilt does not exist. Among rules of
    the same two types the one registered last is asked first.

    :param base: a distribution type; torch's own types match Pyro's subclasses too.
    :param reward: a reward type.
    :raises TypeError: if either is not such a type.

    >>> import torch
    >>> import pyro.distributions as dist
    >>> from pyro_tilt import rewards
    >>> class Shifted(dist.Normal):
    ...     pass
    >>> @register_tilt(Shifted, rewards.Linear)
    ... def shifted_linear(base, reward):
    ...     law = Shifted(base.loc + base.variance * reward.theta, base.scale)
    ...     log_z = base.loc * reward.theta + 0.5 * base.variance * reward.theta**2
    ...     return ExactTilt(law, log_z, "closed form")
    >>> find_tilt(Shifted(0.0, 2.0), rewards.Linear(torch.tensor(1.0))).log_normalizer
    tensor(2.)
    """
    if not (isinstance(base, type) and issubclass(base, Distribution)):
        raise TypeError(f"register_tilt: base must be a distribution type, got {base!r}")
    if not (isinstance(reward, type) and issubclass(reward, Reward)):
        raise TypeError(f"register_tilt: reward must be a Reward type, got {reward!r}")

    def decorator(rule: RuleT) -> RuleT:
        _RULES.setdefault((base, reward), []).insert(0, rule)
        _MATCHES.clear()
        return rule

    return decorator


def find_tilt(base: Distribution, reward: Reward) -> ExactTilt | None:
    """
    The tilt of ``base`` by ``reward`` (beta folded in) where it is known, otherwise None.

    The rule whose base type is nearest is asked first, then that whose reward type is nearest.

    :param base: the base law.
    :param reward: the reward, already multiplied by beta.
    :raises ValueError: if the tilt does not exist, from the rule that knows.

    >>> import torch
    >>> import pyro.distributions as dist
    >>> from pyro_tilt import rewards
    >>> find_tilt(dist.Bernoulli(0.5), rewards.BlackBox(lambda x: x)).method
    'enumeration'
    """
    for rule in _matching_rules(type(base), type(reward)):
        found = rule(base, reward)
        if found is not None:
            return found
    return None


def _matching_rules(base_type: type, reward_type: type) -> tuple[Rule, ...]:
    key = (base_type, reward_type)
    if key not in _MATCHES:
        bases, rewards = base_type.__mro__, reward_type.__mro__
        pairs = [(b, r) for b, r in _RULES if b in bases and r in rewards]
        pairs.sort(key=lambda pair: (bases.index(pair[0]), rewards.index(pair[1])))
        _MATCHES[key] = tuple(rule for pair in pairs for rule in _RULES[pair])
    return _MATCHES[key]
