use std::process::Command;

use super::*;
use crate::profile::Identity;

/// The file at `path` as a module.
fn module(path: &Path) -> (ModuleCode, Identity) {
    let file = std::fs::File::open(path).unwrap();
    let identity = Identities::new().identify(&file).unwrap();
    (ModuleCode::new(path, &identity.id), identity)
}

#[test]
fn the_blocks_of_a_file_are_found_and_have_a_likeness() {
    let path = Path::new("/bin/true");
    if !path.exists() {
        println!("skipped: no /bin/true");
        return;
    }
    let (mut code, identity) = module(path);
    let blocks = code.blocks();
    assert!(blocks.len() > 500, "{}", blocks.len());
    assert!(blocks.is_sorted_by(|a, b| a.offset < b.offset));
    assert!(blocks.iter().any(|b| matches!(b.exit, Exit::Return)));
    for block in &blocks {
        assert!(block.likeness.is_known());
        assert!(block.offset + u64::from(block.len) <= identity.size);
        let likeness = code.likeness(block.offset, block.len, block.hash);
        assert_eq!(likeness, Some(block.likeness));
        assert_eq!(code.likeness(block.offset, block.len, block.hash ^ 1), None);
    }
    // Most of what a direct transfer leads to is among them.
    let offsets: Vec<u64> = blocks.iter().map(|block| block.offset).collect();
    let (mut direct, mut known) = (0, 0);
    for block in &blocks {
        if let Exit::Jump(to) | Exit::Branch { taken: to, .. } = block.exit {
            direct += 1;
            known += usize::from(offsets.binary_search(&to).is_ok());
        }
    }
    assert!(known * 100 >= direct * 99, "{known} of {direct}");
}

#[test]
fn another_file_in_the_modules_place_says_nothing() {
    let mut code = ModuleCode::new(Path::new("/bin/true"), &ModuleId::Content([1; 16]));
    assert!(code.blocks().is_empty());
    assert_eq!(code.likeness(0x1000, 4, 0), None);
    let mut code = ModuleCode::new(Path::new("/nonexistent"), &ModuleId::Content([1; 16]));
    assert!(code.blocks().is_empty());
}

#[test]
fn registers_numbers_and_places_make_no_difference_and_instructions_do() {
    let of = |bytes: &[u8], at: u64| {
        let mut block = Block::default();
        let mut memory = FileCode::new([(at, bytes)]);
        Decoder::new(CpuMode::Bits64)
            .block_into(
                &mut memory,
                GuestAddr(at),
                MAX_BLOCK_INSTRUCTIONS,
                &mut block,
            )
            .unwrap();
        likeness(&block)
    };
    // add eax, 1; jne +2 and nop; add ebx, 0x12345678; jne +0x1000
    let short = of(&[0x83, 0xc0, 1, 0x75, 2], 0x1000);
    let long = [
        0x90, 0x81, 0xc3, 0x78, 0x56, 0x34, 0x12, 0x0f, 0x85, 0, 0x10, 0, 0,
    ];
    assert_eq!(of(&long, 0x7000), short);
    // sub instead of add; a memory operand instead of a register; a jump instead of a branch.
    for other in [
        &[0x83, 0xe8, 1, 0x75, 2][..],
        &[0x83, 0x00, 1, 0x75, 2],
        &[0x83, 0xc0, 1, 0xeb, 2],
    ] {
        assert_ne!(of(other, 0x1000).opcodes, short.opcodes);
    }
    // A loop has another shape.
    assert_ne!(of(&[0x83, 0xc0, 1, 0x75, 0xf0], 0x1000).shape, short.shape);
}

#[test]
fn cut_and_mutated_files_are_read_without_harm() {
    let Ok(data) = std::fs::read("/bin/true") else {
        println!("skipped: no /bin/true");
        return;
    };
    let read = |data: &[u8]| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("module");
        std::fs::write(&path, data).unwrap();
        module(&path).0.blocks().len()
    };
    for len in [0, 3, 64, 200, 1000, data.len() / 2, data.len() - 1] {
        read(&data[..len]);
    }
    let mut mutated = data.clone();
    for at in (0..data.len().min(1200)).step_by(97) {
        mutated[at] = 0xff;
        read(&mutated);
        mutated[at] = data[at];
    }
}

/// Two builds of a program of many functions, one of them with a few changed.
#[test]
fn a_rebuilt_programs_code_is_recognized() {
    let dir = tempfile::tempdir().unwrap();
    let build = |name: &str, changed: bool| {
        let mut source = String::from("volatile int sink;\n");
        for function in 0..60 {
            let more = if changed && function % 13 == 5 {
                "sink ^= x * 31 + n; if (x > 1000) sink += 7;"
            } else {
                ""
            };
            source += &format!(
                "__attribute__((noinline)) int f{function}(int x) {{ int n = {function}; \
                 for (int i = 0; i < x; i++) {{ {more} n = n * {} + i; \
                 if (n & {}) sink += n; }} return n; }}\n",
                function * 3 + 7,
                1 << (function % 9),
            );
        }
        source += "int main(int c, char **v) { int n = 0;\n";
        for function in 0..60 {
            source += &format!("n += f{function}(c + {function});\n");
        }
        source += "return n & 1; }\n";
        let (from, to) = (dir.path().join(format!("{name}.c")), dir.path().join(name));
        std::fs::write(&from, source).unwrap();
        let built = Command::new("gcc")
            .arg("-O2")
            .arg(&from)
            .arg("-o")
            .arg(&to)
            .status();
        built.is_ok_and(|status| status.success()).then_some(to)
    };
    let (Some(old), Some(new)) = (build("old", false), build("new", true)) else {
        println!("skipped: no gcc");
        return;
    };
    let (mut old, mut new) = (module(&old).0.blocks(), module(&new).0.blocks());
    assert_ne!(old, new);
    for blocks in [&mut old, &mut new] {
        blocks.sort_by_key(|block| block.likeness.opcodes);
    }
    let known = |block: &&CodeBlock| {
        new.binary_search_by_key(&block.likeness.opcodes, |b| b.likeness.opcodes)
            .is_ok()
    };
    let found = old.iter().filter(known).count();
    assert!(found * 10 >= old.len() * 9, "{found} of {}", old.len());
}
