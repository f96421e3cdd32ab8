#!/usr/bin/env python3
"""What others reach on the same GPU in the same run, through PyTorch: cuBLAS FP16 and INT8, FP8, and FP16 attention.

usage: peers.py [PART...]                          JSON lines, one a measurement; parts: linears attention
       peers.py --table QSERVE.jsonl PEERS.jsonl   the two side by side

A peer that cannot be imported or does not run here prints "absent". Operands are random and rotated past the second-level cache,
work is recorded as a CUDA graph, figures are medians: as bench/gpu_bench.cc does.
"""

import json
import statistics
import sys
import time

BEYOND_CACHE = 160 << 20
SHAPES = {"llama-3-8b": (4096, 14336, 32, 8), "llama-3-70b": (8192, 28672, 64, 8)}  # hidden, intermediate, heads, kv heads
BATCHES = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)


def layers(hidden, intermediate, heads, kv_heads):
    return {"qkv": ((heads + 2 * kv_heads) * 128, hidden), "o": (hidden, heads * 128), "gate_up": (2 * intermediate, hidden),
            "down": (hidden, intermediate)}


def emit(**fields):
    print(json.dumps(fields), flush=True)


def seconds(torch, pieces):
    """Median time of one of the calls `pieces`, replayed as one graph."""
    for piece in pieces[:2]:
        piece()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for piece in pieces:
            piece()
    taken = []
    for attempt in range(12):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        graph.replay()
        torch.cuda.synchronize()
        if attempt >= 2:
            taken.append(time.perf_counter() - begin)
    return statistics.median(taken) / len(pieces)


def fp16(torch, m, n, k, copies):
    x = torch.randn(m, k, device="cuda", dtype=torch.float16)
    weights = [torch.randn(n, k, device="cuda", dtype=torch.float16) for _ in range(copies)]
    return [lambda w=w: torch.matmul(x, w.t()) for w in weights]


def int8(torch, m, n, k, copies):
    m = max(m, 17)  # _int_mm takes more than 16 rows
    x = torch.randint(-127, 127, (m, k), device="cuda", dtype=torch.int8)
    weights = [torch.randint(-127, 127, (n, k), device="cuda", dtype=torch.int8) for _ in range(copies)]
    return [lambda w=w: torch._int_mm(x, w.t()) for w in weights]


def fp8(torch, m, n, k, copies):
    x = torch.randn(m, k, device="cuda").to(torch.float8_e4m3fn)
    one = torch.ones((), device="cuda")
    weights = [torch.randn(n, k, device="cuda", dtype=torch.float16).to(torch.float8_e4m3fn) for _ in range(copies)]
    return [lambda w=w: torch._scaled_mm(x, w.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16) for w in weights]


PEERS = {"cublas_fp16": (fp16, 2), "cublas_int8": (int8, 1), "scaled_mm_fp8": (fp8, 1)}


def measure_linears(torch):
    for model, shape in SHAPES.items():
        for layer, (n, k) in layers(*shape).items():
            for peer, (make, width) in PEERS.items():
                copies = BEYOND_CACHE // (n * k * width) + 2
                for m in BATCHES:
                    try:
                        emit(what="linear", peer=peer, model=model, layer=layer, m=m, us=1e6 * seconds(torch, make(torch, m, n, k, copies)))
                    except Exception as error:  # whatever PyTorch raises where the GPU or version lacks it
                        emit(what="linear", peer=peer, model=model, layer=layer, m=m, absent=str(error).split("\n")[0][:120])
                    torch.cuda.empty_cache()


def measure_attention(torch):
    from torch.nn.functional import scaled_dot_product_attention as attend
    for model, (_, _, heads, kv_heads) in SHAPES.items():
        for batch in (1, 16, 64, 256):
            for context in (256, 1024, 4096, 16384):
                size = batch * context * 2 * kv_heads * 128 * 2
                copies = BEYOND_CACHE // size + 2
                if copies * size > torch.cuda.mem_get_info()[0] // 2:
                    continue
                try:
                    q = torch.randn(batch, heads, 1, 128, device="cuda", dtype=torch.float16)
                    kv = [torch.randn(2, batch, kv_heads, context, 128, device="cuda", dtype=torch.float16) for _ in range(copies)]
                    pieces = [lambda c=c: attend(q, c[0], c[1], enable_gqa=True) for c in kv]
                    emit(what="attention", peer="sdpa_fp16", model=model, batch=batch, context=context, us=1e6 * seconds(torch, pieces))
                    del kv, pieces
                except Exception as error:
                    emit(what="attention", peer="sdpa_fp16", model=model, batch=batch, context=context,
                         absent=str(error).split("\n")[0][:120])
                torch.cuda.empty_cache()


def read(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.startswith("{")]


def table(ours, theirs):
    keys = {"linear": ("model", "layer", "m"), "attention": ("model", "batch", "context")}
    for what, key in keys.items():
        peers = {}
        for row in (r for r in theirs if r["what"] == what):
            peers.setdefault(tuple(row[k] for k in key), {})[row["peer"]] = f"{row['us']:.1f}" if "us" in row else "absent"
        names = sorted({name for row in peers.values() for name in row}) or ["peers"]
        print(f"\n{what}, microseconds")
        print("  ".join(f"{c:>14}" for c in (*key, "format", "qserve", "memory %", "tensor %", *names)))
        for row in (r for r in ours if r["what"] == what):
            found = peers.get(tuple(row[k] for k in key), {})
            cells = [row[k] for k in key] + [row.get("format", "kv4"), f"{row['us']:.1f}", row["memory_percent"], row.get("tensor_percent", "-")]
            print("  ".join(f"{str(c):>14}" for c in cells + [found.get(name, "absent") for name in names]))
    for row in (r for r in ours if r["what"] not in keys):
        print(json.dumps(row))


def main(arguments):
    if arguments[:1] == ["--table"]:
        table(read(arguments[1]), read(arguments[2]))
        return
    try:
        import torch
        if not torch.cuda.is_available():
            raise ImportError("PyTorch finds no GPU")
    except ImportError as error:
        emit(what="peers", absent=str(error))
        return
    emit(what="peers", torch=torch.__version__, cuda=torch.version.cuda)
    for part, measure in (("linears", measure_linears), ("attention", measure_attention)):
        if not arguments or part in arguments:
            measure(torch)


if __name__ == "__main__":
    main(sys.argv[1:])
