#!/usr/bin/env python3
"""Writes qserve_pack.txt: one g128 weight in canonical and in QServe's order, for tests/unit/kernels/qserve_pack_test.cc.

QServe's order is made here as its converters make it, by reshaping and permuting axes, and not by the closed formulas of
kernels/quant/qserve_pack.h: two derivations that must agree. Pure Python. Run: make_pack_goldens.py > qserve_pack.txt
"""
import itertools
import random

N, K, G = 64, 256, 128


def permute(flat, shape, perm):
    """Row-major `flat` of `shape`, its axes permuted, flattened again."""
    strides = [1] * len(shape)
    for i in range(len(shape) - 2, -1, -1):
        strides[i] = strides[i + 1] * shape[i + 1]
    out_shape = [shape[p] for p in perm]
    out_strides = [strides[p] for p in perm]
    out = [flat[sum(i * s for i, s in zip(index, out_strides))]
           for index in itertools.product(*[range(d) for d in out_shape])]
    return out, out_shape


def pack_codes(codes):
    """[N][K] codes -> bytes; rows n and n + 16 share a byte."""
    flat, shape = permute(codes, [N // 32, 2, 2, 8, K // 32, 2, 4, 4], [0, 4, 3, 6, 1, 5, 2, 7])
    flat, shape = permute(flat, shape, [0, 1, 2, 3, 5, 6, 7, 4])
    return [flat[2 * i] | flat[2 * i + 1] << 4 for i in range(len(flat) // 2)]


def pack_groups(values):
    """[N][K / G] -> [K / G][N], a (4, 8) -> (8, 4) transposition in each 32 rows."""
    flat, _ = permute(values, [N // 32, 4, 8, K // G], [3, 0, 2, 1])
    return flat


def main():
    rng = random.Random(20240507)
    scales, zeros, codes = [], [], [0] * (N * K)
    for n in range(N):
        for g in range(K // G):
            s, z = rng.randrange(1, 17), rng.randrange(16)
            low, high = max(0, z - 128 // s), min(15, z + 127 // s)
            for k in range(g * G, (g + 1) * G):
                codes[n * K + k] = rng.randint(low, high)
            scales.append(s)
            zeros.append(z)
    offsets = [-z * s for z, s in zip(zeros, scales)]
    for name, data in [
        ('codes', codes),
        ('group_scale', scales),
        ('zero', zeros),
        ('qweight', pack_codes(codes)),
        ('s2_scales', pack_groups(scales)),
        ('s2_zeros', pack_groups([o % 256 for o in offsets])),
    ]:
        print(name, bytes(data).hex())


if __name__ == '__main__':
    main()
