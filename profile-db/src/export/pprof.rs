//! pprof's protocol buffer (github.com/google/pprof, proto/profile.proto), not compressed,
//! which its reader takes too. Only what this export needs of the encoding is here: varints
//! and length-delimited fields.

use std::collections::HashMap;

use super::Program;
use super::callgraph::CallGraph;

/// A message being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn number(&mut self, field: u64, value: u64) {
        if value != 0 {
            self.varint(field << 3);
            self.varint(value);
        }
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    fn message(&mut self, field: u64, fill: impl FnOnce(&mut Message)) {
        let mut message = Message::default();
        fill(&mut message);
        self.bytes(field, &message.0);
    }

    fn numbers(&mut self, field: u64, values: impl Iterator<Item = u64>) {
        let mut packed = Message::default();
        values.for_each(|value| packed.varint(value));
        self.bytes(field, &packed.0);
    }
}

/// The string table; its first entry is empty.
struct Strings {
    places: HashMap<String, u64>,
    all: Vec<String>,
}

impl Strings {
    fn place(&mut self, text: &str) -> u64 {
        if let Some(&place) = self.places.get(text) {
            return place;
        }
        let place = self.all.len() as u64;
        self.places.insert(text.to_owned(), place);
        self.all.push(text.to_owned());
        place
    }
}

/// The program's stacks, with a location a function.
pub fn pprof(program: &Program) -> Vec<u8> {
    let mut strings = Strings {
        places: HashMap::new(),
        all: Vec::new(),
    };
    strings.place("");
    let mut profile = Message::default();
    let (what, unit) = (strings.place("instructions"), strings.place("count"));
    // sample_type
    profile.message(1, |value| {
        value.number(1, what);
        value.number(2, unit);
    });
    for (stack, cost) in CallGraph::new(program).stacks() {
        // sample: locations, the leaf first, and values
        profile.message(2, |sample| {
            sample.numbers(1, stack.iter().rev().map(|&function| function as u64 + 1));
            sample.numbers(2, std::iter::once(cost));
        });
    }
    for (index, module) in program.modules.iter().enumerate() {
        let path = strings.place(&module.path);
        let build_id = strings.place(module.build_id.as_deref().unwrap_or_default());
        // mapping
        profile.message(3, |mapping| {
            mapping.number(1, index as u64 + 1);
            mapping.number(2, module.address);
            mapping.number(3, module.address.saturating_add(module.len));
            mapping.number(4, module.offset);
            mapping.number(5, path);
            mapping.number(6, build_id);
            mapping.number(7, 1); // has_functions
        });
    }
    for (index, function) in program.functions.iter().enumerate() {
        let id = index as u64 + 1;
        let line = function.source.as_ref().map_or(0, |source| source.line);
        // location
        profile.message(4, |location| {
            location.number(1, id);
            location.number(2, function.module as u64 + 1);
            location.number(3, function.start);
            location.message(4, |at| {
                at.number(1, id);
                at.number(2, line.into());
            });
        });
        let name = strings.place(&function.name);
        let file = function.source.as_ref().map_or("", |source| &source.file);
        let file = strings.place(file);
        // function
        profile.message(5, |message| {
            message.number(1, id);
            message.number(2, name);
            message.number(3, name);
            message.number(4, file);
            message.number(5, line.into());
        });
    }
    for text in &strings.all {
        profile.bytes(6, text.as_bytes());
    }
    // period_type and period: one sample is one instruction.
    profile.message(11, |value| {
        value.number(1, what);
        value.number(2, unit);
    });
    profile.number(12, 1);
    profile.0
}
