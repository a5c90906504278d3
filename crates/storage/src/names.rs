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
        let (repository, tag) = split(text)?;
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
        let (repository, tag) = split(text)?;
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
        let Ok((repository, tag)) = split(text) else {
            return false;
        };
        self.tag == tag.unwrap_or("latest")
            && self
                .repository
                .strip_suffix(repository)
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('/'))
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

/// Whether the first component names a registry: it has a dot or a port, or is `localhost`.
fn has_registry(repository: &str) -> bool {
    match repository.split_once('/') {
        Some((first, _)) => first == "localhost" || first.contains(['.', ':']),
        None => false,
    }
}

/// Splits off the tag and checks both parts.
fn split(text: &str) -> Result<(&str, Option<&str>), StoreError> {
    let bad = |reason| StoreError::BadName { name: text.to_owned(), reason };
    let (repository, tag) = match text.rsplit_once(':') {
        // A colon before a slash belongs to a port.
        Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
        _ => (text, None),
    };
    let tag_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if let Some(tag) = tag
        && (tag.is_empty()
            || tag.len() > 128
            || tag.starts_with(['.', '-'])
            || !tag.chars().all(tag_char))
    {
        return Err(bad("the tag has characters that are not allowed"));
    }
    if repository.is_empty() {
        return Err(bad("it is empty"));
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
        return Err(bad("it must be lower case"));
    }
    if !path.split('/').all(component) {
        return Err(bad("a part of its path is empty or has characters that are not allowed"));
    }
    Ok((repository, tag))
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
