//! The destination: what is in the way, and a container that is built and waits for its commit.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use arctern_engine::options::{Event, Events, TcpPolicy};
use arctern_engine::precopy::PageDirectory;
use arctern_image::manifest::HostFacts;

use arctern_storage::{LayerBlob, diff};

use super::{Blocker, Lap, Laps, Offer, Passage, Verdict};
use crate::cgroup::Hierarchies;
use crate::checkpoint::RestoreOptions;
use crate::checkpoint::import::Incoming;
use crate::checkpoint::policy::Allowed;
use crate::config::{NetworkMode, PortMapping, Protocol, short_id};
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
    /// Everything that stands in the way of a container, at once. Nothing is touched.
    pub fn blockers(&mut self, offer: &Offer) -> Result<Vec<Blocker>> {
        let mut list = Vec::new();
        let mut note = |cause: String, remedy: &str| {
            list.push(Blocker { cause, remedy: remedy.to_owned() });
        };
        let config = &offer.config;
        let here = HostFacts::gather().map_err(Error::system("read the facts of this machine"))?;
        let there = &offer.facts;
        if there.architecture != here.architecture || there.page_size != here.page_size {
            note(
                format!(
                    "the container runs on a {} machine with pages of {} bytes, this is {} with {}",
                    there.architecture, there.page_size, here.architecture, here.page_size
                ),
                "choose a destination of the same architecture",
            );
        }
        let missing = there.features_missing_on(&here);
        if !missing.is_empty() {
            note(
                format!("the CPU lacks {}", missing.join(", ")),
                "choose a destination whose CPU has them: programs may use them at any instruction",
            );
        }
        let groups = Hierarchies::of(&self.paths)?;
        if let Err(error) = groups.check(config) {
            note(error.chain(), &error.hint().unwrap_or_default());
        }
        for record in self.list()? {
            if record.name() == config.name {
                note(
                    format!(
                        "the name `{}` is used by container {}",
                        config.name,
                        short_id(record.id())
                    ),
                    "rename or remove that one",
                );
            } else if record.id() == config.id {
                note(
                    format!("container `{}` has the same id", record.name()),
                    "remove it: it is an earlier copy",
                );
            }
        }
        for port in &config.ports {
            for taken in taken(port) {
                note(
                    format!("port {taken} of the host is in use"),
                    "stop what listens there, or restart the container with another port",
                );
            }
        }
        if let Some(cause) = self.address_taken(offer)? {
            note(cause, "give the other container another address");
        }
        if let Err(error) = crate::checkpoint::volumes::check(self, config, &options()) {
            note(error.chain(), &error.hint().unwrap_or_default());
        }
        for volume in &config.volumes {
            if !volume.source.exists() {
                note(
                    format!("there is no {} to bind", volume.source.display()),
                    "create it, or share it between the hosts",
                );
            }
        }
        list.extend(self.room_for_arrival(offer)?);
        Ok(list)
    }

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

    fn address_taken(&self, offer: &Offer) -> Result<Option<String>> {
        if offer.config.network != NetworkMode::Bridge {
            return Ok(None);
        }
        let network = match crate::network::of(&self.paths, &offer.config) {
            Ok(network) => network,
            Err(error) => return Ok(Some(error.chain())),
        };
        let Some(status) = crate::network::parse_status(offer.network.as_deref()) else {
            return Ok(None);
        };
        let leases = network.leases().map_err(Error::network)?;
        let other =
            leases.iter().find(|(id, lease)| lease.ip == status.ip && **id != offer.config.id);
        Ok(other.map(|(id, _)| format!("container {} has the address {}", short_id(id), status.ip)))
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
            ..RestoreRequest::of(&options())
        };
        self.request_restore(record.id(), &request)?;
        self.start_ahead(record, lock)
    }

    /// Takes in files that come ahead of the archive, an archive themselves.
    pub fn take_files(&self, arrival: &Arrival, mut archive: impl Read) -> Result<()> {
        let root = self.images.mount_root(arrival.id(), false).map_err(Error::storage)?;
        let devices = crate::checkpoint::volumes::devices(&options());
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
        self.bring_in(Incoming::from_host(archive), &arrival.record, &options(), &mut timed)?;
        match arrival.has_rest {
            true => self.join_rest(arrival),
            false => Ok(()),
        }
    }

    /// Builds the container: everything is there, and nothing of it has run.
    /// Gives where the time went, in this process and in the one that built it.
    pub fn build(&mut self, arrival: &mut Arrival) -> Result<(Vec<Lap>, Vec<Lap>)> {
        arrival.laps.begin("build");
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

    /// The container is this host's: written down, and let go.
    ///
    /// # Errors
    /// [`Error::NotCommitted`] when the move was given up before. After any other error the container
    /// is this host's all the same, stopped with its checkpoint.
    pub fn commit(&mut self, arrival: Arrival) -> Result<Started> {
        let connection = match &arrival.shim {
            Some((_, connection)) if arrival.is_built => connection,
            _ => return Err(Error::Invalid("the container was not built".to_owned())),
        };
        if Verdict::Committed.decide(&self.paths, &arrival.transfer)? != Verdict::Committed {
            self.abandon(arrival)?;
            return Err(Error::NotCommitted);
        }
        connection.let_go()?;
        let Arrival { record, lock, shim, .. } = arrival;
        drop(lock);
        match shim {
            Some((shim, connection)) => self.started(&record, shim, connection),
            None => Err(Error::NotCommitted),
        }
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
        self.remove_files(record.id())
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
}

/// A container comes with everything that it had, but for block devices: root sends it.
fn options() -> RestoreOptions {
    let allowed = Allowed { trust: true, ..Default::default() };
    RestoreOptions { tcp: TcpPolicy::Established, file_locks: true, allowed, ..Default::default() }
}

/// Host ports of a mapping that somebody listens at.
fn taken(mapping: &PortMapping) -> Vec<u16> {
    let ip = mapping.host_ip.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::from);
    let free = |port: u16| match mapping.protocol {
        Protocol::Tcp => TcpListener::bind(SocketAddr::new(ip, port)).is_ok(),
        Protocol::Udp => UdpSocket::bind(SocketAddr::new(ip, port)).is_ok(),
    };
    mapping.pairs().map(|(host, _)| host).filter(|&port| port != 0 && !free(port)).collect()
}
