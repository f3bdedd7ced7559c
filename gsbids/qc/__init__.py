# SPDX-License-Identifier: Apache-2.0
"""Quality metrics, figures and the report."""
