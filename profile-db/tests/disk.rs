//! Disks that refuse: full, read-only, and renames that fail. They are made for the test as
//! a file system in memory, which takes root or a user namespace of one's own.

use std::path::{Path, PathBuf};
use std::process::Command;

use profile_db::{
    BlockRecord, Counts, Durability, Error, Likeness, ModuleId, ModuleProfile, ModuleRecord, Store,
    Tier, Trials,
};

const DIR: &str = "TEMPER_TEST_SMALL_DISK";

fn profile(blocks: u64) -> ModuleProfile {
    let block = |at: u64| BlockRecord {
        offset: at * 16,
        // Nothing that could be compressed.
        hash: (at + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
        len: 4,
        tier: Tier::Block,
        head: false,
        likeness: Likeness::default(),
        count: 1,
    };
    ModuleProfile {
        module: ModuleRecord {
            id: ModuleId::Content([3; 16]),
            path: b"/lib/disk".to_vec(),
            size: 1,
            first_seen: 1,
            last_seen: 1,
            runs: 1,
            ancestor: None,
        },
        counts: Counts {
            blocks: (0..blocks).map(block).collect(),
            ..Counts::default()
        },
        trials: Trials::default(),
    }
}

fn mount(args: &[&str]) {
    let status = Command::new("mount").args(args).status().expect("mount");
    assert!(status.success(), "mount {args:?}");
}

/// Runs in the other process, where `DIR` is a small disk.
#[test]
#[ignore = "run by the_profile_survives_what_a_disk_refuses, in a namespace of its own"]
fn inside_a_small_disk() {
    let disk = PathBuf::from(std::env::var_os(DIR).expect("the disk"));
    let store = Store::open(&disk.join("profiles")).unwrap();
    let small = profile(10);
    let id = small.module.id.clone();
    store.absorb(small.clone(), Durability::Synced).unwrap();
    let unharmed = || assert_eq!(store.load(&id).unwrap().unwrap(), small);
    let refused = |profile: ModuleProfile, what: &str| {
        let error = store.absorb(profile, Durability::Synced).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{what}: {error}");
        assert!(!error.to_string().contains('\n'), "{what}: {error}");
        unharmed();
        let names = std::fs::read_dir(store.dir()).unwrap();
        assert_eq!(names.count(), 2, "{what}: only the profile and the lock");
    };

    // Half of what it takes, then nothing at all.
    refused(profile(40_000), "a disk that fills up");
    let ballast = disk.join("ballast");
    let _ = std::fs::write(&ballast, vec![0; 4 << 20]);
    refused(profile(10), "a full disk");
    std::fs::remove_file(&ballast).unwrap();

    // A file that can't be replaced, as some network file systems have it.
    let file = store.list().unwrap().remove(0).unwrap().file;
    let file = file.to_str().unwrap();
    mount(&["--bind", file, file]);
    refused(profile(10), "a rename that fails");
    assert!(Command::new("umount").arg(file).status().unwrap().success());

    mount(&["-o", "remount,ro", disk.to_str().unwrap()]);
    refused(profile(10), "a read-only disk");
    mount(&["-o", "remount,rw", disk.to_str().unwrap()]);
    store.absorb(profile(10), Durability::Synced).unwrap();
}

#[test]
fn the_profile_survives_what_a_disk_refuses() {
    let home = tempfile::tempdir().unwrap();
    let run = |script: &str| {
        let mut command = Command::new("unshare");
        if rustix::process::geteuid().is_root() {
            command.arg("--mount");
        } else {
            command.args(["--mount", "--user", "--map-root-user"]);
        }
        command.args(["sh", "-c", script, "sh"]);
        command
            .arg(home.path())
            .arg(std::env::current_exe().unwrap());
        command.env(DIR, home.path()).output()
    };
    let small_disk = "mount -t tmpfs -o size=512k,mode=700 tmpfs \"$1\" || exit 99";
    match run(small_disk) {
        Ok(output) if output.status.success() => {}
        Ok(_) | Err(_) => {
            println!("skipped: no file system can be mounted here");
            return;
        }
    }
    let test = "exec \"$2\" --ignored --exact inside_a_small_disk";
    let output = run(&format!("{small_disk}; {test}")).unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(said.contains("1 passed"), "{said}");
    assert!(Path::new(home.path()).read_dir().unwrap().next().is_none());
}
