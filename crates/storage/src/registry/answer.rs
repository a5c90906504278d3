//! What a registry and its token server say besides images: how they want to be asked, tokens, and
//! complaints.

use std::collections::HashMap;

/// What a registry asks for before it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// A name and a password.
    Basic,
    /// A token, from a server.
    Bearer {
        /// The URL of the server.
        realm: String,
        /// What it knows the registry as.
        service: Option<String>,
    },
}

impl Challenge {
    /// Reads the values of `WWW-Authenticate` (RFC 9110, section 11.6.1); a token server is preferred
    /// where a registry offers both.
    pub fn read<'a>(values: impl Iterator<Item = &'a str>) -> Option<Challenge> {
        let mut basic = None;
        for value in values {
            let (scheme, rest) = value.split_once(' ').unwrap_or((value, ""));
            if scheme.eq_ignore_ascii_case("bearer") {
                let mut parameters = parameters(rest);
                if let Some(realm) = parameters.remove("realm") {
                    return Some(Challenge::Bearer {
                        realm,
                        service: parameters.remove("service"),
                    });
                }
            } else if scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
        }
        basic
    }
}

/// `name="value",…`; quotes keep commas.
fn parameters(text: &str) -> HashMap<String, String> {
    let mut found = HashMap::new();
    let mut rest = text;
    while let Some((name, after)) = rest.split_once('=') {
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(',').unwrap_or((after, "")),
        };
        found.insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
        rest = next.trim_start_matches([',', ' ']);
    }
    found
}

/// The token in what a token server answers.
///
/// # Errors
/// There is none; why.
pub fn token(text: &[u8]) -> Result<String, String> {
    /// Servers use either name.
    #[derive(serde::Deserialize)]
    struct Token {
        #[serde(default)]
        token: Option<String>,
        #[serde(default)]
        access_token: Option<String>,
    }
    let answer: Token = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    answer.token.or(answer.access_token).ok_or_else(|| "it has no token".to_owned())
}

/// What a registry says about an error, for people: one line without control characters.
pub fn complaint(text: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(text).ok()?;
    let first = value.get("errors")?.get(0)?;
    let field = |name: &str| first.get(name)?.as_str().filter(|t| !t.is_empty());
    let text = field("message").or_else(|| field("code"))?;
    // It goes to a terminal.
    Some(text.chars().filter(|c| !c.is_control()).take(200).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let read = |values: &[&'static str]| Challenge::read(values.iter().copied());
        let bearer = r#"Bearer realm="https://auth.x/token",service="x, y",scope="a:b:pull""#;
        assert_eq!(
            read(&["Basic realm=\"x\"", bearer]),
            Some(Challenge::Bearer {
                realm: "https://auth.x/token".to_owned(),
                service: Some("x, y".to_owned()),
            })
        );
        assert_eq!(read(&["basic realm=x"]), Some(Challenge::Basic));
        assert_eq!(read(&["Bearer service=x", "Negotiate"]), None);
    }

    #[test]
    fn tokens_have_either_name() {
        assert_eq!(token(br#"{"token": "a", "access_token": "b"}"#).as_deref(), Ok("a"));
        assert_eq!(token(br#"{"access_token": "b", "expires_in": 60}"#).as_deref(), Ok("b"));
        assert!(token(b"{}").is_err());
    }

    #[test]
    fn complaints_are_one_line() {
        let text = br#"{"errors":[{"code":"X","message":"no\u001b[31m way"}]}"#;
        assert_eq!(complaint(text).as_deref(), Some("no[31m way"));
        assert_eq!(complaint(b"<html>"), None);
    }
}
