//! `temper doctor`: what this host offers, and what each thing means for Temper. Looks and
//! tries, changes nothing.

use std::fs;
use std::io;

use clap::Args;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use super::failure::Failure;
use crate::addr::HostAddr;
use crate::host::{DualMap, Features, XsaveLayout, probe};

/// The arguments of `temper doctor`.
#[derive(Args, Debug)]
#[command(after_help = "Exit status: 0, or 1 when something that Temper needs is missing.")]
pub struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// As Temper wants it.
    Ok,
    /// Temper works, with less.
    Limited,
    /// Not there; `needed` says whether Temper can work without.
    Missing,
}

#[derive(Clone, Debug, Serialize)]
struct Check {
    name: &'static str,
    state: State,
    /// Without it `temper run` doesn't work.
    needed: bool,
    found: String,
    meaning: &'static str,
}

#[derive(Debug, Serialize)]
struct Report {
    temper: &'static str,
    kernel: String,
    cpu: String,
    checks: Vec<Check>,
}

/// Looks at the host and prints what it found.
///
/// # Errors
/// Standard output can't be written.
pub fn run(args: &DoctorArgs) -> Result<i32, Failure> {
    let report = Report {
        temper: env!("CARGO_PKG_VERSION"),
        kernel: read("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".into()),
        cpu: cpu_model(),
        checks: checks(),
    };
    if args.json {
        let text = serde_json::to_string_pretty(&report)
            .map_err(|error| Failure::own(format!("the report can't be made ({error})")))?;
        println!("{text}");
    } else {
        print(&report);
    }
    let broken = report
        .checks
        .iter()
        .any(|check| check.needed && check.state == State::Missing);
    Ok(i32::from(broken))
}

fn print(report: &Report) {
    println!(
        "temper {} on Linux {}, {}\n",
        report.temper, report.kernel, report.cpu
    );
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(["What", "State", "Found", "Meaning"]);
    for check in &report.checks {
        let state = match check.state {
            State::Ok => "ok",
            State::Limited => "limited",
            State::Missing if check.needed => "MISSING",
            State::Missing => "missing",
        };
        table.add_row([check.name, state, &check.found, check.meaning]);
    }
    println!("{table}");
}

fn checks() -> Vec<Check> {
    vec![
        executable_memory(),
        address_space(),
        fsgsbase(),
        xsave(),
        map_count(),
        overcommit(),
        lowest_address(),
        huge_pages(),
        membarrier(),
        kvm(),
        counters(),
    ]
}

fn executable_memory() -> Check {
    let (state, found, meaning) = match DualMap::new(4096, None) {
        Ok(_) => (
            State::Ok,
            "a memfd maps writable and executable".to_owned(),
            "generated code is never writable and executable at one address",
        ),
        Err(error) => (
            State::Missing,
            error.to_string(),
            "no code can be generated; allow executable memfds (sysctl vm.memfd_noexec=0, or \
             the sandbox's or SELinux's rules)",
        ),
    };
    Check {
        name: "executable memory",
        state,
        needed: true,
        found,
        meaning,
    }
}

/// The code arena and the shadow map for indirect branches.
const RESERVED: [(u64, u64); 2] = [(0x7000_0000, 0x7800_0000), (0x8000_0000, 0x4_8000_0000)];

fn address_space() -> Check {
    let refused = RESERVED.iter().find_map(|&(start, end)| {
        probe::reserve(HostAddr(start)..HostAddr(end))
            .err()
            .map(|error| format!("{start:#x}..{end:#x}: {error}"))
    });
    let (state, found, meaning) = match refused {
        None => (
            State::Ok,
            "16 GiB below 20 GiB can be reserved".to_owned(),
            "indirect branches and returns resolve through a flat map; untouched, it costs \
             no memory",
        ),
        Some(refused) => (
            State::Missing,
            refused,
            "raise the address space limit (ulimit -v unlimited), or set \
             vm.overcommit_memory to 0 or 1",
        ),
    };
    Check {
        name: "address space",
        state,
        needed: true,
        found,
        meaning,
    }
}

fn fsgsbase() -> Check {
    let has = Features::get().fsgsbase;
    Check {
        name: "fsgsbase",
        state: if has { State::Ok } else { State::Missing },
        needed: true,
        found: if has { "enabled by the kernel" } else { "off" }.into(),
        meaning: if has {
            "entering and leaving guest code switches segment bases without system calls"
        } else {
            "needs a CPU since Ivy Bridge or Zen and Linux 5.9 without `nofsgsbase`"
        },
    }
}

fn xsave() -> Check {
    const COMPONENTS: [(u32, &str); 9] = [
        (0, "x87"),
        (1, "SSE"),
        (2, "AVX"),
        (5, "AVX-512 masks"),
        (6, "AVX-512 upper halves"),
        (7, "AVX-512 zmm16-31"),
        (9, "PKRU"),
        (17, "AMX configuration"),
        (18, "AMX tiles"),
    ];
    let layout = XsaveLayout::get();
    let has = Features::get().xsave;
    let names: Vec<&str> = COMPONENTS
        .iter()
        .filter(|(bit, _)| layout.xcr0 & (1 << bit) != 0)
        .map(|&(_, name)| name)
        .collect();
    Check {
        name: "xsave",
        state: if has { State::Ok } else { State::Missing },
        needed: true,
        found: if has {
            format!("{}; {} bytes", names.join(", "), layout.area_bytes)
        } else {
            "off".into()
        },
        meaning: if has {
            "guests may use these registers; they run as the real instructions"
        } else {
            "vector registers can't be kept apart; Temper needs XSAVE"
        },
    }
}

fn map_count() -> Check {
    sysctl_at_least(
        "map count",
        "/proc/sys/vm/max_map_count",
        65_530,
        "guests get as many mappings as natively; Temper uses a few dozen",
        "a guest with many mappings fails early; set vm.max_map_count to 65530 or more",
    )
}

fn sysctl_at_least(
    name: &'static str,
    path: &str,
    want: u64,
    fine: &'static str,
    limited: &'static str,
) -> Check {
    let value = read(path).and_then(|text| text.parse::<u64>().ok());
    let (state, found) = match value {
        Some(value) if value >= want => (State::Ok, value.to_string()),
        Some(value) => (State::Limited, value.to_string()),
        None => (State::Limited, format!("{path} can't be read")),
    };
    Check {
        name,
        state,
        needed: false,
        found,
        meaning: if state == State::Ok { fine } else { limited },
    }
}

fn overcommit() -> Check {
    let mode = read("/proc/sys/vm/overcommit_memory").unwrap_or_else(|| "unknown".into());
    let strict = mode == "2";
    Check {
        name: "overcommit",
        state: if strict { State::Limited } else { State::Ok },
        needed: false,
        found: format!("vm.overcommit_memory={mode}"),
        meaning: if strict {
            "reserved address space counts as memory; Temper may be refused its map"
        } else {
            "reserved address space is free"
        },
    }
}

fn lowest_address() -> Check {
    let value = read("/proc/sys/vm/mmap_min_addr").and_then(|text| text.parse::<u64>().ok());
    let low_enough = value.is_some_and(|value| value <= 0x1_0000);
    Check {
        name: "lowest address",
        state: if low_enough {
            State::Ok
        } else {
            State::Limited
        },
        needed: false,
        found: value.map_or("unknown".into(), |value| {
            format!("vm.mmap_min_addr={value}")
        }),
        meaning: if low_enough {
            "programs that are linked low load where they want to be"
        } else {
            "programs that are linked below it fail, as they do natively"
        },
    }
}

fn huge_pages() -> Check {
    let modes = read("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let mode = modes
        .split_whitespace()
        .find_map(|mode| mode.strip_prefix('[')?.strip_suffix(']'))
        .unwrap_or("unknown");
    let available = matches!(mode, "always" | "madvise");
    Check {
        name: "huge pages",
        state: if available { State::Ok } else { State::Limited },
        needed: false,
        found: format!("transparent huge pages: {mode}"),
        meaning: if available {
            "large guest data costs few TLB misses, as natively"
        } else {
            "large maps cost more TLB misses, natively too"
        },
    }
}

fn membarrier() -> Check {
    let (state, found) = match probe::membarrier_private() {
        Ok(true) => (State::Ok, "PRIVATE_EXPEDITED".into()),
        Ok(false) => (State::Missing, "without PRIVATE_EXPEDITED".into()),
        Err(error) => (State::Missing, error.to_string()),
    };
    Check {
        name: "membarrier",
        state,
        needed: false,
        found,
        meaning: "programs with threads need it",
    }
}

fn kvm() -> Check {
    let (state, found, meaning) = match probe::kvm() {
        Ok(version) => (
            State::Ok,
            format!("usable, API {version}"),
            "privileged code can run in hardware",
        ),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => (
            State::Limited,
            format!("/dev/kvm: {error}"),
            "join the group `kvm` to use it; programs run without it",
        ),
        Err(error) => (
            State::Missing,
            format!("/dev/kvm: {error}"),
            "privileged code can't run in hardware; programs run without it",
        ),
    };
    Check {
        name: "kvm",
        state,
        needed: false,
        found,
        meaning,
    }
}

fn counters() -> Check {
    let paranoid = read("/proc/sys/kernel/perf_event_paranoid").unwrap_or_else(|| "?".into());
    let (state, found, meaning) = match probe::cycle_counter() {
        Ok(()) => (
            State::Ok,
            "hardware cycles".to_owned(),
            "`perf stat` can measure guests in cycles",
        ),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => (
            State::Limited,
            format!("{error}; kernel.perf_event_paranoid={paranoid}"),
            "set kernel.perf_event_paranoid to 2 or less to measure in cycles",
        ),
        Err(error) => (
            State::Missing,
            error.to_string(),
            "measurements use time alone; common in virtual machines",
        ),
    };
    Check {
        name: "perf counters",
        state,
        needed: false,
        found,
        meaning,
    }
}

fn cpu_model() -> String {
    read("/proc/cpuinfo")
        .and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        })
        .unwrap_or_else(|| "unknown CPU".into())
}

fn read(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}
