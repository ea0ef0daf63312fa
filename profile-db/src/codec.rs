//! The only user of bincode. Sizes are limited by the caller, hostile lengths and trailing
//! bytes are refused, and nothing is allocated beyond what the input can fill.

use bincode::{DefaultOptions, Options};
use serde::{Serialize, de::DeserializeOwned};

/// The bytes of `value`.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4096);
    DefaultOptions::new()
        .with_varint_encoding()
        .with_no_limit()
        .serialize_into(&mut bytes, value)
        .expect("plain records always serialize into memory");
    bytes
}

/// The value that `bytes` hold, or `None` when they are no such value.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    DefaultOptions::new()
        .with_varint_encoding()
        .with_limit(bytes.len() as u64)
        .reject_trailing_bytes()
        .deserialize(bytes)
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back() {
        let value = vec![(1u64, "x".to_string()), (u64::MAX, String::new())];
        assert_eq!(decode::<Vec<(u64, String)>>(&encode(&value)), Some(value));
    }

    #[test]
    fn hostile_lengths_and_trailing_bytes_are_refused() {
        let huge = [253u8, 255, 255, 255, 255, 255, 255, 255, 127];
        assert_eq!(decode::<Vec<u64>>(&huge), None);
        assert_eq!(decode::<String>(&huge), None);
        assert_eq!(decode::<Vec<[u64; 4]>>(&huge), None);
        assert_eq!(decode::<u64>(&[1, 2]), None);
        assert_eq!(decode::<u64>(&[]), None);
    }
}
