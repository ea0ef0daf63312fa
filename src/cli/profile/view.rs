//! Profiles with names and addresses, as [exports](profile_db::export) take them.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use profile_db::export::{Block, Edge, Function, Module, Program};
use profile_db::{BlockRecord, ModuleId, ModuleProfile, Summary, Target};

use super::code::Code;
use super::image::Image;
use super::select::file_name;
use crate::decode::BlockEnd;

pub(super) fn path_of(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(path))
}

/// Builds a [`Program`].
struct Builder {
    program: Program,
    images: Vec<Image>,
    by_id: HashMap<ModuleId, usize>,
    /// Functions by module and start.
    functions: HashMap<(usize, u64), usize>,
}

impl Builder {
    fn module(&mut self, id: &ModuleId, path: &[u8]) -> usize {
        if let Some(&module) = self.by_id.get(id) {
            return module;
        }
        let module = self.program.modules.len();
        let path = path_of(path);
        let code = Code::of_module(path, id);
        let (address, len, offset) = code.and_then(|code| code.segment()).unwrap_or((0, 0, 0));
        self.program.modules.push(Module {
            path: path.to_string_lossy().into_owned(),
            build_id: match id {
                ModuleId::BuildId(_) => Some(id.file_stem()[1..].to_owned()),
                ModuleId::Content(_) => None,
            },
            address,
            len,
            offset,
        });
        let image = Image::of_module(path, id).unwrap_or_default();
        self.images.push(image);
        self.by_id.insert(id.clone(), module);
        module
    }

    /// The function at a file offset, and the address there.
    fn place(&mut self, module: usize, offset: u64) -> (usize, u64) {
        let image = &self.images[module];
        let address = image.address(offset);
        let (start, end, name, symbol) = match image.function(address) {
            Some(known) => (
                known.start,
                known.end,
                known.name.clone(),
                known.symbol.clone(),
            ),
            // Nothing says where functions begin: pages at least tell regions apart.
            None => {
                let start = address & !0xfff;
                (start, start + 0x1000, format!("{start:#x}.."), None)
            }
        };
        let next = self.program.functions.len();
        let function = *self.functions.entry((module, start)).or_insert(next);
        if function == next {
            self.program.functions.push(Function {
                name,
                symbol,
                module,
                start,
                end,
                source: None,
            });
        }
        (function, address)
    }
}

/// What is known of a module that profiles only name.
fn known_path(known: &[Summary], id: &ModuleId) -> Vec<u8> {
    let found = known.iter().find(|k| k.module.id == *id);
    found.map_or_else(|| id.to_string().into_bytes(), |k| k.module.path.clone())
}

/// The program that `profiles` are of; `known` are the modules on record.
pub(super) fn program(profiles: &[ModuleProfile], known: &[Summary]) -> Program {
    let mut builder = Builder {
        program: Program {
            name: profiles
                .first()
                .map_or(String::new(), |p| file_name(&p.module.path)),
            ..Program::default()
        },
        images: Vec::new(),
        by_id: HashMap::new(),
        functions: HashMap::new(),
    };
    for profile in profiles {
        builder.module(&profile.module.id, &profile.module.path);
    }
    for profile in profiles {
        let module = builder.by_id[&profile.module.id];
        let code = Code::of_module(path_of(&profile.module.path), &profile.module.id);
        let first = builder.program.blocks.len();
        let counts = &profile.counts;
        for record in &counts.blocks {
            let block = block(&mut builder, module, record, code.as_ref());
            builder.program.blocks.push(block);
        }
        for edge in &counts.edges {
            // Both lists are sorted by place.
            let at = counts
                .blocks
                .partition_point(|block| block.offset < edge.from);
            if counts
                .blocks
                .get(at)
                .is_none_or(|block| block.offset != edge.from)
            {
                continue;
            }
            let to = match edge.to {
                Target::Here(offset) => Some(builder.place(module, offset)),
                Target::There { module, offset } => {
                    let id = &counts.others[module as usize];
                    let module = builder.module(id, &known_path(known, id));
                    Some(builder.place(module, offset))
                }
                Target::Elsewhere => None,
            };
            builder.program.edges.push(Edge {
                from: first + at,
                kind: edge.kind,
                to,
                count: edge.count,
            });
        }
        if let Some(code) = &code {
            for function in &mut builder.program.functions {
                if function.module == module {
                    function.source = code.line(function.start);
                }
            }
        }
    }
    builder.program
}

fn block(builder: &mut Builder, module: usize, record: &BlockRecord, code: Option<&Code>) -> Block {
    let (function, address) = builder.place(module, record.offset);
    let decoded = code.and_then(|code| code.block(address));
    // Without the file: some four bytes an instruction.
    let (instructions, last) = match &decoded {
        Some(decoded) if !decoded.instructions.is_empty() => {
            let last = decoded
                .instructions
                .last()
                .map_or(address, |last| last.ip());
            (decoded.instructions.len() as u32, last)
        }
        Some(_) | None => (record.len.div_ceil(4), address),
    };
    Block {
        function,
        address,
        len: record.len,
        instructions,
        last,
        is_split: decoded.is_some_and(|decoded| match decoded.end {
            BlockEnd::Next { .. } | BlockEnd::Syscall { .. } | BlockEnd::InterpretOne { .. } => {
                true
            }
            BlockEnd::Jump { .. }
            | BlockEnd::Branch { .. }
            | BlockEnd::Call { .. }
            | BlockEnd::IndirectJump
            | BlockEnd::IndirectCall { .. }
            | BlockEnd::Return { .. } => false,
        }),
        count: record.count,
        source: code.and_then(|code| code.line(address)),
    }
}
