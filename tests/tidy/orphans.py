"""Nothing lies about unused or unexplained: sources are built, headers included, calls forwarded, folders described."""

import posixpath
import re

from layering import includes

RULE = "orphan"

_COMMENT = re.compile(r"#[^\n]*")
_TOKEN = re.compile(r'[^\s()";]+')
_OWN_FOLDER = ("${CMAKE_CURRENT_SOURCE_DIR}/", "${CMAKE_CURRENT_LIST_DIR}/")
_VIRTUAL = re.compile(r"\bvirtual\b[^;{(]*?(?<!~)\b(\w+)\(")  # a function, no destructor
_GLOB = re.compile(r"\bfile\s*\(\s*GLOB", re.IGNORECASE)


def _resolve(token, folder):
    """The project path that a word of a CMake file means, as far as it can be known without running CMake."""
    for variable in _OWN_FOLDER:
        if token.startswith(variable):
            return posixpath.normpath(posixpath.join(folder, token[len(variable):]))
    if token.startswith("${"):  # another variable: a folder, the root of the project most likely
        return token.split("}/", 1)[-1]
    return posixpath.normpath(posixpath.join(folder, token))


def listed_in_cmake(files):
    """Every path that some CMake file names. A name without suffix counts for its .cc and .cu (foreach over names)."""
    listed = set()
    for source in files:
        if not source.is_cmake:
            continue
        for token in _TOKEN.findall(_COMMENT.sub("", source.text or "")):
            path = _resolve(token, source.folder)
            listed.add(path)
            if "." not in posixpath.basename(path):
                listed.update((path + ".cc", path + ".cu"))
    return listed


def check_built(files):
    listed = listed_in_cmake(files)
    for source in files:
        if source.suffix in (".cc", ".cu") and source.path not in listed:
            yield source.at(1, RULE, "no CMakeLists.txt lists this file")
        if source.is_cmake:
            for number, line in enumerate(source.lines, 1):
                if _GLOB.search(_COMMENT.sub("", line)):
                    yield source.at(number, RULE, "sources are listed one by one, not by a glob")


def check_included(files):
    included = {header for source in files if source.is_cpp for _, header, _ in includes(source)}
    for source in files:
        if source.suffix in (".h", ".cuh") and source.path not in included:
            yield source.at(1, RULE, "nothing includes this header")


def check_forwarded(files):
    """forwarding_X.h overrides every virtual function of X.h beside it: one with a body of its own would be lost without a word."""
    by_path = {source.path: "\n".join(source.code) for source in files if source.suffix == ".h"}
    for source in files:
        base = by_path.get(source.path.replace("/forwarding_", "/"))
        if not source.name.startswith("forwarding_") or base is None:
            continue
        for name in _VIRTUAL.findall(base):
            if not re.search(rf"\b{name}\([^;{{]*\boverride\b", by_path[source.path]):
                yield source.at(1, RULE, f"this class does not forward {name}")


def check_rust_modules(files):
    """A Rust file is the root of a crate or is named by a `mod`."""
    rust = [source for source in files if source.suffix == ".rs"]
    named = {name for source in rust for name in re.findall(r"\bmod\s+(\w+)\s*;", "\n".join(source.code))}
    for source in rust:
        stem = source.folder.rsplit("/", 1)[-1] if source.name == "mod.rs" else source.name[:-3]
        in_tree = "/src/" in f"/{source.path}"
        if in_tree and stem not in ("lib", "main") and stem not in named:
            yield source.at(1, RULE, "no `mod` names this file")


def check_readmes(files):
    """Every folder that holds files has a README.md; hidden folders and a crate's src (its README is one up) excepted."""
    paths = {source.path for source in files}
    for folder in sorted({source.folder for source in files}):
        prefix = folder + "/" if folder else ""
        hidden = any(part.startswith(".") for part in folder.split("/"))
        crate = folder.endswith("/src") and posixpath.dirname(folder) + "/Cargo.toml" in paths
        if not hidden and not crate and prefix + "README.md" not in paths:
            first = next(source for source in files if source.folder == folder)
            yield first.at(1, RULE, f"the folder {folder or '.'} has no README.md")


def check(files):
    yield from check_built(files)
    yield from check_included(files)
    yield from check_forwarded(files)
    yield from check_rust_modules(files)
    yield from check_readmes(files)
