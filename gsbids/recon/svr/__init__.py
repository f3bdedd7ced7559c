# SPDX-License-Identifier: Apache-2.0
"""Slice-to-volume reconstruction: initial registration of slices, the fit from stage to stage, and its result."""
