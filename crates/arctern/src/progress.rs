//! What the engine tells, as people want to see it: a bar on a terminal when it takes longer than a
//! moment, warnings on standard error, nothing else.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use arctern_engine::options::{Event, Events};
use arctern_migrate::{RoundDone, Watch};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::ui::{duration, size};

/// An operation that takes less than this is over before anybody looks.
const DELAY: Duration = Duration::from_millis(250);

/// Shows events of the engine.
pub struct Progress {
    begin: Instant,
    terminal: bool,
    phase: &'static str,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// For an operation that begins now.
    pub fn new() -> Progress {
        Progress {
            begin: Instant::now(),
            terminal: std::io::stderr().is_terminal(),
            phase: "",
            bar: None,
        }
    }

    fn bar(&mut self, total: u64) -> Option<&ProgressBar> {
        if !self.terminal || self.begin.elapsed() < DELAY {
            return None;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let style =
                "{msg:10} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}";
            let bar =
                ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
            bar.set_style(
                ProgressStyle::with_template(style)
                    .unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar
        });
        if total > 0 {
            bar.set_length(total);
        }
        Some(bar)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Events for Progress {
    fn event(&mut self, event: Event) {
        match event {
            Event::Phase(name) => {
                tracing::debug!("{name}");
                self.phase = name;
                // A phase without measure shows its name.
                if let Some(bar) = self.bar(0) {
                    bar.set_message(name);
                    bar.tick();
                }
            }
            Event::Progress { done, total } => {
                let phase = self.phase;
                if let Some(bar) = self.bar(total) {
                    bar.set_message(phase);
                    bar.set_position(done);
                }
            }
            Event::Warning(text) => match &self.bar {
                Some(bar) => bar.suspend(|| eprintln!("warning: {text}")),
                None => eprintln!("warning: {text}"),
            },
        }
    }
}

impl Watch for Progress {
    fn round(&mut self, container: Option<&str>, round: &RoundDone) {
        let of = container.map_or_else(String::new, |name| format!("{name}, "));
        let line = format!(
            "{of}round {}: sent {} in {} ({}/s), written meanwhile {} ({}/s), {} of freeze to expect",
            round.number,
            size(round.sent),
            duration(round.total_us),
            size(round.rate),
            size(round.dirty),
            size(round.dirty_rate),
            duration(round.downtime_us),
        );
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }
}
