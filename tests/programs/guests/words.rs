// Collections, iterators, formatting, trait objects, panics caught and not.
use std::collections::{BTreeMap, HashSet};
use std::fmt::Write;

trait Step {
    fn step(&mut self, value: u64) -> u64;
}
struct Add(u64);
struct Rotate(u32);
impl Step for Add {
    fn step(&mut self, value: u64) -> u64 {
        self.0 += 1;
        value.wrapping_add(self.0)
    }
}
impl Step for Rotate {
    fn step(&mut self, value: u64) -> u64 {
        value.rotate_left(self.0) ^ 0x9e37_79b9_7f4a_7c15
    }
}

fn main() {
    // The usual message names the thread by its number, which changes from run to run.
    std::panic::set_hook(Box::new(|info| eprintln!("panic at {:?}", info.location())));
    let word = std::env::args().nth(1).unwrap_or_default();
    if word == "panic" {
        let empty: Vec<u32> = Vec::new();
        let index = word.len();
        println!("{}", empty[index]);
    }
    let seed: u64 = word.parse().unwrap_or(1);
    let mut steps: Vec<Box<dyn Step>> = vec![Box::new(Add(seed)), Box::new(Rotate(13)), Box::new(Add(99))];
    let mut value = seed;
    let mut lengths: BTreeMap<usize, u32> = BTreeMap::new();
    let mut seen = HashSet::new();
    for round in 0..30_000 {
        value = steps[round % 3].step(value);
        let text = (value % 100_000).to_string();
        *lengths.entry(text.len()).or_default() += 1;
        seen.insert(text);
    }
    let mut out = String::new();
    for (length, count) in &lengths {
        write!(out, "{length}:{count} ").expect("a String takes all");
    }
    println!("{out}{} {value:016x} {:?}", seen.len(), (value as f64).sqrt());
    let caught = std::panic::catch_unwind(|| {
        let divisor = std::hint::black_box(0u64);
        seed / divisor
    });
    println!("{}", if caught.is_err() { "caught" } else { "not caught" });
    let sorted = {
        let mut words: Vec<_> = seen.into_iter().collect();
        words.sort_unstable_by(|a, b| b.cmp(a));
        words
    };
    println!("{:?}", &sorted[..3]);
    std::process::exit(seed as i32);
}
