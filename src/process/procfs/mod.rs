//! /proc files about the process itself that must show the guest rather than Temper.

pub mod host_maps;
mod maps;
