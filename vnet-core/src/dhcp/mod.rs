//! How guests get their addresses, decided in pure code: bytes and time come in, verdicts go out.

pub mod v4;
