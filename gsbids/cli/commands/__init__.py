# SPDX-License-Identifier: Apache-2.0
"""The commands besides the participant level."""
