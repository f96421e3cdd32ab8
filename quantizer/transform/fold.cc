// See fold.h.
#include "quantizer/transform/fold.h"

namespace qserve::quantizer::transform {

void FoldNormGains(BlockWeights& block) {
  for (const LinearIndex i : {kQ, kK, kV}) block[i].weight *= block.input_gain.asDiagonal();
  for (const LinearIndex i : {kGate, kUp})
    block[i].weight *= block.post_attention_gain.asDiagonal();
  block.input_gain.setOnes();
  block.post_attention_gain.setOnes();
}

void RotateResidual(const Hadamard& rotation, BlockWeights& block, int threads) {
  for (const LinearIndex i : {kQ, kK, kV, kGate, kUp}) {
    rotation.ApplyToRows(block[i].weight, threads);
  }
  for (const LinearIndex i : {kO, kDown}) {
    rotation.ApplyToColumns(block[i].weight, threads);
    if (block[i].has_bias()) rotation.ApplyToVector(block[i].bias);
  }
}

}  // namespace qserve::quantizer::transform
