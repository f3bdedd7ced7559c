# SPDX-License-Identifier: Apache-2.0
"""Examples in docstrings."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["atomic", "bids.group", "bids.names", "bids.sink", "cli.main", "cli.plan",
                                  "qc.crashes", "cli.progress", "cli.super_resolve", "imaging.bias", "qc.boilerplate",
                                  "qc.group", "qc.group_page", "qc.verdict", "recon.sr_setup"])
def test_examples(name):
    outcome = doctest.testmod(importlib.import_module(f"gsbids.{name}"))
    assert outcome.attempted > 0
    assert outcome.failed == 0
