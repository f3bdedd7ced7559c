# SPDX-License-Identifier: Apache-2.0
"""Super-resolution of one volume."""
