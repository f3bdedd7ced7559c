# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs: work that is the same at every turn of a loop, launched with one call.

An epoch of a fit is some twenty launches of a few microseconds each; launching them one by one takes longer than
running them. A graph records the launches once and repeats them with one call.
"""

from collections.abc import Callable
from typing import Any

import torch

WARM_UP = 2  # plain calls before the capture: they compile kernels and make the state of an optimiser


class CapturedWork:
    """Work that is done at every call, plainly at first and later by replaying a CUDA graph.

    Where there is no GPU, or where the capture fails (the work waits for the device, say, or copies from the host),
    every call is a plain one, and ``failure`` says why.

    Parameters
    ----------
    work : callable
        Function without arguments and result: it reads and writes tensors that stay where they are, and it neither
        waits for the device nor copies from the host. What it allocates comes from the graph's own pool of memory.
    target : torch.device
    warm_up : int
        Plain calls, on the stream of the capture, before the capture.
    capture : callable, optional
        ``capture(work)`` records the work, does not do it, and returns what repeats it; raises if it cannot.
        :func:`torch.cuda.graph` if left out.

    Attributes
    ----------
    failure : str or None
    replays : int
        Calls that a graph served.
    """

    _replay: Any
    capture: Any

    def __init__(
        self,
        work: Callable[[], None],
        target: torch.device,
        warm_up: int = WARM_UP,
        capture: Callable[[Callable[[], None]], Callable[[], None]] | None = None,
    ) -> None:
        self.work, self.warm_up, self.capture = work, warm_up, capture
        self.failure, self.replays, self._calls, self._replay = None, 0, 0, None
        self.stream = self.pool = None
        if capture is None and target.type != "cuda":
            self.failure = f"{target}: no GPU"
        elif capture is None:
            self.capture, self.stream = self._capture, torch.cuda.Stream(target)
            self.pool = torch.cuda.graph_pool_handle()

    def __call__(self) -> None:
        """Do the work once."""
        if self._replay is None and self.failure is None and self._calls >= self.warm_up:
            try:
                self._replay = self.capture(self.work)
            except Exception as error:  # torch's, the driver's, numba's; one of the work itself comes again at once
                self.failure = f"{type(error).__name__}: {error}"
        self._calls += 1
        if self._replay is None:
            self._plainly()
        else:
            self._replay()
            self.replays += 1

    def renew(self) -> None:
        """Discard the graph, because tensors that the work reads are no longer where they were."""
        self._replay = None

    def _plainly(self) -> None:
        if self.stream is None or self.failure:
            self.work()
            return
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        with torch.cuda.stream(self.stream):
            self.work()
        torch.cuda.current_stream(self.stream.device).wait_stream(self.stream)

    def _capture(self, work: Callable[[], None]) -> Callable[[], None]:
        # Other threads (a loader, a logger) may talk to the device meanwhile: only this one's errors count.
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            work()
        return graph.replay
