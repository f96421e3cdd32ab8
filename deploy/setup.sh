#!/usr/bin/env bash
# Installs what building and testing qserve needs, on a bare Debian 12; quick start, tests and CI call it. Run it as root or with sudo.
# It changes nothing that is there already, and a second run takes well under a second.
#
#   deploy/setup.sh            system packages, Rust, Rust crates
#   deploy/setup.sh --cuda     the CUDA compiler as well, where no nvcc is on the PATH (no GPU needed to compile)
#   deploy/setup.sh --dev      clang-format, clang-tidy and clang as well
#   deploy/setup.sh --check    install nothing: exit 1 and name what is missing
#
# QSERVE_TOOLS (default ~/.cache/qserve) is where the CUDA compiler goes.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly TOOLS="${QSERVE_TOOLS:-$HOME/.cache/qserve}"
readonly CUDA_DIR="$TOOLS/cuda"
readonly MIN_CARGO="1.87"

# What cmake/QserveDependencies.cmake looks for, and the tools that build it.
readonly PACKAGES=(
  ca-certificates ccache cmake curl g++ git iproute2 make ninja-build pkg-config python3 python3-venv
  libabsl-dev libbenchmark-dev libboost-context-dev libboost-dev libcli11-dev libdnnl-dev libeigen3-dev libgloo-dev libgmock-dev
  libgrpc++-dev libgrpc-dev libgtest-dev libprotobuf-dev libspdlog-dev libssl-dev libxxhash-dev libyaml-cpp-dev
  nlohmann-json3-dev prometheus-cpp-dev protobuf-compiler protobuf-compiler-grpc
)
readonly DEV_PACKAGES=(clang-19 clang-format-19 clang-tidy-19)

# Pinned as one set: left free, the assembler front end and the code generator would come from a newer CUDA than the compiler.
readonly CUDA_WHEELS=(
  "nvidia-cuda-nvcc==13.0.*" "nvidia-cuda-crt==13.0.*" "nvidia-nvvm==13.0.*" "nvidia-cuda-runtime==13.0.*"
  "nvidia-cuda-cccl==13.0.*" "nvidia-cublas==13.0.*" "nvidia-nccl-cu13" "nvidia-cuda-cuobjdump"
  "nvidia-cuda-nvdisasm" "cmake==3.31.*"
)

say() { printf '[setup] %s\n' "$*"; }
die() { printf '[setup] error: %s\n' "$*" >&2; exit 1; }

# as_root COMMAND...: runs it as root, or says what is needed for that.
as_root() {
  if [[ $EUID -eq 0 ]]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    die "packages have to be installed and this is neither root nor is sudo there; as root: apt-get install $*"
  fi
}

apt_get() { as_root env DEBIAN_FRONTEND=noninteractive apt-get "$@"; }

apt_updated=0
apt_update() {
  [[ $apt_updated -eq 0 ]] || return 0
  local attempt
  for attempt in 1 2 3 4 5; do
    say "reading the package lists (attempt $attempt of 5)"
    if apt_get update -q -o Acquire::Retries=3; then
      apt_updated=1
      return 0
    fi
    sleep $((attempt * 2))
  done
  die "apt-get update failed five times; is the network there?"
}

# missing_packages NAME...: prints those that are not installed.
missing_packages() {
  local installed name
  installed=$(dpkg-query -W -f '${binary:Package}\t${db:Status-Status}\n' 2>/dev/null |
    awk -F '\t' '$2 == "installed" { sub(/:.*/, "", $1); print $1 }')
  for name in "$@"; do
    grep -qxF -- "$name" <<<"$installed" || printf '%s\n' "$name"
  done
}

apt_install() {
  apt_update
  say "installing: $*"
  apt_get install -y -q --no-install-recommends -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 "$@" ||
    die "apt-get could not install: $*"
}

install_packages() {
  local missing
  mapfile -t missing < <(missing_packages "$@")
  [[ ${#missing[@]} -gt 0 ]] || return 0
  if [[ $check_only -eq 1 ]]; then
    say "missing packages: ${missing[*]}"
    incomplete=1
    return 0
  fi
  apt_install "${missing[@]}"
}

# version_at_least HAVE WANTED
version_at_least() { [[ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" == "$2" ]]; }

cargo_version() { cargo --version 2>/dev/null | awk '{ print $2 }'; }

candidate_version() { apt-cache policy "$1" 2>/dev/null | awk '$1 == "Candidate:" { print $2 }'; }

# Debian's browser toolchain packages are the recent Rust of Debian 12; the recent one comes with its security updates, which a
# minimal installation may not have among its sources. They live beside the main archive of the same mirror.
add_security_updates() {
  local site list=/etc/apt/sources.list.d/qserve-security.list
  site=$(apt-get indextargets --format '$(SITE)' 'Codename: bookworm' 'Created-By: Packages' 2>/dev/null | head -n 1)
  [[ -n "$site" ]] || return 1
  say "adding Debian's security updates to the package sources ($list)"
  printf 'deb %s-security bookworm-security main\n' "${site%/}" | as_root tee "$list" >/dev/null
  apt_updated=0
  if ! (apt_update); then
    as_root rm -f "$list"
    return 1
  fi
  apt_updated=1
}

install_rust() {
  local have
  have=$(cargo_version || true)
  if [[ -n "$have" ]] && version_at_least "$have" "$MIN_CARGO"; then return 0; fi
  if [[ $check_only -eq 1 ]]; then
    say "missing: cargo $MIN_CARGO or newer (found: ${have:-none})"
    incomplete=1
    return 0
  fi
  apt_update
  if ! version_at_least "$(candidate_version cargo-web)" "$MIN_CARGO"; then
    add_security_updates || true
  fi
  version_at_least "$(candidate_version cargo-web)" "$MIN_CARGO" ||
    die "cargo $MIN_CARGO or newer is needed (found: ${have:-none}; packaged: $(candidate_version cargo-web)): install one, or enable bookworm-security"
  apt_install cargo-web rustc-web
  hash -r
  have=$(cargo_version || true)
  version_at_least "${have:-0}" "$MIN_CARGO" || die "cargo on the PATH is ${have:-missing}, older than $MIN_CARGO: put a newer one first"
}

# Crates are downloaded once per lock file, so that the build itself needs no network.
fetch_crates() {
  local lock folder digest stamp
  while IFS= read -r lock; do
    folder=$(dirname "$lock")
    digest=$(sha256sum "$lock" | cut -c 1-16)
    stamp="$TOOLS/crates-$digest"
    [[ ! -e "$stamp" ]] || continue
    if [[ $check_only -eq 1 ]]; then
      say "crates of $folder were not fetched yet"
      incomplete=1
      continue
    fi
    say "fetching the Rust crates of $folder"
    cargo fetch --locked --manifest-path "$folder/Cargo.toml" || die "cargo fetch failed for $folder"
    mkdir -p "$TOOLS"
    touch "$stamp"
  done < <(find worker -name target -prune -o -name Cargo.lock -print)
}

link_cuda_libraries() {
  local root="$1" library
  ln -sfn lib "$root/lib64"
  for library in "$root"/lib/lib*.so.*; do
    ln -sfn "$(basename "$library")" "${library%%.so.*}.so"
  done
}

install_cuda() {
  local nvcc stamp digest root
  if nvcc=$(command -v nvcc) && [[ "$nvcc" != "$CUDA_DIR/"* ]]; then
    say "CUDA compiler: $nvcc"
    return 0
  fi
  digest=$(printf '%s\n' "${CUDA_WHEELS[@]}" | sha256sum | cut -c 1-16)
  stamp="$CUDA_DIR/complete-$digest"
  if [[ ! -e "$stamp" ]]; then
    if [[ $check_only -eq 1 ]]; then
      say "missing: CUDA compiler"
      incomplete=1
      return 0
    fi
    say "installing the CUDA compiler into $CUDA_DIR (about 1.3 GB)"
    rm -rf "$CUDA_DIR"
    mkdir -p "$TOOLS"
    python3 -m venv "$CUDA_DIR" || die "python3 -m venv failed"
    "$CUDA_DIR/bin/pip" install --quiet --retries 5 "${CUDA_WHEELS[@]}" || die "the CUDA packages could not be installed"
    root=$(echo "$CUDA_DIR"/lib/python3*/site-packages/nvidia/cu13)
    [[ -x "$root/bin/nvcc" ]] || die "nvcc is not where it was expected: $root/bin/nvcc"
    link_cuda_libraries "$root"
    # A script, not a link: nvcc finds its parts beside the name it was called by.
    printf '#!/bin/sh\nexec "%s/bin/nvcc" "$@"\n' "$root" >"$CUDA_DIR/bin/nvcc"
    chmod +x "$CUDA_DIR/bin/nvcc"
    "$CUDA_DIR/bin/nvcc" --version >/dev/null || die "the CUDA compiler does not start"
    touch "$stamp"
  fi
  say "CUDA compiler: $CUDA_DIR/bin/nvcc (with its CMake: export PATH=\"$CUDA_DIR/bin:\$PATH\")"
}

with_cuda=0
with_dev=0
check_only=0
incomplete=0
for argument in "$@"; do
  case "$argument" in
    --cuda) with_cuda=1 ;;
    --dev) with_dev=1 ;;
    --check) check_only=1 ;;
    -h | --help) sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) die "unknown option '$argument' (see --help)" ;;
  esac
done

command -v apt-get >/dev/null && command -v dpkg-query >/dev/null ||
  die "this script installs Debian packages and apt-get is not here; README.md lists what to install by hand"

started=$SECONDS
install_packages "${PACKAGES[@]}"
[[ $with_dev -eq 0 ]] || install_packages "${DEV_PACKAGES[@]}"
install_rust
fetch_crates
[[ $with_cuda -eq 0 ]] || install_cuda
if [[ $incomplete -eq 1 ]]; then exit 1; fi
say "everything is there ($((SECONDS - started)) s)"
