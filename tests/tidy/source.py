"""The files of the project as the rules see them. Used by every rule; reads, never writes."""

import functools
import pathlib
import subprocess

CPP_SUFFIXES = (".cc", ".h", ".cu", ".cuh")
SIZED_SUFFIXES = CPP_SUFFIXES + (".rs", ".py", ".sh", ".cmake", ".proto")


class Violation:
    """One thing wrong, at one place."""

    def __init__(self, path, line, rule, message):
        self.path, self.line, self.rule, self.message = path, line, rule, message

    def __str__(self):
        return f"{self.path}:{self.line}: [{self.rule}] {self.message}"


class Source:
    """One file: `path` is relative to the project, with forward slashes."""

    def __init__(self, root, path):
        self.root, self.path = root, path
        self.name = path.rsplit("/", 1)[-1]
        self.folder = path.rsplit("/", 1)[0] if "/" in path else ""
        self.suffix = pathlib.PurePosixPath(path).suffix

    @functools.cached_property
    def data(self):
        return (self.root / self.path).read_bytes()

    @functools.cached_property
    def text(self):
        """The text, or None for a file that is not UTF-8 text."""
        if b"\0" in self.data:
            return None
        try:
            return self.data.decode("utf-8")
        except UnicodeDecodeError:
            return None

    @functools.cached_property
    def lines(self):
        return (self.text or "").splitlines()

    @functools.cached_property
    def code(self):
        """The lines of a C++ or Rust file with comments and the contents of literals blanked out."""
        return blank(self.text or "", rust=self.suffix == ".rs").split("\n")

    @property
    def is_cpp(self):
        return self.suffix in CPP_SUFFIXES

    @property
    def is_cmake(self):
        return self.name == "CMakeLists.txt" or self.suffix == ".cmake"

    def at(self, line, rule, message):
        return Violation(self.path, line, rule, message)


def project_files(root):
    """Everything that is in git or would be added to it, as Sources sorted by path."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE).stdout
    paths = sorted({entry.decode("utf-8") for entry in listing.split(b"\0") if entry})
    return [Source(root, path) for path in paths if (root / path).is_file()]


class _Blanker:
    """Walks over text once and keeps only what the compiler would read as code; the line structure stays."""

    def __init__(self, text, rust):
        self.text, self.rust, self.index, self.out = text, rust, 0, []

    def keep(self, count=1):
        self.out.append(self.text[self.index:self.index + count])
        self.index += count

    def drop_to(self, end):
        """Blanks everything up to `end`, newlines excepted."""
        end = len(self.text) if end < 0 else min(end, len(self.text))
        self.out.append("".join(c if c == "\n" else " " for c in self.text[self.index:end]))
        self.index = end

    def block_comment(self):
        depth, at = 1, self.index + 2
        while depth and at < len(self.text):
            if self.text.startswith("*/", at):
                depth, at = depth - 1, at + 2
            elif self.rust and self.text.startswith("/*", at):
                depth, at = depth + 1, at + 2
            else:
                at += 1
        self.drop_to(at)

    def line_comment(self):
        end = self.text.find("\n", self.index)
        while end > 0 and self.text[end - 1] == "\\" and not self.rust:
            end = self.text.find("\n", end + 1)
        self.drop_to(end)

    def quoted(self, quote):
        self.keep()
        at = self.index
        while at < len(self.text) and self.text[at] != quote:
            at += 2 if self.text[at] == "\\" else 1
        self.drop_to(at)
        if self.index < len(self.text):
            self.keep()

    def raw_string(self):
        """At the quote of R"tag( or of r#"; returns False where it is not one."""
        before = self.text[max(0, self.index - 8):self.index]
        if self.rust:
            hashes = len(before) - len(before.rstrip("#"))
            if not before.rstrip("#").endswith("r"):
                return False
            end = '"' + "#" * hashes
            start = self.index + 1
        else:
            if not before.endswith("R"):
                return False
            opening = self.text.find("(", self.index)
            end = ")" + self.text[self.index + 1:opening] + '"'
            start = opening + 1
        close = self.text.find(end, start)
        self.keep()
        self.drop_to(close + len(end) - 1 if close >= 0 else -1)
        if close >= 0:
            self.keep()
        return True

    def single_quote(self):
        """A character literal, a digit separator (1'000) or a Rust lifetime ('a)."""
        text, at = self.text, self.index
        previous = text[at - 1] if at else " "
        if self.rust:
            if text.startswith("\\", at + 1) or text[at + 2:at + 3] == "'":
                self.quoted("'")
            else:
                self.keep()
        elif previous.isalnum() and text[at + 1:at + 2].isalnum() and not previous.isalpha():
            self.keep()
        elif previous in "abcdefABCDEF" and _in_hex_number(text, at):
            self.keep()
        else:
            self.quoted("'")

    def run(self):
        text = self.text
        while self.index < len(text):
            char = text[self.index]
            if text.startswith("//", self.index):
                self.line_comment()
            elif text.startswith("/*", self.index):
                self.block_comment()
            elif char == '"':
                if not self.raw_string():
                    self.quoted('"')
            elif char == "'":
                self.single_quote()
            else:
                self.keep()
        return "".join(self.out)


def _in_hex_number(text, at):
    start = at
    while start and (text[start - 1].isalnum() or text[start - 1] == "'"):
        start -= 1
    return text[start:start + 2].lower() == "0x"


def blank(text, rust=False):
    """`text` with comments and the contents of string and character literals replaced by spaces."""
    return _Blanker(text, rust).run()
