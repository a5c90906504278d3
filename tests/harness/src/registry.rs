//! A real registry (Debian's docker-registry) with TLS and passwords, in the network of a test's host.
//!
//! Every host of a test has a loopback of its own, so each gets a server on `127.0.0.1:5000`; all of
//! them serve one directory, which makes them one registry.

use crate::host::{Host, run};
use crate::skips::Skip;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// Where it is.
pub const ADDRESS: &str = "127.0.0.1:5000";
/// Who it lets in, and with which password.
pub const CREDS: &str = "user:a secret";

/// Where the server is that gives tokens for it, if it wants tokens.
const TOKENS: &str = "127.0.0.1:5001";
const TOKEN_SERVER: &str = include_str!("token.py");

/// The directory of a registry, and its servers.
pub struct Registry {
    base: tempfile::TempDir,
    tokens: bool,
    servers: Vec<Child>,
}

impl Registry {
    /// A registry without images and without servers, which asks for a password.
    pub fn new() -> Result<Self> {
        Self::make(false)
    }

    /// As [`Registry::new`], one that asks for tokens (`token.py`).
    pub fn with_tokens() -> Result<Self> {
        Self::make(true)
    }

    fn make(tokens: bool) -> Result<Self> {
        for program in ["docker-registry", "htpasswd", "openssl", "curl"] {
            let found =
                Command::new("sh").args(["-c", &format!("command -v {program}")]).output()?;
            if !found.status.success() {
                return Err(Skip(format!("{program} is not installed")).into());
            }
        }
        let base = tempfile::Builder::new().prefix("arctern-registry-").tempdir_in("/var/tmp")?;
        let registry = Self { base, tokens, servers: Vec::new() };
        registry.make_certificates()?;
        let (user, password) = CREDS.split_once(':').context("credentials")?;
        let line = run(Command::new("htpasswd").args(["-Bbn", user, password]))?;
        fs::write(registry.path("htpasswd"), line.stdout)?;
        let path = |name: &str| registry.path(name).display().to_string();
        let way_in = match tokens {
            false => format!("htpasswd: {{realm: test, path: {}}}", path("htpasswd")),
            true => format!(
                "token: {{realm: 'https://{TOKENS}/token', service: test, issuer: test, \
                 rootcertbundle: {}}}",
                path("certs/ca.crt")
            ),
        };
        let config = format!(
            "version: 0.1\n\
             log: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\n\
             http: {{addr: '{ADDRESS}', tls: {{certificate: {}, key: {}}}}}\n\
             auth: {{{way_in}}}\n",
            path("data"),
            path("server.crt"),
            path("server.key"),
        );
        fs::write(registry.path("config.yml"), config)?;
        Ok(registry)
    }

    /// An authority in `certs/ca.crt`, and a certificate of it for the server.
    fn make_certificates(&self) -> Result<()> {
        fs::create_dir(self.certs())?;
        fs::write(self.path("san"), "subjectAltName=IP:127.0.0.1,DNS:localhost\n")?;
        let openssl = |arguments: &str| {
            let mut command = Command::new("openssl");
            run(command.current_dir(self.base.path()).args(arguments.split_whitespace()))
        };
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        openssl(&format!(
            "req -x509 {key} -keyout ca.key -out certs/ca.crt -days 30 -subj /CN=authority"
        ))?;
        openssl(&format!("req {key} -keyout server.key -out server.csr -subj /CN=localhost"))?;
        let by_authority = "-CA certs/ca.crt -CAkey ca.key -CAcreateserial -days 30";
        openssl("req -newkey rsa:2048 -nodes -keyout token.key -out token.csr -subj /CN=tokens")?;
        openssl(&format!("x509 -req -in token.csr {by_authority} -out token.crt"))?;
        openssl(&format!("x509 -req -in server.csr {by_authority} -extfile san -out server.crt"))?;
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.base.path().join(name)
    }

    /// Directory with the certificate of the authority.
    pub fn certs(&self) -> PathBuf {
        self.path("certs")
    }

    /// Serves it in the network of a host.
    pub fn serve(&mut self, host: &Host) -> Result<()> {
        if self.tokens {
            let mut command = host.place().command("python3");
            command.args(["-c", TOKEN_SERVER]).arg(self.base.path()).arg(TOKENS);
            command.stderr(Stdio::null());
            self.servers.push(command.spawn().context("cannot run the token server")?);
            host.connect(TOKENS)?;
        }
        self.serve_by(host.place().command("docker-registry"))?;
        host.connect(ADDRESS).map(drop)
    }

    /// Serves it wherever this command runs docker-registry.
    pub fn serve_by(&mut self, mut command: Command) -> Result<()> {
        command.arg("serve").arg(self.path("config.yml"));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("OTEL_TRACES_EXPORTER", "none").stdout(Stdio::null()).stderr(Stdio::null());
        self.servers.push(command.spawn().context("cannot run docker-registry")?);
        Ok(())
    }

    /// Ends all its servers.
    pub fn silence(&mut self) {
        for mut server in self.servers.drain(..) {
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    /// `arctern ARGUMENTS` on a host that has no configuration but this registry's: its certificates
    /// are trusted and it is searched for short names.
    pub fn command(&self, host: &Host, arguments: &[&str]) -> Result<Command> {
        let home = host.dir().join("home");
        let conf = home.join(".config/containers");
        let certs = conf.join("certs.d").join(ADDRESS);
        if !certs.exists() {
            fs::create_dir_all(&certs)?;
            fs::copy(self.certs().join("ca.crt"), certs.join("ca.crt"))?;
            fs::create_dir_all(home.join("run"))?;
            let text = format!("unqualified-search-registries = ['{ADDRESS}']\n");
            fs::write(conf.join("registries.conf"), text)?;
        }
        let mut command = host.command(arguments);
        command.env("HOME", &home).env("XDG_RUNTIME_DIR", home.join("run"));
        for name in ["REGISTRY_AUTH_FILE", "XDG_CONFIG_HOME", "DOCKER_CONFIG"] {
            command.env_remove(name);
        }
        Ok(command)
    }

    /// Runs `arctern ARGUMENTS`, which must succeed; what it printed.
    pub fn arctern(&self, host: &Host, arguments: &[&str]) -> Result<String> {
        let output = run(&mut self.command(host, arguments)?)?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Runs `arctern ARGUMENTS`, which must fail; what it said.
    pub fn refusal(&self, host: &Host, arguments: &[&str]) -> Result<String> {
        let output: Output = self.command(host, arguments)?.output()?;
        if output.status.success() {
            bail!("arctern {} did not fail", arguments.join(" "));
        }
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// What the token server was asked for so far: a scope and by whom, a line each.
    pub fn requests(&self) -> Result<String> {
        Ok(fs::read_to_string(self.path("requests"))?)
    }

    /// Logs a host in.
    pub fn login(&self, host: &Host) -> Result<()> {
        let (user, password) = CREDS.split_once(':').context("credentials")?;
        self.arctern(host, &["login", "-u", user, "-p", password, ADDRESS]).map(drop)
    }

    /// The file that holds a blob.
    pub fn blob(&self, hex: &str) -> PathBuf {
        let blobs = "docker/registry/v2/blobs/sha256";
        self.path("data").join(blobs).join(&hex[..2]).join(hex).join("data")
    }

    /// Puts a manifest of any kind; gives its digest.
    pub fn put(&self, host: &Host, name: &str, media: &str, manifest: &Path) -> Result<()> {
        let (repository, tag) = name.split_once(':').context("no tag")?;
        let mut curl = host.place().command("curl");
        curl.args(["--silent", "--show-error", "--fail", "-X", "PUT", "-u", CREDS, "--cacert"]);
        curl.arg(self.certs().join("ca.crt")).args(["-H", &format!("Content-Type: {media}")]);
        curl.arg("--data-binary").arg(format!("@{}", manifest.display()));
        run(curl.arg(format!("https://{ADDRESS}/v2/{repository}/manifests/{tag}"))).map(drop)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.silence();
    }
}
