"""Who may include whom: the layers of docs/ARCHITECTURE.md as a table, and the special rules beside it."""

import re

RULE = "layering"

# Every top folder that holds sources. Includes of the project's headers are written from the root and so begin with one of these.
TOP_FOLDERS = ("bench", "client", "common", "kernels", "proto", "quantizer", "router", "tests", "worker")

_KERNELS = ("common", "kernels", "kernels/quant")
_BELOW_EXEC = _KERNELS + ("worker/checkpoint", "worker/comm", "worker/group", "worker/model", "worker/plan", "worker/text")
_BELOW_ENGINE = _BELOW_EXEC + ("worker/exec", "worker/sched")
_BELOW_SERVE = _BELOW_ENGINE + ("worker/engine", "common/rpc", "proto")
_WORKER = _BELOW_SERVE + ("worker/serve", "worker")

# room -> the other rooms it may include. A file belongs to the longest room that is a prefix of its folder.
ALLOWED = {
    "common": (),
    "common/rpc": ("common", "proto"),
    "proto": (),
    "kernels/quant": ("common", "kernels"),
    "kernels": ("common", "kernels/quant"),
    "kernels/cpu": _KERNELS,
    "kernels/cuda": _KERNELS + ("kernels/cuda/device",),
    "kernels/cuda/device": _KERNELS + ("kernels/cuda", "kernels/cuda/emulator"),
    "kernels/cuda/emulator": ("common", "kernels/quant", "kernels/cuda"),
    "kernels/no_cuda": _KERNELS + ("kernels/cuda",),
    "worker/checkpoint": _KERNELS,
    "worker/text": ("common",),
    "worker/plan": ("common",),
    "worker/group": ("common",),
    "worker/comm": _KERNELS + ("worker/group",),
    "worker/model": _KERNELS + ("worker/checkpoint", "worker/comm"),
    "worker/sched": ("common", "worker/plan"),
    "worker/exec": _BELOW_EXEC,
    "worker/engine": _BELOW_ENGINE,
    "worker/serve": _BELOW_SERVE,
    "worker": _WORKER,
    "quantizer": _BELOW_EXEC + ("worker/exec",),
    "router": ("common", "common/rpc", "proto"),
    "client": ("common", "common/rpc", "proto"),
    "bench": _WORKER + ("client", "quantizer"),
}

# Files that compose: they may include what their room may not. NCCL's communicator works on the CUDA backend's stream.
COMPOSERS = {
    "kernels/device_factory": ("kernels/cpu", "kernels/cuda", "kernels/no_cuda"),
    "kernels/cuda/runtime_emulated": ("kernels/cuda/emulator",),
    "worker/comm/nccl": ("kernels/cuda",),
    "bench/gpu_bench": ("kernels/cuda",),
}

_INCLUDE = re.compile(r'^\s*#\s*include\s*(?:"([^"]+)"|<([^>]+)>)')
_GRPC = re.compile(r"^(grpcpp/|grpc/|grpc\+\+/)|\.grpc\.pb\.h$")
_CUDA = re.compile(r"^(cuda|cublas|curand|cub/|thrust/|nvtx|nvml|mma\.h|cooperative_groups)")
_NCCL = re.compile(r"^nccl")
_GLOO = re.compile(r"^gloo/")

# What is compiled for a GPU: the kernels (device/) and the sources that launch them (*.cu) with their launch headers.
_DEVICE = "kernels/cuda/device/"
_DEVICE_STANDARD = ("cstddef", "cstdint", "limits", "type_traits", "utility")
_LAUNCH_STANDARD = ("algorithm", "array", "bit", "cmath", "initializer_list")
_DEVICE_PLAIN = ("kernels/types.h", "kernels/status.h")
_PLAIN_ROOM = "kernels/quant/"
_LAUNCH_HEADER = re.compile(r"^kernels/cuda/\w+\.h$")
# Host code of the CUDA backend beside the launches: it knows the device interface, and device code knows nothing of it.
_CUDA_HOST = ("kernels/cuda/runtime", "kernels/cuda/arena", "kernels/cuda/staging", "kernels/cuda/cuda_backend",
              "kernels/cuda/cuda_stream", "kernels/cuda/step_runner", "kernels/cuda/graph")
# What the vocabulary of device code is made of: the two compilers meet here.
_VOCABULARY = (_DEVICE + "simt", _DEVICE + "kernel.h")

# (pattern of the included header, folders and files that may, why)
_EXTERNAL = (
    (_CUDA, (_DEVICE + "simt_ptx.h", _DEVICE + "kernel.h", "kernels/cuda/runtime_cuda.cc", "worker/comm/nccl_library.cc", "tests/gpu/"),
     "CUDA headers stay in simt_ptx.h, kernel.h, runtime_cuda.cc and nccl_library.cc"),
    (_NCCL, ("worker/comm/nccl_library.cc",), "NCCL stays in nccl_library.cc"),
    (_GLOO, ("worker/comm/", "tests/"), "Gloo stays in worker/comm"),
)
_GRPC_IN_COMMON = "common/rpc/"
_NO_GRPC = ("common/", "kernels/", "quantizer/", "worker/plan/", "worker/checkpoint/", "worker/text/", "worker/comm/", "worker/group/",
            "worker/model/", "worker/exec/", "worker/sched/", "worker/engine/")

# Where concrete backends live, and the factory that makes them.
_BACKENDS = ("kernels/cpu/", "kernels/cuda/", "kernels/no_cuda/", "kernels/cpu_backend", "kernels/cuda_backend",
             "kernels/device_factory", "tests/")
_BACKEND_HEADER = re.compile(r"^kernels/(?:cpu/|cuda/)?\w*(?:cpu|cuda)_backend\.h$")

# (names in code, who may name them, message)
_CONCRETE = (
    (re.compile(r"\b(?:Local|Gloo|Nccl|HostStaged)Communicator\b"),
     ("worker/comm/", "worker/exec/rank.cc", "tests/"), "only worker/exec/rank.cc names a concrete communicator"),
    (re.compile(r"\b(?:Cpu|Cuda)Backend\b"),
     _BACKENDS, "only kernels/device_factory names a concrete backend"),
)


def room_of(path):
    """The room of a project path, or None outside all rooms (tests, which may include everything)."""
    folder = path.rsplit("/", 1)[0] if "/" in path else ""
    while folder:
        if folder in ALLOWED:
            return folder
        folder = folder.rsplit("/", 1)[0] if "/" in folder else ""
    return None


def includes(source):
    """(line number, header, quoted) of every include of a C++ file."""
    for number, line in enumerate(source.lines, 1):
        match = _INCLUDE.match(line)
        if match and source.code[number - 1].lstrip().startswith("#"):
            yield number, match.group(1) or match.group(2), match.group(1) is not None


def is_generated(header):
    return header.endswith(".pb.h")


def target_room(header):
    """The room of an included project header, None for a header from outside, "tests" for tests."""
    if is_generated(header):
        return "proto"
    if header.split("/", 1)[0] not in TOP_FOLDERS or "/" not in header:
        return None
    return "tests" if header.startswith("tests/") else room_of(header)


def may_include(source_path, room, target):
    if target == room or (room == "router" and target == "router"):
        return True
    for prefix, extra in COMPOSERS.items():
        if source_path.startswith(prefix) and target in extra:
            return True
    return target in ALLOWED[room]


def check_table(source):
    if source.path.startswith("tests/"):
        return
    room = room_of(source.path)
    if room is None:
        yield source.at(1, RULE, "this folder is in no layer: add it to tests/tidy/layering.py and docs/ARCHITECTURE.md")
        return
    for line, header, _ in includes(source):
        target = target_room(header)
        if target is None:
            continue
        if target == "tests":
            yield source.at(line, RULE, f"{room} includes {header}, which belongs to the tests")
        elif not may_include(source.path, room, target):
            allowed = ", ".join(ALLOWED[room]) or "nothing"
            yield source.at(line, RULE, f"{room} may not include {target} ({header}); it may include: {allowed}")


def check_paths(source, known):
    """Project headers are included from the root, in quotes, and exist, or are made from NAME.h.in."""
    for line, header, quoted in includes(source):
        if is_generated(header):
            continue
        sibling = f"{source.folder}/{header}"
        if header.split("/", 1)[0] in TOP_FOLDERS and "/" in header:
            if header not in known and header + ".in" not in known:
                yield source.at(line, RULE, f"there is no {header}")
            elif not quoted:
                yield source.at(line, RULE, f"a header of the project is included in quotes: {header}")
        elif header.startswith(".") or (quoted and sibling in known):
            yield source.at(line, RULE, f"headers of the project are included from the root, not as {header}")


def check_external(source):
    for line, header, _ in includes(source):
        for pattern, may, why in _EXTERNAL:
            if pattern.search(header) and not source.path.startswith(may):
                yield source.at(line, RULE, f"{header}: {why}")
        if _BACKEND_HEADER.search(header) and not source.path.startswith(_BACKENDS):
            yield source.at(line, RULE, f"{header}: only kernels/device_factory includes a concrete backend")
        grpc_free = source.path.startswith(_NO_GRPC) and not source.path.startswith(_GRPC_IN_COMMON)
        if grpc_free and _GRPC.search(header):
            yield source.at(line, RULE, f"{header}: the engine and everything below it know no gRPC")


def is_device_code(path):
    return path.startswith(_DEVICE) or (path.endswith((".cu", ".cuh")) and not path.startswith("tests/"))


def launch_headers(files):
    """Headers of kernels/cuda that a .cu includes: nvcc compiles them, so the same rule holds for them."""
    return {header for source in files if source.is_cpp and source.suffix == ".cu" and is_device_code(source.path)
            for _, header, _ in includes(source) if _LAUNCH_HEADER.match(header)}


def may_be_in_device_code(source, header):
    if header.startswith((_DEVICE, _PLAIN_ROOM)) or header in _DEVICE_PLAIN or header in _DEVICE_STANDARD:
        return True
    if source.path.startswith(_VOCABULARY):
        return True
    if source.path.startswith(_DEVICE):
        return header == "kernels/cuda/stream.h"
    return header in _LAUNCH_STANDARD or (bool(_LAUNCH_HEADER.match(header)) and not header.startswith(_CUDA_HOST))


def check_device(source):
    """Device code sees device/, launch headers and plain types: neither the backend nor anything that waits or allocates."""
    for line, header, _ in includes(source):
        if not may_be_in_device_code(source, header):
            yield source.at(line, RULE, f"device code includes only kernels/cuda/device, launch headers and plain types, not {header}")


def check_concrete(source):
    for number, line in enumerate(source.code, 1):
        for pattern, may, message in _CONCRETE:
            match = pattern.search(line)
            if match and not source.path.startswith(may):
                yield source.at(number, RULE, f"{match.group(0)}: {message}")


def check(files):
    known = {source.path for source in files}
    launches = launch_headers(files)
    for source in files:
        if not source.is_cpp:
            continue
        yield from check_table(source)
        yield from check_paths(source, known)
        yield from check_external(source)
        yield from check_concrete(source)
        if is_device_code(source.path) or source.path in launches:
            yield from check_device(source)
