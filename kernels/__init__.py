# SPDX-License-Identifier: Apache-2.0
"""Renderer of Gaussian fields: numba kernels behind torch operations."""
