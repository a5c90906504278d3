//! The instructions of `import --change`: a small part of the Dockerfile language.

use std::collections::BTreeMap;

use oci_spec::image::{Config, ConfigBuilder};

use crate::store::StoreError;

/// What the instructions say, collected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    cmd: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    env: Vec<String>,
    exposed: Vec<String>,
    labels: BTreeMap<String, String>,
    volumes: Vec<String>,
    working_dir: Option<String>,
    user: Option<String>,
    stop_signal: Option<String>,
}

impl Changes {
    /// Reads instructions such as `CMD ["nginx"]`, `ENV A=b`, `EXPOSE 80/tcp`; between keyword and
    /// arguments there is a space or `=`.
    ///
    /// # Errors
    /// [`StoreError::BadChange`] with the first instruction that is not understood.
    pub fn parse<S: AsRef<str>>(instructions: &[S]) -> Result<Self, StoreError> {
        let mut changes = Changes::default();
        for instruction in instructions {
            let text = instruction.as_ref();
            changes
                .apply(text.trim())
                .map_err(|reason| StoreError::BadChange { instruction: text.to_owned(), reason })?;
        }
        Ok(changes)
    }

    fn apply(&mut self, text: &str) -> Result<(), &'static str> {
        let (keyword, rest) =
            text.split_once([' ', '\t', '=']).ok_or("a keyword and its arguments are needed")?;
        let rest = rest.trim();
        if rest.is_empty() {
            return Err("the arguments are missing");
        }
        match keyword.to_ascii_uppercase().as_str() {
            "CMD" => self.cmd = Some(command(rest)?),
            "ENTRYPOINT" => self.entrypoint = Some(command(rest)?),
            "ENV" => {
                for (key, value) in pairs(rest)? {
                    self.env.retain(|e| !e.starts_with(&format!("{key}=")));
                    self.env.push(format!("{key}={value}"));
                }
            }
            "LABEL" => self.labels.extend(pairs(rest)?),
            "EXPOSE" => {
                for port in rest.split_whitespace() {
                    self.exposed.extend(exposed(port)?);
                }
            }
            "VOLUME" => match rest.starts_with('[') {
                true => self.volumes.extend(json_list(rest)?),
                false => self.volumes.extend(words(rest)?),
            },
            "WORKDIR" if rest.starts_with('/') => self.working_dir = Some(rest.to_owned()),
            "WORKDIR" => return Err("the directory must be absolute"),
            "USER" => self.user = Some(rest.to_owned()),
            "STOPSIGNAL" => self.stop_signal = Some(rest.to_owned()),
            _ => {
                return Err(
                    "known are CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR",
                );
            }
        }
        Ok(())
    }

    /// The execution parameters of an image made with these instructions.
    pub fn into_config(self) -> Config {
        let some = |v: Vec<String>| (!v.is_empty()).then_some(v);
        let mut config = ConfigBuilder::default().build().unwrap_or_default();
        config
            .set_cmd(self.cmd)
            .set_entrypoint(self.entrypoint)
            .set_env(some(self.env))
            .set_exposed_ports(some(self.exposed))
            .set_volumes(some(self.volumes))
            .set_working_dir(self.working_dir)
            .set_user(self.user)
            .set_stop_signal(self.stop_signal);
        if !self.labels.is_empty() {
            config.set_labels(Some(self.labels.into_iter().collect()));
        }
        config
    }
}

/// `["a", "b"]`, or a command line for the shell.
fn command(text: &str) -> Result<Vec<String>, &'static str> {
    match text.starts_with('[') {
        true => json_list(text),
        false => Ok(vec!["/bin/sh".into(), "-c".into(), text.to_owned()]),
    }
}

fn json_list(text: &str) -> Result<Vec<String>, &'static str> {
    serde_json::from_str(text).map_err(|_| "the list must be JSON: [\"a\", \"b\"]")
}

/// `80`, `80/udp`, `8000-8003/tcp`.
fn exposed(text: &str) -> Result<Vec<String>, &'static str> {
    const WRONG: &str = "a port is NUMBER[-NUMBER][/tcp|udp|sctp]";
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let first: u16 = first.parse().map_err(|_| WRONG)?;
    let last: u16 = last.parse().map_err(|_| WRONG)?;
    if first == 0 || first > last || !matches!(protocol, "tcp" | "udp" | "sctp") {
        return Err(WRONG);
    }
    Ok((first..=last).map(|p| format!("{p}/{protocol}")).collect())
}

/// `K=V K2="v 2"`, or the old form `K the rest`.
fn pairs(text: &str) -> Result<Vec<(String, String)>, &'static str> {
    let words = words(text)?;
    if words.first().is_some_and(|w| !w.contains('=')) {
        let (key, value) = text.split_once(char::is_whitespace).ok_or("a value is missing")?;
        return Ok(vec![(key.to_owned(), value.trim().to_owned())]);
    }
    words
        .iter()
        .map(|word| match word.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err("each argument must be KEY=VALUE"),
        })
        .collect()
}

/// Splits at white space; quotes and backslashes protect it.
fn words(text: &str) -> Result<Vec<String>, &'static str> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (Some(q), c) if q == c => quote = None,
            (None | Some('"'), '\\') => {
                let next = chars.next().ok_or("it ends in a backslash")?;
                word.get_or_insert_default().push(next);
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed");
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_become_a_config() {
        let config = Changes::parse(&[
            r#"CMD ["nginx", "-g", "daemon off;"]"#,
            "ENTRYPOINT /start now",
            "ENV A=b C=\"d e\"",
            "env A=z",
            "ENV OLD the rest",
            "EXPOSE 80 53/udp 8000-8001",
            "WORKDIR=/srv",
            "USER www-data",
            "STOPSIGNAL SIGQUIT",
            "LABEL k=v",
            "VOLUME /data",
        ])
        .expect("understood")
        .into_config();
        let strings = |v: &Option<Vec<String>>| v.clone().unwrap_or_default();
        assert_eq!(strings(config.cmd()), ["nginx", "-g", "daemon off;"]);
        assert_eq!(strings(config.entrypoint()), ["/bin/sh", "-c", "/start now"]);
        assert_eq!(strings(config.env()), ["C=d e", "A=z", "OLD=the rest"]);
        assert_eq!(strings(config.exposed_ports()), ["80/tcp", "53/udp", "8000/tcp", "8001/tcp"]);
        assert_eq!(config.working_dir().as_deref(), Some("/srv"));
        assert_eq!(config.stop_signal().as_deref(), Some("SIGQUIT"));
        assert_eq!(strings(config.volumes()), ["/data"]);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for bad in
            ["CMD", "FROM x", "WORKDIR srv", "EXPOSE 99999", "CMD [a]", "ENV \"A=b", "LABEL =x"]
        {
            assert!(Changes::parse(&[bad]).is_err(), "{bad}");
        }
    }
}
