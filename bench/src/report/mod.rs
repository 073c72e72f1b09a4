//! What was found, for machines (JSON) and for people (Markdown, SVG).
//!
//! - [`document`]: the shape of the JSON, reading and writing it
//! - [`environment`]: where and with what it was measured
//! - [`judge`]: from samples to rows, and whether the goals are met
//! - [`markdown`]: the page, which is also what the terminal shows
//! - [`chart`]: one drawing per workload
//! - [`compare`]: against an older report

pub(crate) mod chart;
pub(crate) mod compare;
pub(crate) mod document;
pub(crate) mod environment;
pub(crate) mod judge;
pub(crate) mod markdown;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use document::Document;

/// Writes the page and the drawings beside the JSON.
pub(crate) fn write(document: &Document, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let write = |name: &str, text: &str| {
        let path = dir.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    write("latest.json", &document.to_json()?)?;
    // Elsewhere, as after a quick run, a link would lead nowhere.
    let explained = match dir.join("../README.md").is_file() {
        true => "[bench/README.md](../README.md)",
        false => "bench/README.md",
    };
    write("latest.md", &markdown::page(document, explained))?;
    for measured in &document.workloads {
        if let Some(drawing) = chart::draw(measured) {
            write(&format!("{}.svg", measured.name), &drawing)?;
        }
    }
    Ok(())
}

/// A figure with as many digits as it deserves.
pub(crate) fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 100.0 => format!("{value:.1}"),
        size if size >= 10.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
