// Embedding, norm, SiLU * up and rotation over a table of inner loops: cuts the work and walks rows
// and pages. See float_run.h.
#include "kernels/cpu/float_run.h"

#include <vector>

#include "kernels/cpu/kv_page.h"
#include "kernels/cpu/workspace.h"

namespace qserve::kernels::cpu {
namespace {

// Row r's floats: in the activation if it wants them, else in the thread's scratch.
float* FloatRow(OpContext& context, const Activation& out, int64_t r, int thread) {
  if (out.f32 != nullptr) return out.f32 + r * out.f32_stride;
  return static_cast<float*>(
      context.workspace.PerThread(thread, static_cast<size_t>(out.cols) * sizeof(float)));
}

}  // namespace

Status RunEmbed(const FloatKernels& kernels, OpContext& context, const EmbedArgs& args) {
  const EmbeddingTable& table = args.table;
  const int64_t row_bytes = table.cols * (table.type == FloatType::kF32 ? 4 : 2);
  const auto body = [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      const int32_t given = args.token_ids[static_cast<size_t>(r)];
      const int64_t row = int64_t{given >= 0 ? given : args.sampled_ids[~given]} - table.first_id;
      if (row >= 0 && row < table.rows) {
        const auto* source = static_cast<const char*>(table.data) + row * row_bytes;
        kernels.embed_row(table.type, source, args.out.cols, args.out.row(r));
      } else {
        std::fill_n(args.out.row(r), args.out.cols, 0.0f);
      }
    }
  };
  context.pool.ParallelFor(args.out.rows, 1, body);
  return {};
}

Status RunNorm(const FloatKernels& kernels, OpContext& context, const NormArgs& args) {
  const int64_t cols = args.residual.cols;
  const bool add = args.delta.data != nullptr;
  const bool gather = !args.rows.empty();
  if (add && gather) {
    context.pool.ParallelFor(args.residual.rows, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r)
        kernels.add_row(args.residual.row(r), args.delta.row(r), cols);
    });
  }
  const auto body = [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t r = gather ? args.rows[static_cast<size_t>(i)] : i;
      if (add && !gather) kernels.add_row(args.residual.row(r), args.delta.row(r), cols);
      float* floats = FloatRow(context, args.out, i, thread);
      kernels.norm_row(args.residual.row(r), args.gain, args.epsilon, cols, floats);
      if (args.out.q != nullptr) kernels.quantize_row(floats, cols, TargetOf(args.out, i));
    }
  };
  context.pool.ParallelFor(args.out.rows, 1, body);
  return {};
}

Status RunSiluMul(const FloatKernels& kernels, OpContext& context, const SiluMulArgs& args) {
  const int64_t cols = args.out.cols;
  const auto body = [&](int64_t begin, int64_t end, int thread) {
    for (int64_t r = begin; r < end; ++r) {
      float* floats = FloatRow(context, args.out, r, thread);
      kernels.silu_row(args.gate_up.row(r), args.gate_up.row(r) + cols, cols, floats);
      if (args.out.q != nullptr) kernels.quantize_row(floats, cols, TargetOf(args.out, r));
    }
  };
  context.pool.ParallelFor(args.out.rows, 1, body);
  return {};
}

namespace {

// Rows of one sequence that lie in one page. A kv head of it is one thread's work, because codes of
// different positions share bytes.
struct PageRows {
  int64_t first_row;
  int64_t first_position;
  int64_t count;
  int32_t page;
};

std::vector<PageRows> CutByPage(std::span<const SequenceSpan> sequences) {
  std::vector<PageRows> parts;
  for (const SequenceSpan& s : sequences) {
    for (int64_t done = 0; done < s.row_count;) {
      const int64_t position = s.first_position + done;
      const int64_t count =
          std::min<int64_t>(s.row_count - done, kKvPageTokens - position % kKvPageTokens);
      parts.push_back({s.first_row + done, position, count,
                       s.block_table[static_cast<size_t>(position / kKvPageTokens)]});
      done += count;
    }
  }
  return parts;
}

}  // namespace

Status RunRopeAppend(const FloatKernels& kernels, OpContext& context, const RopeAppendArgs& args) {
  const std::vector<PageRows> parts = CutByPage(args.sequences);
  const int kv_heads = args.kv.kv_heads, dim = args.kv.head_dim, group = args.heads / kv_heads;
  const KvPageLayout layout(args.kv.format, dim);
  const auto body = [&](int64_t begin, int64_t end, int) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const PageRows& part = parts[static_cast<size_t>(unit / kv_heads)];
      const int kv_head = static_cast<int>(unit % kv_heads);
      uint8_t* head = KvHead(args.layer, layout, part.page, kv_head);
      for (int64_t i = 0; i < part.count; ++i) {
        const int64_t position = part.first_position + i;
        const float* cos_sin = args.cos_sin + position * dim;
        float* row = args.qkv.row(part.first_row + i);
        for (int h = kv_head * group; h < (kv_head + 1) * group; ++h) {
          kernels.rotate_head(row + h * dim, dim, args.q_gain, args.qk_epsilon, cos_sin);
        }
        float* key = row + (args.heads + kv_head) * dim;
        const int slot = static_cast<int>(position % kKvPageTokens);
        kernels.rotate_head(key, dim, args.k_gain, args.qk_epsilon, cos_sin);
        kernels.store_key(args.kv.format, key, dim, head, slot);
        kernels.store_value(args.kv.format, key + kv_heads * dim, dim, head, slot);
      }
    }
  };
  context.pool.ParallelFor(std::ssize(parts) * kv_heads, 1, body);
  return {};
}

}  // namespace qserve::kernels::cpu
