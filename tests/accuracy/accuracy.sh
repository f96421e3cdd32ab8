#!/usr/bin/env bash
# The tables of docs/ACCURACY.md, one row after the other: quantizes, measures, prints. By hand; a row takes a minute or two on two cores.
#
#   tests/accuracy/accuracy.sh BUILD_DIR MODEL_DIR WORK_DIR steps|smoothing|clipping|outliers [PATTERN]
#
# Only the rows whose name matches PATTERN, a regular expression, are made; without one all are.
# MODEL_DIR has calibration.txt and heldout.txt beside the model, as the demo model has.
set -euo pipefail

[[ $# -eq 4 || $# -eq 5 ]] || { sed -n '2,7p' "$0"; exit 2; }
readonly BIN="$1/bin" MODEL="$2" WORK="$3" WHAT="$4" PATTERN="${5:-.}"
readonly TEXT="$MODEL/heldout.txt" CALIBRATION="$MODEL/calibration.txt"

# evaluate NAME DIR REFERENCE
evaluate() {
  printf '== %s\n' "$1"
  "$BIN/qserve-quantize" eval --model "$2" --reference "$3" --text "$TEXT" --max-tokens 20000 --sequence-length 1024 --settings served --no-layers
}

# row NAME SOURCE FLAGS...
row() {
  local name="$1" source="$2"
  shift 2
  [[ "$name" =~ $PATTERN ]] || return 0
  rm -rf "$WORK/row"
  "$BIN/qserve-quantize" --model "$source" --output "$WORK/row" --calibration "$CALIBRATION" --log-level warn "$@"
  evaluate "$name" "$WORK/row" "$source"
}

readonly PLAIN=(--recipe qoq-g128 --calibration-samples 32 --rotation off --clip-search off --free-zero off --gptq-sweeps 0 --int8-inputs off
  --correction 0 --smooth-attention off --smooth-attention-search off --value-transform none)

steps() {
  row "rtn-g128" "$MODEL" --recipe rtn-g128
  row "rtn-gchn" "$MODEL" --recipe rtn-gchn
  row "GPTQ" "$MODEL" "${PLAIN[@]}"
  row "+ rotation" "$MODEL" "${PLAIN[@]}" --rotation on
  row "+ clip search, free zeros" "$MODEL" "${PLAIN[@]}" --rotation on --clip-search on --free-zero on
  row "+ sweeps, int8 inputs" "$MODEL" "${PLAIN[@]}" --rotation on --clip-search on --free-zero on --gptq-sweeps 3 --int8-inputs on
  row "+ correction" "$MODEL" --recipe qoq-g128 --calibration-samples 32 --smooth-attention off --smooth-attention-search off \
    --value-transform hadamard
  row "+ SmoothAttention, alpha 0.5" "$MODEL" --recipe qoq-g128 --calibration-samples 32 --smooth-attention-search off
  row "all of calibration.txt, alpha searched: qoq-g128" "$MODEL" --recipe qoq-g128
  row "the same: qoq-gchn" "$MODEL" --recipe qoq-gchn
}

# Against the row of steps with 32 windows and alpha searched, which is the first here.
smoothing() {
  row "32 windows" "$MODEL" --recipe qoq-g128 --calibration-samples 32
  row "smooth-o" "$MODEL" --recipe qoq-g128 --calibration-samples 32 --smooth-o on
  row "smooth-down" "$MODEL" --recipe qoq-g128 --calibration-samples 32 --smooth-down on
}

clipping() {
  local recipe
  for recipe in qoq-g128 qoq-gchn; do
    row "$recipe, 16 windows" "$MODEL" --recipe "$recipe" --calibration-samples 16
    row "$recipe, 16 windows, clip-attention" "$MODEL" --recipe "$recipe" --calibration-samples 16 --clip-attention on
  done
}

outliers() {
  local kind
  for kind in keys:20 down:30 residual:1 key-bias:20; do
    rm -rf "$WORK/outliers"
    "$BIN/qserve-make-outliers" --model "$MODEL" --output "$WORK/outliers" --kind "${kind%:*}" --factor "${kind#*:}" --text "$CALIBRATION"
    row "$kind, rtn-g128" "$WORK/outliers" --recipe rtn-g128
    row "$kind, qoq-g128" "$WORK/outliers" --recipe qoq-g128 --calibration-samples 16
  done
}

mkdir -p "$WORK"
case "$WHAT" in
  steps | smoothing | clipping | outliers) "$WHAT" ;;
  *) sed -n '2,7p' "$0"; exit 2 ;;
esac
