//! Rust text with comments, strings and character literals blanked out: what is left is code. Lengths and line ends
//! stay, so that places in the one are places in the other. No parser: it knows how Rust's literals begin and end.

/// Blanks everything that is not code.
pub(super) fn mask(text: &str) -> String {
    let mut rest = text;
    let mut code = String::with_capacity(text.len());
    while let Some(first) = rest.chars().next() {
        let length =
            if word_before(&code) && matches!(first, 'r' | 'b' | 'c') { 0 } else { hidden(rest) };
        let taken = if length == 0 { first.len_utf8() } else { length };
        let (piece, after) = rest.split_at_checked(taken).unwrap_or((rest, ""));
        if length == 0 {
            code.push_str(piece);
        } else {
            code.extend(piece.bytes().map(|byte| if byte == b'\n' { '\n' } else { ' ' }));
        }
        rest = after;
    }
    code
}

/// Whether an identifier is going on, so that an `r` is its letter and not a raw string's.
fn word_before(code: &str) -> bool {
    code.chars().next_back().is_some_and(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Bytes of the comment or literal that begins here; 0 where code does.
fn hidden(text: &str) -> usize {
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return block_comment(text);
    }
    let unprefixed = text.strip_prefix(['b', 'c']).unwrap_or(text);
    let prefix = text.len() - unprefixed.len();
    if let Some(raw) = unprefixed.strip_prefix('r') {
        let marks = raw.len() - raw.trim_start_matches('#').len();
        if raw.get(marks..).is_some_and(|t| t.starts_with('"')) {
            let end = format!("\"{}", "#".repeat(marks));
            let body = prefix + 1 + marks + 1;
            return text
                .get(body..)
                .and_then(|t| t.find(&end))
                .map_or(text.len(), |at| body + at + end.len());
        }
    }
    if unprefixed.starts_with('"') {
        return prefix + quoted(unprefixed, '"').unwrap_or(unprefixed.len());
    }
    if unprefixed.starts_with('\'') {
        prefix_of_char(unprefixed).map_or(0, |n| prefix + n)
    } else {
        0
    }
}

fn block_comment(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while let Some(rest) = text.get(at..).filter(|t| !t.is_empty()) {
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// Bytes up to and with the closing quote.
fn quoted(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return Some(at + c.len_utf8()),
            _ => {}
        }
    }
    None
}

/// Bytes of a character literal, or nothing where a lifetime begins.
fn prefix_of_char(text: &str) -> Option<usize> {
    let mut chars = text.chars().skip(1);
    let (first, second) = (chars.next()?, chars.next()?);
    if first == '\\' || second == '\'' { quoted(text, '\'') } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_is_left() {
        fn check(text: &str, expect: &str) {
            let masked = mask(text);
            assert_eq!(masked.split_whitespace().collect::<Vec<_>>().join(" "), expect, "{text}");
            assert_eq!(masked.lines().count(), text.lines().count(), "{text}");
            assert_eq!(masked.len(), text.len(), "{text}");
        }
        check("a // b\nc", "a c");
        check("a /* b /* c */ d\n */ e", "a e");
        check(r#"f("un{safe", 'x', '\'', b"}", '"') + 1"#, "f( , , , , ) + 1");
        check("g(r#\"a\" // b\"#, br\"}\") h", "g( , ) h");
        check("fn f<'a>(x: &'a str) {}", "fn f<'a>(x: &'a str) {}");
        check("let r = for_r\"x\"", "let r = for_r");
        check("let s = \"äöü\"; t", "let s = ; t");
        check("\"never closed", "");
    }
}
