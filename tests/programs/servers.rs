//! Servers under load: redis, nginx and PostgreSQL, natively and under Temper. A session
//! with a server leaves a transcript of all that must not depend on time; both runs must
//! leave the same one, end in good order and leave nothing running.

use std::fmt::Write as _;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{Read, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use libtest_mimic::{Failed, Trial};

use crate::fixture;
use crate::place::{
    Place, Server, configure_nginx, configure_postgres, free_port, nginx_arguments,
    postgres_is_ready, postgres_program,
};
use crate::support::{self, End, Outcome};

/// For each command of a client.
const LIMIT: Duration = Duration::from_secs(120);

/// A session with a server, under the given Temper or natively: its transcript.
type Session = fn(Option<&Path>) -> Result<String, Failed>;

pub fn trials() -> Vec<Trial> {
    let all: [(&str, &[&str], Session); 6] = [
        ("redis", REDIS, redis),
        ("redis dies by a fault", REDIS, redis_crash),
        ("nginx", NGINX, nginx),
        ("nginx as a daemon", NGINX, nginx_daemon),
        ("postgres", POSTGRES, postgres),
        ("postgres by pg_ctl", POSTGRES, postgres_daemon),
    ];
    let long: [(&str, &[&str], Session); 2] = [
        ("redis under long load", REDIS, redis_load),
        ("postgres under long load", POSTGRES, postgres_load),
    ];
    let trial = |(name, programs, session), is_long: bool| {
        Trial::test(format!("servers: {name}"), move || {
            if is_long && std::env::var_os("TEMPER_TEST_ALL").is_none() {
                eprintln!("skipped: {name}: it takes long; TEMPER_TEST_ALL=1 runs it");
                return Ok(());
            }
            check(name, programs, session)
        })
    };
    all.into_iter()
        .map(|session| trial(session, false))
        .chain(long.into_iter().map(|session| trial(session, true)))
        .collect()
}

fn check(name: &str, programs: &[&str], session: Session) -> Result<(), Failed> {
    for program in programs {
        if let Err(why) = available(program) {
            eprintln!("skipped: {name}: {why}");
            return Ok(());
        }
    }
    let temper = support::temper();
    let native = session(None).map_err(|failed| during("natively", failed))?;
    let run = session(Some(Path::new(temper.get_program())))
        .map_err(|failed| during("under Temper", failed))?;
    if native == run {
        return Ok(());
    }
    let apart = native.lines().zip(run.lines()).find(|(a, b)| a != b);
    Err(format!(
        "the transcripts differ, first in {apart:?}\nnatively:\n{native}\nunder Temper:\n{run}"
    )
    .into())
}

fn during(when: &str, failed: Failed) -> Failed {
    format!("{when}: {}", failed.message().unwrap_or_default()).into()
}

/// Whether an installed program, or one of PostgreSQL's, is there.
fn available(program: &str) -> Result<(), String> {
    if let Some(part) = program.strip_prefix("postgresql/") {
        postgres_program(part)?;
        return Place::of_account(None, POSTGRES_ACCOUNT).map(drop);
    }
    fixture::installed(program).map(drop)
}

/// Runs a client, which must succeed.
fn succeed(command: Command, stdin: &[u8]) -> Result<String, Failed> {
    let shown = format!("{command:?}");
    let outcome = support::run(command, stdin, LIMIT)?;
    if outcome.end == End::Exit(0) {
        Ok(String::from_utf8_lossy(&outcome.stdout).into_owned())
    } else {
        Err(format!("{shown}: {outcome:?}").into())
    }
}

/// What it says on both outputs, and how it ends.
fn everything(outcome: &Outcome) -> String {
    format!(
        "{}{}{:?}\n",
        String::from_utf8_lossy(&outcome.stdout),
        String::from_utf8_lossy(&outcome.stderr),
        outcome.end
    )
}

/// Waits until `done` says so.
fn until(what: &str, mut done: impl FnMut() -> Result<bool, Failed>) -> Result<(), Failed> {
    let deadline = Instant::now() + LIMIT;
    while !done()? {
        if Instant::now() > deadline {
            return Err(format!("{what} never came").into());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

const REDIS: &[&str] = &["redis-server", "redis-cli", "redis-benchmark"];

fn redis_says(server: &Server, command: &[&str]) -> Result<String, Failed> {
    let mut client = server.place.native("/usr/bin/redis-cli");
    client.args(["-p", &server.port.to_string()]).args(command);
    succeed(client, b"")
}

/// The rows that redis-benchmark measured, without their figures.
fn redis_benchmark(mut command: Command, server: &Server, args: &[&str]) -> Result<String, Failed> {
    command
        .args(["-p", &server.port.to_string(), "--csv"])
        .args(args);
    let rows = succeed(command, b"")?;
    let names = rows.lines().filter_map(|row| row.split(',').next());
    Ok(names.map(|name| format!("{name}\n")).collect())
}

/// Commands of each kind, a load from clients outside and under Temper, saves in a child
/// process, a check of what they saved.
fn redis(temper: Option<&Path>) -> Result<String, Failed> {
    let mut server = Server::redis(Place::new(temper)?)?;
    let port = server.port.to_string();
    let mut client = server.place.command("/usr/bin/redis-cli");
    client.args(["-p", &port]);
    let mut transcript = succeed(client, include_bytes!("guests/redis.commands"))?;
    let outside = server.place.native("/usr/bin/redis-benchmark");
    let load = ["-n", "3000", "-c", "20", "-P", "4", "-t"];
    let load = [&load[..], &["set,get,incr,lpush,lrange_100,zadd,mset"]].concat();
    transcript += &redis_benchmark(outside, &server, &load)?;
    let inside = server.place.command("/usr/bin/redis-benchmark");
    let load = ["-n", "500", "-c", "8", "--threads", "2", "-t", "incr,rpush"];
    transcript += &redis_benchmark(inside, &server, &load)?;
    for query in [["GET", "counter:__rand_int__"], ["LLEN", "mylist"]] {
        transcript += &redis_says(&server, &query)?;
    }
    transcript += &redis_says(&server, &["BGSAVE"])?;
    let persistence = |line: &str| -> Result<bool, Failed> {
        let said = redis_says(&server, &["INFO", "persistence"])?;
        Ok(said.lines().any(|known| known.trim() == line))
    };
    until("the end of the save", || {
        persistence("rdb_bgsave_in_progress:0")
    })?;
    transcript += &redis_says(&server, &["CONFIG", "SET", "appendonly", "yes"])?;
    until("the end of the rewrite", || {
        Ok(persistence("aof_rewrite_in_progress:0")? && persistence("aof_rewrite_scheduled:0")?)
    })?;
    for line in ["rdb_last_bgsave_status:ok", "aof_last_bgrewrite_status:ok"] {
        let _ = writeln!(transcript, "{line}: {}", persistence(line)?);
    }
    let _ = writeln!(transcript, "{}", server.stop()?);
    let mut check = server.place.command("/usr/bin/redis-check-rdb");
    check.arg("dump.rdb");
    let said = succeed(check, b"")?;
    let seen = said.lines().filter(|line| line.contains("keys read"));
    seen.for_each(|line| transcript += line);
    Ok(transcript)
}

/// Its own handler of faults describes the registers and the stack, then dies again.
fn redis_crash(temper: Option<&Path>) -> Result<String, Failed> {
    let mut server = Server::redis(Place::new(temper)?)?;
    let mut client = server.place.native("/usr/bin/redis-cli");
    client.args(["-p", &server.port.to_string(), "DEBUG", "SEGFAULT"]);
    support::run(client, b"", LIMIT)?;
    let status = server.ended()?;
    let log = server.log();
    let said: Vec<&str> = [
        "crashed by signal: 11",
        "STACK TRACE",
        "REGISTERS",
        "debugCommand",
        "FAST MEMORY TEST",
    ]
    .into_iter()
    .filter(|part| log.contains(part))
    .collect();
    Ok(format!("{:?} {said:?}", status.signal()))
}

fn redis_load(temper: Option<&Path>) -> Result<String, Failed> {
    let mut server = Server::redis(Place::new(temper)?)?;
    let load = ["-n", "15000", "-c", "50", "-r", "100000", "-t"];
    let load = [&load[..], &["set,get,incr,lpush,lpop,sadd,hset,zadd"]].concat();
    let outside = server.place.native("/usr/bin/redis-benchmark");
    let mut transcript = redis_benchmark(outside, &server, &load)?;
    let _ = writeln!(transcript, "{}", server.stop()?);
    Ok(transcript)
}

const NGINX: &[&str] = &["/usr/sbin/nginx"];

/// A place with a site in it.
fn site(temper: Option<&Path>) -> Result<Place, Failed> {
    let place = Place::new(temper)?;
    let html = place.path().join("html");
    fs::create_dir(&html)?;
    fs::write(
        place.path().join("nginx.conf"),
        include_bytes!("guests/nginx.conf"),
    )?;
    let mut numbers = fixture::Numbers(11);
    let text: String = (0..3000)
        .map(|_| format!("{} ", numbers.below(1000)))
        .collect();
    let bytes: Vec<u8> = (0..300_000).map(|_| numbers.next() as u8).collect();
    for (name, contents) in [
        ("small.txt", &text.as_bytes()[..100]),
        ("large.txt", text.as_bytes()),
        ("data.bin", &bytes),
    ] {
        let path = html.join(name);
        fs::write(&path, contents)?;
        // Its time is part of the answer.
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        fs::File::options()
            .write(true)
            .open(path)?
            .set_modified(time)?;
    }
    Ok(place)
}

const REQUESTS: [&str; 10] = [
    "GET /small.txt",
    "GET /large.txt",
    "HEAD /data.bin",
    "GET /data.bin",
    "GET /echo?one=1&two",
    "GET /threads/data.bin",
    "GET /packed/large.txt",
    "GET /proxied/large.txt",
    "GET /moved/page.txt",
    "GET /not-there",
];

/// The answers to all requests on one connection, but for their dates.
fn converse(port: u16) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(LIMIT))?;
    for request in REQUESTS {
        let headers = "Host: temper.test\r\nAccept-Encoding: gzip\r\n";
        write!(stream, "{request} HTTP/1.1\r\n{headers}\r\n")?;
    }
    write!(
        stream,
        "GET /echo?last HTTP/1.1\r\nHost: temper.test\r\nConnection: close\r\n\r\n"
    )?;
    let mut answers = Vec::new();
    stream.read_to_end(&mut answers)?;
    Ok(without_dates(&answers))
}

/// Leaves out the lines that say when an answer was given.
fn without_dates(answers: &[u8]) -> Vec<u8> {
    const KEY: &[u8] = b"\r\nDate: ";
    const DATE: usize = "Thu, 01 Jan 1970 00:00:00 GMT".len();
    let mut kept = Vec::with_capacity(answers.len());
    let mut rest = answers;
    while let Some(at) = rest.windows(KEY.len()).position(|bytes| bytes == KEY) {
        kept.extend_from_slice(&rest[..at]);
        rest = &rest[(at + KEY.len() + DATE).min(rest.len())..];
    }
    kept.extend_from_slice(rest);
    kept
}

/// Answers to several clients at once, as one line each time they differ from the others.
fn requests(port: u16) -> Result<String, Failed> {
    let client = || -> std::io::Result<Vec<Vec<u8>>> { (0..6).map(|_| converse(port)).collect() };
    let mut all = thread::scope(|scope| {
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(client)).collect();
        let join = |client: thread::ScopedJoinHandle<'_, _>| client.join().expect("client");
        clients
            .into_iter()
            .map(join)
            .collect::<std::io::Result<Vec<_>>>()
    })?
    .concat();
    let count = all.len();
    all.sort();
    all.dedup();
    let mut transcript = format!("{count} conversations, {} of their kind:\n", all.len());
    for answers in all {
        let mut hasher = DefaultHasher::new();
        answers.hash(&mut hasher);
        let status = String::from_utf8_lossy(&answers);
        let status: Vec<&str> = status
            .lines()
            .filter(|line| line.starts_with("HTTP/"))
            .collect();
        let _ = writeln!(
            transcript,
            "{} bytes, {:x}, {status:?}",
            answers.len(),
            hasher.finish()
        );
    }
    Ok(transcript)
}

/// nginx called on its own place, to give its master an order.
fn nginx_order(place: &Place, order: &[&str]) -> Result<String, Failed> {
    let mut command = place.command("/usr/sbin/nginx");
    command.args(nginx_arguments(place)).args(order);
    succeed(command, b"")
}

/// Two workers, a change of workers between loads, and an orderly end.
fn nginx(temper: Option<&Path>) -> Result<String, Failed> {
    let mut server = Server::nginx(site(temper)?)?;
    let mut transcript = requests(server.port)?;
    let errors = server.place.path().join("error.log");
    let ended = || -> Result<usize, Failed> {
        Ok(fs::read_to_string(&errors)?
            .matches("exited with code 0")
            .count())
    };
    nginx_order(&server.place, &["-s", "reload"])?;
    until("the end of the first workers", || Ok(ended()? >= 2))?;
    transcript += &requests(server.port)?;
    nginx_order(&server.place, &["-s", "reopen"])?;
    let _ = writeln!(transcript, "{}", server.stop()?);
    let answered = fs::read_to_string(server.place.path().join("access.log"))?;
    let _ = writeln!(transcript, "{} requests", answered.lines().count());
    let _ = writeln!(transcript, "{} workers ended", ended()?);
    let bad = ["[alert]", "[crit]", "[emerg]", "exited on signal"];
    let errors = fs::read_to_string(&errors)?;
    let bad = errors
        .lines()
        .filter(|line| bad.iter().any(|word| line.contains(word)));
    bad.for_each(|line| {
        let _ = writeln!(transcript, "{line}");
    });
    Ok(transcript)
}

/// It forks twice, and goes on in the background.
fn nginx_daemon(temper: Option<&Path>) -> Result<String, Failed> {
    let place = site(temper)?;
    let port = free_port()?;
    configure_nginx(&place, port)?;
    let mut transcript = nginx_order(&place, &["-t", "-q"])?;
    transcript += &nginx_order(&place, &[])?;
    until("the daemon", || {
        Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok())
    })?;
    transcript += &requests(port)?;
    nginx_order(&place, &["-s", "stop"])?;
    place.wait_until_empty(LIMIT)?;
    Ok(transcript)
}

const POSTGRES: &[&str] = &[
    "postgresql/initdb",
    "postgresql/postgres",
    "postgresql/pgbench",
    "postgresql/psql",
];

/// PostgreSQL refuses to run as root.
const POSTGRES_ACCOUNT: &str = "postgres";

/// A place with a new cluster; what initdb said about it.
fn cluster(temper: Option<&Path>, port: u16) -> Result<(Place, String), Failed> {
    let place = Place::of_account(temper, POSTGRES_ACCOUNT)?;
    let mut initdb = place.command(postgres_program("initdb")?);
    initdb.args([
        "-D",
        "data",
        "-A",
        "trust",
        "-U",
        "tester",
        "-E",
        "UTF8",
        "--no-sync",
    ]);
    let said = succeed(initdb, b"")?;
    configure_postgres(&place, port)?;
    Ok((place, said))
}

/// Completes a client's command with what leads it to the server.
fn postgres_client(mut client: Command, port: u16, args: &[&str]) -> Command {
    client.args(["-h", "127.0.0.1", "-U", "tester", "-p", &port.to_string()]);
    client.args(args).arg("postgres");
    client
}

const PSQL: &[&str] = &["-X", "-q", "-a", "-f", "-"];

/// A script with workers, errors and time limits; pgbench's own tables and transactions
/// from clients outside and under Temper; what must hold between those tables.
fn postgres(temper: Option<&Path>) -> Result<String, Failed> {
    let port = free_port()?;
    let (place, mut transcript) = cluster(temper, port)?;
    let mut server = Server::postgres(place, port)?;
    let outside = |program: &str| -> Result<Command, Failed> {
        Ok(server.place.native(postgres_program(program)?))
    };
    let inside = |program: &str| -> Result<Command, Failed> {
        Ok(server.place.command(postgres_program(program)?))
    };
    let script = postgres_client(outside("psql")?, port, PSQL);
    let said = support::run(script, include_bytes!("guests/postgres.sql"), LIMIT)?;
    transcript += &everything(&said);
    let tables = postgres_client(outside("pgbench")?, port, &["-i", "-q", "-s", "1"]);
    succeed(tables, b"")?;
    let load = postgres_client(
        outside("pgbench")?,
        port,
        &["-n", "-c", "4", "-j", "2", "-t", "50"],
    );
    transcript += &transactions(&succeed(load, b"")?);
    let load = postgres_client(
        inside("pgbench")?,
        port,
        &["-n", "-c", "2", "-j", "2", "-t", "20", "-M", "prepared"],
    );
    transcript += &transactions(&succeed(load, b"")?);
    let sums = b"select count(*) from pgbench_history;
        select (select sum(delta) from pgbench_history) = (select sum(abalance) from pgbench_accounts),
          (select sum(tbalance) from pgbench_tellers) = (select sum(bbalance) from pgbench_branches);
        select 1 / 0;";
    let client = postgres_client(inside("psql")?, port, PSQL);
    transcript += &everything(&support::run(client, sums, LIMIT)?);
    let log = server.log();
    for word in ["PANIC", "terminated by signal", "crash"] {
        let _ = writeln!(transcript, "{word}: {}", log.contains(word));
    }
    let _ = writeln!(transcript, "{}", server.stop()?);
    Ok(transcript)
}

/// What pgbench says of how many transactions there were.
fn transactions(said: &str) -> String {
    let lines = said
        .lines()
        .filter(|line| line.contains("actually processed") || line.contains("failed transactions"));
    lines.map(|line| format!("{line}\n")).collect()
}

/// A server that pg_ctl leaves running in the background, restarts and stops.
fn postgres_daemon(temper: Option<&Path>) -> Result<String, Failed> {
    let port = free_port()?;
    // The cluster is a native one: the other test makes one under Temper.
    let (made, _) = cluster(None, port)?;
    let place = Place::of_account(temper, POSTGRES_ACCOUNT)?;
    fs::rename(made.path().join("data"), place.path().join("data"))?;
    configure_postgres(&place, port)?;
    let mut transcript = String::new();
    for order in [
        &["start"][..],
        &["status"],
        &["restart", "-m", "immediate"],
        &["stop"],
        &["status"],
    ] {
        let mut command = place.command(postgres_program("pg_ctl")?);
        command
            .args(["-D", "data", "-w", "-l", "server.log"])
            .args(order);
        let outcome = support::run(command, b"", LIMIT)?;
        let _ = writeln!(
            transcript,
            "{order:?}: {:?}, ready: {}",
            outcome.end,
            postgres_is_ready(&place, port)
        );
        if outcome.end == End::TimedOut {
            return Err(format!("pg_ctl {order:?}: {outcome:?}").into());
        }
    }
    place.wait_until_empty(LIMIT)?;
    Ok(transcript)
}

fn postgres_load(temper: Option<&Path>) -> Result<String, Failed> {
    let port = free_port()?;
    let (place, _) = cluster(temper, port)?;
    let mut server = Server::postgres(place, port)?;
    let program = postgres_program("pgbench")?;
    let run = |args: &[&str]| {
        succeed(
            postgres_client(server.place.native(&program), port, args),
            b"",
        )
    };
    run(&["-i", "-q", "-s", "5"])?;
    let said = run(&["-n", "-c", "8", "-j", "2", "-T", "10"])?;
    let failed = said
        .lines()
        .find(|line| line.contains("failed transactions"));
    let mut transcript = format!("{failed:?}\n");
    let _ = writeln!(transcript, "{}", server.stop()?);
    Ok(transcript)
}
