//! Profiles of real programs, from their runs to the tools that read them: exports are
//! opened by their consumers, and a rebuilt program takes over what the earlier build left.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use support::{End, run, temper};

/// A folder with a program, its profiles and what is made of them.
struct Bench {
    dir: tempfile::TempDir,
}

/// Sorting, hashing and a state machine: branches both ways, calls, an indirect call.
const SOURCE: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static unsigned state = 12345;
static unsigned next(void) { state = state * 1103515245u + 12345u; return state >> 8; }

__attribute__((noinline)) static int compare(const void *a, const void *b) {
    int x = *(const int *)a, y = *(const int *)b;
    if (x < y) return -1;
    return x > y;
}

__attribute__((noinline)) static void insertion_sort(int *a, int n, int (*cmp)(const void *, const void *)) {
    for (int i = 1; i < n; i++) {
        int x = a[i], j = i;
        while (j > 0 && cmp(&a[j - 1], &x) > 0) { a[j] = a[j - 1]; j--; }
        a[j] = x;
    }
}

__attribute__((noinline)) static unsigned hash(const char *s) {
    unsigned h = 2166136261u;
    for (; *s; s++) {
        /* Wrong on purpose, so that a better layout has something to gain. */
        if (__builtin_expect(*s == ' ', 1)) continue;
        h = (h ^ (unsigned char)*s) * 16777619u;
    }
    return h;
}

__attribute__((noinline)) static int machine(unsigned steps) {
    int mode = 0, seen = 0;
    while (steps--) {
        switch ((next() + mode) & 7) {
        case 0: mode = 3; break;
        case 1: case 2: mode ^= 1; seen += 2; break;
        case 3: if (seen & 1) mode = 0; else mode = 5; break;
        case 4: seen -= mode; break;
        case 5: seen = seen * 3 + 1; break;
        default: seen ^= mode << 2; break;
        }
    }
    return seen;
}

int main(void) {
    int a[300];
    for (int i = 0; i < 300; i++) a[i] = next() % 1000;
    insertion_sort(a, 300, compare);
    unsigned h = 0;
    for (int i = 0; i < 2000; i++) h ^= hash("the quick brown fox jumps over the lazy dog") + i;
    printf("%d %d %u %d\n", a[0], a[299], h, machine(100000));
    return 0;
}
"#;

impl Bench {
    fn new() -> Bench {
        Bench {
            dir: tempfile::tempdir().expect("a folder"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Builds a program; `None`, and why, where that can't be done.
    fn build(&self, name: &str, source: &str, flags: &[&str]) -> Option<PathBuf> {
        let (from, to) = (self.path("program.c"), self.path(name));
        std::fs::write(&from, source).expect("write");
        let mut command = Command::new("gcc");
        command.arg("-g").args(flags).arg(&from).arg("-o").arg(&to);
        match command.status() {
            Ok(status) => {
                assert!(status.success(), "gcc");
                Some(to)
            }
            Err(error) => {
                println!("skipped: no gcc ({error})");
                None
            }
        }
    }

    /// Runs a program under Temper with all of it counted; returns what it prints.
    fn profile(&self, program: &Path, profiles: &str) -> String {
        let mut command = temper();
        command.args(["run", "--max-tier", "interpreter", "--profile-dir"]);
        command.arg(self.path(profiles)).arg(program);
        let outcome = run(command, b"", Duration::from_secs(120)).expect("temper starts");
        assert_eq!(outcome.end, End::Exit(0), "{outcome:?}");
        assert!(outcome.stderr.is_empty(), "{outcome:?}");
        String::from_utf8(outcome.stdout).expect("UTF-8")
    }

    /// What `temper profile` prints.
    fn say(&self, profiles: &str, words: &[&str]) -> String {
        let mut command = temper();
        command.arg("profile").args(words);
        command.arg("--profile-dir").arg(self.path(profiles));
        let outcome = run(command, b"", Duration::from_secs(120)).expect("temper starts");
        assert_eq!(outcome.end, End::Exit(0), "{words:?}: {outcome:?}");
        String::from_utf8(outcome.stdout).expect("UTF-8")
    }

    fn export(&self, program: &Path, format: &str) -> PathBuf {
        let to = self.path(format);
        let words = [
            "export",
            program.to_str().expect("UTF-8"),
            "--format",
            format,
        ];
        self.say(
            "profiles",
            &[&words[..], &["-o", to.to_str().expect("UTF-8")]].concat(),
        );
        to
    }
}

/// What a tool prints; `None`, and why, when it isn't installed.
fn tool(command: &mut Command) -> Option<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    match command.output() {
        Ok(output) => {
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said).into_owned();
            assert!(output.status.success(), "{name}: {said}");
            Some(said)
        }
        Err(error) => {
            println!("skipped: {name} can't be run: {error}");
            None
        }
    }
}

#[test]
fn bolt_makes_a_working_program_of_an_exported_profile() {
    let bench = Bench::new();
    let flags = ["-O2", "-fno-pie", "-no-pie", "-Wl,--emit-relocs"];
    let Some(program) = bench.build("program", SOURCE, &flags) else {
        return;
    };
    let expected = bench.profile(&program, "profiles");
    let data = bench.export(&program, "bolt");
    let text = std::fs::read_to_string(&data).expect("the export");
    assert!(
        text.lines()
            .any(|line| line.contains("1 hash") && line.contains("/1 ")),
        "{text}"
    );
    let Some((optimized, fewer)) = laid_out(&bench, &program, &data) else {
        return;
    };
    assert!(fewer > 20.0, "the layout got little better: {fewer}");
    let output = Command::new(&optimized).output().expect("runs");
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);

    // BOLT's own instrumentation sees the same.
    let llvm = Path::new("/usr/lib/llvm-16");
    if !llvm.join("lib/libbolt_rt_instr.a").exists() {
        println!("skipped: no library for BOLT's instrumentation");
        return;
    }
    let (instrumented, own) = (bench.path("instrumented"), bench.path("own.fdata"));
    let mut bolt = Command::new(llvm.join("bin/llvm-bolt"));
    bolt.arg(&program).arg("-instrument").arg("-o");
    bolt.arg(&instrumented);
    bolt.arg(format!("--instrumentation-file={}", own.display()));
    tool(&mut bolt).expect("it is there");
    let output = Command::new(&instrumented).output().expect("runs");
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    let (_, own_fewer) = laid_out(&bench, &program, &own).expect("it is there");
    println!("taken branches: {fewer}% fewer by the export, {own_fewer}% by BOLT's own profile");
    assert!((fewer - own_fewer).abs() < 2.0, "{fewer} {own_fewer}");
}

/// The program as BOLT lays it out with this profile, and how many percent fewer branches
/// are taken then by its reckoning.
fn laid_out(bench: &Bench, program: &Path, data: &Path) -> Option<(PathBuf, f64)> {
    let optimized = bench.path("optimized");
    let mut bolt = Command::new("llvm-bolt-16");
    bolt.arg(program).arg("-o").arg(&optimized);
    bolt.arg("-data").arg(data);
    bolt.args([
        "-reorder-blocks=ext-tsp",
        "-reorder-functions=hfsort",
        "-split-functions",
        "-dyno-stats",
    ]);
    let said = tool(&mut bolt)?;
    assert!(said.contains("functions in the binary"), "{said}");
    assert!(!said.contains(" 0 out of"), "{said}");
    // Every function that ran has its profile, and the profile is of this code.
    let invalid = said
        .lines()
        .find(|line| line.contains("have invalid (possibly stale) profile"));
    assert_eq!(invalid, None, "{said}");
    // Once before and once after, with the change in percent.
    let fewer = said
        .lines()
        .filter_map(|line| line.split_once(": taken branches (-")?.1.split_once('%'))
        .find_map(|(percent, _)| percent.parse().ok());
    Some((optimized, fewer.unwrap_or_else(|| panic!("{said}"))))
}

#[test]
fn exports_of_a_run_open_in_their_tools() {
    let bench = Bench::new();
    let Some(program) = bench.build("program", SOURCE, &["-O1"]) else {
        return;
    };
    bench.profile(&program, "profiles");
    let callgrind = bench.export(&program, "callgrind");
    if let Some(said) = tool(
        Command::new("callgrind_annotate")
            .arg("--auto=no")
            .arg(callgrind),
    ) {
        let first = said
            .lines()
            .find(|line| line.contains("program.c:"))
            .expect("functions");
        assert!(
            first.contains("machine") || first.contains("hash"),
            "{said}"
        );
    }
    let pprof = bench.export(&program, "pprof");
    let mut go = Command::new("go");
    go.env("HOME", bench.dir.path())
        .args(["tool", "pprof", "-top"]);
    if let Some(said) = tool(go.arg(pprof)) {
        assert!(
            said.contains("machine") && said.contains("insertion_sort"),
            "{said}"
        );
    }
    let dot = bench.export(&program, "dot");
    if let Some(said) = tool(Command::new("dot").arg("-Tsvg").arg(dot)) {
        assert!(
            said.contains("insertion_sort") && said.contains("compare"),
            "{said}"
        );
    }
    let svg = std::fs::read_to_string(bench.export(&program, "svg")).expect("the export");
    assert!(svg.contains("<svg") && svg.contains("insertion_sort"));
    let folded = std::fs::read_to_string(bench.export(&program, "folded")).expect("the export");
    assert!(folded.contains("main;insertion_sort;compare "), "{folded}");
    let speedscope = std::fs::read(bench.export(&program, "speedscope")).expect("the export");
    let speedscope: Value = serde_json::from_slice(&speedscope).expect("JSON");
    assert_eq!(speedscope["profiles"][0]["type"], "sampled");
    let perf = std::fs::read_to_string(bench.export(&program, "perf-script-lbr")).expect("export");
    assert!(perf.starts_with("PERF_RECORD_MMAP2 ") && perf.lines().count() > 1000);
}

#[test]
fn hot_paths_are_shown_with_code_and_source_lines() {
    let bench = Bench::new();
    let Some(program) = bench.build("program", SOURCE, &["-O1"]) else {
        return;
    };
    bench.profile(&program, "profiles");
    let program = program.to_str().expect("UTF-8");
    let text = bench.say("profiles", &["show", program]);
    for part in [
        "Functions",
        "Hot blocks",
        "Hot edges",
        "Hot paths",
        "Code of path",
        "program.c:",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let shown: Value =
        serde_json::from_str(&bench.say("profiles", &["show", program, "--json"])).expect("JSON");
    let path = &shown["modules"][0]["hot_paths"]["shown"][0];
    let branches = path["code"].as_array().expect("code").iter();
    let outcomes: String = branches
        .filter_map(|instruction| instruction["taken"].as_bool())
        .map(|taken| if taken { 'T' } else { '-' })
        .collect();
    assert_eq!(path["outcomes"], outcomes.as_str());
    for line in text.lines() {
        assert!(line.chars().count() <= 200, "{line}");
    }
}

/// Sums every third number modulo 7, forty at a time.
const REMAINDERS: &str = r#"
#include <stdio.h>
#include <stdlib.h>
__attribute__((noipa)) static unsigned sum(const unsigned *a, int n, unsigned d) {
    unsigned s = 0;
    for (int i = 0; i < n; i++) s += a[i * 3] % d;
    return s;
}
int main(int argc, char **argv) {
    static unsigned a[120];
    for (int i = 0; i < 120; i++) a[i] = i * i;
    unsigned s = 0;
    for (int i = 0, n = argc > 1 ? atoi(argv[1]) : 500; i < n; i++) s += sum(a, 40, 7);
    printf("%u\n", s);
    return 0;
}
"#;

#[test]
fn usual_values_and_callers_are_seen_in_both_tiers() {
    let bench = Bench::new();
    let Some(program) = bench.build("program", REMAINDERS, &["-O1"]) else {
        return;
    };
    let module = |folder: &str| {
        let dump: Value =
            serde_json::from_str(&bench.say(folder, &["dump", "--json"])).expect("JSON");
        let modules = dump["modules"].as_array().expect("modules").clone();
        let path = program.to_str().expect("UTF-8");
        let own = modules.into_iter().find(|module| module["path"] == path);
        own.expect("the program")
    };
    // What part of the values of a kind is this one.
    let part = |module: &Value, kind: &str, values: &[u64]| {
        let records = module["values"].as_array().expect("values").iter();
        let (mut part, mut all) = (0, 0);
        for record in records.filter(|record| record["kind"] == kind) {
            let count = record["count"].as_u64().expect("a count");
            all += count;
            if values.iter().any(|value| record["value"] == *value) {
                part += count;
            }
        }
        println!("{kind} {values:?}: {part} of {all}");
        part as f64 / all as f64
    };
    bench.profile(&program, "profiles");
    let counted = module("profiles");
    assert!(part(&counted, "divisor", &[7]) > 0.99, "{counted}");
    assert!(part(&counted, "stride", &[12]) > 0.9, "{counted}");
    // The first time round may be part of the block before the head.
    assert!(part(&counted, "trip_count", &[39, 40]) > 0.9, "{counted}");
    let pairs = counted["pairs"].as_array().expect("pairs").iter();
    let most = pairs.filter_map(|pair| pair["count"].as_u64()).max();
    assert!(most.is_some_and(|most| most >= 499), "{most:?} {counted}");

    // In generated code short bursts see them.
    let mut command = temper();
    command.arg("run").arg("--profile-dir");
    command
        .arg(bench.path("bursts"))
        .arg(&program)
        .arg("3000000");
    let outcome = run(command, b"", Duration::from_secs(120)).expect("temper starts");
    assert_eq!(outcome.end, End::Exit(0), "{outcome:?}");
    let sampled = module("bursts");
    assert!(part(&sampled, "divisor", &[7]) > 0.99, "{sampled}");
    assert!(part(&sampled, "stride", &[12]) > 0.9, "{sampled}");
    assert!(part(&sampled, "trip_count", &[39, 40]) > 0.5, "{sampled}");
    let shown = bench.say("profiles", &["show", program.to_str().expect("UTF-8")]);
    assert!(shown.contains("trip count"), "{shown}");
}

#[test]
fn profiles_travel_between_folders_as_files_and_dumps() {
    let bench = Bench::new();
    let Some(program) = bench.build("program", SOURCE, &["-O1"]) else {
        return;
    };
    bench.profile(&program, "profiles");
    let dump = bench.path("dump.json");
    std::fs::write(&dump, bench.say("profiles", &["dump", "--json"])).expect("write");
    let imported = bench.say("imported", &["import", dump.to_str().expect("UTF-8")]);
    assert!(imported.contains("program"), "{imported}");
    let profiles = bench.path("profiles");
    bench.say("merged", &["merge", profiles.to_str().expect("UTF-8")]);
    for folder in ["imported", "merged"] {
        assert_eq!(
            bench.say(folder, &["dump", "--json"]),
            bench.say("profiles", &["dump", "--json"]),
            "{folder}"
        );
        assert!(
            bench
                .say(folder, &["verify"])
                .contains("profiles are whole")
        );
    }
    // The same again is twice as much of everything.
    bench.say("merged", &["merge", profiles.to_str().expect("UTF-8")]);
    let program = program.to_str().expect("UTF-8");
    let runs = |folder: &str| {
        let list: Value =
            serde_json::from_str(&bench.say(folder, &["list", "--json"])).expect("JSON");
        let list = list.as_array().expect("a list").clone();
        let own = list.into_iter().find(|module| module["path"] == program);
        own.expect("the program")["runs"].clone()
    };
    assert_eq!((runs("profiles"), runs("merged")), (1.into(), 2.into()));
    let nothing = bench.say("merged", &["prune", "--dry-run"]);
    assert_eq!(nothing, "Nothing to drop.\n");
    let gone = bench.say("merged", &["prune", "--max-size", "0", "--json"]);
    let gone: Value = serde_json::from_str(&gone).expect("JSON");
    assert!(
        gone.as_array()
            .expect("a list")
            .iter()
            .any(|gone| gone["path"] == program)
    );
    assert!(bench.say("merged", &["list"]).contains("No profiles"));
}

/// A program of 80 functions, each of its own shape; `changed` builds differ in every 13th.
fn many_functions(changed: bool) -> String {
    let mut source = String::from("#include <stdio.h>\nvolatile unsigned sink;\n");
    for function in 0..80u32 {
        let (a, b, c) = (function % 7 + 1, function % 5 + 2, 1 << (function % 6));
        let edit = if changed && function % 13 == 4 {
            "if (n % 3 == 0) { sink ^= n; for (unsigned k = 0; k < 3; k++) n += k * x; }"
        } else {
            ""
        };
        source += &format!(
            "__attribute__((noinline)) unsigned f{function}(unsigned x) {{\n\
             unsigned n = {function};\n\
             for (unsigned i = 0; i < x % 50 + {a}; i++) {{\n{edit}\n\
             n = n * {b} + i; if (n & {c}) sink += n; else if (n % {} == 1) n ^= x << {a};\n\
             while (n > {}u) n = n / {b} - i;\n}}\nreturn n;\n}}\n",
            b + 3,
            100_000 + function * 37,
        );
    }
    source += "int main(void) { unsigned n = 1;\nfor (int i = 0; i < 300; i++) {\n";
    for function in 0..80 {
        source += &format!("n += f{function}(n + i);\n");
    }
    source + "}\nprintf(\"%u\\n\", n & 0xff);\nreturn 0; }\n"
}

#[test]
fn a_rebuilt_program_starts_with_what_the_earlier_build_knew() {
    let bench = Bench::new();
    let strip = ["-O2", "-s"];
    // In the same place, one after the other, without symbols to go by.
    let Some(program) = bench.build("program", &many_functions(false), &strip) else {
        return;
    };
    bench.profile(&program, "before");
    bench.profile(&program, "both");
    let old: Value = serde_json::from_str(&bench.say("before", &["list", "--json"])).expect("JSON");
    let own = |list: &Value| {
        let modules = list.as_array().expect("a list").iter();
        let path = program.to_str().expect("UTF-8");
        let found: Vec<Value> = modules.filter(|m| m["path"] == path).cloned().collect();
        assert_eq!(found.len(), 1, "{list}");
        found[0].clone()
    };
    let old = own(&old);
    bench
        .build("program", &many_functions(true), &strip)
        .expect("gcc");
    bench.profile(&program, "fresh");
    let path = program.to_str().expect("UTF-8");
    let fresh = own(&serde_json::from_str(&bench.say("fresh", &["list", "--json"])).expect("JSON"));
    assert_ne!(old["id"], fresh["id"]);

    let file = |module: &Value| module["profile"].as_str().expect("a path").to_owned();
    let difference = bench.say("fresh", &["diff", &file(&old), &file(&fresh), "--json"]);
    let difference: Value = serde_json::from_str(&difference).expect("JSON");
    let overlap = difference["edge_overlap"].as_f64().expect("a number");
    println!("edge-count overlap {overlap:.3}");
    assert!(overlap >= 0.8, "{overlap}");

    // Where the old profile is at hand, the new build's says whence it comes.
    bench.profile(&program, "both");
    let shown = bench.say("both", &["show", path, "--top", "1"]);
    let ancestor = old["id"].as_str().expect("an identity");
    assert!(
        shown.contains(&format!("earlier build, {ancestor}")),
        "{shown}"
    );
}

/// A Lua that runs one script.
const LUA_MAIN: &str = r#"
#include <stdio.h>
#include "lauxlib.h"
#include "lualib.h"
int main(int argc, char **argv) {
    lua_State *state = luaL_newstate();
    luaL_openlibs(state);
    if (argc < 2 || luaL_dofile(state, argv[1])) {
        fprintf(stderr, "%s\n", lua_tostring(state, -1));
        return 1;
    }
    lua_close(state);
    return 0;
}
"#;

/// Tables, strings, closures, metatables, coroutines, patterns, garbage.
const LUA_SCRIPT: &str = r#"
local words, seed = {}, 42
local function random(n) seed = (seed * 1103515245 + 12345) % 2147483648; return seed % n end
for i = 1, 3000 do words[i] = string.format("%s%d", string.char(97 + random(26)), random(500)) end
local count = {}
for _, word in ipairs(words) do count[word] = (count[word] or 0) + 1 end
local keys = {}
for key in pairs(count) do keys[#keys + 1] = key end
table.sort(keys, function(a, b) return count[a] > count[b] or count[a] == count[b] and a < b end)
local text = table.concat(words, " ")
local digits = 0
for number in text:gmatch("%d+") do digits = digits + tonumber(number) end
text = text:gsub("(%a)(%d+)", function(a, b) return b .. a end)
local Point = {}
Point.__index = Point
Point.__add = function(a, b) return setmetatable({ x = a.x + b.x, y = a.y + b.y }, Point) end
local sum = setmetatable({ x = 0, y = 0 }, Point)
for i = 1, 2000 do sum = sum + setmetatable({ x = i, y = i / 2 }, Point) end
local producer = coroutine.wrap(function() for i = 1, 2000 do coroutine.yield(i * i) end end)
local squares = 0
for _ = 1, 2000 do squares = squares + producer() end
local function fib(n) return n < 2 and n or fib(n - 1) + fib(n - 2) end
local sieve, primes = {}, 0
for i = 2, 5000 do
  if not sieve[i] then primes = primes + 1; for j = i * i, 5000, i do sieve[j] = true end end
end
print(#keys, keys[1], digits, #text, sum.x, sum.y, squares, fib(18), primes)
"#;

/// The sources of two releases, from the packages that bring them to Rust programs.
fn lua_sources(bench: &Bench) -> Option<[PathBuf; 2]> {
    let project = bench.path("project");
    std::fs::create_dir_all(project.join("src")).expect("a folder");
    std::fs::write(project.join("src/lib.rs"), "").expect("write");
    let manifest = "[package]\nname = \"sources\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\
                    [dependencies]\n\
                    before = { package = \"lua-src\", version = \"=546.0.2\" }\n\
                    after = { package = \"lua-src\", version = \"=547.0.0\" }\n\
                    [workspace]\n";
    std::fs::write(project.join("Cargo.toml"), manifest).expect("write");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["vendor", "--quiet", "--versioned-dirs", "vendor"]);
    match cargo.current_dir(&project).output() {
        Ok(output) if output.status.success() => {}
        Ok(_) | Err(_) => {
            println!("skipped: cargo can't fetch the sources of Lua");
            return None;
        }
    }
    let vendor = project.join("vendor");
    Some([
        vendor.join("lua-src-546.0.2/lua-5.4.6"),
        vendor.join("lua-src-547.0.0/lua-5.4.7"),
    ])
}

/// Names and sizes of a program's functions.
fn functions(program: &Path) -> Vec<(String, String)> {
    let said = tool(
        Command::new("nm")
            .args(["-S", "--defined-only"])
            .arg(program),
    );
    let said = said.unwrap_or_default();
    let lines = said.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_code = fields.len() == 4 && fields[2].eq_ignore_ascii_case("t");
        is_code.then(|| (fields[3].to_owned(), fields[1].to_owned()))
    });
    lines.collect()
}

/// Prints how much of the later release's own flow the earlier one's profile has: `cargo test
/// --test profiles -- --ignored --nocapture lua`.
#[test]
#[ignore = "a measurement that fetches sources"]
fn an_earlier_lua_s_profile_serves_the_next_release() {
    let bench = Bench::new();
    let Some(sources) = lua_sources(&bench) else {
        return;
    };
    std::fs::write(bench.path("main.c"), LUA_MAIN).expect("write");
    let script = bench.path("script.lua");
    std::fs::write(&script, LUA_SCRIPT).expect("write");
    let mut built = Vec::new();
    for (name, sources) in ["before", "after"].iter().zip(&sources) {
        let program = bench.path(name);
        let recipe = "exec gcc -O2 -I\"$1\" -o \"$2\" \"$3\" \"$1\"/*.c -lm";
        let mut gcc = Command::new("sh");
        gcc.args(["-c", recipe, "sh"]).arg(sources).arg(&program);
        if tool(gcc.arg(bench.path("main.c"))).is_none() {
            return;
        }
        let mut command = temper();
        command.args(["run", "--max-tier", "interpreter", "--profile-dir"]);
        command
            .arg(bench.path("profiles"))
            .arg(&program)
            .arg(&script);
        let outcome = run(command, b"", Duration::from_secs(120)).expect("temper starts");
        assert_eq!(outcome.end, End::Exit(0), "{outcome:?}");
        built.push(program);
    }
    let (before, after) = (functions(&built[0]), functions(&built[1]));
    let changed = after.iter().filter(|f| !before.contains(f)).count();
    let paths = [&built[0], &built[1]].map(|path| path.to_str().expect("UTF-8"));
    let said = bench.say("profiles", &["diff", paths[0], paths[1], "--json"]);
    let said: Value = serde_json::from_str(&said).expect("JSON");
    let overlap = said["edge_overlap"].as_f64().expect("a number");
    println!(
        "edge-count overlap {overlap:.3}; of {} functions {changed} are new or of another size",
        after.len()
    );
    assert!(overlap >= 0.8, "{overlap}");
}
