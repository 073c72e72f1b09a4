//! The pages that have to name everything: events, configuration keys, dependencies. What the code has and the page
//! has not is a finding; what the page says about it is for people to read.

use anyhow::{Context, Result};

use super::Finding;

/// Where names stand in the code, and the page that has to name them.
struct Page {
    source: &'static str,
    page: &'static str,
    names: fn(&str) -> Vec<(usize, String)>,
}

const PAGES: &[Page] = &[
    Page { source: "proto/src/event/mod.rs", page: "docs/reference/events.md", names: events },
    Page { source: "daemon/src/config/read.rs", page: "docs/reference/config.md", names: keys },
    Page { source: "Cargo.toml", page: "docs/decisions/0007-dependencies.md", names: dependencies },
];

/// Findings in all pages.
pub(super) fn check() -> Result<Vec<Finding>> {
    let read = |file: &str| {
        std::fs::read_to_string(crate::root().join(file))
            .with_context(|| format!("cannot read {file}"))
    };
    let mut findings = Vec::new();
    for Page { source, page, names } in PAGES {
        let text = read(page)?;
        findings.extend(missing(source, page, &text, names(&read(source)?)));
    }
    Ok(findings)
}

fn missing(source: &str, page: &str, text: &str, names: Vec<(usize, String)>) -> Vec<Finding> {
    let unnamed = names.into_iter().filter(|(_, name)| !text.contains(&format!("`{name}`")));
    let finding = |(line, name)| Finding {
        file: source.to_owned(),
        line,
        message: format!("`{name}` is not in {page}; write there what it is for"),
    };
    unnamed.map(finding).collect()
}

/// `Variant = "session.start" {`, as the macro of the events has them.
fn events(text: &str) -> Vec<(usize, String)> {
    numbered(text, |line| {
        let (variant, rest) = line.trim().split_once(" = \"")?;
        let (name, rest) = rest.split_once('"')?;
        let is_variant = variant.chars().all(|c| c.is_ascii_alphanumeric());
        (is_variant && rest.trim_start().starts_with('{')).then_some(name)
    })
}

/// `section.text("nodename", …)` and its sisters.
fn keys(text: &str) -> Vec<(usize, String)> {
    const TAKES: &[&str] = &[".flag(\"", ".pairs(\"", ".section(\"", ".text(\"", ".texts(\""];
    numbered(text, |line| {
        let (_, rest) = TAKES.iter().find_map(|take| line.split_once(take))?;
        Some(rest.split_once('"')?.0)
    })
}

/// Names in `[workspace.dependencies]` that are not ours.
fn dependencies(text: &str) -> Vec<(usize, String)> {
    let mut within = false;
    let mut names = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.starts_with('[') {
            within = line == "[workspace.dependencies]";
        } else if let Some((name, value)) = line.split_once(" = ")
            && within
            && !line.starts_with('#')
            && !value.contains("path = ")
        {
            names.push((number, name.to_owned()));
        }
    }
    names
}

fn numbered<'t>(text: &'t str, find: impl Fn(&'t str) -> Option<&'t str>) -> Vec<(usize, String)> {
    (1..).zip(text.lines()).filter_map(|(n, line)| Some((n, find(line)?.to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found() {
        let names = |found: Vec<(usize, String)>| -> Vec<String> {
            found.into_iter().map(|(_, name)| name).collect()
        };
        let text =
            "/// Doc.\n    Exec = \"exec\" {\nlet x = \"y\";\n#[serde(rename = \"z\")] a: b,\n";
        assert_eq!(names(events(text)), ["exec"]);
        let text = "raw.a = s.text(\"nodename\", f);\ns.section(\"log\", |log| {\nplain(\"no\")\n";
        assert_eq!(names(keys(text)), ["nodename", "log"]);
        let text = "[workspace.dependencies]\n# ours\nproto = { path = \"proto\" }\nserde = \"1\"\n[profile.dev]\ndebug = \"x\"\n";
        assert_eq!(names(dependencies(text)), ["serde"]);
    }

    #[test]
    fn what_a_page_does_not_name_is_found() {
        let names = vec![(3, "exec".to_owned()), (7, "port".to_owned())];
        let found = missing("s.rs", "p.md", "| `exec` | a command |", names);
        assert_eq!(found.iter().map(|f| f.line).collect::<Vec<_>>(), [7]);
    }

    /// The code is still written as the searches above expect.
    #[test]
    fn the_searches_find_something() {
        for Page { source, names, .. } in PAGES {
            let text = std::fs::read_to_string(crate::root().join(source)).unwrap();
            assert!(names(&text).len() > 10, "{source}");
        }
    }
}
