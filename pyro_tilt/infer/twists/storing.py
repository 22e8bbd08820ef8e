# SPDX-License-Identifier: Apache-2.0
"""Files of what was learned: tensors and plain numbers, and no code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from pyro_tilt._version import __version__

__all__ = ["read_learned", "write_learned"]

FORMAT_VERSION = 1


def write_learned(path: str | PathLike[str], content: Mapping[str, Any]) -> None:
    """
    Writes a file as a whole or not at all, with the version of its format.

    :param path: the file, which is replaced where it exists.
    :param content: tensors, plain numbers, strings and nestings of them.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        torch.save({"format": FORMAT_VERSION, "version": __version__, **content}, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_learned(
    path: str | PathLike[str],
    *,
    what: str,
    marker: str,
    features: Any = None,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """
    Reads what :func:`write_learned` wrote; executes nothing.

    :param path: the file.
    :param what: names the kind of content in an error.
    :param marker: a key that this kind of content has.
    :param features: the function that it was trained with, where there was one.
    :param device: where the tensors go.
    :raises ValueError: for another kind of file, one of a later format, or without ``features``.
    """
    content = torch.load(Path(path), map_location=device, weights_only=True)
    if not isinstance(content, dict) or marker not in content:
        raise ValueError(f"{path} holds no {what}")
    if content["format"] > FORMAT_VERSION:
        raise ValueError(
            f"{path} is in format {content['format']}, written by pyro_tilt {content['version']}, "
            f"but this version ({__version__}) reads formats up to {FORMAT_VERSION}"
        )
    if content["own_features"] and features is None:
        raise ValueError(f"{path} was trained with a features function; give it as features=")
    return content
