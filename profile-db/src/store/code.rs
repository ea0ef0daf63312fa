//! Translated code, kept beside the profile of the module that it was made from, as
//! `<id>.code`: pieces of bytes which this crate knows nothing of, each under a key. It is no
//! more than what can be made again from the module, so whatever is wrong with it costs time
//! alone; a file of another maker (another Temper, another CPU) counts as none.
//!
//! All integers are little-endian.
//!
//! | Offset | Size | Field |
//! |---|---|---|
//! | 0 | 8 | magic, `TEMPERCO` |
//! | 8 | 4 | format version, 1 |
//! | 12 | 4 | number of pieces, at most 2^16 |
//! | 16 | 16 | the maker |
//! | 32 | 16 | XXH3-128 of the module's file stem |
//! | 48 | 8 | XXH3-64 of bytes 0..48 and of the table |
//! | 56 | 32 each | the table |
//!
//! An entry of the table, sorted by its key: key (8 bytes), offset in the file (8), length
//! (4), number of blocks (4), XXH3-64 of the piece (8). Pieces follow the table without gaps,
//! in the table's order, up to the end of the file.

use std::fs::{File, Metadata};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use twox_hash::{XxHash3_64, XxHash3_128};

use super::files::open_trusted;
use super::{Durability, Store};
use crate::error::{Damage, Error};
use crate::record::ModuleId;

const MAGIC: [u8; 8] = *b"TEMPERCO";
const VERSION: u32 = 1;
const HEADER: usize = 56;
const ENTRY: usize = 32;
const MAX_PIECES: usize = 1 << 16;
/// A longer file isn't written, and not believed.
const MAX_FILE: u64 = 64 << 20;
/// Enough for the table of most modules.
const FIRST_READ: usize = 8 << 10;
pub(super) const EXTENSION: &str = "code";

/// Who made a piece of code: nobody else can use it.
pub type Maker = [u8; 16];

/// One piece, as the table has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CodePiece {
    pub key: u64,
    /// Blocks in it, as its maker counts them.
    pub blocks: u32,
    offset: u64,
    len: u32,
    hash: u64,
}

/// What is kept of one module.
#[derive(Clone, Debug)]
pub struct KeptCode {
    pieces: Vec<CodePiece>,
    /// The file that the table is of: another one may take its place at any time.
    file: FileIdentity,
}

type FileIdentity = (u64, u64, u64, i64, i64);

impl KeptCode {
    /// Sorted by key, each key once.
    pub fn pieces(&self) -> &[CodePiece] {
        &self.pieces
    }

    pub fn find(&self, key: u64) -> Option<&CodePiece> {
        let at = self.pieces.binary_search_by_key(&key, |piece| piece.key);
        self.pieces.get(at.ok()?)
    }

    pub fn blocks(&self) -> u64 {
        self.pieces.iter().map(|p| u64::from(p.blocks)).sum()
    }
}

/// A piece to be kept.
#[derive(Clone, Debug)]
pub struct NewPiece {
    pub key: u64,
    pub blocks: u32,
    pub bytes: Vec<u8>,
}

/// A file of kept code: the blocks in it, or what is wrong with it.
pub type VerifiedCode = (PathBuf, Result<u64, Error>);

impl Store {
    /// What `maker` kept of a module's code; `None` if there is nothing, or somebody else's.
    ///
    /// # Errors
    /// Any [`Error`] but `Newer`; a damaged file has been set aside.
    pub fn code(&self, id: &ModuleId, maker: &Maker) -> Result<Option<KeptCode>, Error> {
        if !self.is_within_reach() {
            return Ok(None);
        }
        let path = self.path(id, EXTENSION);
        let found = open_kept(&path, id, maker).map_err(|error| self.set_aside(error))?;
        Ok(found.map(|(kept, _)| kept))
    }

    /// One piece of it; `None` if the file isn't that one any more.
    ///
    /// # Errors
    /// Any [`Error`] but `Newer`; a damaged file has been set aside.
    pub fn code_piece(
        &self,
        id: &ModuleId,
        kept: &KeptCode,
        piece: &CodePiece,
    ) -> Result<Option<Vec<u8>>, Error> {
        if !self.is_within_reach() {
            return Ok(None);
        }
        let path = self.path(id, EXTENSION);
        let Some((file, metadata)) = open_trusted(&path)? else {
            return Ok(None);
        };
        if identity(&metadata) != kept.file {
            return Ok(None);
        }
        read_piece(&path, &file, piece)
            .map(Some)
            .map_err(|error| self.set_aside(error))
    }

    /// Keeps `pieces` of the code of a module whose profile is kept, in place of those with
    /// the same keys, until the file is full: then the others go. Says how long the file is; 0
    /// if there is no profile.
    ///
    /// # Errors
    /// Any [`Error`] but `Newer`; the file is then as it was.
    pub fn keep_code(
        &self,
        id: &ModuleId,
        maker: &Maker,
        mut pieces: Vec<NewPiece>,
    ) -> Result<u64, Error> {
        let _lock = self.lock()?;
        if !self.path(id, "profile").exists() {
            return Ok(0);
        }
        let path = self.path(id, EXTENSION);
        let mut room = MAX_FILE / 2;
        pieces.retain(|piece| {
            let fits = piece.bytes.len() as u64 <= room;
            room -= if fits { piece.bytes.len() as u64 } else { 0 };
            fits
        });
        // What can't be used is replaced.
        if let Ok(Some((kept, file))) = open_kept(&path, id, maker) {
            for old in kept.pieces() {
                let replaced = pieces.iter().any(|new| new.key == old.key);
                if !replaced
                    && u64::from(old.len) <= room
                    && let Ok(bytes) = read_piece(&path, &file, old)
                {
                    room -= u64::from(old.len);
                    pieces.push(NewPiece {
                        key: old.key,
                        blocks: old.blocks,
                        bytes,
                    });
                }
            }
        }
        pieces.sort_by_key(|piece| piece.key);
        pieces.dedup_by_key(|piece| piece.key);
        pieces.truncate(MAX_PIECES);
        let bytes = encode(id, maker, &pieces);
        self.replace(&path, &bytes, Durability::Routine)?;
        Ok(bytes.len() as u64)
    }

    /// Reads all kept code whole, whoever made it. Sets nothing aside.
    ///
    /// # Errors
    /// The directory can't be read.
    pub fn verify_code(&self) -> Result<Vec<VerifiedCode>, Error> {
        if !self.check_dir()? {
            return Ok(Vec::new());
        }
        let mut verified = Vec::new();
        for path in self.files_with(EXTENSION)? {
            let read = || {
                let Some((file, metadata)) = open_trusted(&path)? else {
                    return Ok(None);
                };
                let (kept, _, _) = parse(&path, &file, &metadata)?;
                for piece in kept.pieces() {
                    read_piece(&path, &file, piece)?;
                }
                Ok(Some(kept.blocks()))
            };
            match read() {
                Ok(Some(blocks)) => verified.push((path, Ok(blocks))),
                Ok(None) => {}
                Err(error) => verified.push((path, Err(error))),
            }
        }
        Ok(verified)
    }

    /// Moves a damaged file out of the way. It may have been replaced meanwhile: then a good
    /// one goes, and is made again.
    fn set_aside(&self, error: Error) -> Error {
        let Error::Damaged { path, damage, .. } = error else {
            return error;
        };
        let aside = path.with_extension("code.damaged");
        let moved = self
            .lock()
            .is_ok_and(|_lock| std::fs::rename(&path, &aside).is_ok());
        Error::Damaged {
            path,
            damage,
            aside: moved.then_some(aside),
        }
    }
}

fn identity(metadata: &Metadata) -> FileIdentity {
    (
        metadata.dev(),
        metadata.ino(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec(),
    )
}

fn damaged(path: &Path, damage: Damage) -> Error {
    Error::Damaged {
        path: path.into(),
        damage,
        aside: None,
    }
}

fn stem_hash(stem: &str) -> [u8; 16] {
    XxHash3_128::oneshot(stem.as_bytes()).to_le_bytes()
}

/// The table of a module's file, if `maker` made it.
fn open_kept(path: &Path, id: &ModuleId, maker: &Maker) -> Result<Option<(KeptCode, File)>, Error> {
    let Some((file, metadata)) = open_trusted(path)? else {
        return Ok(None);
    };
    let (kept, made_by, stem) = parse(path, &file, &metadata)?;
    if stem != stem_hash(&id.file_stem()) {
        return Err(damaged(path, Damage::WrongModule));
    }
    Ok((made_by == *maker).then_some((kept, file)))
}

/// The table, the maker, and the hash of the module's file stem.
fn parse(
    path: &Path,
    file: &File,
    metadata: &Metadata,
) -> Result<(KeptCode, Maker, [u8; 16]), Error> {
    let len = metadata.len();
    if len < HEADER as u64 || len > MAX_FILE {
        return Err(damaged(path, Damage::Length));
    }
    let mut head = vec![0; FIRST_READ.min(len as usize)];
    file.read_exact_at(&mut head, 0)
        .map_err(Error::io("read", path))?;
    if head[..8] != MAGIC || u32_at(&head, 8) != VERSION {
        return Err(damaged(path, Damage::Magic));
    }
    let count = u32_at(&head, 12) as usize;
    let table_end = HEADER + count.min(MAX_PIECES + 1) * ENTRY;
    if count > MAX_PIECES || table_end as u64 > len {
        return Err(damaged(path, Damage::Header));
    }
    let read = head.len().min(table_end);
    head.resize(table_end, 0);
    file.read_exact_at(&mut head[read..], read as u64)
        .map_err(Error::io("read", path))?;
    if u64_at(&head, 48) != table_hash(&head) {
        return Err(damaged(path, Damage::Checksum));
    }
    let mut pieces: Vec<CodePiece> = Vec::with_capacity(count);
    let mut end = table_end as u64;
    for entry in head[HEADER..].chunks_exact(ENTRY) {
        let piece = CodePiece {
            key: u64_at(entry, 0),
            offset: u64_at(entry, 8),
            len: u32_at(entry, 16),
            blocks: u32_at(entry, 20),
            hash: u64_at(entry, 24),
        };
        if piece.offset != end || pieces.last().is_some_and(|last| last.key >= piece.key) {
            return Err(damaged(path, Damage::Records));
        }
        end += u64::from(piece.len);
        pieces.push(piece);
    }
    if end != len {
        return Err(damaged(path, Damage::Length));
    }
    let bytes = |at: usize| head[at..at + 16].try_into().expect("16 bytes");
    let kept = KeptCode {
        pieces,
        file: identity(metadata),
    };
    Ok((kept, bytes(16), bytes(32)))
}

fn read_piece(path: &Path, file: &File, piece: &CodePiece) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; piece.len as usize];
    file.read_exact_at(&mut bytes, piece.offset)
        .map_err(Error::io("read", path))?;
    if XxHash3_64::oneshot(&bytes) != piece.hash {
        return Err(damaged(path, Damage::Checksum));
    }
    Ok(bytes)
}

fn encode(id: &ModuleId, maker: &Maker, pieces: &[NewPiece]) -> Vec<u8> {
    let table_end = HEADER + pieces.len() * ENTRY;
    let total: usize = pieces.iter().map(|piece| piece.bytes.len()).sum();
    let mut file = Vec::with_capacity(table_end + total);
    file.extend_from_slice(&MAGIC);
    file.extend_from_slice(&VERSION.to_le_bytes());
    file.extend_from_slice(&(pieces.len() as u32).to_le_bytes());
    file.extend_from_slice(maker);
    file.extend_from_slice(&stem_hash(&id.file_stem()));
    file.extend_from_slice(&[0; 8]);
    let mut offset = table_end as u64;
    for piece in pieces {
        file.extend_from_slice(&piece.key.to_le_bytes());
        file.extend_from_slice(&offset.to_le_bytes());
        file.extend_from_slice(&(piece.bytes.len() as u32).to_le_bytes());
        file.extend_from_slice(&piece.blocks.to_le_bytes());
        file.extend_from_slice(&XxHash3_64::oneshot(&piece.bytes).to_le_bytes());
        offset += piece.bytes.len() as u64;
    }
    let hash = table_hash(&file);
    file[48..56].copy_from_slice(&hash.to_le_bytes());
    for piece in pieces {
        file.extend_from_slice(&piece.bytes);
    }
    file
}

/// Of the header, but for the place of this hash, and of the table.
fn table_hash(head: &[u8]) -> u64 {
    let seed = XxHash3_64::oneshot(&head[..48]);
    XxHash3_64::oneshot_with_seed(seed, &head[HEADER..])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}
