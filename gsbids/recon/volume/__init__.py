# SPDX-License-Identifier: Apache-2.0
"""What is made of a result: volumes, masks, maps of coverage and uncertainty, tables, folders of slices."""
