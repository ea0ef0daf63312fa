//! What `temper profile show` says of one module, as data.

use std::cell::OnceCell;
use std::cmp::Reverse;
use std::collections::BTreeMap;

use profile_db::{
    BlockRecord, EdgeKind, EdgeRecord, ModuleId, ModuleProfile, Observed, PathRecord, Summary,
    Target, Tier, Trials, ValueKind, ValueRecord, Variant, Verdict,
};
use serde::Serialize;

use super::code::Code;
use super::dump::outcomes;
use super::image::Image;
use super::listing::{self, ListedInstruction};
use super::select::file_name;
use super::show::Order;
use super::view::path_of;

/// What to show of a module.
pub(super) struct Filter<'a> {
    pub function: Option<&'a str>,
    pub order: Order,
    pub top: usize,
    /// Of how many paths to show the code.
    pub code: usize,
}

/// The first entries of a longer list.
#[derive(Serialize)]
pub(super) struct Top<T> {
    pub shown: Vec<T>,
    /// How many there are.
    pub all: usize,
}

impl<T> Top<T> {
    fn of(mut list: Vec<T>, top: usize) -> Top<T> {
        let all = list.len();
        list.truncate(top);
        Top { shown: list, all }
    }
}

#[derive(Serialize)]
pub(super) struct FunctionRow {
    pub name: String,
    /// As in the file.
    pub address: u64,
    /// Of the function's blocks: how many were seen, how often they ran, and how many bytes
    /// of code that was.
    pub blocks: u64,
    pub executions: u64,
    pub weight: u64,
}

#[derive(Serialize)]
pub(super) struct BlockRow {
    pub place: String,
    pub address: u64,
    pub bytes: u32,
    pub tier: &'static str,
    pub executions: u64,
    pub weight: u64,
    /// File and line.
    pub source: Option<String>,
}

#[derive(Serialize)]
pub(super) struct EdgeRow {
    pub from: String,
    pub from_address: u64,
    pub to: String,
    pub kind: &'static str,
    pub count: u64,
    /// All edges of the same block.
    pub total: u64,
}

#[derive(Serialize)]
pub(super) struct PathRow {
    pub head: String,
    pub head_address: u64,
    /// `T` for a branch that was taken, `-` for one that was not.
    pub outcomes: String,
    pub count: u64,
    /// All paths from the same head.
    pub total: u64,
    /// Of the first few.
    pub code: Vec<ListedInstruction>,
}

#[derive(Serialize)]
pub(super) struct ValueRow {
    pub place: String,
    pub address: u64,
    pub kind: &'static str,
    /// None: all that weren't told apart.
    pub value: Option<i64>,
    pub count: u64,
    /// All values of the same instruction or loop.
    pub total: u64,
}

#[derive(Serialize)]
pub(super) struct TrialRow {
    pub head: String,
    pub head_address: u64,
    pub variant: &'static str,
    pub verdict: &'static str,
    /// In thousandths of the time of translation blocks.
    pub gain: i32,
    pub slices: u32,
    pub cpu: String,
    pub temper: String,
}

/// See the module documentation.
#[derive(Serialize)]
pub(super) struct Report {
    pub path: String,
    pub id: String,
    /// The file at `path` is still this module, so addresses and names are known.
    pub file_matches: bool,
    pub runs: u32,
    pub first_seen: u64,
    pub last_seen: u64,
    pub blocks: u64,
    pub edges: u64,
    pub paths: u64,
    pub executions: u64,
    pub weight: u64,
    /// The earlier build whose records it started with.
    pub ancestor: Option<String>,
    pub functions: Top<FunctionRow>,
    pub hot_blocks: Top<BlockRow>,
    pub hot_edges: Top<EdgeRow>,
    pub hot_paths: Top<PathRow>,
    pub indirect_targets: Top<EdgeRow>,
    pub values: Top<ValueRow>,
    pub trials: Top<TrialRow>,
}

/// A module that edges lead to; its file is read when a name is needed.
struct Other<'k> {
    id: &'k ModuleId,
    known: Option<&'k Summary>,
    image: OnceCell<Option<Image>>,
}

impl Other<'_> {
    fn place(&self, offset: u64) -> String {
        let Some(known) = self.known else {
            return format!("{:.8}…+{offset:#x}", &self.id.file_stem()[1..]);
        };
        let module = file_name(&known.module.path);
        let image = self
            .image
            .get_or_init(|| Image::of_module(path_of(&known.module.path), self.id));
        match image {
            Some(image) => format!("{module}:{}", image.place(image.address(offset))),
            None => format!("{module}+{offset:#x}"),
        }
    }
}

struct Places<'k> {
    image: Image,
    code: Option<Code>,
    others: Vec<Other<'k>>,
}

impl Places<'_> {
    fn name(&self, offset: u64) -> String {
        self.image.place(self.image.address(offset))
    }

    fn target(&self, target: Target) -> String {
        match target {
            Target::Here(offset) => self.name(offset),
            Target::There { module, offset } => self.others[module as usize].place(offset),
            Target::Elsewhere => "elsewhere".into(),
        }
    }

    /// True when the function at `offset` is wanted.
    fn wanted(&self, offset: u64, filter: &Filter) -> bool {
        filter.function.is_none_or(|wanted| {
            self.image
                .function(self.image.address(offset))
                .is_some_and(|function| function.name.contains(wanted))
        })
    }
}

impl Report {
    /// The report of `profile`; `known` are the modules on record.
    pub fn new(profile: &ModuleProfile, known: &[Summary], filter: &Filter) -> Report {
        let ModuleProfile { module, counts, .. } = profile;
        let image = Image::of_module(path_of(&module.path), &module.id);
        let file_matches = image.is_some();
        let places = Places {
            image: image.unwrap_or_default(),
            code: Code::of_module(path_of(&module.path), &module.id),
            others: counts
                .others
                .iter()
                .map(|id| Other {
                    id,
                    known: known.iter().find(|k| k.module.id == *id),
                    image: OnceCell::new(),
                })
                .collect(),
        };
        let (direct, indirect): (Vec<_>, Vec<_>) =
            counts.edges.iter().partition(|e| !e.kind.is_indirect());
        let weight = counts.blocks.iter().fold(0u64, |sum, block| {
            sum.saturating_add(block.count.saturating_mul(block.len.into()))
        });
        Report {
            path: String::from_utf8_lossy(&module.path).into_owned(),
            id: module.id.to_string(),
            file_matches,
            runs: module.runs,
            first_seen: module.first_seen,
            last_seen: module.last_seen,
            blocks: counts.blocks.len() as u64,
            edges: counts.edges.len() as u64,
            paths: counts.paths.len() as u64,
            executions: counts.executions(),
            weight,
            ancestor: module.ancestor.as_ref().map(ModuleId::to_string),
            functions: functions(profile, &places, filter),
            hot_blocks: blocks(&counts.blocks, &places, filter),
            hot_edges: edges(&direct, &places, filter),
            hot_paths: paths(&counts.paths, &places, filter),
            indirect_targets: edges(&indirect, &places, filter),
            values: values(&counts.values, &places, filter),
            trials: trials(&profile.trials, &places, filter),
        }
    }
}

fn functions(profile: &ModuleProfile, places: &Places, filter: &Filter) -> Top<FunctionRow> {
    let mut rows: BTreeMap<u64, FunctionRow> = BTreeMap::new();
    for block in &profile.counts.blocks {
        if !places.wanted(block.offset, filter) {
            continue;
        }
        let address = places.image.address(block.offset);
        let (start, name) = match places.image.function(address) {
            Some(function) => (function.start, function.name.clone()),
            // Nothing says where functions begin: pages at least tell regions apart.
            None => (address & !0xfff, format!("{:#x}..", address & !0xfff)),
        };
        let row = rows.entry(start).or_insert(FunctionRow {
            name,
            address: start,
            blocks: 0,
            executions: 0,
            weight: 0,
        });
        row.blocks += 1;
        row.executions = row.executions.saturating_add(block.count);
        row.weight = row
            .weight
            .saturating_add(block.count.saturating_mul(block.len.into()));
    }
    // By address so far, which decides between equals.
    let mut rows: Vec<FunctionRow> = rows.into_values().collect();
    match filter.order {
        Order::Weight => rows.sort_by_key(|row| Reverse(row.weight)),
        Order::Executions => rows.sort_by_key(|row| Reverse(row.executions)),
        Order::Blocks => rows.sort_by_key(|row| Reverse(row.blocks)),
        Order::Name => rows.sort_by(|a, b| a.name.cmp(&b.name)),
        Order::Address => {}
    }
    Top::of(rows, filter.top)
}

fn blocks(blocks: &[BlockRecord], places: &Places, filter: &Filter) -> Top<BlockRow> {
    let weight = |block: &BlockRecord| block.count.saturating_mul(block.len.into());
    let mut hot: Vec<&BlockRecord> = blocks
        .iter()
        .filter(|block| places.wanted(block.offset, filter))
        .collect();
    hot.sort_by_key(|block| Reverse(weight(block)));
    let Top { shown, all } = Top::of(hot, filter.top);
    let shown = shown.into_iter().map(|block| {
        let address = places.image.address(block.offset);
        let line = places.code.as_ref().and_then(|code| code.line(address));
        BlockRow {
            place: places.name(block.offset),
            address,
            bytes: block.len,
            tier: match block.tier {
                Tier::Interpreted => "interpreter",
                Tier::Block => "block",
                Tier::Superblock => "superblock",
            },
            executions: block.count,
            weight: weight(block),
            source: line.map(|line| {
                let name = line.file.rsplit('/').next().unwrap_or(&line.file);
                format!("{name}:{}", line.line)
            }),
        }
    });
    Top {
        shown: shown.collect(),
        all,
    }
}

fn kind_name(kind: EdgeKind) -> &'static str {
    match kind {
        EdgeKind::Taken => "taken",
        EdgeKind::Next => "next",
        EdgeKind::Jump => "jump",
        EdgeKind::Call => "call",
        EdgeKind::IndirectJump => "jump",
        EdgeKind::IndirectCall => "call",
        EdgeKind::Return => "return",
    }
}

fn edges(edges: &[&EdgeRecord], places: &Places, filter: &Filter) -> Top<EdgeRow> {
    // Sorted by origin, so a block's edges are neighbours.
    let mut hot: Vec<(&EdgeRecord, u64)> = Vec::new();
    for siblings in edges.chunk_by(|a, b| a.from == b.from) {
        let total = siblings
            .iter()
            .fold(0u64, |sum, edge| sum.saturating_add(edge.count));
        let wanted = siblings.iter().filter(|edge| {
            let into = match edge.to {
                Target::Here(to) => filter.function.is_some() && places.wanted(to, filter),
                Target::There { .. } | Target::Elsewhere => false,
            };
            into || places.wanted(edge.from, filter)
        });
        hot.extend(wanted.map(|edge| (*edge, total)));
    }
    hot.sort_by_key(|(edge, _)| Reverse(edge.count));
    let Top { shown, all } = Top::of(hot, filter.top);
    let shown = shown
        .into_iter()
        .map(|(edge, total)| EdgeRow {
            from: places.name(edge.from),
            from_address: places.image.address(edge.from),
            to: places.target(edge.to),
            kind: kind_name(edge.kind),
            count: edge.count,
            total,
        })
        .collect();
    Top { shown, all }
}

fn paths(paths: &[PathRecord], places: &Places, filter: &Filter) -> Top<PathRow> {
    let mut hot: Vec<(&PathRecord, u64)> = Vec::new();
    for siblings in paths.chunk_by(|a, b| a.head == b.head) {
        if !places.wanted(siblings[0].head, filter) {
            continue;
        }
        let total = siblings
            .iter()
            .fold(0u64, |sum, path| sum.saturating_add(path.count));
        hot.extend(siblings.iter().map(|path| (path, total)));
    }
    hot.sort_by_key(|(path, _)| Reverse(path.count));
    let Top { shown, all } = Top::of(hot, filter.top);
    let shown = shown
        .into_iter()
        .enumerate()
        .map(|(place, (path, total))| PathRow {
            head: places.name(path.head),
            head_address: places.image.address(path.head),
            outcomes: outcomes(path),
            count: path.count,
            total,
            code: match place < filter.code {
                true => listing::of_path(path, &places.image, places.code.as_ref()),
                false => Vec::new(),
            },
        })
        .collect();
    Top { shown, all }
}

fn values(values: &[ValueRecord], places: &Places, filter: &Filter) -> Top<ValueRow> {
    let mut hot: Vec<(&ValueRecord, u64)> = Vec::new();
    for siblings in values.chunk_by(|a, b| (a.at, a.kind) == (b.at, b.kind)) {
        if !places.wanted(siblings[0].at, filter) {
            continue;
        }
        let total = siblings
            .iter()
            .fold(0u64, |sum, value| sum.saturating_add(value.count));
        hot.extend(siblings.iter().map(|value| (value, total)));
    }
    hot.sort_by_key(|(value, _)| Reverse(value.count));
    let Top { shown, all } = Top::of(hot, filter.top);
    let shown = shown
        .into_iter()
        .map(|(value, total)| ValueRow {
            place: places.name(value.at),
            address: places.image.address(value.at),
            kind: match value.kind {
                ValueKind::Divisor => "divisor",
                ValueKind::TripCount => "trip count",
                ValueKind::Stride => "stride",
            },
            value: match value.value {
                Observed::Is(value) => Some(value as i64),
                Observed::Other => None,
            },
            count: value.count,
            total,
        })
        .collect();
    Top { shown, all }
}

fn trials(trials: &Trials, places: &Places, filter: &Filter) -> Top<TrialRow> {
    let mut rows: Vec<TrialRow> = trials
        .trials
        .iter()
        .filter(|trial| places.wanted(trial.head, filter))
        .map(|trial| {
            let machine = &trials.machines[trial.machine as usize];
            let [major, minor, patch] = machine.temper;
            TrialRow {
                head: places.name(trial.head),
                head_address: places.image.address(trial.head),
                variant: match trial.variant {
                    Variant::Relaid => "relaid",
                    Variant::Lifted => "lifted",
                },
                verdict: match trial.verdict {
                    Verdict::Undecided => "undecided",
                    Verdict::Rejected => "rejected",
                    Verdict::Kept => "kept",
                },
                gain: trial.gain,
                slices: trial.slices,
                cpu: machine.cpu.clone(),
                temper: format!("{major}.{minor}.{patch}"),
            }
        })
        .collect();
    rows.sort_by_key(|row| Reverse(row.gain));
    Top::of(rows, filter.top)
}
