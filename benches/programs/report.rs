//! The table for people and the JSON for machines, from the same results.

use std::error::Error;
use std::fs;
use std::path::Path;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::measure::{Runner, Sample};
use crate::sessions::{Comparison, Figure};
use crate::settling::Settling;
use crate::statistics::{Estimate, estimate, geometric_mean, median};

/// One program under one runner, paired with its native runs.
#[derive(Debug, Serialize)]
pub struct Variant {
    pub runner: Runner,
    /// The run that came with the native run of the same index.
    pub samples: Vec<Sample>,
    /// Of CPU time over the native run's.
    pub cpu_ratio: Option<Estimate>,
    pub wall_ratio: Option<Estimate>,
    /// Seconds of real time beyond the native run's.
    pub extra_wall: Option<Estimate>,
    /// Seconds of CPU time beyond the native run's.
    pub extra_cpu: Option<Estimate>,
    /// Bytes of peak memory beyond the native run's.
    pub extra_memory: Option<Estimate>,
    /// Why there are no samples, or fewer than asked for.
    pub failure: Option<String>,
}

/// One program.
#[derive(Debug, Serialize)]
pub struct Row {
    pub name: String,
    pub group: String,
    pub native: Vec<Sample>,
    pub variants: Vec<Variant>,
}

/// Everything.
#[derive(Debug, Default, Serialize)]
pub struct Results {
    pub cpu: String,
    pub kernel: String,
    pub runs: usize,
    pub programs: Vec<Row>,
    pub legacy: Vec<Row>,
    pub startups: Vec<Row>,
    pub profiling: Vec<Row>,
    pub settling: Vec<Settling>,
    pub sessions: Vec<Figure>,
    /// Guest instructions a second in the interpreter alone.
    pub interpreter_speed: Option<f64>,
}

impl Variant {
    pub fn new(runner: Runner) -> Variant {
        Variant {
            runner,
            samples: Vec::new(),
            cpu_ratio: None,
            wall_ratio: None,
            extra_wall: None,
            extra_cpu: None,
            extra_memory: None,
            failure: None,
        }
    }

    /// Computes the estimates from the pairs.
    pub fn conclude(&mut self, native: &[Sample]) {
        let pairs = || self.samples.iter().zip(native);
        let over = |of: fn(&Sample, &Sample) -> f64| {
            estimate(
                &pairs()
                    .map(|(own, native)| of(own, native))
                    .collect::<Vec<_>>(),
            )
        };
        self.cpu_ratio = over(|own, native| own.cpu / native.cpu);
        self.wall_ratio = over(|own, native| own.wall / native.wall);
        self.extra_wall = over(|own, native| own.wall - native.wall);
        self.extra_cpu = over(|own, native| own.cpu - native.cpu);
        self.extra_memory = over(|own, native| own.peak as f64 - native.peak as f64);
    }
}

impl Results {
    pub fn write(&self, path: &Path) -> Result<(), Box<dyn Error>> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(path, serde_json::to_vec_pretty(self)?)?;
        Ok(())
    }

    pub fn print(&self) {
        println!(
            "\n{}, Linux {}, {} pairs\n",
            self.cpu, self.kernel, self.runs
        );
        if !self.programs.is_empty() {
            println!("CPU time over native: median of the pairs, 95% interval\n");
            println!("{}\n", ratios(&self.programs));
        }
        if !self.legacy.is_empty() {
            println!("Old builds: CPU time over native\n");
            println!("{}\n", ratios(&self.legacy));
        }
        if !self.startups.is_empty() {
            println!("Beyond native: real and CPU time in ms, peak memory in MiB\n");
            println!("{}\n", extras(&self.startups));
        }
        if !self.profiling.is_empty() {
            println!("What profiling costs: CPU time over that with --no-profile\n");
            println!("{}\n", ratios(&self.profiling));
        }
        if !self.settling.is_empty() {
            println!("CPU ms until nine tenths of user time are spent in generated code\n");
            for row in &self.settling {
                let (cold, kept) = (1e3 * row.cold, 1e3 * row.kept);
                println!(
                    "{}: cold {cold:.1}, with what earlier runs kept {kept:.1}",
                    row.name
                );
            }
            println!();
        }
        if !self.sessions.is_empty() {
            println!("Sessions: times, and rates a second, of the steps themselves\n");
            println!("{}\n", sessions(&self.sessions));
        }
        if let Some(speed) = self.interpreter_speed {
            println!(
                "interpreter: {:.1} million instructions a second",
                speed / 1e6
            );
        }
    }
}

fn table(header: Vec<String>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Runner names in order of appearance.
fn runners(rows: &[Row]) -> Vec<&str> {
    let mut names = Vec::new();
    for variant in rows.iter().flat_map(|row| &row.variants) {
        if !names.contains(&variant.runner.name.as_str()) {
            names.push(variant.runner.name.as_str());
        }
    }
    names
}

fn of_runner<'a>(row: &'a Row, runner: &str) -> Option<&'a Variant> {
    row.variants
        .iter()
        .find(|variant| variant.runner.name == runner)
}

fn ratios(rows: &[Row]) -> Table {
    let runners = runners(rows);
    let base = if rows[0].group == "profiling" {
        "--no-profile s"
    } else {
        "native s"
    };
    let header = ["program", base].into_iter().chain(runners.iter().copied());
    let mut table = table(header.map(str::to_owned).collect());
    for row in rows {
        let native: Vec<f64> = row.native.iter().map(|sample| sample.cpu).collect();
        let mut cells = vec![
            row.name.clone(),
            median(&native).map_or("-".into(), |seconds| format!("{seconds:.2}")),
        ];
        cells.extend(runners.iter().map(|runner| {
            match of_runner(row, runner).map(|variant| (&variant.cpu_ratio, &variant.failure)) {
                Some((_, Some(failure))) => failure.clone(),
                Some((Some(ratio), None)) => show(ratio, 1.0, 3),
                _ => "-".into(),
            }
        }));
        table.add_row(cells);
    }
    let mut groups: Vec<&str> = rows.iter().map(|row| row.group.as_str()).collect();
    groups.dedup();
    for group in groups {
        let mut cells = vec![format!("geomean, {group}"), String::new()];
        cells.extend(runners.iter().map(|runner| {
            let values: Vec<f64> = rows
                .iter()
                .filter(|row| row.group == group)
                .filter_map(|row| Some(of_runner(row, runner)?.cpu_ratio?.median))
                .collect();
            geometric_mean(&values).map_or("-".into(), |mean| {
                let members = rows.iter().filter(|row| row.group == group).count();
                let note = if values.len() < members {
                    format!(" ({} of {members})", values.len())
                } else {
                    String::new()
                };
                format!("{mean:.3}{note}")
            })
        }));
        table.add_row(cells);
    }
    table
}

fn extras(rows: &[Row]) -> Table {
    let header = ["program", "runner", "real ms", "CPU ms", "MiB"];
    let mut table = table(header.map(str::to_owned).to_vec());
    let shown = |estimate: &Option<Estimate>, scale, digits| {
        estimate
            .as_ref()
            .map_or("-".into(), |estimate| show(estimate, scale, digits))
    };
    for row in rows {
        let values =
            |of: fn(&Sample) -> f64| estimate(&row.native.iter().map(of).collect::<Vec<_>>());
        table.add_row([
            row.name.clone(),
            "native (whole)".into(),
            shown(&values(|sample| sample.wall), 1e3, 1),
            shown(&values(|sample| sample.cpu), 1e3, 1),
            shown(&values(|sample| sample.peak as f64), MIB, 1),
        ]);
        for variant in &row.variants {
            let name = match &variant.failure {
                None => variant.runner.name.clone(),
                Some(failure) => format!("{}: {failure}", variant.runner.name),
            };
            table.add_row([
                row.name.clone(),
                name,
                shown(&variant.extra_wall, 1e3, 1),
                shown(&variant.extra_cpu, 1e3, 1),
                shown(&variant.extra_memory, MIB, 1),
            ]);
        }
    }
    table
}

fn sessions(figures: &[Figure]) -> Table {
    let header = [
        "figure",
        "native",
        "Temper",
        "against native",
        "must",
        "goal",
    ];
    let mut table = table(header.map(str::to_owned).to_vec());
    for figure in figures {
        let unit = &figure.unit;
        let measured = |values: &[f64]| {
            median(values).map_or("-".into(), |value| format!("{value:.1} {unit}"))
        };
        let bound = |value: f64| match figure.comparison {
            Comparison::RateLost | Comparison::TimeRatio => value.to_string(),
            Comparison::TimeAdded => format!("{value} {unit} more"),
        };
        let result = match (&figure.failure, &figure.result) {
            (Some(failure), _) => failure.clone(),
            (None, None) => "-".into(),
            (None, Some(result)) => match figure.comparison {
                Comparison::RateLost | Comparison::TimeRatio => show(result, 1.0, 2),
                Comparison::TimeAdded => format!("{} {unit}", show(result, 1.0, 1)),
            },
        };
        table.add_row([
            figure.name.clone(),
            measured(&figure.native),
            measured(&figure.temper),
            result,
            bound(figure.must),
            bound(figure.goal),
        ]);
    }
    table
}

const MIB: f64 = 1.0 / (1024.0 * 1024.0);

fn show(estimate: &Estimate, scale: f64, digits: usize) -> String {
    let Estimate { median, low, high } = estimate;
    format!(
        "{:.digits$} [{:.digits$}, {:.digits$}]",
        median * scale,
        low * scale,
        high * scale
    )
}
