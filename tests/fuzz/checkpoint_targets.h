// What is fuzzed of worker/checkpoint: each function takes any bytes and aborts the process if a
// promise of the reader is broken. Called by the libFuzzer programs and by checkpoint_fuzz_test.
#pragma once

#include <cstdint>
#include <span>

namespace qserve::fuzz {

// The bytes are a safetensors file.
void FuzzSafetensors(std::span<const uint8_t> bytes);

// The bytes are a config.json, a zero byte, and a generation_config.json.
void FuzzModelConfig(std::span<const uint8_t> bytes);

// The bytes are an archive of torch.save.
void FuzzTorchFile(std::span<const uint8_t> bytes);

// The bytes are the pickle of such an archive.
void FuzzPickledState(std::span<const uint8_t> bytes);

// The bytes are codes, scales and zeros of a packed weight of 32 x 128 in both schemes.
void FuzzPackedWeight(std::span<const uint8_t> bytes);

}  // namespace qserve::fuzz
