# SPDX-License-Identifier: Apache-2.0
"""Reports: their pages, the methods text, and what they tell of crashes and of time and memory."""
