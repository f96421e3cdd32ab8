#!/usr/bin/env bash
# The tests that need a GPU, run by ctest as `gpu`: builds the CUDA preset and runs the tests with the label `cuda`.
# Exit status 77 (ctest: skipped) where there is no NVIDIA GPU, or no CUDA backend in this tree yet.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."

skip() { printf 'SKIPPED: %s\n' "$*"; exit 77; }

[[ -e /dev/nvidia0 || -e /dev/dxg ]] || skip "no NVIDIA GPU here (no /dev/nvidia0)"
command -v nvidia-smi >/dev/null || skip "a GPU device is there, but no nvidia-smi: the driver is not installed"
nvidia-smi --query-gpu=name,compute_cap,memory.total --format=csv,noheader || skip "nvidia-smi finds no usable GPU"
[[ -e kernels/cuda/CMakeLists.txt ]] || skip "this tree has no CUDA backend (kernels/cuda)"

exec tests/run.sh --no-setup --preset cuda --label cuda
