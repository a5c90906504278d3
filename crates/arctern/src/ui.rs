//! Output that several commands share: logging, tables, durations.

use std::io::IsTerminal;

pub use arctern_container::units::size;

use crate::cli::LogLevel;

/// Prints a line on standard output. A reader that has gone away (`| head`) is no failure.
macro_rules! outln {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout().lock(), $($arg)*);
    }};
}

/// Prints on standard output, without an end of line.
macro_rules! out {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        let _ = write!(std::io::stdout().lock(), $($arg)*);
    }};
}

/// Sets up diagnostics: `--log-level`, or the variable ARCTERN_LOG with a filter.
///
/// A shim's diagnostics go to a file of the container, which keeps what the OCI library has to say.
pub fn init_logging(level: Option<LogLevel>, shim: bool) {
    use tracing_subscriber::EnvFilter;
    // The OCI library logs what it returns as well; its returned errors are shown once, by us.
    let filter = match (std::env::var("ARCTERN_LOG"), level) {
        (Ok(filter), None) => EnvFilter::new(filter),
        (_, Some(level)) => EnvFilter::new(level.filter()),
        (Err(_), None) if shim => EnvFilter::new("warn,libcontainer=error,libcgroups=error"),
        (Err(_), None) => EnvFilter::new("warn,libcontainer=off,libcgroups=off"),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .init();
}

/// Rows under a head, columns padded to their widest cell.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with this head.
    pub fn new(head: &[&str]) -> Table {
        Table { rows: vec![head.iter().map(|&h| h.to_owned()).collect()] }
    }

    /// A table without a head.
    pub fn bare() -> Table {
        Table { rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The table as text.
    pub fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |c: usize| {
            self.rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Asks whether to go on; only `y` and `yes` mean that.
pub fn confirm(question: &str) -> std::io::Result<bool> {
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// Microseconds for people: `4.2 ms`.
pub fn duration(us: u64) -> String {
    match us {
        0..1000 => format!("{us} µs"),
        1000..1_000_000 => format!("{}.{} ms", us / 1000, us % 1000 / 100),
        _ => format!("{}.{:02} s", us / 1_000_000, us % 1_000_000 / 10_000),
    }
}

/// Cuts a text to a number of characters.
pub fn shorten(text: &str, max: usize) -> String {
    if text.chars().count() <= max {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(max.saturating_sub(3)).collect();
    cut.push_str("...");
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration(4250), "4.2 ms");
        assert_eq!(duration(1_250_000), "1.25 s");
    }

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["ID", "NAME"]);
        table.row(vec!["1234".into(), "x".into()]);
        assert_eq!(table.render(), "ID    NAME\n1234  x\n");
    }
}
