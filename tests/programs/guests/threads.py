"""Threads of CPython: queues, pools, events set by signal handlers, barriers, an exit from
another thread."""
import concurrent.futures
import os
import queue
import signal
import sys
import threading
import time

jobs = queue.Queue()
squares = []


def worker():
    while (job := jobs.get()) is not None:
        squares.append(job * job)


threads = [threading.Thread(target=worker) for _ in range(4)]
for thread in threads:
    thread.start()
for job in range(1000):
    jobs.put(job)
for _ in threads:
    jobs.put(None)
for thread in threads:
    thread.join()
print(len(squares), sum(squares))

with concurrent.futures.ThreadPoolExecutor(4) as pool:
    print(list(pool.map(lambda n: sum(range(n)), range(0, 10000, 1000))))

event = threading.Event()
signal.signal(signal.SIGALRM, lambda *_: event.set())
signal.setitimer(signal.ITIMER_REAL, 0.05)
waiter = threading.Thread(target=event.wait)
waiter.start()
waiter.join()
print("event", event.is_set())

local = threading.local()
barrier = threading.Barrier(3)
wrong = []


def meet(number):
    local.number = number
    barrier.wait()
    if local.number != number:
        wrong.append(number)


threads = [threading.Thread(target=meet, args=(number,)) for number in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("wrong", wrong)

sys.stdout.flush()
threading.Timer(0.02, lambda: os._exit(4)).start()
time.sleep(10)
