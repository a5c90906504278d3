//! `--format`: JSON, a table, or fields of one's own choice, written as Podman's users write them:
//! `{{.Names}}`, `table {{.ID}}\t{{.Image}}`, `{{json .State}}`. Plain references are all there is:
//! whatever else a template could say is refused, with the list of the fields.

use serde_json::Value;

use crate::report::{Cannot, Failure};
use crate::ui::Table;

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// The command's own table.
    Table,
    /// Everything.
    Json,
    /// Some fields.
    Fields(Template),
}

/// Text with references to fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// Columns under a head.
    table: bool,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Field { path: Vec<String>, json: bool },
}

impl std::str::FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Format, String> {
        match text {
            "json" => Ok(Format::Json),
            "table" => Ok(Format::Table),
            text => {
                let (table, rest) = match text.strip_prefix("table ") {
                    Some(rest) => (true, rest),
                    None => (false, text),
                };
                let parts = parse(rest)?;
                if !parts.iter().any(|part| matches!(part, Part::Field { .. })) {
                    return Err("expected table, json, or fields as {{.ID}}".to_owned());
                }
                Ok(Format::Fields(Template { table, parts }))
            }
        }
    }
}

impl Format {
    /// Prints what `inspect` and the like show: everything as JSON, or the fields that were asked for.
    pub fn print_all(&self, json: &[Value], rows: &[Value]) -> Result<(), Failure> {
        match self {
            Format::Fields(template) => {
                out!("{}", template.render(rows, &[]).cannot(|| "show the fields")?);
            }
            _ => outln!("{}", serde_json::to_string_pretty(json).cannot(|| "write JSON")?),
        }
        Ok(())
    }
}

fn parse(text: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let (inside, next) = after.split_once("}}").ok_or("`{{` without `}}`")?;
        if !before.is_empty() {
            parts.push(Part::Text(unescape(before)));
        }
        parts.push(field(inside)?);
        rest = next;
    }
    if !rest.is_empty() {
        parts.push(Part::Text(unescape(rest)));
    }
    Ok(parts)
}

fn field(inside: &str) -> Result<Part, String> {
    let words: Vec<&str> = inside.split_whitespace().collect();
    let (json, reference) = match words.as_slice() {
        [reference] => (false, *reference),
        ["json", reference] => (true, *reference),
        _ => {
            return Err(format!("`{{{{{inside}}}}}` is not {{{{.FIELD}}}} or {{{{json .FIELD}}}}"));
        }
    };
    let bad = || format!("`{reference}` is no field: a field begins with a dot");
    let path = reference.strip_prefix('.').ok_or_else(bad)?;
    let plain = |name: &str| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    match path {
        "" => Ok(Part::Field { path: Vec::new(), json }),
        path if path.split('.').all(plain) => {
            Ok(Part::Field { path: path.split('.').map(str::to_owned).collect(), json })
        }
        _ => Err(bad()),
    }
}

/// `\t` and `\n`, which a shell's quotes leave as they are.
fn unescape(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

impl Template {
    /// The rows as text. `fields` are the names that a row has, each with the head of its column;
    /// for a table without rows nothing else is known.
    pub fn render(&self, rows: &[Value], fields: &[(&str, &str)]) -> anyhow::Result<String> {
        for part in &self.parts {
            if let Part::Field { path, .. } = part
                && let Some(name) = path.first()
                && !fields.is_empty()
                && !fields.iter().any(|(known, _)| known == name)
            {
                return Err(unknown(name, fields.iter().map(|(known, _)| *known)));
            }
        }
        let mut lines = Vec::new();
        for row in rows {
            let mut line = String::new();
            for part in &self.parts {
                match part {
                    Part::Text(text) => line.push_str(text),
                    Part::Field { path, json } => line.push_str(&show(find(row, path)?, *json)?),
                }
            }
            lines.push(line);
        }
        if !self.table {
            return Ok(lines.iter().map(|line| format!("{line}\n")).collect());
        }
        let head: String = self.parts.iter().map(|part| head(part, fields)).collect();
        let mut table = Table::new(&head.split('\t').collect::<Vec<_>>());
        for line in lines {
            table.row(line.split('\t').map(str::to_owned).collect());
        }
        Ok(table.render())
    }
}

/// Some columns of rows as a table, with its head or without it.
pub fn table(rows: &[Value], fields: &[(&str, &str)], columns: &[&str], headed: bool) -> String {
    let head = |name: &&str| fields.iter().find(|(f, _)| f == name).map_or("", |(_, head)| *head);
    let mut table = match headed {
        true => Table::new(&columns.iter().map(head).collect::<Vec<_>>()),
        false => Table::bare(),
    };
    let cell = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => {
            list.iter().map(|v| v.as_str().unwrap_or_default()).collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    };
    for row in rows {
        table.row(columns.iter().map(|name| cell(&row[*name])).collect());
    }
    table.render()
}

fn head(part: &Part, fields: &[(&str, &str)]) -> String {
    match part {
        Part::Text(text) => text.clone(),
        Part::Field { path, .. } => {
            let name = path.last().map_or("", String::as_str);
            let known = fields.iter().find(|(known, _)| known == &name).map(|(_, head)| *head);
            known.map_or_else(|| name.to_uppercase(), str::to_owned)
        }
    }
}

fn find<'a>(row: &'a Value, path: &[String]) -> anyhow::Result<&'a Value> {
    path.iter().try_fold(row, |value, name| match value {
        Value::Object(map) => {
            map.get(name).ok_or_else(|| unknown(name, map.keys().map(String::as_str)))
        }
        _ => Err(anyhow::anyhow!("`.{}`: `{name}` is a field of no structure", path.join("."))),
    })
}

fn unknown<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> anyhow::Error {
    let mut known: Vec<&str> = known.collect();
    known.sort_unstable();
    anyhow::anyhow!("there is no field `{name}`; the fields are {}", known.join(", "))
}

/// A value as Podman prints it.
fn show(value: &Value, json: bool) -> anyhow::Result<String> {
    Ok(match value {
        value if json => serde_json::to_string(value)?,
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(list) => {
            let list: anyhow::Result<Vec<_>> = list.iter().map(|v| show(v, false)).collect();
            format!("[{}]", list?.join(" "))
        }
        Value::Object(map) => {
            let list: anyhow::Result<Vec<_>> =
                map.iter().map(|(k, v)| Ok(format!("{k}:{}", show(v, false)?))).collect();
            format!("map[{}]", list?.join(" "))
        }
        other => other.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rows() -> Vec<Value> {
        vec![json!({ "ID": "1234", "Names": "web", "State": { "Pid": 7, "Tags": ["a", "b"] } })]
    }

    const FIELDS: &[(&str, &str)] =
        &[("ID", "CONTAINER ID"), ("Names", "NAMES"), ("State", "STATE")];

    fn render(text: &str) -> Result<String, String> {
        match text.parse::<Format>()? {
            Format::Fields(template) => {
                template.render(&rows(), FIELDS).map_err(|error| error.to_string())
            }
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn fields_are_replaced() {
        assert_eq!(render("{{.ID}}: {{ .Names }}"), Ok("1234: web\n".into()));
        assert_eq!(render("{{.State.Pid}}"), Ok("7\n".into()));
        assert_eq!(render("{{.State.Tags}}"), Ok("[a b]\n".into()));
        assert_eq!(render("{{json .State}}"), Ok("{\"Pid\":7,\"Tags\":[\"a\",\"b\"]}\n".into()));
        let table = "CONTAINER ID  NAMES\n1234          web\n";
        assert_eq!(render("table {{.ID}}\\t{{.Names}}"), Ok(table.into()));
    }

    #[test]
    fn everything_else_is_refused_by_name() {
        let error = render("{{.Name}}").expect_err("unknown");
        assert_eq!(error, "there is no field `Name`; the fields are ID, Names, State");
        let error = render("{{.State.X}}").expect_err("unknown below");
        assert_eq!(error, "there is no field `X`; the fields are Pid, Tags");
        for bad in ["plain", "{{range .}}", "{{.ID", "{{ID}}", "{{.A-B}}", "{{.ID | upper}}"] {
            assert!(bad.parse::<Format>().is_err(), "{bad}");
        }
    }
}
