"""Files of at most 500 lines, functions of at most 70, C++ lines of at most 100 columns."""

import ast
import re

from source import SIZED_SUFFIXES

RULE = "size"
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
COLUMNS_MAX = 100

_ATTRIBUTE = re.compile(r"\[\[.*?\]\]|\balignas\s*\([^)]*\)|__attribute__\s*\(\(.*?\)\)|\b__launch_bounds__\s*\([^)]*\)")
_CPP_CONTAINER = re.compile(r"^(?:(?:typedef|inline|static|const|constexpr|export|extern)\s+)*"
                            r"(?:namespace|class|struct|union|enum|extern\s*\"\s*\")(?![\w])|^extern\s*\"")
_RUST_CONTAINER = re.compile(r"(?:^|\s)(?:impl|mod|trait|struct|enum|union|extern)\b")
_FUNCTION_TAIL = re.compile(r"(?:\)|\bconst|\bnoexcept|\boverride|\bfinal|\btry|>|\w|&|\})\s*$")


def _strip_templates(header):
    """`header` without its leading template<...> clauses, whose `class` is no class."""
    while True:
        match = re.match(r"\s*template\s*<", header)
        if not match:
            return header.strip()
        depth, at = 1, match.end()
        while at < len(header) and depth:
            depth += {"<": 1, ">": -1}.get(header[at], 0)
            at += 1
        header = header[at:]


def _kind(header, rust):
    """What a brace at namespace or class level opens: "container", "function" or "data"."""
    header = " ".join(header.split())
    if rust:
        if re.search(r"\bfn\b", header):
            return "function"
        return "container" if _RUST_CONTAINER.search(header) else "data"
    header = _strip_templates(_ATTRIBUTE.sub(" ", header))
    header = re.sub(r"^(?:public|private|protected)\s*:\s*", "", header)
    if _CPP_CONTAINER.search(header) and "(" not in header:
        return "container"
    if header.endswith(("=", ",", "(", "return")) or "(" not in header:
        return "data"
    return "function" if _FUNCTION_TAIL.search(header) else "data"


def _without_directives(code):
    """Lines of code with preprocessor directives (and their continuations) emptied."""
    result, continued = [], False
    for line in code:
        directive = continued or line.lstrip().startswith("#")
        continued = directive and line.rstrip().endswith("\\")
        result.append("" if directive else line)
    return result


def functions(code, rust=False):
    """(first line, last line) of each outermost function of blanked code lines."""
    kinds, header, header_line = [], "", 0
    inside = 0  # depth of braces within a function or data
    lines = code if rust else _without_directives(code)
    for number, line in enumerate(lines, 1):
        for char in line:
            if inside:
                inside += {"{": 1, "}": -1}.get(char, 0)
                if not inside:
                    kind, first = kinds.pop()
                    if kind == "function":
                        yield first, number
                    header, header_line = "", 0
            elif char == "{":
                kind = _kind(header, rust)
                kinds.append((kind, header_line or number))
                inside = 0 if kind == "container" else 1
                header, header_line = "", 0
            elif char in ";}":
                if char == "}" and kinds:
                    kinds.pop()
                header, header_line = "", 0
            else:
                if not header.strip() and not char.isspace():
                    header_line = number
                header += char
        header += " "


def _python_functions(source):
    try:
        tree = ast.parse(source.text)
    except SyntaxError as error:
        yield source.at(error.lineno or 1, RULE, f"this Python does not parse: {error.msg}")
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            count = node.end_lineno - node.lineno + 1
            if count > FUNCTION_LINES_MAX:
                yield source.at(node.lineno, RULE, f"function {node.name} has {count} lines, at most {FUNCTION_LINES_MAX} are allowed")


def check_functions(source):
    if source.suffix == ".py":
        yield from _python_functions(source)
        return
    for first, last in functions(source.code, rust=source.suffix == ".rs"):
        count = last - first + 1
        if count > FUNCTION_LINES_MAX:
            yield source.at(first, RULE, f"this function has {count} lines, at most {FUNCTION_LINES_MAX} are allowed")


def _raw_string_lines(source):
    """Numbers of the lines that hold a part of a raw string: their text is not ours to wrap."""
    result, at = set(), 0
    for match in re.finditer(r'R"([^\s()\\]{0,16})\(', source.text):
        if match.start() < at:
            continue
        end = source.text.find(f"){match.group(1)}\"", match.end())
        at = len(source.text) if end < 0 else end
        first = source.text.count("\n", 0, match.start()) + 1
        result.update(range(first, first + source.text.count("\n", match.start(), at) + 1))
    return result


def check_columns(source):
    raw = None
    for number, line in enumerate(source.lines, 1):
        if len(line) <= COLUMNS_MAX or line.lstrip().startswith("#include") or "://" in line:
            continue
        raw = _raw_string_lines(source) if raw is None else raw
        if number not in raw:
            yield source.at(number, RULE, f"this line has {len(line)} columns, at most {COLUMNS_MAX} are allowed")


def check(files):
    for source in files:
        if source.text is None or not (source.suffix in SIZED_SUFFIXES or source.is_cmake):
            continue
        if len(source.lines) > FILE_LINES_MAX:
            yield source.at(FILE_LINES_MAX + 1, RULE, f"this file has {len(source.lines)} lines, at most {FILE_LINES_MAX} are allowed")
        if source.is_cpp:
            yield from check_columns(source)
        if source.is_cpp or source.suffix in (".rs", ".py"):
            yield from check_functions(source)
