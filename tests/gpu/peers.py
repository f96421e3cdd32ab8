#!/usr/bin/env python3
"""What others reach on the same GPU in the same run, through PyTorch: cuBLAS FP16 and INT8, FP8, and FP16 attention.

usage: peers.py [PART...]                          JSON lines, one a measurement; parts: linears attention
       peers.py --table QSERVE.jsonl PEERS.jsonl   the two side by side

A peer that cannot be imported or does not run here prints "absent". Operands are random and rotated past the second-level cache,
work is recorded as a CUDA graph, figures are medians: as bench/gpu_bench.cc does. Quantizing a peer's inputs is not in its time.

Attention is of decoding steps: one query a sequence, without a mask. Each backend of scaled_dot_product_attention is asked for by
name, "gqa" with enable_gqa (PyTorch 2.5), "folded" with the query heads that share a key head as rows of its query, which is the same
arithmetic and what flash decoding does. Keys and values lie in one piece, where ours are paged.
"""

import json
import statistics
import sys

BEYOND_CACHE = 160 << 20
SHAPES = {"llama-3-8b": (4096, 14336, 32, 8), "llama-3-70b": (8192, 28672, 64, 8)}  # hidden, intermediate, heads, kv heads
BATCHES = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
HEAD_DIM = 128
LEAST_INT8_ROWS = 32  # _int_mm refuses up to 16, and cuBLAS wants its sizes in multiples of 4 or more
ATTENTION = {"sdpa_flash_gqa": ("FLASH_ATTENTION", False), "sdpa_flash_folded": ("FLASH_ATTENTION", True),
             "sdpa_cudnn_folded": ("CUDNN_ATTENTION", True), "sdpa_efficient_folded": ("EFFICIENT_ATTENTION", True)}


def layers(hidden, intermediate, heads, kv_heads):
    return {"qkv": ((heads + 2 * kv_heads) * HEAD_DIM, hidden), "o": (hidden, heads * HEAD_DIM), "gate_up": (2 * intermediate, hidden),
            "down": (hidden, intermediate)}


def emit(**fields):
    print(json.dumps(fields), flush=True)


def measure(torch, pieces):
    """Microseconds of one of the calls `pieces`: median, least and most of replays of all of them as one graph, on the GPU's clock."""
    side = torch.cuda.Stream()  # what is done at a first call may not be captured, and is done on another stream than the default one
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for piece in pieces:
            piece()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for piece in pieces:
            piece()

    def replay(times):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(times):
            graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / times  # milliseconds

    replay(1)
    once = replay(2)
    times = max(1, min(50, int(1 / max(once, 1e-3))))
    runs = max(7, min(50, int(100 / max(once * times, 1e-3))))
    taken = [1e3 * replay(times) / len(pieces) for _ in range(runs)]
    return {"us": round(statistics.median(taken), 3), "us_min": round(min(taken), 3), "us_max": round(max(taken), 3), "runs": runs}


def try_one(torch, key, make):
    """Emits the measurement of the calls that make() returns, or why there is none. True if it was measured."""
    try:
        emit(**key, **measure(torch, make()))
        return True
    except Exception as error:  # whatever PyTorch raises where the GPU or version lacks it
        emit(**key, absent=(str(error).strip() or type(error).__name__).split("\n")[0][:160])
        return False


# Each: weights [n, k], row-major, so that their transpose is the column-major second operand that cuBLAS wants; then the calls for m rows.
def fp16_weight(torch, n, k):
    return torch.randn(n, k, device="cuda", dtype=torch.float16)


def fp16_calls(torch, m, k, weights):
    x = torch.randn(m, k, device="cuda", dtype=torch.float16)
    return [lambda w=w: torch.matmul(x, w.t()) for w in weights]


def int8_weight(torch, n, k):
    return torch.randint(-127, 128, (n, k), device="cuda", dtype=torch.int8)


def int8_calls(torch, m, k, weights):
    x = torch.randint(-127, 128, (max(m, LEAST_INT8_ROWS), k), device="cuda", dtype=torch.int8)
    return [lambda w=w: torch._int_mm(x, w.t()) for w in weights]


def fp8_weight(torch, n, k):
    return torch.randn(n, k, device="cuda", dtype=torch.float16).to(torch.float8_e4m3fn)


def fp8_calls(torch, m, k, weights):
    x = torch.randn(m, k, device="cuda", dtype=torch.float16).to(torch.float8_e4m3fn)
    one = torch.ones((), device="cuda", dtype=torch.float32)  # one scale a tensor; fast accumulation as servers have it
    return [lambda w=w: torch._scaled_mm(x, w.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)
            for w in weights]


LINEARS = {"cublas_fp16": (fp16_weight, fp16_calls, 2), "cublas_int8": (int8_weight, int8_calls, 1),
           "scaled_mm_fp8": (fp8_weight, fp8_calls, 1)}


def measure_linears(torch):
    for model, shape in SHAPES.items():
        for layer, (n, k) in layers(*shape).items():
            for peer, (make_weight, make_calls, width) in LINEARS.items():
                key = {"what": "linear", "peer": peer, "model": model, "layer": layer}
                try:
                    weights = [make_weight(torch, n, k) for _ in range(BEYOND_CACHE // (n * k * width) + 2)]
                except Exception as error:
                    emit(**key, absent=str(error).split("\n")[0][:160])
                    continue
                for m in BATCHES:
                    padded = {"rows": LEAST_INT8_ROWS} if peer == "cublas_int8" and m < LEAST_INT8_ROWS else {}
                    try_one(torch, {**key, "m": m, **padded}, lambda: make_calls(torch, m, k, weights))
                del weights
                torch.cuda.empty_cache()


def attention_calls(torch, peer, batch, heads, kv_heads, caches):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    attend = torch.nn.functional.scaled_dot_product_attention
    name, folded = ATTENTION[peer]
    backend = getattr(SDPBackend, name)
    shape = (batch, kv_heads, heads // kv_heads, HEAD_DIM) if folded else (batch, heads, 1, HEAD_DIM)
    q = torch.randn(*shape, device="cuda", dtype=torch.float16)
    extra = {} if folded else {"enable_gqa": True}

    def call(cache):
        with sdpa_kernel(backend):
            return attend(q, cache[0], cache[1], **extra)

    return [lambda c=c: call(c) for c in caches]


def measure_attention(torch):
    for model, (_, _, heads, kv_heads) in SHAPES.items():
        for batch in (1, 16, 64, 256):
            for context in (256, 1024, 4096, 16384):
                key = {"what": "attention", "model": model, "batch": batch, "context": context}
                size = batch * context * 2 * kv_heads * HEAD_DIM * 2
                copies = BEYOND_CACHE // size + 2
                torch.cuda.empty_cache()
                caches = []
                try:
                    if copies * size > torch.cuda.mem_get_info()[0] // 2:
                        raise MemoryError(f"{copies * size >> 20} MiB of keys and values are too many")
                    caches = [torch.randn(2, batch, kv_heads, context, HEAD_DIM, device="cuda", dtype=torch.float16) for _ in range(copies)]
                except Exception as error:
                    for peer in ATTENTION:
                        emit(**key, peer=peer, absent=str(error).split("\n")[0][:160])
                    continue
                for peer in ATTENTION:
                    try_one(torch, {**key, "peer": peer}, lambda: attention_calls(torch, peer, batch, heads, kv_heads, caches))
                del caches


def read(path):
    """The JSON lines of a file; a last line that was cut off by an end is left out."""
    found = []
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and "what" in row:
                found.append(row)
    return found


KEYS = {"linear": ("model", "layer", "m"), "attention": ("model", "batch", "context")}


def text(row, name, digits=1):
    value = row.get(name)
    return "absent" if value is None else f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def table(ours, theirs):
    """Lines of text: one table a kind of measurement, then what has no peers, as it is."""
    lines = []
    for what, key in KEYS.items():
        rows = [row for row in ours if row["what"] == what]
        if not rows:
            continue
        peers, names = {}, []
        for row in theirs:
            if row["what"] == what and "peer" in row:
                peers[tuple(row.get(k) for k in key) + (row["peer"],)] = text(row, "us") + ("*" if "rows" in row and "us" in row else "")
                names += [row["peer"]] if row["peer"] not in names else []
        head = (*key, "format", "us", "least", "most", "memory %", "tensor %", *(names or ["peers"]))
        cells = [head]
        for row in rows:
            at = tuple(row.get(k) for k in key)
            cells.append((*map(str, at), row.get("format", "kv4"), text(row, "us"), text(row, "us_min"), text(row, "us_max"),
                          text(row, "memory_percent"), text(row, "tensor_percent"),
                          *(peers.get((*at, name), "absent") for name in names or [""])))
        widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
        lines += ["", f"{what}, microseconds" + (f" (*: padded to {LEAST_INT8_ROWS} rows)" if what == "linear" else "")]
        lines += ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in cells]
    rest = [json.dumps(row) for row in ours if row["what"] not in KEYS]
    return lines + [""] + rest + [json.dumps(row) for row in theirs if row["what"] not in KEYS]


def main(arguments):
    if arguments[:1] == ["--table"]:
        print("\n".join(table(read(arguments[1]), read(arguments[2]))))
        return
    try:
        import torch
        if not torch.cuda.is_available():
            raise ImportError("PyTorch finds no GPU")
    except Exception as error:  # a broken installation raises anything
        emit(what="peers", absent=str(error).split("\n")[0][:160])
        return
    emit(what="peers", torch=torch.__version__, cuda=torch.version.cuda)
    for part, measure_part in (("linears", measure_linears), ("attention", measure_attention)):
        if not arguments or part in arguments:
            with torch.inference_mode():
                measure_part(torch)


if __name__ == "__main__":
    main(sys.argv[1:])
