//! Which containers a command is about: said the same way everywhere.

use arctern_container::Host;
use arctern_container::config::ContainerConfig;
use arctern_container::extras::parse_duration;
use arctern_container::state::{Record, Status};
use arctern_container::time::Timestamp;

use crate::report::{Cannot, Failure};

/// Any number of containers.
#[derive(Debug, clap::Args)]
pub struct Select {
    /// All containers that the command can do something with
    #[arg(short, long, conflicts_with = "containers")]
    pub all: bool,
    /// The container that was created last
    #[arg(short, long, conflicts_with_all = ["all", "containers"])]
    pub latest: bool,
    /// All that match: id=, name=, status=, label=, ancestor=, exited=, until=, health=,
    /// restart-policy=, should-start-on-boot=
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_filter, conflicts_with_all = ["latest", "containers"])]
    pub filter: Vec<Filter>,
    /// Containers, by name or id
    #[arg(value_name = "CONTAINER", required_unless_present_any = ["all", "latest", "filter"])]
    pub containers: Vec<String>,
}

impl Select {
    /// Their names, as given, or ids. Of all containers only those that `fit` are meant; one that
    /// was named is meant whatever it is.
    pub fn names(
        self,
        host: &mut Host,
        fit: impl Fn(&Host, &Record) -> bool,
    ) -> Result<Vec<String>, Failure> {
        if self.latest {
            return Ok(vec![host.latest().cannot(|| "find the latest container")?]);
        }
        if !self.all && self.filter.is_empty() {
            return Ok(self.containers);
        }
        let records = host.list().cannot(|| "list containers")?;
        let meant = records.iter().filter(|r| fit(host, r) && matches(&self.filter, host, r));
        Ok(meant.map(|r| r.id().to_owned()).collect())
    }
}

/// One container.
#[derive(Debug, clap::Args)]
pub struct One {
    /// The container that was created last
    #[arg(short, long, conflicts_with = "container")]
    pub latest: bool,
    /// Container, by name or id
    #[arg(value_name = "CONTAINER", required_unless_present = "latest")]
    pub container: Option<String>,
}

impl One {
    /// Its name as given, or its id.
    pub fn name(self, host: &Host) -> Result<String, Failure> {
        match self.container {
            Some(name) => Ok(name),
            None => host.latest().cannot(|| "find the latest container"),
        }
    }
}

/// Whether a container runs.
pub fn running(host: &Host, record: &Record) -> bool {
    host.init(record).is_some()
}

/// A condition on containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Beginning of the id.
    Id(String),
    /// Part of the name.
    Name(String),
    /// Status as shown.
    Status(String),
    /// Label, with its value or with any.
    Label(String, Option<String>),
    /// Name or id of the image.
    Ancestor(String),
    /// Exit code.
    Exited(i32),
    /// Created before this time.
    Until(Timestamp),
    /// What its health checks found.
    Health(String),
    /// Restart policy.
    RestartPolicy(String),
    /// Whether the policy wants it to run after the host has booted.
    StartsOnBoot(bool),
}

/// Reads a condition.
pub fn parse_filter(text: &str) -> Result<Filter, String> {
    const STATES: &[&str] = &[
        "created",
        "running",
        "paused",
        "exited",
        "checkpointed",
        "migrating",
        "stopped",
        "restoring",
    ];
    const POLICIES: &[&str] = &["no", "always", "on-failure", "unless-stopped"];
    const KEYS: &str = "id, name, status, label, ancestor, exited, until, health, restart-policy or \
                        should-start-on-boot";
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    let own = value.to_owned();
    let one_of = |list: &[&str]| match list.contains(&value) {
        true => Ok(own.clone()),
        false => Err(format!("`{value}` is none of {}", list.join(", "))),
    };
    Ok(match key {
        "id" => Filter::Id(own),
        "name" => Filter::Name(own),
        "status" => Filter::Status(one_of(STATES)?),
        "label" => match value.split_once('=') {
            Some((name, value)) => Filter::Label(name.to_owned(), Some(value.to_owned())),
            None => Filter::Label(own, None),
        },
        "ancestor" => Filter::Ancestor(own),
        "exited" => {
            Filter::Exited(value.parse().map_err(|_| format!("`{value}` is no exit code"))?)
        }
        "until" => Filter::Until(parse_time(value)?),
        "health" => Filter::Health(one_of(&["starting", "healthy", "unhealthy", "none"])?),
        "restart-policy" => Filter::RestartPolicy(one_of(POLICIES)?),
        "should-start-on-boot" => Filter::StartsOnBoot(
            value.parse().map_err(|_| format!("`{value}` is neither true nor false"))?,
        ),
        _ => return Err(format!("`{key}` cannot be filtered by: use {KEYS}")),
    })
}

/// A point in time: RFC 3339, seconds since 1970, or how long ago (`10m`, `1h30m`).
pub fn parse_time(text: &str) -> Result<Timestamp, String> {
    if let Some(time) = Timestamp::parse_rfc3339(text) {
        return Ok(time);
    }
    let nanos = |seconds: i64| seconds.checked_mul(1_000_000_000);
    if text.len() >= 9
        && let Some(time) = text.parse().ok().and_then(nanos)
    {
        return Ok(Timestamp(time));
    }
    let ago = parse_duration(text).map_err(|_| {
        format!("`{text}` is no time: use 2030-01-31T12:00:00Z, seconds since 1970, or 10m for ago")
    })?;
    let ago = i64::try_from(ago.as_nanos()).unwrap_or(i64::MAX);
    Ok(Timestamp(Timestamp::now().0.saturating_sub(ago)))
}

/// Whether a container fulfils all conditions. Several of one kind: one of them is enough, but for
/// labels.
pub fn matches(filters: &[Filter], host: &Host, record: &Record) -> bool {
    let kind = std::mem::discriminant::<Filter>;
    filters.iter().all(|filter| match filter {
        Filter::Label(..) => filter.matches(host, record),
        filter => filters
            .iter()
            .filter(|other| kind(other) == kind(filter))
            .any(|other| other.matches(host, record)),
    })
}

impl Filter {
    fn matches(&self, host: &Host, record: &Record) -> bool {
        let config = &record.config;
        match self {
            Filter::Id(id) => config.id.starts_with(id),
            Filter::Name(name) => config.name.contains(name),
            Filter::Status(status) => {
                let status = if status == "stopped" { "exited" } else { status };
                host.status(record) == status
            }
            Filter::Label(name, value) => {
                config.labels.get(name).is_some_and(|v| value.as_ref().is_none_or(|w| w == v))
            }
            Filter::Ancestor(image) => is_from(config, image),
            Filter::Exited(code) => {
                record.status == Status::Exited && record.exit_code == Some(*code)
            }
            Filter::Until(time) => record.created_at <= *time,
            Filter::Health(health) => {
                host.health(record).map_or("none", |found| found.as_str()) == health
            }
            Filter::RestartPolicy(policy) => config.restart_policy.as_str() == policy,
            Filter::StartsOnBoot(wanted) => host.starts_on_boot(record) == *wanted,
        }
    }
}

fn is_from(config: &ContainerConfig, image: &str) -> bool {
    let short = config.image_name.rsplit('/').next().and_then(|n| n.split(':').next());
    config.image_id.starts_with(image)
        || config.image_name == image
        || config.raw_image_name == image
        || short == Some(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_parsed() {
        assert_eq!(parse_filter("name=web"), Ok(Filter::Name("web".into())));
        assert_eq!(parse_filter("label=a=b"), Ok(Filter::Label("a".into(), Some("b".into()))));
        assert_eq!(
            parse_filter("restart-policy=always"),
            Ok(Filter::RestartPolicy("always".into()))
        );
        assert!(parse_filter("status=odd").is_err());
        assert!(parse_filter("x=y").is_err());
        assert!(parse_filter("name").is_err());
    }

    #[test]
    fn times_in_every_form() {
        let day = Timestamp::parse_rfc3339("2023-11-14T22:13:20Z");
        assert_eq!(parse_time("2023-11-14T22:13:20Z").ok(), day);
        assert_eq!(parse_time("1700000000").ok(), day);
        let ago = parse_time("10m").expect("ago").0;
        let minutes = (Timestamp::now().0 - ago) / 60_000_000_000;
        assert!((10..11).contains(&minutes));
        assert!(parse_time("yesterday").is_err());
    }
}
