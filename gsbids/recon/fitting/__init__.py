# SPDX-License-Identifier: Apache-2.0
"""One stage of a fit: a field of Gaussians by Adam, the poses of the slices, gains, weights and bias."""
