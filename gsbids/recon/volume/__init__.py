# SPDX-License-Identifier: Apache-2.0
"""Products of a result: volumes, masks, maps of coverage and uncertainty, tables, folders of slices."""
