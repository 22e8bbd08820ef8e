# SPDX-License-Identifier: Apache-2.0
"""A twist that was fitted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from pyro_tilt.infer.twists.features import carry_features
from pyro_tilt.infer.twists.networks import SharedNetwork, StepHeads
from pyro_tilt.infer.twists.step_keys import StepKeys
from pyro_tilt.infer.twists.storing import read_learned, write_learned
from pyro_tilt.infer.twists.twist import Twist
from pyro_tilt.ops.importance import as_double

__all__ = ["LearnedTwist", "TwistReport", "load_twist"]

# Below the mean weight of a step by a factor e^20 a value makes no difference any more.
_FLOOR = 20.0
_NETWORKS: dict[str, Callable[..., nn.Module]] = {"heads": StepHeads, "shared": SharedNetwork}


@dataclass
class TwistReport:
    r"""
    How the training went, by round and step, on runs that it did not see.

    :ivar loss: held-out LINEX loss after calibration, shape (rounds, T).
    :ivar constant_loss: the same of the best constant of that step, shape (rounds, T).
    :ivar shift: what calibration added to the log values, shape (rounds, T).
    :ivar effective_share: effective sample size of :math:`e^{A - f}` as a share of the held-out
        pairs, shape (rounds, T): near 1 where the values are good and the returns tame. A small
        share says that the calibration itself hangs on few draws.
    :ivar paths: paths of the program that were run.
    :ivar seconds: wall time.
    """

    loss: Tensor
    constant_loss: Tensor
    shift: Tensor
    effective_share: Tensor
    paths: int
    seconds: float


class LearnedTwist(Twist):
    r"""
    Log soft values of a network; made by :func:`~pyro_tilt.infer.twists.learn_twists`.

    .. math:: \log\psi_t(c) = \mathrm{net}_t\Bigl(\frac{\phi(c) - m_t}{s_t}\Bigr) + a_t

    The values are finite, so that the twist is positive everywhere: the network is bent, smoothly,
    to stay above -20, where states without a future would otherwise fall for ever.

    :param network: a module of features (N, d) and the position of the step to values (N,); its
        parameters are frozen.
    :param keys: the steps of the scan.
    :param dim: number of features d.
    :param features: :math:`\phi`, a function of the carry to shape (N, d), or fewer columns at
        some steps; :func:`~pyro_tilt.infer.twists.carry_features` by default.
    :param widths: number of features at each step, d by default; zeros fill up to d.

    :ivar mean: m, shape (T, d).
    :ivar spread: s, shape (T, d).
    :ivar offset: a, shape (T,), in float64.
    :ivar report: how the training went, or None.

    >>> twist = LearnedTwist(StepHeads(1, 3), StepKeys(range(3)), 1)
    >>> twist(torch.zeros(2), 1)
    tensor([0., 0.], dtype=torch.float64)
    """

    def __init__(
        self,
        network: nn.Module,
        keys: StepKeys,
        dim: int,
        *,
        features: Callable[[Any], Tensor] | None = None,
        widths: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.widths = [dim] * len(keys) if widths is None else list(widths)
        self.network = network.requires_grad_(False)
        self.keys = keys
        self.features = carry_features if features is None else features
        self.own_features = features is not None
        like = next(network.parameters(), torch.zeros(()))
        self.mean = torch.zeros(len(keys), dim, dtype=like.dtype, device=like.device)
        self.spread = torch.ones_like(self.mean)
        self.offset = as_double(self.mean.new_zeros(len(keys)))
        self.report: TwistReport | None = None

    @property
    def num_steps(self) -> int:
        """The number of steps T."""
        return len(self.keys)

    def log_psi(self, carry: Any, x: Any) -> Tensor:
        """See :meth:`Twist.log_psi`."""
        place = self.keys(x)
        return self.value(self.read(carry, place), place)

    def read(self, carry: Any, place: int | None = None) -> Tensor:
        """
        The features of a carry, in the dtype of the network.

        :param carry: as in :meth:`Twist.log_psi`.
        :param place: position of the step; None where all steps have d features.
        :returns: shape (N, d).
        :raises ValueError: if the features have another shape.
        """
        width = self.mean.shape[1] if place is None else self.widths[place]
        return self.padded(check_features(self.features(carry), width, place))

    def padded(self, features: Tensor) -> Tensor:
        """
        Features of any step as d columns, in the dtype of the network.

        :param features: shape (N, k) with k at most d.
        """
        missing = self.mean.shape[1] - features.shape[1]
        features = features.to(self.mean)
        return nn.functional.pad(features, (0, missing)) if missing else features

    def value(self, features: Tensor, place: int) -> Tensor:
        """
        The log value from features.

        :param features: shape (N, d).
        :param place: position of the step.
        """
        raw = self.network(self.scaled(features, place), place)
        return as_double(floored(raw)) + self.offset[place]

    def scaled(self, features: Tensor, place: int) -> Tensor:
        """
        What the network sees.

        :param features: shape (N, d).
        :param place: position of the step.
        """
        return (features - self.mean[place]) / self.spread[place]

    def save(self, path: str | PathLike[str]) -> None:
        """
        Writes tensors and plain numbers, and no code: :func:`load_twist` executes nothing.

        :param path: the file, which is replaced where it exists.
        """
        kinds = [name for name, kind in _NETWORKS.items() if type(self.network) is kind]
        content = {
            "network": kinds[0] if kinds else "custom",
            "settings": getattr(self.network, "settings", {}) if kinds else {},
            "own_features": self.own_features,
            "keys": self.keys.to_list(),
            "mean": self.mean,
            "spread": self.spread,
            "offset": self.offset,
            "widths": self.widths,
            "state": dict(self.network.state_dict()),
            "report": None if self.report is None else asdict(self.report),
        }
        write_learned(path, content)


def load_twist(
    path: str | PathLike[str],
    *,
    features: Callable[[Any], Tensor] | None = None,
    network: nn.Module | None = None,
    device: torch.device | str = "cpu",
) -> LearnedTwist:
    """
    Reads a twist that :meth:`LearnedTwist.save` wrote.

    :param path: the file.
    :param features: the function that it was trained with, where there was one.
    :param network: a module to load the parameters into, where it was trained with one of the
        user's; it is changed in place.
    :param device: where the tensors go.
    :raises ValueError: for a file of a later format, or where ``features`` or ``network`` is
        missing.
    """
    content = read_learned(
        path, what="learned twist", marker="mean", features=features, device=device
    )
    dim, kind = content["mean"].shape[1], content["network"]
    keys = StepKeys.from_list(content["keys"])
    if network is None:
        if kind == "custom":
            raise ValueError(f"{path} was trained with a network of its own; give it as network=")
        network = _NETWORKS[kind](dim, len(keys), **content["settings"])
    network = network.to(content["mean"])
    network.load_state_dict(content["state"])
    twist = LearnedTwist(network, keys, dim, features=features, widths=content.get("widths"))
    twist.mean, twist.spread, twist.offset = (
        content[name] for name in ("mean", "spread", "offset")
    )
    if content["report"] is not None:
        twist.report = TwistReport(**content["report"])
    return twist


def floored(raw: Tensor) -> Tensor:
    """
    Bends values up where they near the floor, so that nothing is learned from what has no future.

    :param raw: what the network says.
    """
    return nn.functional.softplus(raw + _FLOOR) - _FLOOR


def check_features(features: Any, dim: int | None = None, place: int | None = None) -> Tensor:
    """
    Refuses what is not of shape (N, d).

    :param features: what a features function returned.
    :param dim: d, unchecked where None.
    :param place: position of the step, to be named in the error.
    :raises ValueError: for another shape.
    """
    shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
    if not isinstance(features, Tensor) or features.dim() != 2 or dim not in (None, shape[1]):
        want = "(N, d)" if dim is None else f"(N, {dim})"
        step = "" if place is None else f" at step {place}"
        raise ValueError(f"features= must return a tensor of shape {want}{step}, got {shape}")
    return features
