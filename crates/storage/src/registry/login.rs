//! Credentials: the files in which Podman and Docker keep them, and the programs that they name.
//!
//! `auth.json` and `config.json` have one form: `auths` with `base64(USER:PASSWORD)` by registry or
//! by a path in it, `credHelpers` with a program `docker-credential-NAME` by registry, and
//! `credsStore` with one for all. The most exact key counts.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::error::RegistryError;

/// Docker's key for docker.io.
const DOCKER_KEY: &str = "https://index.docker.io/v1/";
/// The user name with which a helper gives an identity token in place of a password.
const TOKEN_USER: &str = "<token>";

/// Who we say we are. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// User name.
    pub user: String,
    /// Password, or a token that stands for it.
    pub password: String,
    /// A refresh token of the registry's token server, in place of the password.
    pub identity_token: Option<String>,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

impl std::str::FromStr for Login {
    type Err = &'static str;

    /// `USER:PASSWORD`, as `--creds` has it.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (user, password) = text.split_once(':').ok_or("it is not USER:PASSWORD")?;
        if user.is_empty() {
            return Err("the user name is empty");
        }
        Ok(Login { user: user.to_owned(), password: password.to_owned(), identity_token: None })
    }
}

impl Login {
    /// The value of an `Authorization` header.
    pub(super) fn basic(&self) -> String {
        format!("Basic {}", STANDARD.encode(format!("{}:{}", self.user, self.password)))
    }
}

/// The files in which credentials are looked for, the first that has some counts.
fn files(authfile: Option<&Path>) -> Vec<PathBuf> {
    if let Some(file) = authfile {
        return vec![file.to_owned()];
    }
    let env =
        |name| std::env::var_os(name).map(PathBuf::from).filter(|p| !p.as_os_str().is_empty());
    if let Some(file) = env("REGISTRY_AUTH_FILE") {
        return vec![file];
    }
    let home = env("HOME");
    let config = env("XDG_CONFIG_HOME").or_else(|| home.as_ref().map(|h| h.join(".config")));
    let docker = env("DOCKER_CONFIG").or_else(|| home.map(|h| h.join(".docker")));
    let mut files = vec![default_file()];
    files.extend(config.map(|c| c.join("containers/auth.json")));
    files.extend(docker.map(|d| d.join("config.json")));
    files
}

/// Where `login` writes: it is gone after a reboot.
fn default_file() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|d| !d.is_empty()) {
        Some(dir) => PathBuf::from(dir).join("containers/auth.json"),
        None => PathBuf::from(format!(
            "/run/containers/{}/auth.json",
            rustix::process::getuid().as_raw()
        )),
    }
}

/// The file that `login` and `logout` change.
pub fn own_file(authfile: Option<&Path>) -> PathBuf {
    files(authfile).into_iter().next().unwrap_or_else(default_file)
}

/// The credentials for an image: `repository` is `REGISTRY/PATH`, or the registry alone.
///
/// # Errors
/// [`RegistryError::Config`] for damaged files, [`RegistryError::Helper`].
pub fn find(repository: &str, authfile: Option<&Path>) -> Result<Option<Login>, RegistryError> {
    for file in files(authfile) {
        let conf = read(&file)?;
        if let Some(login) = in_file(&conf, repository, &file)? {
            return Ok(Some(login));
        }
    }
    Ok(None)
}

fn in_file(
    conf: &Map<String, Value>,
    repository: &str,
    file: &Path,
) -> Result<Option<Login>, RegistryError> {
    let keys = keys(repository);
    let helper = |key: &String| conf.get("credHelpers")?.get(key)?.as_str();
    let registry = repository.split('/').next().unwrap_or(repository);
    if let Some(name) = keys.iter().find_map(helper) {
        return ask(name, registry);
    }
    let entry = |key: &String| {
        let auths = conf.get("auths")?.as_object()?;
        // People write the URL, too.
        let found = auths.iter().find(|(k, _)| plain(k) == *key || *k == key);
        found.map(|(_, entry)| entry)
    };
    if let Some(entry) = keys.iter().find_map(entry) {
        let text = |name: &str| entry.get(name).and_then(Value::as_str).filter(|t| !t.is_empty());
        let token = text("identitytoken").map(str::to_owned);
        match text("auth") {
            Some(auth) => {
                let bad = || RegistryError::Config {
                    path: file.to_owned(),
                    reason: format!("the entry for {registry} is not base64 of USER:PASSWORD"),
                };
                let bytes = STANDARD.decode(auth.trim()).map_err(|_| bad())?;
                let text = String::from_utf8(bytes).map_err(|_| bad())?;
                let (user, password) = text.split_once(':').ok_or_else(bad)?;
                return Ok(Some(Login {
                    user: user.to_owned(),
                    password: password.trim_end_matches('\0').to_owned(),
                    identity_token: token,
                }));
            }
            None if token.is_some() => {
                let user = TOKEN_USER.to_owned();
                return Ok(Some(Login { user, password: String::new(), identity_token: token }));
            }
            // With a helper for all, an empty entry only says that the helper has it.
            None => {}
        }
    }
    match conf.get("credsStore").and_then(Value::as_str).filter(|name| !name.is_empty()) {
        Some(name) => ask(name, registry),
        None => Ok(None),
    }
}

/// The keys that fit `a/b/c`, the most exact first: `a/b/c`, `a/b`, `a`.
fn keys(repository: &str) -> Vec<String> {
    let mut keys = vec![repository.to_owned()];
    let mut rest = repository;
    while let Some((shorter, _)) = rest.rsplit_once('/') {
        keys.push(shorter.to_owned());
        rest = shorter;
    }
    if rest == "docker.io" {
        keys.push(DOCKER_KEY.to_owned());
        keys.push("index.docker.io".to_owned());
    }
    keys
}

/// A key as old versions of Docker wrote it, without scheme and version.
fn plain(key: &str) -> &str {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
    match rest {
        Some(rest) => rest.split('/').next().unwrap_or(rest),
        None => key,
    }
}

/// Asks `docker-credential-NAME`.
fn ask(name: &str, registry: &str) -> Result<Option<Login>, RegistryError> {
    let program = format!("docker-credential-{name}");
    let failed = |reason: String| RegistryError::Helper {
        program: program.clone(),
        registry: registry.to_owned(),
        reason,
    };
    if name.contains('/') {
        return Err(failed("its name has a slash".to_owned()));
    }
    let server = if registry == "docker.io" { DOCKER_KEY } else { registry };
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed(e.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that answers without listening breaks the pipe, which is no failure.
        let _ = stdin.write_all(server.as_bytes());
    }
    let output = child.wait_with_output().map_err(|e| failed(e.to_string()))?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() {
        if said.contains("credentials not found") {
            return Ok(None);
        }
        let more = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(failed(format!("{} {said} {more}", output.status).trim().to_owned()));
    }
    let answer: Value =
        serde_json::from_str(&said).map_err(|_| failed("its answer is no JSON".to_owned()))?;
    let text = |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or("").to_owned();
    let (user, secret) = (text("Username"), text("Secret"));
    Ok(Some(match user == TOKEN_USER {
        true => Login { user, password: String::new(), identity_token: Some(secret) },
        false => Login { user, password: secret, identity_token: None },
    }))
}

/// Keeps credentials in a file that only its owner can read; what else is in it stays.
///
/// # Errors
/// [`RegistryError::Config`].
pub fn store(file: &Path, registry: &str, login: &Login) -> Result<(), RegistryError> {
    let mut conf = read(file)?;
    let auths = conf.entry("auths").or_insert_with(|| json!({}));
    if !auths.is_object() {
        *auths = json!({});
    }
    auths[registry] = json!({
        "auth": STANDARD.encode(format!("{}:{}", login.user, login.password)),
    });
    write(file, &conf)
}

/// Forgets the credentials of a registry, or all; says whether there were some.
///
/// # Errors
/// [`RegistryError::Config`].
pub fn forget(file: &Path, registry: Option<&str>) -> Result<bool, RegistryError> {
    let mut conf = read(file)?;
    let Some(auths) = conf.get_mut("auths").and_then(Value::as_object_mut) else {
        return Ok(false);
    };
    let before = auths.len();
    match registry {
        Some(registry) => auths.retain(|key, _| plain(key) != registry && key != registry),
        None => auths.clear(),
    }
    let gone = auths.len() < before;
    if gone {
        write(file, &conf)?;
    }
    Ok(gone)
}

fn failed(file: &Path, reason: impl ToString) -> RegistryError {
    RegistryError::Config { path: file.to_owned(), reason: reason.to_string() }
}

fn read(file: &Path) -> Result<Map<String, Value>, RegistryError> {
    match std::fs::read(file) {
        Ok(bytes) if bytes.iter().all(u8::is_ascii_whitespace) => Ok(Map::new()),
        // The parser's message quotes nothing of the file.
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| failed(file, e)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Map::new()),
        Err(e) => Err(failed(file, e)),
    }
}

fn write(file: &Path, conf: &Map<String, Value>) -> Result<(), RegistryError> {
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    let dir = file.parent().unwrap_or(Path::new("."));
    let written = (|| {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let mut name = file.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}", std::process::id()));
        let temporary = file.with_file_name(name);
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut new = options.open(&temporary)?;
        new.write_all(serde_json::to_string_pretty(conf)?.as_bytes())?;
        new.write_all(b"\n")?;
        new.sync_all()?;
        std::fs::rename(&temporary, file)
    })();
    written.map_err(|e: io::Error| failed(file, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_exact_entry_counts() {
        let conf = json!({ "auths": {
            "quay.io": { "auth": STANDARD.encode("a:1") },
            "quay.io/team": { "auth": STANDARD.encode("b:2:3") },
            DOCKER_KEY: { "auth": STANDARD.encode("c:4") },
            "ghcr.io": { "identitytoken": "t" },
        }});
        let conf = conf.as_object().expect("object");
        let find = |name: &str| {
            let login = in_file(conf, name, Path::new("x")).expect("readable")?;
            Some(format!("{}:{}", login.user, login.identity_token.unwrap_or(login.password)))
        };
        assert_eq!(find("quay.io/x").as_deref(), Some("a:1"));
        assert_eq!(find("quay.io/team/x").as_deref(), Some("b:2:3"));
        assert_eq!(find("quay.io").as_deref(), Some("a:1"));
        assert_eq!(find("docker.io/library/x").as_deref(), Some("c:4"));
        assert_eq!(find("ghcr.io/x").as_deref(), Some("<token>:t"));
        assert_eq!(find("other.io/x"), None);
    }

    #[test]
    fn login_and_logout_leave_the_rest_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("deep/auth.json");
        store(&file, "a.io", &"u:p".parse().expect("creds")).expect("store");
        store(&file, "b.io", &"v:q".parse().expect("creds")).expect("store");
        let mode = std::fs::metadata(&file).expect("file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(find("b.io/x", Some(&file)).expect("read").expect("login").user, "v");
        assert!(forget(&file, Some("b.io")).expect("forget"));
        assert!(!forget(&file, Some("b.io")).expect("forget"));
        assert_eq!(find("b.io/x", Some(&file)).expect("read"), None);
        assert!(find("a.io/x", Some(&file)).expect("read").is_some());
        std::fs::write(&file, "{").expect("write");
        assert!(find("a.io/x", Some(&file)).is_err());
    }

    #[test]
    fn passwords_are_not_shown() {
        let login: Login = "user:secret".parse().expect("creds");
        assert!(!format!("{login:?}").contains("secret"));
        assert!("user".parse::<Login>().is_err() && ":x".parse::<Login>().is_err());
    }
}
