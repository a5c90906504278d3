//! The destination: what is in the way, and a container that is built and waits for its commit.

use std::io::Read;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use arctern_engine::options::{Event, Events, TcpPolicy};
use arctern_engine::precopy::PageDirectory;

use arctern_storage::{LayerBlob, diff};

use super::{Lap, Laps, Offer, Passage, Verdict};
use crate::checkpoint::RestoreOptions;
use crate::checkpoint::import::Incoming;
use crate::checkpoint::policy::Allowed;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::keeper::{self, Keeper};
use crate::lifecycle::{Connection, Started};
use crate::lock::Lock;
use crate::shim::{RestoreRequest, Trust};
use crate::state::{Record, Status};
use crate::time::Timestamp;

/// A container that is arriving. Abandoned, nothing of it is left.
#[derive(Debug)]
pub struct Arrival {
    record: Record,
    transfer: String,
    lock: Lock,
    /// How many rounds of memory have come ahead.
    rounds: u32,
    /// The memory that was written since the last of them has come too.
    has_rest: bool,
    /// The shim that takes memory in, builds it, and waits.
    shim: Option<(Child, Connection)>,
    /// Those of its volumes that come with another container.
    shared: Vec<String>,
    /// Its archive has come.
    is_complete: bool,
    /// It is built.
    is_built: bool,
    /// Where the time of the freeze goes.
    laps: Laps,
}

/// The last of the memory, in [`ContainerPaths::ahead_dir`](crate::paths::ContainerPaths).
const REST: &str = "rest";

/// A file in the container's directory that says which move brought it.
const ARRIVING: &str = "arriving";

impl Host {
    /// What is missing of the image of a container; none if it is here.
    #[must_use]
    pub fn missing_image(&self, offer: &Offer) -> Option<Vec<LayerBlob>> {
        match self.images.resolve(&offer.config.image_id) {
            Ok(_) => None,
            Err(_) => Some(self.images.missing_layers(&offer.layers)),
        }
    }

    /// Takes in an image that the other host sends, with the layers that are missing.
    pub fn take_image(&self, archive: impl Read) -> Result<()> {
        self.images.load_beside(archive).map(drop).map_err(Error::storage)
    }

    /// Makes the container, with everything that does not depend on what it does from now on. The image must
    /// be here.
    pub fn expect(&mut self, offer: &Offer) -> Result<Arrival> {
        if let Some(verdict) = Verdict::of(&self.paths, &offer.transfer)? {
            return Err(Error::Invalid(format!("this move was {verdict:?} before")));
        }
        let config = offer.config.clone();
        let record = Record {
            status: Status::Restoring,
            created_at: Timestamp::parse_rfc3339(&config.created).unwrap_or_else(Timestamp::now),
            network: offer.network.clone(),
            ..Record::new(config)
        };
        let (record, lock) = self.create_from(record)?;
        match self.start_arrival(&record, &lock, &offer.transfer) {
            Ok(shim) => Ok(Arrival {
                record,
                transfer: offer.transfer.clone(),
                lock,
                rounds: 0,
                has_rest: false,
                shared: offer.shared.clone(),
                is_complete: false,
                shim: Some(shim),
                is_built: false,
                laps: Laps::default(),
            }),
            Err(error) => {
                if let Err(cleanup) = self.leave(&record) {
                    tracing::error!("while cleaning up {}: {}", record.id(), cleanup.chain());
                }
                Err(error)
            }
        }
    }

    /// Starts the shim of a container that arrives: its network and its root are there then, and nobody
    /// notices.
    fn start_arrival(
        &self,
        record: &Record,
        lock: &Lock,
        transfer: &str,
    ) -> Result<(Child, Connection)> {
        let path = self.paths.container(record.id()).dir.join(ARRIVING);
        std::fs::write(&path, transfer).map_err(Error::io("write", &path))?;
        let request = RestoreRequest {
            trust: Trust::Foreign,
            transfer: Some(transfer.to_owned()),
            ..RestoreRequest::of(&options(&[]))
        };
        self.request_restore(record.id(), &request)?;
        self.start_ahead(record, lock)
    }

    /// Takes in files that come ahead of the archive, an archive themselves.
    pub fn take_files(&self, arrival: &Arrival, mut archive: impl Read) -> Result<()> {
        let root = self.images.mount_root(arrival.id(), false).map_err(Error::storage)?;
        let devices = crate::checkpoint::volumes::devices(&options(&[]));
        diff::apply(Some(&mut archive), &[], &root, devices).map(drop).map_err(Error::storage)
    }

    /// Where the next round of memory goes, on top of those before.
    pub fn expect_round(&self, arrival: &mut Arrival) -> Result<PageDirectory> {
        let ahead = self.paths.container(arrival.id()).ahead_dir();
        if arrival.rounds == 0 {
            std::fs::create_dir(&ahead).map_err(Error::io("create", &ahead))?;
        }
        let parent = arrival.rounds.checked_sub(1).map(|before| format!("../{before}"));
        let dir = ahead.join(arrival.rounds.to_string());
        let pages = PageDirectory::create(&dir, parent.as_deref().map(Path::new));
        arrival.rounds += 1;
        pages.map_err(|e| Error::Capture(Box::new(e.into())))
    }

    /// A round of memory is complete: the shim takes it in.
    pub fn took_round(&self, arrival: &Arrival) -> Result<()> {
        match (&arrival.shim, arrival.rounds.checked_sub(1)) {
            (Some((_, connection)), Some(number)) => connection.load_round(number),
            _ => Ok(()),
        }
    }

    /// Where the memory goes that was written since the last round.
    pub fn expect_rest(&self, arrival: &mut Arrival) -> Result<PageDirectory> {
        arrival.laps.begin("memory");
        if let Some((_, connection)) = &arrival.shim {
            connection.appear()?;
        }
        let ahead = self.paths.container(arrival.id()).ahead_dir();
        // As it will lead when everything is in its place: see `join_rest`.
        let parent = arrival.rounds.checked_sub(1).map(|before| format!("ahead/{before}"));
        let pages = PageDirectory::last(&ahead.join(REST), parent.as_deref().map(Path::new));
        arrival.has_rest = true;
        pages.map_err(|e| Error::Capture(Box::new(e.into())))
    }

    /// Brings memory that came before the archive to the images that came with it.
    fn join_rest(&self, arrival: &Arrival) -> Result<()> {
        let paths = self.paths.container(arrival.id());
        let (ahead, images) = (paths.ahead_dir(), paths.checkpoint());
        let rename =
            |from: &Path, to: &Path| std::fs::rename(from, to).map_err(Error::io("rename", from));
        let rest = ahead.join(REST);
        for entry in std::fs::read_dir(&rest).map_err(Error::io("list", &rest))? {
            let entry = entry.map_err(Error::io("list", &rest))?;
            rename(&entry.path(), &images.join(entry.file_name()))?;
        }
        rename(&ahead, &images.join("ahead"))
    }

    /// Takes in the archive that the other host sends.
    pub fn take_archive(
        &mut self,
        arrival: &mut Arrival,
        archive: impl Read,
        events: &mut dyn Events,
    ) -> Result<()> {
        let mut timed = Timed { laps: &mut arrival.laps, events };
        let options = options(&arrival.shared);
        self.bring_in(Incoming::from_host(archive), &arrival.record, &options, &mut timed)?;
        if arrival.has_rest {
            self.join_rest(arrival)?;
        }
        arrival.is_complete = true;
        Ok(())
    }

    /// Everything of the container is there: its shim begins to build it.
    pub fn begin_to_build(&self, arrival: &mut Arrival) {
        arrival.laps.begin("build");
        if let Some((_, connection)) = &arrival.shim {
            connection.build();
        }
    }

    /// Waits until the container is built. Nothing of it has run.
    /// Gives where the time went, in this process and in the one that built it.
    pub fn built(&mut self, arrival: &mut Arrival) -> Result<(Vec<Lap>, Vec<Lap>)> {
        let Some(shim) = arrival.shim.take() else {
            return Err(Error::ShimGone(arrival.record.name().to_owned()));
        };
        let (shim, connection, laps) = self.await_built(&arrival.record, shim)?;
        arrival.shim = Some((shim, connection));
        arrival.is_built = true;
        Ok((arrival.laps.take(), laps))
    }

    /// Connections of a container that was built, and that come by way of the host that it leaves, are
    /// returned there.
    pub fn send_back(&mut self, arrival: &Arrival, passage: &Passage) -> Result<()> {
        let record = &arrival.record;
        let network = crate::network::of(&self.paths, &record.config)?;
        let keeper = Keeper::start(&self.paths, record.id())?;
        let before = network
            .send_back(record.id(), record.name(), passage, keeper.process())
            .map_err(Error::network)?;
        keeper::dismiss_process(before.and_then(|back| back.keeper));
        keeper.keep(passage.seconds.map(Duration::from_secs));
        Ok(())
    }

    /// The containers of a move are this host's: written down once, and let go.
    ///
    /// They are this host's also where one of the results is an error: that one is stopped, with its
    /// checkpoint.
    ///
    /// # Errors
    /// [`Error::NotCommitted`] when the move was given up before. After any other error nobody knows.
    pub fn commit(&mut self, arrivals: Vec<Arrival>) -> Result<Vec<Result<Started>>> {
        let Some(first) = arrivals.first() else { return Err(Error::NotCommitted) };
        let decided = match arrivals.iter().all(|arrival| arrival.is_built) {
            true => Verdict::Committed.decide(&self.paths, &first.transfer)?,
            false => Verdict::Aborted,
        };
        if decided != Verdict::Committed {
            arrivals.into_iter().try_for_each(|arrival| self.abandon(arrival))?;
            return Err(Error::NotCommitted);
        }
        let let_go = |arrival: &Arrival| match &arrival.shim {
            Some((_, connection)) => connection.let_go(),
            None => Ok(()),
        };
        // All of them before the first is waited for; that one is gone changes nothing for the others.
        let told: Vec<Result<()>> = arrivals.iter().map(let_go).collect();
        let mut ends = Vec::new();
        for (Arrival { record, lock, shim, .. }, told) in arrivals.into_iter().zip(told) {
            drop(lock);
            ends.push(match (told, shim) {
                (Ok(()), Some((shim, connection))) => self.started(&record, shim, connection),
                (Ok(()), None) => Err(Error::ShimGone(record.config.name)),
                (Err(error), _) => Err(error),
            });
        }
        Ok(ends)
    }

    /// Removes everything of a container that does not come.
    pub fn abandon(&mut self, arrival: Arrival) -> Result<()> {
        if let Some((mut shim, connection)) = arrival.shim {
            let _ = connection.shutdown();
            // It tears down what it has built.
            let _ = shim.wait();
        }
        self.leave(&arrival.record)
    }

    fn leave(&mut self, record: &Record) -> Result<()> {
        self.teardown(record.id())?;
        crate::network::end_lock(&self.paths, &record.config)?;
        crate::network::end_backs(&self.paths, &record.config)?;
        self.forget_restore(record.id())
    }

    /// Forgets a move whose end both hosts know. Of a container that was not let go only the verdict
    /// says that it is this host's: it is kept first.
    pub fn conclude(&mut self, transfer: &str) -> Result<()> {
        if Verdict::of(&self.paths, transfer)? == Some(Verdict::Committed) {
            // To look at records makes them true.
            self.list()?;
        }
        Verdict::forget(&self.paths, transfer)
    }

    /// A container whose move was committed and whose shim was killed before it let it go: it stays,
    /// stopped, with its checkpoint. False when it was not committed.
    pub(crate) fn keep_arrived(&mut self, record: &Record) -> Result<bool> {
        let paths = self.paths.container(record.id());
        let Ok(transfer) = std::fs::read_to_string(paths.dir.join(ARRIVING)) else {
            return Ok(false);
        };
        if Verdict::of(&self.paths, &transfer)? != Some(Verdict::Committed) {
            return Ok(false);
        }
        self.teardown(record.id())?;
        self.store.update(record.id(), |r| {
            r.status = Status::Checkpointed;
            r.checkpointed_at = Some(Timestamp::now());
            r.shim = None;
            r.init = None;
        })?;
        Ok(true)
    }
}

/// Passes events on, and takes the time of phases.
struct Timed<'a> {
    laps: &'a mut Laps,
    events: &'a mut dyn Events,
}

impl Events for Timed<'_> {
    fn event(&mut self, event: Event) {
        if let Event::Phase(phase) = event {
            self.laps.begin(phase);
        }
        self.events.event(event);
    }
}

impl Arrival {
    /// The container's id.
    #[must_use]
    pub fn id(&self) -> &str {
        self.record.id()
    }

    /// Everything of it is there.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }
}

/// A container comes with everything that it had, but for block devices: root sends it. Volumes that it
/// shares come with another one.
pub(super) fn options(shared: &[String]) -> RestoreOptions {
    let allowed = Allowed { trust: true, ..Default::default() };
    RestoreOptions {
        tcp: TcpPolicy::Established,
        file_locks: true,
        skip_volumes: shared.to_vec(),
        allowed,
        ..Default::default()
    }
}
