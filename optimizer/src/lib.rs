//! The superblock optimizer. Nothing is here yet: superblocks are not formed so far.
