//! Traces in files: each is played anew and must come out as it was. `UPDATE=1` writes what comes out into them.

use std::fs;
use std::path::Path;

/// Plays every `tests/cases/FOLDER/*.txt`, of which there are more than `least`. Whoever plays writes the trace again,
/// what is asked as it was and what follows as it is now.
pub(crate) fn replay(folder: &str, least: usize, play: impl Fn(&str) -> String) {
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut files: Vec<_> = fs::read_dir(all.join(folder))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "txt"))
        .collect();
    files.sort();
    assert!(files.len() > least, "the cases are gone");
    let mut wrong = Vec::new();
    for file in files {
        let said = fs::read_to_string(&file).unwrap();
        let says = play(&said);
        if says == said {
            continue;
        }
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&file, says).unwrap();
        } else {
            wrong.push(format!("{}:\n{}", file.display(), difference(&said, &says)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The first line that differs, with the question before it.
fn difference(said: &str, says: &str) -> String {
    let (said, says): (Vec<_>, Vec<_>) = (said.lines().collect(), says.lines().collect());
    let most = said.len().max(says.len());
    let Some(at) = (0..most).find(|at| said.get(*at) != says.get(*at)) else {
        return "  the end of the last line".to_owned();
    };
    let asked = |line: &&&str| !line.starts_with('<');
    let question = said[..at.min(said.len())].iter().rev().find(asked);
    format!(
        "  after    {}\n  expected {}\n  got      {}",
        question.unwrap_or(&""),
        said.get(at).unwrap_or(&""),
        says.get(at).unwrap_or(&"")
    )
}
