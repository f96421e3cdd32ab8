// From a linear's launch to its kernel's parameters.
#include "kernels/cuda/linear.h"

#include "kernels/cuda/device/linear_launch.h"

namespace qserve::kernels::cuda {
namespace {

int TokensOf(LinearTile tile) {
  switch (tile) {
    case LinearTile::kD16:
      return 16;
    case LinearTile::kS32:
      return 32;
    case LinearTile::kS64:
      return 64;
    case LinearTile::kM128:
      return 128;
    case LinearTile::kL256:
      return 256;
  }
  return 0;
}

void SetWeight(const LinearLaunch& launch, LinearParams& p) {
  const GpuWeightLayout& layout = launch.layout;
  const auto* base = static_cast<const uint8_t*>(launch.weight);
  const auto floats = [base](int64_t offset) {
    return reinterpret_cast<const float*>(base + offset);
  };
  p.tiles = base + layout.tiles;
  if (layout.format == WeightFormat::kW4Group128) p.groups = base + layout.groups;
  if (TakesInt8(layout.format)) p.scale = floats(layout.scale);
  if (layout.format == WeightFormat::kW4PerChannel) p.scaled_zero = floats(layout.scaled_zero);
  if (layout.has_bias) p.bias = floats(layout.bias);
  p.n = static_cast<int32_t>(layout.n);
  p.row_tiles = static_cast<int32_t>(layout.row_tiles);
  p.k_tiles = static_cast<int32_t>(layout.k_tiles);
}

void SetActivation(const LinearLaunch& launch, LinearParams& p) {
  p.m = static_cast<int32_t>(launch.out.rows);
  if (TakesInt8(launch.layout.format)) {
    p.x = reinterpret_cast<const uint8_t*>(launch.x.q);
    p.x_units = static_cast<uint32_t>(launch.x.q_stride / 16);
    p.x_scale = launch.x.scale;
    p.x_row_sum = launch.x.row_sum;
  } else {
    p.x = static_cast<const uint8_t*>(launch.scratch);
    p.x_units = static_cast<uint32_t>(launch.layout.activation_bytes() / 16);
  }
}

void SetOutput(const LinearLaunch& launch, LinearParams& p) {
  p.out = launch.out.data;
  p.out_stride = launch.out.stride;
  p.out_type = launch.out.type;
  const int64_t four = 4 * BytesOf(launch.out.type);
  p.out_aligned =
      reinterpret_cast<uintptr_t>(launch.out.data) % static_cast<uintptr_t>(four) == 0 &&
      launch.out.stride % 4 == 0;
}

void SetGrid(const LinearLaunch& launch, LinearParams& p) {
  const LinearChoice& choice = launch.choice;
  p.row_blocks = choice.row_blocks;
  p.token_blocks = choice.token_blocks;
  p.token_group = choice.token_group;
  p.splits = choice.splits;
  p.split_k_tiles = p.k_tiles / choice.splits;
  p.longer_splits = p.k_tiles % choice.splits;
  if (choice.splits == 1) return;
  auto* sums = static_cast<uint8_t*>(launch.sums);
  p.arrivals = reinterpret_cast<uint32_t*>(sums);
  p.partial_sums = reinterpret_cast<int32_t*>(sums + LinearArrivalBytes(choice));
}

DeviceError RoundRows(StreamHandle stream, const LinearLaunch& launch) {
  HalfRowsParams p;
  p.x = launch.x.f32;
  p.x_stride = launch.x.f32_stride;
  p.columns = static_cast<int32_t>(launch.layout.k);
  p.rows = static_cast<int32_t>(launch.out.rows);
  p.out = static_cast<uint32_t*>(launch.scratch);
  p.row_words = static_cast<int32_t>(launch.layout.activation_bytes() / 4);
  return LaunchHalfRows(stream, p);
}

}  // namespace

DeviceError LaunchLinear(StreamHandle stream, const LinearLaunch& launch) {
  LinearParams params;
  SetWeight(launch, params);
  SetActivation(launch, params);
  SetOutput(launch, params);
  SetGrid(launch, params);
  const int tokens = TokensOf(launch.choice.tile);
  switch (launch.layout.format) {
    case WeightFormat::kW4Group128:
      return LaunchLinearW4Group(stream, tokens, params);
    case WeightFormat::kW4PerChannel:
      return LaunchLinearW4Channel(stream, tokens, params);
    case WeightFormat::kW8:
      return LaunchLinearW8(stream, tokens, params);
    default: {
      const DeviceError error = RoundRows(stream, launch);
      return error != 0 ? error : LaunchLinearHalf(stream, tokens, params);
    }
  }
}

}  // namespace qserve::kernels::cuda
