//! `system check`

use arctern_container::audit::{AuditOptions, Finding, Outcome};
use serde_json::json;

use super::Context;
use crate::report::{Cannot, CommandResult};

/// Check what is stored, and what is left of killed commands
///
/// Compares the database, the directories of containers, images, layers and volumes, and what the
/// kernel has: processes, control groups, mounts, network namespaces, addresses, locks, devices and
/// rules. Prints a line for everything that does not fit together. Containers on which a command is
/// at work are left out.
///
///   arctern system check
///   arctern system check --repair
///
/// Exit codes: 0 nothing is wrong, or all of it was repaired; 1 something is wrong; 125 the check
/// itself failed.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Repair what is found
    #[arg(short, long)]
    pub repair: bool,
    /// Remove containers that cannot be repaired, and those of damaged images
    #[arg(short, long, requires = "repair")]
    pub force: bool,
    /// Leave out what takes long: the digests of images, the indexes of the database
    #[arg(short, long)]
    pub quick: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
    /// Output format: text or json
    #[arg(long, value_name = "FORMAT", value_parser = ["text", "json"], default_value = "text")]
    pub format: String,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let options = AuditOptions { quick: args.quick, repair: args.repair, force: args.force };
    let mut host = ctx.host()?;
    let audit = host.audit(options).cannot(|| "check what is stored")?;
    if args.json || args.format == "json" {
        let findings: Vec<_> = audit
            .findings
            .iter()
            .map(|finding| {
                json!({
                    "object": finding.object,
                    "problem": finding.problem,
                    "remedy": finding.remedy,
                    "outcome": word(&finding.outcome),
                    "reason": reason(&finding.outcome),
                })
            })
            .collect();
        let report = json!({ "findings": findings, "busy": audit.busy, "clean": audit.is_clean() });
        outln!("{}", serde_json::to_string_pretty(&report).cannot(|| "write JSON")?);
    } else {
        for finding in &audit.findings {
            outln!("{}", line(finding));
        }
        for id in &audit.busy {
            eprintln!("container {id} was left out: a command is at work on it");
        }
    }
    Ok(u8::from(!audit.is_clean()))
}

fn line(finding: &Finding) -> String {
    let Finding { object, problem, remedy, outcome } = finding;
    match outcome {
        Outcome::Found => format!("{object}: {problem}; repair: {remedy}"),
        Outcome::Repaired => format!("{object}: {problem}; repaired: {remedy}"),
        Outcome::Stays(why) => format!("{object}: {problem}; not repaired ({remedy}): {why}"),
    }
}

fn word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Found => "found",
        Outcome::Repaired => "repaired",
        Outcome::Stays(_) => "stays",
    }
}

fn reason(outcome: &Outcome) -> Option<&str> {
    match outcome {
        Outcome::Stays(why) => Some(why),
        Outcome::Found | Outcome::Repaired => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_object_problem_and_repair() {
        let mut finding = Finding {
            object: "container web (0123456789ab)".into(),
            problem: "its restore was killed half-way".into(),
            remedy: "clean up".into(),
            outcome: Outcome::Found,
        };
        insta::assert_snapshot!(line(&finding), @"container web (0123456789ab): its restore was killed half-way; repair: clean up");
        finding.outcome = Outcome::Stays("busy".into());
        insta::assert_snapshot!(line(&finding), @"container web (0123456789ab): its restore was killed half-way; not repaired (clean up): busy");
    }
}
