//! One restore: the images are read and checked ([`loaded`]), a plan is made of them, and its steps
//! are carried out ([`build`]) until the tasks go ([`end`]).

mod build;
mod end;
mod loaded;
mod pid;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use arctern_image::images::ImageDir;

use self::build::Build;
use self::loaded::Loaded;
pub(crate) use self::pid::while_taken;
use crate::confinement::Confinement;
use crate::error::{Refusal, RestoreError, Subject};
use crate::faults::Faults;
use crate::options::{Event, Events, HookError, NetworkLock, RestoreOptions, RestoreReport};
use crate::plan::{Step, plan};
use crate::restore_context::RestoreContext;
use crate::state::cgroup::CgroupRestore;
use crate::state::files::{FileRestoreOptions, FilesRestore, orphan_terminals};
use crate::state::memory::rebuild::Memory;
use crate::state::memory::space::{AddressSpace, find_hole};
use crate::state::memory::vdso::HostVdso;
use crate::state::namespaces::{NamespaceRestore, NamespaceRestoreOptions};

type Hook<'a> = &'a mut dyn FnMut(i32) -> Result<(), HookError>;

/// The caller's own moments.
struct Hooks<'a> {
    setup_namespaces: Option<Hook<'a>>,
    before_resume: Option<Hook<'a>>,
    network: Option<&'a mut dyn NetworkLock>,
    orphan_terminal: Option<&'a mut dyn FnMut(OwnedFd)>,
}

/// Restores the images of `images_dir`.
///
/// # Errors
/// Whatever happens, after an error nothing of the restore is left: every task that was made is
/// dead and reaped.
pub fn restore(
    images_dir: &Path,
    mut options: RestoreOptions<'_>,
    events: &mut dyn Events,
) -> Result<RestoreReport, RestoreError> {
    let started = Instant::now();
    let mut hooks = Hooks {
        setup_namespaces: options.setup_namespaces.take(),
        before_resume: options.before_resume.take(),
        network: options.network.take(),
        orphan_terminal: options.orphan_terminal.take(),
    };
    let options = options;
    let images = ImageDir::open(images_dir)?;
    let loaded = Loaded::load(&images, images_dir)?;
    let planned = loaded.planned_tasks();
    let mut refusals = Vec::new();
    let steps = match plan(&planned, options.shell_job) {
        Ok(steps) => steps,
        Err(list) => {
            refusals.extend(list);
            Vec::new()
        }
    };
    let terminals = match hooks.orphan_terminal {
        Some(_) => orphan_terminals(&images)?,
        None => Vec::new(),
    };
    let mut namespaces = NamespaceRestore::load(
        &images,
        &loaded.nodes[0],
        &NamespaceRestoreOptions {
            root: options.root.as_deref(),
            externals: &options.externals,
            inherit_fds: &options.inherit_fds,
            terminals: &terminals,
            confinement: options.confinement.as_ref(),
            join: &[],
        },
    )?;
    namespaces.check(&mut refusals);
    let vdso = HostVdso::read()?;
    for (node, space) in loaded.nodes.iter().zip(&loaded.spaces) {
        if let Some(space) = space {
            vdso.check(node.pid, &node.comm, space, &mut refusals)?;
        }
    }
    let files = FilesRestore::load(
        &images,
        &loaded.nodes,
        FileRestoreOptions {
            inherit_fds: duplicates(&options.inherit_fds)?,
            externals: options.externals.clone(),
            file_locks: options.file_locks,
            shell_job: options.shell_job,
            orphan_terminals: terminals.clone(),
            tcp: options.tcp,
            // What was captured is named without links; a path with one leads where it pleases.
            plain_paths: options.confinement.as_ref().is_some_and(|c| !c.trusted),
        },
    )?;
    let root_dir = options.root.clone().unwrap_or_else(|| "/".into());
    let root_dir = std::fs::File::open(&root_dir).map_err(|source| RestoreError::Kernel {
        subject: whole_tree(),
        what: format!("open its root directory {}", root_dir.display()),
        source,
    })?;
    files.check(root_dir.as_fd(), &mut refusals);
    if let Some(confinement) = &options.confinement {
        loaded.check_confined(confinement, &mut refusals);
        namespaces.check_confined(confinement, &mut refusals);
        files.check_confined(confinement, &mut refusals)?;
    }
    if !refusals.is_empty() {
        return Err(RestoreError::Refused(refusals));
    }
    let cgroups = CgroupRestore::load(&images)?;
    let spaces = || loaded.spaces.iter().flatten();
    let gadget = find_hole(spaces())?;
    let memory = Memory::new(spaces());
    let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().map_err(|source| {
        RestoreError::Kernel { subject: whole_tree(), what: "make a channel".to_owned(), source }
    })?;
    // Above every number of the images, so that final descriptors never meet temporary ones, and
    // above those that mapped files get while they are open: a task opens all of its own at once.
    let mapped = spaces().map(AddressSpace::mapped_files).max().unwrap_or(0);
    let base = files.max_fd().max(2) + 1 + i32::try_from(mapped).unwrap_or(i32::MAX / 2);
    let mut build = Build {
        images: &images,
        loaded: &loaded,
        namespaces: &mut namespaces,
        files,
        cgroups,
        memory,
        ctx: RestoreContext::new(base, ours),
        gadget,
        stubs: vec![None; loaded.nodes.len()],
        filled: vec![false; loaded.nodes.len()],
        exe_of: vec![None; loaded.nodes.len()],
        threads: BTreeMap::new(),
        helpers: Vec::new(),
        finals: Vec::new(),
        guard: None,
        root_pid: None,
        made: Vec::new(),
        channel: theirs,
    };
    let mut faults = Faults::from_env("restore");
    let mut forking = 0;
    for step in &steps {
        events.event(Event::Phase(phase(step)));
        tracing::debug!("{step} after {} µs", started.elapsed().as_micros());
        let result = faults
            .step(&step.to_string())
            .map_err(RestoreError::Injected)
            .and_then(|()| build.execute(step, &options, &mut hooks, events));
        if let Err(e) = result {
            build.tear_down();
            return Err(e);
        }
        if matches!(step, Step::Threads(_)) && forking == 0 {
            forking = started.elapsed().as_micros() as u64;
        }
    }
    build.cgroups.keep();
    for warning in build.cgroups.take_warnings() {
        events.event(Event::Warning(warning));
    }
    Ok(RestoreReport {
        pid: build.root_pid.map_or(0, |pid| pid.0),
        total_us: started.elapsed().as_micros() as u64,
        forking_us: forking,
        pages_restored: build.memory.pages_restored,
    })
}

/// Descriptors of our own of what the caller gave.
fn duplicates(fds: &[(String, OwnedFd)]) -> Result<Vec<(String, OwnedFd)>, RestoreError> {
    fds.iter()
        .map(|(key, fd)| Ok((key.clone(), fd.try_clone()?)))
        .collect::<std::io::Result<_>>()
        .map_err(|source| RestoreError::Kernel {
            subject: whole_tree(),
            what: "duplicate inherited descriptors".to_owned(),
            source,
        })
}

fn whole_tree() -> Subject {
    Subject { pid: 0, comm: "the tree".to_owned(), part: String::new() }
}

/// The steps of restoring these images, in words: what fault injection counts.
pub fn describe_plan(images_dir: &Path, shell_job: bool) -> Result<Vec<String>, RestoreError> {
    let images = ImageDir::open(images_dir)?;
    let loaded = Loaded::load(&images, images_dir)?;
    let steps = plan(&loaded.planned_tasks(), shell_job).map_err(RestoreError::Refused)?;
    Ok(steps.iter().map(Step::to_string).collect())
}

/// Reads the images as a restore does, and says what it would refuse; nothing is made and nothing of
/// this host is looked at but what every restore looks at.
pub fn examine(images: &ImageDir) -> Result<Vec<Refusal>, RestoreError> {
    let loaded = Loaded::load(images, images.path())?;
    let confinement = Confinement::default();
    let terminals = orphan_terminals(images)?;
    let mut refusals = Vec::new();
    loaded.check_confined(&confinement, &mut refusals);
    let namespaces = NamespaceRestore::load(
        images,
        &loaded.nodes[0],
        &NamespaceRestoreOptions {
            root: None,
            externals: &[],
            inherit_fds: &[],
            terminals: &terminals,
            confinement: Some(&confinement),
            join: &[],
        },
    )?;
    namespaces.check(&mut refusals);
    namespaces.check_confined(&confinement, &mut refusals);
    let files = FilesRestore::load(images, &loaded.nodes, FileRestoreOptions::default())?;
    files.check_confined(&confinement, &mut refusals)?;
    CgroupRestore::load(images)?;
    crate::state::files::examine_waiting(images)
        .map_err(|error| RestoreError::Inconsistent(error.to_string()))?;
    Ok(refusals)
}

fn phase(step: &Step) -> &'static str {
    match step {
        Step::Root | Step::Namespaces => "namespaces",
        Step::SharedFiles(_) | Step::Files(_) | Step::Fs(_) | Step::FinishFiles => "files",
        Step::Connections | Step::Unlock => "network",
        Step::Memory(_) => "memory",
        Step::Session(_)
        | Step::Clone { .. }
        | Step::Helper { .. }
        | Step::Group(_)
        | Step::HelpersExit
        | Step::Exit(_)
        | Step::Threads(_) => "tasks",
        Step::State(_) | Step::Credentials(_) | Step::Timers(_) | Step::Registers(_) => "state",
        Step::Hook => "verify",
        Step::Secure | Step::Release => "release",
    }
}
