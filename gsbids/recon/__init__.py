# SPDX-License-Identifier: Apache-2.0
"""The science: the Gaussian field, its forward model, motion, and the fit."""
