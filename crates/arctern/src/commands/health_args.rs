//! Options about the health of a new container, and when it is started again.

use std::time::Duration;

use arctern_container::extras::parse_duration;
use arctern_container::policy::{HealthCheck, Restart};

/// What is done with a container without anybody asking.
#[derive(Debug, clap::Args)]
pub struct HealthArgs {
    /// Start it again when it ends: no, always, on-failure[:TIMES] or unless-stopped
    #[arg(long, value_name = "POLICY", default_value = "no")]
    pub restart: Restart,
    /// Check its health with this command; a JSON list of words, or a line for its shell
    #[arg(long, value_name = "COMMAND")]
    pub health_cmd: Option<String>,
    /// Time between two checks
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    pub health_interval: Duration,
    /// A check that takes longer has failed
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    pub health_timeout: Duration,
    /// Failures in a row that make it unhealthy
    #[arg(long, value_name = "NUMBER", default_value_t = 3)]
    pub health_retries: u32,
    /// Failures in this time after the start do not count
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = parse_duration)]
    pub health_start_period: Duration,
    /// No health check
    #[arg(long, conflicts_with = "health_cmd")]
    pub no_healthcheck: bool,
}

impl HealthArgs {
    /// The check that was asked for.
    pub fn check(&self) -> Option<HealthCheck> {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let command = self.health_cmd.as_deref().filter(|command| *command != "none")?;
        Some(HealthCheck {
            test: HealthCheck::parse_test(command),
            interval: nanos(self.health_interval),
            timeout: nanos(self.health_timeout),
            retries: self.health_retries,
            start_period: nanos(self.health_start_period),
        })
    }
}
