use super::*;

fn profile() -> ModuleProfile {
    let mut counts = Counts {
        others: vec![ModuleId::Content([1; 16])],
        blocks: vec![BlockRecord {
            offset: 0x40,
            hash: u64::MAX - 1,
            len: 7,
            tier: Tier::Superblock,
            head: true,
            likeness: Likeness {
                opcodes: 9,
                shape: 3,
            },
            count: u64::MAX,
        }],
        edges: [
            Target::Here(0x40),
            Target::There {
                module: 0,
                offset: 9,
            },
            Target::Elsewhere,
        ]
        .map(|to| EdgeRecord {
            from: 0x40,
            kind: EdgeKind::IndirectJump,
            to,
            count: 3,
        })
        .to_vec(),
        paths: vec![PathRecord {
            head: 0x40,
            outcomes: 0b1001,
            len: 4,
            count: 5,
        }],
        pairs: vec![PairRecord {
            call: 0x40,
            from: Target::Here(0x90),
            count: 1,
        }],
        values: vec![
            ValueRecord {
                at: 0x44,
                kind: ValueKind::Stride,
                value: Observed::Is(u64::MAX - 7),
                count: 4,
            },
            ValueRecord {
                at: 0x44,
                kind: ValueKind::Stride,
                value: Observed::Other,
                count: 1,
            },
        ],
    };
    counts.normalize();
    let trial = TrialRecord {
        machine: 0,
        head: 0x40,
        region: 77,
        variant: Variant::Lifted,
        verdict: Verdict::Rejected,
        gain: -30,
        slices: 40,
        seen: 1000,
    };
    ModuleProfile {
        module: ModuleRecord {
            id: ModuleId::BuildId(vec![0xab; 20]),
            path: b"/usr/bin/x".to_vec(),
            size: 100,
            first_seen: 1,
            last_seen: 2,
            runs: 3,
            ancestor: Some(ModuleId::Content([2; 16])),
        },
        counts,
        trials: Trials {
            machines: vec![Machine::this("Some CPU")],
            trials: vec![trial],
        },
    }
}

fn json(profile: &ModuleProfile) -> String {
    serde_json::to_string(&DumpFile::new(std::slice::from_ref(profile))).unwrap()
}

#[test]
fn a_dump_comes_back_as_it_was() {
    let profile = profile();
    let back = DumpFile::parse(&json(&profile), "x").unwrap();
    assert_eq!(back, [profile]);
}

#[test]
fn a_dump_has_the_fields_of_its_schema() {
    let schema: serde_json::Value = serde_json::from_str(SCHEMA).unwrap();
    let dump: serde_json::Value = serde_json::from_str(&json(&profile())).unwrap();
    let defs = &schema["$defs"]["module"]["properties"];
    let same = |fields: &serde_json::Value, described: &serde_json::Value| {
        let names = |value: &serde_json::Value| {
            let mut names: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
            names.sort();
            names
        };
        assert_eq!(names(fields), names(described));
    };
    same(&dump, &schema["properties"]);
    let module = &dump["modules"][0];
    same(module, defs);
    for list in ["blocks", "edges", "paths", "pairs", "values", "trials"] {
        let described = &defs[list]["items"];
        same(&module[list][0], &described["properties"]);
        let required = described["required"].as_array().unwrap();
        assert_eq!(
            required.len(),
            described["properties"].as_object().unwrap().len()
        );
    }
}

#[test]
fn newer_and_inconsistent_dumps_are_refused_in_one_line() {
    let good = json(&profile());
    for (from, to, word) in [
        (r#""version":1"#, r#""version":2"#, "later one"),
        (r#""temper-profile""#, r#""something""#, "no dump"),
        (r#""module":0"#, r#""module":9"#, "inconsistent"),
        (r#""T--T""#, r#""TX-T""#, "inconsistent"),
        (r#""T--T""#, r#""""#, "inconsistent"),
        ("build-id:abab", "build-id:zzab", "inconsistent"),
        (r#""hash":"#, r#""cash":"#, "no dump"),
    ] {
        assert!(good.contains(from), "{from}");
        let failure = DumpFile::parse(&good.replace(from, to), "x").unwrap_err();
        assert!(failure.message.contains(word), "{from}: {failure}");
    }
    let long = "T".repeat(40);
    assert!(DumpFile::parse(&good.replace("T--T", &long), "x").is_err());
}

#[test]
fn the_text_has_a_line_for_each_record() {
    let mut shown = String::new();
    text(&mut shown, &profile()).unwrap();
    assert_eq!(shown.lines().count(), 3 + 1 + 3 + 1 + 1 + 2 + 1);
    assert!(shown.contains("  path 0x40 T--T count 5\n"), "{shown}");
    assert!(
        shown.contains("edge 0x40 IndirectJump 0:0x9 count 3"),
        "{shown}"
    );
}
