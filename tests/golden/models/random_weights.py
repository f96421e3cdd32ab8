"""Random weights as a pure function of (tensor name, element, seed): the twin of worker/checkpoint/random_weights.h.

bits  = Philox4x32-10(counter = [(i / 4) mod 2^32, (i / 4) / 2^32, fnv1a32(name), 0], key = [seed, 0])[i mod 4]
u(i)  = (bits >> 8) * 2^-23 - 1                 in [-1, 1), exact in fp32
value = offset + scale * u(i)                   in fp32, each operation rounded once

embedding: scale 1; weights [n][k] and lm_head: scale float32(sqrt(3 / k)); biases: scale 0.5; norm gains: scale 0.1, offset 1.
`state_dict(config, seed)` gives every tensor of a dense Llama, Mistral, Qwen2 or Qwen3 checkpoint by its Hugging Face name.
Needs numpy. Run as a program it prints the values that tests/unit/worker/checkpoint/random_weights_test.cc asserts.
"""

import numpy as np

BIASED_ARCHITECTURES = ("Qwen2ForCausalLM",)


def fnv1a32(text):
    value = 0x811C9DC5
    for byte in text.encode("utf-8"):
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value


def philox4x32(counter, key):
    """Philox4x32-10 of arrays: counter is four uint64 arrays that hold 32-bit words, key two integers; returns the same form."""
    low = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0 = np.uint64(0xD2511F53) * c0
        product1 = np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = ((product1 >> shift) ^ c1 ^ np.uint64(k0), product1 & low,
                          (product0 >> shift) ^ c3 ^ np.uint64(k1), product0 & low)
        k0 = (k0 + 0x9E3779B9) & 0xFFFFFFFF
        k1 = (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def words(name, seed, count):
    """The first `count` 32-bit words of a tensor's stream."""
    blocks = np.arange((count + 3) // 4, dtype=np.uint64)
    fill = np.full_like(blocks, fnv1a32(name))
    counter = (blocks & np.uint64(0xFFFFFFFF), blocks >> np.uint64(32), fill, np.zeros_like(blocks))
    return np.stack(philox4x32(counter, (seed, 0)), axis=1).reshape(-1)[:count].astype(np.uint32)


def random_tensor(name, shape, seed, scale, offset=0.0):
    """A float32 array."""
    count = int(np.prod(shape, dtype=np.int64))
    uniform = (words(name, seed, count) >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)
    return (np.float32(offset) + np.float32(scale) * uniform).astype(np.float32).reshape(shape)


def _linears(config, layer):
    """(name, n, k, has a bias) of the linears of a block."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or hidden // heads
    biased = config["architectures"][0] in BIASED_ARCHITECTURES
    optional = bool(config.get("attention_bias")) and config["architectures"][0] != "MistralForCausalLM"
    mlp_bias = bool(config.get("mlp_bias")) and config["architectures"][0] == "LlamaForCausalLM"
    block = f"model.layers.{layer}."
    qkv_bias = biased or optional
    return [
        (block + "self_attn.q_proj", heads * head_dim, hidden, qkv_bias),
        (block + "self_attn.k_proj", kv_heads * head_dim, hidden, qkv_bias),
        (block + "self_attn.v_proj", kv_heads * head_dim, hidden, qkv_bias),
        (block + "self_attn.o_proj", hidden, heads * head_dim, optional and not biased),
        (block + "mlp.gate_proj", inner, hidden, mlp_bias),
        (block + "mlp.up_proj", inner, hidden, mlp_bias),
        (block + "mlp.down_proj", hidden, inner, mlp_bias),
    ]


def state_dict(config, seed):
    """name -> float32 array, from the members of a config.json."""
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    head_dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    tensors = {}

    def gain(name, size):
        tensors[name] = random_tensor(name, (size,), seed, 0.1, 1.0)

    def matrix(name, rows, columns):
        tensors[name] = random_tensor(name, (rows, columns), seed, np.float32(np.sqrt(3.0 / columns)))

    name = "model.embed_tokens.weight"
    tensors[name] = random_tensor(name, (vocabulary, hidden), seed, 1.0)
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}."
        gain(block + "input_layernorm.weight", hidden)
        for linear, rows, columns, bias in _linears(config, layer):
            matrix(linear + ".weight", rows, columns)
            if bias:
                tensors[linear + ".bias"] = random_tensor(linear + ".bias", (rows,), seed, 0.5)
        gain(block + "post_attention_layernorm.weight", hidden)
        if config["architectures"][0] == "Qwen3ForCausalLM":
            gain(block + "self_attn.q_norm.weight", head_dim)
            gain(block + "self_attn.k_norm.weight", head_dim)
    gain("model.norm.weight", hidden)
    if not config.get("tie_word_embeddings", False):
        matrix("lm_head.weight", vocabulary, hidden)
    return tensors


def main():
    for name, columns, seed in (("model.layers.0.self_attn.q_proj.weight", 64, 1), ("lm_head.weight", 48, 7)):
        values = random_tensor(name, (4, columns), seed, np.float32(np.sqrt(3.0 / columns))).reshape(-1)
        print(name, seed, [float(value).hex() for value in values[[0, 1, 5, 4 * columns - 1]]])
    gains = random_tensor("model.norm.weight", (8,), 3, 0.1, 1.0)
    print("model.norm.weight", 3, [float(value).hex() for value in gains[[0, 3, 7]]])


if __name__ == "__main__":
    main()
