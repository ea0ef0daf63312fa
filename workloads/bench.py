"""Objects, dictionaries, closures, strings, integers and floats. Prints checksums."""
import json
import re
import sys


class Vector:
    __slots__ = ("x", "y")

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __add__(self, other):
        return Vector(self.x + other.x, self.y + other.y)

    def scaled(self, by):
        return Vector(self.x * by, self.y * by)


def walk(steps):
    at, step = Vector(0.0, 0.0), Vector(1.0, 0.5)
    for i in range(steps):
        at = at + step.scaled(1.0 if i % 3 else -0.5)
    return round(at.x + at.y, 6)


def queens(n, row=0, columns=0, up=0, down=0):
    if row == n:
        return 1
    count, free = 0, ((1 << n) - 1) & ~(columns | up | down)
    while free:
        bit = free & -free
        free ^= bit
        count += queens(n, row + 1, columns | bit, (up | bit) << 1, (down | bit) >> 1)
    return count


def sieve(limit):
    flags = [True] * limit
    for i in range(2, int(limit**0.5) + 1):
        if flags[i]:
            for j in range(i * i, limit, i):
                flags[j] = False
    return sum(flags)


def words(count):
    seen = {}
    for i in range(count):
        word = "w%d" % (i * 7919 % 2003)
        seen[word] = seen.get(word, 0) + len(word)
    ordered = sorted(seen.items(), key=lambda item: (-item[1], item[0]))
    text = " ".join(word for word, _ in ordered)
    return ordered[0], len(re.findall(r"w\d*(\d)\1", text)), len(text.upper().split("W1"))


def documents(count):
    data = [{"id": i, "tags": [str(i), "x" * (i % 7)], "value": i / 3} for i in range(count)]
    return sum(len(item["tags"][1]) for item in json.loads(json.dumps(data)))


for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 1):
    print(walk(40000), queens(7), sieve(60000), words(30000), documents(1500), pow(3, 4001, 10**30))
