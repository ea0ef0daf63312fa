//! The only user of bincode. Sizes are limited by the caller, hostile lengths and trailing
//! bytes are refused, and nothing is allocated beyond what the input can fill.

use std::fmt;
use std::marker::PhantomData;

use bincode::{DefaultOptions, Options};
use serde::de::{DeserializeOwned, Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// The longest list: above every [limit](crate::Limits), and short enough that a few bytes
/// which unpack to millions of records can't take all memory.
const MAX_LIST: usize = 1 << 20;
/// How many items a list makes room for before it has seen any.
const FIRST_ROOM: usize = 1 << 12;

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

/// A list, refused when it is too long: for `#[serde(deserialize_with)]`.
pub fn list<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct List<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {MAX_LIST} items")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
            let len = items.size_hint().unwrap_or(0);
            if len > MAX_LIST {
                return Err(A::Error::invalid_length(len, &self));
            }
            let mut list = Vec::with_capacity(len.min(FIRST_ROOM));
            while let Some(item) = items.next_element()? {
                list.push(item);
            }
            Ok(list)
        }
    }

    deserializer.deserialize_seq(List(PhantomData))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_a_limit() {
        #[derive(Serialize, Deserialize, PartialEq, Debug)]
        struct Holder(#[serde(deserialize_with = "list")] Vec<u8>);
        for len in [0, 1, 70_000, MAX_LIST] {
            let holder = Holder(vec![7; len]);
            assert_eq!(decode::<Holder>(&encode(&holder)), Some(holder));
        }
        assert_eq!(decode::<Holder>(&encode(&vec![7u8; MAX_LIST + 1])), None);
    }

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
