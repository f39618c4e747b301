//! The house rules that a machine can hold, as ordinary tests: so that reading can speak of design.
//!
//! Function length, unwraps and unsafe are clippy's (`Cargo.toml`, `clippy.toml`); here is what clippy cannot see.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use tests::process;

/// No file has more production lines than this. It is the wall, not the aim.
const WALL: usize = 600;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the package is in the workspace")
        .to_owned()
}

/// A source file: its path from the root, and its text up to the unit tests.
struct Source {
    path: String,
    production: String,
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // What is made, and what git keeps; the rest of the dotfiles is ours.
        if ["target", ".git", ".cache"].contains(&&*name) {
            continue;
        }
        if path.is_dir() {
            walk(&path, found)?;
        } else {
            found.push(path);
        }
    }
    Ok(())
}

/// Every file of the repository.
fn files() -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    walk(&root(), &mut found)?;
    found.sort();
    Ok(found)
}

fn sources() -> anyhow::Result<Vec<Source>> {
    let base = root();
    let rust = files()?
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    rust.map(|path| {
        let text = fs::read_to_string(&path)?;
        let path = path.strip_prefix(&base)?.to_string_lossy().into_owned();
        // Tests are at the end of a file, or files of their own.
        let end = if path.ends_with("tests.rs") || path.contains("/tests/") {
            0
        } else {
            text.find("\n#[cfg(test)]\nmod ").unwrap_or(text.len())
        };
        Ok(Source {
            path,
            production: text[..end].to_owned(),
        })
    })
    .collect()
}

/// The lines of code, without comments, so that a rule may be explained where it holds.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text
        .lines()
        .enumerate()
        .map(|(at, line)| (at + 1, line.trim()));
    lines.filter(|(_, line)| !line.starts_with("//"))
}

/// Fails with the whole list: whoever broke a rule wants to see all of it at once.
fn none(offences: &[String]) {
    assert!(offences.is_empty(), "\n{}\n", offences.join("\n"));
}

#[test]
fn files_stay_below_the_wall() -> anyhow::Result<()> {
    let sources = sources()?;
    assert!(
        sources.len() > 20,
        "the walk found {} files only",
        sources.len()
    );
    let long = sources
        .iter()
        .map(|source| (source.production.lines().count(), &source.path));
    none(
        &long
            .filter(|(lines, _)| *lines > WALL)
            .map(|(lines, path)| format!("{path}: {lines} lines, the wall is {WALL}"))
            .collect::<Vec<_>>(),
    );
    Ok(())
}

/// The floors of vnet-core, lowest first. A module uses its own floor and those below it.
const FLOORS: [&[&str]; 8] = [
    &["types"],
    &["model", "config"],
    &["lease", "event", "stats"],
    &["dhcp", "dns", "tftp", "firewall"],
    &["plan"],
    &["host", "store"],
    &["serve"],
    &["fuzz"],
];

/// The modules of vnet-core that may touch a kernel, a disk or a clock.
const SHELLS: [&str; 3] = ["host", "store", "serve"];

/// What only the shells may name.
const OS: [&str; 18] = [
    "tokio::",
    "rtnetlink::",
    "rustix::",
    "socket2::",
    "quinn_udp::",
    "redb::",
    "libc::",
    "hickory_server::",
    "hickory_resolver::",
    "std::fs",
    "std::process",
    "std::thread",
    "UdpSocket",
    "TcpStream",
    "TcpListener",
    "UnixStream",
    "Instant::now",
    "SystemTime::now",
];

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

#[test]
fn imports_go_only_downward() -> anyhow::Result<()> {
    let mut offences = Vec::new();
    let mut rooms = BTreeSet::new();
    for Source { path, production } in sources()? {
        let Some(inside) = path.strip_prefix("vnet-core/src/") else {
            continue;
        };
        let room = inside
            .split(['/', '.'])
            .next()
            .unwrap_or_default()
            .to_owned();
        if room == "lib" {
            continue;
        }
        let Some(own) = floor(&room) else {
            offences.push(format!(
                "{path}: `{room}` is on no floor; say in tests/tests/tidy.rs where it belongs"
            ));
            continue;
        };
        for (line, text) in code(&production) {
            for used in text.split("crate::").skip(1).map(|rest| {
                rest.split(|c: char| !c.is_alphanumeric() && c != '_')
                    .next()
                    .unwrap_or_default()
            }) {
                if floor(used).is_some_and(|used| used > own) {
                    offences.push(format!(
                        "{path}:{line}: `{room}` uses `{used}`, which is above it"
                    ));
                }
            }
            if !SHELLS.contains(&room.as_str()) {
                let named = OS.iter().filter(|name| text.contains(**name));
                offences
                    .extend(named.map(|name| format!("{path}:{line}: `{name}` below the line")));
            }
        }
        rooms.insert(room);
    }
    assert!(rooms.len() >= 3, "only {rooms:?} were looked at");
    none(&offences);
    Ok(())
}

/// netd thinks about nothing: protocols, rules and netlink belong to vnet-core.
#[test]
fn netd_holds_no_protocol() -> anyhow::Result<()> {
    const FOREIGN: [&str; 6] = [
        "dhcproto::",
        "hickory_proto::",
        "rtnetlink::",
        "nftables::",
        "netlink_packet",
        "IFLA_",
    ];
    let mut offences = Vec::new();
    for Source { path, production } in sources()? {
        if path.starts_with("netd/") {
            for (line, text) in code(&production) {
                let named = FOREIGN.iter().filter(|name| text.contains(**name));
                offences
                    .extend(named.map(|name| format!("{path}:{line}: `{name}` is vnet-core's")));
            }
        }
    }
    none(&offences);
    Ok(())
}

fn cargo(args: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(option_env!("CARGO").unwrap_or("cargo"));
    command.args(args).current_dir(root());
    process::run(command, Duration::from_secs(120))?.ok()
}

/// The names of the crates that a package is built from (its tests' crates are not asked).
fn tree(package: &str, more: &[&str]) -> anyhow::Result<BTreeSet<String>> {
    let args = [
        &[
            "tree",
            "-p",
            package,
            "-e",
            "normal,build",
            "--prefix",
            "none",
            "--format",
            "{p}",
        ][..],
        more,
    ]
    .concat();
    let names: BTreeSet<_> = cargo(&args)?
        .lines()
        .filter_map(|line| Some(line.split_whitespace().next()?.to_owned()))
        .collect();
    assert!(names.contains(package), "{names:?}");
    Ok(names)
}

#[test]
fn the_core_has_no_os() -> anyhow::Result<()> {
    let bare = tree("vnet-core", &["--no-default-features"])?;
    let shells = [
        "tokio",
        "rtnetlink",
        "nftables",
        "rustix",
        "redb",
        "socket2",
        "quinn-udp",
        "hickory-server",
        "hickory-resolver",
    ];
    none(
        &shells
            .iter()
            .filter(|name| bare.contains(**name))
            .map(|name| format!("vnet-core without `host` pulls in {name}"))
            .collect::<Vec<_>>(),
    );

    let backend = tree("virtio-net-backend", &[])?;
    let above = [
        "netd",
        "rtnetlink",
        "nftables",
        "redb",
        "hickory-server",
        "axum",
    ];
    none(
        &above
            .iter()
            .filter(|name| backend.contains(**name))
            .map(|name| format!("virtio-net-backend pulls in {name}"))
            .collect::<Vec<_>>(),
    );

    let host = tree("vnet-core", &[])?;
    assert!(!host.contains("virtio-net-backend") && !host.contains("netd"));
    assert!(host.contains("tokio"), "the question was asked wrongly");
    Ok(())
}

/// Licences that may be combined with ours, and need nothing but their notice.
const LICENCES: [&str; 10] = [
    "MIT",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "0BSD",
    "Unicode-3.0",
    "Unlicense",
    "BSL-1.0",
];

/// Is there a way to take this SPDX expression? `OR` binds weaker than `AND`; `/` is an old `OR`.
fn acceptable(expression: &str) -> bool {
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let taken = any(&words, &mut at);
    taken && at == words.len()
}

fn any(words: &[&str], at: &mut usize) -> bool {
    let mut taken = all(words, at);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        taken |= all(words, at);
    }
    taken
}

fn all(words: &[&str], at: &mut usize) -> bool {
    let mut taken = one(words, at);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        taken &= one(words, at);
    }
    taken
}

fn one(words: &[&str], at: &mut usize) -> bool {
    let Some(word) = words.get(*at) else {
        return false;
    };
    *at += 1;
    if *word == "(" {
        let taken = any(words, at);
        *at += 1;
        return taken;
    }
    // An exception only gives more rights.
    if words.get(*at) == Some(&"WITH") {
        *at += 2;
    }
    LICENCES.contains(word)
}

#[test]
fn licence_expressions_are_understood() {
    for good in [
        "MIT",
        "MIT/Apache-2.0",
        "GPL-3.0 OR MIT",
        "(MIT OR GPL-2.0) AND Unicode-3.0",
        "Apache-2.0 WITH LLVM-exception",
    ] {
        assert!(acceptable(good), "{good}");
    }
    for bad in [
        "GPL-3.0",
        "MIT AND GPL-2.0",
        "(MIT OR Apache-2.0) AND GPL-2.0",
        "",
    ] {
        assert!(!acceptable(bad), "{bad}");
    }
}

#[test]
fn dependencies_have_a_licence_and_one_source() -> anyhow::Result<()> {
    let metadata = cargo(&[
        "metadata",
        "--format-version",
        "1",
        "--locked",
        "--filter-platform",
        "x86_64-unknown-linux-gnu",
    ])?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    let packages = metadata["packages"].as_array().context("no packages")?;
    assert!(packages.len() > 50, "only {} packages", packages.len());
    let mut offences = Vec::new();
    let mut sources: BTreeMap<&str, &str> = BTreeMap::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or("?");
        let licence = package["license"].as_str().unwrap_or("none");
        if !acceptable(licence) {
            offences.push(format!("{name}: licence {licence}"));
        }
        if let Some(source) = package["source"].as_str() {
            sources.insert(source, name);
        }
    }
    // One registry, no git checkout: all that we build from can be had again.
    if sources.len() > 1
        || sources
            .keys()
            .any(|source| !source.starts_with("registry+"))
    {
        offences.push(format!("sources: {sources:?}"));
    }
    none(&offences);
    Ok(())
}

/// The folders that a reader meets are those that the map in the README speaks of, and the other way round.
#[test]
fn the_map_is_true() -> anyhow::Result<()> {
    let base = root();
    let readme = fs::read_to_string(base.join("README.md")).context("README.md")?;
    let core = fs::read_to_string(base.join("vnet-core/src/lib.rs"))?;
    let mut offences = Vec::new();
    for folder in folders(&base)? {
        if !readme.contains(&format!("{folder}/")) {
            offences.push(format!("README.md does not speak of {folder}/"));
        }
    }
    let map: String = core
        .lines()
        .filter(|line| line.starts_with("//!"))
        .collect();
    for source in fs::read_dir(base.join("vnet-core/src"))? {
        let name = source?
            .file_name()
            .to_string_lossy()
            .trim_end_matches(".rs")
            .to_owned();
        if name != "lib" && !map.contains(&name) {
            offences.push(format!(
                "the map in vnet-core/src/lib.rs does not speak of {name}"
            ));
        }
    }
    for named in readme.split('`').skip(1).step_by(2).filter(|word| {
        word.ends_with('/') && !word.contains([' ', '<', '$']) && !word.starts_with(['/', '.', '~'])
    }) {
        // A room may be called by its name within its crate.
        let places = ["", "vnet-core/src", "virtio-net-backend/src", "netd/src"];
        if !places
            .iter()
            .any(|place| base.join(place).join(named).is_dir())
        {
            offences.push(format!("README.md speaks of {named}, which is not there"));
        }
    }
    none(&offences);
    Ok(())
}

fn folders(base: &Path) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(base)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() && !name.starts_with('.') && name != "target" {
            names.push(name);
        }
    }
    Ok(names)
}

/// Words that have no place here: unfinished work, this or that machine's folders, registries' hosts, and who or what
/// typed the text. The last are written in rot13, or this file would break its own rule.
#[test]
fn no_word_out_of_place() -> anyhow::Result<()> {
    let typed = [
        "pynhqr",
        "nagugebcvp",
        "bcranv",
        "tcg-4",
        "pungtcg",
        "pbcvybg",
        "trzvav",
        "nv-trarengrq",
    ]
    .map(rot13);
    let machine = ["/ro", "/wo", "/ho"]
        .into_iter()
        .zip(["ot/", "rk/", "me/"])
        .map(|(start, end)| format!("{start}{end}"));
    let hosts = ["crates", "index.crates", "pypi"]
        .into_iter()
        .zip([".io", ".io", ".org"])
        .map(|(start, end)| format!("{start}{end}"));
    let unfinished = ["to", "fix", "unimple"]
        .into_iter()
        .zip(["do!(", "me:", "mented!("])
        .map(|(start, end)| format!("{start}{end}"));
    let words: Vec<String> = typed
        .into_iter()
        .chain(machine)
        .chain(hosts)
        .chain(unfinished)
        .collect();
    let base = root();
    let mut offences = Vec::new();
    for path in files()? {
        let shown = path.strip_prefix(&base)?.display().to_string();
        // A lock file names the registry on every line, and is cargo's.
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        if path.ends_with("Cargo.lock") {
            continue;
        }
        for (at, line) in text.lines().enumerate() {
            let line = line.to_lowercase();
            let found = words.iter().filter(|word| line.contains(word.as_str()));
            offences.extend(found.map(|word| format!("{shown}:{}: {word}", at + 1)));
        }
    }
    none(&offences);
    Ok(())
}

fn rot13(word: &str) -> String {
    let turn = |letter: char| match letter {
        'a'..='m' => char::from(letter as u8 + 13),
        'n'..='z' => char::from(letter as u8 - 13),
        other => other,
    };
    word.chars().map(turn).collect()
}

/// The API's document in the repository is the one that the daemon speaks.
#[test]
fn the_api_document_is_fresh() -> anyhow::Result<()> {
    let mut netd = Command::new(tests::daemon::binary("netd")?);
    netd.arg("--print-openapi");
    let spoken = process::run(netd, Duration::from_secs(20))?.ok()?;
    let kept = fs::read_to_string(root().join("docs/openapi.json")).unwrap_or_default();
    assert!(spoken.contains("/v1/"), "netd printed {spoken:?}");
    assert!(
        spoken.trim() == kept.trim(),
        "docs/openapi.json is stale: netd --print-openapi >docs/openapi.json"
    );
    Ok(())
}

#[test]
fn each_package_list_is_sorted() -> anyhow::Result<()> {
    let list = fs::read_to_string(root().join("tests/apt-packages.txt"))?;
    let lines: Vec<_> = list.lines().collect();
    let sorted: BTreeSet<_> = lines.iter().copied().collect();
    assert_eq!(lines, sorted.into_iter().collect::<Vec<_>>());
    Ok(())
}
