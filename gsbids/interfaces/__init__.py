# SPDX-License-Identifier: Apache-2.0
"""Thin Nipype interfaces: typed inputs and outputs around one call to a pure function."""
