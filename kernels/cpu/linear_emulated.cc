// The VNNI linears with every instruction written as a loop, 8 and 16 lanes wide: the templates,
// packing, blocking and indexing are the ones that serve, so that all but the intrinsics themselves
// is tested on any machine. Used by tests.
#include <cmath>
#include <cstring>

#include "kernels/cpu/amx_panel.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/linear_tile.h"
#include "kernels/quant/half.h"

namespace qserve::kernels::cpu::emulated {
namespace {

template <int kWidth>
struct Vnni {
  struct Int {
    uint32_t lane[kWidth];
  };
  struct Float {
    float lane[kWidth];
  };
  static constexpr int kLanes = kWidth;
  static constexpr int kChunkBlocks = kGroupBlocks;
  static constexpr bool kBiased8 = true;

  template <class Make>
  static Int Each(Make make) {
    Int result;
    for (int i = 0; i < kWidth; ++i) result.lane[i] = make(i);
    return result;
  }
  template <class Make>
  static Float EachFloat(Make make) {
    Float result;
    for (int i = 0; i < kWidth; ++i) result.lane[i] = make(i);
    return result;
  }
  static uint32_t Byte(uint32_t lane, int j) { return lane >> (8 * j) & 0xffu; }

  static Int LoadInt(const void* from) {
    Int result;
    std::memcpy(&result, from, sizeof(result));
    return result;
  }
  // 16 lanes: a block of either panel; 8 lanes: the halves of one block.
  static Int Load(const uint8_t* block, int64_t panel_bytes, int index) {
    return LoadInt(block + (kWidth == 16 ? index * panel_bytes : index * 32));
  }
  static void Store(uint8_t* block, int64_t panel_bytes, int index, const Int& value) {
    std::memcpy(block + (kWidth == 16 ? index * panel_bytes : index * 32), &value, sizeof(value));
  }
  static void Prefetch(const uint8_t* /*block*/, int64_t /*panel_bytes*/) {}
  static Int Low(Int v) {
    return Each([&](int i) { return v.lane[i] & 0x0f0f0f0fu; });
  }
  static Int High(Int v) {
    return Each([&](int i) { return v.lane[i] >> 4 & 0x0f0f0f0fu; });
  }
  static Int Broadcast(const int8_t* x) {
    uint32_t four;
    std::memcpy(&four, x, sizeof(four));
    return Each([&](int) { return four; });
  }
  static Int Dot(Int acc, Int codes, Int x) {
    return Each([&](int i) {
      uint32_t sum = acc.lane[i];
      for (int j = 0; j < 4; ++j) {
        sum +=
            Byte(codes.lane[i], j) * static_cast<uint32_t>(static_cast<int8_t>(Byte(x.lane[i], j)));
      }
      return sum;
    });
  }
  static Int One() { return Int{}; }
  static Int Scale(const uint8_t* scales, int64_t scale_bytes, int index) {
    const uint8_t* from = scales + (kWidth == 16 ? index * scale_bytes : index * kWidth);
    return Each([&](int i) { return static_cast<uint32_t>(from[i]); });
  }
  static void Flush(int32_t* c, Int acc, Int scale, bool group) {
    const Int sum = LoadInt(c);
    const Int result =
        Each([&](int i) { return sum.lane[i] + acc.lane[i] * (group ? scale.lane[i] : 1u); });
    std::memcpy(c, &result, sizeof(result));
  }
  static void Flush8(int32_t* c, Int acc) { Flush(c, acc, acc, false); }
  using Codes8 = Int;
  static Codes8 Prepare8(Int codes) {
    return Each([&](int i) { return codes.lane[i] ^ 0x80808080u; });
  }
  static Int Dot8(Int acc, Codes8 w, Int x) { return Dot(acc, w, x); }

  static Float ToFloat(Int v) {
    return EachFloat([&](int i) { return static_cast<float>(static_cast<int32_t>(v.lane[i])); });
  }
  static Float LoadFloat(const float* from) {
    return EachFloat([&](int i) { return from[i]; });
  }
  static void StoreFloat(float* to, Float value) { std::memcpy(to, &value, sizeof(value)); }
  static Float BroadcastFloat(float value) {
    return EachFloat([&](int) { return value; });
  }
  static Float Mul(Float a, Float b) {
    return EachFloat([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  static Float Add(Float a, Float b) {
    return EachFloat([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static Float Sub(Float a, Float b) {
    return EachFloat([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  static Int BroadcastInt(int32_t value) {
    return Each([&](int) { return static_cast<uint32_t>(value); });
  }
  static Int AddInt(Int a, Int b) {
    return Each([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static Int AddPairs(Int acc, const int16_t* offsets, const int16_t* sums) {
    return Each([&](int i) {
      return acc.lane[i] +
             static_cast<uint32_t>(offsets[2 * i] * sums[0] + offsets[2 * i + 1] * sums[1]);
    });
  }
  static void GroupSums(const int8_t* x, int64_t groups, int16_t* sums) {
    for (int64_t g = 0; g < groups; ++g) {
      int sum = 0;
      for (int64_t k = 0; k < kWeightGroup; ++k) sum += x[g * kWeightGroup + k];
      sums[g] = static_cast<int16_t>(sum);
    }
  }
};

struct HalfLanes {
  struct Lanes {
    float lane[16];
  };
  static Lanes Zero() { return {}; }
  static Lanes LoadHalf(const uint16_t* from) {
    Lanes result;
    for (int i = 0; i < 16; ++i) result.lane[i] = HalfToFloat(from[i]);
    return result;
  }
  static void Prefetch(const uint16_t* /*from*/) {}
  static Lanes LoadFloat(const float* from) {
    Lanes result;
    std::memcpy(&result, from, sizeof(result));
    return result;
  }
  static Lanes MultiplyAdd(Lanes a, Lanes b, Lanes c) {
    for (int i = 0; i < 16; ++i) c.lane[i] = std::fma(a.lane[i], b.lane[i], c.lane[i]);
    return c;
  }
  static float Sum(Lanes v) {
    for (int width = 8; width > 0; width /= 2) {
      for (int i = 0; i < width; ++i) v.lane[i] += v.lane[i + width];
    }
    return v.lane[0];
  }
};

constexpr PanelKernels kKernels8 = MakePanelKernels<Vnni<8>, HalfLanes, 6, 6, 6>();
constexpr PanelKernels kKernels16 = MakePanelKernels<Vnni<16>, HalfLanes, 8, 8, 8>();

}  // namespace

Status LinearOf8Lanes(OpContext& context, const LinearArgs& args) {
  return LinearPanels(context, args, kKernels8);
}
Status LinearOf16Lanes(OpContext& context, const LinearArgs& args) {
  return LinearPanels(context, args, kKernels16);
}
void FinishPair(const EpilogueArgs& args) { Epilogue<Vnni<16>>(args); }

}  // namespace qserve::kernels::cpu::emulated
