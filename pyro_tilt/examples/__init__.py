# SPDX-License-Identifier: Apache-2.0
"""Complete uses of the library on real data, each run as a module."""
