# SPDX-License-Identifier: Apache-2.0
"""Moving the tensors and modules that a callable holds."""

from __future__ import annotations

import copy
import functools
import types
from typing import Any, TypeVar

from torch import Tensor, nn

T = TypeVar("T")


def move(obj: T, *args: Any, **kwargs: Any) -> T:
    """
    A copy of a callable, container or tensor with its tensors moved as by ``torch.Tensor.to``.

    What holds nothing to move is returned as it is, never copied. Integer tensors keep their
    dtype, as in modules, so that an index stays an index.

    :param obj: a tensor, module, function, bound method, partial, callable object or container.
    """
    return _Mover(args, kwargs)(obj)


class _Mover:
    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args = args
        self.kwargs = kwargs
        # Kept with the original, so that an id is not reused while the move is under way.
        self.seen: dict[int, tuple[Any, Any]] = {}

    def __call__(self, obj: Any) -> Any:
        if id(obj) not in self.seen:
            # A callable that refers to itself finds itself here, unmoved.
            self.seen[id(obj)] = (obj, obj)
            self.seen[id(obj)] = (obj, self._move(obj))
        return self.seen[id(obj)][1]

    def _move(self, obj: Any) -> Any:
        if isinstance(obj, Tensor):
            return self._tensor(obj)
        if isinstance(obj, nn.Module):
            return self._module(obj)
        if isinstance(obj, dict):
            moved = {key: self(item) for key, item in obj.items()}
            same = all(moved[key] is obj[key] for key in obj)
            return obj if same else self._like(obj, moved)
        if type(obj) in (list, tuple):
            items = [self(item) for item in obj]
            same = all(new is old for new, old in zip(items, obj))
            return obj if same else type(obj)(items)
        if isinstance(obj, functools.partial):
            parts = (obj.func, obj.args, obj.keywords)
            func, args, keywords = (self(part) for part in parts)
            same = all(new is old for new, old in zip((func, args, keywords), parts))
            return obj if same else functools.partial(func, *args, **keywords)
        if isinstance(obj, types.MethodType):
            owner = self(obj.__self__)
            return obj if owner is obj.__self__ else types.MethodType(obj.__func__, owner)
        if isinstance(obj, types.FunctionType):
            return self._function(obj)
        if callable(obj) and not isinstance(obj, type) and hasattr(obj, "__dict__"):
            return self._object(obj)
        return obj

    @staticmethod
    def _like(obj: dict[Any, Any], items: dict[Any, Any]) -> dict[Any, Any]:
        new = copy.copy(obj)
        new.update(items)
        return new

    def _tensor(self, tensor: Tensor) -> Tensor:
        moved = tensor.to(*self.args, **self.kwargs)
        if moved.dtype != tensor.dtype and not tensor.is_floating_point():
            return tensor.to(moved.device)
        return moved

    def _module(self, module: nn.Module) -> nn.Module:
        state = [*module.parameters(), *module.buffers()]
        if all(self._tensor(tensor) is tensor for tensor in state):
            return module
        return copy.deepcopy(module).to(*self.args, **self.kwargs)

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        cells = function.__closure__ or ()
        filled = [cell for cell in cells if not _is_empty(cell)]
        moved = {id(cell): self(cell.cell_contents) for cell in filled}
        defaults, keywords = self(function.__defaults__), self(function.__kwdefaults__)
        same = all(moved[id(cell)] is cell.cell_contents for cell in filled)
        if same and defaults is function.__defaults__ and keywords is function.__kwdefaults__:
            return function
        closure = tuple(
            types.CellType(moved[id(cell)]) if id(cell) in moved else cell for cell in cells
        )
        new = types.FunctionType(
            function.__code__, function.__globals__, function.__name__, defaults, closure or None
        )
        new.__kwdefaults__ = keywords
        new.__dict__.update(function.__dict__)
        new.__qualname__, new.__module__ = function.__qualname__, function.__module__
        return new

    def _object(self, obj: Any) -> Any:
        state = vars(obj)
        moved = self(state)
        if moved is state:
            return obj
        new = copy.copy(obj)
        vars(new).update(moved)
        return new


def _is_empty(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is None
    except ValueError:
        return True
