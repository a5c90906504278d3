//! Image names: `[REGISTRY/]PATH[:TAG]`, and the short names people type.

use crate::store::StoreError;

/// A complete name: registry, path and tag are all there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImageName {
    /// `REGISTRY/PATH`.
    repository: String,
    tag: String,
}

impl ImageName {
    /// The name that a local operation (import, tag) gives to `text`: a short name belongs to
    /// `localhost`, a missing tag is `latest`.
    ///
    /// # Errors
    /// [`StoreError::BadName`].
    pub fn local(text: &str) -> Result<Self, StoreError> {
        let Parts { repository, tag, digest } = Parts::of(text)?;
        if digest.is_some() {
            let reason = "a digest cannot be given to an image: it has one";
            return Err(StoreError::BadName { name: text.to_owned(), reason });
        }
        let repository = match has_registry(repository) {
            true => repository.to_owned(),
            false => format!("localhost/{repository}"),
        };
        Ok(ImageName { repository, tag: tag.unwrap_or("latest").to_owned() })
    }

    /// The names that `text` may mean, most likely first.
    ///
    /// # Errors
    /// [`StoreError::BadName`].
    pub fn candidates(text: &str) -> Result<Vec<Self>, StoreError> {
        let Parts { repository, tag, .. } = Parts::of(text)?;
        let tag = tag.unwrap_or("latest");
        let name = |repository: String| ImageName { repository, tag: tag.to_owned() };
        if has_registry(repository) {
            let mut names = vec![name(repository.to_owned())];
            // docker.io/nginx is how people write docker.io/library/nginx.
            if let Some(("docker.io", path)) = repository.split_once('/')
                && !path.contains('/')
            {
                names.push(name(format!("docker.io/library/{path}")));
            }
            return Ok(names);
        }
        let hub = match repository.contains('/') {
            true => format!("docker.io/{repository}"),
            false => format!("docker.io/library/{repository}"),
        };
        Ok(vec![name(format!("localhost/{repository}")), name(hub)])
    }

    /// Whether this name ends in the short name `text`, at a path boundary.
    pub fn ends_with(&self, text: &str) -> bool {
        let Ok(Parts { repository, tag, .. }) = Parts::of(text) else {
            return false;
        };
        self.tag == tag.unwrap_or("latest") && is_end_of(repository, &self.repository)
    }

    /// `REGISTRY/PATH`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag.
    pub fn tag(&self) -> &str {
        &self.tag
    }
}

impl std::fmt::Display for ImageName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.repository, self.tag)
    }
}

/// Whether `short` is the end of `repository`, at a path boundary.
pub(crate) fn is_end_of(short: &str, repository: &str) -> bool {
    repository.strip_suffix(short).is_some_and(|rest| rest.is_empty() || rest.ends_with('/'))
}

/// Whether the first component names a registry: it has a dot or a port, or is `localhost`.
pub(crate) fn has_registry(repository: &str) -> bool {
    match repository.split_once('/') {
        Some((first, _)) => first == "localhost" || first.contains(['.', ':']),
        None => false,
    }
}

/// `[REGISTRY/]PATH[:TAG][@sha256:HEX]` as it was written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parts<'a> {
    /// `[REGISTRY/]PATH`.
    pub repository: &'a str,
    /// The tag.
    pub tag: Option<&'a str>,
    /// The digest of the manifest, hexadecimal.
    pub digest: Option<&'a str>,
}

impl<'a> Parts<'a> {
    /// Takes a name apart and checks every part.
    pub fn of(text: &'a str) -> Result<Self, StoreError> {
        let bad = |reason| StoreError::BadName { name: text.to_owned(), reason };
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => {
                let hex = digest.strip_prefix("sha256:").filter(|hex| is_sha256(hex));
                (name, Some(hex.ok_or_else(|| bad("the digest is not `sha256:` and 64 digits"))?))
            }
            None => (text, None),
        };
        let (repository, tag) = match name.rsplit_once(':') {
            // A colon before a slash belongs to a port.
            Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
            _ => (name, None),
        };
        check(repository, tag).map_err(bad)?;
        Ok(Parts { repository, tag, digest })
    }
}

/// Whether a text is a SHA-256 in hexadecimal, in small letters as everywhere.
pub(crate) fn is_sha256(hex: &str) -> bool {
    hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Says what is wrong with a repository and a tag.
fn check(repository: &str, tag: Option<&str>) -> Result<(), &'static str> {
    let tag_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if let Some(tag) = tag
        && (tag.is_empty()
            || tag.len() > 128
            || tag.starts_with(['.', '-'])
            || !tag.chars().all(tag_char))
    {
        return Err("the tag has characters that are not allowed");
    }
    if repository.is_empty() {
        return Err("it is empty");
    }
    let path = match has_registry(repository) {
        true => repository.split_once('/').map_or("", |(_, path)| path),
        false => repository,
    };
    let component = |part: &str| {
        let inner =
            |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '.' | '-');
        let ends =
            |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        part.chars().all(inner) && ends(part.chars().next()) && ends(part.chars().last())
    };
    if path.chars().any(|c| c.is_ascii_uppercase()) {
        return Err("it must be lower case");
    }
    if !path.split('/').all(component) {
        return Err("a part of its path is empty or has characters that are not allowed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_completed() {
        let local = |t| ImageName::local(t).map(|n| n.to_string()).ok();
        assert_eq!(local("nginx").as_deref(), Some("localhost/nginx:latest"));
        assert_eq!(local("web/nginx:1.2").as_deref(), Some("localhost/web/nginx:1.2"));
        assert_eq!(local("quay.io/a/b").as_deref(), Some("quay.io/a/b:latest"));
        assert_eq!(local("host:5000/a").as_deref(), Some("host:5000/a:latest"));
        let digest = "0".repeat(64);
        assert!(local(&format!("a@sha256:{digest}")).is_none());
        assert!(Parts::of(&format!("a:1@sha256:{digest}")).is_ok());
        assert!(Parts::of("a@sha256:12").is_err());
        for bad in ["", "Nginx", "a//b", "a:", "a:-x", "-a", "a b", "/a"] {
            assert!(ImageName::local(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn candidates_prefer_local_images() {
        let names = |t| -> Vec<String> {
            ImageName::candidates(t)
                .map(|v| v.iter().map(ToString::to_string).collect())
                .unwrap_or_default()
        };
        assert_eq!(names("nginx"), ["localhost/nginx:latest", "docker.io/library/nginx:latest"]);
        assert_eq!(names("a/b:1"), ["localhost/a/b:1", "docker.io/a/b:1"]);
        assert_eq!(
            names("docker.io/nginx"),
            ["docker.io/nginx:latest", "docker.io/library/nginx:latest"]
        );
        let quay = ImageName::local("quay.io/x/nginx").expect("valid");
        assert!(quay.ends_with("nginx") && quay.ends_with("x/nginx:latest"));
        assert!(!quay.ends_with("inx") && !quay.ends_with("nginx:2"));
    }
}
