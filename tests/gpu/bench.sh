#!/usr/bin/env bash
# Measures the GPU backend and its peers on this machine's GPU: ceilings, linears, attention, steps, offline throughput. Exit status 77
# where there is no NVIDIA GPU. Results: a folder with raw JSON lines and tables.
#
#   tests/gpu/bench.sh [PART...]      parts: linears attention steps offline; none: these four, about eight minutes on an H200
#                                     beside them: offline-channel (per-channel weights), offline-70b (about ten minutes: choose it alone)
#
# QSERVE_BENCH_OUT (default docs/results/<date>-<gpu>, or results/ beside carried binaries) is the folder. Each part is a process of its
# own: one that fails is named at the end, and what the others found stays. Peers need PyTorch; one that cannot be imported prints
# "absent". QSERVE_BENCH_SECONDS (default 180) bounds the runs of one offline batch; its checkpoint lies in TMPDIR meanwhile (8 GiB; 70B: 40).
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
skip() { printf 'SKIPPED: %s\n' "$*"; exit 77; }
die() { printf '[bench] error: %s\n' "$*" >&2; exit 2; }
parts=("$@")
[[ $# -gt 0 ]] || parts=(linears attention steps offline)
for part in "${parts[@]}"; do
  case "$part" in
    linears | attention | steps | offline | offline-channel | offline-70b) ;;
    *) die "there is no part '$part' (see the head of this script)" ;;
  esac
done
[[ -e /dev/nvidia0 || -e /dev/dxg ]] || skip "no NVIDIA GPU here (no /dev/nvidia0)"
command -v nvidia-smi >/dev/null || skip "a GPU device is there, but no nvidia-smi: the driver is not installed"
gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1) || skip "nvidia-smi finds no usable GPU"

ours=(env)
if [[ -f "$here/carried.tar.gz" && ! -d "$here/bin" ]]; then tar xzf "$here/carried.tar.gz" -C "$here"; fi
if [[ -x "$here/bin/gpu_bench" ]]; then  # carried by pack.sh
  bin="$here/bin"
  ours=(env "LD_LIBRARY_PATH=$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}")  # not the peers' libraries
  results="$here/results"
else
  cd "$here/../.."
  bin="${QSERVE_CUDA_BUILD:-build/cuda}/bin"
  if [[ ! -x "$bin/gpu_bench" ]]; then
    cmake -S kernels -B build/gpu -DCMAKE_BUILD_TYPE=Release -DQSERVE_CUDA=ON
    cmake --build build/gpu -j "$(nproc)" --target gpu_bench
    bin=build/gpu/bin
  fi
  results="docs/results/$(date +%F)-$(tr 'A-Z ' 'a-z-' <<<"$gpu")"
fi
results="${QSERVE_BENCH_OUT:-$results}"
mkdir -p "$results"
nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,clocks.max.mem,power.limit --format=csv >"$results/machine.txt"
: >"$results/qserve.jsonl"
: >"$results/peers.jsonl"

failed=()
# run FILE COMMAND...: its lines are shown and kept.
run() {
  local file="$1"
  shift
  "$@" | tee -a "$results/$file" || failed+=("$*")
}
offline() {
  if [[ ! -x "$bin/gpu_offline" ]]; then
    printf '{"what": "offline", "absent": "gpu_offline was neither built (cmake --build --preset cuda) nor carried (pack.sh)"}\n' |
      tee -a "$results/qserve.jsonl"
    return
  fi
  run qserve.jsonl "${ours[@]}" "$bin/gpu_offline" --seconds "${QSERVE_BENCH_SECONDS:-180}" "$@"
}

peers=()
for part in "${parts[@]}"; do
  case "$part" in
    offline) offline --shape llama-3.1-8b ;;
    offline-channel) offline --shape llama-3.1-8b --scheme gchn ;;
    offline-70b) offline --shape llama-3.1-70b --batches largest ;;
    *)
      run qserve.jsonl "${ours[@]}" "$bin/gpu_bench" "$part"
      [[ "$part" == steps ]] || peers+=("$part") ;;
  esac
done
if [[ ${#peers[@]} -gt 0 ]]; then
  if command -v python3 >/dev/null; then
    run peers.jsonl python3 "$here/peers.py" "${peers[@]}"
  else
    printf '{"what": "peers", "absent": "no python3"}\n' | tee -a "$results/peers.jsonl"
  fi
fi
if command -v python3 >/dev/null; then
  python3 "$here/peers.py" --table "$results/qserve.jsonl" "$results/peers.jsonl" | tee "$results/table.txt"
fi
printf '[bench] results: %s\n' "$results"
if [[ ${#failed[@]} -gt 0 ]]; then
  printf '[bench] failed: %s\n' "${failed[@]}" >&2
  exit 1
fi
