use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;
use crate::code::{CodeBlock, Exit};
use crate::error::Damage;
use crate::record::{BlockRecord, Counts, EdgeKind, EdgeRecord, Likeness, Target, Tier};
use crate::sample::{Rng, profile};

fn store() -> (tempfile::TempDir, Store) {
    let home = tempfile::tempdir().unwrap();
    let store = Store::open(&home.path().join("data/profiles")).unwrap();
    (home, store)
}

fn run(profile: ModuleProfile) -> RunProfile {
    RunProfile {
        profile,
        spared: Vec::new(),
    }
}

fn save(store: &Store, seed: u64) -> ModuleProfile {
    let profile = profile(&mut Rng(seed), 50);
    store
        .merge(run(profile.clone()), &mut NoCode, Durability::Routine)
        .unwrap();
    profile
}

#[test]
fn an_unknown_module_and_a_missing_directory_are_empty() {
    let (_home, store) = store();
    assert!(store.load(&ModuleId::Content([0; 16])).unwrap().is_none());
    assert!(store.known(&ModuleId::Content([0; 16])).unwrap().is_none());
    assert!(store.list().unwrap().is_empty());
    assert!(!store.dir().exists());
}

#[test]
fn a_save_comes_back_and_the_directory_is_private() {
    let (_home, store) = store();
    let saved = save(&store, 1);
    let id = &saved.module.id;
    assert_eq!(store.load(id).unwrap().unwrap(), saved);
    let known = store.known(id).unwrap().unwrap();
    assert_eq!(known.totals.blocks, saved.counts.blocks.len() as u64);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!(mode(store.dir()), 0o700);
    assert_eq!(mode(&store.path(id, "profile")), 0o600);
    let listed = store.list().unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].as_ref().unwrap().module, saved.module);
    let names: Vec<_> = std::fs::read_dir(store.dir())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

#[test]
fn a_second_run_ages_the_first_and_a_second_save_of_one_run_does_not() {
    let (_home, store) = store();
    let first = save(&store, 1);
    let id = first.module.id.clone();
    let mut again = first.clone();
    again.module.runs = 0;
    store
        .merge(run(again), &mut NoCode, Durability::Synced)
        .unwrap();
    let doubled = store.load(&id).unwrap().unwrap();
    assert_eq!(doubled.module.runs, 1);
    let mut expected = first.counts.clone();
    expected.merge(first.counts.clone());
    assert_eq!(doubled.counts, expected);

    let second = save(&store, 2);
    expected.age(&[], 1);
    expected.merge(second.counts);
    let loaded = store.load(&id).unwrap().unwrap();
    assert_eq!(loaded.module.runs, 2);
    assert_eq!(loaded.counts, expected);
}

#[test]
fn blocks_that_ran_uncounted_are_spared() {
    let (_home, store) = store();
    let first = save(&store, 1);
    let spared: Vec<u64> = first.counts.blocks.iter().map(|b| b.offset).collect();
    let mut empty = first.clone();
    empty.counts = Default::default();
    let run = RunProfile {
        profile: empty,
        spared,
    };
    store.merge(run, &mut NoCode, Durability::Routine).unwrap();
    let loaded = store.load(&first.module.id).unwrap().unwrap();
    assert_eq!(loaded.counts.blocks, first.counts.blocks);
}

#[test]
fn a_damaged_file_is_set_aside_once_and_replaced() {
    let (_home, store) = store();
    let saved = save(&store, 1);
    let id = &saved.module.id;
    let path = store.path(id, "profile");
    let mut bytes = std::fs::read(&path).unwrap();
    // The counts come third.
    let counts = 24 + 2 * 32 + 8;
    let counts = u64::from_le_bytes(bytes[counts..counts + 8].try_into().unwrap());
    bytes[counts as usize] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    // The decisions are whole, and they are all that a start reads.
    assert!(store.known(id).unwrap().is_some());
    let aside = store.path(id, "damaged");
    match store.load(id) {
        Err(Error::Damaged {
            damage: Damage::Checksum,
            aside: Some(at),
            ..
        }) => assert_eq!(at, aside),
        other => panic!("{other:?}"),
    }
    assert_eq!(std::fs::read(&aside).unwrap(), bytes);
    assert!(store.load(id).unwrap().is_none());

    std::fs::write(&path, b"TEMPERDB").unwrap();
    save(&store, 1);
    assert_eq!(store.load(id).unwrap().unwrap(), saved);
}

#[test]
fn another_modules_file_is_damaged() {
    let (_home, store) = store();
    let saved = save(&store, 1);
    let other = ModuleId::Content([1; 16]);
    std::fs::rename(
        store.path(&saved.module.id, "profile"),
        store.path(&other, "profile"),
    )
    .unwrap();
    let listed = store.list().unwrap();
    assert!(matches!(listed[0], Err(Error::Damaged { aside: None, .. })));
    assert!(matches!(
        store.known(&other),
        Err(Error::Damaged {
            damage: Damage::WrongModule,
            ..
        })
    ));
}

#[test]
fn a_newer_file_is_left_alone() {
    let (_home, store) = store();
    let saved = save(&store, 1);
    let path = store.path(&saved.module.id, "profile");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[8] = 200;
    let table_end = 24 + 32 * usize::from(bytes[18]);
    let crc = crc32fast::hash(&[&bytes[..20], &bytes[24..table_end]].concat());
    bytes[20..24].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&path, &bytes).unwrap();
    let error = store
        .merge(run(saved.clone()), &mut NoCode, Durability::Routine)
        .unwrap_err();
    assert!(matches!(error, Error::Newer { .. }));
    assert!(
        error
            .to_string()
            .contains("use that version or a later one")
    );
    assert!(store.known(&saved.module.id).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}

#[test]
fn symlinks_fifos_and_open_directories_are_refused() {
    let (home, store) = store();
    let saved = save(&store, 1);
    let id = &saved.module.id;
    let path = store.path(id, "profile");
    let elsewhere = home.path().join("elsewhere");
    std::fs::rename(&path, &elsewhere).unwrap();
    symlink(&elsewhere, &path).unwrap();
    assert!(matches!(store.load(id), Err(Error::Untrusted { .. })));
    assert!(matches!(
        store.merge(run(saved.clone()), &mut NoCode, Durability::Routine),
        Err(Error::Untrusted { .. })
    ));

    std::fs::remove_file(&path).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    assert!(matches!(store.load(id), Err(Error::Untrusted { .. })));

    let open = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(store.dir(), open).unwrap();
    assert!(matches!(
        Store::open(store.dir()),
        Err(Error::Untrusted { .. })
    ));
}

#[test]
fn another_users_directory_is_refused() {
    let mine = rustix::process::geteuid().as_raw();
    let theirs = ["/proc/1", "/", "/tmp"]
        .into_iter()
        .find(|dir| std::fs::metadata(dir).is_ok_and(|m| m.uid() != mine));
    let home = tempfile::tempdir().unwrap();
    let dir = match theirs {
        Some(dir) => PathBuf::from(dir),
        None if std::os::unix::fs::chown(home.path(), Some(12345), None).is_ok() => {
            home.path().into()
        }
        None => {
            println!("skipped: no directory of another user to be had");
            return;
        }
    };
    assert!(matches!(Store::open(&dir), Err(Error::Untrusted { .. })));
}

#[test]
fn a_directory_that_cannot_be_made_is_an_error_that_names_it() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("file"), "").unwrap();
    assert!(Store::open(&home.path().join("file")).is_err());
    let error = Store::open(&home.path().join("file/profiles")).unwrap_err();
    assert!(error.to_string().contains("file/profiles"), "{error}");
    assert!(!error.to_string().contains('\n'));
}

#[test]
fn a_full_disk_leaves_the_profile_as_it_was() {
    let (_home, store) = store();
    let saved = save(&store, 1);
    // A directory in the temporary file's place stands for a disk that refuses the write.
    std::fs::create_dir(store.path(&saved.module.id, "tmp")).unwrap();
    let error = store
        .merge(run(saved.clone()), &mut NoCode, Durability::Routine)
        .unwrap_err();
    assert!(matches!(
        error,
        Error::Io {
            action: "write",
            ..
        }
    ));
    assert_eq!(store.load(&saved.module.id).unwrap().unwrap(), saved);
}

#[test]
fn what_a_killed_writer_left_is_no_obstacle() {
    let (_home, store) = store();
    let saved = save(&store, 1);
    std::fs::write(store.path(&saved.module.id, "tmp"), "half").unwrap();
    save(&store, 2);
    assert!(!store.path(&saved.module.id, "tmp").exists());
}

#[test]
fn concurrent_writers_lose_nothing() {
    let (_home, store) = store();
    let one = profile(&mut Rng(4), 30);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10 {
                    let mut part = one.clone();
                    part.module.runs = 0;
                    for block in &mut part.counts.blocks {
                        block.count = 1;
                    }
                    store
                        .merge(run(part), &mut NoCode, Durability::Routine)
                        .unwrap();
                    // A reader meanwhile always sees a whole file.
                    assert!(store.load(&one.module.id).unwrap().is_some());
                }
            });
        }
    });
    let all = store.load(&one.module.id).unwrap().unwrap();
    assert_eq!(all.counts.blocks.len(), one.counts.blocks.len());
    assert!(all.counts.blocks.iter().all(|block| block.count == 40));
}

/// Code of blocks as they are in `blocks`, all of one likeness each.
struct FixedCode(Vec<CodeBlock>);

impl Code for FixedCode {
    fn likeness(&mut self, offset: u64, _: u32, hash: u64) -> Option<Likeness> {
        let found = self
            .0
            .iter()
            .find(|b| (b.offset, b.hash) == (offset, hash))?;
        Some(found.likeness)
    }

    fn blocks(&mut self) -> Vec<CodeBlock> {
        self.0.clone()
    }
}

/// A build of a program of twenty blocks one after another, each looping, from `base` on.
fn build(name: u8, path: &str, base: u64) -> (ModuleProfile, FixedCode) {
    let mut built = profile(&mut Rng(1), 0);
    built.module.id = ModuleId::Content([name; 16]);
    built.module.path = path.into();
    built.counts = Counts::default();
    let mut code = Vec::new();
    for place in 0..20u64 {
        let (offset, hash) = (base + place * 8, base * 1000 + place);
        let likeness = Likeness {
            opcodes: 100 + place as u32,
            shape: 1,
        };
        built.counts.blocks.push(BlockRecord {
            offset,
            hash,
            len: 8,
            tier: Tier::Block,
            head: false,
            likeness: Likeness::default(),
            count: 100 + place,
        });
        built.counts.edges.push(EdgeRecord {
            from: offset,
            kind: EdgeKind::Taken,
            to: Target::Here(offset),
            count: 90,
        });
        code.push(CodeBlock {
            offset,
            len: 8,
            hash,
            likeness,
            exit: Exit::Branch {
                taken: offset,
                next: offset + 8,
            },
        });
    }
    (built, FixedCode(code))
}

#[test]
fn a_rebuilt_module_starts_with_what_the_earlier_build_knew() {
    let (_home, store) = store();
    let (old, mut old_code) = build(1, "/bin/program", 0x100);
    store
        .merge(run(old.clone()), &mut old_code, Durability::Routine)
        .unwrap();
    let likeness = store.load(&old.module.id).unwrap().unwrap().counts.blocks[3].likeness;
    assert_eq!(likeness.opcodes, 103);

    // The first run of the new build met one block.
    let (mut new, mut new_code) = build(2, "/bin/program", 0x740);
    new.counts.blocks.truncate(1);
    new.counts.edges.clear();
    let id = new.module.id.clone();
    let written = store
        .merge(run(new.clone()), &mut new_code, Durability::Routine)
        .unwrap();
    assert_eq!(written.ancestor, Some(old.module.id.clone()));
    let loaded = store.load(&id).unwrap().unwrap();
    assert_eq!(
        (loaded.module.ancestor, loaded.module.runs),
        (Some(old.module.id.clone()), 1)
    );
    let blocks = &loaded.counts.blocks;
    assert_eq!((blocks.len(), blocks[0].offset), (20, 0x740));
    // Aged like any run, with the new one's counts added.
    assert!(
        (180..=200).contains(&blocks[0].count),
        "{}",
        blocks[0].count
    );
    assert!((88..=95).contains(&blocks[2].count), "{}", blocks[2].count);
    assert_eq!(loaded.counts.edges[5].to, Target::Here(0x740 + 40));
    // Once.
    let written = store
        .merge(run(new), &mut new_code, Durability::Routine)
        .unwrap();
    assert_eq!(written.ancestor, None);

    // Something else with the same name, or the same code under another.
    let (other, _) = build(3, "/opt/program", 0x100);
    let written = store
        .merge(run(other), &mut NoCode, Durability::Routine)
        .unwrap();
    assert_eq!(written.ancestor, None);
    let (other, mut code) = build(4, "/bin/other", 0x100);
    let written = store
        .merge(run(other), &mut code, Durability::Routine)
        .unwrap();
    assert_eq!(written.ancestor, None);
}

#[test]
fn a_full_directory_drops_what_was_seen_longest_ago() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("profiles");
    let one = |name: u8, seen: u64| {
        let (mut profile, _) = build(name, &format!("/bin/{name}"), 0x100);
        profile.module.last_seen = seen;
        profile
    };
    let store = Store::open(&dir).unwrap();
    let bytes = store.absorb(one(1, 50), Durability::Routine).unwrap().bytes as u64;
    let limits = Limits {
        directory_bytes: bytes * 3 + bytes / 2,
        ..Limits::default()
    };
    let store = Store::open_with(&dir, limits).unwrap();
    for (name, seen) in [(2, 10), (3, 60)] {
        let written = store.absorb(one(name, seen), Durability::Routine).unwrap();
        assert_eq!(written.dropped, []);
    }
    // Itself the oldest: what is being saved stays.
    let written = store.absorb(one(4, 5), Durability::Routine).unwrap();
    let dropped: Vec<_> = written
        .dropped
        .iter()
        .map(|d| (d.module.clone(), d.why))
        .collect();
    assert_eq!(dropped, [(Some(b"/bin/2".to_vec()), Why::Full)]);
    assert_eq!(store.list().unwrap().len(), 3);
}

#[test]
fn pruning_drops_what_is_not_to_be_kept_and_leftovers() {
    let (_home, store) = store();
    for (name, seen) in [(1, 10), (2, 20), (3, 30)] {
        let (mut profile, _) = build(name, &format!("/bin/{name}"), 0x100);
        profile.module.last_seen = seen;
        store.absorb(profile, Durability::Routine).unwrap();
    }
    std::fs::write(store.dir().join("cff.damaged"), "x").unwrap();
    let keep = Keep {
        seen_since: 15,
        chosen: &|known| known.module.path != b"/bin/3",
        dry_run: true,
        ..Keep::everything()
    };
    let why = |dropped: Vec<Dropped>| {
        let mut why: Vec<_> = dropped.into_iter().map(|d| (d.module, d.why)).collect();
        why.sort_by(|a, b| a.0.cmp(&b.0));
        why
    };
    let expected = [
        (None, Why::Leftover),
        (Some(b"/bin/1".to_vec()), Why::Old),
        (Some(b"/bin/3".to_vec()), Why::Unwanted),
    ];
    assert_eq!(why(store.prune(&keep).unwrap()), expected);
    assert_eq!(store.list().unwrap().len(), 3);
    let keep = Keep {
        dry_run: false,
        ..keep
    };
    assert_eq!(why(store.prune(&keep).unwrap()), expected);
    let left = store.verify().unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].1.as_ref().unwrap().module.path, b"/bin/2");
    assert_eq!(store.prune(&Keep::everything()).unwrap(), []);
    let missing = Store::open(&store.dir().join("missing")).unwrap();
    assert_eq!(missing.prune(&Keep::everything()).unwrap(), []);
}

#[test]
fn absorbing_ages_nothing_and_can_be_done_in_any_order() {
    let (_home, one) = store();
    let (_home, other) = store();
    let [a, b] = [1, 2].map(|seed| profile(&mut Rng(seed), 40));
    for (store, parts) in [(&one, [&a, &b]), (&other, [&b, &a])] {
        for part in parts {
            store.absorb(part.clone(), Durability::Routine).unwrap();
        }
    }
    let id = &a.module.id;
    let whole = one.load(id).unwrap().unwrap();
    assert_eq!(whole, other.load(id).unwrap().unwrap());
    assert_eq!(whole.module.runs, 2);
}

#[test]
fn verifying_reads_everything_and_moves_nothing() {
    let (_home, store) = store();
    let saved = save(&store, 1);
    let path = store.path(&saved.module.id, "profile");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let checked = store.verify().unwrap();
    assert!(matches!(
        checked[0].1,
        Err(Error::Damaged { aside: None, .. })
    ));
    assert!(path.exists());
    assert!(read_profile(&path).is_err());
}

#[test]
fn a_directory_behind_anothers_symlink_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let real = home.path().join("real");
    std::fs::create_dir(&real).unwrap();
    std::fs::set_permissions(&real, std::fs::Permissions::from_mode(0o700)).unwrap();
    let link = home.path().join("link");
    symlink(&real, &link).unwrap();
    assert!(Store::open(&link).is_ok());
    if std::os::unix::fs::lchown(&link, Some(12345), None).is_err() {
        println!("skipped: a link can't be given to another user here");
        return;
    }
    assert!(matches!(Store::open(&link), Err(Error::Untrusted { .. })));
}

fn piece(key: u64, bytes: &[u8]) -> NewPiece {
    NewPiece {
        key,
        blocks: 3,
        bytes: bytes.into(),
    }
}

#[test]
fn code_is_kept_by_key_for_its_maker_alone() {
    let (_home, store) = store();
    let (mine, others) = ([1; 16], [2; 16]);
    let id = ModuleId::Content([9; 16]);
    let kept = store.keep_code(&id, &mine, vec![piece(1, b"one")]);
    assert_eq!(kept.unwrap(), 0, "there is no profile");
    let id = save(&store, 3).module.id;
    store
        .keep_code(&id, &mine, vec![piece(7, b"seven"), piece(2, b"two")])
        .unwrap();
    store
        .keep_code(
            &id,
            &mine,
            vec![piece(2, b"another two"), piece(5, b"five")],
        )
        .unwrap();
    let kept = store.code(&id, &mine).unwrap().unwrap();
    let read = |key| {
        let piece = kept.find(key)?;
        store.code_piece(&id, &kept, piece).unwrap()
    };
    assert_eq!(kept.blocks(), 9);
    assert_eq!(read(2).unwrap(), b"another two");
    assert_eq!(read(5).unwrap(), b"five");
    assert_eq!(read(7).unwrap(), b"seven");
    assert_eq!(read(3), None);
    assert!(store.code(&id, &others).unwrap().is_none());
    let listed = store.list().unwrap();
    assert!(listed[0].as_ref().unwrap().code_bytes > 0);
    // Another maker's file takes the place of this one, whose table is of no use then.
    store
        .keep_code(&id, &others, vec![piece(1, b"theirs")])
        .unwrap();
    assert_eq!(read(2), None);
    assert!(store.code(&id, &mine).unwrap().is_none());
}

#[test]
fn damaged_code_is_refused_wherever_the_damage_is() {
    let (_home, store) = store();
    let maker = [1; 16];
    let id = save(&store, 4).module.id;
    let path = store.path(&id, "code");
    let pieces = vec![piece(1, b"some code"), piece(2, b"more of it")];
    store.keep_code(&id, &maker, pieces).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let read = || -> Result<(), Error> {
        let Some(kept) = store.code(&id, &maker)? else {
            return Ok(());
        };
        for piece in kept.pieces() {
            store.code_piece(&id, &kept, piece)?;
        }
        Ok(())
    };
    read().unwrap();
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&path, bytes).unwrap();
        assert!(
            matches!(read(), Err(Error::Damaged { aside: Some(_), .. })),
            "bit {bit}"
        );
        assert!(!path.exists());
    }
    for len in 0..whole.len() {
        std::fs::write(&path, &whole[..len]).unwrap();
        assert!(matches!(read(), Err(Error::Damaged { .. })), "{len} bytes");
    }
    // A link isn't followed.
    std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
    assert!(matches!(read(), Err(Error::Untrusted { .. })));
}
