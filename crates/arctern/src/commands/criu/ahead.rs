//! `pre-dump`, and dumps on top of earlier ones.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use arctern_engine::options::{CaptureOptions, CaptureReport};
use arctern_engine::{PageDirectory, Precopy};
use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::messages::{DumpStatsEntry, StatsEntry};
use arctern_sys::{PAGE_SIZE, Pid};

use super::log::Log;
use super::tracker::Tracker;
use super::{Criu, micros, open_log, write_stats};

/// `criu pre-dump`: the memory goes into the images while the tasks run.
pub fn pre_dump(args: &Criu) -> anyhow::Result<u8> {
    let pid = args.tree.context("no process is named: give -t PID")?;
    let mut log = open_log(args)?;
    round(args, pid, &mut log).inspect_err(|error| {
        log.error(&arctern_container::error::chain(error.as_ref()));
        log.error("Pre-dumping FAILED.");
    })?;
    log.info("Pre-dumping finished successfully");
    Ok(0)
}

fn round(args: &Criu, pid: i32, log: &mut Log) -> anyhow::Result<()> {
    let mut precopy = begin(args, pid, log)?;
    let previous = args.prev_images_dir.as_deref();
    let mut pages = PageDirectory::create(&args.images_dir, previous)?;
    let figures = precopy.round(&mut pages)?;
    pages.conclude()?;
    Tracker::start(pid, precopy.into_tracking(), &args.images_dir)?;
    let entry = DumpStatsEntry {
        frozen_time: micros(figures.frozen_us),
        memdump_time: micros(figures.total_us),
        memwrite_time: micros(figures.total_us),
        pages_scanned: figures.scanned / PAGE_SIZE,
        pages_skipped_parent: figures.unchanged / PAGE_SIZE,
        pages_written: figures.sent / PAGE_SIZE,
        ..DumpStatsEntry::default()
    };
    write_stats(args, ImageKind::StatsDump, &StatsEntry { dump: Some(entry), restore: None })?;
    if args.display_stats {
        outln!("Displaying dump stats:");
        outln!("Frozen time: {} us", figures.frozen_us);
        outln!("Memory dump time: {} us", figures.total_us);
        outln!("Memory pages scanned: {}", figures.scanned / PAGE_SIZE);
        outln!("Memory pages skipped from parent: {}", figures.unchanged / PAGE_SIZE);
        outln!("Memory pages written: {}", figures.sent / PAGE_SIZE);
    }
    Ok(())
}

/// A capture, on top of the previous images where there are any.
pub fn capture(
    args: &Criu,
    pid: i32,
    options: CaptureOptions<'_>,
    log: &mut Log,
) -> anyhow::Result<CaptureReport> {
    let goes_on = args.track_mem && args.leave_running;
    ImageDir::open(&args.images_dir)?.set_parent(args.prev_images_dir.as_deref())?;
    if args.prev_images_dir.is_none() && !goes_on {
        // What was tracked is of no use to anybody after this.
        drop(Tracker::take(pid));
        return Ok(arctern_engine::capture(Pid(pid), &args.images_dir, options, log)?);
    }
    let mut precopy = begin(args, pid, log)?;
    if goes_on {
        let report = precopy.capture_and_go_on(&args.images_dir, options, log)?;
        Tracker::start(pid, precopy.into_tracking(), &args.images_dir)?;
        return Ok(report);
    }
    let captured = precopy.finish(&args.images_dir, None, options, log);
    if let (Err(_), Some(previous)) = (&captured, &args.prev_images_dir) {
        // The tasks go on, and so does what is known of them.
        Tracker::start(pid, precopy.into_tracking(), &args.images_dir.join(previous))?;
    }
    Ok(captured?)
}

/// Goes on where the previous command ended, if that was about these previous images.
fn begin(args: &Criu, pid: i32, log: &mut Log) -> anyhow::Result<Precopy> {
    let timeout = Duration::from_secs(args.timeout);
    let taken = Tracker::take(pid);
    if let Some(previous) = &args.prev_images_dir {
        let previous = args.images_dir.join(previous);
        let known = taken.and_then(|tracker| tracker.tracking_since(&previous).transpose());
        match known.transpose().context("read the previous images")? {
            Some(tracking) => return Ok(Precopy::go_on(Pid(pid), tracking, timeout)),
            None => log.warning(&format!(
                "nobody noticed what was written since the dump in {}: all memory is dumped",
                shown(&previous)
            )),
        }
    }
    Ok(Precopy::begin(Pid(pid), timeout)?)
}

fn shown(path: &Path) -> std::path::Display<'_> {
    path.display()
}
