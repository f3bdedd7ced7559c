# SPDX-License-Identifier: Apache-2.0
"""Faults that are tried for real: ``python -m faults`` runs the campaign, ``tests/test_faults.py`` its quick part."""
