//! The profile database.
