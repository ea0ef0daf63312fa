use super::*;
use crate::record::EdgeKind;

fn function(name: &str, start: u64, end: u64) -> Function {
    Function {
        name: name.into(),
        symbol: Some(Symbol {
            name: name.into(),
            local: (name == "inner").then_some(2),
        }),
        module: 0,
        start,
        end,
        source: Some(Line {
            file: "/src/a.c".into(),
            line: start as u32,
        }),
    }
}

fn block(function: usize, address: u64, count: u64) -> Block {
    Block {
        function,
        address,
        len: 8,
        instructions: 2,
        last: address + 4,
        is_split: false,
        count,
        source: None,
    }
}

/// `main` calls `loop` ten times and `inner` once, `loop` calls `inner` 90 times and itself.
fn program() -> Program {
    let edge = |from, kind, to, count| Edge {
        from,
        kind,
        to: Some(to),
        count,
    };
    Program {
        name: "a \"program\"".into(),
        modules: vec![Module {
            path: "/bin/a".into(),
            build_id: Some("00ff".into()),
            address: 0x1000,
            len: 0x1000,
            offset: 0,
        }],
        functions: vec![
            function("main", 0x1000, 0x1020),
            function("loop", 0x1020, 0x1040),
            function("inner", 0x1040, 0x1050),
        ],
        blocks: vec![
            block(0, 0x1000, 1),
            block(0, 0x1008, 11),
            block(1, 0x1020, 100),
            block(1, 0x1028, 100),
            block(2, 0x1040, 91),
        ],
        edges: vec![
            edge(0, EdgeKind::Next, (0, 0x1008), 1),
            edge(1, EdgeKind::Call, (1, 0x1020), 10),
            edge(1, EdgeKind::Call, (2, 0x1040), 1),
            edge(2, EdgeKind::Taken, (1, 0x1028), 100),
            edge(3, EdgeKind::Call, (2, 0x1040), 90),
            edge(3, EdgeKind::Call, (1, 0x1020), 5),
            edge(4, EdgeKind::Return, (1, 0x1028), 90),
            Edge {
                from: 4,
                kind: EdgeKind::Return,
                to: None,
                count: 1,
            },
        ],
    }
}

#[test]
fn stacks_spread_a_functions_cost_over_its_callers_and_lose_none() {
    assert_eq!(
        folded(&program()),
        "main 24\nmain;loop 400\nmain;loop;inner 180\nmain;inner 2\n"
    );
    assert_eq!(program().cost(), 24 + 400 + 180 + 2);
}

#[test]
fn a_cycle_of_functions_without_a_caller_keeps_its_cost() {
    let mut program = program();
    // `inner` calls `main`: nobody is at the top any more.
    program.edges.push(Edge {
        from: 4,
        kind: EdgeKind::IndirectCall,
        to: Some((0, 0x1000)),
        count: 1,
    });
    let text = folded(&program);
    let sum: u64 = text
        .lines()
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum();
    assert_eq!(sum, program.cost(), "{text}");
}

#[test]
fn deep_and_wide_graphs_end() {
    let functions = 3000;
    let mut program = Program {
        modules: program().modules,
        ..Program::default()
    };
    for index in 0..functions {
        let at = 0x1000 + index as u64 * 16;
        program
            .functions
            .push(function(&format!("f{index}"), at, at + 16));
        program.blocks.push(block(index, at, 10));
        // A chain, a ladder beside it, and a way back.
        for to in [index + 1, index + 2, functions - 1 - index] {
            if to < functions {
                program.edges.push(Edge {
                    from: index,
                    kind: EdgeKind::Call,
                    to: Some((to, 0x1000 + to as u64 * 16)),
                    count: 10,
                });
            }
        }
    }
    let stacks = folded(&program);
    let sum: f64 = stacks
        .lines()
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum();
    let cost = program.cost() as f64;
    assert!((sum - cost).abs() < cost * 0.2, "{sum} of {cost}");
}

#[test]
fn bolt_gets_both_ends_as_symbol_and_offset() {
    let text = bolt(&program());
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.contains(&"1 main c 1 loop 0 0 10"), "{text}");
    assert!(lines.contains(&"1 loop c 1 inner/2 0 0 90"), "{text}");
    assert!(lines.contains(&"1 main 4 1 main 8 0 1"), "{text}");
    assert_eq!(lines.len(), 7);
    // A block that was split has no branch.
    let mut split = program();
    split.blocks[0].is_split = true;
    assert!(!bolt(&split).contains("1 main 4 "));
}

#[test]
fn perf_script_has_the_map_and_branch_stacks() {
    let text = perf_script(&program());
    let mut lines = text.lines();
    assert_eq!(
        lines.next(),
        Some("PERF_RECORD_MMAP2 1/1: [0x1000(0x1000) @ 0x0 00:00 0 0]: r-xp /bin/a")
    );
    let count = |line: &str| text.lines().filter(|other| *other == line).count();
    assert_eq!(
        count("1028 0x1024/0x1028/P/-/-/0 0x100c/0x1020/P/-/-/0"),
        100
    );
    // `main`'s first block is fallen through, and nothing is known to lead to it.
    assert_eq!(count("1020 0x100c/0x1020/P/-/-/0"), 10);
}

#[test]
fn callgrind_tells_calls_with_their_cost() {
    let text = callgrind(&program());
    assert!(text.contains("summary: 606\n"), "{text}");
    let call = "cob=/bin/a\ncfi=/src/a.c\ncfn=loop\ncalls=10 0x1020 4128\n0x100c 0 580\n";
    assert!(text.contains(call), "{text}");
    // The call of itself closes a cycle.
    assert!(text.contains("calls=5 0x1020 4128\n0x102c 0 0\n"), "{text}");
}

#[test]
fn hostile_names_stay_in_their_fields() {
    let mut program = program();
    program.functions[0].name = "a;b \"c\"\n\\d".into();
    program.name = "x\ny".into();
    assert!(folded(&program).starts_with("a:b \"c\"?\\d 24\n"));
    assert!(!callgrind(&program).contains("x\ny"));
    let json: serde_json::Value = serde_json::from_str(&speedscope(&program)).unwrap();
    assert_eq!(json["shared"]["frames"][0]["name"], "a;b \"c\"\n\\d");
    assert!(call_graph(&program, 9).contains("a;b \\\"c\\\"\\n\\\\d"));
}

#[test]
fn nothing_counted_is_no_trouble() {
    let empty = Program::default();
    assert_eq!(
        (folded(&empty), bolt(&empty)),
        (String::new(), String::new())
    );
    for text in [
        callgrind(&empty),
        speedscope(&empty),
        perf_script(&empty),
        call_graph(&empty, 5),
    ] {
        assert!(text.len() < 1000);
    }
    assert!(!pprof(&empty).is_empty());
}

#[test]
fn speedscopes_file_follows_its_schema() {
    let file: serde_json::Value = serde_json::from_str(&speedscope(&program())).unwrap();
    // What FileFormat.File and FileFormat.SampledProfile of speedscope require.
    assert_eq!(
        file["$schema"],
        "https://www.speedscope.app/file-format-schema.json"
    );
    let frames = file["shared"]["frames"].as_array().unwrap();
    assert!(frames.iter().all(|frame| frame["name"].is_string()));
    let profile = &file["profiles"][0];
    assert_eq!(
        (&profile["type"], &profile["unit"]),
        (&"sampled".into(), &"none".into())
    );
    assert!(profile["name"].is_string());
    let (samples, weights) = (&profile["samples"], &profile["weights"]);
    let (samples, weights) = (samples.as_array().unwrap(), weights.as_array().unwrap());
    assert_eq!(samples.len(), weights.len());
    for sample in samples {
        for frame in sample.as_array().unwrap() {
            assert!((frame.as_u64().unwrap() as usize) < frames.len());
        }
    }
    let sum: u64 = weights.iter().map(|weight| weight.as_u64().unwrap()).sum();
    assert_eq!(
        (profile["startValue"].as_u64(), profile["endValue"].as_u64()),
        (Some(0), Some(sum))
    );
}
