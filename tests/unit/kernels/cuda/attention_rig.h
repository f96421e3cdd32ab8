// For tests of the GPU's attention: a KV cache in the GPU's layout beside KvWorld's, and whole
// steps (plan, launches, merging) in the emulator.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/device/simt.h"
#include "kernels/cuda/emulator/emulator.h"
#include "tests/ops/float_cases.h"

namespace qserve::kernels::cuda::testing {

using ::qserve::kernels::testing::AttentionCase;
using ::qserve::kernels::testing::KvWorld;
using ::qserve::kernels::testing::Output;
using ::qserve::kernels::testing::SequenceShape;

// One position's key or value of one kv head, as stored.
struct StoredVector {
  std::vector<float> codes;  // or the values of fp16
  float scale = 0;
  float minimum = 0;
  bool operator==(const StoredVector& other) const = default;
};
StoredVector ReadCpu(const KvWorld& world, int32_t page, int kv_head, int slot, bool is_value);

// fp16 or bf16 rows, aligned as device memory is.
struct HalfRows {
  HalfRows(const std::vector<float>& values, int64_t row_count, FloatType element);
  std::vector<float> Floats() const;
  FloatMatrix Matrix() const;
  std::vector<Vec16> memory;
  int64_t rows;
  int64_t cols;
  FloatType type;
};
// Rounds a step's rows to the type, so that CPU and GPU are given the same numbers.
void RoundRows(FloatType type, KvWorld::Step* step);

struct StepOptions {
  AttentionDevice device = {.multiprocessors = 2};  // more of them: more splitting
  uint64_t order_seed = 0;
  int64_t rows = 0;  // of the bucket; 0: those of the step
  int blocks = 0;    // of the grid; 0: as planned
};

class GpuWorld {
 public:
  // Pages have KvWorld's numbers and its content, in the GPU's layout; unused memory is 0xff.
  explicit GpuWorld(const KvWorld& world);

  AttentionModel model() const;
  // Takes over what KvWorld has stored.
  void CopyPages();
  void Append(const KvWorld::Step& step, const HalfRows& qkv, const StepOptions& options = {});
  // `q`: rows of q|k|v, rotated.
  void Attend(const KvWorld::Step& step, const HalfRows& qkv, const Activation& out,
              const StepOptions& options = {});
  StoredVector Read(int32_t page, int kv_head, int slot, bool is_value) const;
  const std::vector<Vec16>& memory() const { return pages_; }

 private:
  KvLayer layer() const;
  uint8_t* Head(int32_t page, int kv_head) const;

  const KvWorld& world_;
  const AttentionCase& shape_;
  int64_t page_bytes_;
  std::vector<Vec16> pages_;
  std::vector<float> cos_sin_, q_gain_, k_gain_;
};

}  // namespace qserve::kernels::cuda::testing
