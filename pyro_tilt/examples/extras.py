# SPDX-License-Identifier: Apache-2.0
"""Imports that only the examples need."""

import importlib
import os
from types import ModuleType


def require(name: str, *, extra: str = "demo") -> ModuleType:
    """
    Imports a module of an extra, or says how to install it.

    :param name: dotted module name, such as ``"sklearn.datasets"``.
    :param extra: the extra that brings it.
    :returns: the module.
    :raises ImportError: naming the extra, where the module is not installed.

    >>> require("json").__name__
    'json'
    """
    # diffusers imports huggingface_hub, which must never look for a network here.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"this example needs {name!r}: run `pip install pyro-tilt[{extra}]`"
        ) from error
