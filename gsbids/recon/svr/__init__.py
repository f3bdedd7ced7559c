# SPDX-License-Identifier: Apache-2.0
"""Slice-to-volume reconstruction: where slices are placed, the fit from stage to stage, and its result."""
