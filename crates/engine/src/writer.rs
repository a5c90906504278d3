//! Images that are written by a second thread while the capture goes on.
//!
//! Making thousands of small files takes about as long as finding out what is in them. Tasks that are
//! to be killed wait for both, so both are done at the same time.

use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use arctern_image::images::{ImageDir, ImageError};

type Job = Box<dyn FnOnce(&ImageDir) -> Result<(), ImageError> + Send>;

/// The thread. Dropped, it ends after what it was given, and is waited for.
pub struct Writer {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<Result<(), ImageError>>>,
}

impl Writer {
    /// Starts one for an existing directory.
    ///
    /// # Errors
    /// The directory cannot be opened.
    pub fn start(dir: &Path) -> Result<Self, ImageError> {
        let images = ImageDir::open(dir)?;
        let (jobs, received) = channel();
        let thread = std::thread::spawn(move || work(&images, &received));
        Ok(Writer { jobs: Some(jobs), thread: Some(thread) })
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
            self.jobs = None;
            let _ = thread.join();
        }
    }
}

fn work(images: &ImageDir, jobs: &Receiver<Job>) -> Result<(), ImageError> {
    jobs.iter().try_for_each(|job| job(images))
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
