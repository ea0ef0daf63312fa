# Signals as Python programs use them: handlers, alarms, wake-up descriptors, masks, waits,
# threads, timers, children.
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time


def say(*words):
    print(*words, flush=True)


def count(signo, frame):
    global counted
    counted += 1


counted = 0
signal.signal(signal.SIGUSR1, count)
for _ in range(200):
    os.kill(os.getpid(), signal.SIGUSR1)
say("counted", counted)


class Late(Exception):
    pass


def late(signo, frame):
    raise Late


signal.signal(signal.SIGALRM, late)
signal.setitimer(signal.ITIMER_REAL, 0.05)
try:
    total = 0
    while True:
        total += 1
except Late:
    say("interrupted a loop", total > 0)
signal.alarm(1)
say("alarm", signal.alarm(0))
signal.setitimer(signal.ITIMER_REAL, 0.05)
try:
    time.sleep(10)
except Late:
    say("interrupted a sleep")

signal.signal(signal.SIGALRM, count)
counted = 0
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
start = time.monotonic()
time.sleep(0.2)
signal.setitimer(signal.ITIMER_REAL, 0)
say("slept on", time.monotonic() - start >= 0.2, counted > 3)

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGRTMIN])
counted = 0
os.kill(os.getpid(), signal.SIGUSR1)
say("blocked", counted, sorted(s.name for s in signal.sigpending()))
say("waited", signal.sigwait([signal.SIGUSR1]).name)
say("none", signal.sigtimedwait([signal.SIGUSR1], 0.01))
threading.Timer(0.05, lambda: signal.pthread_kill(main, signal.SIGRTMIN)).start()
main = threading.main_thread().ident
info = signal.sigwaitinfo([signal.SIGRTMIN])
say("info", info.si_signo == signal.SIGRTMIN, info.si_pid == os.getpid())
signal.pthread_sigmask(signal.SIG_SETMASK, [])

ours, theirs = socket.socketpair()
theirs.setblocking(False)
signal.set_wakeup_fd(theirs.fileno())
threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGUSR1)).start()
ready, _, _ = select.select([ours], [], [], 5)
say("woken", ready == [ours], ours.recv(10))
signal.set_wakeup_fd(-1)

stop = False
def spin():
    x = 0
    while not stop:
        x = (x * 69069 + 1) & 0xFFFFFFFF
threads = [threading.Thread(target=spin) for _ in range(3)]
for thread in threads:
    thread.start()
counted = 0
for _ in range(100):
    os.kill(os.getpid(), signal.SIGUSR1)
    time.sleep(0.0005)
stop = True
for thread in threads:
    thread.join()
say("beside threads", counted > 0)

for signo in (signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGHUP):
    child = subprocess.Popen(["sleep", "60"])
    child.send_signal(signo)
    say("child", signal.Signals(-child.wait()).name)
child = subprocess.Popen([sys.executable, "-Ic", "import signal; signal.raise_signal(signal.SIGINT)"],
                         stderr=subprocess.PIPE)
_, errors = child.communicate()
say("interrupted child", child.returncode, errors.splitlines()[-1])
child = subprocess.Popen([sys.executable, "-Ic", """
import signal, sys
signal.signal(signal.SIGTERM, lambda *a: sys.exit(7))
print('ready', flush=True)
signal.pause()
"""], stdout=subprocess.PIPE)
child.stdout.readline()
child.terminate()
say("handles its end", child.wait())
os.kill(os.getpid(), signal.SIGTERM)
