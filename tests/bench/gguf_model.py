#!/usr/bin/env python3
"""Writes a GGUF file of a model's shape with random Q4_0 weights, for llama.cpp's benchmarks; called by peers.sh.

usage: gguf_model.py CONFIG.json OUTPUT.gguf

CONFIG.json is the one that `qserve-bench make-model` wrote, so the shapes are the same by construction. Every matrix is Q4_0, the
output head too; blocks share one scale, codes are random. No tokenizer is in it: what reads it must feed tokens.
"""

import json
import pathlib
import random
import struct
import sys
from collections.abc import Iterator

BLOCK, BLOCK_BYTES = 32, 18  # Q4_0: 32 codes of 4 bits behind one fp16 scale
F32, Q4_0 = 0, 2  # ggml's numbers of tensor types
ALIGNMENT = 32
PIECE = 64 << 20
DEVIATION = 0.02  # of the weights; 4.61 is that of uniform codes of 4 bits
SCALE = struct.pack("<e", DEVIATION / 4.61)

Tensor = tuple[str, tuple[int, ...], int]  # name, dimensions from the fastest, type


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str, value: int | float | str) -> bytes:
    """One key and value of the header."""
    if isinstance(value, str):
        return text(key) + struct.pack("<I", 8) + text(value)
    if isinstance(value, float):
        return text(key) + struct.pack("<If", 6, value)
    return text(key) + struct.pack("<II", 4, value)


def header_entries(config: dict) -> list[bytes]:
    kind = config["model_type"]
    values: dict[str, int | float] = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.freq_base": float(config["rope_theta"]),
        "rope.dimension_count": config["head_dim"],
        "vocab_size": config["vocab_size"],
    }
    entries = [entry("general.architecture", kind), entry("general.file_type", 2), entry("tokenizer.ggml.model", "no_vocab")]
    return entries + [entry(f"{kind}.{key}", value) for key, value in values.items()]


def tensors(config: dict) -> Iterator[Tensor]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    yield "token_embd.weight", (hidden, config["vocab_size"]), Q4_0
    if "rope_scaling" in config:
        yield "rope_freqs.weight", (config["head_dim"] // 2,), F32
    for layer in range(config["num_hidden_layers"]):
        block = f"blk.{layer}."
        yield block + "attn_norm.weight", (hidden,), F32
        for name, rows in (("attn_q", queries), ("attn_k", keys), ("attn_v", keys)):
            yield f"{block}{name}.weight", (hidden, rows), Q4_0
            if config["model_type"] == "qwen2":
                yield f"{block}{name}.bias", (rows,), F32
        yield block + "attn_output.weight", (queries, hidden), Q4_0
        yield block + "ffn_norm.weight", (hidden,), F32
        for name, shape in (("ffn_gate", (hidden, inner)), ("ffn_up", (hidden, inner)), ("ffn_down", (inner, hidden))):
            yield f"{block}{name}.weight", shape, Q4_0
    yield "output_norm.weight", (hidden,), F32
    if not config["tie_word_embeddings"]:
        yield "output.weight", (hidden, config["vocab_size"]), Q4_0


def count(shape: tuple[int, ...]) -> int:
    return shape[0] * (shape[1] if len(shape) == 2 else 1)


def size(tensor: Tensor) -> int:
    _, shape, kind = tensor
    return count(shape) * 4 if kind == F32 else count(shape) // BLOCK * BLOCK_BYTES


def padded(length: int) -> int:
    return -(-length // ALIGNMENT) * ALIGNMENT


def contents(tensor: Tensor, source: random.Random) -> bytes:
    name, shape, kind = tensor
    if kind == F32:
        return struct.pack("<f", 0.0 if name.endswith("bias") else 1.0) * count(shape)
    data = bytearray()
    while len(data) < size(tensor):  # Python makes less than 256 MiB of random bytes at a time
        data += source.randbytes(min(PIECE, size(tensor) - len(data)))
    blocks = len(data) // BLOCK_BYTES
    data[0::BLOCK_BYTES] = SCALE[:1] * blocks
    data[1::BLOCK_BYTES] = SCALE[1:] * blocks
    return bytes(data)


def info(tensor: Tensor, offset: int) -> bytes:
    name, shape, kind = tensor
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def write(config: dict, path: pathlib.Path) -> None:
    """The file appears whole or not at all."""
    if config["model_type"] not in ("llama", "qwen2"):
        raise ValueError(f"no layout is known for {config['model_type']}")
    everything, entries = list(tensors(config)), header_entries(config)
    part = path.with_suffix(".part")
    source = random.Random(1)
    with part.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(everything), len(entries)) + b"".join(entries))
        offset = 0
        for tensor in everything:
            file.write(info(tensor, offset))
            offset += padded(size(tensor))
        file.write(bytes(padded(file.tell()) - file.tell()))
        for tensor in everything:
            file.write(contents(tensor, source))
            file.write(bytes(padded(size(tensor)) - size(tensor)))
    part.rename(path)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    write(json.loads(pathlib.Path(sys.argv[1]).read_text()), pathlib.Path(sys.argv[2]))
