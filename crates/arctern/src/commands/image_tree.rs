//! `image tree`

use arctern_container::config::short_id;

use super::Context;
use crate::report::{Cannot, CommandResult};
use crate::ui::size;

/// Show the layers of an image, the lowest first, and which images end with each
///
///   arctern image tree nginx
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Image, by name or id
    #[arg(value_name = "IMAGE")]
    pub image: String,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let host = ctx.host()?;
    let action = || format!("show the layers of `{}`", args.image);
    let image = host.images.resolve(&args.image).cannot(action)?;
    let all = host.images.images().cannot(action)?;
    outln!("Image ID: {}", short_id(&image.id));
    outln!("Tags:     {}", image.names.join(", "));
    outln!("Size:     {}", size(image.size));
    for (number, layer) in image.layers.iter().enumerate() {
        let below = &image.layers[..=number];
        let tops: Vec<String> =
            all.iter().filter(|i| i.layers == below).flat_map(|i| i.names.clone()).collect();
        let bytes = image.layer_sizes.get(number).copied().unwrap_or(0);
        let tops = match tops.is_empty() {
            true => String::new(),
            false => format!("  top layer of {}", tops.join(", ")),
        };
        let branch = if number + 1 == image.layers.len() { "└──" } else { "├──" };
        outln!("{branch} {}  {}{tops}", short_id(layer), size(bytes));
    }
    Ok(0)
}
