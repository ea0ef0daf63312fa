//! Randomly generated instructions, each run on the bare CPU (in a child process) and by
//! Temper's executors from the same state; everything they leave behind must be equal.
//!
//! TEMPER_INSTRUCTION_CASES: how many (default 60,000). TEMPER_INSTRUCTION_SEED: repeats a
//! run. TEMPER_INSTRUCTION_ONLY: a substring of the instruction codes to test (see iced's
//! `Code`), as in `Vpadd` or `Imul_r64_rm64`.

mod aim;
mod bare;
mod compare;
mod executors;
mod machine;
mod scope;
mod shape;
mod software;
mod tier1;
mod values;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use iced_x86::{Code, Mnemonic};
use temper::guest::GuestTrap;

use bare::{BATCH, BareCpu};
use executors::Executor;
use machine::{Case, Outcome};
use values::Rng;

const DEFAULT_CASES: usize = 60_000;
/// Mismatches that are printed in full: in all, and of one mnemonic.
const SHOWN: usize = 60;
const SHOWN_OF_ONE: usize = 2;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn every_instruction_does_what_the_bare_cpu_does() {
    let seed = setting("TEMPER_INSTRUCTION_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now();
        now.duration_since(std::time::UNIX_EPOCH)
            .map_or(1, |t| t.as_nanos() as u64 >> 10)
    });
    let cases = setting("TEMPER_INSTRUCTION_CASES").map_or(DEFAULT_CASES, |n| n as usize);
    let only = std::env::var("TEMPER_INSTRUCTION_ONLY").unwrap_or_default();
    println!("TEMPER_INSTRUCTION_SEED={seed} TEMPER_INSTRUCTION_CASES={cases}");

    let mut rng = Rng(seed);
    let mut run = Run::default();
    let codes = shuffled_codes(&only, &mut run, &mut rng);
    assert!(!codes.is_empty(), "no instruction code contains {only:?}");
    let mut bare = BareCpu::start();
    let mut executors = executors::all();
    let mut next = codes.iter().copied().cycle();
    let mut made = 0;
    while made < cases {
        let memory = rng.memory();
        let batch: Vec<Case> = (0..BATCH.min(cases - made))
            .filter_map(|_| {
                let code = next.next().expect("endless");
                let shape = shape::shape(code, &mut rng);
                if shape.is_none() {
                    run.unencodable.insert(code.mnemonic());
                }
                Some(aim::case(shape?, &memory, &mut rng))
            })
            .collect();
        made += BATCH.min(cases - made);
        let outcomes = bare.run(&batch);
        for (case, outcome) in batch.iter().zip(&outcomes) {
            run.check(case, outcome.as_ref(), &mut executors);
        }
    }
    run.report(&executors);
    assert!(
        run.mismatches == 0,
        "{} mismatches; repeat with TEMPER_INSTRUCTION_SEED={seed}",
        run.mismatches
    );
}

/// All codes that can be compared, in random order.
fn shuffled_codes(only: &str, run: &mut Run, rng: &mut Rng) -> Vec<Code> {
    let mut codes: Vec<Code> = Code::values()
        .filter(|code| format!("{code:?}").contains(only))
        .filter(|&code| match scope::left_out(code) {
            None => true,
            Some(why) => {
                if code.op_code().mode64() {
                    run.left_out.entry(why).or_default().insert(code.mnemonic());
                }
                false
            }
        })
        .collect();
    for i in (1..codes.len()).rev() {
        codes.swap(i, rng.below(i as u64 + 1) as usize);
    }
    codes
}

/// What has been seen so far.
#[derive(Default)]
struct Run {
    cases: usize,
    faults: usize,
    mismatches: usize,
    shown: usize,
    mismatched: BTreeMap<(&'static str, Mnemonic), usize>,
    /// By executor: cases compared.
    compared: BTreeMap<&'static str, usize>,
    /// By executor: mnemonics that it never ran though the CPU has them.
    not_run: BTreeMap<&'static str, BTreeSet<Mnemonic>>,
    ran: BTreeMap<&'static str, BTreeSet<Mnemonic>>,
    /// Mnemonics that the bare CPU executed or faulted on otherwise than by #UD.
    on_this_cpu: BTreeSet<Mnemonic>,
    unknown_to_cpu: BTreeSet<Mnemonic>,
    unencodable: BTreeSet<Mnemonic>,
    left_out: BTreeMap<&'static str, BTreeSet<Mnemonic>>,
    lost: BTreeSet<Mnemonic>,
}

impl Run {
    fn check(&mut self, case: &Case, bare: Option<&Outcome>, executors: &mut [Box<dyn Executor>]) {
        self.cases += 1;
        let mnemonic = case.instruction.mnemonic();
        let Some(bare) = bare else {
            self.lost.insert(mnemonic);
            return;
        };
        self.faults += usize::from(bare.trap.is_some());
        if bare.trap == Some(GuestTrap::InvalidOpcode) {
            self.unknown_to_cpu.insert(mnemonic);
        } else {
            self.on_this_cpu.insert(mnemonic);
        }
        if machine::in_the_engines_memory(bare.trap) {
            return;
        }
        for executor in executors {
            let name = executor.name();
            let Some(ours) = executor.run(case, bare) else {
                self.not_run.entry(name).or_default().insert(mnemonic);
                continue;
            };
            *self.compared.entry(name).or_default() += 1;
            self.ran.entry(name).or_default().insert(mnemonic);
            let exact = executor.undefined_flags_match();
            let differences = compare::differences(case, bare, &ours, exact);
            if differences.is_empty() {
                continue;
            }
            self.mismatches += 1;
            let of_this = self.mismatched.entry((name, mnemonic)).or_default();
            *of_this += 1;
            if *of_this <= SHOWN_OF_ONE && self.shown < SHOWN {
                self.shown += 1;
                println!("{}", describe(name, case, bare, &differences));
            }
        }
    }

    fn report(&self, executors: &[Box<dyn Executor>]) {
        println!("{} cases, {} of them faults", self.cases, self.faults);
        let missing: BTreeSet<_> = self
            .unknown_to_cpu
            .difference(&self.on_this_cpu)
            .copied()
            .collect();
        print_list("not on this CPU (#UD everywhere)", &missing);
        for (why, mnemonics) in &self.left_out {
            let only_left_out: BTreeSet<_> = mnemonics
                .difference(&self.on_this_cpu)
                .filter(|m| !missing.contains(m))
                .copied()
                .collect();
            print_list(&format!("not compared: {why}"), &only_left_out);
        }
        let never: BTreeSet<_> = self
            .unencodable
            .iter()
            .filter(|m| !self.on_this_cpu.contains(m) && !missing.contains(m))
            .copied()
            .collect();
        print_list(
            "not compared: no encoding that the decoder gives back",
            &never,
        );
        print_list("not compared: killed the bare CPU's process", &self.lost);
        for executor in executors {
            let name = executor.name();
            let compared = self.compared.get(name).copied().unwrap_or(0);
            println!("{name}: {compared} cases compared");
            let empty = BTreeSet::new();
            let ran = self.ran.get(name).unwrap_or(&empty);
            let not_run: BTreeSet<_> = self
                .not_run
                .get(name)
                .unwrap_or(&empty)
                .difference(ran)
                .copied()
                .collect();
            print_list(&format!("{name}: not executed"), &not_run);
            let mut line = String::new();
            for ((_, mnemonic), count) in self.mismatched.iter().filter(|((n, _), _)| *n == name) {
                let _ = write!(line, " {mnemonic:?}:{count}");
            }
            if !line.is_empty() {
                println!("{name}: mismatches:{line}");
            }
        }
    }
}

fn print_list(title: &str, mnemonics: &BTreeSet<Mnemonic>) {
    if mnemonics.is_empty() {
        return;
    }
    let mut line = format!("{title} ({}):", mnemonics.len());
    for mnemonic in mnemonics {
        let _ = write!(line, " {mnemonic:?}");
    }
    println!("{}", line.to_lowercase());
}

fn describe(executor: &str, case: &Case, bare: &Outcome, differences: &[String]) -> String {
    let mut text = String::new();
    let bytes: Vec<String> = case.bytes.iter().map(|b| format!("{b:02x}")).collect();
    let mut listing = String::new();
    iced_x86::Formatter::format(
        &mut iced_x86::GasFormatter::new(),
        &case.instruction,
        &mut listing,
    );
    let _ = writeln!(
        text,
        "MISMATCH in {executor}: {listing}   ({:?}; {})",
        case.instruction.code(),
        bytes.join(" ")
    );
    if let Some(trap) = bare.trap {
        let rip = bare.state.cpu.rip;
        let _ = writeln!(text, "    the bare CPU traps at {rip:#x}: {trap:?}");
    }
    for difference in differences {
        let _ = writeln!(text, "    {difference}");
    }
    text
}
