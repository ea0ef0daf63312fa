//! Exports, opened by the programs that they are for. One that isn't installed is skipped.

use std::path::Path;
use std::process::Command;

use profile_db::EdgeKind;
use profile_db::export::{self, Block, Edge, Function, Line, Module, Program, Symbol};

/// A program of three functions; `kernel` has nearly all of the cost.
fn program() -> Program {
    let function = |name: &str, start, end| Function {
        name: name.into(),
        symbol: Some(Symbol {
            name: name.into(),
            local: None,
        }),
        module: 0,
        start,
        end,
        source: Some(Line {
            file: "/src/program.c".into(),
            line: 7,
        }),
    };
    let block = |function, address, count| Block {
        function,
        address,
        len: 16,
        instructions: 4,
        last: address + 12,
        is_split: false,
        count,
        source: Some(Line {
            file: "/src/program.c".into(),
            line: 8,
        }),
    };
    let edge = |from, kind, to, count| Edge {
        from,
        kind,
        to: Some(to),
        count,
    };
    Program {
        name: "program".into(),
        modules: vec![Module {
            path: "/usr/bin/program".into(),
            build_id: Some("0123456789abcdef".into()),
            address: 0x40_1000,
            len: 0x1000,
            offset: 0x1000,
        }],
        functions: vec![
            function("main", 0x40_1000, 0x40_1040),
            function("step", 0x40_1040, 0x40_1060),
            function("kernel<int>", 0x40_1060, 0x40_10a0),
        ],
        blocks: vec![
            block(0, 0x40_1000, 10),
            block(0, 0x40_1010, 1000),
            block(1, 0x40_1040, 1000),
            block(2, 0x40_1060, 1000),
            block(2, 0x40_1070, 99_000),
        ],
        edges: vec![
            edge(0, EdgeKind::Next, (0, 0x40_1010), 10),
            edge(1, EdgeKind::Call, (1, 0x40_1040), 1000),
            edge(2, EdgeKind::IndirectCall, (2, 0x40_1060), 1000),
            edge(3, EdgeKind::Next, (2, 0x40_1070), 1000),
            edge(4, EdgeKind::Taken, (2, 0x40_1070), 98_000),
            edge(4, EdgeKind::Next, (2, 0x40_1080), 1000),
        ],
    }
}

/// What `command` prints; `None`, and why, when it isn't installed.
fn run(command: &mut Command) -> Option<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    match command.output() {
        Ok(output) => {
            let (out, err) = (output.stdout, output.stderr);
            let (out, err) = (String::from_utf8_lossy(&out), String::from_utf8_lossy(&err));
            assert!(output.status.success(), "{name}: {out}{err}");
            Some(out.into_owned())
        }
        Err(error) => {
            println!("skipped: {name} can't be run: {error}");
            None
        }
    }
}

fn with_file(content: impl AsRef<[u8]>, use_it: impl FnOnce(&Path)) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("export");
    std::fs::write(&path, content).unwrap();
    use_it(&path);
}

#[test]
fn callgrind_annotate_reads_the_callgrind_export() {
    with_file(export::callgrind(&program()), |path| {
        let mut command = Command::new("callgrind_annotate");
        let command = command.args(["--inclusive=no", "--auto=no", "--tree=calling"]);
        let Some(text) = run(command.arg(path)) else {
            return;
        };
        let kernel = text
            .lines()
            .find(|line| line.contains("kernel<int>"))
            .unwrap();
        assert!(kernel.trim_start().starts_with("400,000"), "{text}");
        assert!(
            text.contains("408,040") && text.contains("PROGRAM TOTALS"),
            "{text}"
        );
    });
}

#[test]
fn go_tool_pprof_reads_the_pprof_export() {
    with_file(export::pprof(&program()), |path| {
        let mut command = Command::new("go");
        let command = command.args(["tool", "pprof", "-top", "-nodecount=5"]);
        let Some(text) = run(command.env("HOME", path.parent().unwrap()).arg(path)) else {
            return;
        };
        assert!(text.contains("Type: instructions"), "{text}");
        let kernel = text.lines().find(|line| line.contains("kernel")).unwrap();
        assert!(kernel.contains("400000 98.03%"), "{text}");
        let main = text.lines().find(|line| line.ends_with("main")).unwrap();
        assert!(main.contains("408040") && main.contains("100%"), "{text}");
    });
}

#[test]
fn graphviz_draws_both_graphs() {
    let program = program();
    for (graph, node) in [
        (export::call_graph(&program, 10), "kernel&lt;int&gt;"),
        (export::control_flow(&program, 2), "+0x10, 4 instructions"),
    ] {
        with_file(graph, |path| {
            if let Some(svg) = run(Command::new("dot").arg("-Tsvg").arg(path)) {
                assert!(svg.contains("<svg") && svg.contains(node), "{svg}");
            }
        });
    }
}

#[test]
fn perf_tools_profile_reader_takes_the_branch_stacks() {
    with_file(export::perf_script(&program()), |path| {
        let text = std::fs::read_to_string(path).unwrap();
        // llvm-profgen's rules: an address, then FROM/TO/P|M|-/X|-/A|-/CYCLES each.
        for line in text.lines().skip(1) {
            let mut fields = line.split(' ');
            assert!(
                u64::from_str_radix(fields.next().unwrap(), 16).is_ok(),
                "{line}"
            );
            for field in fields {
                let parts: Vec<&str> = field.split('/').collect();
                assert_eq!(parts[2..], ["P", "-", "-", "0"], "{line}");
                assert!(
                    parts[..2].iter().all(|part| part.starts_with("0x")),
                    "{line}"
                );
            }
        }
    });
}
