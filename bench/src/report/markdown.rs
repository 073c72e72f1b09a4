//! The page for people. Columns are padded, so that it reads as well in a terminal.

use super::document::{Document, Measured, Row};
use super::{chart, figure};

/// The whole page. `explained` is where it is said how all this is measured.
pub(crate) fn page(document: &Document, explained: &str) -> String {
    let environment = &document.environment;
    let judged = document.rows.iter().filter_map(|row| row.pass);
    let (met, all) = judged.fold((0, 0), |(met, all), pass| (met + u32::from(pass), all + 1));
    let mut page = format!(
        "# Postern against its peers\n\n{met} of {all} goals are met. How this is measured, and what it means: \
         {explained}.\n\n"
    );
    let files = environment.open_files_max.map_or("unlimited".to_owned(), |n| n.to_string());
    page.push_str(&table(
        &["", ""],
        &[
            vec!["date".into(), environment.date.clone()],
            vec!["commit".into(), environment.commit.clone()],
            vec!["machine".into(), environment.machine.clone()],
            vec!["processor".into(), format!("{}, {} cores", environment.cpu, environment.cores)],
            vec!["memory".into(), format!("{} MiB", environment.memory_mib)],
            vec![
                "kernel".into(),
                format!(
                    "{}, {} kernel TLS",
                    environment.kernel,
                    if environment.kernel_tls { "with" } else { "without" }
                ),
            ],
            vec!["open files".into(), files],
        ],
    ));
    for measured in &document.workloads {
        page.push_str(&section(measured, &document.rows));
        if chart::draw(measured).is_some() {
            page.push_str(&format!("\n![{name}]({name}.svg)\n", name = measured.name));
        }
    }
    page.push_str("\n## Versions\n\n");
    let versions: Vec<Vec<String>> =
        environment.versions.iter().map(|(k, v)| vec![k.clone(), v.clone()]).collect();
    page.push_str(&table(&["program", "version"], &versions));
    page
}

/// One workload, with its table.
pub(crate) fn section(measured: &Measured, rows: &[Row]) -> String {
    let rung = measured.rung.as_ref().map_or(String::new(), |rung| format!(" Rung: {rung}."));
    let quick =
        if measured.quick { " **A quick run: it shows that it works, no more.**" } else { "" };
    let mut section = format!(
        "\n## {}\n\n{}. Measured {} at {}.{rung} Others kept {:.2} cores busy at worst, load at most {:.1}.{quick}\n\n",
        measured.name,
        measured.about,
        measured.measured_at,
        measured.commit,
        measured.others_busy_max,
        measured.load_average_max,
    );
    let lines: Vec<Vec<String>> =
        rows.iter().filter(|row| row.workload == measured.name).filter_map(line).collect();
    let heading = ["metric", "unit", "ours", "peer", "theirs", "times better", "goal", "met"];
    section.push_str(&table(&heading, &lines));
    for contender in &measured.contenders {
        if let Some(why) = &contender.failed {
            let why = why.lines().next().unwrap_or_default();
            section.push_str(&format!("\n{} is not in it: {why}\n", contender.name));
        }
    }
    section
}

fn line(row: &Row) -> Option<Vec<String>> {
    if row.ours.is_none() && row.theirs.is_none() && row.goal.is_none() {
        return None;
    }
    let number = |value: Option<f64>| value.map(figure).unwrap_or_default();
    let spread = |middle: Option<f64>| match (middle, row.min, row.max) {
        (Some(middle), Some(min), Some(max)) if row.pairs > 1 => {
            format!("{} ({} to {})", figure(middle), figure(min), figure(max))
        }
        (middle, ..) => number(middle),
    };
    let (ours, ratio) = match row.peer {
        None => (spread(row.ours), String::new()),
        Some(_) => (number(row.ours), spread(row.ratio)),
    };
    let met = row.pass.map_or("", |pass| if pass { "yes" } else { "**no**" });
    Some(vec![
        row.metric.clone(),
        row.unit.clone(),
        ours,
        row.peer.clone().unwrap_or_default(),
        number(row.theirs),
        ratio,
        row.goal.clone().unwrap_or_default(),
        met.to_owned(),
    ])
}

/// A table whose columns are as wide as their widest cell.
pub(crate) fn table(heading: &[&str], lines: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column)).map(|c| c.chars().count());
        let heading = heading.get(column).map_or(0, |cell| cell.chars().count());
        cells.max().unwrap_or(0).max(heading).max(3)
    };
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let row = |cells: &[&str]| {
        let padded: Vec<String> =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("| {} |\n", padded.join(" | "))
    };
    let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    let mut table = row(heading);
    table.push_str(&row(&rule.iter().map(String::as_str).collect::<Vec<_>>()));
    for line in lines {
        table.push_str(&row(&line.iter().map(String::as_str).collect::<Vec<_>>()));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let lines = vec![vec!["a".to_owned(), "long cell".to_owned()]];
        let text = table(&["one", "two"], &lines);
        assert_eq!(text, "| one | two       |\n| --- | --------- |\n| a   | long cell |\n");
    }
}
