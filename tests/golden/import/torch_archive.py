"""Writes what torch.save writes, without torch: Python's own pickler over classes that bear torch's names, and a zip archive of stored
entries, each aligned to 64 bytes, with 32-bit or 64-bit sizes."""

import collections
import io
import pickle
import struct
import sys
import types
import zlib

torch = types.ModuleType("torch")
torch_utils = types.ModuleType("torch._utils")
sys.modules.setdefault("torch", torch)
sys.modules.setdefault("torch._utils", torch_utils)


def _named(module, name):
    kind = type(name, (), {"__module__": module.__name__, "__qualname__": name})
    setattr(module, name, kind)
    return kind


STORAGES = {"F16": _named(torch, "HalfStorage"), "F32": _named(torch, "FloatStorage"), "I8": _named(torch, "CharStorage"),
            "U8": _named(torch, "ByteStorage"), "BF16": _named(torch, "BFloat16Storage"), "I32": _named(torch, "IntStorage")}
SIZES = {"F16": 2, "F32": 4, "I8": 1, "U8": 1, "BF16": 2, "I32": 4}


def _rebuild_tensor_v2():
    raise AssertionError("only its name is pickled")


_rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
torch_utils._rebuild_tensor_v2 = _rebuild_tensor_v2


class Storage:
    def __init__(self, dtype, data):
        self.dtype, self.data = dtype, data


class Tensor:
    """A view of a storage; contiguous unless strides are given."""

    def __init__(self, dtype, shape, data, strides=None, storage=None, offset=0):
        self.storage = storage or Storage(dtype, data)
        self.offset, self.shape = offset, tuple(shape)
        if strides is None:
            strides, step = [], 1
            for size in reversed(self.shape):
                strides.insert(0, step)
                step *= size
        self.strides = tuple(strides)

    def __reduce_ex__(self, protocol):
        return _rebuild_tensor_v2, (self.storage, self.offset, self.shape, self.strides, False, collections.OrderedDict())


class _Pickler(pickle.Pickler):
    def __init__(self, file):
        super().__init__(file, protocol=2)
        self.storages = []

    def persistent_id(self, value):
        if not isinstance(value, Storage):
            return None
        if value not in self.storages:
            self.storages.append(value)
        count = len(value.data) // SIZES[value.dtype]
        return "storage", STORAGES[value.dtype], str(self.storages.index(value)), "cpu", count


class _StateDict(collections.OrderedDict):
    """An OrderedDict with the attribute that modules' state dictionaries have."""

    def __reduce__(self):
        return collections.OrderedDict, (), {"_metadata": collections.OrderedDict()}, None, iter(self.items())


def _zip(entries, wide):
    """`entries`: name -> bytes. `wide`: every size and offset in 64 bits."""
    out, directory = io.BytesIO(), b""
    for name, data in entries.items():
        at, title, crc = out.tell(), name.encode(), zlib.crc32(data)
        small = (0xFFFFFFFF, 0xFFFFFFFF) if wide else (len(data), len(data))
        local_extra = struct.pack("<HHQQ", 1, 16, len(data), len(data)) if wide else b""
        begin = at + 30 + len(title) + len(local_extra) + 4
        padding = -begin % 64
        local_extra += struct.pack("<HH", 0x4246, padding) + b"Z" * padding
        out.write(struct.pack("<IHHHHHIIIHH", 0x04034B50, 0, 0, 0, 0, 0, crc, *small, len(title), len(local_extra)))
        out.write(title + local_extra + data)
        extra = struct.pack("<HHQQQ", 1, 24, len(data), len(data), at) if wide else b""
        directory += struct.pack("<IHHHHHHIIIHHHHHII", 0x02014B50, 0, 0, 0, 0, 0, 0, crc, *small, len(title), len(extra), 0, 0, 0,
                                 0, 0xFFFFFFFF if wide else at) + title + extra
    at = out.tell()
    out.write(directory)
    if wide:
        end64 = out.tell()
        out.write(struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, len(entries), len(entries), len(directory), at))
        out.write(struct.pack("<IIQI", 0x07064B50, 0, end64, 1))
        out.write(struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0))
    else:
        out.write(struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, len(entries), len(entries), len(directory), at, 0))
    return out.getvalue()


def save(path, tensors, folder="archive", wide=False):
    """`tensors`: name -> Tensor."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(_StateDict(tensors))
    entries = {f"{folder}/data.pkl": file.getvalue(), f"{folder}/byteorder": b"little"}
    for number, storage in enumerate(pickler.storages):
        entries[f"{folder}/data/{number}"] = storage.data
    entries[f"{folder}/version"] = b"3\n"
    path.write_bytes(_zip(entries, wide))
