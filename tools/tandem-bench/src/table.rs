//! Numbers in aligned columns.

/// One block of a table: a measure, and a line for each VMM.
#[derive(Debug)]
pub struct Table {
    columns: Vec<String>,
    /// A title without cells, or a name with one cell for each column.
    lines: Vec<(String, Option<Vec<String>>)>,
}

impl Table {
    /// With these columns after the names.
    pub fn new(columns: &[&str]) -> Self {
        Self {
            columns: columns.iter().map(|&column| column.to_owned()).collect(),
            lines: Vec::new(),
        }
    }

    /// A line of its own.
    pub fn title(&mut self, text: impl Into<String>) {
        self.lines.push((text.into(), None));
    }

    /// A name and its cells.
    pub fn line(&mut self, name: impl Into<String>, cells: Vec<String>) {
        self.lines.push((format!("  {}", name.into()), Some(cells)));
    }

    /// The text, with names to the left and numbers to the right.
    pub fn render(&self) -> String {
        let cells = || self.lines.iter().filter_map(|(_, cells)| cells.as_ref());
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|column| {
                cells()
                    .filter_map(|cells| cells.get(column))
                    .map(|cell| cell.chars().count())
                    .chain([self.columns[column].len()])
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let names = self
            .lines
            .iter()
            .filter(|(_, cells)| cells.is_some())
            .map(|(name, _)| name.chars().count())
            .max()
            .unwrap_or(0);
        let mut text = format!("{:names$}", "");
        for (column, width) in self.columns.iter().zip(&widths) {
            text += &format!("  {column:>width$}");
        }
        text.push('\n');
        for (name, cells) in &self.lines {
            match cells {
                None => text += name,
                Some(cells) => {
                    text += &format!("{name:names$}");
                    for (cell, width) in cells.iter().zip(&widths) {
                        text += &format!("  {cell:>width$}");
                    }
                }
            }
            text.truncate(text.trim_end_matches(' ').len());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align() {
        let mut table = Table::new(&["p50", "min"]);
        table.title("start, ms");
        table.line("a", vec!["1.00".into(), "0.5".into()]);
        table.line("longer", vec!["12345.00".into(), String::new()]);
        let expected = "               p50  min\n\
                        start, ms\n\
                        \x20 a           1.00  0.5\n\
                        \x20 longer  12345.00\n";
        assert_eq!(table.render(), expected);
    }
}
