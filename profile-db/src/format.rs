//! The file format (the crate's documentation has it field by field): profiles to bytes,
//! and files to profiles section by section. Nothing that is read is trusted: each length
//! is checked before it is used, each section by its checksum before it is decoded, each
//! record before it is handed out.

mod old;
mod sections;

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::error::Damage;
use crate::merge::Limits;
use crate::record::{Counts, ModuleProfile, ModuleRecord};
use crate::trial::Trials;

use sections::Section;
pub use sections::{Bias, Decision, Totals};

/// The version of the header that this crate writes, and the highest that it reads.
pub const FORMAT_VERSION: u32 = 2;
/// The lowest version that it reads.
const OLDEST_VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"TEMPERDB";
const HEADER_LEN: usize = 24;
const ENTRY_LEN: usize = 32;
const MAX_SECTIONS: usize = 32;

/// The longest section, packed or not. The default [`Limits`] stay below it, even with
/// every number at its longest.
const MAX_SECTION_LEN: usize = 64 << 20;
/// How much of a file is read at once: enough for all but the counts of most modules.
const FIRST_READ: usize = 16 << 10;
/// Packing pays its own cost only above this.
const MIN_PACKED_LEN: usize = 2048;
/// A section never claims to unpack to more than this many times its stored length.
const MAX_RATIO: usize = 512;

const PLAIN: u32 = 0;
const ZSTD: u32 = 1;

/// Why a file can't be used.
#[derive(Debug)]
pub enum Refusal {
    Io(io::Error),
    Damage(Damage),
    /// This version of Temper wrote it, in a format that is new to this one.
    Newer([u16; 3]),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Io(error) => error.fmt(f),
            Refusal::Damage(damage) => damage.fmt(f),
            Refusal::Newer([major, minor, patch]) => write!(
                f,
                "it was written by Temper {major}.{minor}.{patch}: use that version or a later one"
            ),
        }
    }
}

impl From<Damage> for Refusal {
    fn from(damage: Damage) -> Self {
        Refusal::Damage(damage)
    }
}

/// The version that writes: this crate's, which is Temper's.
pub(crate) fn writer_version() -> [u16; 3] {
    [
        env!("CARGO_PKG_VERSION_MAJOR"),
        env!("CARGO_PKG_VERSION_MINOR"),
        env!("CARGO_PKG_VERSION_PATCH"),
    ]
    .map(|number| number.parse().unwrap_or(u16::MAX))
}

/// A whole file. `profile` must be canonical. What makes the file longer than
/// `limits.file_bytes` is dropped, least useful first.
pub fn encode(mut profile: ModuleProfile, limits: &Limits) -> Vec<u8> {
    let mut bounds = *limits;
    loop {
        let file = assemble(&mut profile, &bounds);
        let records = profile.counts.len() + profile.trials.trials.len();
        if file.len() <= limits.file_bytes || records == 0 {
            return file;
        }
        // An eighth more than seems needed, since what is kept may pack less well.
        let part = limits.file_bytes as f64 / file.len() as f64 * 0.875;
        let keep = |records: usize| (records as f64 * part) as usize;
        bounds.blocks = keep(profile.counts.blocks.len());
        bounds.edges = keep(profile.counts.edges.len());
        bounds.paths = keep(profile.counts.paths.len());
        bounds.pairs = keep(profile.counts.pairs.len());
        bounds.values = keep(profile.counts.values.len());
        profile.counts.bound(&bounds);
        profile.trials.bound(keep(profile.trials.trials.len()));
    }
}

fn assemble(profile: &mut ModuleProfile, limits: &Limits) -> Vec<u8> {
    let ModuleProfile {
        module,
        counts,
        trials,
    } = profile;
    let totals = Totals::new(counts, trials);
    let decisions = sections::decisions(counts, limits);
    let sections = [
        (Section::Module, sections::encode_module(module, totals)),
        (Section::Decisions, sections::encode_decisions(decisions)),
        (Section::Counts, sections::encode_counts(counts)),
        (Section::Trials, sections::encode_trials(trials)),
    ];

    let count = sections.len();
    let mut file = vec![0; HEADER_LEN + count * ENTRY_LEN];
    file[0..8].copy_from_slice(&MAGIC);
    file[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    for (place, number) in writer_version().into_iter().enumerate() {
        file[12 + 2 * place..][..2].copy_from_slice(&number.to_le_bytes());
    }
    file[18..20].copy_from_slice(&(count as u16).to_le_bytes());
    for (index, (section, plain)) in sections.into_iter().enumerate() {
        let packed = section.is_packed().then(|| pack(&plain)).flatten();
        let (encoding, stored) = match &packed {
            Some(packed) => (ZSTD, packed),
            None => (PLAIN, &plain),
        };
        let offset = file.len() as u64;
        let entry = &mut file[HEADER_LEN + index * ENTRY_LEN..][..ENTRY_LEN];
        entry[0..2].copy_from_slice(&(section as u16).to_le_bytes());
        entry[2..4].copy_from_slice(&section.version().to_le_bytes());
        entry[4..8].copy_from_slice(&encoding.to_le_bytes());
        entry[8..16].copy_from_slice(&offset.to_le_bytes());
        entry[16..20].copy_from_slice(&(stored.len() as u32).to_le_bytes());
        entry[20..24].copy_from_slice(&(plain.len() as u32).to_le_bytes());
        entry[24..28].copy_from_slice(&crc32fast::hash(stored).to_le_bytes());
        file.extend_from_slice(stored);
    }
    let crc = header_crc(&file, count);
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

/// Where a file's bytes come from.
#[derive(Clone, Copy)]
pub enum Source<'f> {
    File(&'f File),
    Bytes(&'f [u8]),
}

impl Source<'_> {
    fn read_exact_at(self, buffer: &mut [u8], at: u64) -> Result<(), Refusal> {
        match self {
            Source::File(file) => {
                file.read_exact_at(buffer, at)
                    .map_err(|error| match error.kind() {
                        io::ErrorKind::UnexpectedEof => Refusal::Damage(Damage::Length),
                        _ => Refusal::Io(error),
                    })
            }
            Source::Bytes(bytes) => {
                let from = usize::try_from(at).ok();
                let part = from.and_then(|from| bytes.get(from..)?.get(..buffer.len()));
                buffer.copy_from_slice(part.ok_or(Damage::Length)?);
                Ok(())
            }
        }
    }
}

struct Entry {
    kind: u16,
    version: u16,
    encoding: u32,
    offset: u64,
    stored: usize,
    plain: usize,
    crc: u32,
}

/// An open profile file whose header has been checked.
pub struct ProfileFile<'f> {
    source: Source<'f>,
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

/// A section's bytes, checked and unpacked, and its version.
type Unpacked<'a> = (Cow<'a, [u8]>, u16);

impl<'f> ProfileFile<'f> {
    /// Reads and checks the header of a file, `len` bytes long.
    pub fn open(source: Source<'f>, len: u64) -> Result<Self, Refusal> {
        let mut first = vec![0; FIRST_READ.min(len as usize)];
        source.read_exact_at(&mut first, 0)?;
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
        if version < OLDEST_VERSION {
            return Err(Damage::Header.into());
        }
        let mut entries = Vec::with_capacity(count);
        let mut end = (HEADER_LEN + count * ENTRY_LEN) as u64;
        for index in 0..count {
            let bytes = &first[HEADER_LEN + index * ENTRY_LEN..][..ENTRY_LEN];
            let entry = Entry {
                kind: u16_at(bytes, 0),
                version: u16_at(bytes, 2),
                encoding: u32_at(bytes, 4),
                offset: u64_at(bytes, 8),
                stored: u32_at(bytes, 16) as usize,
                plain: u32_at(bytes, 20) as usize,
                crc: u32_at(bytes, 24),
            };
            if let Some(section) = Section::of_kind(entry.kind) {
                if entry.version > section.version() {
                    return Err(Refusal::Newer(writer));
                }
                if entry.version == 0 {
                    return Err(Damage::Header.into());
                }
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
            source,
            first,
            entries,
        })
    }

    /// The checked and unpacked bytes of a section, and its version; `None` when the file
    /// has no such section.
    fn optional_section(&self, section: Section) -> Result<Option<Unpacked<'_>>, Refusal> {
        let kind = section as u16;
        let Some(entry) = self.entries.iter().find(|entry| entry.kind == kind) else {
            return Ok(None);
        };
        Ok(Some((self.unpack(entry)?, entry.version)))
    }

    fn section(&self, section: Section) -> Result<Unpacked<'_>, Refusal> {
        let found = self.optional_section(section)?;
        found.ok_or(Refusal::Damage(Damage::MissingSection))
    }

    fn unpack(&self, entry: &Entry) -> Result<Cow<'_, [u8]>, Refusal> {
        if entry.stored > MAX_SECTION_LEN || entry.plain > MAX_SECTION_LEN {
            return Err(Damage::Length.into());
        }
        let end = entry.offset as usize + entry.stored;
        let stored = match self.first.get(entry.offset as usize..end) {
            Some(bytes) => Cow::Borrowed(bytes),
            None => {
                let mut bytes = buffer(entry.stored)?;
                self.source.read_exact_at(&mut bytes, entry.offset)?;
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
        let (bytes, version) = self.section(Section::Module)?;
        Ok(sections::decode_module(&bytes, version)?)
    }

    /// Sorted by offset.
    pub fn decisions(&self) -> Result<Vec<Decision>, Refusal> {
        let (bytes, _) = self.section(Section::Decisions)?;
        Ok(sections::decode_decisions(&bytes)?)
    }

    pub fn counts(&self) -> Result<Counts, Refusal> {
        let (bytes, version) = self.section(Section::Counts)?;
        Ok(sections::decode_counts(&bytes, version)?)
    }

    /// None in files of version 1.
    pub fn trials(&self) -> Result<Trials, Refusal> {
        match self.optional_section(Section::Trials)? {
            Some((bytes, _)) => Ok(sections::decode_trials(&bytes)?),
            None => Ok(Trials::default()),
        }
    }

    pub fn profile(&self) -> Result<ModuleProfile, Refusal> {
        let (module, _) = self.module()?;
        Ok(ModuleProfile {
            module,
            counts: self.counts()?,
            trials: self.trials()?,
        })
    }
}

impl ModuleProfile {
    /// The profile that a file of these bytes holds.
    ///
    /// # Errors
    /// The bytes are damaged, or a later Temper wrote them.
    pub fn from_bytes(bytes: &[u8]) -> Result<ModuleProfile, Refusal> {
        let file = ProfileFile::open(Source::Bytes(bytes), bytes.len() as u64)?;
        // A start reads these; what is handed on must be whole.
        file.decisions()?;
        file.profile()
    }

    /// The bytes of a file that holds this profile, within `limits`.
    pub fn into_bytes(mut self, limits: &Limits) -> Vec<u8> {
        self.counts.normalize();
        self.trials.merge(Trials::default());
        self.counts.bound(limits);
        self.trials.bound(limits.trials);
        encode(self, limits)
    }
}

/// `len` zeros; an error where memory is short.
fn buffer(len: usize) -> Result<Vec<u8>, Refusal> {
    let mut buffer = Vec::new();
    buffer
        .try_reserve_exact(len)
        .map_err(|_| Refusal::Io(io::ErrorKind::OutOfMemory.into()))?;
    buffer.resize(len, 0);
    Ok(buffer)
}

#[cfg(test)]
mod tests;
