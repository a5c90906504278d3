//! Lists of images, volumes, networks and checkpoints: how they are shown, and which of them are meant.
//! What is said here of containers is in `select`.

use std::collections::BTreeMap;

use arctern_container::time::Timestamp;
use serde_json::Value;

use super::select::parse_time;
use crate::format::{Format, table};
use crate::report::{Cannot, Failure};

/// How a list is shown.
#[derive(Debug, clap::Args)]
pub struct Shown {
    /// Print only names
    #[arg(short, long)]
    pub quiet: bool,
    /// Print no head
    #[arg(short = 'n', long)]
    pub noheading: bool,
    /// Print JSON
    #[arg(long, conflicts_with_all = ["quiet", "format"])]
    pub json: bool,
    /// Output format: table, json, or fields: `{{.Name}}`, `table {{.Name}}\\t{{.Driver}}`
    #[arg(long, value_name = "FORMAT", default_value = "table", conflicts_with = "quiet")]
    pub format: Format,
}

impl Shown {
    /// Prints the rows, each of which has the `fields`, one of them `Name`; a table has the `columns`
    /// of them. `json` is the list as JSON.
    pub fn print(
        &self,
        rows: &[Value],
        json: &[Value],
        fields: &[(&str, &str)],
        columns: &[&str],
    ) -> Result<(), Failure> {
        if self.quiet {
            for row in rows {
                outln!("{}", row["Name"].as_str().unwrap_or_default());
            }
            return Ok(());
        }
        match &self.format {
            Format::Table if !self.json => {
                out!("{}", table(rows, fields, columns, !self.noheading))
            }
            Format::Fields(template) => {
                out!("{}", template.render(rows, fields).cannot(|| "show the fields")?);
            }
            _ => outln!("{}", serde_json::to_string_pretty(json).cannot(|| "write JSON")?),
        }
        Ok(())
    }
}

/// A condition on something with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Beginning of the id.
    Id(String),
    /// Part of the name.
    Name(String),
    /// The name, or its end; `*` stands for any text.
    Reference(String),
    /// Label, with its value or with any.
    Label(String, Option<String>),
    /// Images without a name, volumes and networks that no container has.
    Dangling(bool),
    /// Made before this time.
    Until(Timestamp),
    /// How it works.
    Driver(String),
}

/// What conditions ask about.
#[derive(Debug, Default)]
pub struct Facts<'a> {
    /// Id, where that is not the name.
    pub id: &'a str,
    /// All names.
    pub names: &'a [String],
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Nobody needs it.
    pub dangling: bool,
    /// When it was made, RFC 3339.
    pub created: &'a str,
    /// How it works.
    pub driver: &'a str,
}

/// Reads a condition.
pub fn parse_condition(text: &str) -> Result<Condition, String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    let own = value.to_owned();
    Ok(match key {
        "id" => Condition::Id(own),
        "name" => Condition::Name(own),
        "reference" => Condition::Reference(own),
        "label" => match value.split_once('=') {
            Some((name, value)) => Condition::Label(name.to_owned(), Some(value.to_owned())),
            None => Condition::Label(own, None),
        },
        "dangling" => Condition::Dangling(
            value.parse().map_err(|_| format!("`{value}` is neither true nor false"))?,
        ),
        "until" => Condition::Until(parse_time(value)?),
        "driver" => Condition::Driver(own),
        _ => {
            return Err(format!(
                "`{key}` cannot be filtered by: use id, name, reference, label, dangling, until or driver"
            ));
        }
    })
}

/// Whether all conditions are fulfilled. Several of one kind: one of them is enough, but for labels.
pub fn fulfils(conditions: &[Condition], facts: &Facts<'_>) -> bool {
    let kind = std::mem::discriminant::<Condition>;
    conditions.iter().all(|condition| match condition {
        Condition::Label(..) => condition.holds(facts),
        condition => {
            conditions.iter().filter(|other| kind(other) == kind(condition)).any(|c| c.holds(facts))
        }
    })
}

impl Condition {
    fn holds(&self, facts: &Facts<'_>) -> bool {
        match self {
            Condition::Id(id) => {
                facts.id.starts_with(id.strip_prefix("sha256:").unwrap_or(id.as_str()))
            }
            Condition::Name(part) => facts.names.iter().any(|name| name.contains(part)),
            Condition::Reference(pattern) => {
                facts.names.iter().any(|name| is_called(name, pattern))
            }
            Condition::Label(name, value) => {
                facts.labels.get(name).is_some_and(|v| value.as_ref().is_none_or(|w| w == v))
            }
            Condition::Dangling(wanted) => facts.dangling == *wanted,
            Condition::Until(time) => {
                Timestamp::parse_rfc3339(facts.created).is_some_and(|made| made <= *time)
            }
            Condition::Driver(driver) => facts.driver == driver,
        }
    }
}

/// Whether an image's name, `REGISTRY/PATH:TAG`, is what somebody means: the whole or its end, from a
/// slash on, with the tag or without it.
pub fn is_called(name: &str, pattern: &str) -> bool {
    let last = pattern.rsplit('/').next().unwrap_or_default();
    let name = match (last.contains(':'), name.rsplit_once(':')) {
        (false, Some((path, tag))) if !tag.contains('/') => path,
        _ => name,
    };
    let ends = name.match_indices('/').map(|(at, _)| name.get(at + 1..).unwrap_or_default());
    std::iter::once(name).chain(ends).any(|end| like(end, pattern))
}

/// Whether a text is what a pattern says, in which `*` stands for any text.
fn like(text: &str, pattern: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return text == pattern };
    let Some(rest) = text.strip_prefix(before) else { return false };
    let mut parts: Vec<&str> = after.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    let mut rest = rest;
    for part in parts {
        match rest.split_once(part) {
            Some((_, then)) => rest = then,
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_called_by_the_end_of_their_name() {
        let name = "registry.example:5000/team/web:1";
        for fits in [
            name,
            "team/web:1",
            "web",
            "web:1",
            "team/web",
            "registry.example:5000/team/web",
            "w*",
            "*/web",
            "web:*",
            "t*/w*b",
        ] {
            assert!(is_called(name, fits), "{fits}");
        }
        for other in ["eb", "web:2", "team", "other/web", "w*x", "", "web:"] {
            assert!(!is_called(name, other), "{other}");
        }
    }

    #[test]
    fn conditions_are_read_and_hold() {
        let names = ["data".to_owned()];
        let labels = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        let created = "2023-11-14T22:13:20Z";
        let facts =
            Facts { id: "12ab", names: &names, labels, dangling: true, created, driver: "local" };
        let holds = |list: &[&str]| {
            let all: Result<Vec<_>, _> = list.iter().map(|text| parse_condition(text)).collect();
            fulfils(&all.expect("conditions"), &facts)
        };
        assert!(holds(&["id=sha256:12", "name=at", "label=a", "label=a=b", "dangling=true"]));
        assert!(holds(&["name=x", "name=data"]) && holds(&["until=1h", "driver=local"]));
        assert!(!holds(&["label=a", "label=c"]) && !holds(&["until=1600000000"]));
        for bad in ["odd=x", "name", "dangling=perhaps", "until=yesterday"] {
            assert!(parse_condition(bad).is_err(), "{bad}");
        }
    }
}
