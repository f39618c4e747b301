//! Collects problems while a document is turned into a value, so that all of them are told at once.

use std::fmt::Display;
use std::str::FromStr;

use super::{Problem, Problems};
use crate::types::Invalid;

/// The problems so far.
#[derive(Default)]
pub(super) struct Check(Vec<Problem>);

impl Check {
    /// Notes that the place breaks a rule.
    pub(super) fn wrong(&mut self, at: impl Display, rule: impl Into<String>) {
        self.0.push(Problem {
            at: at.to_string(),
            rule: rule.into(),
        });
    }

    /// The value, or a note of why there is none.
    pub(super) fn take<T>(&mut self, at: impl Display, value: Result<T, Invalid>) -> Option<T> {
        value.map_err(|invalid| self.wrong(at, invalid.0)).ok()
    }

    /// Parses a text of the document.
    pub(super) fn parse<T: FromStr<Err = Invalid>>(
        &mut self,
        at: impl Display,
        text: &str,
    ) -> Option<T> {
        self.take(at, text.parse())
    }

    /// Parses a text that may be absent; `None` if it is, or is wrong (and then noted).
    pub(super) fn maybe<T: FromStr<Err = Invalid>>(
        &mut self,
        at: impl Display,
        text: Option<&str>,
    ) -> Option<T> {
        text.and_then(|text| self.parse(at, text))
    }

    /// Parses a text of a foreign type whose own error does not teach; `form` says what to write.
    pub(super) fn form<T: FromStr>(
        &mut self,
        at: impl Display,
        text: &str,
        form: &str,
    ) -> Option<T> {
        let bad = || Invalid::new(format!("`{}` is not {form}", text.escape_debug()));
        self.take(at, text.trim().parse().map_err(|_| bad()))
    }

    /// Finds the value a word stands for.
    pub(super) fn word<T: Copy>(
        &mut self,
        at: impl Display,
        text: &str,
        all: &[T],
        word: impl Fn(T) -> &'static str,
    ) -> Option<T> {
        let found = all.iter().copied().find(|v| word(*v) == text);
        if found.is_none() {
            let words: Vec<_> = all.iter().map(|v| word(*v)).collect();
            self.wrong(
                at,
                format!("`{}` is none of {}", text.escape_debug(), words.join(", ")),
            );
        }
        found
    }

    /// The value, if nothing was wrong.
    pub(super) fn finish<T>(self, value: Option<T>) -> Result<T, Problems> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ if self.0.is_empty() => Err(Problems::one("", "the document is incomplete")),
            _ => Err(Problems(self.0)),
        }
    }
}
