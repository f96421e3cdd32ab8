// The operations as worker/model calls them: shapes and formats are checked here, once for every
// backend, then the backend is called. A violation is latched in the backend as InvalidArgument or
// Unsupported and nothing runs: callers need no checks.
#pragma once

#include "kernels/backend.h"

namespace qserve::kernels::ops {

void Embed(Backend& backend, const EmbedArgs& args);
void Norm(Backend& backend, const NormArgs& args);
void Linear(Backend& backend, const LinearArgs& args);
void RopeAppend(Backend& backend, const RopeAppendArgs& args);
void Attention(Backend& backend, const AttentionArgs& args);
void SiluMul(Backend& backend, const SiluMulArgs& args);
void Sample(Backend& backend, const SampleArgs& args);

}  // namespace qserve::kernels::ops
