//! The superblock optimizer of Temper: hot regions of guest code in, faster code for them out.
//! Plain data on both sides ([`region`]); knows no operating system, no threads, no cache.

pub mod region;
pub mod relaid;
