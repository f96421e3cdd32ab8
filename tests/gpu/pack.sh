#!/usr/bin/env bash
# Puts together what a machine with a GPU but without this project's libraries needs: the test and bench programs, stripped, with the
# shared libraries they use, the scripts and the demo model. Copy the folder there and call its run.sh or bench.sh, which unpack what is
# in the archive beside them.
#
#   tests/gpu/pack.sh [FOLDER]      default build/gpu-pack; needs no GPU, but the preset cuda (deploy/setup.sh --cuda)
#
# QSERVE_CUDA_BUILD is another build folder than the preset's build/cuda. The machine there needs the C library of this one (glibc) or a
# newer one, x86-64, and NVIDIA's driver. The C++ library is carried, for these programs alone: an older one there does no harm, and
# PyTorch finds its own.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
folder="${1:-build/gpu-pack}"
build="${QSERVE_CUDA_BUILD:-build/cuda}"
readonly LIMIT_MIB=60
tools="${QSERVE_TOOLS:-$HOME/.cache/qserve}/cuda/bin"
if [[ -x "$tools/nvcc" ]] && ! command -v nvcc >/dev/null; then export PATH="$tools:$PATH" CUDACXX="$tools/nvcc"; fi
die() { printf '[pack] error: %s\n' "$*" >&2; exit 1; }

[[ ! -e "$folder" || -e "$folder/run.sh" ]] || die "$folder is there, and no earlier pack"
cmake --preset cuda -B "$build"
cmake --build "$build" --target gpu_test gpu_model_test gpu_bench gpu_offline
rm -rf "$folder"
mkdir -p "$folder/bin" "$folder/lib" "$folder/deploy"
cp tests/gpu/run.sh tests/gpu/bench.sh tests/gpu/peers.py "$folder/"
for program in tests/gpu_test tests/gpu_model_test bin/gpu_bench bin/gpu_offline; do
  strip -o "$folder/bin/$(basename "$program")" "$build/$program"
done
# All but the C library and the loader, which belong to the machine. NCCL is opened at run time and too large to carry: run.sh looks for
# one there, and its test says when there is none.
for program in "$folder"/bin/*; do
  ldd "$program" | awk '$3 ~ /^\// { print $3 }' | grep -vE '/(libc|libm|libdl|librt|libpthread|libresolv|ld-linux[^/]*)\.so'
done | sort -u | while IFS= read -r library; do
  cp -L "$library" "$folder/lib/"
done
strip --strip-unneeded "$folder"/lib/*
cp -r deploy/demo-model "$folder/deploy/"
rm -rf "$folder/deploy/demo-model/recipe"

foreign=$(cd "$folder/lib" && ls | grep -iE 'grpc|protobuf|upb|python' || true)
[[ -z "$foreign" ]] || die "what is carried needs ${foreign//$'\n'/, }"
for program in "$folder"/bin/*; do
  missing=$(LD_LIBRARY_PATH="$folder/lib" ldd "$program" | grep 'not found' || true)
  [[ -z "$missing" ]] || die "$program: $missing"
done
# The same kernels are in each program, for three architectures: half as large when packed.
tar czf "$folder/carried.tar.gz" -C "$folder" bin lib deploy
rm -rf "$folder/bin" "$folder/lib" "$folder/deploy"
size=$(du -sm "$folder" | cut -f1)
printf '[pack] %s: %s MiB\n' "$folder" "$size"
[[ $size -le $LIMIT_MIB ]] || die "larger than $LIMIT_MIB MiB"
