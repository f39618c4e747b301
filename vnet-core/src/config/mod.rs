//! Documents people write, to and from the model. A problem always says *where* in the document and which rule.
//!
//! [`native`] is our own format: TOML for people, JSON (the same shape) for programs.

mod check;
mod error;
mod export;
pub mod native;
mod settle;

pub use error::{Problem, Problems};
pub use settle::Fill;
