//! Member manifests name crates and features; versions stand in the root's `[workspace.dependencies]` only.

use super::Finding;

/// Findings in a member's Cargo.toml.
pub(super) fn check(file: &str, text: &str) -> Vec<Finding> {
    let mut in_dependencies = false;
    let mut findings = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(section) = line.strip_prefix('[') {
            in_dependencies = section.trim_end_matches(']').ends_with("dependencies");
            continue;
        }
        let Some((name, value)) = line.split_once('=') else { continue };
        let from_workspace = name.trim().ends_with(".workspace")
            || value.contains("workspace = true")
            || value.contains("workspace=true");
        if in_dependencies && !line.starts_with('#') && !from_workspace {
            let name = name.trim();
            findings.push(Finding {
                file: file.to_owned(),
                line: index + 1,
                message: format!("put {name}'s version into the root Cargo.toml and write {name}.workspace = true"),
            });
        }
    }
    findings
}

/// Entries of the workspace table (the root manifest) that no member names.
pub(super) fn unused(file: &str, table: &str, members: &str) -> Vec<Finding> {
    let used = |name: &str| {
        let [dotted, inline] = [format!("{name}.workspace"), format!("{name} = {{ workspace")];
        members.lines().any(|line| line.starts_with(&dotted) || line.starts_with(&inline))
    };
    let mut within = false;
    let mut findings = Vec::new();
    for (number, line) in (1..).zip(table.lines()) {
        if line.starts_with('[') {
            within = line == "[workspace.dependencies]";
        }
        if let Some((name, _)) = line.split_once(" = ").filter(|(name, _)| within && !used(name)) {
            findings.push(Finding {
                file: file.to_owned(),
                line: number,
                message: format!("no member uses {name}; take it out"),
            });
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unused_entries_are_found() {
        let table =
            "[workspace.dependencies]\na = \"1\"\nb = \"1\"\nc = \"1\"\n[profile.dev]\nx = 1\n";
        let members =
            "a.workspace = true\nb = { workspace = true, features = [] }\nc-d.workspace = true\n";
        let lines: Vec<usize> =
            unused("Cargo.toml", table, members).iter().map(|f| f.line).collect();
        assert_eq!(lines, [4]);
    }

    #[test]
    fn versions_in_members_are_found() {
        fn check_lines(text: &str, expect: &[usize]) {
            let lines: Vec<usize> = check("x/Cargo.toml", text).iter().map(|f| f.line).collect();
            assert_eq!(lines, expect, "{text}");
        }
        check_lines("[package]\nversion = \"1\"\n[dependencies]\nserde.workspace = true\n", &[]);
        check_lines("[dependencies]\nserde = \"1\"\n", &[2]);
        check_lines("[dev-dependencies]\nx = { workspace = true, features = [\"a\"] }\n", &[]);
        check_lines("[target.'cfg(unix)'.dependencies]\nx = { version = \"1\" }\n", &[2]);
        check_lines("[build-dependencies]\n# x = \"1\"\n\n[features]\ny = []\n", &[]);
    }
}
