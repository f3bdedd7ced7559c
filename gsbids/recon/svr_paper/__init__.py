# SPDX-License-Identifier: Apache-2.0
"""The fit of the GSVR paper, to compare with."""
