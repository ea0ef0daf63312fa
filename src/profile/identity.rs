//! Names modules by their content: the GNU build-id note, else a hash of a sample of the
//! file. Identification happens when a program starts, so it reads little (one read of a
//! page for most files) and remembers each file by device, inode, time and size.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use hashbrown::HashMap;
use object::elf::{ELF_NOTE_GNU, FileHeader32, FileHeader64, NT_GNU_BUILD_ID, PT_NOTE};
use object::read::elf::{FileHeader, NoteIterator, ProgramHeader};
use object::{Endianness, FileKind};
use profile_db::{ModuleId, module_content_hash};

/// The first read: the headers and, as linkers place them, the notes.
const FIRST_READ: usize = 4096;
/// A note segment is never longer; a hostile size isn't believed.
const MAX_NOTES: u64 = 64 << 10;
/// A file without a build-id is named by this many evenly spread pages, so files up to
/// 256 KiB by all of their content.
const SAMPLE_PAGES: u64 = 64;
const PAGE: u64 = 4096;

/// A file's identity.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    pub id: ModuleId,
    /// The file's size in bytes.
    pub size: u64,
}

/// What makes two openings the same file, unchanged.
#[derive(PartialEq, Eq, Hash)]
struct FileKey {
    device: u64,
    inode: u64,
    modified: (i64, i64),
    size: u64,
}

impl FileKey {
    fn new(metadata: &Metadata) -> FileKey {
        FileKey {
            device: metadata.dev(),
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            size: metadata.len(),
        }
    }
}

/// Identifies files, each once.
#[derive(Default)]
pub struct Identities {
    known: HashMap<FileKey, Identity>,
}

impl Identities {
    pub fn new() -> Identities {
        Identities::default()
    }

    /// The identity of an open file; its position doesn't matter and stays.
    ///
    /// # Errors
    /// Those of reading the file.
    pub fn identify(&mut self, file: &File) -> io::Result<Identity> {
        let metadata = file.metadata()?;
        let key = FileKey::new(&metadata);
        if let Some(identity) = self.known.get(&key) {
            return Ok(identity.clone());
        }
        let identity = Identity {
            id: module_id(file, metadata.len())?,
            size: metadata.len(),
        };
        self.known.insert(key, identity.clone());
        Ok(identity)
    }
}

/// The name of a file of `size` bytes.
fn module_id(file: &File, size: u64) -> io::Result<ModuleId> {
    let mut first = vec![0; FIRST_READ.min(size as usize)];
    file.read_exact_at(&mut first, 0)?;
    let build_id = match FileKind::parse(&first[..]) {
        Ok(FileKind::Elf64) => build_id::<FileHeader64<Endianness>>(file, size, &first),
        Ok(FileKind::Elf32) => build_id::<FileHeader32<Endianness>>(file, size, &first),
        Ok(_) | Err(_) => None,
    };
    match build_id {
        Some(id) => Ok(id),
        None => Ok(ModuleId::Content(content_hash(file, size)?)),
    }
}

/// The build-id note; `None` where there is none or the headers make no sense.
fn build_id<H: FileHeader<Endian = Endianness>>(
    file: &File,
    size: u64,
    first: &[u8],
) -> Option<ModuleId> {
    let header = H::parse(first).ok()?;
    let endian = header.endian().ok()?;
    for segment in header.program_headers(endian, first).ok()? {
        if segment.p_type(endian) != PT_NOTE {
            continue;
        }
        let offset: u64 = segment.p_offset(endian).into();
        let len = segment.p_filesz(endian).into().min(MAX_NOTES);
        let end = offset.checked_add(len).filter(|&end| end <= size)?;
        let read;
        let notes = match first.get(offset as usize..end as usize) {
            Some(notes) => notes,
            None => {
                let mut buffer = vec![0; len as usize];
                file.read_exact_at(&mut buffer, offset).ok()?;
                read = buffer;
                &read[..]
            }
        };
        let mut notes = NoteIterator::<H>::new(endian, segment.p_align(endian), notes).ok()?;
        while let Ok(Some(note)) = notes.next() {
            if note.name() == ELF_NOTE_GNU && note.n_type(endian) == NT_GNU_BUILD_ID {
                return ModuleId::from_build_id(note.desc());
            }
        }
    }
    None
}

fn content_hash(file: &File, size: u64) -> io::Result<[u8; 16]> {
    let pages = size.div_ceil(PAGE);
    let samples = pages.min(SAMPLE_PAGES);
    let mut sample = vec![0; (samples * PAGE) as usize];
    let mut filled = 0;
    for index in 0..samples {
        // Spread so that the first and the last page are among them.
        let page = if samples > 1 {
            index * (pages - 1) / (samples - 1)
        } else {
            0
        };
        let len = PAGE.min(size - page * PAGE) as usize;
        file.read_exact_at(&mut sample[filled..filled + len], page * PAGE)?;
        filled += len;
    }
    Ok(module_content_hash(size, &[&sample[..filled]]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn identify(bytes: &[u8]) -> Identity {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Identities::new().identify(&file).unwrap()
    }

    #[test]
    fn a_build_id_names_a_module() {
        // Debian's own programs carry build-ids; `file` and readelf print the same bytes.
        let file = File::open("/bin/true").unwrap();
        let mut identities = Identities::new();
        let identity = identities.identify(&file).unwrap();
        let ModuleId::BuildId(id) = &identity.id else {
            println!("skipped: /bin/true has no build-id here");
            return;
        };
        assert_eq!(id.len(), 20);
        let content = std::fs::read("/bin/true").unwrap();
        assert!(content.windows(20).any(|window| window == &id[..]));
        assert_eq!(identity.size, content.len() as u64);
        assert_eq!(identities.identify(&file).unwrap(), identity);
        assert_eq!(identities.known.len(), 1);
        // A copy elsewhere is the same module.
        assert_eq!(identify(&content), identity);
    }

    #[test]
    fn a_file_without_one_is_named_by_its_content() {
        let mut bytes = vec![7u8; 3 << 20];
        let whole = identify(&bytes);
        assert!(matches!(whole.id, ModuleId::Content(_)));
        for at in [0, bytes.len() - 1] {
            bytes[at] ^= 1;
            assert_ne!(identify(&bytes).id, whole.id);
            bytes[at] ^= 1;
        }
        assert_eq!(identify(&bytes).id, whole.id);
        // Small files count in full.
        let mut small = vec![1u8; 200_000];
        let before = identify(&small);
        small[123_456] = 2;
        assert_ne!(identify(&small).id, before.id);
        assert_eq!(identify(b"").size, 0);
    }

    #[test]
    fn truncated_and_mutated_elf_files_are_named_without_harm() {
        let Ok(content) = std::fs::read("/bin/true") else {
            println!("skipped: no /bin/true");
            return;
        };
        for len in 0..1200.min(content.len()) {
            identify(&content[..len]);
        }
        let mut mutated = content.clone();
        for at in 0..1200.min(content.len()) {
            mutated[at] = 0xff;
            identify(&mutated);
            mutated[at] = content[at];
        }
    }
}
