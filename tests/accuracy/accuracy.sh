#!/usr/bin/env bash
# The tables of docs/ACCURACY.md, row after row: quantizes, measures, prints a line of Markdown. By hand; a row takes about a minute of two
# cores.
#
#   tests/accuracy/accuracy.sh BUILD_DIR MODEL_DIR WORK_DIR recipes|steps|smoothing|clipping|choices|seeds|outliers [PATTERN]
#
# Only the rows whose short name (the first word of `row`) matches PATTERN, a regular expression, are made; without one all are.
# MODEL_DIR has calibration.txt and heldout.txt beside the model, as the demo model has. WORK_DIR keeps what the next call can use again:
# full precision's perplexity, models with outliers, the last row's checkpoint.
set -euo pipefail

usage() { sed -n '2,10p' "$0"; exit 2; }
[[ $# -eq 4 || $# -eq 5 ]] || usage
readonly BIN="$1/bin" MODEL="$2" WORK="$3" WHAT="$4" PATTERN="${5:-.}"
readonly TEXT="$MODEL/heldout.txt" CALIBRATION="$MODEL/calibration.txt"

# measure MODEL FLAGS...: JSON.
measure() {
  local model="$1"
  shift
  "$BIN/qserve-quantize" eval --model "$model" --text "$TEXT" --max-tokens 20000 --sequence-length 1024 --no-layers --log-level warn \
    --json - "$@"
}

# line TITLE FULL.json ROW.json
line() {
  python3 - "$@" << 'EOF'
import json, sys
full, row = (json.load(open(path))["rows"][-1] for path in sys.argv[2:])
print("| {} | {:.3f} | {:+.2f} % | {:.4f} |".format(
    sys.argv[1], row["perplexity"], 100 * (row["perplexity"] / full["perplexity"] - 1), row["kl_divergence"]))
EOF
}

# Flags of eval for the rows that follow.
served=()

# row NAME TITLE SOURCE FLAGS...: a SOURCE that is not there is the model with outliers of that kind and factor.
row() {
  local name="$1" title="$2" source="$3"
  shift 3
  [[ "$name" =~ $PATTERN ]] || return 0
  local outlier="${source##*/}"
  [[ -d "$source" ]] ||
    "$BIN/qserve-make-outliers" --model "$MODEL" --output "$source" --kind "${outlier%-*}" --factor "${outlier##*-}" --text "$CALIBRATION"
  local full="$WORK/full-$(basename "$source").json"
  [[ -s "$full" ]] || { measure "$source" --settings w16a16kv16 > "$full.part" && mv "$full.part" "$full"; }
  local made
  made="$(stat -c %y "$BIN/qserve-quantize" "$source/config.json") $source $*"
  if [[ "$made" != "$(cat "$WORK/row/made" 2> /dev/null)" ]]; then
    rm -rf "$WORK/row"
    "$BIN/qserve-quantize" --model "$source" --output "$WORK/row" --calibration "$CALIBRATION" --log-level warn "$@"
    printf '%s' "$made" > "$WORK/row/made"
  fi
  measure "$WORK/row" --reference "$source" --settings served ${served[@]+"${served[@]}"} > "$WORK/row.json"
  line "$title" "$full" "$WORK/row.json"
}

recipes() {
  local recipe
  for recipe in rtn-g128 rtn-gchn qoq-g128 qoq-gchn; do row "$recipe" "\`$recipe\`" "$MODEL" --recipe "$recipe"; done
}

# Each row adds to the one above.
steps() {
  local -A switches=([rotation]=off [clip-search]=off [free-zero]=off [gptq-sweeps]=0 [int8-inputs]=off [correction]=0
    [smooth-attention]=off [smooth-attention-search]=off [value-transform]=none [smooth-down]=off [smooth-down-search]=off
    [calibration-samples]=32)
  # add NAME TITLE SWITCH=VALUE...
  add() {
    local name="$1" title="$2" switch flags=()
    shift 2
    for switch in "$@"; do switches["${switch%=*}"]="${switch#*=}"; done
    for switch in "${!switches[@]}"; do flags+=("--$switch" "${switches[$switch]}"); done
    row "$name" "$title" "$MODEL" --recipe qoq-g128 "${flags[@]}"
  }
  add gptq "GPTQ, g128, scales of round to nearest"
  add rotation "+ rotation of the residual stream" rotation=on
  add search "+ search of scales, clipping and free zeros" clip-search=on free-zero=on
  add sweeps "+ moments of inputs as int8 has them, 3 sweeps of coordinate descent" gptq-sweeps=3 int8-inputs=on
  add correction "+ correction of what earlier rounding did to the inputs" correction=1
  add attention "+ SmoothAttention, alpha 0.5" smooth-attention=on
  add values "+ Hadamard matrix on the value heads" value-transform=hadamard
  add alpha "+ alpha searched for each head" smooth-attention-search=on
  add down "+ smoothing of down_proj where it saves errors (\`qoq-g128 --calibration-samples 32\`)" smooth-down=on \
    smooth-down-search=on
}

smoothing() {
  local recipe switches
  for switches in "--smooth-down off" "--smooth-down-search off" "--smooth-o on --smooth-o-search on" "--smooth-o on"; do
    for recipe in qoq-g128 qoq-gchn; do
      # shellcheck disable=SC2086  # several words
      row "$recipe${switches// /}" "\`$recipe $switches\`" "$MODEL" --recipe "$recipe" $switches
    done
  done
}

clipping() {
  local recipe
  for recipe in qoq-g128 qoq-gchn; do
    row "clip-$recipe" "\`$recipe --clip-attention on\`" "$MODEL" --recipe "$recipe" --clip-attention on
  done
}

choices() {
  row balanced "\`--value-transform balanced\`" "$MODEL" --recipe qoq-g128 --value-transform balanced
  row reorder "\`--reorder on\`" "$MODEL" --recipe qoq-g128 --reorder on
  row damping "\`--gptq-damping 0.003\`" "$MODEL" --recipe qoq-g128 --gptq-damping 0.003
  served=(--lm-head-dtype fp16)
  row head-fp16 "lm_head served in fp16" "$MODEL" --recipe qoq-g128
  served=(--lm-head-dtype int4)
  row head-int4 "lm_head served in int4" "$MODEL" --recipe qoq-g128
  served=(--kv-cache-dtype fp32)
  row kv-fp32 "keys and values served in fp32" "$MODEL" --recipe qoq-g128
  row kv-fp32-rtn "keys and values served in fp32, \`rtn-g128\`" "$MODEL" --recipe rtn-g128
  served=()
}

# Chance: the random signs of the rotation (0: none).
seeds() {
  local recipe seed
  for recipe in qoq-g128 qoq-gchn; do
    for seed in 1 2 3; do
      row "$recipe-$seed" "\`$recipe --rotation-seed $seed\`" "$MODEL" --recipe "$recipe" --rotation-seed "$seed"
    done
  done
}

outliers() {
  local outlier
  for outlier in keys-20 down-30 residual-1 key-bias-20; do
    row "$outlier-rtn" "$outlier, \`rtn-g128\`" "$WORK/$outlier" --recipe rtn-g128
    row "$outlier-qoq" "$outlier, \`qoq-g128\`" "$WORK/$outlier" --recipe qoq-g128 --calibration-samples 16
  done
  row down-30-none "down-30, \`qoq-g128 --smooth-down off\`" "$WORK/down-30" --recipe qoq-g128 --calibration-samples 16 \
    --smooth-down off
}

mkdir -p "$WORK"
case "$WHAT" in
  recipes | steps | smoothing | clipping | choices | seeds | outliers) "$WHAT" ;;
  *) usage ;;
esac
