#!/usr/bin/env bash
# From a clean clone to a served model: sets up, builds, quantizes the demo model, starts one router and two replicas (one process and
# two tensor-parallel ones), streams a completion, and serves until Ctrl-C. Bare Debian 12, root or sudo. No GPU is needed.
#
#   deploy/quickstart.sh                  leave the cluster running until Ctrl-C
#   deploy/quickstart.sh --once           stop after the answer
#   deploy/quickstart.sh --prompt TEXT    another prompt
#
# Everything it makes is under build/: binaries in build/release/bin, the checkpoint and the logs in build/quickstart.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly MODEL=deploy/demo-model
readonly WORK=build/quickstart
readonly CHECKPOINT="$WORK/demo-qoq"
readonly BIN=build/release/bin
readonly TARGETS=(qserve-worker qserve-router qserve-quantize qserve)
readonly READY_SECONDS_MAX=120
readonly STOP_SECONDS_MAX=15

if [[ -t 1 ]]; then readonly BOLD=$'\033[1m' PLAIN=$'\033[0m'; else readonly BOLD="" PLAIN=""; fi
say() { printf '\n%s[quick start]%s %s\n' "$BOLD" "$PLAIN" "$*"; }
note() { printf '  %s\n' "$*"; }
die() { printf '\n[quick start] error: %s\n' "$*" >&2; exit 1; }

once=0
prompt="The SELECT statement is used to"
while [[ $# -gt 0 ]]; do
  case "$1" in
    --once) once=1 ;;
    --prompt) [[ $# -ge 2 ]] || die "--prompt needs a text"; prompt="$2"; shift ;;
    -h | --help) sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) die "unknown option '$1' (see --help)" ;;
  esac
  shift
done

# --- Processes -------------------------------------------------------------------------------------------------------------------

declare -A pid_of=()     # name -> process id
declare -A name_of=()    # process id -> name
declare -A command_of=() # name -> its command line, one argument a line
declare -A starts_of=()  # name -> times it was started

# Stops all children: first by SIGTERM, which they answer by draining, then by SIGKILL of their whole process groups.
stop_all() {
  local pid deadline=$((SECONDS + STOP_SECONDS_MAX))
  trap '' INT TERM
  for pid in "${pid_of[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
  for pid in "${pid_of[@]}"; do
    while kill -0 "$pid" 2>/dev/null && [[ $SECONDS -lt $deadline ]]; do sleep 0.1; done
    kill -KILL -- "-$pid" 2>/dev/null || true
  done
  wait 2>/dev/null || true
}
trap stop_all EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

show_log() {
  local log="$WORK/$1.log"
  printf '\n--- the end of %s ---\n' "$log" >&2
  tail -n 25 "$log" >&2 || true
  printf -- '---\n' >&2
}

# start NAME COMMAND...: in a process group of its own, so that Ctrl-C reaches only this script, which then stops them in order; the
# kernel ends the process when this script is killed.
start() {
  local name="$1"
  shift
  command_of[$name]=$(printf '%s\n' "$@")
  starts_of[$name]=$((${starts_of[$name]:-0} + 1))
  setsid setpriv --pdeathsig TERM "$@" >>"$WORK/$name.log" 2>&1 </dev/null &
  pid_of[$name]=$!
  name_of[$!]=$name
}

# wait_ready NAME ADDRESS: until the process answers, and no longer than that makes sense.
wait_ready() {
  local name="$1" address="$2" deadline=$((SECONDS + READY_SECONDS_MAX))
  until "$BIN/qserve" status --address "$address" >/dev/null 2>&1; do
    if ! kill -0 "${pid_of[$name]}" 2>/dev/null; then
      show_log "$name"
      die "$name ended while starting"
    fi
    if [[ $SECONDS -ge $deadline ]]; then
      show_log "$name"
      die "$name was not ready within $READY_SECONDS_MAX s"
    fi
    sleep 0.2
  done
  note "$name is ready at $address"
}

declare -A taken=()
# free_port PREFERRED COUNT: sets `port` to the first of COUNT consecutive ports that nobody listens on and this script did not give.
port=0
free_port() {
  local candidate="$1" count="$2" offset listening
  listening=$(ss -ltnH | awk '{ sub(/.*:/, "", $4); print $4 }')
  while [[ $((candidate + count)) -lt 65536 ]]; do
    for ((offset = 0; offset < count; offset++)); do
      port=$((candidate + offset))
      if [[ -n "${taken[$port]:-}" ]] || grep -qx "$port" <<<"$listening"; then break; fi
    done
    if [[ $offset -eq $count ]]; then
      for ((offset = 0; offset < count; offset++)); do taken[$((candidate + offset))]=1; done
      port=$candidate
      return 0
    fi
    candidate=$((port + 1))
  done
  die "no free port from $1 on"
}

# --- Steps -----------------------------------------------------------------------------------------------------------------------

build() {
  say "building (the first time takes minutes; later only what changed)"
  [[ -e build/release/build.ninja ]] || cmake --preset release
  cmake --build --preset release --target "${TARGETS[@]}"
}

quantize() {
  local source_id
  source_id=$( (find "$MODEL" -maxdepth 1 -type f -print0 | sort -z | xargs -0 sha256sum; sha256sum "$BIN/qserve-quantize") |
    sha256sum | cut -c 1-64)
  if [[ -d "$CHECKPOINT" && "$(cat "$WORK/demo-qoq.source" 2>/dev/null)" == "$source_id" ]]; then
    say "the quantized demo model is there: $CHECKPOINT"
    return 0
  fi
  say "quantizing the demo model to W4A8KV4: $CHECKPOINT"
  rm -rf "$CHECKPOINT" "$CHECKPOINT.partial"
  "$BIN/qserve-quantize" --model "$MODEL" --output "$CHECKPOINT.partial" --recipe rtn-g128
  mv "$CHECKPOINT.partial" "$CHECKPOINT"
  printf '%s\n' "$source_id" >"$WORK/demo-qoq.source"
}

# start_replica NAME TENSOR_PARALLEL PORT METRICS_PORT
start_replica() {
  local name="$1" degree="$2" address port_wanted="$3"
  free_port "$port_wanted" 1
  address="127.0.0.1:$port"
  free_port "$4" "$degree"  # rank r serves its metrics on port + r
  start "$name" "$BIN/qserve-worker" --model "$CHECKPOINT" --served-model-name demo --listen "$address" \
    --metrics-listen "127.0.0.1:$port" --tensor-parallel-size "$degree" --device cpu --log-level warn
  replica_address=$address
}

start_cluster() {
  local first second metrics
  say "starting two replicas and a router (logs in $WORK/)"
  rm -f "$WORK"/*.log
  start_replica replica-1 1 50051 9411
  first=$replica_address
  start_replica replica-2 2 50052 9421
  second=$replica_address
  free_port 9400 1
  metrics="127.0.0.1:$port"
  free_port 50050 1
  router_address="127.0.0.1:$port"
  start router "$BIN/qserve-router" --listen "$router_address" --workers "$first,$second" --metrics-listen "$metrics" --log-level warn
  wait_ready replica-1 "$first"
  wait_ready replica-2 "$second"
  wait_ready router "$router_address"
}

generate() {
  say "qserve generate --address $router_address --prompt \"$prompt\""
  if ! "$BIN/qserve" generate --address "$router_address" --prompt "$prompt" --max-tokens 64 --temperature 0.8; then
    show_log router
    die "no completion came back"
  fi
}

explain() {
  say "the cluster is up at $router_address; call it from another terminal:"
  cat <<TEXT

  qserve        $BIN/qserve chat --address $router_address
                $BIN/qserve status --address $router_address

  grpcurl       grpcurl -plaintext $router_address list
                grpcurl -plaintext -d '{"spec": {"model": "demo", "prompt": {"text": "A tuple is"}, "stopping": {"max_tokens": 32}}}' \\
                  $router_address qserve.v1.InferenceService/StreamGenerate

  Python        python3 -m venv $WORK/venv && $WORK/venv/bin/pip install grpcio grpcio-tools
                $WORK/venv/bin/python deploy/examples/client.py --address $router_address --prompt "A tuple is"

  Ctrl-C stops everything.
TEXT
}

# Prints the process that ended without `wait` saying which, if any.
first_ended() {
  local pid
  sleep 0.5
  for pid in "${pid_of[@]}"; do
    if ! kill -0 "$pid" 2>/dev/null; then
      printf '%s' "$pid"
      return 0
    fi
  done
}

# Starts a process that ended anew, as a service manager would; one that keeps ending stops the quick start.
supervise() {
  local ended name command
  while true; do
    ended=""
    wait -n -p ended "${pid_of[@]}" || true
    [[ -n "$ended" ]] || ended=$(first_ended)
    [[ -n "$ended" ]] || continue
    kill -KILL -- "-$ended" 2>/dev/null || true  # what it may have left behind
    name=${name_of[$ended]}
    if [[ ${starts_of[$name]} -ge 4 ]]; then
      show_log "$name"
      die "$name ended for the fourth time"
    fi
    say "$name ended; starting it again (its log: $WORK/$name.log)"
    sleep 1
    mapfile -t command <<<"${command_of[$name]}"
    start "$name" "${command[@]}"
  done
}

replica_address=""
router_address=""
mkdir -p "$WORK"
deploy/setup.sh
build
quantize
start_cluster
generate
if [[ $once -eq 1 ]]; then
  say "done; stopping"
  exit 0
fi
explain
trap 'say "stopping"; exit 0' INT TERM
supervise
