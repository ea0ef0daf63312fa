//! The rules of the house that the compiler doesn't hold: who imports whom, how long a
//! file may be, where unsafe code may stand, and that `temper` is a static-pie.

use std::fs;
use std::path::{Path, PathBuf};

/// The order of imports: a module sees those in earlier rows, itself, and no other.
const ORDER: &[&[&str]] = &[
    &["addr"],
    &["host"],
    &["guest"],
    &["decode"],
    &["profile", "codecache", "native"],
    &["interp", "translate", "superblock"],
    &["engine"],
    &["process", "system"],
    &["cli"],
];

/// Modules that may hold unsafe code; `src/lib.rs` lists the same.
const UNSAFE_ALLOWED: &[&str] = &[
    "host",
    "native",
    "codecache",
    "interp",
    "engine",
    "process",
    "system",
];

const MAX_LINES: usize = 900;

/// Tables may be longer than [`MAX_LINES`].
const TABLES: &[&str] = &[];

struct Source {
    /// Relative to the package.
    path: PathBuf,
    text: String,
}

impl Source {
    /// The module of the library that this file belongs to; `None` for lib.rs and main.rs.
    fn module(&self) -> Option<String> {
        let inside = self.path.strip_prefix("src").ok()?;
        let first = inside.components().next()?.as_os_str().to_str()?;
        let name = first.strip_suffix(".rs").unwrap_or(first);
        (name != "lib" && name != "main").then(|| name.to_owned())
    }

    /// Lines with their numbers, comments and string contents blanked.
    fn code(&self) -> Vec<(usize, String)> {
        let code = blank_comments_and_strings(&self.text);
        code.lines()
            .enumerate()
            .map(|(index, line)| (index + 1, line.to_owned()))
            .collect()
    }
}

fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folders: &[&str]) -> Vec<Source> {
    let mut found = Vec::new();
    let mut waiting: Vec<PathBuf> = folders
        .iter()
        .map(|folder| package().join(folder))
        .collect();
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}")) {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("UTF-8 source");
                let path = path.strip_prefix(package()).expect("inside").to_owned();
                found.push(Source { path, text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(!found.is_empty());
    found
}

/// Replaces comments and the contents of literals by blanks; line breaks stay.
fn blank_comments_and_strings(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let at = |index: usize| chars.get(index).copied().unwrap_or('\0');
    let mut out = String::with_capacity(text.len());
    let mut index = 0;
    let blank = |out: &mut String, c: char| out.push(if c == '\n' { '\n' } else { ' ' });
    while index < chars.len() {
        let c = at(index);
        let word_before = index > 0 && (at(index - 1).is_alphanumeric() || at(index - 1) == '_');
        if c == '/' && at(index + 1) == '/' {
            while index < chars.len() && at(index) != '\n' {
                blank(&mut out, at(index));
                index += 1;
            }
        } else if c == '/' && at(index + 1) == '*' {
            let mut depth = 0;
            while index < chars.len() {
                if at(index) == '/' && at(index + 1) == '*' {
                    depth += 1;
                    out.push_str("  ");
                    index += 2;
                } else if at(index) == '*' && at(index + 1) == '/' {
                    depth -= 1;
                    out.push_str("  ");
                    index += 2;
                    if depth == 0 {
                        break;
                    }
                } else {
                    blank(&mut out, at(index));
                    index += 1;
                }
            }
        } else if c == 'r' && !word_before && raw_string_hashes(&chars, index).is_some() {
            let hashes = raw_string_hashes(&chars, index).expect("just seen");
            let end: String = std::iter::once('"')
                .chain(std::iter::repeat_n('#', hashes))
                .collect();
            let body = index + hashes + 2;
            let rest: String = chars[body..].iter().collect();
            let len = rest.find(&end).map_or(rest.len(), |at| at + end.len());
            let len = rest[..len].chars().count();
            for &c in &chars[index..body + len] {
                blank(&mut out, c);
            }
            index = body + len;
        } else if c == '"' {
            out.push('"');
            index += 1;
            while index < chars.len() && at(index) != '"' {
                if at(index) == '\\' {
                    blank(&mut out, at(index));
                    index += 1;
                }
                blank(&mut out, at(index));
                index += 1;
            }
            out.push('"');
            index += 1;
        } else if c == '\'' && (at(index + 2) == '\'' || at(index + 1) == '\\') {
            // A character, not a lifetime.
            out.push(' ');
            index += 1;
            while index < chars.len() && at(index) != '\'' {
                index += if at(index) == '\\' { 2 } else { 1 };
                out.push(' ');
            }
            out.push(' ');
            index += 1;
        } else {
            out.push(c);
            index += 1;
        }
    }
    out
}

/// The number of `#` of a raw string that begins at `index` (`r"`, `r#"`, ...).
fn raw_string_hashes(chars: &[char], index: usize) -> Option<usize> {
    let hashes = chars[index + 1..].iter().take_while(|&&c| c == '#').count();
    (chars.get(index + 1 + hashes) == Some(&'"')).then_some(hashes)
}

/// Words of code: identifiers and keywords.
fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty())
}

/// The modules that `code` reaches by `crate::name` and `crate::{name, ...}`.
fn imports(code: &str) -> Vec<String> {
    let compact: String = code.chars().filter(|c| !c.is_whitespace()).collect();
    let mut found = Vec::new();
    for (at, start) in compact.match_indices("crate::") {
        // `$crate::` and `my_crate::` alike name something; only the first is ours.
        let before = compact[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
            // `usecrate::x` is `use crate::x` without its blank.
            let head = &compact[..at];
            if !(head.ends_with("use") || head.ends_with("in")) {
                continue;
            }
        }
        let rest = &compact[at + start.len()..];
        match rest.strip_prefix('{') {
            None => found.extend(words(rest).next().map(str::to_owned)),
            Some(list) => {
                let mut depth = 0;
                let mut item = String::new();
                for c in list.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => {
                            found.extend(words(&item).next().map(str::to_owned));
                            item.clear();
                            continue;
                        }
                        _ => {}
                    }
                    item.push(c);
                }
                found.extend(words(&item).next().map(str::to_owned));
            }
        }
    }
    found
}

fn rank(module: &str) -> Option<usize> {
    ORDER.iter().position(|row| row.contains(&module))
}

#[test]
fn imports_point_one_way() {
    let mut broken = Vec::new();
    for source in sources(&["src"]) {
        let Some(module) = source.module() else {
            continue;
        };
        let Some(own) = rank(&module) else {
            broken.push(format!(
                "{}: module `{module}` has no place in ORDER; give it one here and in lib.rs",
                source.path.display()
            ));
            continue;
        };
        let code = blank_comments_and_strings(&source.text);
        for import in imports(&code) {
            let allowed = import == module || rank(&import).is_none_or(|rank| rank < own);
            // What has no rank is an item of lib.rs: a macro, say.
            if !allowed {
                broken.push(format!(
                    "{}: `{module}` imports `{import}`, which comes after it or beside it",
                    source.path.display()
                ));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_module_of_the_library_has_its_place() {
    let text = fs::read_to_string(package().join("src/lib.rs")).expect("lib.rs");
    let code = blank_comments_and_strings(&text);
    let declared: Vec<&str> = code
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'))
        .collect();
    assert!(declared.len() > 5);
    for module in declared {
        assert!(rank(module).is_some(), "`{module}` has no place in ORDER");
    }
}

#[test]
fn files_are_short_enough_to_read() {
    let mut broken = Vec::new();
    for source in sources(&["src", "profile-db", "optimizer", "tests", "benches"]) {
        let lines = source.text.lines().count();
        let is_table = TABLES.iter().any(|table| source.path.ends_with(table));
        if lines > MAX_LINES && !is_table {
            broken.push(format!("{}: {lines} lines", source.path.display()));
        }
    }
    assert!(
        broken.is_empty(),
        "longer than {MAX_LINES} lines; find the second thing that lives there:\n{}",
        broken.join("\n")
    );
}

#[test]
fn unsafe_code_stays_in_its_modules() {
    let listed = fs::read_to_string(package().join("src/lib.rs")).expect("lib.rs");
    for module in UNSAFE_ALLOWED {
        assert!(
            listed.contains(&format!("`{module}`")),
            "lib.rs does not list `{module}` among those with unsafe code"
        );
    }
    let mut broken = Vec::new();
    for source in sources(&["src", "profile-db/src", "optimizer/src"]) {
        let module = source.module();
        if module.is_some_and(|module| UNSAFE_ALLOWED.contains(&module.as_str())) {
            continue;
        }
        for (number, line) in source.code() {
            // `#[unsafe(no_mangle)]` is how main.rs names its entry; it runs nothing.
            let line = line.replace("#[unsafe(", "#[(");
            if words(&line).any(|word| word == "unsafe") {
                broken.push(format!("{}:{number}", source.path.display()));
            }
        }
    }
    assert!(
        broken.is_empty(),
        "unsafe outside its modules:\n{}",
        broken.join("\n")
    );
}

#[test]
fn nothing_is_left_for_later() {
    const MACROS: &[&str] = &["todo", "unimplemented"];
    const MARKS: &[&str] = &["TODO", "FIXME"];
    let mut broken = Vec::new();
    for source in sources(&["src", "profile-db", "optimizer", "tests", "benches"]) {
        if source.path.ends_with("architecture.rs") {
            continue;
        }
        for (number, line) in source.code() {
            if MACROS.iter().any(|name| line.contains(&format!("{name}!"))) {
                broken.push(format!("{}:{number}", source.path.display()));
            }
        }
        for (index, line) in source.text.lines().enumerate() {
            if words(line).any(|word| MARKS.contains(&word)) {
                broken.push(format!("{}:{}", source.path.display(), index + 1));
            }
        }
    }
    assert!(broken.is_empty(), "unfinished:\n{}", broken.join("\n"));
}

#[test]
fn temper_is_a_static_pie() {
    const ET_DYN: u16 = 3;
    const PT_DYNAMIC: u32 = 2;
    const PT_INTERP: u32 = 3;
    const DT_NEEDED: u64 = 1;
    let file = fs::read(env!("CARGO_BIN_EXE_temper")).expect("the built binary");
    let u16_at = |at: usize| u16::from_le_bytes(file[at..at + 2].try_into().expect("2 bytes"));
    let u32_at = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().expect("4 bytes"));
    let u64_at = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().expect("8 bytes"));
    assert_eq!(&file[..4], b"\x7fELF");
    assert_eq!(u16_at(16), ET_DYN, "not position-independent");
    let headers = u64_at(32) as usize;
    for index in 0..usize::from(u16_at(56)) {
        let header = headers + index * usize::from(u16_at(54));
        match u32_at(header) {
            PT_INTERP => panic!("temper asks for a program interpreter"),
            PT_DYNAMIC => {
                let (start, len) = (u64_at(header + 8) as usize, u64_at(header + 32) as usize);
                for entry in (start..start + len).step_by(16) {
                    assert_ne!(u64_at(entry), DT_NEEDED, "temper needs a shared library");
                }
            }
            _ => {}
        }
    }
}

#[test]
fn the_scanner_sees_code_and_nothing_else() {
    let text = "let a = \"unsafe // x\"; // unsafe\n/* unsafe /* */ */ let b = 'x'; \
                r#\"unsafe \" \"#; fn f<'a>(x: &'a str) {}";
    let code = blank_comments_and_strings(text);
    assert!(!words(&code).any(|word| word == "unsafe"), "{code}");
    assert!(code.contains("fn f<'a>(x: &'a str) {}"), "{code}");
    assert_eq!(code.lines().count(), text.lines().count());
    assert_eq!(
        imports("use crate::{addr::{A, B}, guest}; crate::host::x(); use crate::decode::Block;"),
        ["addr", "guest", "host", "decode"]
    );
}
