#!/usr/bin/env bash
# The tests that need a GPU; the ctest `gpu` calls it. Exit status 77 (ctest: skipped) where there is no NVIDIA GPU.
#
#   tests/gpu/run.sh            needs CUDA's compiler, CMake and a C++ compiler with GoogleTest; or the binaries that pack.sh carried
#   tests/gpu/run.sh --quick    without compute-sanitizer
#   tests/gpu/run.sh --sanitize [TOOL...]    compute-sanitizer alone: memcheck, racecheck, synccheck, initcheck, or those named
#
# 1. every operation against the CPU's reference, and rows that depend on nothing but themselves (gpu_test)
# 2. the demo model: the same tokens in every company, after a restart, recorded or not, by NCCL in a group of one and, where there are
#    several GPUs, of two, and with ranks that share the GPU (gpu_model_test, where the whole project was built or carried)
# 3. compute-sanitizer's memcheck, racecheck, synccheck and initcheck over the operations, small cases
# Each is run even if one before it failed; those that did are named at the end. QSERVE_CUDA_BUILD is another build folder than the
# preset's build/cuda.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
tests=1
tools=(memcheck racecheck synccheck initcheck)
case "${1:-}" in
  "") ;;
  --quick) tools=() ;;
  --sanitize)
    tests=0
    [[ $# -eq 1 ]] || tools=("${@:2}") ;;
  *) printf '[gpu] error: unknown option %s (see the head of this script)\n' "$1" >&2; exit 2 ;;
esac

skip() { printf 'SKIPPED: %s\n' "$*"; exit 77; }
say() { printf '\n[gpu] %s\n' "$*"; }

[[ -e /dev/nvidia0 || -e /dev/dxg ]] || skip "no NVIDIA GPU here (no /dev/nvidia0)"
command -v nvidia-smi >/dev/null || skip "a GPU device is there, but no nvidia-smi: the driver is not installed"
nvidia-smi --query-gpu=name,compute_cap,memory.total,driver_version --format=csv,noheader || skip "nvidia-smi finds no usable GPU"

# Sets `bin` to the folder of the test programs and goes to where the demo model is.
libraries="${LD_LIBRARY_PATH:-}"
find_programs() {
  if [[ -f "$here/carried.tar.gz" && ! -d "$here/bin" ]]; then tar xzf "$here/carried.tar.gz" -C "$here"; fi
  if [[ -x "$here/bin/gpu_test" ]]; then  # carried by pack.sh
    bin="$here/bin"
    cd "$here"
    libraries="$here/lib${libraries:+:$libraries}"
    return
  fi
  cd "$here/../.."
  bin="${QSERVE_CUDA_BUILD:-build/cuda}/tests"
  [[ ! -x "$bin/gpu_test" || ! -x "$bin/gpu_model_test" ]] || return 0
  say "building the operations and their tests alone (build/gpu)"
  cmake -S kernels -B build/gpu -DCMAKE_BUILD_TYPE=Release -DQSERVE_CUDA=ON
  cmake --build build/gpu -j "$(nproc)" --target gpu_test
  bin=build/gpu/tests
}

# NCCL may have come with a package of Python instead of the system.
find_nccl() {
  local folder
  for folder in "$HOME"/.cache/qserve/cuda/lib/python3*/site-packages/nvidia/nccl/lib \
                "$(python3 -c 'import nvidia.nccl as n; print(list(n.__path__)[0] + "/lib")' 2>/dev/null || true)"; do
    if [[ -e "$folder/libnccl.so.2" ]]; then libraries="${libraries:+$libraries:}$folder"; fi
  done
}

failed=()
run() { env LD_LIBRARY_PATH="$libraries" "$@" || failed+=("$*"); }

# The cases that compute-sanitizer sees: all operations, and rows in batches, chunks and a recorded step.
readonly SANITIZED='GpuParity.*:GpuSchedule.ALinearsRow*:GpuSchedule.AttentionIsTheSame*:GpuSchedule.ARecordedStep*'
sanitize() {
  local tool sanitizer
  sanitizer="$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || true)"
  if [[ -z "$sanitizer" ]]; then
    say "compute-sanitizer: absent"
    return
  fi
  # Whole layers take too long under it; the ragged shapes are what it is for.
  export QSERVE_GPU_TEST_SMALL=1
  for tool in "${tools[@]}"; do
    say "compute-sanitizer $tool"
    run timeout 900 "$sanitizer" --tool "$tool" --error-exitcode 3 "$bin/gpu_test" --gtest_filter="$SANITIZED"
  done
}

run_tests() {
  say "operations"
  run "$bin/gpu_test"
  if [[ -x "$bin/gpu_model_test" ]]; then
    say "the demo model"
    run "$bin/gpu_model_test" --gtest_filter='-*OnSeveral*'
    say "several GPUs ($(nvidia-smi -L | wc -l) here)"
    several=(timeout 900 "$bin/gpu_model_test" --gtest_filter='*OnSeveral*')
    run "${several[@]}"
    if [[ "${failed[*]: -1}" == "${several[*]}" ]]; then
      say "the same without NCCL's registration of a graph's buffers, to tell whether that is it"
      env LD_LIBRARY_PATH="$libraries" NCCL_GRAPH_REGISTER=0 "${several[@]}" && failed+=("(which passes with NCCL_GRAPH_REGISTER=0)") || true
    fi
  else
    say "the demo model: absent, gpu_model_test was neither built (cmake --build --preset cuda) nor carried (tests/gpu/pack.sh)"
  fi
}

find_nccl
find_programs
# Tests that skip themselves are no success.
usable="$(env LD_LIBRARY_PATH="$libraries" "$bin/gpu_test" --gtest_filter=GpuParity.NormsAndGates 2>&1 || true)"
[[ "$usable" != *"no NVIDIA GPU that CUDA can use"* ]] || skip "nvidia-smi shows a GPU that CUDA cannot use: is the driver too old (CUDA 13 wants 580)?"
[[ $tests -eq 0 ]] || run_tests
[[ ${#tools[@]} -eq 0 ]] || sanitize
if [[ ${#failed[@]} -gt 0 ]]; then
  printf '[gpu] failed: %s\n' "${failed[@]}" >&2
  exit 1
fi
say "everything passed"
