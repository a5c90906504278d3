//! `import`

use std::fs::File;
use std::io::Read;

use arctern_storage::ImportOptions;

use super::Context;
use crate::report::{Cannot, CommandResult};

/// Make an image from a tar archive of a root file system
///
/// The archive may be compressed with gzip or zstd; `-` reads it from standard input. Prints the
/// image's id.
///
///   arctern import rootfs.tar debian
///   mmdebstrap --variant=minbase --include=nginx-light bookworm | \
///     arctern import --change 'CMD ["nginx","-g","daemon off;"]' - nginx
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Set something in the image: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, WORKDIR
    #[arg(short, long, value_name = "INSTRUCTION")]
    pub change: Vec<String>,
    /// Comment in the image's history
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,
    /// Archive, or `-`
    #[arg(value_name = "FILE")]
    pub file: String,
    /// Name of the image
    #[arg(value_name = "NAME[:TAG]")]
    pub name: Option<String>,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let action = || format!("import `{}`", args.file);
    let host = ctx.host()?;
    let source: Box<dyn Read> = if args.file == "-" {
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(File::open(&args.file).cannot(action)?)
    };
    let options = ImportOptions {
        name: args.name.clone(),
        changes: args.change.clone(),
        message: args.message.clone(),
    };
    let image = host.images.import(source, &options).cannot(action)?;
    outln!("{}", image.id);
    Ok(0)
}
