# SPDX-License-Identifier: Apache-2.0
"""The same problems in other libraries, each run in a process of its own."""
