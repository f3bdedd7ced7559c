# SPDX-License-Identifier: Apache-2.0
"""Signals that end a run."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


@contextmanager
def handled(numbers: Sequence[int], handler: Callable) -> Iterator[None]:
    """Handle signals in another way inside the block; elsewhere than in the main thread they stay as they are."""
    try:
        before = {number: signal.signal(number, handler) for number in numbers}
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
