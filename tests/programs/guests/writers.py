# Several threads write to one database, each over a connection of its own.

import os
import sqlite3
import threading

NAME = "threads.db"
WRITERS, ROUNDS = 4, 15


def connect():
    connection = sqlite3.connect(NAME, timeout=60, isolation_level=None)
    connection.create_function("mixed", 2, lambda a, b: a * 31 + b)
    return connection


def write(writer):
    connection = connect()
    for number in range(ROUNDS):
        connection.execute("begin immediate")
        connection.execute("insert into entry values (?, ?, mixed(?1, ?2))", (writer, number))
        connection.execute("update total set value = value + ?", (writer,))
        connection.execute("rollback" if number % 5 == 4 else "commit")
    connection.close()


def read(seen):
    connection = connect()
    for _ in range(ROUNDS):
        connection.execute("begin")
        written = connection.execute("select coalesce(sum(writer), 0) from entry").fetchone()
        total = connection.execute("select value from total").fetchone()
        connection.execute("commit")
        seen.append(written == total)
    connection.close()


main = connect()
main.execute("pragma journal_mode = wal")
main.execute("create table entry (writer int, number int, mixed int)")
main.execute("create table total (value int)")
main.execute("insert into total values (0)")
seen = []
threads = [threading.Thread(target=write, args=(writer,)) for writer in range(1, WRITERS + 1)]
threads.append(threading.Thread(target=read, args=(seen,)))
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(all(seen), len(seen))
for row in main.execute("select writer, count(*), sum(mixed) from entry group by writer"):
    print(row)
print(main.execute("select value from total").fetchone(), main.execute("pragma integrity_check").fetchone())
main.close()
for name in os.listdir():
    if name.startswith(NAME):
        os.remove(name)
