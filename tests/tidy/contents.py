"""What kind of file may be in git: text, and the few binary files listed here; nothing large but the demo model's weights."""

import fnmatch

RULE = "content"
BYTES_MAX = 1_000_000

BINARY_ALLOWED = (
    "deploy/demo-model/model.safetensors",
    "tests/golden/*.bin",
    "tests/golden/*.npy",
    "tests/golden/*.safetensors",
    "tests/fuzz/*/corpus/*",
)
LARGE_ALLOWED = ("deploy/demo-model/model.safetensors",)


def _listed(path, patterns):
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def check(files):
    for source in files:
        if source.text is None and not _listed(source.path, BINARY_ALLOWED):
            yield source.at(1, RULE, "this is no UTF-8 text and not on the list of binary files (tests/tidy/contents.py)")
        if len(source.data) > BYTES_MAX and not _listed(source.path, LARGE_ALLOWED):
            yield source.at(1, RULE, f"this file has {len(source.data)} bytes, at most {BYTES_MAX} are allowed")
