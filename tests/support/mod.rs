//! Runs a command under a time limit and keeps all it said: shared by the test programs.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The `temper` under test: the one just built, or TEMPER_BIN.
pub fn temper() -> Command {
    let path = std::env::var_os("TEMPER_BIN").map_or_else(
        || PathBuf::from(env!("CARGO_BIN_EXE_temper")),
        PathBuf::from,
    );
    Command::new(path)
}

/// How a command ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    Exit(i32),
    Signal(i32),
    /// It ran into the time limit and was killed.
    TimedOut,
}

/// All that can be seen of a command from outside.
#[derive(Clone, PartialEq, Eq)]
pub struct Outcome {
    pub end: End,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}", self.end)?;
        writeln!(f, "--- stdout\n{}", excerpt(&self.stdout))?;
        write!(f, "--- stderr\n{}", excerpt(&self.stderr))
    }
}

/// At most the first and last 2000 bytes, as text.
fn excerpt(bytes: &[u8]) -> String {
    const EDGE: usize = 2000;
    if bytes.len() <= 2 * EDGE {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    format!(
        "{}\n... {} bytes left out ...\n{}",
        String::from_utf8_lossy(&bytes[..EDGE]),
        bytes.len() - 2 * EDGE,
        String::from_utf8_lossy(&bytes[bytes.len() - EDGE..])
    )
}

/// Runs `command` with `stdin` as its standard input; kills it (and what it started) when
/// it takes longer than `limit`.
///
/// # Errors
/// It can't be started.
pub fn run(mut command: Command, stdin: &[u8], limit: Duration) -> io::Result<Outcome> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A group of its own, so that its children can be killed along with it.
        .process_group(0);
    let mut child = command.spawn()?;
    let mut input = child.stdin.take().expect("piped");
    let output = child.stdout.take().expect("piped");
    let errors = child.stderr.take().expect("piped");
    let (status, stdout, stderr) = thread::scope(|scope| {
        scope.spawn(move || {
            // A command need not read its input: a broken pipe is no failure.
            let _ = input.write_all(stdin);
        });
        let stdout = scope.spawn(|| drain(output));
        let stderr = scope.spawn(|| drain(errors));
        let status = wait(&mut child, limit);
        let join = |reader: thread::ScopedJoinHandle<'_, Vec<u8>>| reader.join().expect("reader");
        (status, join(stdout), join(stderr))
    });
    let end = match status? {
        None => End::TimedOut,
        Some(status) => match (status.code(), status.signal()) {
            (Some(code), _) => End::Exit(code),
            (None, Some(signal)) => End::Signal(signal),
            (None, None) => unreachable!("waited for its end"),
        },
    };
    Ok(Outcome {
        end,
        stdout,
        stderr,
    })
}

fn drain(mut from: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = from.read_to_end(&mut bytes);
    bytes
}

/// `None`: the limit passed and the group was killed.
fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let started = Instant::now();
    let mut pause = Duration::from_micros(200);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if started.elapsed() > limit {
            // SAFETY: the group is the one that was made for this child, which is not
            // reaped yet, so its number can't have passed to anybody else.
            unsafe { libc::kill(-(child.id() as i32), libc::SIGKILL) };
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(5));
    }
}
