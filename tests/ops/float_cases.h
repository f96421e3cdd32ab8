// Cases of the floating-point operations and what runs them: random inputs from a seed, a paged KV
// cache, one set of functions per instruction set. One table for parity tests, behaviour tests and
// the benchmark.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/cpu/op_table.h"
#include "kernels/cpu/workspace.h"

namespace qserve::kernels::testing {

// The six operations of one instruction set.
struct FloatOps {
  std::string name;
  bool present = true;  // on this machine
  decltype(cpu::OpTable::embed) embed = nullptr;
  decltype(cpu::OpTable::norm) norm = nullptr;
  decltype(cpu::OpTable::rope_append) rope_append = nullptr;
  decltype(cpu::OpTable::attention) attention = nullptr;
  decltype(cpu::OpTable::silu_mul) silu_mul = nullptr;
  decltype(cpu::OpTable::sample) sample = nullptr;
};
FloatOps ReferenceOps();
// emulated, and of every table of this architecture whose floating-point operations differ.
std::vector<FloatOps> FastOps();

// Threads and scratch for calling operations directly.
struct Rig {
  explicit Rig(int threads) : pool(threads), workspace(threads), context{pool, workspace} {}
  cpu::ThreadPool pool;
  cpu::Workspace workspace;
  cpu::OpContext context;
};

// Numbers of a counter-based generator: roughly normal with the given deviation.
std::vector<float> RandomFloats(int64_t count, uint64_t seed, float deviation = 1.0f);

// Output of an operation: floats, int8 rows, or both. Everything starts as a pattern, so that stray
// writes show.
struct Output {
  Output(int64_t rows, int64_t cols, bool floats, bool codes, int64_t lead = 0);
  bool operator==(const Output& other) const;  // to the bit
  std::vector<float> f32;
  std::vector<int8_t> memory;  // q lies inside, aligned
  std::vector<float> scale;
  std::vector<int32_t> row_sum;
  Activation view;
  Output(const Output&) = delete;
};

// Rows [first_position, first_position + row_count) of a sequence whose earlier positions are
// already stored.
struct SequenceShape {
  int64_t first_position = 0;
  int64_t row_count = 1;
};

struct AttentionCase {
  int heads = 4;
  int kv_heads = 2;
  int head_dim = 64;
  KvFormat format = KvFormat::kInt4;
  int64_t window = 0;
  bool qk_norm = false;
  std::vector<SequenceShape> sequences;
  std::string Name() const;
};
const char* FormatName(KvFormat format);
// All head sizes and formats, MHA to MQA, windows, ragged sequences around tile and chunk edges.
const std::vector<AttentionCase>& AttentionCases();

// A KV cache of one layer and the block tables of some sequences, whose q|k|v rows are drawn from a
// seed by sequence and position, so that the same token has the same row however it is scheduled.
// Pages are given out in a scrambled order, unused memory is 0xff bytes (NaN scales), as a hostile
// predecessor might leave it.
class KvWorld {
 public:
  KvWorld(const AttentionCase& shape, int64_t positions, uint64_t page_seed = 1);

  struct Step {
    std::vector<float> qkv;
    std::vector<SequenceSpan> spans;
    int64_t rows = 0;
  };
  // Rows of several sequences in one step; sequence i of the case draws the numbers of sequence
  // ids[i] (or i).
  Step MakeStep(const std::vector<SequenceShape>& sequences,
                const std::vector<int>& ids = {}) const;
  // Rotates and stores a step's rows. qk_norm as the case says.
  Status Append(const FloatOps& ops, Rig& rig, Step& step);
  Status Attend(const FloatOps& ops, Rig& rig, const Step& step, const Activation& out) const;
  // Stores positions [0, first_position) of each sequence by the reference.
  void StoreHistory(const std::vector<SequenceShape>& sequences, const std::vector<int>& ids = {});

  int64_t row_width() const {
    return int64_t{shape_.heads + 2 * shape_.kv_heads} * shape_.head_dim;
  }
  int64_t out_width() const { return int64_t{shape_.heads} * shape_.head_dim; }
  const std::vector<uint8_t>& pages() const { return pages_; }
  KvLayer layer() const;
  const AttentionCase& shape() const { return shape_; }
  KvShape kv() const { return {shape_.format, shape_.kv_heads, shape_.head_dim}; }
  const std::vector<int32_t>& block_table(int sequence) const {
    return tables_[static_cast<size_t>(sequence)];
  }
  float scale() const;

 private:
  AttentionCase shape_;
  int64_t page_bytes_;
  std::vector<std::vector<int32_t>> tables_;
  std::vector<uint8_t> pages_;
  std::vector<float> cos_sin_;
  std::vector<float> q_gain_, k_gain_;
};

}  // namespace qserve::kernels::testing
