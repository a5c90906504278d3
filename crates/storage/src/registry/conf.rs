//! `registries.conf`: which registries a short name means, and where their contents really are.
//!
//! Read are, as Podman does: the file that `CONTAINERS_REGISTRIES_CONF` names, else
//! `~/.config/containers/registries.conf`, else `/etc/containers/registries.conf`; then the `*.conf`
//! of `registries.conf.d` beside each of the latter two (`CONTAINERS_REGISTRIES_CONF_DIR`), by name.
//! What a later file says about the same thing counts.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::error::RegistryError;
use super::reference::Reference;

/// Searched when nothing is configured.
const DEFAULT_SEARCH: &str = "docker.io";
/// Where docker.io really is.
const DOCKER_IO: (&str, &str) = ("docker.io", "registry-1.docker.io");

/// The merged configuration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Conf {
    unqualified_search_registries: Option<Vec<String>>,
    #[serde(default)]
    registry: Vec<Registry>,
    #[serde(default)]
    aliases: BTreeMap<String, String>,
}

/// One `[[registry]]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Registry {
    prefix: String,
    location: String,
    insecure: bool,
    blocked: bool,
    mirror: Vec<Mirror>,
    mirror_by_digest_only: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Mirror {
    location: String,
    insecure: bool,
    pull_from_mirror: Option<String>,
}

/// A place from which an image can be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Host and port to which requests go.
    pub host: String,
    /// Path of the repository there.
    pub path: String,
    /// Without TLS, or with a certificate that nobody checks.
    pub insecure: bool,
    /// The registry as configuration and credentials name it.
    pub registry: String,
}

impl Registry {
    fn prefix(&self) -> &str {
        if self.prefix.is_empty() { &self.location } else { &self.prefix }
    }

    /// The length of the part of `repository` that this is about.
    fn matches(&self, repository: &str) -> Option<usize> {
        let prefix = self.prefix();
        if let Some(domain) = prefix.strip_prefix("*.") {
            let host = repository.split('/').next().unwrap_or(repository);
            let bare = host.split(':').next().unwrap_or(host);
            let below = bare.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
            return below.then_some(host.len());
        }
        let rest = repository.strip_prefix(prefix)?;
        (rest.is_empty() || rest.starts_with('/')).then_some(prefix.len())
    }
}

impl Conf {
    /// The configuration of this host and user.
    ///
    /// # Errors
    /// [`RegistryError::Config`] names the file with a mistake.
    pub fn load() -> Result<Self, RegistryError> {
        let env =
            |name| std::env::var_os(name).map(PathBuf::from).filter(|p| !p.as_os_str().is_empty());
        let system = PathBuf::from("/etc/containers");
        let home = env("XDG_CONFIG_HOME").or_else(|| env("HOME").map(|home| home.join(".config")));
        let user = home.map(|config| config.join("containers"));
        let mut files = match env("CONTAINERS_REGISTRIES_CONF") {
            Some(file) => vec![file],
            None => {
                let own = user.as_ref().map(|dir| dir.join("registries.conf"));
                vec![own.filter(|f| f.exists()).unwrap_or_else(|| system.join("registries.conf"))]
            }
        };
        let drop_ins = match env("CONTAINERS_REGISTRIES_CONF_DIR") {
            Some(dir) => vec![dir],
            None => {
                std::iter::once(system).chain(user).map(|d| d.join("registries.conf.d")).collect()
            }
        };
        for dir in drop_ins {
            files.extend(confs_in(&dir)?);
        }
        let mut conf = Conf::default();
        for file in files {
            match std::fs::read_to_string(&file) {
                Ok(text) => {
                    let more = Conf::parse(&text)
                        .map_err(|reason| RegistryError::Config { path: file, reason })?;
                    conf.merge(more);
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => {
                    return Err(RegistryError::Config { path: file, reason: e.to_string() });
                }
            }
        }
        Ok(conf)
    }

    /// One file.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let conf: Conf = toml::from_str(text).map_err(|e| e.to_string().trim().to_owned())?;
        match conf.registry.iter().find(|r| r.prefix().is_empty()) {
            Some(_) => Err("a [[registry]] has neither prefix nor location".to_owned()),
            None => Ok(conf),
        }
    }

    fn merge(&mut self, more: Conf) {
        if more.unqualified_search_registries.is_some() {
            self.unqualified_search_registries = more.unqualified_search_registries;
        }
        for registry in more.registry {
            self.registry.retain(|r| r.prefix() != registry.prefix());
            self.registry.push(registry);
        }
        self.aliases.extend(more.aliases);
    }

    /// The registries in which short names are looked for.
    pub fn search(&self) -> Vec<&str> {
        match &self.unqualified_search_registries {
            Some(list) if !list.is_empty() => list.iter().map(String::as_str).collect(),
            _ => vec![DEFAULT_SEARCH],
        }
    }

    /// The repository for which a short name stands.
    pub fn alias(&self, short: &str) -> Option<&str> {
        // An empty one takes an alias of an earlier file away.
        self.aliases.get(short).map(String::as_str).filter(|alias| !alias.is_empty())
    }

    /// Where an image is to be looked for: mirrors first, the registry itself last.
    ///
    /// # Errors
    /// [`RegistryError::Blocked`].
    pub fn sources(&self, image: &Reference) -> Result<Vec<Source>, RegistryError> {
        let repository = image.repository();
        let best = self.registry.iter().filter_map(|r| Some((r.matches(repository)?, r)));
        let Some((matched, entry)) = best.max_by_key(|(length, _)| *length) else {
            return Ok(vec![source(repository, "", "", false)]);
        };
        if entry.blocked {
            return Err(RegistryError::Blocked(entry.prefix().to_owned()));
        }
        let (prefix, rest) = repository.split_at(matched);
        let by_digest = image.digest.is_some();
        let usable = |mirror: &&Mirror| match mirror.pull_from_mirror.as_deref() {
            Some("digest-only") => by_digest,
            Some("tag-only") => !by_digest,
            _ => by_digest || !entry.mirror_by_digest_only,
        };
        let mut sources: Vec<Source> = entry
            .mirror
            .iter()
            .filter(usable)
            .map(|m| source(prefix, &m.location, rest, m.insecure))
            .collect();
        sources.push(source(prefix, &entry.location, rest, entry.insecure));
        Ok(sources)
    }

    /// Where an image is pushed to: the registry itself.
    ///
    /// # Errors
    /// As [`Conf::sources`].
    pub fn destination(&self, image: &Reference) -> Result<Source, RegistryError> {
        let mut sources = self.sources(image)?;
        Ok(sources.pop().unwrap_or_else(|| source(image.repository(), "", "", false)))
    }
}

/// The place of `prefix` + `rest`, or of `location` + `rest` where a location is configured.
fn source(prefix: &str, location: &str, rest: &str, insecure: bool) -> Source {
    let whole = match location {
        "" => format!("{prefix}{rest}"),
        location => format!("{location}{rest}"),
    };
    let (registry, path) = whole.split_once('/').unwrap_or((&whole, ""));
    let host = if registry == DOCKER_IO.0 { DOCKER_IO.1 } else { registry };
    Source { host: host.to_owned(), path: path.to_owned(), insecure, registry: registry.to_owned() }
}

/// The `*.conf` files of a directory, by name.
fn confs_in(dir: &Path) -> Result<Vec<PathBuf>, RegistryError> {
    let failed =
        |e: io::Error| RegistryError::Config { path: dir.to_owned(), reason: e.to_string() };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|e| e == "conf") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(conf: &Conf, text: &str) -> Vec<String> {
        let image = &Reference::candidates(text, conf).expect("name")[0];
        let sources = conf.sources(image).expect("sources");
        let show = |s: &Source| {
            format!("{}/{}{}", s.host, s.path, if s.insecure { " insecure" } else { "" })
        };
        sources.iter().map(show).collect()
    }

    #[test]
    fn places_follow_the_longest_prefix() {
        let conf = Conf::parse(
            r#"
            [[registry]]
            prefix = "example.com"
            location = "cache.local:5000/example"
            insecure = true
            [[registry]]
            prefix = "example.com/team"
            location = "team.local"
            [[registry.mirror]]
            location = "mirror.local/team"
            [[registry]]
            prefix = "*.bad.org"
            blocked = true
            "#,
        )
        .expect("conf");
        assert_eq!(places(&conf, "example.com/a:1"), ["cache.local:5000/example/a insecure"]);
        assert_eq!(places(&conf, "example.com/team/a"), ["mirror.local/team/a", "team.local/a"]);
        assert_eq!(places(&conf, "example.comx/a"), ["example.comx/a"]);
        assert_eq!(places(&conf, "nginx"), ["registry-1.docker.io/library/nginx"]);
        let bad = &Reference::candidates("x.bad.org/a", &conf).expect("name")[0];
        assert!(matches!(conf.sources(bad), Err(RegistryError::Blocked(_))));
    }

    #[test]
    fn later_files_count() {
        let mut conf =
            Conf::parse("unqualified-search-registries = ['a.io']\n[aliases]\nx='a.io/x'")
                .expect("conf");
        conf.merge(Conf::parse("[aliases]\nx=''\ny='b.io/y'").expect("conf"));
        assert_eq!(conf.search(), ["a.io"]);
        assert_eq!((conf.alias("x"), conf.alias("y")), (None, Some("b.io/y")));
        assert_eq!(Conf::default().search(), ["docker.io"]);
        assert!(Conf::parse("[[registry]]\nblocked = true").is_err());
        assert!(Conf::parse("[[registry").is_err());
    }
}
