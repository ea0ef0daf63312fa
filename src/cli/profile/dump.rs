//! `temper profile dump`: everything on record about modules, as text or as JSON. The JSON
//! has a version and a schema (`dump.schema.json`, printed by `--schema`), and `temper profile
//! import` reads it back.

use std::fmt::Write as _;
use std::io::Write;

use clap::Args;
use profile_db::{
    BlockRecord, Counts, EdgeKind, EdgeRecord, Likeness, Limits, Machine, ModuleId, ModuleProfile,
    ModuleRecord, Observed, PairRecord, PathRecord, Target, Tier, TrialRecord, Trials, ValueKind,
    ValueRecord, Variant, Verdict,
};
use serde::{Deserialize, Serialize};

use super::select::{self, file_name};
use super::table::clean;
use super::{modules, open, print, print_json};
use crate::cli::failure::Failure;
use crate::cli::options::ProfileDirArg;

/// The version of the JSON. It goes up when a reader of the last one would be misled.
const VERSION: u32 = 1;
const FORMAT: &str = "temper-profile";
const SCHEMA: &str = include_str!("dump.schema.json");

/// The arguments of `temper profile dump`.
#[derive(Args, Debug)]
pub struct DumpArgs {
    /// A program or library, or the name, identity or profile file of one; else all
    #[arg(value_hint = clap::ValueHint::FilePath)]
    program: Option<String>,

    #[command(flatten)]
    profile_dir: ProfileDirArg,

    /// Only modules whose path or identity contains this
    #[arg(long, value_name = "NAME", conflicts_with = "program")]
    module: Option<String>,

    /// Print JSON, which `temper profile import` reads
    #[arg(long)]
    json: bool,

    /// Print the schema of the JSON
    #[arg(long, exclusive = true)]
    schema: bool,
}

#[derive(Serialize, Deserialize)]
pub(super) struct DumpFile {
    format: String,
    version: u32,
    /// The version of Temper that wrote it.
    temper: String,
    modules: Vec<DumpModule>,
}

#[derive(Serialize, Deserialize)]
struct DumpModule {
    id: String,
    path: String,
    size: u64,
    first_seen: u64,
    last_seen: u64,
    runs: u32,
    ancestor: Option<String>,
    others: Vec<String>,
    blocks: Vec<DumpBlock>,
    edges: Vec<DumpEdge>,
    paths: Vec<DumpPath>,
    pairs: Vec<DumpPair>,
    values: Vec<DumpValue>,
    trials: Vec<DumpTrial>,
}

#[derive(Serialize, Deserialize)]
struct DumpBlock {
    offset: u64,
    len: u32,
    hash: String,
    opcodes: u32,
    shape: u16,
    tier: DumpTier,
    head: bool,
    count: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum DumpTier {
    Interpreted,
    Block,
    Superblock,
}

#[derive(Serialize, Deserialize)]
struct DumpEdge {
    from: u64,
    kind: DumpKind,
    to: DumpTarget,
    count: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum DumpKind {
    Taken,
    Next,
    Jump,
    Call,
    IndirectJump,
    IndirectCall,
    Return,
}

/// `module` is a place in `others`; without it the offset is in the same module, and
/// without either the place isn't known.
#[derive(Serialize, Deserialize)]
struct DumpTarget {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    module: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct DumpPath {
    head: u64,
    /// `T` for a branch that was taken, `-` for one that was not.
    outcomes: String,
    count: u64,
}

#[derive(Serialize, Deserialize)]
struct DumpPair {
    call: u64,
    from: DumpTarget,
    count: u64,
}

#[derive(Serialize, Deserialize)]
struct DumpValue {
    at: u64,
    kind: DumpValueKind,
    /// None: all others.
    value: Option<u64>,
    count: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum DumpValueKind {
    Divisor,
    TripCount,
    Stride,
}

#[derive(Serialize, Deserialize)]
struct DumpTrial {
    cpu: String,
    temper: [u16; 3],
    head: u64,
    region: String,
    variant: DumpVariant,
    verdict: DumpVerdict,
    gain: i32,
    slices: u32,
    seen: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum DumpVariant {
    Relaid,
    Lifted,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum DumpVerdict {
    Undecided,
    Rejected,
    Kept,
}

/// Two enums of the same variants.
macro_rules! same {
    ($dump:ident, $record:ident, $($variant:ident)*) => {
        impl From<$record> for $dump {
            fn from(record: $record) -> Self {
                match record {
                    $($record::$variant => $dump::$variant,)*
                }
            }
        }

        impl From<$dump> for $record {
            fn from(dump: $dump) -> Self {
                match dump {
                    $($dump::$variant => $record::$variant,)*
                }
            }
        }
    };
}

same!(DumpTier, Tier, Interpreted Block Superblock);
same!(DumpKind, EdgeKind, Taken Next Jump Call IndirectJump IndirectCall Return);
same!(DumpValueKind, ValueKind, Divisor TripCount Stride);
same!(DumpVariant, Variant, Relaid Lifted);
same!(DumpVerdict, Verdict, Undecided Rejected Kept);

impl From<Target> for DumpTarget {
    fn from(target: Target) -> Self {
        let (module, offset) = match target {
            Target::Here(offset) => (None, Some(offset)),
            Target::There { module, offset } => (Some(module), Some(offset)),
            Target::Elsewhere => (None, None),
        };
        DumpTarget { module, offset }
    }
}

impl DumpTarget {
    /// `None` when it names what isn't there.
    fn target(&self, others: usize) -> Option<Target> {
        match (self.module, self.offset) {
            (None, None) => Some(Target::Elsewhere),
            (None, Some(offset)) => Some(Target::Here(offset)),
            (Some(module), Some(offset)) if (module as usize) < others => {
                Some(Target::There { module, offset })
            }
            (Some(_), _) => None,
        }
    }
}

pub(super) fn outcomes(path: &PathRecord) -> String {
    let taken = |i| path.outcomes >> i & 1 == 1;
    (0..path.len)
        .map(|i| if taken(i) { 'T' } else { '-' })
        .collect()
}

impl DumpModule {
    fn new(profile: &ModuleProfile) -> DumpModule {
        let ModuleProfile {
            module,
            counts,
            trials,
        } = profile;
        DumpModule {
            id: module.id.to_string(),
            path: String::from_utf8_lossy(&module.path).into_owned(),
            size: module.size,
            first_seen: module.first_seen,
            last_seen: module.last_seen,
            runs: module.runs,
            ancestor: module.ancestor.as_ref().map(ModuleId::to_string),
            others: counts.others.iter().map(ModuleId::to_string).collect(),
            blocks: (counts.blocks.iter())
                .map(|block| DumpBlock {
                    offset: block.offset,
                    len: block.len,
                    hash: format!("{:016x}", block.hash),
                    opcodes: block.likeness.opcodes,
                    shape: block.likeness.shape,
                    tier: block.tier.into(),
                    head: block.head,
                    count: block.count,
                })
                .collect(),
            edges: (counts.edges.iter())
                .map(|edge| DumpEdge {
                    from: edge.from,
                    kind: edge.kind.into(),
                    to: edge.to.into(),
                    count: edge.count,
                })
                .collect(),
            paths: (counts.paths.iter())
                .map(|path| DumpPath {
                    head: path.head,
                    outcomes: outcomes(path),
                    count: path.count,
                })
                .collect(),
            pairs: (counts.pairs.iter())
                .map(|pair| DumpPair {
                    call: pair.call,
                    from: pair.from.into(),
                    count: pair.count,
                })
                .collect(),
            values: (counts.values.iter())
                .map(|value| DumpValue {
                    at: value.at,
                    kind: value.kind.into(),
                    value: match value.value {
                        Observed::Is(value) => Some(value),
                        Observed::Other => None,
                    },
                    count: value.count,
                })
                .collect(),
            trials: (trials.trials.iter())
                .map(|trial| {
                    let machine = &trials.machines[trial.machine as usize];
                    DumpTrial {
                        cpu: machine.cpu.clone(),
                        temper: machine.temper,
                        head: trial.head,
                        region: format!("{:016x}", trial.region),
                        variant: trial.variant.into(),
                        verdict: trial.verdict.into(),
                        gain: trial.gain,
                        slices: trial.slices,
                        seen: trial.seen,
                    }
                })
                .collect(),
        }
    }

    /// `None` when a value is out of range.
    fn profile(self) -> Option<ModuleProfile> {
        let id = |text: &String| ModuleId::parse(text);
        let others: Vec<ModuleId> = self.others.iter().map(id).collect::<Option<_>>()?;
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        let blocks = self.blocks.into_iter().map(|block| {
            Some(BlockRecord {
                offset: block.offset,
                hash: number(&block.hash)?,
                len: block.len,
                tier: block.tier.into(),
                head: block.head,
                likeness: Likeness {
                    opcodes: block.opcodes,
                    shape: block.shape,
                },
                count: block.count,
            })
        });
        let edges = self.edges.into_iter().map(|edge| {
            Some(EdgeRecord {
                from: edge.from,
                kind: edge.kind.into(),
                to: edge.to.target(others.len())?,
                count: edge.count,
            })
        });
        let paths = self.paths.into_iter().map(|path| {
            let len = u8::try_from(path.outcomes.len()).ok()?;
            let mut taken = 0u32;
            for (place, outcome) in path.outcomes.bytes().enumerate() {
                let bit = u32::from(outcome == b'T').checked_shl(place as u32)?;
                taken |= bit;
                matches!(outcome, b'T' | b'-').then_some(())?;
            }
            (len > 0).then_some(PathRecord {
                head: path.head,
                outcomes: taken,
                len,
                count: path.count,
            })
        });
        let pairs = self.pairs.into_iter().map(|pair| {
            Some(PairRecord {
                call: pair.call,
                from: pair.from.target(others.len())?,
                count: pair.count,
            })
        });
        let values = self.values.into_iter().map(|value| ValueRecord {
            at: value.at,
            kind: value.kind.into(),
            value: value.value.map_or(Observed::Other, Observed::Is),
            count: value.count,
        });
        let mut trials = Trials::default();
        for (place, trial) in self.trials.into_iter().enumerate() {
            trials.machines.push(Machine {
                temper: trial.temper,
                ..Machine::this(&trial.cpu)
            });
            trials.trials.push(TrialRecord {
                machine: place as u32,
                head: trial.head,
                region: number(&trial.region)?,
                variant: trial.variant.into(),
                verdict: trial.verdict.into(),
                gain: trial.gain,
                slices: trial.slices,
                seen: trial.seen,
            });
        }
        // Folds equal machines.
        trials.merge(Trials::default());
        let mut counts = Counts {
            blocks: blocks.collect::<Option<_>>()?,
            edges: edges.collect::<Option<_>>()?,
            paths: paths.collect::<Option<_>>()?,
            pairs: pairs.collect::<Option<_>>()?,
            values: values.collect(),
            others,
        };
        counts.normalize();
        let module = ModuleRecord {
            id: ModuleId::parse(&self.id)?,
            path: self.path.into_bytes(),
            size: self.size,
            first_seen: self.first_seen,
            last_seen: self.last_seen,
            runs: self.runs,
            ancestor: match &self.ancestor {
                Some(ancestor) => Some(id(ancestor)?),
                None => None,
            },
        };
        let profile = ModuleProfile {
            module,
            counts,
            trials,
        };
        // As a file it must be readable; this checks all that a reader checks.
        ModuleProfile::from_bytes(&profile.into_bytes(&Limits::default())).ok()
    }
}

impl DumpFile {
    fn new(profiles: &[ModuleProfile]) -> DumpFile {
        DumpFile {
            format: FORMAT.into(),
            version: VERSION,
            temper: env!("CARGO_PKG_VERSION").into(),
            modules: profiles.iter().map(DumpModule::new).collect(),
        }
    }

    /// The profiles of a dump; `name` says whose it is.
    pub fn parse(text: &str, name: &str) -> Result<Vec<ModuleProfile>, Failure> {
        #[derive(Deserialize)]
        struct Head {
            format: String,
            version: u32,
            #[serde(default)]
            temper: String,
        }
        let other = |error: serde_json::Error| {
            Failure::own(format!("{name}: is no dump of a profile ({error})"))
        };
        let head: Head = serde_json::from_str(text).map_err(other)?;
        if head.format != FORMAT {
            return Err(Failure::own(format!("{name}: is no dump of a profile")));
        }
        if head.version > VERSION {
            return Err(Failure::own(format!(
                "{name}: is a dump of version {}, written by Temper {}; use that version or a \
                 later one",
                head.version, head.temper
            )));
        }
        let file: DumpFile = serde_json::from_str(text).map_err(other)?;
        let modules = file.modules.into_iter().map(|module| {
            let id = module.id.clone();
            module
                .profile()
                .ok_or_else(|| Failure::own(format!("{name}: module {id} is inconsistent")))
        });
        modules.collect()
    }
}

/// Prints the dump.
///
/// # Errors
/// There is no such profile, or it can't be read.
pub fn run(args: &DumpArgs, out: &mut impl Write) -> Result<(), Failure> {
    if args.schema {
        return print(out, SCHEMA);
    }
    let store = open(&args.profile_dir)?;
    let known = modules(&store)?;
    let profiles = match &args.program {
        Some(program) => vec![select::load(&store, &known, program)?],
        None => {
            let wanted = args.module.as_deref().unwrap_or_default();
            let chosen = known.iter().filter(|k| {
                file_name(&k.module.path).contains(wanted)
                    || k.module.id.to_string().contains(wanted)
            });
            let load = |k: &profile_db::Summary| store.load(&k.module.id).map_err(select::own);
            let loaded: Vec<_> = chosen.map(load).collect::<Result<_, _>>()?;
            loaded.into_iter().flatten().collect()
        }
    };
    if args.json {
        return print_json(out, &DumpFile::new(&profiles));
    }
    let mut text = String::new();
    for profile in &profiles {
        self::text(&mut text, profile).expect("writing to a string");
    }
    print(out, &text)
}

/// One record a line, the fields in the order of the JSON's.
fn text(text: &mut String, profile: &ModuleProfile) -> std::fmt::Result {
    let dump = DumpModule::new(profile);
    writeln!(text, "module {} {}", dump.id, clean(&dump.path))?;
    writeln!(
        text,
        "  size {} runs {} first {} last {} ancestor {}",
        dump.size,
        dump.runs,
        dump.first_seen,
        dump.last_seen,
        dump.ancestor.as_deref().unwrap_or("-")
    )?;
    for (place, other) in dump.others.iter().enumerate() {
        writeln!(text, "  other {place} {other}")?;
    }
    let target = |target: &DumpTarget| match (target.module, target.offset) {
        (None, Some(offset)) => format!("{offset:#x}"),
        (Some(module), Some(offset)) => format!("{module}:{offset:#x}"),
        (_, None) => "elsewhere".into(),
    };
    for (block, record) in dump.blocks.iter().zip(&profile.counts.blocks) {
        writeln!(
            text,
            "  block {:#x} len {} hash {} opcodes {:08x} shape {} {:?}{} count {}",
            block.offset,
            block.len,
            block.hash,
            block.opcodes,
            block.shape,
            record.tier,
            if block.head { " head" } else { "" },
            block.count
        )?;
    }
    for (edge, record) in dump.edges.iter().zip(&profile.counts.edges) {
        let to = target(&edge.to);
        writeln!(
            text,
            "  edge {:#x} {:?} {to} count {}",
            edge.from, record.kind, edge.count
        )?;
    }
    for path in &dump.paths {
        writeln!(
            text,
            "  path {:#x} {} count {}",
            path.head, path.outcomes, path.count
        )?;
    }
    for pair in &dump.pairs {
        let from = target(&pair.from);
        writeln!(
            text,
            "  pair {:#x} returns from {from} count {}",
            pair.call, pair.count
        )?;
    }
    for (value, record) in dump.values.iter().zip(&profile.counts.values) {
        let shown = value
            .value
            .map_or("other".into(), |value| value.to_string());
        writeln!(
            text,
            "  value {:#x} {:?} {shown} count {}",
            value.at, record.kind, value.count
        )?;
    }
    for (trial, record) in dump.trials.iter().zip(&profile.trials.trials) {
        let [major, minor, patch] = trial.temper;
        writeln!(
            text,
            "  trial {:#x} region {} {:?} {:?} gain {} slices {} seen {} on {} with Temper \
             {major}.{minor}.{patch}",
            trial.head,
            trial.region,
            record.variant,
            record.verdict,
            trial.gain,
            trial.slices,
            trial.seen,
            clean(&trial.cpu)
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
