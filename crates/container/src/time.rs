//! Points in time as they are stored and shown.

use std::time::{SystemTime, UNIX_EPOCH};

use chrono::{DateTime, SecondsFormat, Utc};

/// Nanoseconds since 1970, UTC: what the database holds.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Now.
    #[must_use]
    pub fn now() -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
    }

    /// RFC 3339 with nanoseconds, in UTC, as in logs and JSON.
    #[must_use]
    pub fn rfc3339(self) -> String {
        let time: DateTime<Utc> = DateTime::from_timestamp_nanos(self.0);
        time.to_rfc3339_opts(SecondsFormat::Nanos, true)
    }

    /// As [`Timestamp::rfc3339`], to the second, for people.
    #[must_use]
    pub fn rfc3339_seconds(self) -> String {
        let time: DateTime<Utc> = DateTime::from_timestamp_nanos(self.0);
        time.to_rfc3339_opts(SecondsFormat::Secs, true)
    }

    /// The time of an RFC 3339 text.
    #[must_use]
    pub fn parse_rfc3339(text: &str) -> Option<Timestamp> {
        let time = DateTime::parse_from_rfc3339(text).ok()?;
        time.timestamp_nanos_opt().map(Timestamp)
    }

    /// How long ago, in words: `3 minutes`.
    #[must_use]
    pub fn ago(self) -> String {
        let seconds = (Timestamp::now().0.saturating_sub(self.0) / 1_000_000_000).max(0);
        let (count, unit) = match seconds {
            0..=59 => (seconds, "second"),
            60..=3599 => (seconds / 60, "minute"),
            3600..=86_399 => (seconds / 3600, "hour"),
            _ => (seconds / 86_400, "day"),
        };
        let plural = if count == 1 { "" } else { "s" };
        format!("{count} {unit}{plural}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc3339_goes_there_and_back() {
        let time = Timestamp(1_700_000_000_123_456_789);
        assert_eq!(time.rfc3339(), "2023-11-14T22:13:20.123456789Z");
        assert_eq!(Timestamp::parse_rfc3339(&time.rfc3339()), Some(time));
        assert_eq!(Timestamp::parse_rfc3339("yesterday"), None);
    }
}
