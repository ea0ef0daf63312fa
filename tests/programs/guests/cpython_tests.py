"""Runs tests of CPython's own test suite and writes how each ended.

    cpython_tests.py RESULTS MODULE [PATTERN...]

MODULE is one of the package `test`. A PATTERN selects the tests whose name matches it
(fnmatch) anywhere behind a dot; with a leading `!` it leaves them out. RESULTS gets a line
for each test before it runs and one after it, at once: a hang or a crash names its test.
"""

import fnmatch
import importlib
import sys
import unittest

from test import support
from test.support import os_helper

wanted = [pattern for pattern in sys.argv[3:] if not pattern.startswith("!")]
unwanted = [pattern[1:] for pattern in sys.argv[3:] if pattern.startswith("!")]


def matches(name, patterns):
    parts = name.split(".")
    tails = [".".join(parts[at:]) for at in range(len(parts))]
    return any(fnmatch.fnmatchcase(tail, pattern) for tail in tails for pattern in patterns)


def selected(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from selected(test)
        elif (not wanted or matches(test.id(), wanted)) and not matches(test.id(), unwanted):
            yield test


def name_of(test):
    # A name, though a subtest is described over several lines.
    return test.id().splitlines()[0]


class Result(unittest.TestResult):
    def say(self, test, outcome, details=""):
        self.results.write(f"{name_of(test)} {outcome}\n")
        if details:
            print(f"{name_of(test)}: {outcome}\n{details}", file=sys.stderr, flush=True)

    def startTest(self, test):
        super().startTest(test)
        self.results.write(f"{name_of(test)} starts\n")

    def addSuccess(self, test):
        self.say(test, "passes")

    def addError(self, test, error):
        self.say(test, "errs", self._exc_info_to_string(error, test))

    def addFailure(self, test, error):
        self.say(test, "fails", self._exc_info_to_string(error, test))

    def addSubTest(self, test, subtest, error):
        if error is not None:
            self.say(test, "fails", self._exc_info_to_string(error, test))

    def addSkip(self, test, reason):
        self.say(test, "is skipped")

    def addExpectedFailure(self, test, error):
        self.say(test, "fails as expected")

    def addUnexpectedSuccess(self, test):
        self.say(test, "passes unexpectedly")


def main():
    support.verbose = False
    support.use_resources = []
    Result.results = open(sys.argv[1], "w", buffering=1)
    with os_helper.temp_cwd("cpython_tests"):
        module = importlib.import_module(f"test.{sys.argv[2]}")
        suite = unittest.TestLoader().loadTestsFromModule(module)
        unittest.TestSuite(selected(suite)).run(Result())
    Result.results.write("end\n")


# Child processes of multiprocessing's "spawn" import this file again.
if __name__ == "__main__":
    main()
