# SPDX-License-Identifier: Apache-2.0
"""Acquisitions with a known answer, for the demo, the tests and the benchmarks."""
