#!/usr/bin/env bash
# Sets up, builds and runs every test; what a developer and CI call. The last lines are ctest's summary.
#
#   tests/run.sh                     preset release, every test; then the CUDA kernels are compiled and held to their budgets (no GPU)
#   tests/run.sh --preset NAME       another preset: release, debug, tsan, cuda (repeatable)
#   tests/run.sh --sanitizers        and then debug (address, undefined) over the labels unit, ops, integration and sim, and tsan over
#                                    the same but ops
#   tests/run.sh --label LABEL       only tests with a label that matches the regular expression LABEL
#   tests/run.sh --no-setup          do not look for missing packages first
#
# QSERVE_TEST_JOBS (default 2) is the number of tests that run at a time, QSERVE_TEST_TRIES (default 1) how often a failing one is tried.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Labels of the tests that are run under each sanitizer.
declare -rA SANITIZED=([debug]='unit|ops|integration|sim' [tsan]='unit|integration|sim')
readonly TEST_JOBS="${QSERVE_TEST_JOBS:-2}"
readonly TEST_TRIES="${QSERVE_TEST_TRIES:-1}"
# Crates are compiled once for all build folders and clones of this user.
export QSERVE_CARGO_TARGET_DIR="${QSERVE_CARGO_TARGET_DIR:-${QSERVE_TOOLS:-$HOME/.cache/qserve}/cargo}"

say() { printf '\n[tests] %s\n' "$*"; }
die() { printf '[tests] error: %s\n' "$*" >&2; exit 2; }

# Compiling gRPC's headers takes about a gigabyte at the worst: as many jobs as cores, but no more than the memory bears.
build_jobs() {
  local memory_gib cores
  cores=$(nproc)
  memory_gib=$(awk '/^MemAvailable:/ { print int($2 / 1048576) }' /proc/meminfo)
  echo $((memory_gib < 1 ? 1 : (memory_gib < cores ? memory_gib : cores)))
}

use_cuda_tools() {
  local tools="${QSERVE_TOOLS:-$HOME/.cache/qserve}/cuda/bin"
  deploy/setup.sh --cuda || { printf '[tests] error: the CUDA compiler could not be installed\n' >&2; return 1; }
  # The packaged CMake does not understand the layout of the packaged compiler; the one installed with it does.
  if [[ -x "$tools/nvcc" ]] && ! command -v nvcc >/dev/null; then export PATH="$tools:$PATH" CUDACXX="$tools/nvcc"; fi
}

# Cases that a test program skipped itself do not show in ctest's summary: name them, then repeat the summary.
report_skipped_cases() {
  local log="$1" details="$2"
  local skipped
  skipped=$(grep -hE '^\[  SKIPPED \] .*\(' "$details" 2>/dev/null | sort -u || true)
  [[ -n "$skipped" ]] || return 0
  say "cases skipped inside test programs:"
  printf '%s\n' "$skipped"
  sed -n '/tests passed, .* tests failed out of/,$p' "$log"
}

# run_preset NAME [LABELS]: fails when the build or a test fails. Its caller looks at the result, which turns `set -e` off in here.
run_preset() {
  local preset="$1" labels="${2:-}" folder="build/$1" result=0 arguments=()
  if [[ "$preset" == cuda ]]; then use_cuda_tools || return 1; fi
  say "preset $preset: configure"
  cmake --preset "$preset" || return 1
  say "preset $preset: build"
  cmake --build --preset "$preset" -j "$(build_jobs)" || return 1
  say "preset $preset: test${labels:+ (labels $labels)}"
  [[ -z "$labels" ]] || arguments+=(-L "$labels")
  [[ "$TEST_TRIES" -le 1 ]] || arguments+=(--repeat "until-pass:$TEST_TRIES")
  ctest --preset "$preset" -j "$TEST_JOBS" --output-junit junit.xml "${arguments[@]}" 2>&1 | tee "$folder/ctest.log" || result=1
  report_skipped_cases "$folder/ctest.log" "$folder/Testing/Temporary/LastTest.log"
  return "$result"
}

# Compiles the kernels for every GPU architecture and fails on spills, registers over budget and missing tensor instructions.
run_gates() {
  use_cuda_tools || return 1
  say "GPU-free gates of the CUDA kernels"
  cmake --preset cuda -DQSERVE_BUILD_TESTS=ON >build/cuda-configure.log 2>&1 || { cat build/cuda-configure.log; return 1; }
  cmake --build --preset cuda -j "$(build_jobs)" --target cuda_gates || return 1
}

presets=()
gates=0
label=""
sanitizers=0
setup=1
while [[ $# -gt 0 ]]; do
  case "$1" in
    --preset | --label)
      [[ $# -ge 2 ]] || die "$1 needs a value"
      if [[ "$1" == --preset ]]; then presets+=("$2"); else label="$2"; fi
      shift ;;
    --sanitizers) sanitizers=1 ;;
    --no-setup) setup=0 ;;
    -h | --help) sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) die "unknown option '$1' (see --help)" ;;
  esac
  shift
done
if [[ ${#presets[@]} -eq 0 ]]; then
  presets=(release)
  if [[ -z "$label" ]]; then gates=1; fi
fi

[[ $setup -eq 0 ]] || deploy/setup.sh

failed=()
for preset in "${presets[@]}"; do
  if ! run_preset "$preset" "$label"; then failed+=("$preset"); fi
done
if [[ $gates -eq 1 ]]; then
  if ! run_gates; then failed+=("CUDA gates"); fi
  sed -n '/tests passed, .* tests failed out of/,$p' build/release/ctest.log  # the summary again, last
fi
if [[ $sanitizers -eq 1 ]]; then
  for preset in debug tsan; do
    if ! run_preset "$preset" "${label:-${SANITIZED[$preset]}}"; then failed+=("$preset"); fi
  done
fi
if [[ ${#failed[@]} -gt 0 ]]; then
  printf '[tests] failed: %s\n' "${failed[*]}" >&2
  exit 1
fi
