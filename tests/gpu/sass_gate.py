#!/usr/bin/env python3
"""What the compiler made of the kernels: fails when it spilled, used more registers than agreed, or missed the tensor cores.

usage: sass_gate.py [--budgets budgets.json] [--table] FILE...

FILE is an object of nvcc (its machine code is taken out by cuobjdump) or a cubin. Every kernel must match a rule of the budgets
(kernels/cuda/budgets.json says what a rule holds). From sm_70 on an instruction has 16 bytes and its opcode is the low 12 bits of
the first word, of which the upper three select the form of the operands; counting them needs no disassembler. Registers and stack
are read from the file's .nv.info, where the driver finds them too. No GPU is needed.
"""

import argparse
import collections
import json
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile

# Low nine bits of the opcode -> mnemonic, for what the rules count. 0x183, 0x187: local memory.
_FORMS = {
    0x037: "IMMA", 0x03c: "HMMA", 0x1f1: "GMMA",
    0x012: "LOP3", 0x019: "SHF", 0x016: "PRMT", 0x024: "IMAD", 0x010: "IADD3", 0x011: "LEA",
    0x030: "HADD2", 0x031: "HFMA2", 0x032: "HMUL2", 0x020: "FMUL", 0x021: "FADD", 0x023: "FFMA",
    0x181: "LDG", 0x186: "STG", 0x184: "LDS", 0x188: "STS", 0x03b: "LDSM", 0x1ae: "LDGSTS",
    0x183: "LDL", 0x187: "STL",
}
_REGISTERS, _FRAME = 0x2F, 0x11  # attributes of .nv.info
_SYMBOLS = 2                     # section type
_NO_BITS = 8
_SCOPE = re.compile(r"\bqserve::kernels::(?:cuda::)?(?:\(anonymous namespace\)::)?")


class Kernel:
    """One kernel in one file: its architecture, name, registers, stack bytes, and instructions by name."""

    def __init__(self, arch, name, code):
        self.arch, self.name = arch, name
        self.registers = self.stack = None
        self.instructions = len(code) // 16
        self.counts = collections.Counter()
        for at in range(0, len(code) - 15, 16):
            opcode = struct.unpack_from("<H", code, at)[0] & 0x1FF
            if opcode in _FORMS:
                self.counts[_FORMS[opcode]] += 1


def text_at(table, offset):
    return table[offset:table.index(b"\0", offset)].decode()


def sections(image):
    """[(name, type, bytes)] of a 64-bit ELF image."""
    if image[:5] != b"\x7fELF\x02":
        raise ValueError("this is not a 64-bit ELF file")
    offset, = struct.unpack_from("<Q", image, 0x28)
    size, count, names = struct.unpack_from("<HHH", image, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", image, offset + i * size) for i in range(count)]
    bodies = [b"" if h[1] == _NO_BITS else image[h[4]:h[4] + h[5]] for h in headers]
    return [(text_at(bodies[names], h[0]), h[1], body) for h, body in zip(headers, bodies)]


def symbol_names(parts):
    by_name = {name: body for name, _, body in parts}
    strings = by_name[".strtab"]
    table = next(body for _, kind, body in parts if kind == _SYMBOLS)
    return [text_at(strings, struct.unpack_from("<I", table, at)[0]) for at in range(0, len(table), 24)]


def attributes(info):
    """(attribute, symbol, value) of the entries of .nv.info that hold two words."""
    at = 0
    while at + 4 <= len(info):
        form, attribute, length = struct.unpack_from("<BBH", info, at)
        at += 4
        if form != 4:  # the value is the length field itself
            continue
        if length == 8:
            yield (attribute, *struct.unpack_from("<II", info, at))
        at += length


def kernels_of(image, arch):
    parts = sections(image)
    found = {name[len(".text."):]: Kernel(arch, name[len(".text."):], body)
             for name, _, body in parts if name.startswith(".text.")}
    symbols = symbol_names(parts)
    for attribute, symbol, value in attributes(next((body for name, _, body in parts if name == ".nv.info"), b"")):
        kernel = found.get(symbols[symbol])
        if kernel and attribute == _REGISTERS:
            kernel.registers = value
        elif kernel and attribute == _FRAME:
            kernel.stack = value
    return list(found.values())


def cubins(path, folder, nvcc):
    """[(architecture, image)] of an object or cubin."""
    match = re.search(r"\.(sm_\w+)\.cubin$", path.name)
    if match:
        return [(match.group(1), path.read_bytes())]
    target = folder / f"{len(list(folder.iterdir()))}"
    target.mkdir()
    subprocess.run([find_cuobjdump(nvcc), "-xelf", "all", str(path.resolve())], cwd=target, check=True, stdout=subprocess.DEVNULL)
    return [one for cubin in sorted(target.iterdir()) for one in cubins(cubin, folder, nvcc)]


def find_cuobjdump(nvcc):
    nvcc = shutil.which(nvcc)
    candidates = [shutil.which("cuobjdump")]
    if nvcc:
        root = pathlib.Path(nvcc).resolve().parent.parent  # of a toolkit, or of an environment of Python with nvcc's packages
        candidates += [*root.glob("lib/python3*/site-packages/nvidia/cu*/bin/cuobjdump"), *root.glob("bin/cuobjdump")]
    tool = next((str(one) for one in candidates if one), None)
    if not tool:
        sys.exit("sass_gate: no cuobjdump beside nvcc: it comes with the CUDA toolkit, or by deploy/setup.sh --cuda")
    return tool


def readable(names):
    """Kernel<arguments>, without the wrapper and our namespaces."""
    if not names or not shutil.which("c++filt"):
        return dict(zip(names, names))
    plain = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout.split("\n")
    short = {}
    for name, full in zip(names, plain):
        match = re.match(r"void qserve::kernels::cuda::Entry<(.*?) ?>\(", full)
        short[name] = _SCOPE.sub("", match.group(1) if match else full)
    return short


def limit(value, arch):
    """A number, or one for each architecture with that of the others under "*"."""
    return value.get(arch, value.get("*")) if isinstance(value, dict) else value


def violations(kernel, name, rules):
    rule = next((r for r in rules if re.search(r["kernel"], name)), None)
    if rule is None:
        yield "no rule of the budgets covers this kernel"
        return
    if kernel.registers is None:
        yield "the file does not say how many registers it uses"
    elif kernel.registers > limit(rule["registers"], kernel.arch):
        yield f"{kernel.registers} registers, agreed are {limit(rule['registers'], kernel.arch)}"
    local = kernel.counts["LDL"] + kernel.counts["STL"]
    allowed = limit(rule.get("stack", 0), kernel.arch)  # bytes, and as many accesses: a spilled word or two outside the loop
    if (kernel.stack or 0) > allowed or local > allowed:
        yield f"local memory: {kernel.stack} bytes of stack, {local} accesses"
    for wanted in rule.get("has", ()):
        if kernel.counts[wanted] == 0:
            yield f"no {wanted}: it does not use what it was written for"
    for ratio in rule.get("ratios", ()):
        base = kernel.counts[ratio["to"]]
        count = sum(kernel.counts[one] for one in ratio["of"])
        if base and count > ratio["at_most"] * base:
            yield f"{count} {'+'.join(ratio['of'])} for {base} {ratio['to']}: {count / base:.1f} each, agreed are {ratio['at_most']}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    here = pathlib.Path(__file__).resolve().parent
    parser.add_argument("--budgets", type=pathlib.Path, default=here.parent.parent / "kernels/cuda/budgets.json")
    parser.add_argument("--nvcc", default="nvcc", help="the compiler, beside which cuobjdump is looked for")
    parser.add_argument("--table", action="store_true", help="print what was found of every kernel")
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    options = parser.parse_args()
    rules = json.loads(options.budgets.read_text())["rules"]
    with tempfile.TemporaryDirectory() as folder:
        found = [kernel for path in options.files for arch, image in cubins(path, pathlib.Path(folder), options.nvcc)
                 for kernel in kernels_of(image, arch)]
    names = readable(sorted({k.name for k in found}))
    bad = []
    for kernel in sorted(found, key=lambda k: (names[k.name], k.arch)):
        name = names[kernel.name]
        if options.table:
            counts = " ".join(f"{one} {n}" for one, n in kernel.counts.most_common())
            print(f"{kernel.arch:7} {kernel.registers:4} registers {kernel.instructions:6} instructions  {name}  {counts}")
        bad += [f"{kernel.arch} {name}: {text}" for text in violations(kernel, name, rules)]
    unused = [r["kernel"] for r in rules if not r.get("optional") and not any(re.search(r["kernel"], n) for n in names.values())]
    bad += [f"the budgets' rule '{pattern}' covers no kernel" for pattern in unused]
    for line in bad:
        print(f"sass_gate: {line}", file=sys.stderr)
    architectures = ", ".join(sorted({k.arch for k in found})) or "no architecture"
    print(f"sass_gate: {len(found)} kernels of {architectures}, {len(bad)} violations")
    return 1 if bad or not found else 0


if __name__ == "__main__":
    sys.exit(main())
