# SPDX-License-Identifier: Apache-2.0
"""Kernels for GPUs, twins of those for the CPU, and how they are launched."""
