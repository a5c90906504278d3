//! The health of a container: what the checks in it found.
//!
//! A check is a command like `exec`'s. The shim starts `arctern healthcheck run` whenever one is due;
//! anybody may run it at any time. The result is one file in the container's run directory,
//! replaced as a whole, which goes away when the container is started.

use std::fs;
use std::io::{Read, Seek};
use std::time::Duration;

use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::host::Host;
use crate::lifecycle::{Diverted, ExecOptions};
use crate::policy::HealthCheck;
use crate::state::{Record, Status};
use crate::time::Timestamp;

/// Most results that are kept, and most bytes of output of each.
const KEPT: usize = 5;
const OUTPUT: u64 = 500;

/// Exit code of a check that took too long.
const TIMED_OUT: i32 = -1;

/// How a container is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    /// No check has succeeded yet, and not too many have failed.
    #[default]
    Starting,
    /// The last check succeeded.
    Healthy,
    /// As many checks in a row failed as the container was given.
    Unhealthy,
}

impl HealthStatus {
    /// As shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            HealthStatus::Starting => "starting",
            HealthStatus::Healthy => "healthy",
            HealthStatus::Unhealthy => "unhealthy",
        }
    }
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HealthResult {
    /// When it began, RFC 3339.
    pub start: String,
    /// When it ended.
    pub end: String,
    /// Exit code; -1 when it took too long.
    pub exit_code: i32,
    /// The beginning of what it wrote.
    pub output: String,
}

/// All that is known, in the shape of Podman's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HealthLog {
    /// How it is.
    pub status: HealthStatus,
    /// Failures in a row.
    pub failing_streak: u32,
    /// The last checks, oldest first.
    pub log: Vec<HealthResult>,
}

impl HealthLog {
    /// Takes in a result; `early`: within the time in which failures do not count.
    fn add(&mut self, result: HealthResult, retries: u32, early: bool) {
        if result.exit_code == 0 {
            self.status = HealthStatus::Healthy;
            self.failing_streak = 0;
        } else if !(early && self.status == HealthStatus::Starting) {
            self.failing_streak = self.failing_streak.saturating_add(1);
            if self.failing_streak >= retries.max(1) {
                self.status = HealthStatus::Unhealthy;
            }
        }
        self.log.push(result);
        let surplus = self.log.len().saturating_sub(KEPT);
        self.log.drain(..surplus);
    }
}

impl Host {
    /// What the checks of a running container found; None without checks.
    #[must_use]
    pub fn health_log(&self, record: &Record) -> Option<HealthLog> {
        record.config.healthcheck.as_ref().and_then(HealthCheck::command)?;
        let text = fs::read(self.paths.container(record.id()).health()).ok();
        Some(text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default())
    }

    /// How a running container is; None without checks.
    #[must_use]
    pub fn health(&self, record: &Record) -> Option<HealthStatus> {
        (record.status == Status::Running).then(|| self.health_log(record))?.map(|log| log.status)
    }

    /// Forgets the checks: the container begins anew.
    pub(crate) fn forget_health(&self, id: &str) {
        let _ = fs::remove_file(self.paths.container(id).health());
    }

    /// Checks the health of a running container and writes the result down.
    pub fn check_health(&mut self, name_or_id: &str) -> Result<HealthResult> {
        let record = self.find(name_or_id)?;
        self.must_run(&record)?;
        self.must_not_be_paused(&record)?;
        let none = || Error::NoHealthCheck(record.name().to_owned());
        let check = record.config.healthcheck.clone().ok_or_else(none)?;
        let command = check.command().ok_or_else(none)?;
        let begin = Timestamp::now();
        let fail = "make a file for the output of a check";
        let mut output: fs::File =
            rustix::fs::memfd_create("healthcheck", rustix::fs::MemfdFlags::CLOEXEC)
                .map_err(Error::system(fail))?
                .into();
        let options = ExecOptions { command, ..ExecOptions::default() };
        let started = {
            let _diverted = Diverted::to(&output)?;
            self.exec(record.id(), options)
        };
        let code = match started {
            Ok(session) => {
                let timeout = Some(Duration::from_nanos(check.timeout)).filter(|t| !t.is_zero());
                match session.wait_for(timeout)? {
                    Some(code) => code,
                    None => {
                        session.signal(Signal::KILL);
                        session.wait()?;
                        TIMED_OUT
                    }
                }
            }
            Err(error @ (Error::CommandNotFound(_) | Error::CommandNotExecutable(_))) => {
                error.exit_code()
            }
            Err(error) => return Err(error),
        };
        let end = Timestamp::now();
        let mut text = Vec::new();
        let fail = "read the output of a check";
        output.rewind().map_err(Error::system(fail))?;
        output.by_ref().take(OUTPUT).read_to_end(&mut text).map_err(Error::system(fail))?;
        let result = HealthResult {
            start: begin.rfc3339(),
            end: end.rfc3339(),
            exit_code: code,
            output: String::from_utf8_lossy(&text).into_owned(),
        };
        let since = record.started_at.unwrap_or_default();
        let early =
            begin.0.saturating_sub(since.0) < i64::try_from(check.start_period).unwrap_or(0);
        self.note_health(&record, result.clone(), check.retries, early)?;
        Ok(result)
    }

    fn note_health(
        &self,
        record: &Record,
        result: HealthResult,
        retries: u32,
        early: bool,
    ) -> Result<()> {
        let path = self.paths.container(record.id()).health();
        let mut log = self.health_log(record).unwrap_or_default();
        log.add(result, retries, early);
        let json = serde_json::to_vec(&log).map_err(Error::json("the log of health checks"))?;
        let new = path.with_extension(format!("{}.new", std::process::id()));
        fs::write(&new, json).map_err(Error::io("write", &new))?;
        fs::rename(&new, &path).map_err(Error::io("rename", &new))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(exit_code: i32) -> HealthResult {
        HealthResult { start: String::new(), end: String::new(), exit_code, output: String::new() }
    }

    #[test]
    fn failures_in_a_row_make_it_unhealthy() {
        let mut log = HealthLog::default();
        log.add(result(1), 2, true);
        assert_eq!((log.status, log.failing_streak), (HealthStatus::Starting, 0));
        log.add(result(0), 2, true);
        assert_eq!(log.status, HealthStatus::Healthy);
        log.add(result(1), 2, true);
        assert_eq!((log.status, log.failing_streak), (HealthStatus::Healthy, 1));
        log.add(result(TIMED_OUT), 2, false);
        assert_eq!(log.status, HealthStatus::Unhealthy);
        log.add(result(0), 2, false);
        assert_eq!((log.status, log.failing_streak), (HealthStatus::Healthy, 0));
        for _ in 0..20 {
            log.add(result(0), 2, false);
        }
        assert_eq!(log.log.len(), KEPT);
    }
}
