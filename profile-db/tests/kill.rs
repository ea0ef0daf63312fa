//! Writers are killed at random moments, and no file is lost or torn: what a writer was told
//! is saved stays saved. A binary of its own, because it starts processes.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use profile_db::{
    BlockRecord, Counts, Durability, EdgeKind, EdgeRecord, Likeness, ModuleId, ModuleProfile,
    ModuleRecord, Store, Target, Tier, Trials,
};

const WRITERS: usize = 8;
/// Records beside the writers' own, so that a save takes a while.
const BALLAST: u64 = 3000;

fn main() {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|arg| arg == "write") {
        let dir = PathBuf::from(args.next().expect("a directory"));
        let slot = args.next().and_then(|slot| slot.to_str()?.parse().ok());
        return write(&dir, slot.expect("a number"));
    }
    let trials = vec![
        Trial::test("sixty_kills_lose_nothing", || kill(60)),
        // A minute or more.
        Trial::test("a_thousand_kills_lose_nothing", || kill(1000)).with_ignored_flag(true),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn id() -> ModuleId {
    ModuleId::Content([7; 16])
}

fn profile(blocks: impl Iterator<Item = u64>) -> ModuleProfile {
    let blocks = blocks.map(|offset| BlockRecord {
        offset,
        hash: offset,
        len: 4,
        tier: Tier::Block,
        head: false,
        likeness: Likeness::default(),
        count: 1,
    });
    let blocks: Vec<_> = blocks.collect();
    let edges = blocks.iter().map(|block| EdgeRecord {
        from: block.offset,
        kind: EdgeKind::Jump,
        to: Target::Here(block.offset + 16),
        count: 1,
    });
    ModuleProfile {
        module: ModuleRecord {
            id: id(),
            path: b"/lib/killed".to_vec(),
            size: 1,
            first_seen: 1,
            last_seen: 1,
            runs: 0,
            ancestor: None,
        },
        counts: Counts {
            edges: edges.collect(),
            blocks,
            ..Counts::default()
        },
        trials: Trials::default(),
    }
}

/// Saves one execution of block `slot` after another, and says so after each.
fn write(dir: &Path, slot: u64) {
    let store = Store::open(dir).expect("the directory");
    let mut out = std::io::stdout();
    loop {
        let one = profile(std::iter::once(slot));
        store.absorb(one, Durability::Routine).expect("a save");
        // The other end may be gone.
        if out.write_all(b"x").and_then(|()| out.flush()).is_err() {
            return;
        }
    }
}

fn start(dir: &Path, slot: usize) -> Child {
    Command::new(std::env::current_exe().expect("this program"))
        .arg("write")
        .arg(dir)
        .arg(slot.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a writer")
}

/// Kills a writer and returns how many saves it has told of.
fn end(mut writer: Child) -> u64 {
    writer.kill().expect("kill");
    let mut told = Vec::new();
    let mut out = writer.stdout.take().expect("piped");
    out.read_to_end(&mut told).expect("read");
    writer.wait().expect("wait");
    told.len() as u64
}

fn kill(times: u64) -> Result<(), Failed> {
    let home = tempfile::tempdir()?;
    let dir = home.path().join("profiles");
    let store = Store::open(&dir)?;
    let ballast = profile((0..BALLAST).map(|at| 1000 + at * 24));
    store.absorb(ballast, Durability::Routine)?;
    let mut writers: Vec<Child> = (0..WRITERS).map(|slot| start(&dir, slot)).collect();
    let mut told = [0u64; WRITERS];
    let mut killed = [0u64; WRITERS];
    let seed = std::process::id();
    println!("seed {seed}");
    let mut random = u64::from(seed) | 1;
    let began = Instant::now();
    for _ in 0..times {
        // Xorshift (Marsaglia, 2003).
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        std::thread::sleep(Duration::from_micros(random % 60_000));
        let slot = (random >> 32) as usize % WRITERS;
        told[slot] += end(std::mem::replace(&mut writers[slot], start(&dir, slot)));
        killed[slot] += 1;
        // A reader sees a whole file at any moment.
        if store.load(&id())?.is_none() {
            return Err("the file is gone".into());
        }
    }
    for (slot, writer) in writers.into_iter().enumerate() {
        told[slot] += end(writer);
        killed[slot] += 1;
    }
    let counts = store.load(&id())?.ok_or("the file is gone")?.counts;
    let of = |offset| {
        let found = counts.blocks.iter().find(|block| block.offset == offset);
        found.map_or(0, |block| block.count)
    };
    for slot in 0..WRITERS {
        let (count, told, killed) = (of(slot as u64), told[slot], killed[slot]);
        // A writer may be killed between its save and its word.
        if !(told..=told + killed).contains(&count) {
            return Err(format!("writer {slot}: {told} saves told, {count} found").into());
        }
    }
    let ballast = (0..BALLAST).filter(|at| of(1000 + at * 24) == 1).count();
    if ballast as u64 != BALLAST {
        return Err(format!("{ballast} of {BALLAST} other records are left").into());
    }
    let names: Vec<_> = std::fs::read_dir(&dir)?
        .map(|entry| entry.map(|entry| entry.file_name().into_string().unwrap_or_default()))
        .collect::<Result<_, _>>()?;
    if names.iter().any(|name| name.ends_with(".damaged")) {
        return Err(format!("damaged files: {names:?}").into());
    }
    let saves: u64 = told.iter().sum();
    println!("{saves} saves, {times} kills in {:?}", began.elapsed());
    Ok(())
}
