# SPDX-License-Identifier: Apache-2.0
"""Running a workflow: processes, Slurm, locks, signals, progress, and its outcome."""
