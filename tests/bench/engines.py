"""The three engines and how each is asked for one case: command lines out, samples in. Called by peers.py.

A case is a batch of random prompts of one length, continued by some tokens. Every engine runs each case in a process of its own, so
that its peak memory is the case's. A sample's prefill lasts from the submission to the last sequence's first token, its decoding from
there to the last token.
"""

import json
import pathlib
from dataclasses import dataclass

BLOCK_TOKENS = 64  # of qserve's KV cache


@dataclass(frozen=True, order=True)
class Case:
    context: int  # tokens of each prompt
    batch: int
    output: int
    inner: int  # times within a process: several where one is short

    def name(self) -> str:
        return f"{self.batch}x{self.context}"


# By default; the last two only with --all: they prefill 32768 tokens, minutes for each engine and configuration.
CASES = (Case(128, 1, 64, 3), Case(128, 4, 32, 1), Case(128, 8, 32, 1), Case(128, 16, 32, 1), Case(128, 32, 24, 1),
         Case(1024, 1, 32, 1), Case(1024, 8, 24, 1), Case(4096, 1, 32, 1))
LONG_CASES = (Case(1024, 32, 24, 1), Case(4096, 8, 24, 1))
QUICK_CASES = ("1x128", "8x128", "32x128")


@dataclass(frozen=True)
class Config:
    """One way to run an engine; of a peer's the best of each row counts."""

    engine: str
    name: str
    arguments: tuple[str, ...]

    def label(self) -> str:
        return f"{self.engine} {self.name}"


QSERVE, LLAMA, OPENVINO = "qserve", "llama.cpp", "OpenVINO"
PEERS = (LLAMA, OPENVINO)
CONFIGS = (
    Config(QSERVE, "KV4, int8 head", ("--lm-head-dtype", "int8")),
    Config(QSERVE, "KV4, int4 head", ("--lm-head-dtype", "int4")),
    Config(LLAMA, "KV f16", ("-fa", "on", "-ctk", "f16", "-ctv", "f16")),
    Config(LLAMA, "KV f16, no flash attention", ("-fa", "off", "-ctk", "f16", "-ctv", "f16")),
    Config(LLAMA, "KV q8_0", ("-fa", "on", "-ctk", "q8_0", "-ctv", "q8_0")),
    Config(LLAMA, "KV q4_0", ("-fa", "on", "-ctk", "q4_0", "-ctv", "q4_0")),
    Config(OPENVINO, "default", ("--pipeline", "paged")),
    Config(OPENVINO, "KV u8", ("--pipeline", "paged", "--property", "KV_CACHE_PRECISION=u8")),
    Config(OPENVINO, "KV u4", ("--pipeline", "paged", "--property", "KV_CACHE_PRECISION=u4")),
    Config(OPENVINO, "stateful", ("--pipeline", "sdpa")),
)


@dataclass(frozen=True)
class Places:
    """Where programs and models lie. `models` has a folder a shape, with qserve/, llama/q4_0.gguf and openvino/ in it."""

    qserve: pathlib.Path
    llama: pathlib.Path
    openvino_python: pathlib.Path
    models: pathlib.Path
    threads: int
    share: bool = False  # OpenVINO's sequences of a long batch share their prompt's memory


def is_long(case: Case) -> bool:
    """Prompts that take a peer a minute or more to compute."""
    return case.batch > 1 and case.batch * case.context > 1024


def kv_bytes(config: dict, case: Case) -> int:
    """Of qserve's int4 cache, with the room that its scheduler keeps free; the engine refuses a case that does not fit."""
    token = config["num_hidden_layers"] * 2 * config["num_key_value_heads"] * (config["head_dim"] // 2 + 4)
    blocks = case.batch * -(-(case.context + case.output) // BLOCK_TOKENS)
    return (blocks + blocks // 16 + case.batch + 16) * BLOCK_TOKENS * token


def shape_of(places: Places, shape: str) -> dict:
    return json.loads((places.models / shape / "qserve" / "config.json").read_text())


def qserve_command(places: Places, shape: str, config: Config, case: Case) -> list[str]:
    model = places.models / shape / "qserve"
    memory = kv_bytes(shape_of(places, shape), case)
    return [str(places.qserve / "qserve-bench"), "offline", "--model", str(model), "--threads", str(places.threads), "--batch",
            str(case.batch), "--prompt-length", str(case.context), "--output-length", str(case.output), "--repeat", str(case.inner),
            "--kv-cache-memory", f"{memory // 2**20 + 1}MiB", "--json", *config.arguments]


def llama_command(places: Places, shape: str, config: Config, case: Case) -> list[str]:
    # From several long prompts on, one is computed and its cache copied to every sequence: each still reads a cache of its own.
    shared = ["-pps"] if is_long(case) else []
    context = case.batch * (case.context + case.output + 32)
    return [str(places.llama / "llama-batched-bench"), "-m", str(places.models / shape / "llama" / "q4_0.gguf"), "-t",
            str(places.threads), "-tb", str(places.threads), "-c", str(context), "-b", "2048", "-ub", "512", "-npp", str(case.context),
            "-ntg", str(case.output), "-npl", ",".join([str(case.batch)] * case.inner), "--load-mode", "none", "--output-format", "jsonl", *shared,
            *config.arguments]


def openvino_command(places: Places, shape: str, config: Config, case: Case) -> list[str]:
    script = pathlib.Path(__file__).parent / "openvino_bench.py"
    row = f"{case.batch}x{case.context}x{case.output}"
    return [str(places.openvino_python), str(script), "--model", str(places.models / shape / "openvino"), "--threads",
            str(places.threads), *config.arguments, *(["--share"] if places.share and is_long(case) else []), *[row] * case.inner]


def command(places: Places, shape: str, config: Config, case: Case) -> list[str]:
    make = {QSERVE: qserve_command, LLAMA: llama_command, OPENVINO: openvino_command}[config.engine]
    return make(places, shape, config, case)


def json_lines(output: str) -> list[dict]:
    return [json.loads(line) for line in output.splitlines() if line.startswith("{") and line.rstrip().endswith("}")]


def sample(prefilled: int, prefill_seconds: float, decoded: int, decode_seconds: float) -> dict[str, float]:
    return {"prefill": prefilled / prefill_seconds, "prefill_seconds": prefill_seconds, "decode": decoded / decode_seconds}


def parse_qserve(output: str, case: Case) -> list[dict[str, float]]:
    runs = json.loads(output[output.index("{"):])["runs"]
    return [sample(case.batch * case.context, run["prefill_seconds"], run["decode_tokens"], run["decode_seconds"]) for run in runs]


def parse_llama(output: str, case: Case) -> list[dict[str, float]]:
    rows = [row for row in json_lines(output) if row.get("pl") == case.batch]
    return [sample(row["pp"] * (1 if row["is_pp_shared"] else row["pl"]), row["t_pp"], row["tg"] * row["pl"], row["t_tg"])
            for row in rows]


def parse_openvino(output: str, case: Case) -> list[dict[str, float]]:
    rows = [row for row in json_lines(output) if row["batch"] == case.batch]
    return [sample(row["prefilled"], row["prefill_seconds"], row["decode_tokens"], row["decode_seconds"]) for row in rows]


def parse(engine: str, output: str, case: Case) -> list[dict[str, float]]:
    """One sample for each time within the process. Raises ValueError where the output has too few."""
    samples = {QSERVE: parse_qserve, LLAMA: parse_llama, OPENVINO: parse_openvino}[engine](output, case)
    if len(samples) != case.inner:
        raise ValueError(f"{len(samples)} samples, not {case.inner}")
    return samples


def expected_seconds(engine: str, case: Case, config: dict) -> float:
    """Roughly what a process takes on two cores without AMX: enough to plan by."""
    prefill, decode = (200, 100) if engine == QSERVE else (75, 45)
    once = case.batch * case.context / prefill + case.output * max(case.batch / decode, 1 / 20)
    return 12 + case.inner * once * token_weights(config) / 1.2e9


def token_weights(config: dict) -> int:
    """Weights that a token is multiplied with: the linears and the output head."""
    hidden, head = config["hidden_size"], config["head_dim"]
    attention = hidden * head * 2 * (config["num_attention_heads"] + config["num_key_value_heads"])
    layer = attention + 3 * hidden * config["intermediate_size"]
    return config["num_hidden_layers"] * layer + hidden * config["vocab_size"]


def about(engine: str, output: str, config: dict) -> dict[str, object]:
    """What qserve says of itself, and what a decoding step costs at least: bytes of weights read (on a CPU the embedding, of which a
    step reads a few rows, is not among them), operations a token. Nothing of a peer."""
    if engine != QSERVE:
        return {}
    report = json.loads(output[output.index("{"):])
    model = report["model"]
    return {"commit": report.get("commit"), "isa": model["isa"], "kv_bytes_per_token": model["kv_bytes_per_token"],
            "step_weight_bytes": model["weight_bytes"], "token_operations": 2 * token_weights(config)}
