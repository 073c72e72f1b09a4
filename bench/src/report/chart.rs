//! One drawing per workload: a bar for each contender's median of the first metric, a line from its best sample to its
//! worst. SVG, written by hand: it needs nothing, and shows in any browser and forge.

use super::document::{Contender, Measured, median, range};
use super::figure;
use crate::peer::OURS;

const WIDTH: f64 = 720.0;
const LEFT: f64 = 130.0;
/// For the figure behind the longest bar.
const RIGHT: f64 = 90.0;
const TOP: f64 = 48.0;
const BAR: f64 = 20.0;
const STEP: f64 = 30.0;

struct Bar<'m> {
    name: &'m str,
    median: f64,
    min: f64,
    max: f64,
}

/// The drawing; none where nothing was measured.
pub(crate) fn draw(measured: &Measured) -> Option<String> {
    let metric = measured.metrics.first()?;
    let bar = |contender: &'_ Contender| {
        let values = contender.samples.get(&metric.name)?;
        let (min, max) = range(values)?;
        Some((median(values)?, min, max))
    };
    let bars: Vec<Bar<'_>> = measured
        .contenders
        .iter()
        .filter_map(|contender| {
            let (median, min, max) = bar(contender)?;
            Some(Bar { name: &contender.name, median, min, max })
        })
        .collect();
    let longest = bars.iter().map(|bar| bar.max).max_by(f64::total_cmp)?;
    if longest <= 0.0 {
        return None;
    }
    let height = bars.iter().fold(TOP, |height, _| height + STEP) + 12.0;
    let better = if metric.more_is_better { "more is better" } else { "less is better" };
    let mut drawing = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n\
         <text x=\"12\" y=\"20\" font-weight=\"bold\">{}: {}</text>\n\
         <text x=\"12\" y=\"37\" fill=\"#666\" font-size=\"11\">{} in {}, {better}; bar: median, line: min to max</text>\n",
        escape(&measured.name),
        escape(&measured.about),
        escape(&metric.name),
        escape(&metric.unit),
    );
    let scale = (WIDTH - LEFT - RIGHT) / longest;
    let mut y = TOP;
    for bar in &bars {
        drawing.push_str(&one(bar, y, scale));
        y += STEP;
    }
    drawing.push_str("</svg>\n");
    Some(drawing)
}

fn one(bar: &Bar<'_>, y: f64, scale: f64) -> String {
    let colour = if bar.name == OURS { "#1a7f5a" } else { "#9aa5b1" };
    let x = |value: f64| LEFT + value.max(0.0) * scale;
    let middle = y + BAR / 2.0;
    format!(
        "<text x=\"{label:.1}\" y=\"{text:.1}\" text-anchor=\"end\">{name}</text>\n\
         <rect x=\"{LEFT:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>\n\
         <line x1=\"{from:.1}\" y1=\"{middle:.1}\" x2=\"{to:.1}\" y2=\"{middle:.1}\" stroke=\"#222\"/>\n\
         <text x=\"{figure_at:.1}\" y=\"{text:.1}\">{value}</text>\n",
        label = LEFT - 8.0,
        text = middle + 4.5,
        name = escape(bar.name),
        width = x(bar.median) - LEFT,
        from = x(bar.min),
        to = x(bar.max),
        figure_at = x(bar.max.max(bar.median)) + 6.0,
        value = figure(bar.median),
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::document::MetricNote;

    #[test]
    fn a_bar_for_each() {
        let contender = |name: &str, values: &[f64]| Contender {
            name: name.to_owned(),
            failed: None,
            samples: [("cpu".to_owned(), values.to_vec())].into(),
        };
        let mut measured = Measured {
            name: "l4-bulk".to_owned(),
            about: "a < b".to_owned(),
            measured_at: String::new(),
            commit: String::new(),
            quick: false,
            rung: None,
            others_busy_max: 0.0,
            load_average_max: 0.0,
            metrics: vec![MetricNote {
                name: "cpu".to_owned(),
                unit: "s".to_owned(),
                more_is_better: false,
            }],
            contenders: vec![contender(OURS, &[0.4, 0.5]), contender("envoy", &[0.8])],
        };
        let drawing = draw(&measured).unwrap();
        assert_eq!(drawing.matches("<rect").count(), 3);
        assert!(drawing.contains("a &lt; b") && drawing.contains(">0.450<"));
        measured.contenders.clear();
        assert!(draw(&measured).is_none());
    }
}
