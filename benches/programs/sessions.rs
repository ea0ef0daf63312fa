//! What a session costs: servers under load, child processes, threads, a compilation. Each
//! figure has a limit that must hold and a goal.

use std::error::Error;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::place::{Place, Server, configure_postgres, free_port, postgres_program};
use crate::statistics::{Estimate, estimate};

/// How a figure compares Temper with the native run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Comparison {
    /// The native rate over Temper's.
    RateLost,
    /// Temper's time over the native time.
    TimeRatio,
    /// Temper's time less the native time.
    TimeAdded,
}

/// One row: pairs of measurements, and what they say.
#[derive(Debug, Serialize)]
pub struct Figure {
    pub name: String,
    pub comparison: Comparison,
    /// Of the measurements, and of added times.
    pub unit: String,
    pub must: f64,
    pub goal: f64,
    pub native: Vec<f64>,
    pub temper: Vec<f64>,
    pub result: Option<Estimate>,
    /// Why there are no measurements, or fewer than asked for.
    pub failure: Option<String>,
}

/// A figure of `workloads/suite.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Step {
    pub name: String,
    pub command: Vec<String>,
    comparison: Comparison,
    unit: String,
    must: f64,
    goal: f64,
    /// What a printed number is multiplied by to be in `unit`; without, the command's own
    /// real time in ms is the measurement.
    #[serde(default)]
    scale: Option<f64>,
    /// Start each run with an empty profile folder.
    #[serde(default)]
    cold: bool,
}

impl Figure {
    fn new(name: &str, comparison: Comparison, unit: &str, must: f64, goal: f64) -> Figure {
        Figure {
            name: name.to_owned(),
            comparison,
            unit: unit.to_owned(),
            must,
            goal,
            native: Vec::new(),
            temper: Vec::new(),
            result: None,
            failure: None,
        }
    }

    fn add(&mut self, native: f64, temper: f64) {
        self.native.push(native);
        self.temper.push(temper);
    }

    fn conclude(&mut self) {
        let pairs = self.native.iter().zip(&self.temper);
        let compared = pairs.map(|(native, temper)| match self.comparison {
            Comparison::RateLost => native / temper,
            Comparison::TimeRatio => temper / native,
            Comparison::TimeAdded => temper - native,
        });
        self.result = estimate(&compared.collect::<Vec<_>>());
    }
}

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Measures one program natively and under Temper, in turn.
pub fn step(step: &Step, temper: &Path, pairs: usize) -> Figure {
    let mut figure = Figure::new(
        &step.name,
        step.comparison,
        &step.unit,
        step.must,
        step.goal,
    );
    eprint!("{}: ", step.name);
    if let Err(error) = step_pairs(step, temper, pairs, &mut figure) {
        figure.failure = Some(error.to_string());
    }
    eprintln!();
    figure.conclude();
    figure
}

fn step_pairs(step: &Step, temper: &Path, pairs: usize, figure: &mut Figure) -> Result<()> {
    let (outside, inside) = (Place::new(None)?, Place::new(Some(temper))?);
    if !step.cold {
        // Leaves a profile.
        step_once(step, &inside)?;
    }
    for round in 0..pairs {
        eprint!("{} ", round + 1);
        let (native, under) = alternate(
            round,
            || step_once(step, &outside),
            || {
                if step.cold {
                    let _ = fs::remove_dir_all(inside.profiles());
                }
                step_once(step, &inside)
            },
        )?;
        figure.add(native, under);
    }
    Ok(())
}

/// Both, the first one first in every other round.
fn alternate<T>(
    round: usize,
    mut first: impl FnMut() -> Result<T>,
    mut second: impl FnMut() -> Result<T>,
) -> Result<(T, T)> {
    if round.is_multiple_of(2) {
        let first = first()?;
        Ok((first, second()?))
    } else {
        let second = second()?;
        Ok((first()?, second))
    }
}

fn step_once(step: &Step, place: &Place) -> Result<f64> {
    let mut command = place.command(&step.command[0]);
    command.args(&step.command[1..]);
    let started = Instant::now();
    let said = said_by(command)?;
    let elapsed = started.elapsed().as_secs_f64();
    match step.scale {
        None => Ok(elapsed * 1e3),
        Some(scale) => Ok(said.trim().parse::<f64>()? * scale),
    }
}

/// What a command that succeeds prints.
fn said_by(mut command: Command) -> Result<String> {
    let output = command.output()?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        let last = errors.lines().last().unwrap_or_default();
        return Err(format!("{}: {last}", output.status).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A server, and what a round of load on it measures: one rate for each of `rates`.
struct Load {
    name: &'static str,
    rates: &'static [&'static str],
    start: fn(Option<&Path>) -> Result<Server>,
    round: fn(&Server, quick: bool) -> Result<Vec<f64>>,
}

/// Throughput under load may fall to two thirds.
const RATE_MUST: f64 = 1.5;
const RATE_GOAL: f64 = 1.1;

const LOADS: [Load; 3] = [
    Load {
        name: "redis",
        rates: &["redis SET", "redis GET"],
        start: |temper| Ok(Server::redis(Place::new(temper)?)?),
        round: redis_round,
    },
    Load {
        name: "pgbench",
        rates: &["pgbench"],
        start: start_postgres,
        round: postgres_round,
    },
    Load {
        name: "nginx",
        rates: &["nginx"],
        start: start_nginx,
        round: nginx_round,
    },
];

/// Measures servers whose name `wanted` takes: one runs natively, one under Temper, both
/// all the time, and clients outside put load on them in turn.
pub fn servers(
    wanted: impl Fn(&str) -> bool,
    temper: &Path,
    pairs: usize,
    quick: bool,
) -> Vec<Figure> {
    let mut figures = Vec::new();
    for load in LOADS.iter().filter(|load| wanted(load.name)) {
        eprint!("{}: ", load.name);
        let mut rows: Vec<Figure> = load
            .rates
            .iter()
            .map(|name| Figure::new(name, Comparison::RateLost, "a second", RATE_MUST, RATE_GOAL))
            .collect();
        if let Err(error) = load_pairs(load, temper, pairs, quick, &mut rows) {
            rows.iter_mut()
                .for_each(|row| row.failure = Some(error.to_string()));
        }
        rows.iter_mut().for_each(Figure::conclude);
        figures.extend(rows);
        eprintln!();
    }
    figures
}

fn load_pairs(
    load: &Load,
    temper: &Path,
    pairs: usize,
    quick: bool,
    rows: &mut [Figure],
) -> Result<()> {
    let mut outside = (load.start)(None)?;
    let mut inside = (load.start)(Some(temper))?;
    // A round that isn't measured, so that the code of both is warm.
    (load.round)(&outside, quick)?;
    (load.round)(&inside, quick)?;
    for round in 0..pairs {
        eprint!("{} ", round + 1);
        let (native, under) = alternate(
            round,
            || (load.round)(&outside, quick),
            || (load.round)(&inside, quick),
        )?;
        for (row, (native, under)) in rows.iter_mut().zip(native.into_iter().zip(under)) {
            row.add(native, under);
        }
    }
    outside.stop()?;
    inside.stop()?;
    Ok(())
}

fn redis_round(server: &Server, quick: bool) -> Result<Vec<f64>> {
    let requests = if quick { "5000" } else { "100000" };
    let mut client = server.place.native("/usr/bin/redis-benchmark");
    client.args(["-p", &server.port.to_string(), "-c", "50", "-n", requests]);
    client.args(["-t", "set,get", "--csv"]);
    let said = said_by(client)?;
    // "SET","123456.78",... in this order.
    let rates = said.lines().filter_map(|line| {
        let rate = line.split(',').nth(1)?.trim_matches('"');
        rate.parse::<f64>().ok()
    });
    let rates: Vec<f64> = rates.collect();
    if rates.len() == 2 {
        Ok(rates)
    } else {
        Err(format!("redis-benchmark said {said}").into())
    }
}

fn start_postgres(temper: Option<&Path>) -> Result<Server> {
    let place = Place::of_account(temper, "postgres")?;
    let port = free_port()?;
    let mut initdb = place.native(postgres_program("initdb")?);
    initdb.args(["-D", "data", "-A", "trust", "-U", "bench", "--no-sync"]);
    said_by(initdb)?;
    configure_postgres(&place, port)?;
    let server = Server::postgres(place, port)?;
    pgbench(&server, &["-i", "-q", "-s", "5"])?;
    Ok(server)
}

fn pgbench(server: &Server, args: &[&str]) -> Result<String> {
    let mut client = server.place.native(postgres_program("pgbench")?);
    client.args([
        "-h",
        "127.0.0.1",
        "-p",
        &server.port.to_string(),
        "-U",
        "bench",
    ]);
    client.args(args).arg("postgres");
    said_by(client)
}

fn postgres_round(server: &Server, quick: bool) -> Result<Vec<f64>> {
    let seconds = if quick { "1" } else { "10" };
    let said = pgbench(server, &["-n", "-c", "4", "-j", "2", "-T", seconds])?;
    let rate = said.lines().find_map(|line| {
        let rate = line.strip_prefix("tps = ")?.split(' ').next()?;
        rate.parse::<f64>().ok()
    });
    Ok(vec![rate.ok_or(format!("pgbench said {said}"))?])
}

const SITE: &str = "worker_processes 1;\npid nginx.pid;\nerror_log error.log;\n\
    events {}\nhttp {\naccess_log access.log;\nkeepalive_requests 1000000;\n\
    client_body_temp_path temporary-body;\nproxy_temp_path temporary-proxy;\n\
    fastcgi_temp_path temporary-fastcgi;\nuwsgi_temp_path temporary-uwsgi;\n\
    scgi_temp_path temporary-scgi;\nserver {\nlisten 127.0.0.1:PORT;\nroot html;\n}\n}\n";

const PAGE: usize = 4000;

fn start_nginx(temper: Option<&Path>) -> Result<Server> {
    let place = Place::new(temper)?;
    fs::create_dir(place.path().join("html"))?;
    fs::write(place.path().join("html/page"), [b'x'; PAGE])?;
    fs::write(place.path().join("nginx.conf"), SITE)?;
    Ok(Server::nginx(place)?)
}

/// Four connections, in turn, each with its requests one after the other.
fn nginx_round(server: &Server, quick: bool) -> Result<Vec<f64>> {
    let requests = if quick { 100 } else { 10_000 };
    let connect = || -> io::Result<TcpStream> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    let mut streams = (0..4).map(|_| connect()).collect::<io::Result<Vec<_>>>()?;
    let started = Instant::now();
    for _ in 0..requests {
        for stream in &mut streams {
            stream.write_all(b"GET /page HTTP/1.1\r\nHost: bench\r\n\r\n")?;
        }
        for stream in &mut streams {
            read_answer(stream)?;
        }
    }
    let total = (requests * streams.len()) as f64;
    Ok(vec![total / started.elapsed().as_secs_f64()])
}

fn read_answer(stream: &mut TcpStream) -> Result<()> {
    let mut buffer = [0; 2 * PAGE];
    let mut len = 0;
    loop {
        len += match stream.read(&mut buffer[len..])? {
            0 => return Err("nginx ends the connection".into()),
            more => more,
        };
        let head = buffer[..len]
            .windows(4)
            .position(|bytes| bytes == b"\r\n\r\n");
        if head.is_some_and(|head| len == head + 4 + PAGE) {
            return Ok(());
        }
    }
}
