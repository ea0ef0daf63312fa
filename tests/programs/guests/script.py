"""Classes, generators, exceptions, dictionaries, big integers, json, re, struct, math."""
import collections, functools, hashlib, json, math, re, struct, sys

def primes(limit):
    sieve = bytearray([1]) * (limit + 1)
    for i in range(2, math.isqrt(limit) + 1):
        if sieve[i]:
            sieve[i * i :: i] = bytes(len(range(i * i, limit + 1, i)))
    return [i for i in range(2, limit + 1) if sieve[i]]

class Shape:
    def __init__(self, size): self.size = size
    def area(self): raise NotImplementedError
class Square(Shape):
    def area(self): return self.size**2
class Circle(Shape):
    def area(self): return math.pi * self.size**2

@functools.lru_cache(None)
def ways(n): return 1 if n < 2 else ways(n - 1) + ways(n - 2)

text = open(sys.argv[1]).read()
count = collections.Counter(re.findall(r"[a-z]+", text.lower()))
print(sorted(count.items(), key=lambda item: (-item[1], item[0]))[:8])
print(len(primes(20000)), sum(primes(2000)))
print([round(shape.area(), 6) for shape in (Square(3), Circle(2))])
print(ways(90), 3**200 % 10**40, hash(2**61 - 1))
print(json.dumps(json.loads('{"a": [1, 2.5, null, "\\u00e9"], "b": {"c": true}}'), sort_keys=True))
print(struct.pack("<IhdB", 7, -3, 1.5, 255).hex(), hashlib.sha256(text.encode()).hexdigest())
try:
    Shape(1).area()
except NotImplementedError as error:
    print("raised", type(error).__name__)
def numbers():
    total = 0
    while True:
        value = yield total
        total += value
generator = numbers(); next(generator)
for value in range(500): last = generator.send(value)
print(last, f"{math.sin(1):.15f} {1e300 * 1e10} {float('nan')}")
sys.exit(5)
