#!/bin/bash
# Measures qserve beside llama.cpp and OpenVINO GenAI on this machine's CPU: builds the peers and makes the models where that is not
# done yet, outside the tree, then runs peers.py. Everything can be begun again: what is there is kept.
#
#   tests/bench/peers.sh DIRECTORY [OPTION]...    results go to DIRECTORY; options are those of `peers.py run`, such as --quick,
#                                                 --shapes llama-3.2-1b,qwen2.5-0.5b, --rounds N
#   tests/bench/peers.sh --build-only [SHAPE]...  the peers, and the models of the shapes
#
# QSERVE_PEERS_CACHE: where peers and models are kept (~/.cache/qserve/peers). QSERVE_BIN: qserve's programs (build/release/bin).
# Packages come from wherever this machine's pip is told to look.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
cache=${QSERVE_PEERS_CACHE:-$HOME/.cache/qserve/peers}
bin=${QSERVE_BIN:-$root/build/release/bin}
llama_package=llama_cpp_python-0.3.36
openvino_packages=(openvino-genai==2026.4.1.0 optimum-intel==2.2.0 optimum==2.3.0 nncf==3.4.0 transformers==5.5.4 torch==2.15.0)

die() {
  echo "peers.sh: $*" >&2
  exit 1
}

# llama.cpp, as its Python package's source archive carries it. Clang: GCC 12 makes a binary that dies where AMX is configured.
build_llama() {
  local stamp=$cache/llama-build/$llama_package.done source=$cache/$llama_package/vendor/llama.cpp
  [ -e "$stamp" ] && return
  echo "building llama.cpp in $cache/llama-build" >&2
  if [ ! -d "$source" ]; then
    python3 -m pip download --quiet --no-deps --no-binary :all: "llama-cpp-python==${llama_package##*-}" -d "$cache/sdist"
    tar -xzf "$cache/sdist/$llama_package.tar.gz" -C "$cache"
  fi
  CC=clang-19 CXX=clang++-19 cmake -S "$source" -B "$cache/llama-build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
    -DGGML_OPENMP=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF >"$cache/llama-cmake.log" 2>&1
  ninja -C "$cache/llama-build" llama-batched-bench >"$cache/llama-build.log" 2>&1 || die "see $cache/llama-build.log"
  touch "$stamp"
}

install_openvino() {
  local venv=$cache/openvino-venv stamp
  stamp=$venv/$(printf '%s ' "${openvino_packages[@]}" | sha256sum | cut -c1-16).done
  [ -e "$stamp" ] && return
  echo "installing OpenVINO GenAI in $venv" >&2
  [ -d "$venv" ] || python3 -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet "${openvino_packages[@]}"
  touch "$stamp"
}

write_versions() {
  local list
  list=$(printf '"%s", ' "${openvino_packages[@]}")
  printf '{"llama.cpp": "%s, %s", "OpenVINO": [%s]}\n' "$llama_package" "$(clang-19 --version | head -1)" "${list%, }" \
    >"$cache/versions.json"
}

# One shape for all three: qserve's checkpoint first, whose configuration the others are made from.
make_models() {
  local folder=$cache/models/$1
  mkdir -p "$folder/llama"
  if [ ! -e "$folder/qserve.done" ]; then
    rm -rf "$folder/qserve"
    "$bin/qserve-bench" make-model --shape "$1" --output "$folder/qserve"
    touch "$folder/qserve.done"
  fi
  [ -e "$folder/llama/q4_0.gguf" ] || python3 "$here/gguf_model.py" "$folder/qserve/config.json" "$folder/llama/q4_0.gguf"
  [ -d "$folder/openvino" ] && return
  # OpenVINO's export holds the weights in 16 bits: an absent model is an absent figure, not an end.
  "$cache/openvino-venv/bin/python" "$here/openvino_model.py" "$folder/qserve" "$folder/openvino" >"$folder/openvino.log" 2>&1 ||
    echo "peers.sh: no OpenVINO model of $1: see $folder/openvino.log" >&2
}

prepare() {
  [ -x "$bin/qserve-bench" ] || die "$bin/qserve-bench is not there: build the preset release, or set QSERVE_BIN"
  mkdir -p "$cache"
  build_llama
  install_openvino
  write_versions
  local shape
  for shape in "$@"; do make_models "$shape"; done
}

[ $# -gt 0 ] || { sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 2; }
if [ "$1" = --build-only ]; then
  shift
  prepare "${@:-llama-3.2-1b}"
  exit
fi
shapes=llama-3.2-1b
previous=
for word in "$@"; do
  [ "$previous" = --shapes ] && shapes=$word
  previous=$word
done
prepare ${shapes//,/ }
exec python3 "$here/peers.py" run "$@" --cache "$cache" --qserve "$bin"
