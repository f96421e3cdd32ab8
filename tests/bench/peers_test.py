#!/usr/bin/env python3
"""Tests of what peers.py makes of measurements. No peer, no model and no timing is needed."""

import contextlib
import io
import json
import pathlib
import struct
import sys
import tempfile
import unittest
import xml.etree.ElementTree as tree

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import ceilings  # noqa: E402
import engines  # noqa: E402
import gguf_model  # noqa: E402
import measured  # noqa: E402
import peers  # noqa: E402
import plots  # noqa: E402
import report  # noqa: E402
import svg  # noqa: E402
from engines import LLAMA, OPENVINO, QSERVE  # noqa: E402

SHAPE = report.AIM_SHAPE
CONFIG = {"model_type": "llama", "max_position_embeddings": 256, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96,
          "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "vocab_size": 32,
          "tie_word_embeddings": True}


def record(engine, config, case, decode, prefill=100.0, **fields):
    batch, context = (int(part) for part in case.split("x"))
    samples = [{"prefill": prefill, "prefill_seconds": batch * context / prefill, "decode": one} for one in decode]
    return {"shape": SHAPE, "engine": engine, "config": config, "case": case, "batch": batch, "context": context, "output": 32,
            "round": 0, "others": 0.0, "peak_rss": 1 << 30, "peak_anonymous": 1 << 20, "samples": samples, **fields}


def line(records, metric, case, has_amx=False):
    return next(one for one in report.lines(records, SHAPE, has_amx) if (one.metric, one.case) == (metric, case))


class Ratios(unittest.TestCase):
    def setUp(self):
        self.records = [record(QSERVE, report.INT4_HEAD, "8x128", [30.0, 32.0, 90.0], 300.0, peak_rss=2 << 30),
                        record(QSERVE, report.INT8_HEAD, "8x128", [20.0]),
                        record(LLAMA, "KV f16", "8x128", [9.0, 11.0]), record(LLAMA, "KV q4_0", "8x128", [12.0], 80.0),
                        record(OPENVINO, "KV u8", "8x128", [16.0], 50.0)]

    def test_the_median_counts_and_the_spread_is_shown(self):
        self.assertEqual(line(self.records, report.DECODE, "8x128").int4.text(1), "32.0 (30.0 to 90.0)")

    def test_ratios_are_to_the_better_peer_in_its_best_configuration_of_the_row(self):
        decode = line(self.records, report.DECODE, "8x128")
        self.assertEqual((decode.ratio4, decode.ratio8, decode.best_peer().config), (2.0, 1.25, "KV u8"))
        self.assertEqual(decode.peers[LLAMA].config, "KV q4_0")
        prefill = line(self.records, report.PREFILL, "8x128")
        self.assertEqual((prefill.ratio4, prefill.peers[LLAMA].config), (3.0, "KV f16"))

    def test_less_is_better_of_times_and_memory(self):
        memory = [record(QSERVE, report.INT4_HEAD, "1x128", [1.0], 200.0, peak_rss=4 << 30), record(LLAMA, "KV f16", "1x128", [1.0])]
        self.assertEqual(line(memory, report.MEMORY, "1x128").ratio4, 0.25)
        self.assertEqual(line(memory, report.FIRST, "1x128").ratio4, 2.0)
        self.assertIn("**lost**", report.verdict(line(memory, report.MEMORY, "1x128")))

    def test_a_row_says_whether_it_meets_its_aim(self):
        self.assertEqual(report.verdict(line(self.records, report.DECODE, "8x128")), "won; aim 3x missed")
        self.assertEqual(report.verdict(line(self.records, report.PREFILL, "8x128")), "won; aim 2.5x met")
        self.assertEqual(report.verdict(line(self.records, report.PREFILL, "8x128", has_amx=True)), "won; aim 4x missed")

    def test_a_disturbed_measurement_counts_only_where_there_is_no_other(self):
        disturbed = record(OPENVINO, "KV u8", "8x128", [1000.0], others=0.5)
        self.assertEqual(line(self.records + [disturbed], report.DECODE, "8x128").ratio4, 2.0)
        alone = line(self.records[:2] + [disturbed], report.DECODE, "8x128")
        self.assertEqual(alone.peers[OPENVINO].text(1), "1000.0 !")

    def test_what_is_absent_is_said_and_wins_nothing(self):
        absent = {**record(LLAMA, "KV f16", "8x128", []), "absent": "took more than 5 s"}
        records = [self.records[0], {key: value for key, value in absent.items() if key != "samples"}]
        decode = line(records, report.DECODE, "8x128")
        self.assertEqual((decode.ratio4, report.verdict(decode)), (None, "-"))
        self.assertIn("| absent | absent | - | - | - |", report.table(records, SHAPE, False))

    def test_configurations_far_behind_are_known(self):
        records = [record(LLAMA, "a", "1x128", [100.0]), record(LLAMA, "b", "1x128", [50.0]), record(LLAMA, "b", "1x1024", [90.0]),
                   record(LLAMA, "a", "1x1024", [91.0], 90.0), record(LLAMA, "c", "1x128", [10.0], 10.0)]
        self.assertEqual(report.fallen(records, SHAPE, LLAMA, None, 0.8), {"c"})
        records[1]["samples"][0]["prefill"] = 50.0
        self.assertEqual(report.fallen(records, SHAPE, LLAMA, "1x128", 0.9), {"b", "c"})
        self.assertEqual(report.fallen([], SHAPE, LLAMA, None, 0.8), set())


class Outputs(unittest.TestCase):
    CASE = engines.Case(128, 4, 32, 1)

    def test_llama(self):
        row = {"is_pp_shared": 0, "pp": 128, "tg": 32, "pl": 4, "t_pp": 2.0, "t_tg": 4.0}
        text = "a line of log\n" + json.dumps(row) + "\n"
        self.assertEqual(engines.parse(LLAMA, text, self.CASE), [{"prefill": 256.0, "prefill_seconds": 2.0, "decode": 32.0}])
        shared = json.dumps({**row, "is_pp_shared": 1})
        self.assertEqual(engines.parse(LLAMA, shared, self.CASE)[0]["prefill"], 64.0)

    def test_openvino(self):
        row = {"batch": 4, "prompt": 128, "output": 32, "prefill_seconds": 2.0, "decode_seconds": 4.0, "decode_tokens": 124,
               "prefilled": 512}
        self.assertEqual(engines.parse(OPENVINO, json.dumps(row), self.CASE)[0]["decode"], 31.0)

    def test_qserve(self):
        run = {"prefill_seconds": 2.0, "decode_seconds": 4.0, "decode_tokens": 124}
        text = "a warning\n" + json.dumps({"runs": [run]}, indent=2)
        self.assertEqual(engines.parse(QSERVE, text, self.CASE), [{"prefill": 256.0, "prefill_seconds": 2.0, "decode": 31.0}])

    def test_too_few_samples_are_an_error(self):
        for engine in (LLAMA, OPENVINO, QSERVE):
            with self.assertRaises(ValueError):
                engines.parse(engine, "", self.CASE)

    def test_every_configuration_has_a_command(self):
        with tempfile.TemporaryDirectory() as folder:
            places = engines.Places(*(pathlib.Path(folder) for _ in range(4)), threads=2)
            (pathlib.Path(folder) / SHAPE / "qserve").mkdir(parents=True)
            (pathlib.Path(folder) / SHAPE / "qserve" / "config.json").write_text(json.dumps(CONFIG))
            for config in engines.CONFIGS:
                words = engines.command(places, SHAPE, config, engines.CASES[0])
                self.assertTrue(set(config.arguments) <= set(words))

    def test_ceilings_and_fractions(self):
        text = ("A CPU, 2 threads, avx2: read bandwidth 40.0 GB/s, integer peak 600 GOPS\n"
                "qkv g128          3072 x 2048   m 1        0.077 ms   30.00 GB/s  75.0 %    163.3 GOPS  27.2 %\n"
                "qkv g128          3072 x 2048   m 512     14.532 ms    0.23 GB/s   0.6 %    450.0 GOPS  75.0 %\n")
        found = ceilings.parse_kernels(text)
        self.assertEqual((found["isa"], found["bandwidth_gbs"], found["integer_peak_gops"]), ("avx2", 40.0, 600.0))
        self.assertIn("| qkv g128 3072 x 2048 | 75 % | 75 % |", ceilings.table(found))
        with self.assertRaises(ValueError):
            ceilings.parse_kernels("nothing")


class Model(unittest.TestCase):
    def test_a_gguf_file_has_what_its_header_says(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "tiny.gguf"
            gguf_model.write(CONFIG, path)
            data = path.read_bytes()
        expected = list(gguf_model.tensors(CONFIG))
        self.assertEqual(struct.unpack_from("<4sIQ", data), (b"GGUF", 3, len(expected)))
        blocks = sum(gguf_model.padded(gguf_model.size(tensor)) for tensor in expected)
        self.assertEqual(data[-blocks:][:2], gguf_model.SCALE)  # the first tensor is Q4_0, and the data ends the file
        self.assertIn(gguf_model.text("blk.1.ffn_down.weight"), data)
        self.assertEqual(gguf_model.count((64, 32)) // 32 * 18, gguf_model.size(expected[0]))

    def test_other_families_are_refused(self):
        with self.assertRaises(ValueError):
            gguf_model.write({**CONFIG, "model_type": "other"}, pathlib.Path("/nonexistent/x.gguf"))

    def test_a_token_is_multiplied_with_linears_and_head(self):
        layer = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96
        self.assertEqual(engines.token_weights(CONFIG), 2 * layer + 64 * 32)


class Processes(unittest.TestCase):
    def test_output_memory_and_failure_of_a_command(self):
        found = measured.run(30, [sys.executable, "-c", "print('x'); raise SystemExit(3)"])
        self.assertEqual((found["stdout"], found["rc"], found["timed_out"]), ("x\n", 3, False))
        self.assertGreater(found["peak_rss"], 1 << 20)

    def test_commands_that_the_time_will_not_suffice_for_are_left(self):
        wanted = [{"command": ["true"], "expected": 1000}, {"command": ["true"], "expected": 0.1}, {"command": ["true"], "expected": 1000}]
        with contextlib.redirect_stdout(io.StringIO()) as out:
            measured.run_all(3, wanted)
        self.assertEqual(len(engines.json_lines(out.getvalue())), 2)

    def test_a_command_that_takes_too_long_is_ended(self):
        self.assertTrue(measured.run(0.2, [sys.executable, "-c", "import time; time.sleep(60)"])["timed_out"])


class Pictures(unittest.TestCase):
    def head(self):
        return {"machine": {"cpu": "A CPU", "cores": 2}, "threads": 2,
                "ceilings": {"isa": "avx2", "bandwidth_gbs": 40.0, "integer_peak_gops": 600.0}}

    def test_plots_are_well_formed_and_name_every_engine(self):
        about = {"step_weight_bytes": 6e8, "kv_bytes_per_token": 9216, "token_operations": 2.4e9}
        records = [record(engine, config, case, [50.0, 60.0], **about)
                   for engine, config in ((QSERVE, report.INT4_HEAD), (LLAMA, "KV f16")) for case in ("1x128", "8x128", "1x1024", "8x1024")]
        drawn = plots.draw(records, self.head(), SHAPE)
        self.assertEqual(len(drawn), 3)
        for content in drawn.values():
            words = {element.text for element in tree.fromstring(content).iter() if element.text}
            self.assertTrue({"qserve, int4 head", "llama.cpp"} <= words)
        self.assertIn("weights + KV, read", drawn[f"{SHAPE}-batch.svg"])

    def test_a_plot_of_one_case_is_left_out(self):
        records = [record(QSERVE, report.INT4_HEAD, case, [50.0], step_weight_bytes=6e8, kv_bytes_per_token=9216, token_operations=2.4e9)
                   for case in ("1x128", "8x128")]
        self.assertEqual(list(plots.draw(records, self.head(), SHAPE)), [f"{SHAPE}-batch.svg"])

    def test_names_keep_their_distance_within_the_plot(self):
        placed = svg.apart([100.0, 99.0, 98.0, 10.0], 17, 100)
        ordered = sorted(placed)
        self.assertTrue(all(after - before >= 17 for before, after in zip(ordered, ordered[1:])))
        self.assertLessEqual(max(placed), 100)
        self.assertLess(placed[2], placed[1])

    def test_axes_begin_at_zero_and_end_on_a_tick(self):
        panel = svg.Panel("", "", "", [svg.Series("a", "qserve", [svg.Point(1, 137, 130, 143)])])
        scale, ticks = svg.y_scale(panel)
        self.assertEqual((scale.low, scale.high, ticks[-1]), (0, 150, 150))


class Commands(unittest.TestCase):
    def test_cases_are_chosen_by_name_in_their_order(self):
        options = peers.parse_arguments(["run", "x", "--cache", "c", "--qserve", "q", "--cases", "8x1024,1x128"])
        self.assertEqual([case.name() for case in options.cases], ["8x1024", "1x128"])
        quick = peers.parse_arguments(["run", "x", "--cache", "c", "--qserve", "q", "--quick"])
        self.assertEqual([case.name() for case in quick.cases], list(engines.QUICK_CASES))


if __name__ == "__main__":
    unittest.main()
