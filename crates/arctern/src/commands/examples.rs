//! The examples in the help of commands: its indented lines that call this program.

use std::collections::BTreeMap;

use clap::Command;

/// Every command that does something, by its words, with its examples. Tests run all of them, and
/// fail for a command that has none.
pub fn of(root: &Command) -> BTreeMap<String, Vec<String>> {
    let mut all = BTreeMap::new();
    collect(root, "", &mut all);
    all
}

fn collect(command: &Command, path: &str, all: &mut BTreeMap<String, Vec<String>>) {
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let path = format!("{path} {}", sub.get_name()).trim_start().to_owned();
        if sub.has_subcommands() {
            collect(sub, &path, all);
        } else {
            let about = sub.get_long_about().or(sub.get_about());
            let text = [about, sub.get_after_long_help(), sub.get_after_help()];
            let text: Vec<String> = text.into_iter().flatten().map(ToString::to_string).collect();
            all.insert(path, in_text(&text.join("\n")));
        }
    }
}

/// The examples in a text, lines that end with a backslash joined.
fn in_text(text: &str) -> Vec<String> {
    let mut examples = Vec::new();
    let mut lines = text.lines().filter(|line| line.starts_with("  "));
    while let Some(line) = lines.next() {
        let mut example = line.trim().to_owned();
        while let Some(begin) = example.strip_suffix('\\') {
            example = format!("{}{}", begin, lines.next().unwrap_or_default().trim());
        }
        if example.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == "arctern") {
            examples.push(example);
        }
    }
    examples
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_are_indented_calls() {
        let text = "Do it with arctern\n\n  arctern do\n  code=$(arctern wait x)\n  a table\n  \
                    make | \\\n    arctern import - x\n";
        assert_eq!(
            in_text(text),
            ["arctern do", "code=$(arctern wait x)", "make | arctern import - x"]
        );
    }
}
