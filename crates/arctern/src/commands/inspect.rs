//! `inspect`

use clap::ValueEnum;

use super::Context;
use crate::format::Format;
use crate::report::{Cannot, CommandResult};

/// Show everything about containers or images
///
/// As JSON, or the fields that --format names.
///
///   arctern inspect web
///   arctern inspect --format '{{.State.Status}} {{.State.Pid}}' web
///   arctern inspect --format '{{json .NetworkSettings}}' --latest
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Output format: json, or fields: `{{.Id}} {{.State.Status}}`
    #[arg(short, long, value_name = "FORMAT", default_value = "json")]
    pub format: Format,
    /// What the names are of
    #[arg(short = 't', long = "type", value_name = "KIND", default_value = "all")]
    pub kind: Kind,
    /// The container that was created last
    #[arg(short, long, conflicts_with = "names")]
    pub latest: bool,
    /// Containers or images, by name or id
    #[arg(value_name = "NAME", required_unless_present = "latest")]
    pub names: Vec<String>,
}

/// What can be inspected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// A container, or an image if there is none
    All,
    Container,
    Image,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let mut host = ctx.host()?;
    let mut all = Vec::new();
    let names = match args.latest {
        true => vec![host.latest().cannot(|| "find the latest container")?],
        false => args.names,
    };
    for name in &names {
        let action = || format!("inspect `{name}`");
        let found = match args.kind {
            Kind::Image => Err(arctern_container::Error::NoSuchContainer(name.clone())),
            Kind::All | Kind::Container => host.inspect(name),
        };
        let value = match found {
            Err(error @ arctern_container::Error::NoSuchContainer(_))
                if args.kind != Kind::Container =>
            {
                match host.images.resolve(name) {
                    Ok(image) => super::images::describe(&host, &image).cannot(action)?,
                    Err(error) if args.kind == Kind::Image => return Err(error).cannot(action),
                    Err(_) => return Err(error).cannot(action),
                }
            }
            result => result.cannot(action)?,
        };
        all.push(value);
    }
    args.format.print_all(&all, &all)?;
    Ok(0)
}
