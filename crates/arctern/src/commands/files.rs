//! Files that options come from: `--env-file`, `--label-file`.

use std::path::PathBuf;

use anyhow::Context;

/// The lines of all files without empty ones and comments (`#` first).
pub fn lines(files: &[PathBuf]) -> anyhow::Result<Vec<String>> {
    let mut all = Vec::new();
    for file in files {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        all.extend(entries(&text).map_err(|line| {
            anyhow::anyhow!("{}: line {line} has no name before `=`", file.display())
        })?);
    }
    Ok(all)
}

/// The entries of a text; the number of a line without a name is the error.
fn entries(text: &str) -> Result<Vec<String>, usize> {
    let mut entries = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = match line.split_once('=') {
            Some((name, value)) => (name.trim_end(), Some(value)),
            None => (line.trim_end(), None),
        };
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(index + 1);
        }
        entries.push(value.map_or_else(|| name.to_owned(), |value| format!("{name}={value}")));
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_empty_lines_are_left_out() {
        let text = "# settings\n\nA=1\n  B = a = b \nHOME\n";
        assert_eq!(entries(text), Ok(vec!["A=1".into(), "B= a = b ".into(), "HOME".into()]));
        assert_eq!(entries("A=1\n=2\n"), Err(2));
    }
}
