//! Rules on one Rust file: its opening, its length, its functions' lengths, and words that have no place in it.

use super::Finding;
use super::mask::mask;

/// STYLE: 400 lines are normal, 600 a smell.
const FILE_LINES_MAX: usize = 600;
/// STYLE: 40 lines are normal, 70 the end.
const FUNCTION_LINES_MAX: usize = 70;
/// Folders where `unsafe` may stand.
const UNSAFE_ROOMS: &[&str] = &[
    "node/src/sys/",
    "node/src/sys.rs",
    "node/capture/src/sys/",
    "kernel-tests/src/sys/",
    "proxy/relay/src/sys/",
    "proxy/relay/src/sys.rs",
];

/// Code that must not land, and what to do about it.
const FORBIDDEN_CODE: &[(&str, &str)] = &[
    ("#[allow(", "write #[expect(…, reason = \"…\")]"),
    ("#![allow(", "write #![expect(…, reason = \"…\")]"),
    ("#[ignore", "a test runs or it is not there; make it fail where it cannot run"),
    ("todo!(", "write it"),
    ("unimplemented!(", "write it, or make the case impossible"),
    ("dbg!(", "take it out"),
];
/// Words that must not stand in comments either: what is open belongs to an issue.
const FORBIDDEN_WORDS: &[&str] = &["TODO", "FIXME", "XXX", "HACK"];

/// Findings in a Rust file. `file` is relative to the workspace.
pub(super) fn check(file: &str, text: &str) -> Vec<Finding> {
    let code = mask(text);
    let mut findings = Vec::new();
    let mut finding = |line: usize, message: String| {
        findings.push(Finding { file: file.to_owned(), line, message });
    };
    if !text.starts_with("//!") {
        finding(
            1,
            "open with `//!`: what the file owns, what it does not do, what comes next".to_owned(),
        );
    }
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX && !has_reason(text, "long-file") {
        finding(
            0,
            format!(
                "{lines} lines, more than {FILE_LINES_MAX}; split it by what it owns, or say why: // tidy: long-file: reason"
            ),
        );
    }
    for (line, length) in long_functions(text, &code) {
        finding(
            line,
            format!(
                "a function of {length} lines, more than {FUNCTION_LINES_MAX}; split it, or say why above it: // tidy: long-function: reason"
            ),
        );
    }
    let is_self = file.ends_with("xtask/src/tidy/source.rs");
    for (index, (code_line, text_line)) in code.lines().zip(text.lines()).enumerate() {
        let number = index + 1;
        if words(code_line).any(|word| word == "unsafe") && !unsafe_room(file) {
            finding(number, "`unsafe` stands in the sys rooms only; wrap it there".to_owned());
        }
        for (code, advice) in FORBIDDEN_CODE {
            if code_line.contains(code) {
                finding(number, format!("`{code}` must not stand here: {advice}"));
            }
        }
        if !is_self && let Some(word) = words(text_line).find(|word| FORBIDDEN_WORDS.contains(word))
        {
            finding(number, format!("{word}: do it now, or write an issue"));
        }
    }
    findings
}

fn unsafe_room(file: &str) -> bool {
    UNSAFE_ROOMS.iter().any(|room| file.starts_with(room))
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// Whether a comment gives the exception and a reason.
fn has_reason(text: &str, exception: &str) -> bool {
    let mark = format!("// tidy: {exception}:");
    text.lines()
        .filter_map(|line| line.trim().strip_prefix(&mark))
        .any(|reason| !reason.trim().is_empty())
}

/// First line and length of each function that is too long and does not say why.
fn long_functions(text: &str, code: &str) -> Vec<(usize, usize)> {
    let text_lines: Vec<&str> = text.lines().collect();
    let mut long = Vec::new();
    for (start, end) in functions(code) {
        let length = end - start + 1;
        let above: Vec<&str> = text_lines
            .iter()
            .take(start.saturating_sub(1))
            .rev()
            .take_while(|line| {
                line.trim_start().starts_with("//") || line.trim_start().starts_with('#')
            })
            .copied()
            .collect();
        if length > FUNCTION_LINES_MAX && !has_reason(&above.join("\n"), "long-function") {
            long.push((start, length));
        }
    }
    long
}

/// First and last line of every function with a body, from masked text.
fn functions(code: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    // The line of an `fn` whose body has not begun; the depth of brackets at which a `;` would end it without one.
    let mut waiting: Option<(usize, i32)> = None;
    let mut open: Vec<(usize, i32)> = Vec::new();
    let (mut braces, mut brackets) = (0, 0);
    for (index, line) in code.lines().enumerate() {
        let number = index + 1;
        let mut word = String::new();
        for c in line.chars().chain([' ']) {
            if c.is_ascii_alphanumeric() || c == '_' {
                word.push(c);
                continue;
            }
            // `fn(` is a type, `fn name` begins a function.
            if word == "fn" && c != '(' {
                waiting = Some((number, brackets));
            }
            word.clear();
            match c {
                '(' | '[' => brackets += 1,
                ')' | ']' => brackets -= 1,
                ';' if waiting.is_some_and(|(_, depth)| depth == brackets) => waiting = None,
                '{' => {
                    if let Some((start, depth)) = waiting.take_if(|(_, depth)| *depth == brackets) {
                        debug_assert_eq!(depth, brackets);
                        open.push((start, braces));
                    }
                    braces += 1;
                }
                '}' => {
                    braces -= 1;
                    if let Some((start, _)) = open.pop_if(|(_, depth)| *depth == braces) {
                        found.push((start, number));
                    }
                }
                _ => {}
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_found(file: &str, text: &str) -> Vec<usize> {
        check(file, text).iter().map(|f| f.line).collect()
    }

    #[test]
    fn openings_and_words() {
        fn check_lines(text: &str, expect: &[usize]) {
            assert_eq!(lines_found("net/src/x.rs", text), expect, "{text}");
        }
        check_lines("//! Doc.\nfn f() {}\n", &[]);
        check_lines("fn f() {}\n", &[1]);
        check_lines("//! D.\n#[allow(dead_code)]\n", &[2]);
        check_lines("//! D.\n// #[allow( in a comment\nconst A: &str = \"todo!(\";\n", &[]);
        check_lines("//! D.\nfn f() { todo!() }\n", &[2]);
        check_lines("//! D.\n#[ignore = \"slow\"]\n", &[2]);
        check_lines(concat!("//! D.\n// TO", "DO: later\n"), &[2]);
    }

    #[test]
    fn unsafe_has_its_rooms() {
        let text = "//! D.\nfn f() { unsafe { g() } }\n";
        assert_eq!(lines_found("net/src/x.rs", text), [2]);
        assert_eq!(lines_found("node/src/sys/pty.rs", text), [0; 0]);
        assert_eq!(lines_found("proxy/relay/src/sys/mod.rs", text), [0; 0]);
        assert_eq!(lines_found("node/src/system.rs", text), [2]);
        assert_eq!(lines_found("net/src/x.rs", "//! D.\n#![forbid(unsafe_code)]\n"), [0; 0]);
    }

    #[test]
    fn lengths_need_a_reason() {
        let body = "    work();\n".repeat(70);
        let long = format!("//! D.\nfn f() {{\n{body}}}\n");
        assert_eq!(lines_found("x/src/x.rs", &long), [2]);
        let excused = long.replace("fn f", "// tidy: long-function: a table\n#[inline]\nfn f");
        assert_eq!(lines_found("x/src/x.rs", &excused), [0; 0]);
        let unreasoned = long.replace("fn f", "// tidy: long-function:\nfn f");
        assert_eq!(lines_found("x/src/x.rs", &unreasoned), [3]);

        let file = format!("//! D.\n{}", "const A: u8 = 0;\n".repeat(600));
        assert_eq!(lines_found("x/src/x.rs", &file), [0]);
        let excused = file.replacen("//! D.", "//! D.\n// tidy: long-file: one table", 1);
        assert_eq!(lines_found("x/src/x.rs", &excused), [0; 0]);
    }

    #[test]
    fn functions_are_found() {
        fn check_spans(code: &str, expect: &[(usize, usize)]) {
            assert_eq!(functions(&mask(code)), expect, "{code}");
        }
        check_spans("fn a() {\n}\n", &[(1, 2)]);
        check_spans("trait T {\n fn a(&self);\n fn b() -> u8 {\n 1\n }\n}\n", &[(3, 5)]);
        check_spans("fn a(f: fn(u8) -> u8) -> [u8; 4] {\n f(1)\n}\n", &[(1, 3)]);
        check_spans("fn a() {\n fn b() {\n }\n}\n", &[(2, 3), (1, 4)]);
        check_spans("const A: fn() = || {\n};\n", &[]);
        check_spans("fn a()\nwhere\n T: X,\n{\n let s = \"}\";\n}\n", &[(1, 6)]);
    }
}
