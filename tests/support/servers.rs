//! Servers on loopback, each in a folder of its own: redis, nginx, PostgreSQL. The same
//! words start them natively and under Temper. When a place is dropped, all that still runs
//! in it is killed, whatever it forked and whoever's child it has become.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A folder in which programs run, natively or under Temper.
pub struct Place {
    folder: TempDir,
    /// `None`: natively.
    temper: Option<PathBuf>,
    /// User and group to run as, when they aren't this process's own.
    account: Option<(u32, u32)>,
}

impl Place {
    /// A place of this process's own user, for runs under `temper` or, without, natively.
    pub fn new(temper: Option<&Path>) -> Result<Place, String> {
        // Not in cargo's folder: the path of a Unix socket has at most 107 bytes.
        let folder = tempfile::Builder::new()
            .prefix("place-")
            .permissions(Permissions::from_mode(0o755))
            .tempdir()
            .map_err(|error| format!("no temporary folder: {error}"))?;
        let place = Place {
            folder,
            temper: temper.map(Path::to_owned),
            account: None,
        };
        fs::create_dir(place.profiles()).map_err(|error| format!("no profiles: {error}"))?;
        Ok(place)
    }

    /// A place of the user `name`, for programs that refuse to run as root. Where this isn't
    /// root, it's this process's own user's.
    pub fn of_account(temper: Option<&Path>, name: &str) -> Result<Place, String> {
        let mut place = Place::new(temper)?;
        // SAFETY: no arguments, no errors.
        if unsafe { libc::geteuid() } != 0 {
            return Ok(place);
        }
        let account = account(name).ok_or(format!("root, and there's no user {name} to be"))?;
        let failed = |error| format!("the place can't be {name}'s: {error}");
        if let Some(temper) = temper {
            // Where it was built may be closed to this user.
            let copy = place.path().join("temper");
            fs::copy(temper, &copy).map_err(failed)?;
            place.temper = Some(copy);
        }
        for folder in [place.path(), &place.profiles()] {
            chown(folder, Some(account.0), Some(account.1)).map_err(failed)?;
        }
        place.account = Some(account);
        Ok(place)
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The profiles of what runs here under Temper.
    pub fn profiles(&self) -> PathBuf {
        self.path().join("profiles")
    }

    /// Runs `program` in this place: under Temper, if the place is for that.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let program = program.as_ref();
        let mut words: Vec<OsString> = Vec::new();
        if let Some(temper) = &self.temper {
            words.extend([temper.into(), "run".into(), "--profile-dir".into()]);
            words.extend([self.profiles().into(), "--".into()]);
        }
        words.push(program.into());
        let mut words = words.into_iter();
        let mut command = self.prepared(&words.next().expect("a program"));
        command.args(words);
        command
    }

    /// Runs `program` in this place, always natively.
    pub fn native(&self, program: impl AsRef<Path>) -> Command {
        self.prepared(program.as_ref().as_os_str())
    }

    fn prepared(&self, program: &std::ffi::OsStr) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.path())
            .env_clear()
            .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
            .env("LC_ALL", "C")
            .env("TZ", "UTC0")
            .env("HOME", self.path());
        if let Some((user, group)) = self.account {
            command.uid(user).gid(group);
        }
        command
    }

    /// The processes that have their working folder here.
    fn running(&self) -> Vec<libc::pid_t> {
        let Ok(processes) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        processes
            .flatten()
            .filter(|entry| {
                fs::read_link(entry.path().join("cwd"))
                    .is_ok_and(|folder| folder.starts_with(self.path()))
            })
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect()
    }

    /// Waits until nothing runs here any more.
    ///
    /// # Errors
    /// Something still does after `limit`: their command lines.
    pub fn wait_until_empty(&self, limit: Duration) -> Result<(), String> {
        let deadline = Instant::now() + limit;
        loop {
            let left = self.running();
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                let names: Vec<String> = left
                    .iter()
                    .map(|pid| {
                        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                        format!(
                            "{pid}: {}",
                            String::from_utf8_lossy(&words).replace('\0', " ")
                        )
                    })
                    .collect();
                return Err(format!("still running: {}", names.join("; ")));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Some may be forking while others are killed.
        for _ in 0..10 {
            let running = self.running();
            if running.is_empty() {
                break;
            }
            for pid in running {
                // SAFETY: a plain system call. The process had its working folder in a folder
                // that only this place knows, so it was started here.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// User and group of an account.
fn account(name: &str) -> Option<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (user, _, id, group) = (
            fields.next()?,
            fields.next()?,
            fields.next()?,
            fields.next()?,
        );
        (user == name).then(|| Some((id.parse().ok()?, group.parse().ok()?)))?
    })
}

/// A port of 127.0.0.1 that nobody listened at a moment ago.
pub fn free_port() -> Result<u16, String> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|error| format!("no port on loopback: {error}"))
}

/// A server that runs in the foreground.
pub struct Server {
    child: Child,
    pub place: Place,
    pub port: u16,
    /// What makes it end in good order.
    stop: libc::c_int,
}

/// Longest time to start and to stop.
const PATIENCE: Duration = Duration::from_secs(60);

impl Server {
    /// redis-server with two I/O threads, which saves only when it's told.
    pub fn redis(place: Place) -> Result<Server, String> {
        let port = free_port()?;
        let mut command = place.command("/usr/bin/redis-server");
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1"]);
        command.args(["--io-threads", "2", "--enable-debug-command", "yes"]);
        command.args(["--save", "", "--dir", "."]);
        let server = Server::start(place, port, libc::SIGTERM, command)?;
        server.ready(|server| {
            let mut ping = server.place.native("/usr/bin/redis-cli");
            ping.args(["-p", &server.port.to_string(), "PING"]);
            ping.output().is_ok_and(|output| output.stdout == b"PONG\n")
        })
    }

    /// nginx with the place's `nginx.conf`, which says `PORT` where the port belongs.
    pub fn nginx(place: Place) -> Result<Server, String> {
        let port = free_port()?;
        configure_nginx(&place, port)?;
        let mut command = place.command("/usr/sbin/nginx");
        command.args(nginx_arguments(&place));
        command.args(["-g", "daemon off;"]);
        let server = Server::start(place, port, libc::SIGQUIT, command)?;
        server.ready(|server| TcpStream::connect((Ipv4Addr::LOCALHOST, server.port)).is_ok())
    }

    /// PostgreSQL on the cluster that [`configure_postgres`] left in the place's `data`.
    pub fn postgres(place: Place, port: u16) -> Result<Server, String> {
        let mut command = place.command(postgres_program("postgres")?);
        command.args(["-D", "data"]);
        let server = Server::start(place, port, libc::SIGINT, command)?;
        server.ready(|server| postgres_is_ready(&server.place, server.port))
    }

    fn start(
        place: Place,
        port: u16,
        stop: libc::c_int,
        mut command: Command,
    ) -> Result<Server, String> {
        let log = File::create(place.path().join("server.log"))
            .and_then(|file| Ok((file.try_clone()?, file)))
            .map_err(|error| format!("no log: {error}"))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.0)
            .stderr(log.1)
            .process_group(0)
            .spawn()
            .map_err(|error| format!("the server can't be started: {error}"))?;
        Ok(Server {
            child,
            place,
            port,
            stop,
        })
    }

    fn ready(mut self, asked: impl Fn(&Server) -> bool) -> Result<Server, String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("the server ended: {status}\n{}", self.log()));
            }
            if asked(&self) {
                return Ok(self);
            }
            if Instant::now() > deadline {
                return Err(format!("the server isn't ready\n{}", self.log()));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// All that it said.
    pub fn log(&self) -> String {
        let log = fs::read(self.place.path().join("server.log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Asks it to end.
    ///
    /// # Errors
    /// It doesn't, or leaves something running.
    pub fn stop(&mut self) -> Result<ExitStatus, String> {
        // SAFETY: a plain system call on our own child, not waited for yet.
        unsafe { libc::kill(self.child.id() as libc::pid_t, self.stop) };
        self.ended()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// As [`Server::stop`].
    pub fn ended(&mut self) -> Result<ExitStatus, String> {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(10)),
                Ok(None) => return Err(format!("the server doesn't end\n{}", self.log())),
                Err(error) => return Err(format!("the server can't be waited for: {error}")),
            }
        };
        self.place.wait_until_empty(PATIENCE)?;
        Ok(status)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What tells nginx where its files are.
pub fn nginx_arguments(place: &Place) -> [OsString; 4] {
    let folder = place.path().join("");
    ["-p".into(), folder.into(), "-c".into(), "nginx.conf".into()]
}

/// Puts the port into the place's `nginx.conf`.
pub fn configure_nginx(place: &Place, port: u16) -> Result<(), String> {
    let file = place.path().join("nginx.conf");
    fs::read_to_string(&file)
        .and_then(|text| fs::write(&file, text.replace("PORT", &port.to_string())))
        .map_err(|error| format!("nginx.conf: {error}"))
}

/// One of the programs of the newest PostgreSQL that is installed.
pub fn postgres_program(name: &str) -> Result<PathBuf, String> {
    let missing = || "PostgreSQL is not installed; .ci/setup installs it".to_owned();
    let versions = fs::read_dir("/usr/lib/postgresql").map_err(|_| missing())?;
    versions
        .flatten()
        .map(|version| version.path().join("bin").join(name))
        .filter(|program| program.is_file())
        .max()
        .ok_or_else(missing)
}

/// Makes a new cluster of `data` in the place answer on `port` and nowhere else.
pub fn configure_postgres(place: &Place, port: u16) -> Result<(), String> {
    let settings = format!(
        "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{}'\n\
         fsync = off\nshared_buffers = 16MB\nmax_connections = 30\nlog_line_prefix = ''\n",
        place.path().display()
    );
    let file = place.path().join("data/postgresql.conf");
    fs::read_to_string(&file)
        .and_then(|text| fs::write(&file, text + &settings))
        .map_err(|error| format!("{}: {error}", file.display()))
}

pub fn postgres_is_ready(place: &Place, port: u16) -> bool {
    let Ok(program) = postgres_program("pg_isready") else {
        return false;
    };
    let mut ask = place.native(program);
    ask.args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()]);
    ask.status().is_ok_and(|status| status.success())
}
