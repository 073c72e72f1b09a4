//! Lists and values for people and for programs: tables, JSON, YAML. Text from elsewhere is made harmless here.

use std::io::Write as _;

use serde::Serialize;
use time::OffsetDateTime;

use crate::failure::Failure;

/// What `--format` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Json,
    Text,
    Yaml,
}

/// Text without control characters, so that nobody else's words move our cursor.
pub fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

/// As [`plain`], but lines and tabs stay: banners and messages.
pub fn plain_lines(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}

/// One word as a shell would take it, on one line: with quotes where it has more than plain characters, and with escapes for
/// what would not be seen, or would make something else be seen. Nothing is left out.
pub fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "_@%+=:,./-".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    if !word.chars().any(|c| c == '\'' || is_unseen(c)) {
        return format!("'{word}'");
    }
    let mut text = "$'".to_owned();
    for c in word.chars() {
        match c {
            '\'' | '\\' => text.extend(['\\', c]),
            '\n' => text.push_str("\\n"),
            '\t' => text.push_str("\\t"),
            '\r' => text.push_str("\\r"),
            c if is_unseen(c) && u32::from(c) < 0x80 => {
                text.push_str(&format!("\\x{:02x}", u32::from(c)));
            }
            c if is_unseen(c) => text.push_str(&format!("\\U{:08x}", u32::from(c))),
            c => text.push(c),
        }
    }
    text.push('\'');
    text
}

/// Control characters, and those that change the order of others, join them, or have no width (Unicode, UAX #9 and the
/// general category Cf).
fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{61c}'
                | '\u{115f}'..='\u{1160}'
                | '\u{180b}'..='\u{180f}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{3164}'
                | '\u{fe00}'..='\u{fe0f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

/// A line of at most so many characters; what is longer ends in `…`.
pub fn shortened(line: &str, width: usize) -> String {
    match line.char_indices().nth(width) {
        None => line.to_owned(),
        Some(_) => {
            let kept: String = line.chars().take(width.saturating_sub(1)).collect();
            format!("{kept}…")
        }
    }
}

/// Columns under a dashed head, as wide as their widest cell.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| plain(cell)).collect()).collect();
    let widths: Vec<usize> = head
        .iter()
        .enumerate()
        .map(|(column, title)| {
            let cells = rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count());
            cells.chain([title.chars().count()]).max().unwrap_or(0)
        })
        .collect();
    let dashes: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    let head: Vec<String> = head.iter().map(|title| (*title).to_owned()).collect();
    let mut text = String::new();
    for row in [head, dashes].iter().chain(&rows) {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join(" ").trim_end());
        text.push('\n');
    }
    text
}

/// A value as JSON or YAML; text is the caller's.
///
/// # Errors
/// The value has no such form.
pub fn structured<V: Serialize>(value: &V, format: Format) -> Result<String, Failure> {
    Ok(match format {
        Format::Yaml => serde_saphyr::to_string(value)?,
        Format::Json | Format::Text => inert(&serde_json::to_string_pretty(value)?) + "\n",
    })
}

/// JSON in which no character changes a terminal or hides: such are escaped, which says the same.
pub fn inert(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        // Those of ASCII are between the values, or escaped already.
        if is_unseen(c) && !matches!(c, '\n' | '\t') {
            for unit in c.encode_utf16(&mut [0; 2]) {
                text.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            text.push(c);
        }
    }
    text
}

/// Writes to standard output; a closed pipe (`| head`) is no failure.
///
/// # Errors
/// The operating system's.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// `2026-09-23T20:30:43Z`; empty for 0, which means never.
pub fn rfc3339(unix: i64) -> String {
    OffsetDateTime::from_unix_timestamp(unix)
        .ok()
        .filter(|_| unix != 0)
        .and_then(|t| t.format(&time::format_description::well_known::Rfc3339).ok())
        .unwrap_or_default()
}

/// `a=b,c=d`.
pub fn pairs<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> String {
    let mut list: Vec<String> =
        labels.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    list.sort();
    list.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up_and_cells_stay_in_their_row() {
        let rows = [vec!["web1".into(), "env=prod".into()], vec!["a\nb\x1b[31m".into(), "".into()]];
        insta::assert_snapshot!(table(&["Node Name", "Labels"], &rows), @r"
        Node Name Labels
        --------- --------
        web1      env=prod
        ab[31m
        ");
    }

    #[test]
    fn json_changes_no_terminal_and_says_the_same() {
        let value = serde_json::json!({"path": "a\u{9b}2J\u{1b}b\u{202e}ü\u{e0001}", "n": [1]});
        let text = structured(&value, Format::Json).unwrap();
        assert!(!text.chars().any(|c| is_unseen(c) && c != '\n'), "{text:?}");
        assert!(text.contains("ü"));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }

    #[test]
    fn words_are_quoted_and_nothing_of_them_is_hidden() {
        for (word, expect) in [
            ("/usr/bin/id", "/usr/bin/id"),
            ("größe=1", "größe=1"),
            ("", "''"),
            ("a b", "'a b'"),
            ("$(id)", "'$(id)'"),
            ("it's", r"$'it\'s'"),
            ("a\\b", r"'a\b'"),
            ("a\nb\t\x1b[2J\x7f", r"$'a\nb\t\x1b[2J\x7f'"),
            ("a\\\n", r"$'a\\\n'"),
            ("\u{9b}31m", r"$'\U0000009b31m'"),
            ("cod\u{202e}exe.txt", r"$'cod\U0000202eexe.txt'"),
            ("a\u{200b}b", r"$'a\U0000200bb'"),
        ] {
            assert_eq!(quoted(word), expect);
        }
    }

    #[test]
    fn long_lines_are_cut_between_characters() {
        assert_eq!(shortened("größe", 5), "größe");
        assert_eq!(shortened("größer", 5), "größ…");
        assert_eq!(shortened("ab", 0), "…");
    }

    #[test]
    fn never_is_empty() {
        assert_eq!(rfc3339(0), "");
        assert_eq!(rfc3339(1), "1970-01-01T00:00:01Z");
    }
}
