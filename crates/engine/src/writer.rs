//! Images that are written by a second thread while the capture goes on.
//!
//! Making thousands of small files takes about as long as finding out what is in them. Tasks that are
//! to be killed wait for both, so both are done at the same time.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use arctern_image::images::{ImageDir, ImageError};

use crate::error::{CaptureError, Subject};

type Job = Box<dyn FnOnce(&ImageDir) -> Result<(), ImageError> + Send>;

/// The thread. Dropped, it ends after the job that it is at, and is waited for.
pub struct Writer {
    jobs: Option<Sender<Job>>,
    given_up: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<(), ImageError>>>,
}

impl Writer {
    /// Starts one for an existing directory.
    ///
    /// # Errors
    /// The directory cannot be opened, or there can be no more threads.
    pub fn start(dir: &Path) -> Result<Self, CaptureError> {
        let images = ImageDir::open(dir)?;
        let (jobs, received) = channel();
        let given_up = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&given_up);
        let thread = std::thread::Builder::new()
            .spawn(move || work(&images, &received, &told))
            .map_err(|source| CaptureError::Kernel {
                subject: Subject { pid: 0, comm: "the images".to_owned(), part: String::new() },
                what: "start a thread that writes them".to_owned(),
                source,
            })?;
        Ok(Writer { jobs: Some(jobs), given_up, thread: Some(thread) })
    }

    /// Has something written after all that was asked for before.
    pub fn write(&self, job: impl FnOnce(&ImageDir) -> Result<(), ImageError> + Send + 'static) {
        if let Some(jobs) = &self.jobs {
            // A thread that has failed takes no more jobs; its error is found by `finish`.
            let _ = jobs.send(Box::new(job));
        }
    }

    /// Waits until everything is written.
    ///
    /// # Errors
    /// The first error of the jobs; those after it were not begun.
    pub fn finish(mut self) -> Result<(), ImageError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), ImageError> {
        self.jobs = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(()),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.given_up.store(true, Ordering::Relaxed);
            self.jobs = None;
            let _ = thread.join();
        }
    }
}

fn work(images: &ImageDir, jobs: &Receiver<Job>, given_up: &AtomicBool) -> Result<(), ImageError> {
    jobs.iter().take_while(|_| !given_up.load(Ordering::Relaxed)).try_for_each(|job| job(images))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arctern_image::images::ImageKind;
    use arctern_image::messages::PstreeEntry;

    #[test]
    fn jobs_are_done_in_order_until_one_fails() {
        let dir = tempfile::tempdir().unwrap();
        let writer = Writer::start(dir.path()).unwrap();
        let entry = PstreeEntry { pid: 7, ..PstreeEntry::default() };
        writer.write(move |images| images.write_one(ImageKind::Pstree, 0, &entry));
        writer.write(|images| images.read_one(ImageKind::Core, 1).map(|_: PstreeEntry| ()));
        writer.write(|_| panic!("after an error nothing is done"));
        writer.finish().unwrap_err();
        let images = ImageDir::open(dir.path()).unwrap();
        let read: PstreeEntry = images.read_one(ImageKind::Pstree, 0).unwrap();
        assert_eq!(read.pid, 7);
    }
}
