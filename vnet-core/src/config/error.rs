use std::fmt;

/// One thing that is wrong with a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where: a path like `subnet[0].dhcp.ranges[1]`, or `line 3, column 7`.
    pub at: String,
    /// Which rule is broken, and what to write instead.
    pub rule: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.at.is_empty() {
            return f.write_str(&self.rule);
        }
        write!(f, "{}: {}", self.at, self.rule)
    }
}

/// Everything that is wrong with a document: at least one problem, so that it can be mended in one go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    /// A single problem.
    #[must_use]
    pub fn one(at: impl Into<String>, rule: impl Into<String>) -> Self {
        Self(vec![Problem {
            at: at.into(),
            rule: rule.into(),
        }])
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
