//! `login`

use std::io::{self, BufRead, IsTerminal, Read};
use std::path::PathBuf;

use arctern_storage::registry::login::{self, Login};
use arctern_storage::registry::{Access, try_login};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use super::Context;
use crate::report::{Cannot, CommandResult};

/// Keep a user name and a password for a registry
///
/// The registry is asked first whether it takes them. They are kept, readable for their owner only,
/// where Podman keeps them, and forgotten with a reboot unless --authfile names another file.
///
///   arctern login registry.example:5000
///   arctern login -u user --password-stdin registry.example:5000 < password
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// User name
    #[arg(short, long, value_name = "NAME")]
    pub username: Option<String>,
    /// Password; others on this machine can see it on the command line
    #[arg(short, long, value_name = "PASSWORD", conflicts_with = "password_stdin")]
    pub password: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    pub password_stdin: bool,
    /// Print the user that is logged in
    #[arg(long)]
    pub get_login: bool,
    /// File with credentials
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,
    /// Check the certificate of the registry
    #[arg(
        long,
        value_name = "BOOL",
        require_equals = true,
        num_args = 0..=1,
        default_missing_value = "true"
    )]
    pub tls_verify: Option<bool>,
    /// Directory with certificates
    #[arg(long, value_name = "DIR")]
    pub cert_dir: Option<PathBuf>,
    /// Host and port of the registry, or a path in it
    #[arg(value_name = "REGISTRY", default_value = "docker.io")]
    pub registry: String,
}

/// Runs the command.
pub fn run(_: &Context, args: Args) -> CommandResult {
    let registry = args.registry.trim_start_matches("https://").trim_end_matches('/').to_owned();
    let action = || format!("log in to {registry}");
    let known = || login::find(&registry, args.authfile.as_deref());
    if args.get_login {
        let Some(login) = known().cannot(action)? else {
            return Err(anyhow::anyhow!("nobody is logged in"))
                .cannot(|| format!("name the user of {registry}"));
        };
        outln!("{}", login.user);
        return Ok(0);
    }
    let user = match args.username {
        Some(user) => user,
        None => ask("Username: ", true).cannot(action)?,
    };
    let password = match (args.password, args.password_stdin) {
        (Some(password), _) => password,
        (None, true) => {
            let mut text = String::new();
            io::stdin().read_to_string(&mut text).cannot(action)?;
            text.trim_end_matches(['\r', '\n']).to_owned()
        }
        (None, false) => ask("Password: ", false).cannot(action)?,
    };
    if user.is_empty() || password.is_empty() {
        return Err(anyhow::anyhow!("user name and password must not be empty")).cannot(action);
    }
    let login = Login { user, password, identity_token: None };
    let access = Access {
        login: Some(login.clone()),
        tls_verify: args.tls_verify,
        cert_dir: args.cert_dir,
        ..Access::default()
    };
    try_login(&registry, &access).cannot(action)?;
    let file = login::own_file(args.authfile.as_deref());
    login::store(&file, &registry, &login).cannot(action)?;
    outln!("Login Succeeded!");
    Ok(0)
}

/// Asks on the terminal; what is typed is shown or not.
fn ask(prompt: &str, shown: bool) -> io::Result<String> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        let missing = "no terminal to ask: give --username and --password-stdin";
        return Err(io::Error::other(missing));
    }
    eprint!("{prompt}");
    let saved = tcgetattr(&stdin)?;
    if !shown {
        let mut silent = saved.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&stdin, OptionalActions::Now, &silent)?;
    }
    let mut line = String::new();
    let read = stdin.lock().read_line(&mut line);
    if !shown {
        tcsetattr(&stdin, OptionalActions::Now, &saved)?;
        eprintln!();
    }
    read.map(|_| line.trim_end_matches(['\r', '\n']).to_owned())
}
