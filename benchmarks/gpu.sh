#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Run all GPU tests and benchmarks, on a machine with nothing but torch, numba, numba-cuda and scipy:
#   benchmarks/gpu.sh [OUT.json] [--smoke] [--only PART ...]
# PYTHON chooses the interpreter. Nothing is installed and nothing is fetched.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-gpu.json}
[ $# -gt 0 ] && shift
# The package as setup.cfg puts it together, without installing it.
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
mkdir "$site/gsbids"
ln -s "$root"/gsbids/* "$root/kernels" "$root/workflows" "$site/gsbids/"
case " $* " in *" --smoke "*) export GSBIDS_BACKEND=sim NUMBA_ENABLE_CUDASIM=1 ;; esac
PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" NUMBA_CUDA_ARRAY_INTERFACE_SYNC=0 "${PYTHON:-python3}" "$root/benchmarks/gpu.py" "$out" "$@"
