# SPDX-License-Identifier: Apache-2.0
"""Their twins for GPUs, and how they are launched."""
