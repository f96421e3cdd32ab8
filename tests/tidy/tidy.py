#!/usr/bin/env python3
"""Checks the rules of the house over every file of the project: the ctest `tidy`.

    tests/tidy/tidy.py [ROOT]      exit status 1 and one line `file:line: [rule] message` per violation

README.md lists the rules; each is a module with a function check(files) that yields violations.
"""

import pathlib
import sys

import contents
import layering
import orphans
import sizes
import words
from source import project_files

RULES = (layering, sizes, orphans, words, contents)


def violations(root):
    files = project_files(root)
    found = [violation for rule in RULES for violation in rule.check(files)]
    return files, sorted(found, key=lambda violation: (violation.path, violation.line))


def main(arguments):
    root = pathlib.Path(arguments[0] if arguments else pathlib.Path(__file__).parents[2]).resolve()
    files, found = violations(root)
    for violation in found:
        print(violation)
    print(f"tidy: {len(files)} files, {len(found)} violations")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
