#!/bin/busybox sh
# The first and only process of the emulated machine that run.sh starts: it names the CPU, runs the test programs of /tests and says
# how each ended, on the serial line that run.sh reads. The kernel calls it; /isa holds the name of the instruction set under test.
PATH=/bin
/bin/busybox --install -s /bin
mount -t devtmpfs none /dev
mount -t proc none /proc
exec </dev/null >/dev/ttyS0 2>&1
stty -onlcr </dev/ttyS0

isa=$(cat /isa)
echo "kernel: $(uname -r)"
echo "CPU: $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo)"
echo "flags: $(sed -n 's/^flags[^:]*: //p' /proc/cpuinfo | tr ' ' '\n' | grep -E '^(amx|avx|fma|f16c)' | tr '\n' ' ')"
for test in /tests/*; do
  name=${test##*/}
  echo "== $name"
  "$test" --gtest_color=no --gtest_filter="$(cat "/filters/$name")" </dev/null
  echo "== $name: exit status $?"
done
echo "== all done: $isa"
sleep 1000000
