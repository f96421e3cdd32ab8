#!/usr/bin/env python3
"""Tests of peers.py that need neither PyTorch nor a GPU: its tables, and that it says what is absent."""

import contextlib
import io
import json
import pathlib
import sys
import tempfile
import types
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import peers  # noqa: E402


def linear(**fields):
    return {"what": "linear", "model": "llama-3-8b", "layer": "o", "m": 1, **fields}


def printed(function, *arguments):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        function(*arguments)
    return out.getvalue()


class Clock:
    """As much of torch.cuda as measure() wants; each replay takes `milliseconds`."""

    def __init__(self, milliseconds):
        self.milliseconds, self.now, self.replays = milliseconds, 0.0, 0
        clock = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = clock.now

            def synchronize(self):
                pass

            def elapsed_time(self, end):
                return end.at - self.at

        class Graph:
            def replay(self):
                clock.now += clock.milliseconds
                clock.replays += 1

        stream = types.SimpleNamespace(wait_stream=lambda other: None)
        self.cuda = types.SimpleNamespace(
            Stream=lambda: stream, current_stream=lambda: stream, stream=lambda s: contextlib.nullcontext(), synchronize=lambda: None,
            CUDAGraph=Graph, graph=lambda g: contextlib.nullcontext(), Event=Event)


class Tables(unittest.TestCase):
    def test_peers_stand_beside_our_rows_of_the_same_key(self):
        ours = [linear(format="w4_group", us=4.04, us_min=4.0, us_max=5.0, memory_percent=80.06, tensor_percent=1.0),
                linear(format="w4_channel", us=3.0, us_min=3.0, us_max=3.0, memory_percent=81.0, tensor_percent=1.0),
                linear(m=8, format="w4_group", absent="no memory")]
        theirs = [linear(peer="cublas_fp16", us=9.94), linear(peer="cublas_int8", us=7.0, rows=32),
                  linear(m=8, peer="cublas_fp16", us=10.0), linear(m=8, peer="scaled_mm_fp8", absent="no such GPU")]
        lines = [line.split() for line in peers.table(ours, theirs)]
        head = next(line for line in lines if "format" in line)
        self.assertEqual(head[-3:], ["cublas_fp16", "cublas_int8", "scaled_mm_fp8"])
        rows = [line for line in lines if line[:2] == ["llama-3-8b", "o"]]
        self.assertEqual(rows[0], ["llama-3-8b", "o", "1", "w4_group", "4.0", "4.0", "5.0", "80.1", "1.0", "9.9", "7.0*", "absent"])
        self.assertEqual(rows[1][-3:], ["9.9", "7.0*", "absent"])
        self.assertEqual(rows[2], ["llama-3-8b", "o", "8", "w4_group"] + ["absent"] * 5 + ["10.0", "absent", "absent"])

    def test_no_peers_at_all_and_rows_without_peers(self):
        attention = {"what": "attention", "model": "m", "batch": 1, "context": 256, "us": 1.0, "memory_percent": 2.0, "tensor_percent": 3.0}
        offline = {"what": "offline", "tokens_per_second": 20000.0}
        lines = peers.table([attention, offline], [{"what": "peers", "absent": "No module named 'torch'"}])
        self.assertTrue(any(line.split()[-1:] == ["absent"] and "kv4" in line for line in lines))
        self.assertIn(json.dumps(offline), lines)
        self.assertIn("No module named 'torch'", lines[-1])
        self.assertFalse(any(line.startswith("linear") for line in lines))

    def test_a_file_that_ends_in_the_middle_of_a_line_is_read(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "qserve.jsonl"
            path.write_text(json.dumps(linear(us=1.0)) + "\nSKIPPED: x\n3\n{\"what\": \"lin", encoding="utf-8")
            self.assertEqual(peers.read(path), [linear(us=1.0)])
            self.assertIn("linear, microseconds", printed(peers.main, ["--table", str(path), str(path)]))


class Measuring(unittest.TestCase):
    def test_short_graphs_are_replayed_several_times_a_run(self):
        calls = []
        clock = Clock(0.01)
        result = peers.measure(clock, [lambda: calls.append(1)] * 4)
        self.assertEqual(len(calls), 8, "once before the capture, once in it")
        self.assertAlmostEqual(result["us"], 2.5)
        self.assertGreater(clock.replays, 50 * 7)

    def test_long_graphs_are_replayed_a_few_times(self):
        clock = Clock(1000.0)
        result = peers.measure(clock, [lambda: None])
        self.assertEqual((result["us"], result["us_min"], result["us_max"], result["runs"]), (1e6, 1e6, 1e6, 7))
        self.assertLessEqual(clock.replays, 12)

    def test_what_raises_is_absent(self):
        def fails():
            raise RuntimeError("not on this GPU\nlong story")
        line = json.loads(printed(peers.try_one, Clock(1.0), {"what": "linear"}, fails))
        self.assertEqual(line, {"what": "linear", "absent": "not on this GPU"})

    def test_without_pytorch_it_says_so(self):
        before = sys.modules.get("torch")
        sys.modules["torch"] = None  # an import of it fails
        try:
            line = json.loads(printed(peers.main, []))
        finally:
            del sys.modules["torch"]
            if before is not None:
                sys.modules["torch"] = before
        self.assertEqual(line["what"], "peers")
        self.assertIn("torch", line["absent"])

    def test_layers_are_those_of_our_bench(self):
        self.assertEqual(peers.layers(*peers.SHAPES["llama-3-8b"]),
                         {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)})
        self.assertEqual(peers.layers(*peers.SHAPES["llama-3-70b"])["qkv"], (10240, 8192))


if __name__ == "__main__":
    unittest.main()
