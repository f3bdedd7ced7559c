# SPDX-License-Identifier: Apache-2.0
"""Input and output of BIDS data sets: query, names, sink, dataset description."""
