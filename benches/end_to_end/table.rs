//! Numbers to a table: medians with their extremes, printed as they come and kept for a file.

use std::fmt::Write;
use std::path::Path;

/// Lines of a Markdown report.
#[derive(Default)]
pub struct Report {
    text: String,
}

impl Report {
    /// A heading, with what the table below it was measured on, and the table's own head.
    pub fn table(&mut self, title: &str, note: &str, columns: &[&str]) {
        self.line(&format!("\n## {title}\n\n{note}\n"));
        self.row(&columns.iter().map(|column| (*column).to_owned()).collect::<Vec<_>>());
        self.line(&format!("|{}", "---|".repeat(columns.len())));
    }

    pub fn row(&mut self, cells: &[String]) {
        self.line(&format!("| {} |", cells.join(" | ")));
    }

    pub fn line(&mut self, line: &str) {
        println!("{line}");
        writeln!(self.text, "{line}").expect("a string takes all");
    }

    pub fn save(&self, path: &Path) {
        std::fs::write(path, &self.text).expect("target/ can be written");
    }
}

/// Median and extremes.
#[derive(Debug, Clone, Copy)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    pub fn of(values: impl Iterator<Item = f64>) -> Spread {
        let mut values: Vec<f64> = values.collect();
        assert!(!values.is_empty(), "a spread of something");
        values.sort_by(f64::total_cmp);
        let median = (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0;
        Spread { median, min: values[0], max: values[values.len() - 1] }
    }

    /// `1.23 (1.10–1.40)`, in units of `unit`.
    pub fn show(&self, unit: f64, digits: usize) -> String {
        let [median, min, max] = [self.median, self.min, self.max].map(|value| value / unit);
        format!("{median:.digits$} ({min:.digits$}–{max:.digits$})")
    }
}

/// The value below which `part` of the sorted values are.
pub fn quantile(sorted: &[f64], part: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * part).round() as usize]
}
