#!/usr/bin/env python3
"""sass_gate.py against files made here, byte by byte: what it reads, and that each of its rules catches a violation."""

import json
import pathlib
import struct
import subprocess
import sys
import tempfile
import unittest

_GATE = pathlib.Path(__file__).resolve().parent / "sass_gate.py"
_NAME = "_ZN6qserve7kernels4cuda5EntryINS1_7RankSumILi4EEEEEvNT_6ParamsE"  # RankSum<4>
_IMMA, _LOP3, _LDL, _NOP = 0x237, 0x812, 0x983, 0x918


def code(*opcodes):
    return b"".join(struct.pack("<QQ", 0xABC << 12 | opcode, 0) for opcode in opcodes)


def cubin(opcodes, registers, stack=0):
    """An ELF image with one kernel, as nvcc lays it out: .text, .nv.info, symbols and strings."""
    strings = b"\0" + _NAME.encode() + b"\0"
    symbols = bytes(24) + struct.pack("<IBBHQQ", 1, 0x12, 0, 1, 0, 0)
    info = b"".join(struct.pack("<BBHII", 4, attribute, 8, 1, value) for attribute, value in ((0x2F, registers), (0x11, stack)))
    info = struct.pack("<BBH", 3, 0x50, 1) + info  # an entry of another form is passed over
    parts = [("", 0, b""), (".text." + _NAME, 1, code(*opcodes)), (".nv.info", 0x70000000, info),
             (".symtab", 2, symbols), (".strtab", 3, strings)]
    names = b"".join(name.encode() + b"\0" for name, _, _ in parts) + b".shstrtab\0"
    parts.append((".shstrtab", 3, names))
    offset, bodies, headers, at = 64, b"", b"", 0
    for name, kind, body in parts:
        headers += struct.pack("<IIQQQQIIQQ", at, kind, 0, 0, offset + len(bodies), len(body), 0, 0, 0, 0)
        bodies += body
        at += len(name) + 1
    head = b"\x7fELF\x02\x01" + bytes(34) + struct.pack("<Q", offset + len(bodies)) + bytes(10)
    return head + struct.pack("<HHH", 64, len(parts), len(parts) - 1) + bodies + headers


class SassGate(unittest.TestCase):

    def run_gate(self, image, rules):
        with tempfile.TemporaryDirectory() as folder:
            file, budgets = pathlib.Path(folder) / "a.1.sm_80.cubin", pathlib.Path(folder) / "budgets.json"
            file.write_bytes(image)
            budgets.write_text(json.dumps({"rules": rules}))
            done = subprocess.run([sys.executable, _GATE, "--table", "--budgets", budgets, file], capture_output=True, text=True)
            return done.returncode, done.stdout + done.stderr

    def assert_refused(self, image, rule, *parts):
        status, output = self.run_gate(image, [rule])
        self.assertEqual(status, 1, output)
        for part in parts:
            self.assertIn(part, output)

    def test_a_kernel_within_its_budget_passes(self):
        rule = {"kernel": "RankSum", "registers": 40, "has": ["IMMA"], "ratios": [{"of": ["LOP3"], "to": "IMMA", "at_most": 2}]}
        status, output = self.run_gate(cubin([_IMMA, _LOP3, _LOP3, _NOP], 40), [rule])
        self.assertEqual(status, 0, output)
        for part in ("sm_80", "40 registers", "LOP3 2", "IMMA 1", "0 violations"):
            self.assertIn(part, output)

    def test_registers(self):
        self.assert_refused(cubin([_IMMA], 41), {"kernel": "RankSum", "registers": {"sm_80": 40, "*": 60}}, "41 registers, agreed are 40")
        self.assertEqual(self.run_gate(cubin([_IMMA], 41), [{"kernel": "RankSum", "registers": {"sm_90a": 40, "*": 60}}])[0], 0)

    def test_local_memory(self):
        rule = {"kernel": "RankSum", "registers": 255}
        self.assert_refused(cubin([_IMMA, _LDL], 8), rule, "local memory", "1 accesses")
        self.assert_refused(cubin([_IMMA], 8, stack=16), rule, "16 bytes of stack")
        rule["stack"] = {"sm_80": 8, "*": 0}
        self.assertEqual(self.run_gate(cubin([_IMMA, _LDL], 8, stack=8), [rule])[0], 0)
        self.assert_refused(cubin([_IMMA], 8, stack=16), rule, "16 bytes of stack")

    def test_missing_instruction(self):
        self.assert_refused(cubin([_LOP3], 8), {"kernel": "RankSum", "registers": 255, "has": ["IMMA"]}, "no IMMA")

    def test_ratio(self):
        rule = {"kernel": "RankSum", "registers": 255, "ratios": [{"of": ["LOP3"], "to": "IMMA", "at_most": 1.5}]}
        self.assert_refused(cubin([_IMMA, _LOP3, _LOP3], 8), rule, "2 LOP3 for 1 IMMA")

    def test_every_kernel_has_a_rule_and_every_rule_a_kernel(self):
        status, output = self.run_gate(cubin([_IMMA], 8), [{"kernel": "Other", "registers": 255}])
        self.assertEqual(status, 1)
        self.assertIn("no rule of the budgets covers this kernel", output)
        self.assertIn("'Other' covers no kernel", output)


if __name__ == "__main__":
    unittest.main()
