//! What goes wrong with registries.

use std::io;
use std::path::PathBuf;

/// What went wrong between this host and a registry. Display names the registry and the object;
/// [`RegistryError::hint`] says what to do.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No connection, or one that broke.
    #[error("no answer from registry {registry}")]
    Unreachable {
        /// Host and port.
        registry: String,
        /// What the HTTP library said.
        source: Box<ureq::Error>,
    },
    /// The certificate of the registry is signed by nobody that we trust.
    #[error("the certificate of registry {registry} is not trusted")]
    Untrusted {
        /// Host and port.
        registry: String,
        /// What is wrong with it.
        source: Box<rustls::Error>,
    },
    /// The registry wants somebody else.
    #[error("registry {registry} does not let {} {action}", .user.as_deref().unwrap_or("strangers"))]
    Denied {
        /// Host and port.
        registry: String,
        /// Who we said we are.
        user: Option<String>,
        /// What was tried: `pull from x/y`.
        action: String,
    },
    /// The registry does not have it.
    #[error("registry {registry} has no {what}")]
    Missing {
        /// Host and port.
        registry: String,
        /// What was asked for.
        what: String,
    },
    /// Any other answer that does not help.
    #[error("registry {registry} answers {status} to {what}{}", .message.as_deref().map(|m| format!(": {m}")).unwrap_or_default())]
    Answer {
        /// Host and port.
        registry: String,
        /// HTTP status.
        status: u16,
        /// What was asked for.
        what: String,
        /// What it said about it.
        message: Option<String>,
    },
    /// What came is not what was asked for.
    #[error("{what} from registry {registry} is damaged: it has the digest {found}")]
    Corrupt {
        /// Host and port.
        registry: String,
        /// `layer sha256:…`.
        what: String,
        /// The digest of what came.
        found: String,
    },
    /// It is shorter or longer than its manifest says.
    #[error("{what} from registry {registry} has {found} bytes in place of {expected}")]
    Length {
        /// Host and port.
        registry: String,
        /// `layer sha256:…`.
        what: String,
        /// Bytes that were to come.
        expected: u64,
        /// Bytes that came.
        found: u64,
    },
    /// The transfer broke off.
    #[error("{what} from registry {registry} broke off")]
    Broken {
        /// Host and port.
        registry: String,
        /// `layer sha256:…`.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// A description makes no sense.
    #[error("{what} from registry {registry} is no image: {reason}")]
    NotAnImage {
        /// Host and port.
        registry: String,
        /// Which description.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The index has no image for this machine.
    #[error("{image} has no image for {wanted}, only for {}", .offered.join(", "))]
    NoPlatform {
        /// The name.
        image: String,
        /// `os/architecture`.
        wanted: String,
        /// What there is.
        offered: Vec<String>,
    },
    /// registries.conf forbids it.
    #[error("registry {0} is blocked by registries.conf")]
    Blocked(String),
    /// A configuration file has a mistake.
    #[error("{path} cannot be used: {reason}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A `docker-credential-…` program failed.
    #[error("{program} gives no credentials for {registry}: {reason}")]
    Helper {
        /// The program.
        program: String,
        /// For which registry.
        registry: String,
        /// What it said.
        reason: String,
    },
    /// None of the places that a name may mean has it.
    #[error("{}", .0.iter().map(|(place, why)| format!("{place}: {why}")).collect::<Vec<_>>().join("\n"))]
    Nowhere(Vec<(String, String)>),
    /// The image by which something was pinned is another one now.
    #[error("{name} is another image now: {found} in place of {wanted}")]
    Moved {
        /// The name that was asked for.
        name: String,
        /// The id that it was to have.
        wanted: String,
        /// The id that it has.
        found: String,
    },
}

impl RegistryError {
    /// What the user can do about it, where there is something.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            RegistryError::Untrusted { registry, .. } => format!(
                "put the certificate of its authority into /etc/containers/certs.d/{registry}/ca.crt \
                 or name its directory with --cert-dir; --tls-verify=false trusts anybody"
            ),
            RegistryError::Denied { registry, .. } => {
                format!("`arctern login {registry}`, or give --creds USER:PASSWORD")
            }
            RegistryError::Unreachable { .. } => {
                "see that the name and the port are right, and that the registry runs; one without \
                 TLS needs --tls-verify=false"
                    .to_owned()
            }
            RegistryError::Corrupt { .. } | RegistryError::Length { .. } => {
                "nothing of it was kept; push the image anew from where it is whole".to_owned()
            }
            RegistryError::Broken { .. } => "nothing of it was kept; try again".to_owned(),
            RegistryError::NoPlatform { .. } => {
                "ask for one of them with --platform OS/ARCH".to_owned()
            }
            RegistryError::Moved { name, .. } => {
                format!(
                    "push the old image to {name} again, or carry it with the checkpoint (--with-image)"
                )
            }
            _ => return None,
        })
    }
}
