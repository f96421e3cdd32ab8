#!/usr/bin/env bash
# Measures the GPU backend and its peers on this machine's GPU: ceilings, linears, attention, steps, offline throughput. Exit status 77
# where there is no NVIDIA GPU. Results: a folder with raw JSON lines and tables.
#
#   tests/gpu/bench.sh [PART...]      parts: linears attention steps; none: all
#
# QSERVE_BENCH_OUT (default docs/results/<date>-<gpu>, or results/ beside carried binaries) is the folder. Peers need PyTorch; one that
# cannot be imported prints "absent".
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
skip() { printf 'SKIPPED: %s\n' "$*"; exit 77; }
[[ -e /dev/nvidia0 || -e /dev/dxg ]] || skip "no NVIDIA GPU here (no /dev/nvidia0)"
command -v nvidia-smi >/dev/null || skip "a GPU device is there, but no nvidia-smi: the driver is not installed"
gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1) || skip "nvidia-smi finds no usable GPU"

if [[ -x "$here/bin/gpu_bench" ]]; then  # carried by pack.sh
  bench="$here/bin/gpu_bench"
  export LD_LIBRARY_PATH="$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
  results="$here/results"
else
  cd "$here/../.."
  bench=build/cuda/bin/gpu_bench
  if [[ ! -x "$bench" ]]; then
    cmake -S kernels -B build/gpu -DCMAKE_BUILD_TYPE=Release -DQSERVE_CUDA=ON
    cmake --build build/gpu -j "$(nproc)" --target gpu_bench
    bench=build/gpu/bin/gpu_bench
  fi
  results="docs/results/$(date +%F)-$(tr 'A-Z ' 'a-z-' <<<"$gpu")"
fi
results="${QSERVE_BENCH_OUT:-$results}"
mkdir -p "$results"
nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,clocks.max.mem,power.limit --format=csv >"$results/machine.txt"
"$bench" "$@" | tee "$results/qserve.jsonl"
python3 "$here/peers.py" "$@" | tee "$results/peers.jsonl"
python3 "$here/peers.py" --table "$results/qserve.jsonl" "$results/peers.jsonl" | tee "$results/table.txt"
printf '[bench] results: %s\n' "$results"
