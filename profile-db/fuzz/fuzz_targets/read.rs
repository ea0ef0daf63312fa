//! Reads any bytes as a profile file: `cargo +nightly fuzz run read`.
#![no_main]

#[path = "../mutate.rs"]
mod mutate;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use profile_db::{Limits, ModuleProfile};

// Wrong checksums would end nearly every run before it begins.
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    if size < 24 || seed % 32 == 0 {
        let sample = mutate::sample(seed.into(), u64::from(seed % 60));
        let len = sample.len().min(max_size);
        data[..len].copy_from_slice(&sample[..len]);
        return len;
    }
    let mut size = fuzzer_mutate(data, size, max_size);
    if seed % 4 == 0 {
        let mut bytes = data[..size].to_vec();
        mutate::mutate(&mut mutate::Random(seed.into()), &mut bytes);
        size = bytes.len().min(max_size);
        data[..size].copy_from_slice(&bytes[..size]);
    }
    mutate::forge(&mut data[..size]);
    size
});

fuzz_target!(|data: &[u8]| {
    if let Ok(profile) = ModuleProfile::from_bytes(data) {
        let written = profile.clone().into_bytes(&Limits::default());
        assert_eq!(ModuleProfile::from_bytes(&written).expect("its own"), profile);
    }
});
