"""Makes the goldens of tests/golden/models: logits of small random models of every supported family by Hugging Face transformers.

For each model of MODELS: NAME.config.json as transformers 4 writes it, NAME.config.v5.json as the installed transformers 5 does,
NAME.prompt.json (token ids) and NAME.logits.bin (float32, little endian, [tokens][vocabulary], a row for every position of the prompt).
Weights are those of random_weights.py, so that none are stored. Logits are computed in float64 with eager attention (norms and rotary
embeddings in float32, as transformers insists), then rounded once.

Made with the versions of requirements.txt, on a CPU:
    python3 -m venv venv && venv/bin/pip install -r requirements.txt
    venv/bin/python make_model_goldens.py
"""

import json
import pathlib
import tempfile

import numpy as np
import torch
import transformers

import random_weights

SEED = 1
PROMPT_TOKENS = 40
HERE = pathlib.Path(__file__).parent

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
    "hidden_size": 256, "intermediate_size": 352, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 200,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": None,
    "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False,
    "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
}
MISTRAL = {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_act": "silu",
    "hidden_size": 192, "intermediate_size": 416, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 64, "vocab_size": 200,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 12,
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
}
QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
    "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 3,
    "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 200,
    "max_position_embeddings": 256, "max_window_layers": 3, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
    "sliding_window": 256, "use_sliding_window": False, "tie_word_embeddings": False,
    "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
}
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu",
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 200,
    "max_position_embeddings": 256, "max_window_layers": 2, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
    "rope_scaling": None, "attention_bias": False, "sliding_window": None, "use_sliding_window": False,
    "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
}
LLAMA3_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64}

MODELS = {
    "llama-2": LLAMA,
    "llama-3": LLAMA | {"num_key_value_heads": 2, "rope_theta": 500000.0, "vocab_size": 300},
    "llama-3.1": LLAMA | {"num_key_value_heads": 2, "rope_theta": 5000.0, "rope_scaling": LLAMA3_ROPE},
    "llama-3.2": LLAMA | {"num_key_value_heads": 1, "rope_theta": 5000.0, "tie_word_embeddings": True,
                          "rope_scaling": LLAMA3_ROPE | {"factor": 32.0}},
    "llama-bias": LLAMA | {"attention_bias": True, "mlp_bias": True, "hidden_size": 128, "intermediate_size": 192},
    "llama-linear": LLAMA | {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama-yarn": LLAMA | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
    "mistral": MISTRAL,
    "yi": LLAMA | {"hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 2, "num_key_value_heads": 1,
                   "head_dim": 96, "rope_theta": 5000000.0, "rms_norm_eps": 1e-6},
    "qwen-1.5": QWEN2,
    "qwen-2.5": QWEN2 | {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 256,
                         "tie_word_embeddings": True},
    "qwen-2-window": QWEN2 | {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1},
    "qwen-2.5-yarn": QWEN2 | {"rope_theta": 10000.0, "rope_scaling": {"type": "yarn", "factor": 4.0,
                                                 "original_max_position_embeddings": 64}},
    "qwen-3": QWEN3,
}


def prompt(vocabulary):
    return [int(word) % vocabulary for word in random_weights.words("prompt", SEED, PROMPT_TOKENS)]


def load(config):
    """The model of transformers with our weights, and the configuration that it was read as."""
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "config.json").write_text(json.dumps(config))
        read = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_config(read, attn_implementation="eager", dtype=torch.float32)
    weights = {name: torch.from_numpy(value) for name, value in random_weights.state_dict(config, SEED).items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    tied = {"lm_head.weight"} if config["tie_word_embeddings"] else set()
    if set(missing) - tied or unexpected:
        raise ValueError(f"missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    return model.double().eval(), read


def make(name, config):
    def path(part):
        return HERE / f"{name}.{part}"

    path("config.json").write_text(json.dumps(config, indent=2) + "\n")
    model, read = load(config)
    with tempfile.TemporaryDirectory() as written:
        read.save_pretrained(written)
        path("config.v5.json").write_text((pathlib.Path(written) / "config.json").read_text())
    ids = prompt(config["vocab_size"])
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].to(torch.float32).numpy()
    path("prompt.json").write_text(json.dumps(ids) + "\n")
    logits.astype("<f4").tofile(path("logits.bin"))
    print(f"{name}: {logits.shape}, norm {np.linalg.norm(logits):.4f}")


def main():
    torch.manual_seed(0)
    for name, config in MODELS.items():
        make(name, config)


if __name__ == "__main__":
    main()
