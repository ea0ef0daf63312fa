//! A machine at rest in a file, for either engine. The file is a magic number, a version,
//! and sections, each with its length and checksum; the last one counts the others. Memory
//! is kept by pages, zero pages left out, compressed. Whatever a file holds, reading it gives
//! a machine or an error: lengths are checked before they are believed.

use std::fmt;
use std::io::{self, Read, Write};

use bincode::Options;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::board::BoardSnapshot;
use super::boot::map;
use super::machine::{Machine, MachineError};
use super::memory::GuestRam;
use super::state::VcpuState;
use crate::addr::PAGE_SIZE;

const MAGIC: &[u8; 8] = b"TEMPERVM";
/// Changes with every change of what is saved.
const VERSION: u32 = 1;
/// No section is longer.
const SECTION_LIMIT: u64 = 4 << 20;
/// Pages in one section of memory.
const PAGES: usize = 256;
/// An address and a page.
const PAGE_RECORD: usize = 8 + PAGE_SIZE as usize;
/// More guest memory than this is no machine of Temper's.
const MEMORY_LIMIT: u64 = 1 << 40;
const COMPRESSION: i32 = 1;

/// What a section holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Machine,
    Cpu,
    Board,
    Pages,
    End,
}

impl Kind {
    const ALL: [Kind; 5] = [
        Kind::Machine,
        Kind::Cpu,
        Kind::Board,
        Kind::Pages,
        Kind::End,
    ];

    fn tag(self) -> [u8; 4] {
        *match self {
            Kind::Machine => b"mach",
            Kind::Cpu => b"cpu0",
            Kind::Board => b"bord",
            Kind::Pages => b"page",
            Kind::End => b"end.",
        }
    }
}

#[derive(Serialize, Deserialize)]
struct MachineSection {
    memory: u64,
}

/// Why a snapshot can't be read or written.
#[derive(Debug)]
pub enum SnapshotError {
    Io(io::Error),
    /// The file is none.
    NotASnapshot,
    Version(u32),
    /// It ends too early.
    Truncated,
    /// A part fails its checksum or contradicts itself.
    Damaged(&'static str),
    Machine(MachineError),
}

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SnapshotError::Io(error) => error.fmt(f),
            SnapshotError::NotASnapshot => f.write_str("this is no snapshot of Temper's"),
            SnapshotError::Version(version) => write!(
                f,
                "the snapshot has version {version}, and this Temper reads version {VERSION}"
            ),
            SnapshotError::Truncated => f.write_str("the snapshot is cut short"),
            SnapshotError::Damaged(what) => write!(f, "the snapshot is damaged: {what}"),
            SnapshotError::Machine(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for SnapshotError {}

impl From<MachineError> for SnapshotError {
    fn from(error: MachineError) -> Self {
        SnapshotError::Machine(error)
    }
}

impl From<io::Error> for SnapshotError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            SnapshotError::Truncated
        } else {
            SnapshotError::Io(error)
        }
    }
}

/// A snapshot's content.
pub struct Snapshot {
    pub cpu: VcpuState,
    pub board: BoardSnapshot,
    pub ram: GuestRam,
}

fn codec() -> impl Options {
    bincode::DefaultOptions::new().with_limit(SECTION_LIMIT)
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, SnapshotError> {
    codec()
        .serialize(value)
        .map_err(|_| SnapshotError::Damaged("a part is too long"))
}

fn decode<T: DeserializeOwned>(bytes: &[u8], what: &'static str) -> Result<T, SnapshotError> {
    codec()
        .deserialize(bytes)
        .map_err(|_| SnapshotError::Damaged(what))
}

fn write_section(out: &mut dyn Write, kind: Kind, payload: &[u8]) -> Result<(), SnapshotError> {
    let mut bytes = kind.tag().to_vec();
    bytes.extend((payload.len() as u64).to_le_bytes());
    // The checksum covers the kind and the length too.
    let mut sum = crc32fast::Hasher::new();
    sum.update(&bytes);
    sum.update(payload);
    out.write_all(&bytes)?;
    out.write_all(&sum.finalize().to_le_bytes())?;
    out.write_all(payload)?;
    Ok(())
}

fn read_section(input: &mut dyn Read) -> Result<(Kind, Vec<u8>), SnapshotError> {
    let mut head = [0; 16];
    input.read_exact(&mut head)?;
    let tag = [head[0], head[1], head[2], head[3]];
    let len = u64::from_le_bytes(head[4..12].try_into().expect("8 bytes"));
    let expected = u32::from_le_bytes(head[12..].try_into().expect("4 bytes"));
    let kind = Kind::ALL
        .into_iter()
        .find(|kind| kind.tag() == tag)
        .ok_or(SnapshotError::Damaged("a part of unknown kind"))?;
    if len > SECTION_LIMIT {
        return Err(SnapshotError::Damaged("a part is too long"));
    }
    let mut payload = vec![0; len as usize];
    input.read_exact(&mut payload)?;
    let mut sum = crc32fast::Hasher::new();
    sum.update(&head[..12]);
    sum.update(&payload);
    if sum.finalize() != expected {
        return Err(SnapshotError::Damaged("a checksum is wrong"));
    }
    Ok((kind, payload))
}

/// Writes the machine's whole state.
///
/// # Errors
/// `out` can't be written, or the engine can't say its state.
pub fn save(machine: &mut Machine, out: &mut dyn Write) -> Result<(), SnapshotError> {
    out.write_all(MAGIC)?;
    out.write_all(&VERSION.to_le_bytes())?;
    let cpu = machine.state()?;
    let board = machine.board().snapshot();
    let memory = map::total(machine.ram());
    write_section(out, Kind::Machine, &encode(&MachineSection { memory })?)?;
    write_section(out, Kind::Cpu, &encode(&cpu)?)?;
    write_section(out, Kind::Board, &encode(&board)?)?;
    let mut sections = 3u64;
    let mut records = Vec::with_capacity(PAGES * PAGE_RECORD);
    let mut page = [0; PAGE_SIZE as usize];
    for region in machine.ram().iter() {
        let start = region.start_addr().0;
        for at in (start..start + region.len()).step_by(PAGE_SIZE as usize) {
            read_ram(machine.ram(), at, &mut page)?;
            if page.iter().all(|byte| *byte == 0) {
                continue;
            }
            records.extend(at.to_le_bytes());
            records.extend(page);
            if records.len() == PAGES * PAGE_RECORD {
                write_pages(out, &mut records)?;
                sections += 1;
            }
        }
    }
    if !records.is_empty() {
        write_pages(out, &mut records)?;
        sections += 1;
    }
    write_section(out, Kind::End, &sections.to_le_bytes())
}

fn read_ram(ram: &GuestRam, at: u64, page: &mut [u8]) -> Result<(), SnapshotError> {
    ram.read_slice(page, GuestAddress(at))
        .map_err(|error| SnapshotError::Io(io::Error::other(error)))
}

fn write_pages(out: &mut dyn Write, records: &mut Vec<u8>) -> Result<(), SnapshotError> {
    let packed = zstd::bulk::compress(records, COMPRESSION)?;
    records.clear();
    write_section(out, Kind::Pages, &packed)
}

/// Reads what [`save`] wrote.
///
/// # Errors
/// The file is no whole and undamaged snapshot of this version.
pub fn load(input: &mut dyn Read) -> Result<Snapshot, SnapshotError> {
    let mut head = [0; 12];
    match input.read_exact(&mut head) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(SnapshotError::NotASnapshot);
        }
        result => result?,
    }
    if &head[..8] != MAGIC {
        return Err(SnapshotError::NotASnapshot);
    }
    let version = u32::from_le_bytes(head[8..].try_into().expect("4 bytes"));
    if version != VERSION {
        return Err(SnapshotError::Version(version));
    }
    let machine: MachineSection = expect(input, Kind::Machine)?;
    let sized = machine.memory.is_multiple_of(1 << 20) && machine.memory != 0;
    if !sized || machine.memory > MEMORY_LIMIT {
        return Err(SnapshotError::Damaged("an impossible size of memory"));
    }
    let cpu = expect(input, Kind::Cpu)?;
    let board = expect(input, Kind::Board)?;
    let ram = map::new_ram(machine.memory)
        .map_err(|error| SnapshotError::Machine(MachineError::Memory(error)))?;
    let mut sections = 3u64;
    loop {
        let (kind, payload) = read_section(input)?;
        match kind {
            Kind::Pages => read_pages(&ram, &payload)?,
            Kind::End if payload == sections.to_le_bytes() => break,
            Kind::End => return Err(SnapshotError::Damaged("parts are missing")),
            Kind::Machine | Kind::Cpu | Kind::Board => {
                return Err(SnapshotError::Damaged("parts in the wrong order"));
            }
        }
        sections += 1;
    }
    Ok(Snapshot { cpu, board, ram })
}

fn expect<T: DeserializeOwned>(input: &mut dyn Read, wanted: Kind) -> Result<T, SnapshotError> {
    let (kind, payload) = read_section(input)?;
    if kind != wanted {
        return Err(SnapshotError::Damaged("parts in the wrong order"));
    }
    decode(&payload, "a part can't be read")
}

fn read_pages(ram: &GuestRam, packed: &[u8]) -> Result<(), SnapshotError> {
    let records = zstd::bulk::decompress(packed, PAGES * PAGE_RECORD)
        .map_err(|_| SnapshotError::Damaged("memory can't be unpacked"))?;
    let (records, rest) = records.as_chunks::<PAGE_RECORD>();
    if !rest.is_empty() {
        return Err(SnapshotError::Damaged("a page is cut short"));
    }
    for record in records {
        let (at, page) = record.split_at(8);
        let at = u64::from_le_bytes(at.try_into().expect("8 bytes"));
        ram.write_slice(page, GuestAddress(at))
            .map_err(|_| SnapshotError::Damaged("a page outside of memory"))?;
    }
    Ok(())
}
