# SPDX-License-Identifier: Apache-2.0
"""Reconstruction: the Gaussian field, its forward model, motion, and the fits."""
