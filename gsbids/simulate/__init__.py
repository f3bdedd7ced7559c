# SPDX-License-Identifier: Apache-2.0
"""Acquisitions with a known answer, for the demo, tests and benchmarks."""
