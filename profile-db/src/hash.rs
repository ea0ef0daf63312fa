//! The hashes that profiles are keyed by. They are part of the format: XXH3, seed 0.

use twox_hash::{XxHash3_64, XxHash3_128};

/// The hash of a block's code bytes.
pub fn content_hash(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

/// The hash that names a file without a build-id: of its size and some of its content, so
/// that naming a large file stays cheap.
pub fn module_content_hash(size: u64, sample: &[&[u8]]) -> [u8; 16] {
    let mut bytes = size.to_le_bytes().to_vec();
    for part in sample {
        bytes.extend_from_slice(part);
    }
    XxHash3_128::oneshot(&bytes).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_the_format() {
        // XXH3_64bits of nothing, seed 0, from the xxHash specification.
        assert_eq!(content_hash(b""), 0x2d06_8005_38d3_94c2);
        assert_ne!(content_hash(b"\x90"), content_hash(b"\x90\x90"));
    }

    #[test]
    fn a_module_hash_depends_on_size_and_content() {
        let hash = module_content_hash(2, &[b"ab"]);
        assert_ne!(hash, module_content_hash(3, &[b"ab"]));
        assert_ne!(hash, module_content_hash(2, &[b"ac"]));
        assert_eq!(hash, module_content_hash(2, &[b"a", b"b"]));
    }
}
