//! What is told of images that move: a bar for each blob on a terminal, and lines elsewhere.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};

use arctern_storage::registry::{Progress, Transfer};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Shows transfers on standard error.
pub struct Transfers {
    quiet: bool,
    terminal: bool,
    all: MultiProgress,
    bars: Mutex<HashMap<String, ProgressBar>>,
}

impl Transfers {
    /// With `quiet` only warnings are shown.
    pub fn new(quiet: bool) -> Transfers {
        let terminal = std::io::stderr().is_terminal();
        Transfers {
            quiet,
            terminal,
            all: MultiProgress::with_draw_target(match terminal && !quiet {
                true => ProgressDrawTarget::stderr_with_hz(10),
                false => ProgressDrawTarget::hidden(),
            }),
            bars: Mutex::default(),
        }
    }

    fn say(&self, text: &str) {
        if self.terminal {
            self.all.suspend(|| eprintln!("{text}"));
        } else {
            eprintln!("{text}");
        }
    }

    fn bar(&self, length: u64, name: &str) -> ProgressBar {
        let style = "{msg:24} {wide_bar} {binary_bytes}/{binary_total_bytes}";
        let bar = self.all.add(ProgressBar::new(length));
        bar.set_style(
            ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        bar.set_message(name.to_owned());
        bar
    }
}

/// A blob as people are shown it.
fn short(key: &str) -> String {
    format!("blob {}", key.get(..12).unwrap_or(key))
}

impl Progress for Transfers {
    fn event(&self, event: Transfer<'_>) {
        let mut bars = self.bars.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Transfer::Warning(text) => self.say(&format!("warning: {text}")),
            _ if self.quiet => {}
            Transfer::Trying(name) => self.say(&format!("{name} …")),
            Transfer::Begin { key, length } => {
                bars.insert(key.to_owned(), self.bar(length, &short(key)));
            }
            Transfer::Moved { key, bytes } => {
                if let Some(bar) = bars.get(key) {
                    bar.inc(bytes);
                }
            }
            Transfer::Done { key, known } => {
                if let Some(bar) = bars.remove(key) {
                    bar.finish_and_clear();
                }
                let how = if known { "is there already" } else { "done" };
                self.say(&format!("{} {how}", short(key)));
            }
        }
    }
}
