//! The file format (the crate's documentation has it field by field): profiles to bytes,
//! and files to profiles section by section. Nothing that is read is trusted: each length
//! is checked before it is used, each section by its checksum before it is decoded, each
//! record before it is handed out.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fs::File;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

use crate::codec;
use crate::error::Damage;
use crate::merge::{Limits, keep_most};
use crate::record::{
    BlockRecord, Counts, EdgeKind, EdgeRecord, ModuleProfile, ModuleRecord, Target, Tier,
};

/// The version of the header that this crate writes, and the highest that it reads.
pub const FORMAT_VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"TEMPERDB";
const HEADER_LEN: usize = 24;
const ENTRY_LEN: usize = 32;
const MAX_SECTIONS: usize = 32;

/// The longest section, packed or not. The default [`Limits`] stay below it.
const MAX_SECTION_LEN: usize = 32 << 20;
/// How much of a file is read at once: enough for all but the counts of most modules.
const FIRST_READ: usize = 16 << 10;
/// Packing pays its own cost only above this.
const MIN_PACKED_LEN: usize = 2048;
/// A section never claims to unpack to more than this many times its stored length.
const MAX_RATIO: usize = 512;

const PLAIN: u32 = 0;
const ZSTD: u32 = 1;

/// What a section holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Section {
    Module = 1,
    Decisions = 2,
    Counts = 3,
}

/// Every section's version so far.
const SECTION_VERSION: u16 = 1;

/// What the counts amount to, so that listing needn't read them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Totals {
    pub blocks: u64,
    pub edges: u64,
    pub paths: u64,
    /// Executions of all blocks.
    pub executions: u64,
}

/// A block that was hot: worth translating before it is interpreted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Decision {
    /// The block's offset in the module's file.
    pub offset: u64,
    /// [`content_hash`](crate::content_hash) of its bytes.
    pub hash: u64,
    /// Its length in bytes.
    pub len: u32,
    /// The highest tier it has reached.
    pub tier: Tier,
    /// A path head: backward branches or calls lead to it.
    pub head: bool,
    pub bias: Bias,
}

/// Which way the conditional branch at a block's end usually goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Bias {
    /// It has no such branch, or nothing was counted.
    #[default]
    Unknown,
    Taken,
    Next,
}

/// Why a file can't be used.
pub enum Refusal {
    Io(std::io::Error),
    Damage(Damage),
    Newer([u16; 3]),
}

impl From<Damage> for Refusal {
    fn from(damage: Damage) -> Self {
        Refusal::Damage(damage)
    }
}

/// The version that writes: this crate's, which is Temper's.
fn writer_version() -> [u16; 3] {
    [
        env!("CARGO_PKG_VERSION_MAJOR"),
        env!("CARGO_PKG_VERSION_MINOR"),
        env!("CARGO_PKG_VERSION_PATCH"),
    ]
    .map(|number| number.parse().unwrap_or(u16::MAX))
}

/// The blocks of `counts` that the next run should translate at once.
fn decisions(counts: &Counts, limits: &Limits) -> Vec<Decision> {
    let mut hot: Vec<&BlockRecord> = counts
        .blocks
        .iter()
        .filter(|block| block.count >= limits.hot_count || block.tier > Tier::Interpreted)
        .collect();
    keep_most(&mut hot, limits.decisions, |block| block.count);
    let mut edges = &counts.edges[..];
    hot.iter()
        .map(|block| {
            // Both lists are sorted by place.
            let before = edges.iter().take_while(|edge| edge.from < block.offset);
            edges = &edges[before.count()..];
            Decision {
                offset: block.offset,
                hash: block.hash,
                len: block.len,
                tier: block.tier,
                head: block.head,
                bias: bias(edges.iter().take_while(|edge| edge.from == block.offset)),
            }
        })
        .collect()
}

fn bias<'a>(edges: impl Iterator<Item = &'a EdgeRecord>) -> Bias {
    let (mut taken, mut next) = (0u64, 0u64);
    for edge in edges {
        match edge.kind {
            EdgeKind::Taken => taken = taken.saturating_add(edge.count),
            EdgeKind::Next => next = next.saturating_add(edge.count),
            EdgeKind::Jump
            | EdgeKind::Call
            | EdgeKind::IndirectJump
            | EdgeKind::IndirectCall
            | EdgeKind::Return => {}
        }
    }
    match taken.cmp(&next) {
        Ordering::Greater => Bias::Taken,
        Ordering::Less => Bias::Next,
        Ordering::Equal => Bias::Unknown,
    }
}

/// A whole file. `profile` must be canonical.
pub fn encode(mut profile: ModuleProfile, limits: &Limits) -> Vec<u8> {
    let totals = Totals {
        blocks: profile.counts.blocks.len() as u64,
        edges: profile.counts.edges.len() as u64,
        paths: profile.counts.paths.len() as u64,
        executions: profile.counts.executions(),
    };
    let mut decisions = decisions(&profile.counts, limits);
    to_differences(decisions.iter_mut().map(|d| &mut d.offset));
    counts_to_differences(&mut profile.counts);
    let sections = [
        (Section::Module, codec::encode(&(&profile.module, totals))),
        (Section::Decisions, codec::encode(&decisions)),
        (Section::Counts, codec::encode(&profile.counts)),
    ];

    let mut file = vec![0; HEADER_LEN + sections.len() * ENTRY_LEN];
    for (index, (section, plain)) in sections.into_iter().enumerate() {
        let packed = match section {
            // Read on each start, so they stay plain.
            Section::Module | Section::Decisions => None,
            Section::Counts => pack(&plain),
        };
        let (encoding, stored) = match &packed {
            Some(packed) => (ZSTD, packed),
            None => (PLAIN, &plain),
        };
        let offset = file.len() as u64;
        let entry = &mut file[HEADER_LEN + index * ENTRY_LEN..][..ENTRY_LEN];
        entry[0..2].copy_from_slice(&(section as u16).to_le_bytes());
        entry[2..4].copy_from_slice(&SECTION_VERSION.to_le_bytes());
        entry[4..8].copy_from_slice(&encoding.to_le_bytes());
        entry[8..16].copy_from_slice(&offset.to_le_bytes());
        entry[16..20].copy_from_slice(&(stored.len() as u32).to_le_bytes());
        entry[20..24].copy_from_slice(&(plain.len() as u32).to_le_bytes());
        entry[24..28].copy_from_slice(&crc32fast::hash(stored).to_le_bytes());
        file.extend_from_slice(stored);
        if index == 0 {
            file[0..8].copy_from_slice(&MAGIC);
            file[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
            for (place, number) in writer_version().into_iter().enumerate() {
                file[12 + 2 * place..][..2].copy_from_slice(&number.to_le_bytes());
            }
        }
    }
    file[18..20].copy_from_slice(&3u16.to_le_bytes());
    let crc = header_crc(&file, 3);
    file[20..24].copy_from_slice(&crc.to_le_bytes());
    file
}

fn header_crc(file: &[u8], sections: usize) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&file[..20]);
    hasher.update(&file[HEADER_LEN..HEADER_LEN + sections * ENTRY_LEN]);
    hasher.finalize()
}

/// `plain` compressed, where that pays and a reader will accept it.
fn pack(plain: &[u8]) -> Option<Vec<u8>> {
    if plain.len() < MIN_PACKED_LEN {
        return None;
    }
    let packed = zstd::bulk::compress(plain, 1).ok()?;
    (packed.len() < plain.len() && plain.len() <= packed.len() * MAX_RATIO).then_some(packed)
}

fn to_differences<'a>(offsets: impl Iterator<Item = &'a mut u64>) {
    let mut last = 0;
    for offset in offsets {
        let this = *offset;
        *offset = this.wrapping_sub(last);
        last = this;
    }
}

/// `None` when the offsets run over.
fn from_differences<'a>(offsets: impl Iterator<Item = &'a mut u64>) -> Option<()> {
    let mut last = 0u64;
    for offset in offsets {
        last = last.checked_add(*offset)?;
        *offset = last;
    }
    Some(())
}

fn zigzag(from: u64, to: u64) -> u64 {
    let difference = to.wrapping_sub(from) as i64;
    ((difference << 1) ^ (difference >> 63)) as u64
}

fn unzigzag(from: u64, coded: u64) -> u64 {
    let difference = (coded >> 1) ^ (coded & 1).wrapping_neg();
    from.wrapping_add(difference)
}

fn counts_to_differences(counts: &mut Counts) {
    for edge in &mut counts.edges {
        if let Target::Here(to) = &mut edge.to {
            *to = zigzag(edge.from, *to);
        }
    }
    to_differences(counts.blocks.iter_mut().map(|block| &mut block.offset));
    to_differences(counts.edges.iter_mut().map(|edge| &mut edge.from));
    to_differences(counts.paths.iter_mut().map(|path| &mut path.head));
}

fn counts_from_differences(counts: &mut Counts) -> Option<()> {
    from_differences(counts.blocks.iter_mut().map(|block| &mut block.offset))?;
    from_differences(counts.edges.iter_mut().map(|edge| &mut edge.from))?;
    from_differences(counts.paths.iter_mut().map(|path| &mut path.head))?;
    for edge in &mut counts.edges {
        if let Target::Here(to) = &mut edge.to {
            *to = unzigzag(edge.from, *to);
        }
    }
    Some(())
}

struct Entry {
    kind: u16,
    encoding: u32,
    offset: u64,
    stored: usize,
    plain: usize,
    crc: u32,
}

/// An open profile file whose header has been checked.
pub struct ProfileFile<'f> {
    file: &'f File,
    first: Vec<u8>,
    entries: Vec<Entry>,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

impl<'f> ProfileFile<'f> {
    /// Reads and checks the header of `file`, `len` bytes long.
    pub fn open(file: &'f File, len: u64) -> Result<Self, Refusal> {
        let mut first = vec![0; FIRST_READ.min(len as usize)];
        file.read_exact_at(&mut first, 0).map_err(short_is_damage)?;
        if !first.starts_with(&MAGIC) {
            return Err(Damage::Magic.into());
        }
        if first.len() < HEADER_LEN {
            return Err(Damage::Length.into());
        }
        let version = u32_at(&first, 8);
        let writer = [12, 14, 16].map(|at| u16_at(&first, at));
        let count = usize::from(u16_at(&first, 18));
        if count > MAX_SECTIONS {
            return Err(Damage::Header.into());
        }
        if first.len() < HEADER_LEN + count * ENTRY_LEN {
            return Err(Damage::Length.into());
        }
        // Checked before the version, so that a flipped bit isn't taken for a new version.
        if header_crc(&first, count) != u32_at(&first, 20) {
            return Err(Damage::Checksum.into());
        }
        if version > FORMAT_VERSION {
            return Err(Refusal::Newer(writer));
        }
        if version != FORMAT_VERSION {
            return Err(Damage::Header.into());
        }
        let mut entries = Vec::with_capacity(count);
        let mut end = (HEADER_LEN + count * ENTRY_LEN) as u64;
        for index in 0..count {
            let bytes = &first[HEADER_LEN + index * ENTRY_LEN..][..ENTRY_LEN];
            let entry = Entry {
                kind: u16_at(bytes, 0),
                encoding: u32_at(bytes, 4),
                offset: u64_at(bytes, 8),
                stored: u32_at(bytes, 16) as usize,
                plain: u32_at(bytes, 20) as usize,
                crc: u32_at(bytes, 24),
            };
            let known = (Section::Module as u16..=Section::Counts as u16).contains(&entry.kind);
            if known && u16_at(bytes, 2) > SECTION_VERSION {
                return Err(Refusal::Newer(writer));
            }
            if entry.offset != end || entries.iter().any(|e: &Entry| e.kind == entry.kind) {
                return Err(Damage::Header.into());
            }
            end += entry.stored as u64;
            entries.push(entry);
        }
        if end != len {
            return Err(Damage::Length.into());
        }
        Ok(ProfileFile {
            file,
            first,
            entries,
        })
    }

    /// The checked and unpacked bytes of a section.
    fn section(&self, section: Section) -> Result<Cow<'_, [u8]>, Refusal> {
        let entry = self
            .entries
            .iter()
            .find(|entry| entry.kind == section as u16)
            .ok_or(Damage::MissingSection)?;
        if entry.stored > MAX_SECTION_LEN || entry.plain > MAX_SECTION_LEN {
            return Err(Damage::Length.into());
        }
        let end = entry.offset as usize + entry.stored;
        let stored = match self.first.get(entry.offset as usize..end) {
            Some(bytes) => Cow::Borrowed(bytes),
            None => {
                let mut bytes = buffer(entry.stored)?;
                self.file
                    .read_exact_at(&mut bytes, entry.offset)
                    .map_err(short_is_damage)?;
                Cow::Owned(bytes)
            }
        };
        if crc32fast::hash(&stored) != entry.crc {
            return Err(Damage::Checksum.into());
        }
        match entry.encoding {
            PLAIN if entry.plain == entry.stored => Ok(stored),
            ZSTD if entry.plain <= entry.stored * MAX_RATIO => {
                let mut plain = buffer(entry.plain)?;
                match zstd::bulk::decompress_to_buffer(&stored, &mut plain) {
                    Ok(len) if len == entry.plain => Ok(Cow::Owned(plain)),
                    Ok(_) | Err(_) => Err(Damage::Encoding.into()),
                }
            }
            _ => Err(Damage::Header.into()),
        }
    }

    pub fn module(&self) -> Result<(ModuleRecord, Totals), Refusal> {
        let (module, totals): (ModuleRecord, Totals) =
            codec::decode(&self.section(Section::Module)?).ok_or(Damage::Encoding)?;
        if !module.id.is_valid() {
            return Err(Damage::Records.into());
        }
        Ok((module, totals))
    }

    /// Sorted by offset.
    pub fn decisions(&self) -> Result<Vec<Decision>, Refusal> {
        let mut decisions: Vec<Decision> =
            codec::decode(&self.section(Section::Decisions)?).ok_or(Damage::Encoding)?;
        from_differences(decisions.iter_mut().map(|d| &mut d.offset)).ok_or(Damage::Records)?;
        Ok(decisions)
    }

    pub fn counts(&self) -> Result<Counts, Refusal> {
        let mut counts: Counts =
            codec::decode(&self.section(Section::Counts)?).ok_or(Damage::Encoding)?;
        counts_from_differences(&mut counts).ok_or(Damage::Records)?;
        if !counts.is_canonical() {
            return Err(Damage::Records.into());
        }
        Ok(counts)
    }
}

/// `len` zeros; an error where memory is short.
fn buffer(len: usize) -> Result<Vec<u8>, Refusal> {
    let mut buffer = Vec::new();
    buffer
        .try_reserve_exact(len)
        .map_err(|_| Refusal::Io(std::io::ErrorKind::OutOfMemory.into()))?;
    buffer.resize(len, 0);
    Ok(buffer)
}

fn short_is_damage(error: std::io::Error) -> Refusal {
    if error.kind() == std::io::ErrorKind::UnexpectedEof {
        Refusal::Damage(Damage::Length)
    } else {
        Refusal::Io(error)
    }
}

#[cfg(test)]
mod tests;
