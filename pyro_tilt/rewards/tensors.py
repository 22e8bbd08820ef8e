# SPDX-License-Identifier: Apache-2.0
"""Tensor parameters of rewards: making, aligning, multiplying and showing them."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

SHOWN = 8


def as_parameter(value: Any, name: str) -> Tensor:
    """
    A real floating point tensor, the given one (with its gradient) wherever it already is one.

    :param value: a tensor, number or nested sequence of numbers.
    :param name: the argument that an error names.
    :raises TypeError: for what is no number.
    :raises ValueError: for a tensor that holds NaN or infinities.
    """
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a tensor or number, got {type(value).__name__}") from error
    if tensor.is_complex():
        raise TypeError(f"{name} must be real, got {tensor.dtype}")
    if not tensor.is_floating_point():
        tensor = tensor.to(torch.get_default_dtype())
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} must be finite, got {show(tensor)}")
    return tensor


def as_parameters(**values: Any) -> tuple[Tensor, ...]:
    """
    Several parameters of one dtype and one device, those of the first tensor among them.

    As in torch, tensors with dimensions promote the dtype; numbers and 0-dim tensors follow.
    """
    made = {name: as_parameter(value, name) for name, value in values.items()}
    given = [made[name] for name in made if isinstance(values[name], Tensor)]
    leading = given or list(made.values())
    dtype = leading[0].dtype
    for tensor in leading:
        if tensor.dim() > 0:
            dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple(tensor.to(device=leading[0].device, dtype=dtype) for tensor in made.values())


def as_constant(value: Any, name: str) -> float | Tensor:
    """A finite scale or offset: a number stays a number, a tensor stays a tensor."""
    if isinstance(value, numbers.Real):
        if not math.isfinite(value):
            raise ValueError(f"the {name} of a reward must be finite, got {value}")
        return float(value)
    return as_parameter(value, f"the {name} of a reward")


def align_batch(constant: Tensor, event_dim: int) -> Tensor:
    """A constant of the batch shape, reshaped so that it meets parameters of batch + event."""
    return constant.reshape(constant.shape + (1,) * event_dim) if constant.dim() > 0 else constant


def add_constant(values: Tensor, constant: float | Tensor) -> Tensor:
    """Values plus a constant, the dtype being that of the values for a 0-dim one."""
    if isinstance(constant, Tensor) and constant.dim() == 0:
        constant = constant.to(values)
    return values + constant


def scale_parameter(parameter: Tensor, scale: float | Tensor, event_dim: int) -> Tensor:
    """A parameter of shape batch + event times a scale of the batch shape."""
    if isinstance(scale, Tensor):
        scale = align_batch(scale, event_dim) if scale.dim() > 0 else scale.to(parameter)
    return parameter * scale


def multiply_values(values: Tensor, scale: float | Tensor) -> Tensor:
    """The product with the convention that zero times ``-inf`` is zero, gradients included."""
    if isinstance(scale, Tensor):
        scale = scale if scale.dim() > 0 else scale.to(values)
        blocked = (values == -math.inf) & (scale == 0)
        return scale * torch.where(blocked, torch.zeros_like(values), values)
    if scale == 0:
        return scale * torch.where(values == -math.inf, torch.zeros_like(values), values)
    return scale * values


def scale_signs(scale: float | Tensor) -> tuple[float, float]:
    """The smallest and the largest entry of a scale."""
    if isinstance(scale, Tensor):
        if scale.numel() == 0:
            return 0.0, 0.0
        return float(scale.detach().min()), float(scale.detach().max())
    return scale, scale


def scale_bounds(scale: float | Tensor, low: float, high: float) -> tuple[float, float]:
    """Bounds of scale times a number in [low, high]; zero times an infinite bound is zero."""
    corners = [
        0.0 if 0 in (end, bound) else end * bound
        for end in scale_signs(scale)
        for bound in (low, high)
    ]
    return min(corners), max(corners)


def value_tensor(value: Any, event_shape: Sequence[int], dtype: torch.dtype, name: str) -> Tensor:
    """
    A value ready to meet parameters of ``dtype``: integers are cast, floats are promoted.

    :raises TypeError: if the value is no tensor.
    :raises ValueError: if the rightmost dimensions of the value are not ``event_shape``.
    """
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} takes a tensor, got {type(value).__name__}; "
            "take the tensor out of the value in a callable reward"
        )
    size = len(event_shape)
    if value.dim() < size or tuple(value.shape[value.dim() - size :]) != tuple(event_shape):
        raise ValueError(
            f"{name} takes values of event shape {tuple(event_shape)}, "
            f"got a value of shape {tuple(value.shape)}"
        )
    if value.is_floating_point():
        return value.to(torch.promote_types(value.dtype, dtype))
    return value.to(dtype)


def largest(tensor: Tensor) -> float:
    """The largest entry, as a number; zero of no entries."""
    return float(tensor.detach().max()) if tensor.numel() else 0.0


def smallest(tensor: Tensor) -> float:
    """The smallest entry, as a number; zero of no entries."""
    return float(tensor.detach().min()) if tensor.numel() else 0.0


def show(value: Any) -> str:
    """A short form of a number, tensor or callable for the repr of a reward."""
    if isinstance(value, Tensor):
        if value.numel() > SHOWN:
            return f"tensor(shape={tuple(value.shape)})"
        return f"tensor({_show_numbers(value.detach().cpu().tolist())})"
    if isinstance(value, float):
        return _show_number(value)
    if isinstance(value, nn.Module):
        return type(value).__name__
    if callable(value) and type(value).__repr__ is object.__repr__:
        return type(value).__name__
    return getattr(value, "__name__", None) or repr(value)


def _show_numbers(numbers_: Any) -> str:
    if isinstance(numbers_, list):
        return "[" + ", ".join(_show_numbers(number) for number in numbers_) + "]"
    return _show_number(numbers_)


def _show_number(number: float) -> str:
    return repr(float(f"{number:.5g}")) if isinstance(number, float) else repr(number)


def call(fn: Callable[[Any], Tensor], value: Any) -> Tensor:
    """
    The result of a callable, checked to be a real tensor.

    :raises TypeError: naming the callable, if it returns anything else.
    """
    result = fn(value)
    if not isinstance(result, Tensor):
        raise TypeError(
            f"the reward {show(fn)} must return a tensor of the batch shape of its value, "
            f"got {type(result).__name__}"
        )
    if result.is_complex():
        raise TypeError(f"the reward {show(fn)} must return real numbers, got {result.dtype}")
    return result
