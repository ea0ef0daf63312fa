//! Random C programs. A program depends on its seed only, ends, and prints a checksum that is
//! the same wherever its stack and code lie. What C leaves undefined is used on purpose: it is
//! the compiled code that is compared with itself.

use std::fmt::Write as _;

const HEADER: &str = r#"
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

#define NOINLINE __attribute__((noinline))
typedef signed char i8; typedef unsigned char u8; typedef short i16; typedef unsigned short u16;
typedef int i32; typedef unsigned u32; typedef long i64; typedef unsigned long u64;
typedef float f32; typedef double f64;

static u64 sum = 14695981039346656037ul;
static long fuel = FUEL;
static jmp_buf back;
static volatile int can_jump;
static volatile u32 opaque = 1;
static volatile u64 alarms;
static i32 table[16];
static u64 words[8];

NOINLINE static void mix(u64 value) { sum = (sum ^ value) * 1099511628211ul; }
static void mix_f64(f64 value) {
    u64 bits;
    memcpy(&bits, &value, 8);
    if (value != value) bits = 1;
    mix(bits);
}
static u32 turn(void) { u32 x = opaque; x ^= x << 13; x ^= x >> 17; x ^= x << 5; return opaque = x; }
static void on_alarm(int signal) {
    volatile u8 room[300];
    for (int i = 0; i < 300; i++) room[i] = (u8)(i * 7 + signal);
    volatile f64 x = room[17];
    alarms += (u64)(x * 1.5) + room[299];
}
typedef struct { i32 low; i32 box[4]; i64 next; i16 two[3]; i8 one; f64 real; u32 high; } Mixed;
typedef struct { i64 a, b, c; } Triple;
typedef struct { i32 a; f32 b; } Pair;
"#;

const TYPES: &[&str] = &[
    "i8", "u8", "i16", "u16", "i32", "i32", "i32", "u32", "i64", "i64", "u64", "f32", "f64",
];

struct Variable {
    name: String,
    kind: &'static str,
}

impl Variable {
    fn is_float(&self) -> bool {
        self.kind.starts_with('f')
    }
}

pub struct Generator {
    state: u64,
    out: String,
    depth: usize,
    indent: usize,
    loops: usize,
    variables: Vec<Variable>,
    /// Number of the function that is being written; it calls those of lower numbers, and
    /// itself.
    function: usize,
    counter: usize,
}

/// The program of a seed.
pub fn program(seed: u64) -> String {
    let mut generator = Generator {
        state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d,
        out: HEADER.replace("FUEL", "30000"),
        depth: 0,
        indent: 0,
        loops: 0,
        variables: Vec::new(),
        function: 0,
        counter: 0,
    };
    generator.write();
    generator.out
}

impl Generator {
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn line(&mut self, text: &str) {
        let _ = writeln!(self.out, "{:1$}{text}", "", 4 * self.indent);
    }

    fn write(&mut self) {
        let functions = 2 + self.below(5);
        for function in 0..functions {
            self.function = function;
            self.function_body();
        }
        self.main(functions);
    }

    fn signature(function: usize) -> String {
        // Every third function takes more than fits in registers.
        let more = match function % 3 {
            2 => ", i64 e, i32 f, i64 g, i8 h, i64 i, f64 j",
            _ => "",
        };
        format!("NOINLINE static i64 f{function}(i32 a, i64 b, i32 *p, f64 d, int depth{more})")
    }

    fn function_body(&mut self) {
        let function = self.function;
        self.line(&format!("{} {{", Self::signature(function)));
        self.indent = 1;
        self.variables.clear();
        for (name, kind) in [("a", "i32"), ("b", "i64"), ("d", "f64")] {
            self.variables.push(Variable {
                name: name.to_string(),
                kind,
            });
        }
        if function % 3 == 2 {
            for (name, kind) in [("e", "i64"), ("g", "i64"), ("h", "i8"), ("j", "f64")] {
                self.variables.push(Variable {
                    name: name.to_string(),
                    kind,
                });
            }
        }
        self.line("if (--fuel < 0) return a ^ b;");
        for n in 0..2 + self.below(7) {
            let kind = self.pick(TYPES);
            let volatile = if self.one_in(6) { "volatile " } else { "" };
            let value = self.below(200) as i64 - 50;
            self.line(&format!("{volatile}{kind} v{n} = {value};"));
            self.variables.push(Variable {
                name: format!("v{n}"),
                kind,
            });
        }
        self.line("Mixed m = { a, { 1, 2, 3, 4 }, b, { 5, 6, 7 }, 8, d, 9 };");
        self.line("Triple t = { a, 7, b };");
        self.line("Pair o = { a, (f32)d };");
        self.line("i32 x = 3, y = 5; i64 z = b; i32 *q = &x; i64 *r = &z; long double w = a;");
        self.line("i32 array[8] = { a, 1, 2 }; u8 bytes[16] = { 3, (u8)b };");
        for (name, kind) in [
            ("x", "i32"),
            ("y", "i32"),
            ("z", "i64"),
            ("m.low", "i32"),
            ("m.next", "i64"),
            ("m.one", "i8"),
            ("m.real", "f64"),
            ("m.high", "u32"),
            ("t.b", "i64"),
            ("o.b", "f32"),
        ] {
            self.variables.push(Variable {
                name: name.to_string(),
                kind,
            });
        }
        self.depth = 0;
        self.loops = 0;
        let statements = 3 + self.below(6);
        for _ in 0..statements {
            self.statement();
        }
        self.line("(void)q; (void)r; (void)depth; (void)p;");
        let names: Vec<(String, bool)> = self
            .variables
            .iter()
            .map(|variable| (variable.name.clone(), variable.is_float()))
            .collect();
        for (name, is_float) in names {
            if is_float {
                self.line(&format!("mix_f64({name});"));
            } else {
                self.line(&format!("mix((u64){name});"));
            }
        }
        self.line("for (int n = 0; n < 8; n++) mix((u64)array[n] * 31 + bytes[n]);");
        self.line("mix_f64((f64)w); mix((u64)t.a ^ (u64)t.c ^ (u64)m.two[1] ^ (u64)m.box[2]);");
        let result = self.integer(2);
        self.line(&format!("return {result};"));
        self.indent = 0;
        self.line("}");
    }

    fn main(&mut self, functions: usize) {
        self.line("int main(void) {");
        self.indent = 1;
        self.line("i32 own = 1; volatile int round; f64 d = 0.5;");
        if self.one_in(3) {
            self.line("signal(SIGALRM, on_alarm);");
            self.line("struct itimerval often = { { 0, 700 }, { 0, 700 } };");
            self.line("setitimer(ITIMER_REAL, &often, 0);");
        } else {
            self.line("(void)on_alarm;");
        }
        let rounds = 30 + self.below(60);
        self.line(&format!("for (round = 0; round < {rounds}; round++) {{"));
        self.indent = 2;
        self.line("fuel += 400;");
        if self.one_in(2) {
            self.line("if (setjmp(back)) { can_jump = 0; mix(99); continue; }");
            self.line("can_jump = 1;");
        } else {
            self.line("(void)back;");
        }
        for function in 0..functions {
            if function + 1 == functions || self.one_in(2) {
                let more = match function % 3 {
                    2 => ", round, 3, own, (i8)round, 77, d * 3",
                    _ => "",
                };
                self.line(&format!(
                    "mix((u64)f{function}(round, own, &own, d, 0{more}));"
                ));
            }
        }
        self.line("d = d * 1.01 + own % 7; can_jump = 0;");
        self.line("if (round % 8 == 0) printf(\"%d %lx\\n\", round, sum);");
        self.indent = 1;
        self.line("}");
        self.line("for (int n = 0; n < 16; n++) mix((u64)table[n] + words[n & 7]);");
        self.line("printf(\"%lx %d\\n\", sum, own);");
        self.line("return (int)(sum & 63);");
        self.indent = 0;
        self.line("}");
    }

    fn variable(&mut self, float: Option<bool>) -> (String, &'static str) {
        loop {
            let n = self.below(self.variables.len());
            let variable = &self.variables[n];
            if float.is_none_or(|float| float == variable.is_float()) {
                return (variable.name.clone(), variable.kind);
            }
        }
    }

    fn integer(&mut self, depth: usize) -> String {
        if depth == 0 || self.one_in(4) {
            return match self.below(9) {
                0 => format!("{}", self.below(300) as i64 - 100),
                1 => format!("{:#x}", self.next() as u32),
                2 => format!("array[{} & 7]", self.variable(Some(false)).0),
                3 => format!("bytes[{} & 15]", self.variable(Some(false)).0),
                4 => self
                    .pick(&["*q", "*r", "*p", "m.two[1]", "t.a", "o.a", "(i64)w"])
                    .into(),
                5 => format!("table[{} & 15]", self.variable(Some(false)).0),
                _ => self.variable(Some(false)).0,
            };
        }
        let left = self.integer(depth - 1);
        let right = self.integer(depth - 1);
        match self.below(20) {
            0 => format!("({left} / (({right} & 15) + 1))"),
            1 => format!("({left} % (({right} & 63) + 1))"),
            2 => format!("((i32){left} << ({right} & 31))"),
            3 => format!("((u64){left} >> ({right} & 63))"),
            4 => format!("((i64){left} >> ({right} & 63))"),
            5 => {
                let kind = self.pick(&TYPES[..11]);
                format!("(({kind}){left} * ({kind}){right})")
            }
            6 => {
                let kind = self.pick(&TYPES[..11]);
                format!("({kind})({left})")
            }
            7 => format!("({left} < {right} ? {right} : {left} + 1)"),
            8 => format!("({left} == {right})"),
            9 => format!("({left} && {right})"),
            10 => {
                let real = self.real(depth - 1);
                format!("(({real}) > ({left}))")
            }
            11 => {
                let real = self.real(depth - 1);
                format!("(i32)({real})")
            }
            12 => format!("__builtin_popcountl((u64){left})"),
            13 => format!("(i64)__builtin_bswap32((u32){left})"),
            14 => format!("(-({left}))"),
            15 => format!("(~({left}))"),
            16 => format!("({left} - {right})"),
            17 => format!("({left} ^ {right})"),
            _ => format!("({left} + {right})"),
        }
    }

    fn real(&mut self, depth: usize) -> String {
        if depth == 0 || self.one_in(3) {
            return match self.below(4) {
                0 => format!("{}.25", self.below(40)),
                1 => format!("(f64){}", self.variable(Some(false)).0),
                _ => self.variable(Some(true)).0,
            };
        }
        let left = self.real(depth - 1);
        let right = self.real(depth - 1);
        match self.below(7) {
            0 => format!("({left} * {right} * 0.01)"),
            1 => format!("({left} / ({right} + 3.5))"),
            2 => format!("(f32)({left} + {right})"),
            3 => format!("({left} < {right} ? {left} : {right} - 1)"),
            4 => format!("({left} - {right})"),
            5 => format!("(f64)({})", self.integer(1)),
            _ => format!("({left} + {right})"),
        }
    }

    fn call(&mut self) -> String {
        // Itself now and then, never much deeper.
        let function = self.function;
        let callee = if function == 0 || self.one_in(4) {
            function
        } else {
            self.below(function)
        };
        let depth = if callee == self.function {
            "depth + 1"
        } else {
            "depth"
        };
        let a = self.integer(1);
        let b = self.integer(1);
        let d = self.real(1);
        let pointer = self.pick(&[
            "&x",
            "&y",
            "&m.low",
            "&m.box[1]",
            "array + 3",
            "q",
            "p",
            "&table[3]",
            "&o.a",
        ]);
        let more = if callee % 3 == 2 {
            let (e, g) = (self.variable(Some(false)).0, self.variable(Some(false)).0);
            let j = self.real(1);
            format!(", {e}, (i32)({a}), {g}, (i8){b}, z, {j}")
        } else {
            String::new()
        };
        let call = format!("f{callee}({a}, {b}, {pointer}, {d}, {depth}{more})");
        if callee == self.function {
            format!("(depth < 3 ? {call} : 1)")
        } else {
            call
        }
    }

    fn block(&mut self, statements: usize) {
        self.depth += 1;
        self.indent += 1;
        for _ in 0..statements {
            self.statement();
        }
        self.indent -= 1;
        self.depth -= 1;
    }

    fn statement(&mut self) {
        let deep = self.depth >= 3;
        match self.below(26) {
            0..=2 if !deep && self.loops < 4 => self.a_loop(),
            3 if !deep => {
                let condition = self.integer(2);
                self.line(&format!("if ({condition}) {{"));
                let count = 1 + self.below(3);
                self.block(count);
                if self.one_in(2) {
                    self.line("} else {");
                    let count = 1 + self.below(2);
                    self.block(count);
                }
                self.line("}");
            }
            4 if !deep => {
                let value = self.integer(1);
                self.line(&format!("switch (({value}) & 7) {{"));
                for case in 0..3 + self.below(4) {
                    self.line(&format!("case {case}:"));
                    self.block(1);
                    if !self.one_in(4) {
                        self.line("    break;");
                    }
                }
                self.line("default: y++;");
                self.line("}");
            }
            5 | 6 => {
                let call = self.call();
                let (to, _) = self.variable(Some(false));
                self.line(&format!("{to} += {call};"));
            }
            7 => {
                let value = self.integer(1);
                let index = self.integer(1);
                self.line(&format!("array[({index}) & 7] = {value};"));
            }
            // Beyond an array, into its neighbours in the same structure.
            8 => {
                let value = self.integer(1);
                self.line(&format!("m.box[(int)(turn() % 7) - 1] = {value};"));
            }
            9 => {
                let value = self.integer(1);
                self.line(&format!("m.two[(int)(turn() % 5) - 1] ^= {value};"));
            }
            10 => {
                let to = self.pick(&[
                    "&x",
                    "&y",
                    "&m.low",
                    "&m.box[2]",
                    "&array[5]",
                    "p",
                    "&o.a",
                    "&table[7]",
                ]);
                self.line(&format!("q = {to};"));
            }
            11 => {
                let to = self.pick(&["&z", "&m.next", "&t.a", "&t.b", "(i64 *)&words[3]"]);
                self.line(&format!("r = {to};"));
            }
            12 => {
                let value = self.integer(2);
                let to = self.pick(&["*q", "*r", "*p", "*q", "table[a & 15]", "words[b & 7]"]);
                let operation = self.pick(&["=", "+=", "-=", "^="]);
                self.line(&format!("{to} {operation} {value};"));
            }
            13 => {
                let (to, _) = self.variable(Some(true));
                let value = self.real(2);
                let operation = self.pick(&["=", "+=", "-=", "="]);
                self.line(&format!("{to} {operation} {value};"));
            }
            14 => self.assembly(),
            15 => {
                let text = self.pick(&[
                    "t.c ^= t.a; { Triple u = t; u.b++; t = u; }",
                    "{ Pair u = o; u.a += 3; o = u; }",
                    "{ Mixed u = m; u.two[2]++; m = u; }",
                    "memset(bytes, a, 9);",
                    "memcpy(array, &m.box, 16);",
                    "w = w * 1.25L + a; if (w > 1e9L) w = 1;",
                    "{ u8 *v = __builtin_alloca((x & 31) + 16); v[x & 15] = (u8)y; y += v[x & 15]; }",
                    "__atomic_fetch_add(&x, 3, 5); __atomic_exchange_n(&y, x, 5);",
                    "{ i64 v = z; __atomic_compare_exchange_n(&z, &v, v + 9, 0, 5, 5); }",
                    "z += (i64)(((__int128)z * b) >> 64);",
                    "if (can_jump && turn() % 16 == 0) longjmp(back, 1);",
                    "{ f32 s = 0; for (int n = 0; n < 8; n++) s += (f32)array[n]; o.b = s; }",
                    "for (int n = 0; n < 16; n++) bytes[n] += (u8)n;",
                    "{ static i32 (*volatile f)(i32, i32); (void)f; x += abs(y % 77); }",
                ]);
                self.line(text);
            }
            16 => {
                let (to, _) = self.variable(Some(false));
                let operation = self.pick(&["++", "--"]);
                self.line(&format!("{to}{operation};"));
            }
            17 => {
                let (to, _) = self.variable(Some(false));
                let count = self.integer(1);
                let operation = self.pick(&["<<=", ">>="]);
                self.line(&format!("{to} {operation} ({count}) & 15;"));
            }
            _ => {
                let (to, _) = self.variable(Some(false));
                let value = self.integer(2);
                let operation = self.pick(&["=", "=", "+=", "-=", "^=", "|=", "&=", "*="]);
                self.line(&format!("{to} {operation} {value};"));
            }
        }
    }

    /// What compilers don't write, or not often.
    fn assembly(&mut self) {
        let text = self.pick(&[
            "__asm__(\"xchg %b0, %h0\" : \"+Q\"(x));",
            "__asm__(\"addb %h1, %b0\" : \"+Q\"(x) : \"Q\"(y) : \"cc\");",
            "__asm__(\"movb %h1, %0\" : \"=m\"(m.one) : \"Q\"(y));",
            "__asm__(\"shll %%cl, %0; setc %1\" : \"+m\"(x), \"=m\"(m.one) : \"c\"(y) : \"cc\");",
            "__asm__(\"cmpl %2, %1; sarl %%cl, %0; setb %3\" : \"+m\"(x) : \"r\"(a), \"m\"(y), \"m\"(bytes[2]), \"c\"(y & 1) : \"cc\", \"memory\");",
            "__asm__(\"addq %2, %0; adcq $7, %1\" : \"+m\"(z), \"+r\"(t.b) : \"r\"(b) : \"cc\");",
            "__asm__(\"incl %0; adcl $0, %1\" : \"+m\"(x), \"+m\"(y) : : \"cc\");",
            "__asm__(\"xchgl %0, %1\" : \"+r\"(x), \"+m\"(y));",
            "__asm__(\"xaddl %0, %1\" : \"+r\"(x), \"+m\"(y) : : \"cc\");",
            "__asm__(\"lock incl %0\" : \"+m\"(x) : : \"cc\");",
            "__asm__(\"cmpxchgl %2, %1\" : \"+a\"(x), \"+m\"(y) : \"r\"(a) : \"cc\");",
            "__asm__(\"btsl $5, %0; setc %1\" : \"+m\"(x), \"=m\"(m.one) : : \"cc\");",
            "__asm__(\"btsq %1, %0\" : \"+m\"(words[1]) : \"r\"(b & 63) : \"cc\", \"memory\");",
            "__asm__(\"btcl %1, %0\" : \"+m\"(array[0]) : \"r\"(a & 127) : \"cc\", \"memory\");",
            "__asm__(\"testl %1, %1; cmovnel %2, %0\" : \"+r\"(x) : \"r\"(y & 1), \"m\"(m.low) : \"cc\");",
            "__asm__(\"lea -160(%%rsp), %%rsp; push %0; addq $3, (%%rsp); pop %0; lea 160(%%rsp), %%rsp\" : \"+r\"(z) : : \"cc\");",
            "__asm__(\"lea -160(%%rsp), %%rsp; push %0; push $5; mov 8(%%rsp), %0; add $16, %%rsp; lea 160(%%rsp), %%rsp\" : \"+r\"(z) : : \"cc\");",
            "__asm__(\"imull $17, %1, %0\" : \"=r\"(x) : \"m\"(y) : \"cc\");",
            "__asm__(\"movsbl %1, %0\" : \"=r\"(x) : \"m\"(*(i8 *)&y));",
            "__asm__(\"movzwl %1, %0\" : \"=r\"(x) : \"m\"(*((u16 *)&y + 1)));",
            "__asm__(\"addb $3, %0\" : \"+m\"(*(i8 *)&x) : : \"cc\");",
            "__asm__(\"addw $300, %0\" : \"+m\"(*(i16 *)&z) : : \"cc\");",
            "__asm__(\"movb $9, 1+%0\" : \"+m\"(x));",
            "__asm__(\"bsfl %1, %0\" : \"+r\"(x) : \"m\"(y) : \"cc\");",
            "__asm__(\"rcll $1, %0; rcrq $1, %1\" : \"+m\"(x), \"+m\"(z) : : \"cc\");",
            "__asm__(\"movd %1, %%xmm7; pshufd $0, %%xmm7, %%xmm7; movd %%xmm7, %0\" : \"=m\"(x) : \"m\"(y) : \"xmm7\");",
            "__asm__(\"movsd %1, %%xmm6; movhpd %2, %%xmm6; addsd %%xmm6, %%xmm6; movlpd %%xmm6, %0\" : \"=m\"(m.real) : \"m\"(m.real), \"m\"(d) : \"xmm6\");",
            "__asm__(\"movss %1, %%xmm5; cvtss2sd %%xmm5, %%xmm5; cvttsd2si %%xmm5, %0\" : \"=r\"(x) : \"m\"(o.b) : \"xmm5\");",
            "__asm__(\"fildl %1; fistpl %0\" : \"=m\"(x) : \"m\"(y));",
            "__asm__(\"cdq; xorl %%edx, %%eax; subl %%edx, %%eax\" : \"+a\"(x) : : \"edx\", \"cc\");",
            "__asm__(\"movl %1, %%eax; cltq; leaq 7(%%rax,%%rax,2), %0\" : \"=r\"(z) : \"m\"(x) : \"rax\");",
            "__asm__(\"movslq %1, %%rdx; shlq $3, %%rdx; adcq $0, %0\" : \"+r\"(z) : \"m\"(x) : \"rdx\", \"cc\");",
            "__asm__(\"movl %1, %%edx; addl $-1, %%edx; sbbq %0, %0\" : \"+r\"(z) : \"m\"(x) : \"rdx\", \"cc\");",
            "__asm__(\"movl %2, %%edx; subl $5, %%edx; setl %0; jns 1f; incl %1; 1:\" : \"=m\"(m.one), \"+m\"(y) : \"m\"(x) : \"rdx\", \"cc\");",
        ]);
        self.line(text);
    }

    fn a_loop(&mut self) {
        self.loops += 1;
        self.counter += 1;
        let name = format!("k{}", self.counter);
        let kind = self.pick(&["i32", "i32", "i64", "u32", "u8", "i16"]);
        let trips = 3 + self.below(if self.depth == 0 { 60 } else { 12 });
        let count = 1 + self.below(4);
        let form = self.below(3);
        match form {
            0 => self.line(&format!(
                "for ({kind} {name} = 0; {name} < {trips}; {name}++) {{"
            )),
            1 => self.line(&format!(
                "for ({kind} {name} = {trips}; {name} > 0; {name}--) {{"
            )),
            _ => self.line(&format!(
                "{{ {kind} {name} = 0; while ({name}++ < {trips}) {{"
            )),
        }
        if self.one_in(3) {
            self.line("    if (--fuel < 0) break;");
        }
        // The counter is read in the body, not written.
        let to = self.variable(Some(false)).0;
        self.line(&format!("    {to} += {name};"));
        self.block(count);
        if self.one_in(4) {
            let condition = self.integer(1);
            self.line(&format!("    if (({condition}) == 77) continue;"));
        }
        self.line(if form == 2 { "} }" } else { "}" });
    }
}
