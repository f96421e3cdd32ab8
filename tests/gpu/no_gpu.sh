#!/usr/bin/env bash
# The worker with CUDA built in, on a machine without a GPU: --device cuda is refused with a reason, --device auto serves on the CPU.
# A ctest of preset cuda; exit status 77 (skipped) where there is a GPU.
#
#   tests/gpu/no_gpu.sh PATH/qserve-worker      from the root of the repository
set -euo pipefail

worker="$1"
if [[ -e /dev/nvidia0 || -e /dev/dxg ]]; then
  printf 'SKIPPED: there is a GPU here\n'
  exit 77
fi
log="$(mktemp)"
pid=""
trap '[[ -z "$pid" ]] || kill -9 "$pid" 2>/dev/null || true; rm -f "$log"' EXIT
fail() { printf 'failed: %s\n' "$*"; cat "$log"; exit 1; }

start=("$worker" --model deploy/demo-model --quantize rtn-g128 --listen 127.0.0.1:0 --metrics-listen 127.0.0.1:0 --threads 1
       --kv-cache-memory 16MiB)
status=0
timeout 60 "${start[@]}" --device cuda >"$log" 2>&1 || status=$?
[[ $status -ne 0 && $status -lt 124 ]] || fail "--device cuda ended with status $status"
grep -qiE 'device cuda|no (usable )?(NVIDIA )?GPU|CUDA driver' "$log" || fail "--device cuda does not say that there is no GPU"
! grep -q 'built without CUDA' "$log" || fail "CUDA is not built in"

"${start[@]}" --device auto >"$log" 2>&1 &
pid=$!
for _ in $(seq 600); do
  if grep -q '(port ' "$log"; then break; fi
  kill -0 "$pid" 2>/dev/null || fail "--device auto ended before it served"
  sleep 0.1
done
grep -q '(port ' "$log" || fail "--device auto does not serve"
kill -TERM "$pid"
status=0
wait "$pid" || status=$?
pid=""
[[ $status -eq 0 ]] || fail "--device auto ended with status $status"
