#!/usr/bin/env bash
# Puts together what a machine with a GPU but without this project's libraries needs: the test and bench programs, stripped, with the
# shared libraries they use, the scripts and the demo model. Copy the folder there and call its run.sh or bench.sh.
#
#   tests/gpu/pack.sh [FOLDER]      default build/gpu-pack; needs no GPU, but the preset cuda (deploy/setup.sh --cuda)
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
folder="${1:-build/gpu-pack}"
readonly LIMIT_MIB=60
tools="${QSERVE_TOOLS:-$HOME/.cache/qserve}/cuda/bin"
if [[ -x "$tools/nvcc" ]] && ! command -v nvcc >/dev/null; then export PATH="$tools:$PATH" CUDACXX="$tools/nvcc"; fi

cmake --preset cuda
cmake --build --preset cuda --target gpu_test gpu_model_test gpu_bench
rm -rf "$folder"
mkdir -p "$folder/bin" "$folder/lib" "$folder/deploy"
for program in build/cuda/tests/gpu_test build/cuda/tests/gpu_model_test build/cuda/bin/gpu_bench; do
  strip -o "$folder/bin/$(basename "$program")" "$program"
done
# All but the C library and the loader, which belong to the machine. NCCL is opened at run time and too large to carry: run.sh looks for
# one there, and its test says when there is none.
for program in "$folder"/bin/*; do
  ldd "$program" | awk '$3 ~ /^\// { print $3 }' | grep -vE '/(libc|libm|libdl|librt|libpthread|ld-linux[^/]*)\.so'
done | sort -u | while IFS= read -r library; do
  cp -L "$library" "$folder/lib/"
done
cp tests/gpu/run.sh tests/gpu/bench.sh tests/gpu/peers.py "$folder/"
cp -r deploy/demo-model "$folder/deploy/"
rm -rf "$folder/deploy/demo-model/recipe"
size=$(du -sm "$folder" | cut -f1)
printf '[pack] %s: %s MiB\n' "$folder" "$size"
[[ $size -le $LIMIT_MIB ]] || { printf '[pack] error: larger than %s MiB\n' "$LIMIT_MIB" >&2; exit 1; }
