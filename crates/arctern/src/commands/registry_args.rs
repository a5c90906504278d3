//! Options of every command that speaks with registries.

use std::path::PathBuf;

use arctern_container::Host;
use arctern_storage::Image;
use arctern_storage::registry::{Access, Login, Platform, PullOptions, PullPolicy};

use crate::report::{Cannot, Failure};
use crate::transfer::Transfers;

/// Heading of these options.
const HEADING: &str = "Registry options";

/// How a registry is entered.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct RegistryArgs {
    /// User and password for the registry, in place of those of the files
    #[arg(long, value_name = "USER:PASSWORD", value_parser = parse::<Login>, help_heading = HEADING)]
    pub creds: Option<Login>,
    /// File with credentials [default: $REGISTRY_AUTH_FILE, then Podman's and Docker's files]
    #[arg(long, value_name = "FILE", help_heading = HEADING)]
    pub authfile: Option<PathBuf>,
    /// Check the certificate of the registry; false also allows registries without TLS [default: as
    /// registries.conf says, else true]
    #[arg(
        long,
        value_name = "BOOL",
        require_equals = true,
        num_args = 0..=1,
        default_missing_value = "true",
        help_heading = HEADING
    )]
    pub tls_verify: Option<bool>,
    /// Directory with certificates [default: /etc/containers/certs.d/HOST:PORT]
    #[arg(long, value_name = "DIR", help_heading = HEADING)]
    pub cert_dir: Option<PathBuf>,
}

impl RegistryArgs {
    /// As the library takes them.
    pub fn access(self) -> Access {
        Access {
            login: self.creds,
            authfile: self.authfile,
            tls_verify: self.tls_verify,
            cert_dir: self.cert_dir,
        }
    }
}

/// When and how a command gets an image that it needs.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct PullArgs {
    /// When to get the image from its registry: always, missing, never, newer
    #[arg(long, value_name = "POLICY", default_value = "missing", value_parser = parse::<PullPolicy>, help_heading = HEADING)]
    pub pull: PullPolicy,
    /// Get the image for this kind of machine
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_parser = parse::<Platform>, help_heading = HEADING)]
    pub platform: Option<Platform>,
    #[command(flatten)]
    pub registry: RegistryArgs,
}

impl PullArgs {
    /// As the library takes them.
    pub fn options(self) -> PullOptions {
        PullOptions {
            access: self.registry.access(),
            platform: self.platform,
            ..PullOptions::default()
        }
    }

    /// The image, after it was got if it had to be.
    pub fn ensure(self, host: &Host, name: &str) -> Result<Image, Failure> {
        let policy = self.pull;
        let transfers = Transfers::new(false);
        host.images
            .ensure(name, policy, &self.options(), &transfers)
            .cannot(|| format!("get image `{name}`"))
    }
}

pub fn parse<T: std::str::FromStr>(text: &str) -> Result<T, T::Err> {
    text.parse()
}
