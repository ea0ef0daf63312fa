# An interactive bash in a terminal of its own: jobs that are stopped, continued and interrupted
# by keys, as a person does it. Prints what the terminal shows, without what differs.

import os
import pty
import select
import sys

PROMPT = b"ready> "
LIMIT = 30

shell, terminal = pty.fork()
if shell == 0:
    os.environ.update(PS1=PROMPT.decode(), TERM="dumb", HISTFILE="/dev/null")
    os.execv("/bin/bash", ["bash", "--norc", "--noprofile", "--noediting", "-i"])

seen = b""


def wait_for(text):
    global seen
    while text not in seen:
        if not select.select([terminal], [], [], LIMIT)[0]:
            sys.exit(f"never came: {text!r} after {seen!r}")
        try:
            more = os.read(terminal, 4096)
        except OSError:
            more = b""
        if not more:
            sys.exit(f"the end, and never {text!r} after {seen!r}")
        seen += more
    before, seen = seen.split(text, 1)
    for line in before.decode().splitlines():
        # Bash's news of its jobs come when they come.
        if line and not line.startswith(("[1]", PROMPT.decode())):
            print(line, flush=True)


def type_in(line, expected=PROMPT):
    os.write(terminal, line.encode() + b"\n")
    wait_for(expected)


def press(key, expected=PROMPT):
    os.write(terminal, key)
    wait_for(expected)


# It starts no programs: a child that is stopped before it has executed its own would keep a
# parent that used vfork from being stopped.
JOB = """$| = 1; $SIG{CONT} = sub { print "continued\\n" }; print "go\\n"; sleep 1 while 1"""

wait_for(PROMPT)
type_in("stty -echo")
type_in("tty > /dev/null && test -t 0 && echo a terminal")
# A pipeline in the foreground is interrupted as a whole.
type_in("(echo go; exec sleep 100) | cat", b"go\r\n")
press(b"\x03")
type_in("echo $?")
# A stopped job comes back, is stopped again, and goes on in the background.
type_in(f"job='{JOB}'")
type_in('perl -e "$job"', b"go\r\n")
press(b"\x1a")
type_in("fg > /dev/null", b"continued\r\n")
press(b"\x1a")
type_in("bg > /dev/null", b"continued\r\n")
type_in("jobs -r | wc -l")
type_in("kill -KILL %%; wait %% 2> /dev/null; echo gone")
# Who reads the terminal from the background is stopped.
type_in("cat & until [[ $(jobs) == *Stopped* ]]; do sleep 0.05; done")
type_in("kill -KILL %%; wait %% 2> /dev/null; echo gone")
# Sizes and their signal.
type_in("trap 'echo resized' WINCH; stty rows 40 cols 100; stty size")
type_in("(echo go; exec cat); echo ended $?", b"go\r\n")
press(b"typed\n", b"typed\r\n")
press(b"\x04", b"ended 0\r\n")
wait_for(PROMPT)
type_in("exit 7", b"exit\r\n")
_, status = os.waitpid(shell, 0)
print("status", os.waitstatus_to_exitcode(status))
