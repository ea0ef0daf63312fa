//! Credentials and namespaces: the kernel's, and to it each thread's own. Threads of
//! Temper's that the program doesn't know of would keep the old ones, and some calls fail
//! while there are such threads.

use super::Call;
use crate::guest::CodeControl;
use crate::host::syscall::SyscallResult;

pub(super) fn carry_out(call: Call, code: &mut dyn CodeControl) -> SyscallResult {
    code.finish_workers();
    // With the world's lock held, so that no new one starts meanwhile.
    call.pass(call.args)
}

/// Whether a prctl(2) option changes credentials.
pub(super) fn is_credential_option(option: i32) -> bool {
    matches!(
        option,
        libc::PR_SET_KEEPCAPS
            | libc::PR_SET_SECUREBITS
            | libc::PR_CAPBSET_DROP
            | libc::PR_CAP_AMBIENT
            | libc::PR_SET_NO_NEW_PRIVS
    )
}
