//! What `pull` and `push` are told: an image in a registry, by tag or by digest.

use super::conf::Conf;
use crate::names::{ImageName, Parts, has_registry};
use crate::store::StoreError;

/// An image in a registry: `REGISTRY/PATH[:TAG][@sha256:HEX]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// `REGISTRY/PATH`.
    pub(super) repository: String,
    /// `latest` when neither tag nor digest were given.
    pub(super) tag: Option<String>,
    /// SHA-256 of the manifest, hexadecimal: it counts, the tag is for people.
    pub(super) digest: Option<String>,
}

impl Reference {
    /// The places that a name may mean, in the order in which they are asked. A name with a registry
    /// means one; a short name goes by the aliases and then by the registries to be searched.
    ///
    /// # Errors
    /// [`StoreError::BadName`].
    pub fn candidates(text: &str, conf: &Conf) -> Result<Vec<Self>, StoreError> {
        let parts = Parts::of(text.strip_prefix("docker://").unwrap_or(text))?;
        let at = |repository: String| Reference {
            repository,
            tag: match (parts.tag, parts.digest) {
                (Some(tag), _) => Some(tag.to_owned()),
                (None, Some(_)) => None,
                (None, None) => Some("latest".to_owned()),
            },
            digest: parts.digest.map(str::to_owned),
        };
        let repository = parts.repository;
        if has_registry(repository) {
            return Ok(vec![at(with_library(repository.to_owned()))]);
        }
        if let Some(alias) = conf.alias(repository) {
            return Ok(vec![at(with_library(alias.to_owned()))]);
        }
        let search = conf.search().into_iter();
        Ok(search.map(|registry| at(with_library(format!("{registry}/{repository}")))).collect())
    }

    /// Of a complete name.
    pub fn of(name: &ImageName) -> Self {
        Reference {
            repository: name.repository().to_owned(),
            tag: Some(name.tag().to_owned()),
            digest: None,
        }
    }

    /// The registry as it is written in names.
    pub fn registry(&self) -> &str {
        self.repository.split_once('/').map_or(&self.repository, |(registry, _)| registry)
    }

    /// `REGISTRY/PATH`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// What stands for it in requests: the digest, else the tag.
    pub(super) fn selector(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => format!("sha256:{digest}"),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }

    /// The name by which an image that was pulled is known afterwards; none when it was asked for by
    /// digest alone.
    pub(super) fn name(&self) -> Option<ImageName> {
        match &self.digest {
            None => ImageName::local(&self.to_string()).ok(),
            Some(_) => None,
        }
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@sha256:{digest}"),
            None => Ok(()),
        }
    }
}

/// docker.io keeps its own images under `library/`.
fn with_library(repository: String) -> String {
    match repository.split_once('/') {
        Some(("docker.io", path)) if !path.contains('/') => format!("docker.io/library/{path}"),
        _ => repository,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_places() {
        let conf: Conf = Conf::parse(
            r#"unqualified-search-registries = ["docker.io", "quay.io"]
               [aliases]
               "deb" = "registry.example/os/debian""#,
        )
        .expect("conf");
        let names = |text: &str| -> Vec<String> {
            let found = Reference::candidates(text, &conf).expect("name");
            found.iter().map(ToString::to_string).collect()
        };
        assert_eq!(names("nginx"), ["docker.io/library/nginx:latest", "quay.io/nginx:latest"]);
        assert_eq!(names("a/b:1"), ["docker.io/a/b:1", "quay.io/a/b:1"]);
        assert_eq!(names("deb:12"), ["registry.example/os/debian:12"]);
        assert_eq!(names("docker://localhost:5000/x"), ["localhost:5000/x:latest"]);
        let pinned = format!("quay.io/x:1@sha256:{}", "a".repeat(64));
        let found = &Reference::candidates(&pinned, &conf).expect("name")[0];
        assert_eq!(found.to_string(), pinned);
        assert_eq!(found.selector(), format!("sha256:{}", "a".repeat(64)));
        assert_eq!(found.name(), None);
    }
}
