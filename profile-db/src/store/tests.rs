use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;
use crate::error::Damage;
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
