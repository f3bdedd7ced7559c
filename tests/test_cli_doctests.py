# SPDX-License-Identifier: Apache-2.0
"""Every example in a docstring is run."""

import doctest
import importlib

import pytest
from test_floors import MODULES, dotted

EXAMPLES = [dotted(path) for path in MODULES if ">>> " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name):
    outcome = doctest.testmod(importlib.import_module(name))
    assert outcome.attempted > 0
    assert outcome.failed == 0
