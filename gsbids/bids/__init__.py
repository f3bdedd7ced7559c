# SPDX-License-Identifier: Apache-2.0
"""BIDS data sets in and out: query, names, sink, dataset description."""
