# SPDX-License-Identifier: Apache-2.0
"""What is raised where some of several runs fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyro_tilt.infer.errors import SamplingError
from pyro_tilt.infer.weighted_samples import WeightedSamples

__all__ = ["RunsFailed"]


class RunsFailed(SamplingError):
    """
    Some of several runs failed; raised after the others have finished.

    The error of the first that failed is its cause.

    :ivar results: what each run returned, None for those that failed.
    :ivar errors: the error of each run that failed, by its place; a
        :class:`~pyro_tilt.infer.SamplingError` holds what the run drew before in ``partial``.
    """

    def __init__(
        self, results: Sequence[WeightedSamples | None], errors: Mapping[int, Exception]
    ) -> None:
        self.results, self.errors = list(results), dict(errors)
        first, error = next(iter(self.errors.items()))
        places = ", ".join(map(str, self.errors))
        super().__init__(
            f"{len(self.errors)} of {len(self.results)} runs failed (at {places}); run {first}: "
            f"{type(error).__name__}: {error}. The results of the others are in .results of this "
            "error, and all errors in .errors"
        )
