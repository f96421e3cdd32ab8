#!/usr/bin/env bash
# Runs the CPU kernels' tests on instruction sets that this machine lacks: in an emulated PC (Bochs) whose CPU has them. Slow, and so
# no part of tests/run.sh; call it after a change to an AMX, AVX512-VNNI or AVX-VNNI file of kernels/cpu. README.md says how it works.
#
#   tests/isa/run.sh                   every instruction set below, one after another
#   tests/isa/run.sh --isa NAME        one: avx512amx, avx512vnni, avxvnni (repeatable)
#
# Needs apt-get (as root or with sudo) for what is missing. QSERVE_TOOLS (default ~/.cache/qserve) is where emulator and kernel go,
# QSERVE_ISA_TIMEOUT (default 5400) the seconds that one emulated machine may take.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly TOOLS="${QSERVE_TOOLS:-$HOME/.cache/qserve}"
readonly LIMIT="${QSERVE_ISA_TIMEOUT:-5400}"
readonly BUILD="$PWD/build/isa"
readonly JOBS="$(nproc)"

# Debian 12's own Bochs (2.7) has no CPU model with AVX-VNNI and describes XSAVE so that Linux gives up AVX512: the release of Debian 13
# is built from its source archive. bochs_amx.patch adds what it lacks of AMX.
readonly BOCHS_VERSION="3.0"
readonly BOCHS_FILE="pool/main/b/bochs/bochs_3.0+dfsg.orig.tar.xz"
readonly BOCHS_SHA256="78f6c73d4a6472d5130a87ab9dc306d02c7c71ed8e25b3a8ef642e2a7acd282b"
readonly BOCHS="$TOOLS/bochs-$BOCHS_VERSION-amx"
readonly KERNEL="$TOOLS/isa-kernel"

# What makes the boot short; and no fast string instructions: with those two features this kernel loops in page faults in this emulator
# before its first process (without them it does not; why was not looked into). No option touches the vector instructions.
readonly KERNEL_OPTIONS="console=ttyS0 quiet loglevel=3 lsm=none nokaslr mitigations=off nosmp nolapic acpi=off highres=off nohz=off \
clocksource=jiffies lpj=1000000 clearcpuid=fsrm,erms"

readonly PACKAGES=(bochsbios busybox-static ca-certificates cmake cpio curl g++ gcc grub-common grub-pc-bin libgtest-dev libgmock-dev lz4 make
                   mtools ninja-build patch vgabios xorriso xz-utils)
readonly TESTS=(linear_parity_test bf16_linear_test float_parity_test attention_test float_math_test sample_test kernels_cpu_test)

# Which CPU model of the emulator has an instruction set; the last has AVX-VNNI and no AVX512.
declare -rA MODELS=([avx512amx]=sapphire_rapids [avx512vnni]=tigerlake [avxvnni]=arrow_lake)

say() { printf '[isa] %s\n' "$*"; }
die() { printf '[isa] error: %s\n' "$*" >&2; exit 2; }

as_root() {
  if [[ $EUID -eq 0 ]]; then "$@"; elif command -v sudo >/dev/null; then sudo "$@"; else die "as root: $*"; fi
}

install_packages() {
  local missing=() name
  for name in "${PACKAGES[@]}"; do
    dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null | grep -qx installed || missing+=("$name")
  done
  [[ ${#missing[@]} -gt 0 ]] || return 0
  say "installing: ${missing[*]}"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
}

build_emulator() {
  [[ ! -x "$BOCHS/bochs" ]] || return 0
  local site work="$BOCHS.building"
  site=$(apt-get indextargets --format '$(SITE)' 'Codename: bookworm' 'Created-By: Packages' | head -n 1)
  say "building the emulator, Bochs $BOCHS_VERSION (some minutes)"
  rm -rf "$work" && mkdir -p "$work"
  curl -fsSL --retry 5 -o "$work/source.tar.xz" "${site%/}/$BOCHS_FILE" || die "Bochs could not be downloaded"
  echo "$BOCHS_SHA256  $work/source.tar.xz" | sha256sum --check --quiet || die "the archive of Bochs is not the expected one"
  tar -C "$work" --strip-components 1 -xf "$work/source.tar.xz"
  patch -s -d "$work" -p 1 <tests/isa/bochs_amx.patch || die "the patch does not fit Bochs $BOCHS_VERSION"
  (cd "$work" && CXXFLAGS="-O2" CFLAGS="-O2" ./configure --with-nogui --enable-x86-64 --enable-cpu-level=6 --enable-all-optimizations \
     --enable-avx --enable-evex --enable-amx --enable-long-phy-address --disable-docbook --disable-plugins --disable-xpm && make -j "$JOBS") \
    >"$TOOLS/bochs-build.log" 2>&1 || die "Bochs did not build: $TOOLS/bochs-build.log"
  mkdir -p "$BOCHS"
  mv "$work/bochs" "$BOCHS/bochs"
  rm -rf "$work"
}

fetch_kernel() {
  [[ ! -e "$KERNEL/vmlinuz" ]] || return 0
  local package
  package=$(apt-cache depends linux-image-cloud-amd64 | awk '$1 == "Depends:" { print $2; exit }')
  say "fetching a kernel: $package"
  rm -rf "$KERNEL" && mkdir -p "$KERNEL"
  (cd "$KERNEL" && apt-get download -q "$package" && dpkg-deb -x ./*.deb .) >"$TOOLS/isa-kernel.log" 2>&1 ||
    die "the kernel could not be fetched: $TOOLS/isa-kernel.log"
  mv "$KERNEL"/boot/vmlinuz-* "$KERNEL/vmlinuz"
  rm -rf "$KERNEL"/*.deb "$KERNEL"/{boot,lib,usr}
}

# The kernels alone, linked statically: the emulated machine has no libraries.
build_tests() {
  say "building the tests"
  cmake -S kernels -B "$BUILD/tests" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_EXE_LINKER_FLAGS=-static -DQSERVE_DNNL_LIBRARY= \
    -DCMAKE_DISABLE_FIND_PACKAGE_benchmark=ON >"$BUILD/configure.log" || die "configure failed: $BUILD/configure.log"
  ninja -C "$BUILD/tests" -j "$JOBS" "${TESTS[@]}" >"$BUILD/build.log" 2>&1 || die "the tests did not build: $BUILD/build.log"
}

# filter TEST ISA: the tests that only this CPU can run, or that run on the best instruction set there is.
filter() {
  local floats="$2"
  [[ "$2" != avxvnni ]] || floats=avx2  # the same functions
  [[ "$2" != avx512amx ]] || floats=avx512vnni
  case "$1" in
    linear_parity_test) echo "*/$2:*/$2_*" ;;
    bf16_linear_test) echo "*/$2:Bf16Tiles.OfThisMachineKeepToTheArithmetic" ;;
    float_parity_test | attention_test) echo "*/$floats" ;;
    float_math_test) echo 'Activation.*' ;;
    *) echo '*' ;;
  esac
}

# make_image ISA: a CD with the kernel and, as its first file system, the tests.
make_image() {
  local root="$BUILD/$1/root" cd="$BUILD/$1/cd" test
  rm -rf "${BUILD:?}/$1"
  mkdir -p "$root"/{bin,dev,proc,tests,filters} "$cd/boot/grub"
  cp /bin/busybox "$root/bin/busybox"
  cp tests/isa/guest_init.sh "$root/init"
  echo "$1" >"$root/isa"
  for test in "${TESTS[@]}"; do
    strip -o "$root/tests/$test" "$BUILD/tests/tests/$test"
    filter "$test" "$1" >"$root/filters/$test"
  done
  cp "$KERNEL/vmlinuz" "$cd/boot/vmlinuz"
  (cd "$root" && find . | cpio --quiet -o -H newc -R 0:0 | lz4 -lqc) >"$cd/boot/initrd"
  cat >"$cd/boot/grub/grub.cfg" <<END
linux /boot/vmlinuz $KERNEL_OPTIONS
initrd /boot/initrd
boot
END
  grub-mkrescue -o "$BUILD/$1/boot.iso" "$cd" >"$BUILD/$1/image.log" 2>&1 || die "no boot image: $BUILD/$1/image.log"
  cat >"$BUILD/$1/bochsrc" <<END
config_interface: textconfig
display_library: nogui
romimage: file=/usr/share/bochs/BIOS-bochs-latest, options=fastboot
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
cpu: model=${MODELS[$1]}, count=1, ips=100000000, reset_on_triple_fault=0, ignore_bad_msrs=1
megs: 1024
ata0-master: type=cdrom, path=$BUILD/$1/boot.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=$BUILD/$1/serial.txt
log: $BUILD/$1/bochs.log
panic: action=fatal
error: action=ignore
info: action=ignore
debug: action=ignore
clock: sync=none
END
}

emulator=""
stop_emulator() {
  [[ -n "$emulator" ]] || return 0
  kill "$emulator" 2>/dev/null || true
  wait "$emulator" 2>/dev/null || true
  emulator=""
}
trap stop_emulator EXIT

# boot ISA: runs the machine until its tests are done, showing their outcome as it comes.
boot() {
  local serial="$BUILD/$1/serial.txt" started=$SECONDS shown=0 lines
  : >"$serial"
  "$BOCHS/bochs" -q -f "$BUILD/$1/bochsrc" </dev/null >"$BUILD/$1/bochs.out" 2>&1 &
  emulator=$!
  until grep -q '^== all done' "$serial"; do
    kill -0 "$emulator" 2>/dev/null || { say "the emulated machine stopped: $BUILD/$1/bochs.log"; return 1; }
    ((SECONDS - started < LIMIT)) || { say "not done after $LIMIT s: $serial"; return 1; }
    sleep 2
    lines=$(wc -l <"$serial")
    ((lines == shown)) || sed -n "$((shown + 1)),${lines}p" "$serial"
    shown=$lines
  done
  stop_emulator
  say "$1: emulated for $((SECONDS - started)) s"
}

# judge ISA: every program ended well, and this instruction set's tests did run.
judge() {
  local serial="$BUILD/$1/serial.txt" name result=0
  local needed=("LinearParity.EqualsTheReferenceToTheBit/$1" "Bf16Linear.EqualsTheReferenceToTheBit/$1")
  [[ "$1" != avx512amx ]] || needed+=(LinearParity.EqualsTheReferenceToTheBit/avx512amx_tiles_always Bf16Tiles.OfThisMachineKeepToTheArithmetic)
  for name in "${TESTS[@]}"; do
    grep -qx "== $name: exit status 0" "$serial" || { say "$1: $name failed"; result=1; }
  done
  for name in "${needed[@]}"; do
    grep -qE "^\[       OK \] (.*/)?$name " "$serial" || { say "$1: $name did not run"; result=1; }
  done
  if grep -E "^\[  SKIPPED \] .*/$1(_[a-z_]+)?( |\$)" "$serial"; then result=1; fi
  return "$result"
}

isas=()
while [[ $# -gt 0 ]]; do
  case "$1" in
    --isa)
      [[ $# -ge 2 && -n "${MODELS[$2]:-}" ]] || die "--isa takes one of: ${!MODELS[*]}"
      isas+=("$2")
      shift ;;
    -h | --help) sed -n '2,9s/^# \{0,1\}//p' tests/isa/run.sh; exit 0 ;;
    *) die "unknown option '$1' (see --help)" ;;
  esac
  shift
done
[[ ${#isas[@]} -gt 0 ]] || isas=(avx512amx avx512vnni avxvnni)

mkdir -p "$TOOLS" "$BUILD"
install_packages
build_emulator
fetch_kernel
build_tests
failed=()
for isa in "${isas[@]}"; do
  say "$isa: booting"
  make_image "$isa"
  if ! boot "$isa" || ! judge "$isa"; then failed+=("$isa"); fi
done
[[ ${#failed[@]} -eq 0 ]] || { say "failed: ${failed[*]}"; exit 1; }
say "passed: ${isas[*]}"
