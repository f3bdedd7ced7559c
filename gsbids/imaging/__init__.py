# SPDX-License-Identifier: Apache-2.0
"""NIfTI in and out, conforming, geometry of stacks, masks: arrays and affines."""
