//! Figures that an engine leaves behind: CRIU's `stats-dump`, which both write.

use anyhow::{Context, Result};
use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::messages::StatsEntry;
use std::path::Path;
use std::time::Duration;

/// From the first task stopped to the last one resumed or killed.
pub fn frozen(images: &Path) -> Result<Duration> {
    let entry: StatsEntry = ImageDir::open(images)?.read_one(ImageKind::StatsDump, 0)?;
    let dump = entry.dump.context("stats-dump holds no figures of a dump")?;
    Ok(Duration::from_micros(dump.frozen_time.into()))
}

/// The median of some durations.
pub fn median(values: &[Duration]) -> Option<Duration> {
    let mut sorted = values.to_vec();
    sorted.sort();
    sorted.get(sorted.len() / 2).copied()
}
