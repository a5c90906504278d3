//! What belongs to no single container: the database, networks, images and volumes.

use arctern_net::Stray;
use arctern_storage::audit::Cure;

use super::{Audit, AuditOptions};
use crate::config::short_id;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::lock::Lock;

impl Host {
    pub(super) fn audit_database(&self, options: AuditOptions, audit: &mut Audit) -> Result<()> {
        for line in self.store.damage(options.quick)? {
            let object = format!("database {}", self.paths.database().display());
            let todo = "stop everything and bring it back from a backup, or remove it";
            audit.add_for_people(options, &object, line, todo);
        }
        Ok(())
    }

    /// Locks that wait for nobody, and what the kernel has that nobody has a lease for.
    pub(super) fn audit_networks(
        &mut self,
        options: AuditOptions,
        audit: &mut Audit,
    ) -> Result<()> {
        for network in crate::network::all(&self.paths)? {
            for (ip, lock) in network.locks().map_err(Error::network)? {
                let object = format!("network lock of {ip}");
                let end = || {
                    let ended = network.end_lock(&lock.container).map_err(Error::network)?;
                    ended.iter().for_each(crate::keeper::dismiss);
                    Ok(())
                };
                if lock.expired() {
                    audit.add(options, &object, "its time is over", "open it", end);
                    continue;
                }
                let known = self.store.get(&lock.container)?;
                if lock.kept && (known.is_some() || lock.archived) {
                    continue;
                }
                // Somebody may be at work under it.
                let path = self.paths.container(&lock.container).lock();
                let guard = match path.exists() {
                    true => Lock::try_take(&path)?,
                    false => None,
                };
                if known.is_some() && guard.is_none() {
                    continue;
                }
                if network.locks().map_err(Error::network)?.get(&ip) != Some(&lock) {
                    continue;
                }
                let problem = match known {
                    Some(_) => "the command that made it was killed",
                    None => "its container is gone, and there is no archive of it",
                };
                audit.add(options, &object, problem, "open it", end);
            }
            for stray in network.strays().map_err(Error::network)? {
                let (object, problem, container) = match &stray {
                    Stray::Port { name, container } => (
                        format!("network device {name}"),
                        format!("nobody on network {} has it", network.name()),
                        container.clone(),
                    ),
                    Stray::Published(id) => (
                        format!("published ports of container {}", short_id(id)),
                        format!("it has no address on network {}", network.name()),
                        None,
                    ),
                };
                let _guard = match &container {
                    None => None,
                    Some(id) => match Lock::try_take(&self.paths.container(id).lock()) {
                        Ok(Some(guard)) => Some(guard),
                        // A command is about to lock it.
                        _ => continue,
                    },
                };
                if !network.strays().map_err(Error::network)?.contains(&stray) {
                    continue;
                }
                audit.add(options, &object, problem, "remove it", || {
                    network.remove_stray(&stray).map_err(Error::network)
                });
            }
        }
        Ok(())
    }

    /// Images, layers, root file systems and volumes.
    pub(super) fn audit_images(&mut self, options: AuditOptions, audit: &mut Audit) -> Result<()> {
        let mut collected = false;
        for flaw in self.images.flaws(options.quick).map_err(Error::storage)? {
            let (remedy, users) = match &flaw.cure {
                Cure::Collect | Cure::RemoveFile(_) | Cure::RemoveVolume { .. } => {
                    ("remove it", None)
                }
                Cure::WriteNote { .. } => ("write it down", None),
                Cure::RemoveImage { users, .. } if users.is_empty() => ("remove it", None),
                Cure::RemoveImage { users, .. } => ("remove it and its containers", Some(users)),
                Cure::Nothing => {
                    let todo = "bring it back from a backup, or remove it";
                    audit.add_for_people(options, &flaw.object, flaw.problem, todo);
                    continue;
                }
            };
            if let (Some(users), false) = (users, options.force) {
                let names = users.iter().map(|id| short_id(id)).collect::<Vec<_>>().join(", ");
                let todo = format!(
                    "get the image anew, or --force removes it with the containers {names}"
                );
                audit.add_for_people(options, &flaw.object, flaw.problem, &todo);
                continue;
            }
            audit.add(options, &flaw.object, flaw.problem, remedy, || {
                if flaw.cure == Cure::Collect {
                    if std::mem::replace(&mut collected, true) {
                        return Ok(());
                    }
                } else if let Cure::RemoveImage { id, users } = &flaw.cure {
                    for user in users {
                        self.remove(user, true)?;
                    }
                    return self.images.remove_image(id, true).map(drop).map_err(Error::storage);
                }
                let image_of =
                    |container: &str| Some(self.store.get(container).ok()??.config.image_id);
                match self.images.cure(&flaw.cure, image_of).map_err(Error::storage)? {
                    true => Ok(()),
                    false => Err(Error::Invalid("what it was made from is not known".to_owned())),
                }
            });
        }
        Ok(())
    }
}
