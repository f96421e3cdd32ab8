"""Words and constructs that do not belong in the project. The lists are written so that they do not match themselves."""

import re

RULE = "word"

# Somebody else's text: licence, data, lock files with the addresses that their tools write.
_EXEMPT = ("LICENSE", "deploy/demo-model/", "tests/golden/")
_EXEMPT_NAMES = ("Cargo.lock",)


def _word(*parts, flags=0):
    return re.compile(r"\b" + "".join(parts) + r"\b", flags)


# (pattern, message): in every text file.
EVERYWHERE = tuple(
    [(_word(*parts), "unfinished work is an issue, not a comment") for parts in
     (("TO", "DO"), ("FIX", "ME"), ("XX", "X"), ("HA", "CK"))] +
    [(_word(*parts, flags=re.IGNORECASE), "say what is there and what is not, or finish it") for parts in
     (("place", "holder"), ("for ", "now"), ("not ", "implemented"))] +
    [(re.compile(r"\b" + re.escape(host), re.IGNORECASE), "no registry's host is named: their ordinary clients know it")
     for host in ("py" + "pi.org", "pythonhosted" + ".org", "crates" + ".io", "deb.debian" + ".org", "registry" + ".npmjs",
                  "proxy.golang" + ".org", "docker" + ".io", "quay" + ".io", "gh" + "cr.io")] +
    [(re.compile(r"(?<![\w.}])/wo" + r"rk/"), "a path of one machine"),
     (re.compile(r"(?<![\w/])(?:\.\./)*shared/(?:design|reference|demo-model)"), "a path outside the project")])

# (pattern, message, may): in the code of C++ files, comments and literals excepted, unless the path begins with one of `may`.
IN_CPP = (
    (_word("using ", r"\s*", "namespace"), "name what is used", ()),
    (_word("std::", "cout"), "libraries do not print",
     ("client/", "bench/", "tests/", "quantizer/main.cc", "worker/main.cc", "router/main.cc")),
    (re.compile(r"^\s*#\s*(?:if|ifdef|ifndef|elif)\b"), "variants are chosen by CMake, not by the preprocessor",
     ("common/", "kernels/cuda/device/", "worker/text/rust/")),  # the last: a C header
)


def check_everywhere(source):
    if source.path.startswith(_EXEMPT) or source.name in _EXEMPT_NAMES:
        return
    for number, line in enumerate(source.lines, 1):
        for pattern, message in EVERYWHERE:
            match = pattern.search(line)
            if match:
                yield source.at(number, RULE, f"'{match.group(0)}': {message}")


def check_cpp(source):
    for number, line in enumerate(source.code, 1):
        for pattern, message, may in IN_CPP:
            match = pattern.search(line)
            if match and not source.path.startswith(may or ("\0",)):
                yield source.at(number, RULE, f"'{match.group(0).strip()}': {message}")


def check(files):
    for source in files:
        if source.text is None:
            continue
        yield from check_everywhere(source)
        if source.is_cpp:
            yield from check_cpp(source)
