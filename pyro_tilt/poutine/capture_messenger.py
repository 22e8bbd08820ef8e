# SPDX-License-Identifier: Apache-2.0
"""Notes the names of the sites that a program emits, and a few of their values."""

from collections.abc import Iterable
from typing import Any

from pyro.poutine.messenger import Messenger


class CaptureMessenger(Messenger):
    """
    Records site names, and the values of the sites asked for.

    :param keep: names of the sites whose values are wanted.

    >>> import pyro, pyro.distributions as dist
    >>> with CaptureMessenger(["x"]) as capture:
    ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
    ...     y = pyro.sample("y", dist.Normal(0.0, 1.0))
    >>> sorted(capture.names), list(capture.values)
    (['x', 'y'], ['x'])
    """

    def __init__(self, keep: Iterable[str] = ()) -> None:
        super().__init__()
        self.keep = frozenset(keep)
        self.names: dict[str, None] = {}
        self.values: dict[str, Any] = {}
        self.enum_dim: int | None = None

    def _process_message(self, msg: Any) -> None:
        # Nothing is done before a site, so the look-up by name is spared.
        return

    def _pyro_post_sample(self, msg: Any) -> None:
        name = msg["name"]
        self.names[name] = None
        if name in self.keep:
            self.values[name] = msg["value"]
        dim = msg["infer"].get("_enumerate_dim")
        if dim is not None:
            self.enum_dim = dim if self.enum_dim is None else max(dim, self.enum_dim)

    def _pyro_post_param(self, msg: Any) -> None:
        self.names[msg["name"]] = None

    def fresh(self, name: str) -> str:
        """Returns ``name``, or ``name_2``, ``name_3``, ... where it is taken."""
        candidate, count = name, 2
        while candidate in self.names:
            candidate, count = f"{name}_{count}", count + 1
        return candidate
