# CPython's own tests of its signal module, where they are installed, one line each. Left out:
# two that take long.

import unittest

try:
    import test.test_signal as module
except ImportError:
    print("no test modules")
    raise SystemExit(0)


class Result(unittest.TestResult):
    def line(self, test, text):
        print(test.id().removeprefix("test.test_signal."), text, flush=True)

    def addSuccess(self, test):
        self.line(test, "ok")

    def addSkip(self, test, reason):
        self.line(test, "skipped")

    def addFailure(self, test, error):
        self.line(test, self._exc_info_to_string(error, test))

    addError = addFailure


def wanted(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from wanted(test)
        elif not test.id().endswith(("test_siginterrupt_off", "test_itimer_virtual")):
            yield test


tests = wanted(unittest.defaultTestLoader.loadTestsFromModule(module))
import test.support

test.support.verbose = 0
unittest.TestSuite(tests).run(Result())
