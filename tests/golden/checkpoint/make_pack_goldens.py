"""Writes pack.json: round-to-nearest quantization and QServe packing of two linears, computed independently of the C++ code.

The packing is by permutation of axes, as QServe's own converter does it; the C++ code uses closed index formulas. The weights are
those of the random model of tests/unit/quantizer (seed 1, hidden 128, intermediate 256): down_proj as it is, q_proj with the gain of
the norm before it folded in. Needs numpy: python3 make_pack_goldens.py > pack.json
"""

import json
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "models"))
from random_weights import random_tensor  # noqa: E402

HIDDEN, INTERMEDIATE, GROUP, SEED = 128, 256, 128, 1
F32 = np.float32


def half(values):
    return values.astype(np.float16).astype(F32)


def quantize_g128(weights):
    """codes [n][k], row scales [n], group scales and zeros [n][groups]."""
    n, k = weights.shape
    scale = np.maximum(half(np.abs(weights).max(axis=1) / F32(119)), F32(2.0**-24))
    level1 = np.clip(weights / scale[:, None], F32(-119), F32(119)).reshape(n, k // GROUP, GROUP)
    low = np.minimum(level1.min(axis=2), F32(0))
    high = np.maximum(level1.max(axis=2), F32(0))
    step = np.maximum(F32(1), np.rint((high - low) / F32(15)))
    zero = np.clip(np.rint(-low / step), 0, 15)
    codes = np.clip(np.rint(level1 / step[:, :, None]) + zero[:, :, None], 0, 15)
    return codes.reshape(n, k).astype(np.uint8), scale, step.astype(np.int64), zero.astype(np.int64)


def quantize_gchn(weights):
    """codes [n][k], row scales [n], scaled zeros [n]."""
    low = np.minimum(weights.min(axis=1), F32(0))
    high = np.maximum(weights.max(axis=1), F32(0))
    scale = np.maximum(half((high - low) / F32(15)), F32(2.0**-24))
    scaled_zero = half(np.clip(np.rint(-low / scale), F32(0), F32(15)) * scale)
    codes = np.clip(np.rint((weights + scaled_zero[:, None]) / scale[:, None]), 0, 15)
    return codes.astype(np.uint8), scale, scaled_zero


def pack_codes(codes):
    """Rows n and n + 16 share a byte; 16 bytes are what one lane of a tensor core instruction takes."""
    n, k = codes.shape
    tiles = codes.reshape(n // 32, 2, 2, 8, k // 32, 2, 4, 4).transpose(0, 4, 3, 6, 1, 5, 2, 7)
    pairs = tiles.transpose(0, 1, 2, 3, 5, 6, 7, 4).reshape(-1, 2)
    return pairs[:, 0] | pairs[:, 1] << 4


def pack_groups(values):
    """[n][groups] -> [groups][n], a (4, 8) -> (8, 4) transpose inside each 32 rows."""
    n, groups = values.shape
    return values.T.reshape(groups, n // 32, 4, 8).transpose(0, 1, 3, 2).reshape(groups, n)


def text(values, dtype):
    return np.ascontiguousarray(values).astype(dtype).tobytes().hex()


def linear(weights):
    codes, scale, step, zero = quantize_g128(weights)
    dequantized = (codes.reshape(step.shape + (GROUP,)).astype(np.int64) - zero[:, :, None]) * step[:, :, None]
    assert -128 <= dequantized.min() and dequantized.max() <= 127
    g128 = {"qweight": text(pack_codes(codes), np.uint8), "s1_scales": text(scale, np.float16),
            "s2_scales": text(pack_groups(step), np.uint8),
            "s2_zeros": text(pack_groups(-zero * step % 256), np.uint8)}
    codes, scale, scaled_zero = quantize_gchn(weights)
    gchn = {"qweight": text(pack_codes(codes), np.uint8), "s1_scales": text(scale, np.float16),
            "s1_szeros": text(scaled_zero, np.float16)}
    return {"rtn-g128": g128, "rtn-gchn": gchn}


def main():
    down, query = "model.layers.0.mlp.down_proj", "model.layers.0.self_attn.q_proj"
    down_weights = random_tensor(down + ".weight", (HIDDEN, INTERMEDIATE), SEED, F32(np.sqrt(3.0 / INTERMEDIATE)))
    query_weights = random_tensor(query + ".weight", (HIDDEN, HIDDEN), SEED, F32(np.sqrt(3.0 / HIDDEN)))
    gain = random_tensor("model.layers.0.input_layernorm.weight", (HIDDEN,), SEED, 0.1, 1.0)
    json.dump({down: linear(down_weights), query: linear(query_weights * gain)}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
