# subprocess, os.fork and pipes from Python.
import os, signal, subprocess, sys

def out(*args, **kwargs):
    print(*args, **kwargs)
    sys.stdout.flush()

out(subprocess.run(["echo", "hi"], capture_output=True))
out(subprocess.check_output("echo abc | tr a-c x-z; exit 0", shell=True))
try:
    subprocess.run(["/nonexistent/program"])
except FileNotFoundError as error:
    out(error)
try:
    subprocess.run(["./text"])
except PermissionError as error:
    out(error)
try:
    subprocess.run(["sleep", "100"], timeout=0.1)
except subprocess.TimeoutExpired as error:
    out("timed out", error.cmd)
process = subprocess.Popen(["sort", "-n"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
out(process.communicate("10\n9\n100\n")[0].split())
out(subprocess.run(["sh", "-c", "kill -TERM $$"]).returncode)
out(subprocess.run(["sh", "-c", "pwd; echo $X"], cwd="/", env={"X": "set", "PATH": os.environ["PATH"]},
                   preexec_fn=lambda: os.nice(1), start_new_session=True, capture_output=True).stdout)
pid = os.fork()
if pid == 0:
    os._exit(7)
out(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
reader, writer = os.pipe()
pid = os.fork()
if pid == 0:
    os.write(writer, b"from the child")
    os._exit(0)
os.close(writer)
out(os.read(reader, 100))
os.waitpid(pid, 0)
pid = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 9"], os.environ)
out(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
try:
    os.posix_spawn("/nonexistent", ["x"], {})
except FileNotFoundError as error:
    out(error.errno)
heard = []
signal.signal(signal.SIGCHLD, lambda *_: heard.append(1))
pid = os.fork()
if pid == 0:
    os._exit(0)
os.waitpid(pid, 0)
out(len(heard))
os.execvp("sh", ["sh", "-c", "echo end; exit 5"])
