//! What the capture's tests saw, kernel by kernel: compared with what they saw before, and written down on demand. Two
//! files, and a page for people: which deed of the bypass suite was told of, and how many instructions the verifier looked at
//! for each kernel program. The tests print a line of JSON for each; what is enough is decided here.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

/// What the tests are to be run with to make what they see the measure.
const BLESS: &str = "cargo xtask kernel-test --only capture --native --write-coverage";
const CASES: &str = "docs/reference/capture-coverage.json";
const PAGE: &str = "docs/reference/capture-coverage.md";
const LOADS: &str = "docs/reference/capture-load.json";
/// A program's count may change so much unnoticed.
const INSTRUCTIONS_CHANGE_MAX_PERCENT: u64 = 10;

/// Rows of a file, by what names them.
type Rows = BTreeMap<Key, Map<String, Value>>;
/// Kernel, tier (of cases only), number of the case, name of the program.
type Key = (String, String, u64, String);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Coverage {
    cases: Rows,
    loads: Rows,
}

impl Coverage {
    /// Takes what the tests printed on a kernel; what the verifier looked at is a measure on the kernel that is pinned only.
    pub(super) fn take(&mut self, kernel: &str, is_pinned: bool, lines: &[String]) -> Result<()> {
        for line in lines {
            let (word, row) = line.split_once(' ').context("a line of data without data")?;
            let row: Map<String, Value> =
                serde_json::from_str(row).with_context(|| format!("not JSON: {line}"))?;
            let mut whole = Map::from_iter([("kernel".to_owned(), kernel.into())]);
            whole.extend(row);
            match word {
                "case" => self.cases.insert(key(&whole), whole),
                _ if !is_pinned => None,
                _ => self.loads.insert(key(&whole), whole),
            };
        }
        Ok(())
    }

    /// Compares with what was seen before. `Err` names all that has become worse, and how to make it the measure.
    pub(super) fn compare(&self) -> Result<()> {
        let mut worse = compare_cases(&read(CASES)?, &self.cases);
        worse.extend(compare_loads(&read(LOADS)?, &self.loads));
        if worse.is_empty() {
            return Ok(());
        }
        bail!("{}\nIf that is as it should be: {BLESS}", worse.join("\n"))
    }

    /// Makes what was seen the measure; kernels and tiers that were not tested keep their rows.
    pub(super) fn write(&self) -> Result<()> {
        let merged = |file: &str, new: &Rows| -> Result<Rows> {
            let tested: Vec<_> = new.keys().map(|(kernel, tier, ..)| (kernel, tier)).collect();
            let mut rows = read(file)?;
            rows.retain(|(kernel, tier, ..), _| !tested.contains(&(kernel, tier)));
            rows.extend(new.clone());
            Ok(rows)
        };
        let (cases, loads) = (merged(CASES, &self.cases)?, merged(LOADS, &self.loads)?);
        write(CASES, &lines(&cases))?;
        write(LOADS, &lines(&loads))?;
        write(PAGE, &page(&cases))?;
        println!("written: {CASES}, {PAGE}, {LOADS}");
        Ok(())
    }

    /// By tier, in a line: how many of how many cases.
    pub(super) fn summaries(&self, kernel: &str) -> Vec<String> {
        let rows = |tier: &'static str| {
            let cases = self.cases.iter();
            cases.filter(move |((of, on, ..), _)| of == kernel && on == tier).map(|(_, row)| row)
        };
        let summary = |tier: &'static str| {
            let count = |field: &str| rows(tier).filter(|row| row[field] == true).count();
            let (all, seen, attributed) = (rows(tier).count(), count("seen"), count("attributed"));
            let text = || {
                format!("capture, tier {tier}: {seen} seen and {attributed} attributed of {all}")
            };
            (all > 0).then(text)
        };
        ["A", "B"].into_iter().filter_map(summary).collect()
    }
}

fn key(row: &Map<String, Value>) -> Key {
    let text = |field: &str| row.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let number = row.get("case").and_then(Value::as_u64).unwrap_or_default();
    (text("kernel"), text("tier"), number, text("program"))
}

/// What was seen and is not any more; on another tier there is nothing to compare with.
fn compare_cases(before: &Rows, now: &Rows) -> Vec<String> {
    let mut worse = Vec::new();
    for (key, row) in now {
        let Some(old) = before.get(key) else { continue };
        for field in ["seen", "attributed"] {
            if old[field] == true && row[field] != true {
                let (kernel, tier, number, _) = key;
                let name = row["name"].as_str().unwrap_or_default();
                let note = row["note"].as_str().unwrap_or_default();
                worse.push(format!(
                    "FAILED case {number} ({name}) on {kernel}, tier {tier}: no longer {field}: {note}"
                ));
                break;
            }
        }
    }
    worse
}

fn compare_loads(before: &Rows, now: &Rows) -> Vec<String> {
    let mut worse = Vec::new();
    for (key, row) in now {
        let (kernel, .., program) = key;
        let count = |row: &Map<String, Value>| row["instructions"].as_u64();
        let Some(old) = before.get(key) else {
            worse.push(format!(
                "FAILED {program} on {kernel}: a program that {LOADS} does not have"
            ));
            continue;
        };
        match (count(old), count(row)) {
            (Some(old), Some(new))
                if new.abs_diff(old) * 100 > old * INSTRUCTIONS_CHANGE_MAX_PERCENT =>
            {
                worse.push(format!("FAILED {program} on {kernel}: {new} instructions, not {old}"));
            }
            (Some(_), None) => {
                worse.push(format!("FAILED {program} on {kernel}: {}", row["note"]));
            }
            _ => {}
        }
    }
    worse
}

fn read(file: &str) -> Result<Rows> {
    let path = crate::root().join(file);
    if !path.exists() {
        return Ok(Rows::new());
    }
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {file}"))?;
    let rows: Vec<Map<String, Value>> =
        serde_json::from_str(&text).with_context(|| format!("{file} is no list of rows"))?;
    Ok(rows.into_iter().map(|row| (key(&row), row)).collect())
}

fn write(file: &str, text: &str) -> Result<()> {
    fs::write(crate::root().join(file), text).with_context(|| format!("cannot write {file}"))
}

/// A row on each line, so that a change is seen.
fn lines(rows: &Rows) -> String {
    let rows: Vec<String> = rows.values().map(|row| json!(row).to_string()).collect();
    format!("[\n{}\n]\n", rows.join(",\n"))
}

/// The table for people: a row for each case, a column for each kernel.
fn page(cases: &Rows) -> String {
    let mut columns: Vec<(&str, &str)> =
        cases.keys().map(|(kernel, tier, ..)| (kernel.as_str(), tier.as_str())).collect();
    // 6.1 before 6.12, and names after numbers.
    columns.sort_by_key(|(kernel, tier)| (version(kernel), *kernel, *tier));
    columns.dedup();
    let mut text = format!("{OPENING}| | case |");
    for (kernel, tier) in &columns {
        text.push_str(&format!(" {kernel} ({tier}) |"));
    }
    text.push_str(&format!("\n|---|---|{}\n", "---|".repeat(columns.len())));
    let mut names: BTreeMap<u64, &str> = BTreeMap::new();
    for ((.., number, _), row) in cases {
        names.insert(*number, row["name"].as_str().unwrap_or_default());
    }
    let row = |(kernel, tier): &(&str, &str), number: u64| {
        cases.get(&((*kernel).to_owned(), (*tier).to_owned(), number, String::new()))
    };
    for (number, name) in &names {
        let marks = columns.iter().map(|column| format!(" {} |", mark(row(column, *number))));
        text.push_str(&format!("| {number} | {name} |{}\n", marks.collect::<String>()));
    }
    let count = |column: &(&str, &str)| {
        let seen = names.keys().filter_map(|number| row(column, *number));
        let seen = seen.filter(|row| row["seen"] == true && row["attributed"] == true).count();
        format!(" {seen} of {} |", names.len())
    };
    text.push_str(&format!(
        "| | seen and attributed |{}\n",
        columns.iter().map(count).collect::<String>()
    ));
    text.push_str("\n## What is missed, and why\n");
    for (number, name) in &names {
        // The same on several kernels stands once.
        let mut notes: BTreeMap<&str, Vec<&(&str, &str)>> = BTreeMap::new();
        for column in &columns {
            let note = row(column, *number).and_then(|row| row["note"].as_str());
            if let Some(note) = note.filter(|note| !note.is_empty()) {
                notes.entry(note).or_default().push(column);
            }
        }
        for (note, columns) in notes {
            let kernels = columns.iter().map(|(kernel, tier)| format!("{kernel} {tier}"));
            let kernels: Vec<String> = kernels.collect();
            text.push_str(&format!("- {number}, {name} ({}): {note}\n", kernels.join(", ")));
        }
    }
    text
}

fn version(kernel: &str) -> Vec<u64> {
    let numbers: Option<Vec<u64>> = kernel.split('.').map(|part| part.parse().ok()).collect();
    numbers.unwrap_or_else(|| vec![u64::MAX])
}

fn mark(row: Option<&Map<String, Value>>) -> &'static str {
    let Some(row) = row else { return "" };
    match (&row["seen"], &row["attributed"]) {
        (Value::Bool(true), Value::Bool(true)) => "yes",
        (Value::Bool(true), _) => "seen only",
        (Value::Bool(false), _) => "no",
        _ => "not played",
    }
}

const OPENING: &str = "# What capture sees\n\
    Written by `cargo xtask kernel-test --only capture --native --write-coverage`; not to be edited. Each case is a way to get out of sight,\n\
    done by a real process in a session (`kernel-tests/src/tests/capture/cases`). *yes*: all of it was told, by the right\n\
    process in the right session. *seen only*: told, but not of the right process. *no*: something of it was not told; below it\n\
    says what. *not played*: the deed cannot be done there. A: LSM programs and tracepoints; B: tracepoints only. 6.1, 6.12, 6.18\n\
    and rekey (the newest) are Debian's kernels in virtual machines; native is the machine on which the table was made.\n\n";

#[cfg(test)]
mod tests {
    use super::*;

    fn coverage(lines: &[&str]) -> Coverage {
        let mut coverage = Coverage::default();
        let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
        coverage.take("6.1", true, &lines).unwrap();
        coverage
    }

    fn case(number: u8, seen: Value, attributed: Value) -> String {
        let row = json!({ "tier": "A", "case": number, "name": "n", "seen": seen, "attributed": attributed, "note": "why" });
        format!("case {row}")
    }

    #[test]
    fn what_was_seen_must_be_seen() {
        let check = |before: [Value; 2], now: [Value; 2], is_worse: bool| {
            let rows =
                |[seen, attributed]: [Value; 2]| coverage(&[&case(1, seen, attributed)]).cases;
            let worse = compare_cases(&rows(before), &rows(now));
            assert_eq!(!worse.is_empty(), is_worse, "{worse:?}");
        };
        let (yes, no, none) = (Value::Bool(true), Value::Bool(false), Value::Null);
        check([yes.clone(), yes.clone()], [yes.clone(), yes.clone()], false);
        check([yes.clone(), yes.clone()], [no.clone(), no.clone()], true);
        check([yes.clone(), yes.clone()], [yes.clone(), no.clone()], true);
        check([yes.clone(), yes.clone()], [none.clone(), none.clone()], true);
        check([no.clone(), no.clone()], [yes.clone(), yes.clone()], false);
        check([none.clone(), none], [no.clone(), no], false);
    }

    #[test]
    fn instructions_may_change_a_little() {
        let check = |before: Value, now: Value, is_worse: bool| {
            let rows = |count: Value| {
                let row = json!({ "program": "p", "instructions": count, "note": "why" });
                coverage(&[&format!("program {row}")]).loads
            };
            assert_eq!(!compare_loads(&rows(before), &rows(now)).is_empty(), is_worse);
        };
        check(json!(1000), json!(1100), false);
        check(json!(1000), json!(1101), true);
        check(json!(1000), json!(890), true);
        check(json!(1000), json!(null), true);
        check(json!(null), json!(1000), false);
        let new = coverage(&["program {\"program\":\"p\",\"instructions\":1,\"note\":\"\"}"]);
        assert_eq!(compare_loads(&Rows::new(), &new.loads).len(), 1);
    }

    #[test]
    fn the_page_has_a_row_for_each_case() {
        let (yes, no) = (Value::Bool(true), Value::Bool(false));
        let lines = [case(1, yes.clone(), yes), case(2, no.clone(), no)];
        let text = page(&coverage(&lines.each_ref().map(String::as_str)).cases);
        for line in [
            "| 1 | n | yes |",
            "| 2 | n | no |",
            "| | seen and attributed | 1 of 2 |",
            "- 2, n (6.1 A): why",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn kernels_are_in_the_order_of_their_versions() {
        let mut kernels = ["rekey", "6.12", "native", "6.1"];
        kernels.sort_by_key(|kernel| (version(kernel), *kernel));
        assert_eq!(kernels, ["6.1", "6.12", "native", "rekey"]);
    }
}
