//! `cargo xtask tidy`: the house rules that no other tool checks. Each finding says where it is and what to do.
//!
//! - [`edges`]: which of our crates may use which
//! - [`manifest`]: versions stand in the workspace table only
//! - [`reference`]: pages that have to name everything
//! - [`source`]: rules on the text of Rust files
//! - [`mask`]: Rust text without comments and strings, so that rules see code only

mod edges;
mod manifest;
mod mask;
mod reference;
mod source;

use std::fmt;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;

/// One broken rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    pub(crate) file: String,
    /// From 1; 0 for the file as a whole.
    pub(crate) line: usize,
    /// What is wrong, and what to do.
    pub(crate) message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(out, "{}: {}", self.file, self.message),
            line => write!(out, "{}:{line}: {}", self.file, self.message),
        }
    }
}

pub(crate) fn run() -> Result<()> {
    let mut findings = edges::check(&metadata()?)?;
    findings.extend(reference::check()?);
    let files = files()?;
    let mut members = String::new();
    for file in &files {
        findings.extend(file_name(file));
        let path = crate::root().join(file);
        let read = || fs::read_to_string(&path).with_context(|| format!("cannot read {file}"));
        if file.ends_with(".rs") {
            findings.extend(source::check(file, &read()?));
        } else if file.ends_with("/Cargo.toml") {
            let text = read()?;
            findings.extend(manifest::check(file, &text));
            members.push_str(&text);
        }
    }
    let table = fs::read_to_string(crate::root().join("Cargo.toml")).context("Cargo.toml")?;
    findings.extend(manifest::unused("Cargo.toml", &table, &members));
    findings.sort();
    for finding in &findings {
        println!("{finding}");
    }
    if findings.is_empty() {
        println!("tidy: {} files, nothing to mend", files.len());
        return Ok(());
    }
    bail!("tidy: {} to mend", findings.len())
}

/// What belongs to the repository: tracked files, and new ones that are not ignored.
fn files() -> Result<Vec<String>> {
    let mut git = Command::new("git");
    git.current_dir(crate::root()).args(["ls-files", "-z", "--cached", "--others"]);
    let (success, text) = process::output(git.args(["--exclude-standard", "--deduplicate"]))?;
    if !success {
        bail!("git ls-files failed:\n{}", text.trim_end());
    }
    let present = |file: &&str| !file.is_empty() && crate::root().join(file).is_file();
    Ok(text.split('\0').filter(present).map(str::to_owned).collect())
}

fn metadata() -> Result<serde_json::Value> {
    let mut cargo = crate::cargo();
    cargo.args(["metadata", "--format-version=1", "--no-deps", "--offline"]);
    let (success, text) = process::output(&mut cargo)?;
    if !success {
        bail!("cargo metadata failed:\n{}", text.trim_end());
    }
    serde_json::from_str(&text).context("cargo metadata")
}

/// Names that say nothing about what is inside.
const ROOMS_WITHOUT_A_NAME: &[&str] = &["common", "helpers", "manager", "misc", "utils", "util"];

fn file_name(file: &str) -> Option<Finding> {
    let finding = |message: String| Some(Finding { file: file.to_owned(), line: 0, message });
    if file.ends_with(".sh") {
        return finding("a loose script; make it a command of xtask".to_owned());
    }
    let nameless = file
        .split('/')
        .find(|part| ROOMS_WITHOUT_A_NAME.contains(&part.strip_suffix(".rs").unwrap_or(part)));
    // The layout of tests/ is cargo's: tests/common/mod.rs is the way to share code that is no test itself.
    match nameless {
        Some(part) if !file.contains("/tests/") => {
            finding(format!("{part:?} names no domain; name the file for what it owns"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names() {
        fn check(file: &str, expect: bool) {
            assert_eq!(file_name(file).is_none(), expect, "{file}");
        }
        check("net/src/dial.rs", true);
        check("daemon/tests/common/mod.rs", true);
        check("net/src/utils.rs", false);
        check("proxy/src/helpers/mod.rs", false);
        check("install.sh", false);
    }

    #[test]
    fn findings_name_their_place() {
        let mut finding = Finding { file: "a.rs".into(), line: 3, message: "wrong".into() };
        assert_eq!(finding.to_string(), "a.rs:3: wrong");
        finding.line = 0;
        assert_eq!(finding.to_string(), "a.rs: wrong");
    }
}
