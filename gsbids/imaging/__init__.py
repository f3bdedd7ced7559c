# SPDX-License-Identifier: Apache-2.0
"""NIfTI input and output, conforming, geometry of stacks and masks, on arrays and affines."""
