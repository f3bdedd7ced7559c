# SPDX-License-Identifier: Apache-2.0
"""Rigid registration of whole stacks."""
