#!/usr/bin/env bash
# The tests that need a GPU; the ctest `gpu` calls it. Exit status 77 (ctest: skipped) where there is no NVIDIA GPU.
#
#   tests/gpu/run.sh            needs CUDA's compiler, CMake and a C++ compiler with GoogleTest; or the binaries that pack.sh carried
#   tests/gpu/run.sh --quick    without compute-sanitizer
#
# 1. every operation against the CPU's reference, and rows that depend on nothing but themselves (gpu_test)
# 2. the demo model: the same tokens in every company, after a restart, recorded or not, by NCCL in a group of one, and with ranks that
#    share the GPU (gpu_model_test, where the whole project could be built or was carried)
# 3. compute-sanitizer's memcheck and racecheck over the operations
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
quick=0
[[ "${1:-}" != --quick ]] || quick=1

skip() { printf 'SKIPPED: %s\n' "$*"; exit 77; }
say() { printf '\n[gpu] %s\n' "$*"; }

[[ -e /dev/nvidia0 || -e /dev/dxg ]] || skip "no NVIDIA GPU here (no /dev/nvidia0)"
command -v nvidia-smi >/dev/null || skip "a GPU device is there, but no nvidia-smi: the driver is not installed"
nvidia-smi --query-gpu=name,compute_cap,memory.total,driver_version --format=csv,noheader || skip "nvidia-smi finds no usable GPU"

# Sets `bin` to the folder of the test programs and goes to where the demo model is.
find_programs() {
  if [[ -x "$here/bin/gpu_test" ]]; then  # carried by pack.sh
    bin="$here/bin"
    cd "$here"
    export LD_LIBRARY_PATH="$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
    return
  fi
  cd "$here/../.."
  bin=build/cuda/tests
  [[ ! -x "$bin/gpu_test" || ! -x "$bin/gpu_model_test" ]] || return 0
  say "building the operations and their tests alone (build/gpu)"
  cmake -S kernels -B build/gpu -DCMAKE_BUILD_TYPE=Release -DQSERVE_CUDA=ON
  cmake --build build/gpu -j "$(nproc)" --target gpu_test
  bin=build/gpu/tests
}

# NCCL may have come with a package of Python instead of the system.
for nccl in "$HOME"/.cache/qserve/cuda/lib/python3*/site-packages/nvidia/nccl/lib \
            "$(python3 -c 'import nvidia.nccl as n; print(list(n.__path__)[0] + "/lib")' 2>/dev/null || true)"; do
  if [[ -e "$nccl/libnccl.so.2" ]]; then export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$nccl"; fi
done

failed=()
run() { "$@" || failed+=("$*"); }

find_programs
say "operations"
run "$bin/gpu_test"
if [[ -x "$bin/gpu_model_test" ]]; then
  say "the demo model"
  run "$bin/gpu_model_test"
else
  say "the demo model: absent, gpu_model_test was neither built (cmake --build --preset cuda) nor carried (tests/gpu/pack.sh)"
fi
if [[ $quick -eq 0 ]]; then
  sanitizer="$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || true)"
  if [[ -n "$sanitizer" ]]; then
    # Whole layers take too long under it; the ragged shapes are what it is for.
    export QSERVE_GPU_TEST_SMALL=1
    for tool in memcheck racecheck; do
      say "compute-sanitizer $tool"
      run "$sanitizer" --tool "$tool" --error-exitcode 3 "$bin/gpu_test" --gtest_filter='GpuParity.*:*ALinearsRow*:*HoweverAPrompt*'
    done
  else
    say "compute-sanitizer: absent"
  fi
fi
if [[ ${#failed[@]} -gt 0 ]]; then
  printf '[gpu] failed: %s\n' "${failed[@]}" >&2
  exit 1
fi
say "everything passed"
