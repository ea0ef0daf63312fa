//! Debian's own kernel: as a guest of the software engine, and as the host of a complete KVM
//! (QEMU's emulated SVM, without any hardware) in which everything runs again.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::guests::{GUESTS, LIMIT, image, script};
use super::support::{End, run, temper};

/// The kernel's check of its timer measures real time, which a busy host doesn't give.
const CMDLINE: &str = "console=ttyS0 panic=-1 quiet no_timer_check";

/// Booting Linux in a debug build on a busy machine takes its time.
const LINUX_LIMIT: Duration = Duration::from_secs(1200);

/// The folder with the kernel and its modules; `None`, and said so, where it can't be had.
fn kernel() -> Option<PathBuf> {
    static FETCHING: Mutex<()> = Mutex::new(());
    let _alone = FETCHING.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("linux");
    let mut fetch = script("linux_kernel");
    fetch.arg(&folder);
    let outcome = run(fetch, b"", LIMIT).expect("the script starts");
    if outcome.end != End::Exit(0) {
        println!("skipped: Debian's kernel can't be fetched");
        return None;
    }
    if !Path::new("/bin/busybox").exists() {
        println!("skipped: no busybox to make a RAM disk of");
        return None;
    }
    Some(folder)
}

fn ram_disk(file: &Path, arguments: &[&str]) {
    let mut make = script("linux_initramfs");
    make.arg(file).args(arguments);
    let outcome = run(make, b"", LIMIT).expect("the script starts");
    assert_eq!(outcome.end, End::Exit(0), "{outcome:?}");
}

/// A machine whose serial line is a conversation.
struct Console {
    child: Child,
    pieces: mpsc::Receiver<Vec<u8>>,
    said: String,
    until: Instant,
}

impl Console {
    fn new(mut command: Command) -> Console {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("temper starts");
        let mut output = child.stdout.take().expect("piped");
        let (send, pieces) = mpsc::channel();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(len @ 1..) = output.read(&mut bytes) {
                if send.send(bytes[..len].to_vec()).is_err() {
                    return;
                }
            }
        });
        Console {
            child,
            pieces,
            said: String::new(),
            until: Instant::now() + LINUX_LIMIT,
        }
    }

    /// Waits until the guest has said this, after all that was waited for before.
    #[track_caller]
    fn expect(&mut self, text: &str) {
        loop {
            if let Some(at) = self.said.find(text) {
                self.said.drain(..at + text.len());
                return;
            }
            let left = self.until.saturating_duration_since(Instant::now());
            match self.pieces.recv_timeout(left) {
                Ok(bytes) => self.said.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => {
                    let _ = self.child.kill();
                    panic!("`{text}` did not come: {}", self.said);
                }
            }
        }
    }

    fn type_in(&mut self, text: &str) {
        let stdin = self.child.stdin.as_mut().expect("piped");
        stdin.write_all(text.as_bytes()).expect("typed");
    }
}

#[test]
fn linux_boots_to_a_shell_in_software_and_powers_off() {
    let Some(folder) = kernel() else {
        return;
    };
    let disk = tempfile::NamedTempFile::new().expect("temporary file");
    ram_disk(disk.path(), &[]);
    let mut command = temper();
    command.args(["vm", "run", "--engine", "software", "--cmdline", CMDLINE]);
    command
        .arg("--initrd")
        .arg(disk.path())
        .arg(folder.join("vmlinuz"));
    let mut console = Console::new(command);
    console.expect("init: Linux 6.");
    console.expect("# ");
    console.type_in("echo six times seven is $((6*7))\n");
    console.expect("seven is 42");
    console.type_in("head -c 100000 /dev/zero | md5sum\n");
    console.expect("0019d23bef56a136a1891211d7007f6f");
    console.type_in("poweroff -f\n");
    let status = console.child.wait().expect("it ends");
    assert_eq!(status.code(), Some(0));
}

#[test]
fn linux_uses_the_disk() {
    let Some(folder) = kernel() else {
        return;
    };
    let extra = tempfile::tempdir().expect("temporary folder");
    executable(
        &extra.path().join("run"),
        "#!/bin/sh\nhead -c 1048576 /dev/vda | md5sum\n\
         echo written by the guest | dd of=/dev/vda bs=512 seek=4 conv=sync 2>/dev/null\nsync\n",
    );
    let disk = tempfile::NamedTempFile::new().expect("temporary file");
    let modules = ["virtio_ring", "virtio", "virtio_mmio", "virtio_blk"];
    let modules = modules.map(|name| folder.join(format!("{name}.ko")).display().to_string());
    let mut arguments = vec![extra.path().to_str().expect("UTF-8")];
    arguments.extend(modules.iter().map(String::as_str));
    ram_disk(disk.path(), &arguments);
    let content: Vec<u8> = (0..1 << 20u32)
        .map(|at: u32| (at >> 8) as u8 ^ at as u8)
        .collect();
    let file = tempfile::NamedTempFile::new().expect("temporary file");
    fs::write(file.path(), &content).expect("written");
    let mut sum = Command::new("md5sum");
    sum.arg(file.path());
    let expected = run(sum, b"", LIMIT).expect("md5sum starts").stdout[..32].to_vec();

    let mut command = temper();
    command.args([
        "vm",
        "run",
        "--engine",
        "software",
        "--cmdline",
        CMDLINE,
        "--disk",
    ]);
    command
        .arg(file.path())
        .arg("--initrd")
        .arg(disk.path())
        .arg(folder.join("vmlinuz"));
    let outcome = run(command, b"", LINUX_LIMIT).expect("temper starts");
    assert_eq!(outcome.end, End::Exit(0), "{outcome:?}");
    let said = String::from_utf8_lossy(&outcome.stdout).into_owned();
    assert!(
        said.contains(&*String::from_utf8_lossy(&expected)),
        "{outcome:?}"
    );
    let after = fs::read(file.path()).expect("read");
    assert!(after[2048..].starts_with(b"written by the guest\n"));
    assert_eq!(after[..2048], content[..2048]);
}

/// What QEMU's own emulation of a CPU gets wrong: no guest of its can see these right.
const EMULATED_CPU: &[&str] = &[
    "CR4 with reserved bits",
    "a reserved bit in an entry",
    "a gate that isn't present",
    "INT to a closed gate",
    "a non-canonical stack",
    "alignment is checked in ring 3",
];

/// Runs in the host of the complete KVM: each image on KVM, and across the engines.
const RUN: &str = r#"#!/bin/sh
cd /extra
vm() { # name, arguments
    name=$1
    shift
    echo "<$name>"
    timeout 200 ./temper vm "$@" 2>&1 </dev/null
    echo "</$name $?>"
}
./temper doctor | grep -A4 '^ *kvm'
for line in $(cat guests); do
    guest=${line%%:*}
    cmdline=
    [ "$line" = "$guest:" ] || cmdline="--cmdline $(echo "${line#*:}" | tr + ' ')"
    vm "$guest" run --engine kvm --memory 64 $cmdline $guest
    vm "$guest switching" run --engine kvm --memory 64 --switch-at 5,1000,7 $cmdline $guest
    case $guest in bench*) ;; *)
        vm "$guest verified" verify --memory 8 $cmdline $guest ;;
    esac
done
vm checks run --engine kvm --memory 64 checks
vm auto run --stats --memory 64 bench
vm linux run --engine kvm --memory 256 --cmdline "console=ttyS0 panic=-1 quiet no_timer_check" --initrd rd vmlinuz
"#;

#[test]
fn everything_runs_on_a_complete_kvm() {
    if !Path::new("/usr/bin/qemu-system-x86_64").exists() {
        println!("skipped: no qemu-system-x86_64, whose emulated SVM gives a complete KVM");
        return;
    }
    let Some(folder) = kernel() else {
        return;
    };
    let extra = tempfile::tempdir().expect("temporary folder");
    let place = |from: &Path, name: &str| {
        fs::copy(from, extra.path().join(name)).expect("copied");
    };
    let mut strip = Command::new("strip");
    strip.arg("-o").arg(extra.path().join("temper"));
    strip.arg(temper().get_program());
    assert_eq!(run(strip, b"", LIMIT).expect("starts").end, End::Exit(0));
    let mut list = String::new();
    for guest in GUESTS {
        place(&image(guest.name), guest.name);
        list.push_str(&format!(
            "{}:{}\n",
            guest.name,
            guest.cmdline.replace(' ', "+")
        ));
    }
    place(&image("checks"), "checks");
    place(&folder.join("vmlinuz"), "vmlinuz");
    let inner = tempfile::tempdir().expect("temporary folder");
    executable(
        &inner.path().join("run"),
        "#!/bin/sh\necho this is the guest of a guest\n",
    );
    ram_disk(
        &extra.path().join("rd"),
        &[inner.path().to_str().expect("UTF-8")],
    );
    fs::write(extra.path().join("guests"), list).expect("written");
    executable(&extra.path().join("run"), RUN);

    let disk = tempfile::NamedTempFile::new().expect("temporary file");
    let module = |name: &str| folder.join(name).display().to_string();
    ram_disk(
        disk.path(),
        &[
            extra.path().to_str().expect("UTF-8"),
            &module("irqbypass.ko"),
            &module("kvm.ko"),
            &format!("{}:nested=0", module("kvm-amd.ko")),
        ],
    );
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args([
        "-accel",
        "tcg",
        "-cpu",
        "max,-la57",
        "-m",
        "1536",
        "-nodefaults",
    ]);
    qemu.args(["-no-user-config", "-display", "none", "-serial", "stdio"]);
    qemu.args(["-monitor", "none", "-no-reboot", "-append"]);
    qemu.arg("console=ttyS0 panic=-1 quiet no_timer_check mitigations=off tsc=reliable");
    qemu.arg("-kernel").arg(folder.join("vmlinuz"));
    qemu.arg("-initrd").arg(disk.path());
    let outcome = run(qemu, b"", LINUX_LIMIT).expect("QEMU starts");
    let said = String::from_utf8_lossy(&outcome.stdout).replace('\r', "");
    println!("{said}");

    let part = |name: &str| -> &str {
        let start = said.find(&format!("<{name}>\n"));
        let start = start.unwrap_or_else(|| panic!("{name} did not run")) + name.len() + 3;
        let end = said[start..].find(&format!("</{name} "));
        let end = start + end.unwrap_or_else(|| panic!("{name} did not end"));
        let status = said[end + name.len() + 3..].split('>').next();
        // The checks' status counts what the emulated CPU gets wrong.
        assert!(
            name == "checks" || status == Some("0"),
            "{name} failed: {status:?}"
        );
        &said[start..end]
    };
    for guest in GUESTS {
        assert_eq!(part(guest.name), guest.says, "{}", guest.name);
        assert_eq!(part(&format!("{} switching", guest.name)), guest.says);
        if !guest.name.starts_with("bench") {
            part(&format!("{} verified", guest.name));
        }
    }
    let checks = part("checks");
    for line in checks.lines().filter(|line| line.starts_with("FAIL")) {
        let known = EMULATED_CPU.iter().any(|name| line.contains(name));
        assert!(known, "{line}");
    }
    assert!(checks.matches("ok ").count() > 60, "{checks}");
    assert!(part("auto").contains("engine at the end        KVM"));
    assert!(part("linux").contains("this is the guest of a guest"));
}

fn executable(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, text).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("permissions");
}
