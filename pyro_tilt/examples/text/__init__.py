# SPDX-License-Identifier: Apache-2.0
"""Rewards of written text."""

from pyro_tilt.examples.text.similarity import SentenceEncoder, SentenceSimilarity, load_encoder

__all__ = ["SentenceEncoder", "SentenceSimilarity", "load_encoder"]
