//! Runs one command and measures it: real time, CPU time, peak memory, and what it wrote.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::suite::Workload;

/// One run. Times in seconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sample {
    pub wall: f64,
    /// User and system time together.
    pub cpu: f64,
    /// Bytes. Never below this program's own, from which the child was forked.
    pub peak: u64,
}

/// What a command is run under.
#[derive(Clone, Debug, Serialize)]
pub struct Runner {
    pub name: String,
    /// The words before the command.
    pub prefix: Vec<PathBuf>,
}

impl Runner {
    pub fn new<P: Into<PathBuf>>(name: &str, prefix: impl IntoIterator<Item = P>) -> Runner {
        Runner {
            name: name.to_owned(),
            prefix: prefix.into_iter().map(Into::into).collect(),
        }
    }

    pub fn native() -> Runner {
        Runner::new("native", [""; 0])
    }

    /// Temper with these options.
    pub fn temper(name: &str, temper: &Path, options: &[&Path]) -> Runner {
        let prefix = [temper, Path::new("run")]
            .into_iter()
            .chain(options.iter().copied())
            .chain([Path::new("--")]);
        Runner::new(name, prefix)
    }

    fn command(&self, workload: &Workload) -> Command {
        let mut words = self
            .prefix
            .iter()
            .map(|path| path.as_os_str().to_owned())
            .chain(workload.command.iter().map(Into::into));
        let mut command = Command::new(words.next().expect("a program"));
        command
            .args(words)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LC_ALL", "C")
            .env("HOME", "/nonexistent")
            .envs(&workload.env)
            .stdin(Stdio::null());
        command
    }

    /// Runs the command once, its output thrown away.
    ///
    /// # Errors
    /// It can't be started, takes longer than `limit`, or fails.
    pub fn measure(&self, workload: &Workload, limit: Duration) -> Result<Sample, String> {
        let mut command = self.command(workload);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let started = Instant::now();
        let child = command.spawn().map_err(|error| error.to_string())?;
        let (status, usage) = wait(&child, started + limit)?;
        let wall = started.elapsed().as_secs_f64();
        if !status.success() {
            return Err(format!("{status}"));
        }
        let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 * 1e-6;
        Ok(Sample {
            wall,
            cpu: seconds(usage.ru_utime) + seconds(usage.ru_stime),
            peak: usage.ru_maxrss as u64 * 1024,
        })
    }

    /// Runs the command once and gives a digest of its standard output.
    ///
    /// # Errors
    /// As [`Runner::measure`]; the message holds what it said on standard error.
    pub fn digest(&self, workload: &Workload, limit: Duration) -> Result<u64, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let (out, err) = (folder.path().join("out"), folder.path().join("err"));
        let create = |path| File::create(path).map_err(|error| error.to_string());
        let mut command = self.command(workload);
        command.stdout(create(&out)?).stderr(create(&err)?);
        let child = command.spawn().map_err(|error| error.to_string())?;
        let (status, _) = wait(&child, Instant::now() + limit)?;
        if !status.success() {
            let said = fs::read_to_string(&err).unwrap_or_default();
            let last = said.lines().last().unwrap_or_default().to_owned();
            return Err(format!("{status}: {last}"));
        }
        hash_file(&out).map_err(|error| error.to_string())
    }
}

/// Read in pieces: this program's own memory must stay small (see [`Sample::peak`]).
fn hash_file(path: &Path) -> io::Result<u64> {
    let mut file = File::open(path)?;
    let mut hasher = DefaultHasher::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let len = file.read(&mut buffer)?;
        if len == 0 {
            return Ok(hasher.finish());
        }
        // One byte at a time, as how a read is split must not matter.
        buffer[..len].iter().for_each(|byte| byte.hash(&mut hasher));
    }
}

/// Waits with the resources that the child used; kills it at the deadline.
fn wait(child: &Child, deadline: Instant) -> Result<(ExitStatus, libc::rusage), String> {
    let pid = child.id() as libc::pid_t;
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // A descriptor that becomes readable at the child's end, so that nothing polls.
    // SAFETY: a plain system call on our own child.
    let handle = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } as libc::c_int;
    let mut poll = libc::pollfd {
        fd: handle,
        events: libc::POLLIN,
        revents: 0,
    };
    let left = deadline.saturating_duration_since(Instant::now());
    let milliseconds = left.as_millis().min(i32::MAX as u128) as i32;
    // SAFETY: one valid pollfd.
    let ready = unsafe { libc::poll(&raw mut poll, 1, milliseconds) };
    // SAFETY: our own descriptor, closed once.
    unsafe { libc::close(handle) };
    if ready == 0 {
        // SAFETY: our own child, not yet waited for.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
    // SAFETY: both out parameters are valid; the child is waited for here alone.
    let waited = unsafe { libc::wait4(pid, &raw mut status, 0, usage.as_mut_ptr()) };
    if waited != pid {
        return Err(format!("wait4: {}", io::Error::last_os_error()));
    }
    if ready == 0 {
        return Err("took too long".into());
    }
    // SAFETY: wait4 filled it.
    Ok((ExitStatus::from_raw(status), unsafe { usage.assume_init() }))
}
