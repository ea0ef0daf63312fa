//! From a host address in generated code back to the guest state.
//!
//! Each fragment carries a compact list of points, in ascending order: from this host
//! offset on, the guest is at this address, and this [`Fix`] turns the CPU's registers into
//! the guest's. Written by the translator, read when a fault or a signal interrupts
//! generated code.

use iced_x86::Register;

use crate::addr::GuestAddr;
use crate::guest::{CpuState, Gpr, ThreadContext};

/// How the CPU's registers differ from the guest's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fix {
    /// Not at all.
    Exact,
    /// Guest r11 is in its slot.
    R11InSlot,
    /// The branch is done but for the jump: r11 holds the target, guest r11 is in its slot,
    /// and `pop` bytes are still to be dropped from the stack. Subtracting `undo` from rsp
    /// gives back the state before the branch.
    Jumping { pop: u16, undo: i32 },
    /// This register is in the first spill slot.
    Spilled(Register),
}

/// Collects points while code is generated.
#[derive(Default)]
pub struct Recorder {
    bytes: Vec<u8>,
    host: u32,
    guest: u64,
}

impl Recorder {
    /// From host offset `host` on, the guest is at `guest` with `fix`.
    pub fn point(&mut self, host: u32, guest: GuestAddr, fix: Fix) {
        let delta = host - self.host;
        let guest_delta = guest.0.wrapping_sub(self.guest) as i64;
        let kind = match fix {
            Fix::Exact => 0,
            Fix::R11InSlot => 1,
            Fix::Jumping { .. } => 2,
            Fix::Spilled(_) => 3,
        };
        // Nearly all points: an exact one, a few bytes further on both sides.
        if kind == 0 && delta < 16 && (0..16).contains(&guest_delta) {
            self.bytes.push(delta as u8);
            self.bytes.push(guest_delta as u8);
        } else {
            self.bytes.push(0x80 | kind);
            varint(&mut self.bytes, u64::from(delta));
            varint(
                &mut self.bytes,
                ((guest_delta << 1) ^ (guest_delta >> 63)) as u64,
            );
            match fix {
                Fix::Jumping { pop, undo } => {
                    varint(&mut self.bytes, u64::from(pop));
                    self.bytes.extend_from_slice(&undo.to_le_bytes());
                }
                Fix::Spilled(reg) => self.bytes.push(reg.number() as u8),
                Fix::Exact | Fix::R11InSlot => {}
            }
        }
        self.host = host;
        self.guest = guest.0;
    }

    /// The points so far, in the form that [`points`] reads: relative to where they began, so
    /// that they hold wherever the code lies.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Starts over, for code whose first guest address is `head`.
    pub fn restart(&mut self, head: GuestAddr) {
        self.bytes.clear();
        self.host = 0;
        self.guest = head.0;
    }

    /// Takes over points that were recorded before.
    pub fn copy(&mut self, points: &[u8]) {
        self.bytes.extend_from_slice(points);
    }
}

fn varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn read_varint(bytes: &mut std::slice::Iter<'_, u8>) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.next()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn read_i32(bytes: &mut std::slice::Iter<'_, u8>) -> Option<i32> {
    let mut value = [0; 4];
    for byte in &mut value {
        *byte = *bytes.next()?;
    }
    Some(i32::from_le_bytes(value))
}

/// All points of a fragment that starts at `head`: host offset, guest address, fix.
pub fn points(
    recovery: &[u8],
    head: GuestAddr,
) -> impl Iterator<Item = (u32, GuestAddr, Fix)> + '_ {
    let mut bytes = recovery.iter();
    let (mut host, mut guest) = (0u32, head.0);
    std::iter::from_fn(move || {
        let first = *bytes.next()?;
        let fix = if first & 0x80 == 0 {
            host = host.wrapping_add(u32::from(first));
            guest = guest.wrapping_add(u64::from(*bytes.next()?));
            Fix::Exact
        } else {
            host = host.wrapping_add(read_varint(&mut bytes)? as u32);
            let zigzag = read_varint(&mut bytes)?;
            let delta = (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64);
            guest = guest.wrapping_add_signed(delta);
            match first & 0x7f {
                0 => Fix::Exact,
                1 => Fix::R11InSlot,
                2 => Fix::Jumping {
                    pop: read_varint(&mut bytes)? as u16,
                    undo: read_i32(&mut bytes)?,
                },
                3 => Fix::Spilled(gpr64(*bytes.next()?)),
                _ => return None,
            }
        };
        Some((host, GuestAddr(guest), fix))
    })
}

fn gpr64(number: u8) -> Register {
    Register::RAX + u32::from(number & 15)
}

/// The point that holds at `offset`.
pub fn point_at(recovery: &[u8], head: GuestAddr, offset: u32) -> Option<(GuestAddr, Fix)> {
    points(recovery, head)
        .take_while(|&(host, _, _)| host <= offset)
        .last()
        .map(|(_, guest, fix)| (guest, fix))
}

/// Where a recovered guest is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// At the instruction that was interrupted.
    AtInstruction,
    /// Between instructions, on its way to `cpu.rip`.
    OnTheWay,
    /// At an indirect branch whose target is no canonical address: the branch itself faults.
    AtWildBranch,
}

/// Turns registers as generated code left them into the guest's, RIP included.
pub fn apply(ctx: &mut ThreadContext, guest: GuestAddr, fix: Fix) -> Place {
    let slot = ctx.r11_slot;
    let spilled = ctx.spill[0];
    let cpu: &mut CpuState = &mut ctx.cpu;
    cpu.rip = guest.0;
    match fix {
        Fix::Exact => {}
        Fix::R11InSlot => cpu.set(Gpr::R11, slot),
        Fix::Jumping { pop, undo } => {
            let target = cpu.get(Gpr::R11);
            let stack = cpu.get(Gpr::Rsp);
            cpu.set(Gpr::R11, slot);
            return if is_canonical(target) {
                cpu.rip = target;
                cpu.set(Gpr::Rsp, stack.wrapping_add(u64::from(pop)));
                Place::OnTheWay
            } else {
                cpu.set(Gpr::Rsp, stack.wrapping_sub(i64::from(undo) as u64));
                Place::AtWildBranch
            };
        }
        Fix::Spilled(reg) => cpu.gpr[reg.number() & 15] = spilled,
    }
    Place::AtInstruction
}

/// Whether an address has all upper bits alike (48-bit linear addresses; Intel SDM volume 1,
/// section 3.3.7.1).
fn is_canonical(addr: u64) -> bool {
    ((addr as i64) << 16 >> 16) as u64 == addr
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_read_back_as_written() {
        let written = [
            (0, GuestAddr(0x40_1000), Fix::Exact),
            (3, GuestAddr(0x40_1003), Fix::Exact),
            (12, GuestAddr(0x40_1003), Fix::R11InSlot),
            (
                14,
                GuestAddr(0x40_1003),
                Fix::Jumping { pop: 300, undo: -8 },
            ),
            (400, GuestAddr(0x1000), Fix::Spilled(Register::R13)),
        ];
        let mut recorder = Recorder::default();
        let head = GuestAddr(0x40_0ff0);
        recorder.restart(head);
        for (host, guest, fix) in written {
            recorder.point(host, guest, fix);
        }
        let bytes = recorder.bytes();
        assert_eq!(points(bytes, head).collect::<Vec<_>>(), written);
        assert_eq!(
            point_at(bytes, head, 13),
            Some((GuestAddr(0x40_1003), Fix::R11InSlot))
        );
    }
}
