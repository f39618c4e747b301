//! Documents on disk: a TOML or JSON file, or a folder of them.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use vnet_core::config::native::{NetworkDoc, from_json, from_toml};

/// Every network of a file, of a folder's files in order, or of standard input (`-`).
///
/// # Errors
/// A sentence that says which file, where in it, and what is wrong.
pub fn read(path: &Path) -> Result<Vec<NetworkDoc>, String> {
    if path == Path::new("-") {
        let mut text = String::new();
        io::stdin()
            .read_to_string(&mut text)
            .map_err(|e| unreadable(path, &e))?;
        return parse(path, &text);
    }
    let meta = fs::metadata(path).map_err(|e| unreadable(path, &e))?;
    if !meta.is_dir() {
        return file(path);
    }
    let entries = fs::read_dir(path).map_err(|e| unreadable(path, &e))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "toml" || e == "json"));
    files.sort();
    if files.is_empty() {
        return Err(format!("{} holds no .toml or .json file", path.display()));
    }
    let all: Result<Vec<_>, _> = files.iter().map(|f| file(f)).collect();
    Ok(all?.into_iter().flatten().collect())
}

fn file(path: &Path) -> Result<Vec<NetworkDoc>, String> {
    parse(
        path,
        &fs::read_to_string(path).map_err(|e| unreadable(path, &e))?,
    )
}

fn unreadable(path: &Path, error: &io::Error) -> String {
    format!("{} cannot be read: {error}", path.display())
}

fn parse(path: &Path, text: &str) -> Result<Vec<NetworkDoc>, String> {
    let named_json = path.extension().is_some_and(|e| e == "json");
    let is_json = named_json || text.trim_start().starts_with('{');
    let docs = if is_json {
        from_json(text)
    } else {
        from_toml(text)
    };
    docs.map_err(|problems| {
        let lines: Vec<_> = problems
            .0
            .iter()
            .map(|p| format!("{}: {p}", path.display()))
            .collect();
        lines.join("\n")
    })
}
