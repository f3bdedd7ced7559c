# SPDX-License-Identifier: Apache-2.0
"""Nipype graphs, and nothing else."""
