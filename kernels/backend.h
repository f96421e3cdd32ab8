// The device interface: memory, about eight operations and step recording. worker/model is written
// against it once; kernels/cpu, kernels/cuda and kernels/no_cuda implement it;
// kernels/device_factory chooses.
//
// Threads: one thread at a time uses a Backend (the executor's), but for Fail, which any may call.
// Operations run in the order of their calls, possibly after the call has returned (a stream);
// Synchronize waits. Errors: operations return void; the first failure is latched, later ones do
// nothing, and Run returns it. Zero rows are legal everywhere and do nothing. All pointers in
// arguments are device memory of this backend unless said otherwise; host structs are read during
// the call only, and within one step the same host array holds the same values. Call through
// kernels/ops.h, which checks shapes.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/quant/linear_weight.h"
#include "kernels/status.h"
#include "kernels/types.h"

namespace qserve::kernels {

class Backend;

// Owns device memory of a backend, which must outlive it. Zeroed at allocation; aligned to 64 bytes
// at least.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Backend* backend, void* data, int64_t bytes)
      : backend_(backend), data_(data), bytes_(bytes) {}
  Buffer(Buffer&& other) noexcept { Swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    Swap(other);
    return *this;
  }
  ~Buffer();
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  void Swap(Buffer& other) noexcept {
    std::swap(backend_, other.backend_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }
  Backend* backend_ = nullptr;
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

// A linear's weights in this backend's own order. Made by Backend::Pack, read only by the same
// backend.
class PackedLinear {
 public:
  virtual ~PackedLinear() = default;
  WeightFormat format = WeightFormat::kFloat;
  int64_t n = 0;
  int64_t k = 0;
  int64_t lead = 0;
  int64_t bytes = 0;  // device memory it holds
};

// Rows [begin, end) of one weight; all pieces agree in everything but their rows, and those without
// a bias beside ones with count as zero. Called on several threads at a time.
using RowReader = std::function<StatusOr<LinearWeight>(int64_t begin, int64_t end)>;

// Rows of a lookup table [vocabulary slice, hidden], floating point. Ids outside [first_id,
// first_id + rows) give zeros: the other tensor-parallel ranks have them.
struct EmbeddingTable {
  const void* data = nullptr;
  FloatType type = FloatType::kF16;
  int32_t first_id = 0;
  int64_t rows = 0;
  int64_t cols = 0;
};

struct EmbedArgs {
  EmbeddingTable table;
  std::span<const int32_t> token_ids;  // host; >= 0: the id; < 0: ~slot, the id last sampled for
                                       // that slot (device-side feedback)
  const int32_t* sampled_ids =
      nullptr;      // [slots], written by Sample or by a broadcast from the rank that samples
  FloatMatrix out;  // [tokens, hidden]; fp32 or the activation type
};

// residual[r] += delta[r] (skipped when delta.data is null), then out row i = residual[row_i] /
// rms(residual[row_i]) * gain, where rms(x) = sqrt(mean(x^2) + epsilon), without subtracting a
// mean. row_i = rows[i], or i when `rows` is empty (all rows). With `rows` given, the residual
// update still covers all rows.
struct NormArgs {
  FloatMatrix residual;         // in and out, [tokens, hidden], the activation type
  ConstFloatMatrix delta;       // [tokens, hidden] or null, likewise
  const float* gain = nullptr;  // [hidden]
  float epsilon = 0;
  std::span<const int32_t> rows;  // host
  Activation out;
};

// out[m][n] = epilogue of sum_k x[m][k] * W[n][k], plus bias. kW4PerChannel: scale_x[m] * (scale[n]
// * float(acc) - scaled_zero[n] * float(row_sum[m])); kW4Group128 and kW8: scale_x[m] * (scale[n] *
// float(acc)); acc exact in int32. fp32, no contraction, bias added last.
struct LinearArgs {
  const PackedLinear* weight = nullptr;
  Activation x;     // x.q for int8 formats, x.f32 for floating-point ones
  FloatMatrix out;  // [tokens, n]; fp32 or the activation type, rounded once
};

// Bytes of one page of one layer, keys and values: 2 * kv_heads * kKvPageTokens * (head_dim * bits
// / 8 + 4 if quantized).
int64_t KvPageBytes(const KvShape& shape);

// Consecutive rows of the step that belong to one sequence: rows [first_row, first_row + row_count)
// are its tokens at positions [first_position, ...). block_table: page of each 64 positions, host
// memory, covering every position up to the last row's.
struct SequenceSpan {
  int64_t first_row = 0;
  int64_t row_count = 0;
  int64_t first_position = 0;
  std::span<const int32_t> block_table;
};

// Per row: optional RMS norm of each q and k head (Qwen3), rotation of q (in place) and k by the
// row's position (halves form: channel i pairs with i + head_dim / 2), then k and v are quantized
// and stored in their page. Each k and v is written once.
struct RopeAppendArgs {
  FloatMatrix qkv;  // [tokens, (heads + 2 kv_heads) * head_dim], q|k|v; q is rotated in place, k
                    // and v are left undefined
  int heads = 0;
  KvShape kv;
  const float* cos_sin = nullptr;  // [positions, head_dim]: head_dim / 2 cosines, then as many
                                   // sines (scaling factors folded in)
  const float* q_gain = nullptr;   // [head_dim] or null
  const float* k_gain = nullptr;
  float qk_epsilon = 0;
  std::span<const SequenceSpan> sequences;  // host
  KvLayer layer;
};

// Causal attention of each row over its sequence's stored keys and values (its own included),
// softmax in fp32, scaled by `scale`. sliding_window > 0: a row at position p sees positions > p -
// sliding_window only. q head h reads kv head h / (heads / kv_heads). A row's bits depend on its q
// and the stored pages alone: tiles of 64 positions, chunks of 256, merged in order.
struct AttentionArgs {
  ConstFloatMatrix
      q;  // [tokens, heads * head_dim], rotated; may be the q columns of a wider matrix
  int heads = 0;
  KvShape kv;
  float scale = 0;
  int64_t sliding_window = 0;
  std::span<const SequenceSpan> sequences;  // host
  KvLayer layer;
  Activation out;  // [tokens, heads * head_dim]
};

// out = silu(gate) * up, silu(x) = x / (1 + exp(-x)); gate_up is [tokens, 2 * cols], gate first.
struct SiluMulArgs {
  ConstFloatMatrix gate_up;
  Activation out;
};

// How one row's next token is drawn. All of it is host memory, read during the call.
struct SampleRow {
  int32_t slot = 0;       // where the id is written
  float temperature = 1;  // 0: greedy (lowest id among equals)
  int32_t top_k = 0;      // 0: off
  float top_p = 1;        // 1: off
  float min_p = 0;        // 0: off
  float repetition_penalty =
      1;  // logits of every id in prompt or output: divided if positive, multiplied if negative
  float presence_penalty = 0;           // subtracted once for every id in the output
  float frequency_penalty = 0;          // subtracted for every occurrence in the output
  std::span<const int32_t> prompt_ids;  // given only when a penalty needs them
  std::span<const int32_t> output_ids;
  std::span<const int32_t> bias_ids;  // logit_bias
  std::span<const float> bias_values;
  std::span<const int32_t> banned_ids;  // end-of-sequence ids while min_tokens is not reached
  uint64_t seed = 0;                    // Philox key
  uint32_t candidate = 0;               // Philox counter: (vocabulary id / 4, position, candidate)
  uint32_t position = 0;  // index of the token to be drawn, counted from the start of the prompt
  int32_t logprobs = -1;  // -1: none; otherwise that many most likely ids besides the drawn one
};

struct TokenLogprob {
  int32_t id = 0;
  float logprob = 0;
};
struct SampledToken {
  int32_t slot = 0;
  int32_t id = 0;
  float logprob = 0;              // log-softmax of the raw logits, 0 if not asked for
  std::vector<TokenLogprob> top;  // most likely first, ties by lower id
};

// Draws a token for every row of `logits`. Order: raw log-probabilities are noted, then penalties,
// bias, bans, then temperature 0 takes the maximum, else logits / temperature, top_k, top_p
// (smallest set of most likely ids whose mass reaches top_p), min_p (mass >= min_p * largest), and
// the draw is the largest of logit - log(-log(u)), u = UniformOpen(Philox) per vocabulary id
// (Gumbel-max), so that it does not depend on how the vocabulary is cut. Ids >= vocab_size
// (padding) never win. NaN logits are a kDevice error of the step.
struct SampleArgs {
  Matrix<const float> logits;  // [rows, padded vocabulary]
  int32_t vocab_size = 0;
  std::span<const SampleRow> rows;
  int32_t* sampled_ids = nullptr;  // device [slots]
  std::vector<SampledToken>* results =
      nullptr;  // host; one per row, valid once the step is finished (Run, Finish, Synchronize);
                // must live until then
};

// Device memory held for one purpose.
struct MemoryUse {
  std::string purpose;
  int64_t bytes = 0;
};

struct DeviceInfo {
  std::string name;           // "AMD EPYC ..., 2 threads"
  std::string kernel_family;  // what decides numerics beyond the weights: part of numerics_id.
                              // "cpu" for every CPU ISA, "cpu-bf16" with linear_type bf16
  std::string isa;            // "reference", "avx2", ...; informative
  int64_t memory_bytes = 0;   // total
  FloatType activation_type = FloatType::kF32;  // of what passes between operations
  // Begin returns while the device computes, and steps can be recorded; false where everything runs
  // inside the call.
  bool asynchronous = false;
  // Its memory is the host's: a pointer to either may be given where the other is wanted.
  bool host_memory = false;
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual const DeviceInfo& info() const = 0;

  // Memory. `purpose` names the memory in the ledger. OutOfMemory says how much was asked.
  virtual StatusOr<Buffer> Allocate(int64_t bytes, std::string_view purpose) = 0;
  virtual void CopyToDevice(void* device, const void* host, int64_t bytes) = 0;
  virtual void CopyToHost(void* host, const void* device, int64_t bytes) = 0;  // waits
  virtual int64_t AvailableMemory() const = 0;  // bytes still to be had
  // What the memory is used for, the headroom left to others included; empty where nobody counts.
  virtual std::vector<MemoryUse> MemoryLedger() const { return {}; }

  // Binds one of the threads that compute to a processor, thread 0 being the caller's own and each
  // later one a thread of the backend's. kDevice if the system refuses. Does nothing where no
  // thread of the host computes.
  virtual Status BindThread(int /*thread*/, int /*processor*/) { return {}; }

  // Reorders a validated weight for this backend's kernels; the argument may be freed afterwards.
  virtual StatusOr<std::unique_ptr<PackedLinear>> Pack(const LinearWeight& weight) = 0;
  // The same for a weight of `rows` rows that is read while it is packed: pieces begin at
  // multiples of 32 rows, together cover all, and never exist all at once. Worth it where
  // PacksPieces says so; elsewhere the whole is read as one piece.
  virtual bool PacksPieces(WeightFormat /*format*/) const { return false; }
  virtual StatusOr<std::unique_ptr<PackedLinear>> PackPieces(int64_t rows,
                                                             const RowReader& read) {
    StatusOr<LinearWeight> whole = read(0, rows);
    return whole.ok() ? Pack(*whole) : StatusOr<std::unique_ptr<PackedLinear>>(whole.status());
  }

  virtual void Embed(const EmbedArgs& args) = 0;
  virtual void Norm(const NormArgs& args) = 0;
  virtual void Linear(const LinearArgs& args) = 0;
  virtual void RopeAppend(const RopeAppendArgs& args) = 0;
  virtual void Attention(const AttentionArgs& args) = 0;
  virtual void SiluMul(const SiluMulArgs& args) = 0;
  virtual void Sample(const SampleArgs& args) = 0;

  // Runs `step` (which calls operations), replaying a recording made under `key` where there is
  // one; returns the first failure and clears it. key 0: never recorded.
  virtual Status Run(uint64_t key, const std::function<void()>& step) = 0;

  // Run in two halves, so that a step can be prepared while the device computes the one before.
  // Begin returns what failed so far; a step that failed there needs no Finish. Finish waits for
  // the oldest step begun and returns what failed since. At most two steps may be begun and not
  // finished. Where nothing is asynchronous Begin is Run and Finish has nothing to do.
  virtual Status Begin(uint64_t key, const std::function<void()>& step) { return Run(key, step); }
  virtual Status Finish() { return {}; }

  // Runs `step` once and records it under `key` (not 0) up to EndRecorded, so that a later Run or
  // Begin with that key replays it with its own host arrays, of which none may be longer than here:
  // `step` is the largest of its kind. When a recording is replayed, `step` is still called, but
  // its operations up to EndRecorded only hand over their host arrays. Between steps only; the
  // memory that operations name must stay where it is. Does nothing where nothing is asynchronous.
  virtual Status Record(uint64_t /*key*/, const std::function<void()>& /*step*/) { return {}; }
  // Called by a step: from here on its work depends on more than the key and is never recorded.
  virtual void EndRecorded() {}

  // Copies to the host when the step has come so far; the bytes are there once it is finished, and
  // `host` must live until then. Inside a step, behind EndRecorded.
  virtual void ReadAtFinish(void* host, const void* device, int64_t bytes) {
    CopyToHost(host, device, bytes);
  }

  virtual void Synchronize() = 0;
  // Latches a failure from outside (ops.h, a communicator in stream order). The first one stays.
  virtual void Fail(Status status) = 0;

 protected:
  friend class Buffer;
  virtual void Free(void* data, int64_t bytes) = 0;
};

inline Buffer::~Buffer() {
  if (backend_ != nullptr && data_ != nullptr) backend_->Free(data_, bytes_);
}

}  // namespace qserve::kernels
