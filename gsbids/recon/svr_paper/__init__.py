# SPDX-License-Identifier: Apache-2.0
"""The fit of the GSVR paper, for comparison."""
