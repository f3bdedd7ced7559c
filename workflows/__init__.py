# SPDX-License-Identifier: Apache-2.0
"""Nipype workflows, and nothing else."""
