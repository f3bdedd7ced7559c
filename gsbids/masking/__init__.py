# SPDX-License-Identifier: Apache-2.0
"""Brain masks of stacks."""
