# SPDX-License-Identifier: Apache-2.0
"""Sizes that are taken for real, and beyond which an input is refused."""

#: Slice thickness, mm: from the voxel of an isotropic scan to what no reconstruction resolves.
THICKNESS_RANGE = (0.1, 20.0)
