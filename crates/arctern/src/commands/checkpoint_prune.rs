//! `checkpoint prune`

use std::time::Duration;

use arctern_container::checkpoint::Retention;
use arctern_container::config::parse_size;

use super::Context;
use crate::report::{Cannot, CommandResult};
use crate::ui::size;

/// Remove checkpoints that are kept with containers, by number, age and size
///
/// Newest ones stay first. Those that a stopped container needs to go on count, and stay unless --all
/// is given.
///
///   arctern checkpoint prune --keep 5
///   arctern checkpoint prune --older-than 7d --max-size 10g
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
#[command(group = clap::ArgGroup::new("rule").required(true).multiple(true))]
pub struct Args {
    /// Keep this many
    #[arg(long, value_name = "NUMBER", group = "rule")]
    pub keep: Option<usize>,
    /// Remove what is older: a number with s, m, h or d
    #[arg(long, value_name = "TIME", group = "rule", value_parser = parse_age)]
    pub older_than: Option<Duration>,
    /// Keep as many as have this size together: a number with k, m, g or t
    #[arg(long, value_name = "SIZE", group = "rule", value_parser = parse_size)]
    pub max_size: Option<u64>,
    /// Remove also what stopped containers need to go on
    #[arg(short, long)]
    pub all: bool,
}

fn parse_age(text: &str) -> Result<Duration, String> {
    let bad = || format!("`{text}` is no age: a number with s, m, h or d");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86400,
        _ => return Err(bad()),
    };
    let number: u64 = digits.parse().map_err(|_| bad())?;
    number.checked_mul(unit).map(Duration::from_secs).ok_or_else(bad)
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let retention = Retention {
        keep: args.keep,
        older_than: args.older_than,
        max_size: args.max_size,
        all: args.all,
    };
    let gone = ctx.host()?.checkpoint_prune(&retention).cannot(|| "remove checkpoints")?;
    let bytes = gone.iter().map(|kept| kept.size).sum();
    for kept in &gone {
        outln!("{}", kept.record.name());
    }
    eprintln!("removed {}, {}", gone.len(), size(bytes));
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_units() {
        assert_eq!(parse_age("7d"), Ok(Duration::from_secs(7 * 86400)));
        assert_eq!(parse_age("90"), Ok(Duration::from_secs(90)));
        for bad in ["", "d", "1w", "-1", "99999999999999999999d"] {
            assert!(parse_age(bad).is_err(), "{bad}");
        }
    }
}
