# A small project built by make with two jobs, then changed and built again.
mkdir project && cd project
for part in one two three four; do
    printf 'int %s(int x) { return x * %d + 1; }\n' "$part" "${#part}" > "$part.c"
done
cat > main.cc <<'SOURCE'
#include <cstdio>
extern "C" int one(int), two(int), three(int), four(int);
struct Thrown { int value; };
int main() {
    std::printf("%d %d %d %d\n", one(1), two(2), three(3), four(4));
    try {
        throw Thrown{7};
    } catch (const Thrown &thrown) {
        std::printf("thrown %d\n", thrown.value);
    }
}
SOURCE
cat > Makefile <<'RULES'
objects := one.o two.o three.o four.o
prog: main.o libparts.a
	@g++ -o $@ main.o libparts.a
libparts.a: $(objects)
	@ar rcsD $@ $(sort $^)
%.o: %.c
	@gcc -O2 -c -o $@ $<
%.o: %.cc
	@g++ -O1 -std=c++17 -c -o $@ $<
fails: ; @exit 3
RULES
make -s -j2 && ./prog
make -q; echo "up to date: $?"
echo 'int two(int x) { return -x; }' > two.c
make -s -j2 && ./prog
make -s fails 2> /dev/null; echo "failed: $?"
echo 'int broken(' > three.c
make -s -j2 > /dev/null 2>&1; echo "broken: $?"
rm -f libparts.a
