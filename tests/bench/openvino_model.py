#!/usr/bin/env python3
"""Writes an OpenVINO model of a model's shape with random int4 weights; called by peers.sh, within its virtual environment.

usage: openvino_model.py QSERVE_MODEL_DIRECTORY OUTPUT_DIRECTORY

Shape and tokenizer are those that `qserve-bench make-model` wrote. A random checkpoint is saved by transformers and exported by
optimum-cli as OpenVINO's documents advise: int4, symmetric, groups of 128, every layer, the output head too.
"""

import pathlib
import shutil
import subprocess
import sys

EXPORT = ["--task", "text-generation-with-past", "--weight-format", "int4", "--sym", "--group-size", "128", "--ratio", "1.0",
          "--all-layers"]


def save_random(source: pathlib.Path, checkpoint: pathlib.Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    config = AutoConfig.from_pretrained(source)
    if hasattr(config, "quantization_config"):  # of qserve's checkpoint; this one is bf16
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(checkpoint, max_shard_size="2GB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, checkpoint / name)


def main(source: pathlib.Path, output: pathlib.Path) -> None:
    checkpoint, part = output.with_suffix(".checkpoint"), output.with_suffix(".part")
    for leftover in (checkpoint, part):
        shutil.rmtree(leftover, ignore_errors=True)
    # In a process of its own, so that the weights are not in memory twice.
    subprocess.run([sys.executable, __file__, "--save", str(source), str(checkpoint)], check=True)
    command = pathlib.Path(sys.executable).parent / "optimum-cli"
    subprocess.run([str(command), "export", "openvino", "--model", str(checkpoint), *EXPORT, str(part)], check=True)
    shutil.rmtree(checkpoint)
    part.rename(output)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if len(arguments) == 3 and arguments[0] == "--save":
        save_random(pathlib.Path(arguments[1]), pathlib.Path(arguments[2]))
    elif len(arguments) == 2:
        main(pathlib.Path(arguments[0]), pathlib.Path(arguments[1]))
    else:
        sys.exit(__doc__)
