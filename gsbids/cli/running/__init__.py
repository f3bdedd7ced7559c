# SPDX-License-Identifier: Apache-2.0
"""How a workflow runs: processes, Slurm, locks, signals, progress, and what came of it."""
