//! Promotion to translation blocks: which blocks a fragment takes in. A fragment follows
//! control flow through blocks that were seen to run and are not translated yet, along the
//! more frequent side of each branch.

use std::fmt::Write as _;

use super::Settings;
use super::code::Code;
use super::threads::Threads;
use crate::addr::GuestAddr;
use crate::decode::{Block, Decoder, MAX_BLOCK_INSTRUCTIONS};
use crate::guest::{GuestEnv, GuestTrap, Watched};
use crate::profile::Tier;
use crate::translate::{self, Plan, TranslateError, Translator};

/// Bytes of code and stubs that one fragment may take.
pub(super) const MAX_FRAGMENT: usize = 16 << 10;
const MAX_BLOCKS: usize = 96;

/// What a promotion made.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Promoted {
    pub blocks: u64,
    /// Of those, blocks that weren't interpreted before.
    pub from_profile: u64,
    pub instructions: u64,
    pub guest_bytes: u64,
    pub code_bytes: u64,
}

struct Follow<'a, E: GuestEnv> {
    code: &'a mut Code<E::Memory>,
    env: &'a mut E,
    single: bool,
    dump: bool,
    /// The block decoded last: to be interpreted, or to see whether earlier runs knew it.
    looked_at: Block,
    from_profile: u64,
}

impl<E: GuestEnv> Follow<'_, E> {
    fn look_at(&mut self, addr: GuestAddr) -> bool {
        if self.looked_at.start == addr && self.looked_at.len > 0 {
            return true;
        }
        let decoder = self.code.decoder;
        let memory = self.env.memory();
        let decoded = decoder.block_into(memory, addr, MAX_BLOCK_INSTRUCTIONS, &mut self.looked_at);
        if decoded.is_err() {
            self.looked_at.len = 0;
        }
        decoded.is_ok()
    }

    /// Earlier runs had this block translated.
    fn known(&mut self, addr: GuestAddr) -> bool {
        if !self.code.profile.may_be_known(addr) {
            return false;
        }
        self.look_at(addr)
            && self
                .code
                .profile
                .known_hot(addr, &self.looked_at.bytes)
                .is_some()
    }
}

impl<E: GuestEnv> Plan for Follow<'_, E> {
    fn block(&mut self, addr: GuestAddr, into: &mut Block) -> bool {
        if !self.look_at(addr) {
            return false;
        }
        std::mem::swap(&mut self.looked_at, into);
        self.looked_at.len = 0;
        let decoder = self.code.decoder;
        match self.env.watch_code(into.range(), &self.code.threads) {
            Watched::Already => {}
            Watched::Newly => {
                match decode_watched(&decoder, &self.code.threads, self.env, addr, into) {
                    Ok(true) => {}
                    Ok(false) | Err(_) => return false,
                }
            }
            Watched::Refused => return false,
        }
        if self.dump {
            eprintln!("{}", describe(into));
        }
        let id = match self.code.profile.find(addr) {
            Some(id) => id,
            None => {
                self.from_profile += 1;
                self.code.profile.block_id(into)
            }
        };
        self.code.profile.set_tier(id, Tier::Block);
        true
    }

    fn wants(&mut self, addr: GuestAddr) -> bool {
        if self.single || self.code.cache.contains(addr) || self.code.awaits_reuse(addr) {
            return false;
        }
        let profile = &self.code.profile;
        match profile.find(addr) {
            Some(id) if profile.is_untranslatable(id) => false,
            // Seen to run, or translated before and evicted.
            Some(id) if profile.visits(id) > 0 || profile.tier(id) > Tier::Interpreted => true,
            Some(_) | None => self.known(addr),
        }
    }

    fn usually_taken(&mut self, start: GuestAddr) -> bool {
        let profile = &self.code.profile;
        profile
            .find(start)
            .is_some_and(|id| profile.usually_taken(id))
    }

    fn reached_indirectly(&mut self, addr: GuestAddr) -> bool {
        self.code.indirect_targets.contains(&addr)
    }

    fn counter(&mut self, addr: GuestAddr) -> Option<u32> {
        let counters = self.code.counters.as_mut()?;
        let id = self.code.profile.find(addr)?;
        if self.code.profile.is_path_head(id) {
            counters.cell(addr)
        } else {
            None
        }
    }
}

/// Decodes the block at `pc` as it will stay until the surroundings report a change. False:
/// it changes too often for that.
///
/// # Errors
/// The trap of fetching or decoding.
pub(super) fn decode_watched<E: GuestEnv>(
    decoder: &Decoder,
    threads: &Threads,
    env: &mut E,
    pc: GuestAddr,
    into: &mut Block,
) -> Result<bool, GuestTrap> {
    loop {
        decoder.block_into(env.memory(), pc, MAX_BLOCK_INSTRUCTIONS, into)?;
        match env.watch_code(into.range(), threads) {
            Watched::Already => return Ok(true),
            // Another thread may have changed it between the two.
            Watched::Newly => {}
            Watched::Refused => return Ok(false),
        }
    }
}

/// Translates the code at `head` and installs it.
///
/// # Errors
/// The head can't be translated; the interpreter goes on.
pub(super) fn promote<E: GuestEnv>(
    code: &mut Code<E::Memory>,
    translator: &mut Translator,
    env: &mut E,
    settings: &Settings,
    head: GuestAddr,
) -> Result<Promoted, TranslateError> {
    let max_bytes = MAX_FRAGMENT.min(code.cache.max_fragment());
    code.make_room(max_bytes);
    let space = code.cache.reserve(max_bytes);
    let translate_settings = translate::Settings {
        code_base: code.cache.exec_addr(space.code_at),
        stubs_end: code.cache.exec_addr(space.stubs_end),
        max_bytes,
        max_blocks: MAX_BLOCKS,
        exact_indirect: code.exact_indirect,
    };
    let looked_at = std::mem::take(&mut code.scratch);
    let mut plan = Follow {
        code: &mut *code,
        env,
        single: settings.verify,
        dump: settings.dump.decode,
        looked_at,
        from_profile: 0,
    };
    let translated = translator.translate(head, &mut plan, translate_settings);
    let from_profile = plan.from_profile;
    let looked_at = std::mem::take(&mut plan.looked_at);
    code.scratch = looked_at;
    let translation = translated?;
    for &site in translation.return_sites {
        code.indirect_targets.insert(site);
        code.cache.map.prepare(site);
    }
    let fragment = translation.fragment;
    let promoted = Promoted {
        blocks: fragment.entries.len() as u64,
        from_profile,
        instructions: translation.instructions,
        guest_bytes: fragment
            .entries
            .iter()
            .map(|entry| u64::from(entry.guest_len))
            .sum(),
        code_bytes: (fragment.code.len() + fragment.stubs.len()) as u64,
    };
    code.cache.install(space, fragment, !settings.verify);
    code.fragments += 1;
    if settings.dump.fragments
        && let Some((start, bytes)) = code.cache.code_of(head)
    {
        eprintln!(
            "fragment {head} at {start}:\n{}",
            disassemble(start.0, &bytes)
        );
    }
    Ok(promoted)
}

/// A guest block as text.
pub(super) fn describe(block: &Block) -> String {
    let mut text = format!("block {}:\n", block.start);
    for instruction in &block.instructions {
        let _ = writeln!(text, "  {:#x}  {instruction}", instruction.ip());
    }
    let _ = write!(text, "  -> {:?}", block.end);
    text
}

fn disassemble(start: u64, bytes: &[u8]) -> String {
    let mut text = String::new();
    for instruction in iced_x86::Decoder::with_ip(64, bytes, start, 0) {
        let _ = writeln!(text, "  {:#x}  {instruction}", instruction.ip());
    }
    text
}
