#!/usr/bin/env python3
"""Speed of OpenVINO GenAI on batches of random prompts; called by peers.py, within the virtual environment that peers.sh makes.

usage: openvino_bench.py --model DIRECTORY --threads N --pipeline paged|sdpa [--property NAME=VALUE]... [--share] ROW...

A ROW is BATCHxPROMPTxOUTPUT, as in 8x1024x32. Prints a JSON line for each. As in `qserve-bench offline`, the prefill lasts from the
submission to the first token of the last sequence, decoding from there to the last token, and only its own tokens count. "paged" is
ContinuousBatchingPipeline, "sdpa" the stateful LLMPipeline, whose batch starts and ends together.

With --share a paged batch has one prompt, computed once and found in the prefix cache by all: quick, and to OpenVINO's advantage, since
all sequences then read the same memory. Its prefill is that of one prompt.
"""

import argparse
import json
import pathlib
import random
import time
from dataclasses import dataclass

BLOCK_TOKENS = 32  # of the CPU plugin's paged cache
BATCHED_TOKENS = 2048  # in a step, as qserve and llama.cpp have it


@dataclass(frozen=True)
class Row:
    batch: int
    prompt: int
    output: int

    def blocks(self) -> int:
        return self.batch * (-(-(self.prompt + self.output) // BLOCK_TOKENS) + 1)


def parse_row(text: str) -> Row:
    batch, prompt, output = (int(part) for part in text.split("x"))
    return Row(batch, prompt, output)


def prompts(row: Row, vocabulary: int, source: random.Random) -> list[list[int]]:
    return [[source.randrange(vocabulary) for _ in range(row.prompt)] for _ in range(row.batch)]


class Paged:
    def __init__(self, options: argparse.Namespace, properties: dict[str, object]) -> None:
        import openvino_genai as genai

        scheduler = genai.SchedulerConfig()
        scheduler.num_kv_blocks = max(row.blocks() for row in options.rows) + 8
        scheduler.max_num_batched_tokens = BATCHED_TOKENS
        scheduler.max_num_seqs = max(row.batch for row in options.rows)
        scheduler.enable_prefix_caching = options.share
        self.pipeline = genai.ContinuousBatchingPipeline(options.model, scheduler, "CPU", properties)
        self.requests = 0
        self.share = options.share

    def run(self, row: Row, ids: list[list[int]]) -> dict[str, float]:
        if not self.share or row.batch == 1:
            return {**self.batch(row, ids), "prefilled": row.batch * row.prompt}
        alone = self.batch(Row(1, row.prompt, 1), ids[:1])
        found = self.batch(row, ids[:1] * row.batch)
        return {**found, "prefill_seconds": alone["prefill_seconds"], "prefilled": row.prompt}

    def batch(self, row: Row, ids: list[list[int]]) -> dict[str, float]:
        import numpy
        import openvino
        import openvino_genai as genai

        config = genai.GenerationConfig(max_new_tokens=row.output, ignore_eos=True, do_sample=False)
        tensors = [openvino.Tensor(numpy.array([one], dtype=numpy.int64)) for one in ids]
        start = time.perf_counter()
        handles = []
        for tensor in tensors:
            handles.append(self.pipeline.add_request(self.requests, tensor, config))
            self.requests += 1
        tokens = [0] * row.batch
        first_end, at_first = start, 0
        while self.pipeline.has_non_finished_requests():
            waiting = tokens.count(0)
            self.pipeline.step()
            for index, handle in enumerate(handles):
                while handle.can_read():
                    tokens[index] += sum(len(output.generated_ids) for output in handle.read().values())
            if waiting and tokens.count(0) < waiting:
                first_end, at_first = time.perf_counter(), sum(tokens)
        end = time.perf_counter()
        if tokens != [row.output] * row.batch:
            raise RuntimeError(f"tokens of each sequence: {tokens}, not {row.output}")
        return {"prefill_seconds": first_end - start, "decode_seconds": end - first_end, "decode_tokens": sum(tokens) - at_first}


class Stateful:
    def __init__(self, options: argparse.Namespace, properties: dict[str, object]) -> None:
        import openvino_genai as genai

        self.pipeline = genai.LLMPipeline(options.model, "CPU", ATTENTION_BACKEND="SDPA", **properties)

    def run(self, row: Row, ids: list[list[int]]) -> dict[str, float]:
        import numpy
        import openvino
        import openvino_genai as genai

        config = genai.GenerationConfig(max_new_tokens=row.output, ignore_eos=True, do_sample=False)
        batch = numpy.array(ids, dtype=numpy.int64)
        inputs = genai.TokenizedInputs(openvino.Tensor(batch), openvino.Tensor(numpy.ones_like(batch)))
        result = self.pipeline.generate(inputs, config)
        if [len(one) for one in result.tokens] != [row.output] * row.batch:
            raise RuntimeError(f"tokens of each sequence: {[len(one) for one in result.tokens]}, not {row.output}")
        raw = result.perf_metrics.raw_metrics
        prefill = raw.m_times_to_first_token[0] / 1e6
        decode = sum(raw.m_durations[-(row.output - 1):]) / 1e6 if row.output > 1 else 0.0
        return {"prefill_seconds": prefill, "decode_seconds": decode, "decode_tokens": row.batch * (row.output - 1),
                "prefilled": row.batch * row.prompt}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--pipeline", choices=("paged", "sdpa"), required=True)
    parser.add_argument("--property", action="append", default=[])
    parser.add_argument("--share", action="store_true")
    parser.add_argument("rows", type=parse_row, nargs="+")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    properties: dict[str, object] = dict(one.split("=", 1) for one in options.property)
    properties["INFERENCE_NUM_THREADS"] = options.threads
    vocabulary = json.loads((options.model / "config.json").read_text())["vocab_size"]
    pipeline = (Paged if options.pipeline == "paged" else Stateful)(options, properties)
    source = random.Random(1)
    pipeline.run(Row(1, 64, 4), prompts(Row(1, 64, 4), vocabulary, source))  # what happens at first use only
    for row in options.rows:
        result = pipeline.run(row, prompts(row, vocabulary, source))
        print(json.dumps({"batch": row.batch, "prompt": row.prompt, "output": row.output, **result}), flush=True)


if __name__ == "__main__":
    main()
