# SPDX-License-Identifier: Apache-2.0
"""Slice-to-volume and super-resolution reconstruction of brain MRI with 3D Gaussians."""

__version__ = "0.1.0"
