//! Whole machines: every image on the software engine, on the host's KVM where that can, and
//! across both; snapshots; what can't be booted; a Linux kernel; and all of it again on the
//! complete KVM that QEMU's emulated SVM gives, where QEMU is installed.

mod bad_images;
mod debugger;
mod engines;
mod guests;
mod linux;
mod snapshots;
#[path = "../support/mod.rs"]
mod support;
