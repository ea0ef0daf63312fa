use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::Parser;
use profile_db::{
    BlockRecord, Counts, Durability, EdgeKind, EdgeRecord, Likeness, ModuleId, ModuleProfile,
    ModuleRecord, NoCode, PathRecord, RunProfile, Store, Target, Tier, Trials,
};
use serde_json::Value;

use super::super::{ProfileArgs, ProfileCommand, execute, image, list};
use super::*;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    args: ProfileArgs,
}

const HOT: &str = concat!(module_path!(), "::temper_test_hot_function");

/// A profile directory with a profile of this test program and of a library.
struct Home {
    dir: tempfile::TempDir,
    program: PathBuf,
    library: ModuleId,
    /// The file offset of [`hot`].
    hot: u64,
}

/// A function that the made-up profile calls hot.
#[inline(never)]
fn temper_test_hot_function(x: u64) -> u64 {
    std::hint::black_box(x) + 1
}

fn block(offset: u64, len: u32, count: u64) -> BlockRecord {
    BlockRecord {
        offset,
        hash: 1,
        len,
        tier: Tier::Block,
        head: false,
        likeness: Likeness::default(),
        count,
    }
}

fn save(store: &Store, id: &ModuleId, path: &Path, seen: u64, counts: Counts) {
    let module = ModuleRecord {
        id: id.clone(),
        path: path.as_os_str().as_bytes().to_vec(),
        size: 5,
        first_seen: seen,
        last_seen: seen,
        runs: 1,
        ancestor: None,
    };
    let run = RunProfile {
        profile: ModuleProfile {
            module,
            counts,
            trials: Trials::default(),
        },
        spared: Vec::new(),
    };
    store.merge(run, &mut NoCode, Durability::Routine).unwrap();
}

impl Home {
    fn new() -> Home {
        assert_eq!(temper_test_hot_function(1), 2);
        let dir = tempfile::tempdir().unwrap();
        let program = std::env::current_exe().unwrap();
        let data = fs::read(&program).unwrap();
        let file = object::File::parse(&data[..]).unwrap();
        use object::{Object, ObjectSegment, ObjectSymbol};
        let symbol = file
            .symbols()
            .find(|symbol| {
                symbol
                    .name()
                    .is_ok_and(|name| name.contains("temper_test_hot_function"))
            })
            .unwrap();
        let hot = file
            .segments()
            .find_map(|segment| {
                let at = symbol.address().checked_sub(segment.address())?;
                (at < segment.size()).then_some(segment.file_range().0 + at)
            })
            .unwrap();
        let library = ModuleId::Content([7; 16]);
        let store = Store::open(dir.path()).unwrap();
        let edge = |from, kind, to, count| EdgeRecord {
            from,
            kind,
            to,
            count,
        };
        let there = Target::There {
            module: 0,
            offset: 0x123,
        };
        let counts = Counts {
            others: vec![library.clone()],
            blocks: vec![
                block(hot, 4, 9000),
                block(hot + 4, 1, 500),
                block(64, 4, 250),
            ],
            edges: vec![
                edge(hot, EdgeKind::Taken, Target::Here(hot), 8000),
                edge(hot, EdgeKind::Next, Target::Here(hot + 4), 1000),
                edge(hot + 4, EdgeKind::Return, there, 300),
                edge(hot + 4, EdgeKind::Return, Target::Elsewhere, 100),
            ],
            paths: vec![PathRecord {
                head: hot,
                outcomes: 0b101,
                len: 4,
                count: 777,
            }],
            ..Counts::default()
        };
        let id = image::identify(&program).unwrap();
        save(&store, &id, &program, 1000, counts);
        let counts = Counts {
            blocks: vec![block(0x123, 4, 40)],
            ..Counts::default()
        };
        save(
            &store,
            &library,
            Path::new("/lib/libgone.so.1"),
            2000,
            counts,
        );
        Home {
            dir,
            program,
            library,
            hot,
        }
    }

    fn run(&self, words: &[&str]) -> Result<String, Failure> {
        let dir = self.dir.path().to_str().unwrap();
        let words = [&["profile"], words, &["--profile-dir", dir]].concat();
        let command = Command::try_parse_from(words).unwrap_or_else(|error| panic!("{error}"));
        let mut out = Vec::new();
        execute(&command.args, &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.run(&[words, &["--json"]].concat()).unwrap()).unwrap()
    }
}

#[test]
fn functions_come_by_weight_with_their_names() {
    let home = Home::new();
    let program = home.program.to_str().unwrap();
    let report = &home.json(&["show", program])["modules"][0];
    assert_eq!(report["file_matches"], true);
    assert_eq!(report["executions"], 9750);
    let functions = &report["functions"]["shown"];
    assert_eq!(functions[0]["name"], HOT);
    assert_eq!(functions[0]["executions"], 9500);
    assert_eq!(functions[0]["weight"], 9000 * 4 + 500);
    assert_eq!(functions[0]["blocks"], 2);
    assert_eq!(report["functions"]["all"], 2);

    let text = home.run(&["show", program, "--top", "1"]).unwrap();
    assert!(text.contains("Functions (1 of 2)"), "{text}");
    assert!(text.contains("97.3%"), "{text}");
    assert!(text.contains("T-T-"), "{text}");
    let by_address = home.json(&["show", program, "--sort", "address"]);
    let first = &by_address["modules"][0]["functions"]["shown"][0];
    assert_eq!(first["executions"], 250);
}

#[test]
fn edges_name_both_ends_and_other_modules() {
    let home = Home::new();
    let report = &home.json(&["show", home.program.to_str().unwrap()])["modules"][0];
    let edge = &report["hot_edges"]["shown"][0];
    assert_eq!(edge["from"], HOT);
    assert_eq!(
        (&edge["count"], &edge["total"]),
        (&8000.into(), &9000.into())
    );
    let next = &report["hot_edges"]["shown"][1];
    assert_eq!(
        (&next["to"], &next["kind"]),
        (&format!("{HOT}+0x4").into(), &"next".into())
    );
    let targets = &report["indirect_targets"]["shown"];
    assert_eq!(targets[0]["to"], "libgone.so.1+0x123");
    assert_eq!(targets[1]["to"], "elsewhere");
    assert_eq!(targets[0]["total"], 400);
    assert_eq!(report["hot_paths"]["shown"][0]["outcomes"], "T-T-");
}

#[test]
fn filters_choose_functions_and_modules() {
    let home = Home::new();
    let program = home.program.to_str().unwrap();
    let report = &home.json(&["show", program, "--function", "test_hot_fun"])["modules"][0];
    assert_eq!(report["functions"]["all"], 1);
    let report = &home.json(&["show", program, "--function", "no such"])["modules"][0];
    assert_eq!(report["functions"]["all"], 0);
    assert_eq!(report["hot_edges"]["all"], 0);
    let modules = home.json(&["show", program, "--module", "libgone"]);
    assert_eq!(modules["modules"][0]["path"], "/lib/libgone.so.1");
    let failure = home
        .run(&["show", program, "--module", "libm"])
        .unwrap_err();
    assert!(failure.message.contains("libm"));
}

#[test]
fn modules_are_found_by_name_and_identity() {
    let home = Home::new();
    let identity = home.library.to_string();
    for wanted in ["libgone.so.1", "0707", &identity] {
        let report = &home.json(&["show", wanted])["modules"][0];
        assert_eq!(report["path"], "/lib/libgone.so.1");
        // Its file is gone, so places are offsets.
        assert_eq!(report["file_matches"], false);
        assert_eq!(report["functions"]["shown"][0]["name"], "0x0..");
    }
    let text = home.run(&["show", "libgone.so.1"]).unwrap();
    assert!(text.contains("places are file offsets"));
}

#[test]
fn what_has_no_profile_is_told_apart() {
    let home = Home::new();
    let message = |wanted| home.run(&["show", wanted]).unwrap_err().message;
    assert!(message("/bin/sh").contains("`temper run /bin/sh` makes one"));
    assert!(message("/nonexistent").contains("neither a file"));
    // Another build of the library.
    let other = home.dir.path().join("libgone.so.1");
    fs::write(&other, "another build").unwrap();
    let said = message(other.to_str().unwrap());
    assert!(
        said.contains("another build, `temper profile show 0707"),
        "{said}"
    );
    assert!(home.hot > 0);
}

#[test]
fn the_list_has_a_line_for_each_module_and_json() {
    let home = Home::new();
    let listed = home.json(&["list"]);
    assert_eq!(listed.as_array().unwrap().len(), 2);
    assert_eq!(listed[0]["path"], "/lib/libgone.so.1");
    assert_eq!(listed[1]["executions"], 9750);
    let by_blocks = home.json(&["list", "--sort", "blocks", "--top", "1"]);
    assert_eq!(by_blocks.as_array().unwrap().len(), 1);
    assert_eq!(by_blocks[0]["blocks"], 3);
    let text = home.run(&["list", "--module", "gone"]).unwrap();
    assert_eq!(text.lines().count(), 2);
    assert!(text.contains("libgone.so.1") && text.contains("years ago"));

    let empty = home.dir.path().join("none");
    let command = ["profile", "list", "--profile-dir", empty.to_str().unwrap()];
    let command = Command::try_parse_from(command).unwrap();
    let ProfileCommand::List(args) = &command.args.command else {
        panic!("not list");
    };
    let mut out = Vec::new();
    list::run(args, &mut out).unwrap();
    assert!(
        String::from_utf8(out)
            .unwrap()
            .starts_with("No profiles in")
    );
}

#[test]
fn a_damaged_profile_is_one_line_and_the_rest_is_listed() {
    let home = Home::new();
    let listed = home.json(&["list", "--module", "libgone"]);
    fs::write(listed[0]["profile"].as_str().unwrap(), "garbage").unwrap();
    assert_eq!(home.json(&["list"]).as_array().unwrap().len(), 1);
    assert!(home.run(&["show", "libgone.so.1"]).is_err());
}
