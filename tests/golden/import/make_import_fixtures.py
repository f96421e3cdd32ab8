"""Checkpoints as other programs write them, of small made-up models, for the tests of the importer: python3 make_import_fixtures.py.

Everything is written from the formats' definitions with the standard library alone, independently of the C++ code. `packed-*` are
what an import must give; the others hold the same weights in other forms.
"""

import json
import pathlib
import random
import struct

from torch_archive import Storage, Tensor, save

HERE = pathlib.Path(__file__).resolve().parent
HIDDEN, HEAD, VOCAB = 128, 32, 16


def config(hidden, quantization=None):
    base = {"architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "intermediate_size": hidden, "num_hidden_layers": 1,
            "num_attention_heads": hidden // HEAD, "num_key_value_heads": 1, "head_dim": HEAD, "vocab_size": VOCAB,
            "max_position_embeddings": 64, "tie_word_embeddings": False, "torch_dtype": "float16"}
    if quantization:
        base["quantization_config"] = quantization
    return base


def linears(hidden):
    block = "model.layers.0."
    return {block + "self_attn.q_proj": (hidden, hidden), block + "self_attn.k_proj": (HEAD, hidden),
            block + "self_attn.v_proj": (HEAD, hidden), block + "self_attn.o_proj": (hidden, hidden),
            block + "mlp.gate_proj": (hidden, hidden), block + "mlp.up_proj": (hidden, hidden),
            block + "mlp.down_proj": (hidden, hidden)}


def half(value):
    return struct.unpack("<e", struct.pack("<e", value))[0]


def halves(values):
    return struct.pack(f"<{len(values)}e", *values)


def clamp(value, low, high):
    return min(high, max(low, value))


class Rounded:
    """One linear in 4 bits. Groups: d8 = code * step - offset; rows: W = code * scale - szero."""

    def __init__(self, rng, n, k, group, post_scale):
        self.n, self.k, self.group, self.post_scale = n, k, group, post_scale
        weights = [[rng.gauss(0, 0.05) for _ in range(k)] for _ in range(n)]
        self.codes, self.scale, self.steps, self.zeros, self.szeros = [], [], [], [], []
        for row in weights:
            (self._group_row if group else self._plain_row)(row)

    def _group_row(self, row):
        limit = 119
        scale = half(max(abs(w) for w in row) / limit)
        self.scale.append(scale)
        codes, steps, zeros = [], [], []
        for g in range(0, self.k, 128):
            w8 = [clamp(w / scale, -limit, limit) for w in row[g:g + 128]]
            step = max(1, round((max(w8) - min(w8)) / 15))
            if self.post_scale:  # in units of int8, any integer
                zero = clamp(round(-min(w8)), 0, 127)
                codes += [clamp(round((w + zero) / step), 0, 15) for w in w8]
            else:  # a code
                zero = clamp(round(-min(w8) / step), 0, 15)
                codes += [clamp(round(w / step) + zero, 0, 15) for w in w8]
            steps.append(step)
            zeros.append(zero)
        self.codes.append(codes)
        self.steps.append(steps)
        self.zeros.append(zeros)

    def _plain_row(self, row):
        scale = half((max(row) - min(row)) / 15)
        if self.post_scale:
            szero = half(-min(row))
            self.zeros.append([szero])
        else:
            self.zeros.append([clamp(round(-min(row) / scale), 0, 15)])
            szero = half(self.zeros[-1][0] * scale)
        self.scale.append(scale)
        self.szeros.append(szero)
        self.codes.append([clamp(round((w + szero) / scale), 0, 15) for w in row])

    def offset(self, n, g):
        return self.zeros[n][g] if self.post_scale else self.zeros[n][g] * self.steps[n][g]

    def real(self, n, k):
        """The fake-quantized weight of DeepCompressor's model.pt."""
        if self.group:
            g = k // 128
            return (self.codes[n][k] * self.steps[n][g] - self.offset(n, g)) * self.scale[n]
        zero = self.zeros[n][0] if self.post_scale else self.zeros[n][0] * self.scale[n]
        return self.codes[n][k] * self.scale[n] - zero


def packed_codes(codes, n, k):
    """QServe's order by its closed formula: tiles of 32 x 32, rows n and n + 16 in one byte."""
    out = bytearray(n * k // 2)
    for row in range(n):
        for col in range(k):
            tile = row // 32 * (k // 32) + col // 32
            lane = row % 8 * 4 + col % 16 // 4
            byte = tile * 512 + lane * 16 + col % 32 // 16 * 8 + row % 16 // 8 * 4 + col % 4
            out[byte] |= codes[row][col] << (4 * (row % 32 // 16))
    return bytes(out)


def column_qserve(n):
    return n // 32 * 32 + n % 8 * 4 + n % 32 // 8


def column_deepcompressor(n):
    return n // 32 * 32 + n % 32 // 16 * 16 + n % 8 * 2 + n % 16 // 8


def packed_groups(values, n, groups, column):
    out = bytearray(n * groups)
    for row in range(n):
        for g in range(groups):
            out[g * n + column(row)] = values(row, g) % 256
    return bytes(out)


def packed(name, r, column=column_qserve):
    """name -> (dtype, shape, bytes) of one linear in QServe's layout."""
    tensors = {name + ".qweight": ("I8", (r.n, r.k // 2), packed_codes(r.codes, r.n, r.k)),
               name + ".s1_scales": ("F16", (r.n,), halves(r.scale))}
    if r.group:
        groups = r.k // 128
        tensors[name + ".s2_scales"] = ("I8", (groups, r.n), packed_groups(lambda n, g: r.steps[n][g], r.n, groups, column))
        tensors[name + ".s2_zeros"] = ("I8", (groups, r.n), packed_groups(lambda n, g: -r.offset(n, g), r.n, groups, column))
    else:
        tensors[name + ".s1_szeros"] = ("F16", (r.n,), halves(r.szeros))
    return tensors


def outside(rng, hidden):
    """Embedding, head and norms (folded: all ones)."""
    def table():
        return "F16", (VOCAB, hidden), halves([rng.gauss(0, 1) for _ in range(VOCAB * hidden)])
    ones = "F16", (hidden,), halves([1.0] * hidden)
    return {"model.embed_tokens.weight": table(), "lm_head.weight": table(), "model.norm.weight": ones,
            "model.layers.0.input_layernorm.weight": ones, "model.layers.0.post_attention_layernorm.weight": ones}


def place(form, file):
    """Where a file of a form's directory lies. Here is no directory of its own for each."""
    return HERE / f"{form}.{file}"


def write_config(form, contents):
    place(form, "config.json").write_text(json.dumps(contents, indent=1) + "\n")


def write_bin(form, contents, tensors, wide=False):
    write_config(form, contents)
    save(place(form, "pytorch_model.bin"),
         {name: Tensor(dtype, shape, data) for name, (dtype, shape, data) in tensors.items()}, wide=wide)


def write_safetensors(form, contents, tensors):
    header, data = {}, b""
    for name, (dtype, shape, values) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = json.dumps(header).encode()
    write_config(form, contents)
    place(form, "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


def write_deepcompressor(form, contents, rest, rounded, signed=False):
    """model.pt and scale.pt, which lie here as model.bin and scale.bin. `signed`: zeros of codes -8..7, as the older quantizer has them."""
    write_config(form, contents)
    model = {name: Tensor(*tensor) for name, tensor in rest.items()}
    scales = {}
    for name, r in rounded.items():
        weight = name + ".weight"
        real = [r.real(n, k) for n in range(r.n) for k in range(r.k)]
        if r.k == r.n:  # one form of linears lies transposed in its storage
            transposed = [r.real(n, k) for k in range(r.k) for n in range(r.n)]
            model[weight] = Tensor("F16", (r.n, r.k), None, strides=(1, r.n), storage=Storage("F16", halves(transposed)))
        else:
            model[weight] = Tensor("F16", (r.n, r.k), halves(real))
        groups = r.k // 128 if r.group else 1
        scales[weight + ".scale.0"] = Tensor("F16", (r.n, 1, 1, 1), halves(r.scale))
        zeros = [z - 8 * signed for row in r.zeros for z in row]
        if r.group:
            scales[weight + ".scale.1"] = Tensor("I8", (r.n, 1, groups, 1), bytes(s for row in r.steps for s in row))
            data = ("I8", (r.n, 1, groups, 1), struct.pack(f"<{len(zeros)}b", *zeros))
        else:
            data = ("F16", (r.n, 1, 1, 1), halves(zeros))
        scales[weight + (".scaled_zero" if r.post_scale else ".zero")] = Tensor(*data)
    save(place(form, "model.bin"), model, folder="model")
    save(place(form, "scale.bin"), scales, folder="scale")


def make_g128():
    rng = random.Random(1)
    rest = outside(rng, HIDDEN)
    for label, post_scale in (("prescale", False), ("postscale", True)):
        rounded = {name: Rounded(rng, n, k, True, post_scale) for name, (n, k) in linears(HIDDEN).items()}
        all_packed = dict(rest)
        for name, r in rounded.items():
            all_packed.update(packed(name, r))
        write_bin(f"packed-g128-{label}", config(HIDDEN), all_packed, wide=post_scale)
        if post_scale:
            other = {**rest, **{k: v for name, r in rounded.items() for k, v in packed(name, r, column_deepcompressor).items()}}
            write_safetensors("deepcompressor-columns", config(HIDDEN), other)
            write_deepcompressor("deepcompressor-g128", config(HIDDEN), rest, rounded)


def make_gchn():
    rng = random.Random(2)
    rest = outside(rng, HEAD)
    for label, post_scale in (("prescale", False), ("postscale", True)):
        rounded = {name: Rounded(rng, n, k, False, post_scale) for name, (n, k) in linears(HEAD).items()}
        write_bin(f"packed-gchn-{label}", config(HEAD),
                  {**rest, **{k: v for name, r in rounded.items() for k, v in packed(name, r).items()}})
        write_deepcompressor(f"deepcompressor-gchn-{label}", config(HEAD), rest, rounded, signed=not post_scale)


def signed_pack(rows):
    """Signed 4-bit values, eight a 32-bit word, 8 higher, the first in the lowest bits."""
    words = []
    for row in rows:
        for k in range(0, len(row), 8):
            words.append(sum((row[k + i] + 8) << (4 * i) for i in range(8)))
    return struct.pack(f"<{len(words)}I", *words)


def make_compressed_tensors():
    rng = random.Random(3)
    rest = outside(rng, HEAD)
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "channel", "group_size": None, "dynamic": False}
    inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    quantization = {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
                    "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}}}
    packed_words, plain, expected = dict(rest), dict(rest), dict(rest)
    for name, (n, k) in linears(HEAD).items():
        r = Rounded(rng, n, k, False, False)
        signed = [[c - 8 for c in row] for row in r.codes]
        r.szeros = [8 * s for s in r.scale]
        scales = ("F16", (n, 1), halves(r.scale))
        packed_words[name + ".weight_packed"] = ("I32", (n, k // 8), signed_pack(signed))
        packed_words[name + ".weight_shape"] = ("I32", (2,), struct.pack("<2i", n, k))
        plain[name + ".weight"] = ("I8", (n, k), struct.pack(f"<{n * k}b", *[v for row in signed for v in row]))
        packed_words[name + ".weight_scale"] = plain[name + ".weight_scale"] = scales
        expected.update(packed(name, r))
    write_safetensors("compressed-tensors", config(HEAD, quantization), packed_words)
    write_safetensors("compressed-tensors-int8", config(HEAD, quantization), plain)
    write_bin("packed-compressed-tensors", config(HEAD), expected)


if __name__ == "__main__":
    make_g128()
    make_gchn()
    make_compressed_tensors()
