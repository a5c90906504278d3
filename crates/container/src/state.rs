//! The state of all containers, in SQLite.
//!
//! What the database says about a running container is a claim: [`crate::Host`] checks it against
//! the kernel (pid with start time, boot id) before anything is done with it.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{
    Connection, OpenFlags, OptionalExtension, Row, Transaction, TransactionBehavior, params,
};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::config::ContainerConfig;
use crate::error::{Error, Result};
use crate::process::ProcessId;
use crate::time::Timestamp;

/// Version of the tables below. A database of another version is refused.
const VERSION: i64 = 1;

const TABLES: &str = "
CREATE TABLE containers (
    id              TEXT PRIMARY KEY,
    name            TEXT NOT NULL UNIQUE,
    status          TEXT NOT NULL,
    boot            TEXT NOT NULL DEFAULT '',
    pid             INTEGER,
    pid_start       INTEGER,
    shim            INTEGER,
    shim_start      INTEGER,
    exit_code       INTEGER,
    created_at      INTEGER NOT NULL,
    started_at      INTEGER,
    finished_at     INTEGER,
    checkpointed_at INTEGER,
    restored_at     INTEGER,
    network         TEXT,
    error           TEXT,
    config          TEXT NOT NULL
) STRICT;
";

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Created, never started.
    Created,
    /// Its init runs.
    Running,
    /// Its init has ended.
    Exited,
    /// Stopped by a checkpoint that is kept with it.
    Checkpointed,
    /// Being made from an archive by a command that holds its lock. Without that command it is what
    /// a killed restore left.
    Restoring,
    /// On its way to another host: frozen by a command that holds its lock. Without that command
    /// its marker says what it is ([`crate::transfer`]).
    Migrating,
}

impl Status {
    /// As stored and as shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Created => "created",
            Status::Running => "running",
            Status::Exited => "exited",
            Status::Checkpointed => "checkpointed",
            Status::Restoring => "restoring",
            Status::Migrating => "migrating",
        }
    }

    fn parse(text: &str) -> Option<Status> {
        use Status::{Checkpointed, Created, Exited, Migrating, Restoring, Running};
        [Created, Running, Exited, Checkpointed, Restoring, Migrating]
            .into_iter()
            .find(|s| s.as_str() == text)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One container as the database has it.
#[derive(Clone, Debug)]
pub struct Record {
    /// What was asked of it.
    pub config: ContainerConfig,
    /// Where it is in its life.
    pub status: Status,
    /// Boot in which the processes below ran.
    pub boot: String,
    /// Its init.
    pub init: Option<ProcessId>,
    /// Its shim.
    pub shim: Option<ProcessId>,
    /// How init ended.
    pub exit_code: Option<i32>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was last started or restored.
    pub started_at: Option<Timestamp>,
    /// When it last ended.
    pub finished_at: Option<Timestamp>,
    /// When it was last checkpointed.
    pub checkpointed_at: Option<Timestamp>,
    /// When it was last restored.
    pub restored_at: Option<Timestamp>,
    /// What the network gave it, as JSON of the network crate.
    pub network: Option<String>,
    /// Why it could not be started.
    pub error: Option<String>,
}

impl Record {
    /// A container that was just asked for.
    #[must_use]
    pub fn new(config: ContainerConfig) -> Record {
        Record {
            config,
            status: Status::Created,
            boot: String::new(),
            init: None,
            shim: None,
            exit_code: None,
            created_at: Timestamp::now(),
            started_at: None,
            finished_at: None,
            checkpointed_at: None,
            restored_at: None,
            network: None,
            error: None,
        }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.config.id
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.config.name
    }
}

/// The database.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    db: Connection,
}

/// Makes the database, with all that is in a new one, under another name first: no command sees half
/// of it, and none changes its journal while others read. Does nothing if another command has made it
/// meanwhile.
fn make(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(parent, flags, Mode::empty())
        .map_err(|e| Error::io("open", parent)(e.into()))?;
    while let Err(e) = rustix::fs::flock(&directory, FlockOperation::LockExclusive) {
        if e != Errno::INTR {
            return Err(Error::io("lock", parent)(e.into()));
        }
    }
    if path.try_exists().map_err(Error::io("look at", path))? {
        return Ok(());
    }
    let new = path.with_extension("db.new");
    // Of a command that was killed here.
    for suffix in ["", "-journal", "-wal", "-shm"] {
        let mut file = new.clone().into_os_string();
        file.push(suffix);
        match fs::remove_file(&file) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("remove", Path::new(&file))(e));
            }
            _ => {}
        }
    }
    let fill = || {
        let db = connect(&new, OpenFlags::SQLITE_OPEN_CREATE)?;
        // WAL: readers and one writer at a time do not block each other.
        db.pragma_update(None, "journal_mode", "wal")?;
        db.execute_batch(TABLES)?;
        db.pragma_update(None, "user_version", VERSION)?;
        // The log goes into the file, which is written out.
        db.close().map_err(|(_, e)| e)
    };
    fill().map_err(|source| Error::Database { path: new.clone(), source })?;
    fs::rename(&new, path).map_err(Error::io("rename", &new))?;
    rustix::fs::fsync(&directory).map_err(|e| Error::io("write out", parent)(e.into()))
}

/// A connection that waits for the others.
fn connect(path: &Path, more: OpenFlags) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | more;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(Duration::from_secs(20))?;
    Ok(db)
}

const COLUMNS: &str = "config, status, boot, pid, pid_start, shim, shim_start, exit_code, created_at, \
     started_at, finished_at, checkpointed_at, restored_at, network, error";

impl Store {
    /// Opens the database, and makes it if there is none.
    pub fn open(path: &Path) -> Result<Store> {
        let fail = |source| Error::Database { path: path.to_owned(), source };
        if !path.try_exists().map_err(Error::io("look at", path))? {
            make(path)?;
        }
        let db = connect(path, OpenFlags::empty()).map_err(fail)?;
        // NORMAL: a power cut may lose the last transactions and never the database; what must not
        // be lost is written by `durably`. That something runs is not among it: after a power cut
        // nothing does.
        db.pragma_update(None, "synchronous", "normal").map_err(fail)?;
        // Nor when the last command closes it: the log is worked in when it has grown.
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(fail)?;
        let found: i64 =
            db.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(fail)?;
        if found != VERSION {
            return Err(Error::DatabaseVersion { path: path.to_owned(), found, known: VERSION });
        }
        Ok(Store { path: path.to_owned(), db })
    }

    fn fail(&self, source: rusqlite::Error) -> Error {
        Error::Database { path: self.path.clone(), source }
    }

    /// Waits until the change that somebody is writing now, if anybody is, can be read.
    pub fn await_writer(&mut self) -> Result<()> {
        let path = self.path.clone();
        let ours = self.db.transaction_with_behavior(TransactionBehavior::Immediate);
        // It changes nothing itself.
        ours.and_then(Transaction::rollback).map_err(|source| Error::Database { path, source })
    }

    /// The changes that `work` makes are on disk when it returns: a power cut does not undo them, nor
    /// any change before them.
    pub fn durably<T>(&mut self, work: impl FnOnce(&mut Store) -> Result<T>) -> Result<T> {
        let set = |store: &Store, how| {
            store.db.pragma_update(None, "synchronous", how).map_err(|e| store.fail(e))
        };
        set(self, "full")?;
        let result = work(self);
        set(self, "normal")?;
        result
    }

    /// What is wrong with the database, a line each; `quick` leaves the indexes out.
    pub fn damage(&self, quick: bool) -> Result<Vec<String>> {
        let check = if quick { "PRAGMA quick_check" } else { "PRAGMA integrity_check" };
        let mut statement = self.db.prepare(check).map_err(|e| self.fail(e))?;
        let lines = statement.query_map([], |row| row.get::<_, String>(0));
        let lines: Vec<String> = lines.and_then(Iterator::collect).map_err(|e| self.fail(e))?;
        Ok(lines.into_iter().filter(|line| line != "ok").collect())
    }

    /// Adds a container. The name and the id must be free.
    pub fn insert(&mut self, record: &Record) -> Result<()> {
        let path = self.path.clone();
        let fail = move |source| Error::Database { path: path.clone(), source };
        let tx =
            self.db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&fail)?;
        name_is_free(&tx, record.name()).map_err(&fail)??;
        let taken: Option<i64> = tx
            .query_row("SELECT 1 FROM containers WHERE id = ?1", [record.id()], |r| r.get(0))
            .optional()
            .map_err(&fail)?;
        if taken.is_some() {
            return Err(Error::IdInUse(crate::config::short_id(record.id()).to_owned()));
        }
        write(&tx, record).map_err(&fail)?;
        tx.commit().map_err(&fail)
    }

    /// Reads one container by its full id.
    pub fn get(&self, id: &str) -> Result<Option<Record>> {
        read(&self.db, id).map_err(|e| self.fail(e))?.transpose()
    }

    /// All containers, oldest first.
    pub fn list(&self) -> Result<Vec<Record>> {
        let mut statement = self
            .db
            .prepare(&format!("SELECT {COLUMNS} FROM containers ORDER BY created_at"))
            .map_err(|e| self.fail(e))?;
        let rows = statement.query_map([], RawRecord::read).map_err(|e| self.fail(e))?;
        rows.map(|row| row.map_err(|e| self.fail(e)).and_then(RawRecord::parse)).collect()
    }

    /// The full id of what the user calls by name, id or the beginning of an id.
    pub fn resolve(&self, name_or_id: &str) -> Result<String> {
        let by_name: Option<String> = self
            .db
            .query_row("SELECT id FROM containers WHERE name = ?1 OR id = ?1", [name_or_id], |r| {
                r.get(0)
            })
            .optional()
            .map_err(|e| self.fail(e))?;
        if let Some(id) = by_name {
            return Ok(id);
        }
        if name_or_id.is_empty() || !name_or_id.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(Error::NoSuchContainer(name_or_id.to_owned()));
        }
        let mut statement = self
            .db
            .prepare(
                "SELECT id FROM containers WHERE substr(id, 1, length(?1)) = lower(?1) LIMIT 2",
            )
            .map_err(|e| self.fail(e))?;
        let ids: Vec<String> = statement
            .query_map([name_or_id], |r| r.get(0))
            .and_then(Iterator::collect)
            .map_err(|e| self.fail(e))?;
        match ids.as_slice() {
            [id] => Ok(id.clone()),
            [] => Err(Error::NoSuchContainer(name_or_id.to_owned())),
            _ => Err(Error::AmbiguousId(name_or_id.to_owned())),
        }
    }

    /// Changes one container in one transaction: what `change` sees is what is stored. None when
    /// the container is gone.
    pub fn update(&mut self, id: &str, change: impl FnOnce(&mut Record)) -> Result<Option<Record>> {
        let path = self.path.clone();
        let fail = move |source| Error::Database { path: path.clone(), source };
        let tx =
            self.db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&fail)?;
        let Some(mut record) = read(&tx, id).map_err(&fail)?.transpose()? else { return Ok(None) };
        change(&mut record);
        write(&tx, &record).map_err(&fail)?;
        tx.commit().map_err(&fail)?;
        Ok(Some(record))
    }

    /// Gives a container another name, which must be free. None when the container is gone.
    pub fn rename(&mut self, id: &str, name: &str) -> Result<Option<Record>> {
        let path = self.path.clone();
        let fail = move |source| Error::Database { path: path.clone(), source };
        let tx =
            self.db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&fail)?;
        name_is_free(&tx, name).map_err(&fail)??;
        let Some(mut record) = read(&tx, id).map_err(&fail)?.transpose()? else { return Ok(None) };
        name.clone_into(&mut record.config.name);
        write(&tx, &record).map_err(&fail)?;
        tx.commit().map_err(&fail)?;
        Ok(Some(record))
    }

    /// The container that was created last.
    pub fn latest(&self) -> Result<Option<String>> {
        self.db
            .query_row("SELECT id FROM containers ORDER BY created_at DESC LIMIT 1", [], |row| {
                row.get(0)
            })
            .optional()
            .map_err(|e| self.fail(e))
    }

    /// Whether there is no container.
    pub fn is_empty(&self) -> Result<bool> {
        self.db
            .query_row("SELECT NOT EXISTS (SELECT 1 FROM containers)", [], |row| row.get(0))
            .map_err(|e| self.fail(e))
    }

    /// Forgets a container.
    pub fn remove(&mut self, id: &str) -> Result<()> {
        self.db
            .execute("DELETE FROM containers WHERE id = ?1", [id])
            .map(|_| ())
            .map_err(|e| self.fail(e))
    }
}

/// One container by its full id; the inner error is about what its row holds.
fn read(db: &Connection, id: &str) -> rusqlite::Result<Option<Result<Record>>> {
    let sql = format!("SELECT {COLUMNS} FROM containers WHERE id = ?1");
    Ok(db.query_row(&sql, [id], RawRecord::read).optional()?.map(RawRecord::parse))
}

/// Refuses a name that a container has.
fn name_is_free(db: &Connection, name: &str) -> rusqlite::Result<Result<()>> {
    let taken: Option<String> = db
        .query_row("SELECT id FROM containers WHERE name = ?1", [name], |r| r.get(0))
        .optional()?;
    Ok(match taken {
        None => Ok(()),
        Some(id) => Err(Error::NameInUse {
            name: name.to_owned(),
            id: crate::config::short_id(&id).to_owned(),
        }),
    })
}

fn write(tx: &Transaction<'_>, record: &Record) -> rusqlite::Result<()> {
    let config = serde_json::to_string(&record.config)
        .map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?;
    tx.prepare_cached(
        "INSERT OR REPLACE INTO containers (id, name, config, status, boot, pid, pid_start, shim, \
         shim_start, exit_code, created_at, started_at, finished_at, checkpointed_at, restored_at, \
         network, error) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17)",
    )?
    .execute(params![
        record.id(),
        record.name(),
        config,
        record.status.as_str(),
        record.boot,
        record.init.map(|p| p.pid),
        record.init.map(|p| p.start.cast_signed()),
        record.shim.map(|p| p.pid),
        record.shim.map(|p| p.start.cast_signed()),
        record.exit_code,
        record.created_at.0,
        record.started_at.map(|t| t.0),
        record.finished_at.map(|t| t.0),
        record.checkpointed_at.map(|t| t.0),
        record.restored_at.map(|t| t.0),
        record.network,
        record.error,
    ])
    .map(|_| ())
}

/// A row before its JSON is understood.
struct RawRecord {
    config: String,
    status: String,
    boot: String,
    init: Option<ProcessId>,
    shim: Option<ProcessId>,
    exit_code: Option<i32>,
    created_at: i64,
    started_at: Option<i64>,
    finished_at: Option<i64>,
    checkpointed_at: Option<i64>,
    restored_at: Option<i64>,
    network: Option<String>,
    error: Option<String>,
}

impl RawRecord {
    fn read(row: &Row<'_>) -> rusqlite::Result<RawRecord> {
        let process = |pid: Option<i32>, start: Option<i64>| {
            Some(ProcessId { pid: pid?, start: start?.cast_unsigned() })
        };
        Ok(RawRecord {
            config: row.get(0)?,
            status: row.get(1)?,
            boot: row.get(2)?,
            init: process(row.get(3)?, row.get(4)?),
            shim: process(row.get(5)?, row.get(6)?),
            exit_code: row.get(7)?,
            created_at: row.get(8)?,
            started_at: row.get(9)?,
            finished_at: row.get(10)?,
            checkpointed_at: row.get(11)?,
            restored_at: row.get(12)?,
            network: row.get(13)?,
            error: row.get(14)?,
        })
    }

    fn parse(self) -> Result<Record> {
        let config: ContainerConfig = serde_json::from_str(&self.config)
            .map_err(Error::json("a container in the database"))?;
        Ok(Record {
            config,
            status: Status::parse(&self.status).ok_or_else(|| {
                Error::Invalid(format!("unknown status `{}` in the database", self.status))
            })?,
            boot: self.boot,
            init: self.init,
            shim: self.shim,
            exit_code: self.exit_code,
            created_at: Timestamp(self.created_at),
            started_at: self.started_at.map(Timestamp),
            finished_at: self.finished_at.map(Timestamp),
            checkpointed_at: self.checkpointed_at.map(Timestamp),
            restored_at: self.restored_at.map(Timestamp),
            network: self.network,
            error: self.error,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, name: &str) -> Record {
        let config = serde_json::json!({ "id": id, "name": name });
        Record::new(serde_json::from_value(config).expect("config"))
    }

    #[test]
    fn many_open_a_fresh_database_at_once() {
        for _ in 0..20 {
            let dir = tempfile::tempdir().expect("dir");
            let path = dir.path().join("arctern.db");
            let start = std::sync::Barrier::new(8);
            std::thread::scope(|scope| {
                let opened: Vec<_> = (0..8)
                    .map(|_| {
                        scope.spawn(|| {
                            start.wait();
                            Store::open(&path).map(drop)
                        })
                    })
                    .collect();
                for thread in opened {
                    thread.join().expect("thread").expect("the database opens");
                }
            });
        }
    }

    #[test]
    fn names_and_ids_are_unique_and_prefixes_resolve() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut store = Store::open(&dir.path().join("db")).expect("open");
        store.insert(&record(&"a1".repeat(32), "web")).expect("insert");
        store.insert(&record(&"a2".repeat(32), "db")).expect("insert");
        assert!(matches!(
            store.insert(&record(&"b".repeat(64), "web")),
            Err(Error::NameInUse { .. })
        ));
        assert!(matches!(store.insert(&record(&"a1".repeat(32), "x")), Err(Error::IdInUse(_))));
        assert_eq!(store.resolve("web").expect("name"), "a1".repeat(32));
        assert_eq!(store.resolve("a2").expect("prefix"), "a2".repeat(32));
        assert!(matches!(store.resolve("a"), Err(Error::AmbiguousId(_))));
        assert!(matches!(store.resolve("c"), Err(Error::NoSuchContainer(_))));
        assert!(matches!(store.resolve("%"), Err(Error::NoSuchContainer(_))));
        let web = "a1".repeat(32);
        assert!(matches!(store.rename(&web, "db"), Err(Error::NameInUse { .. })));
        assert!(store.rename(&web, "www").expect("rename").is_some());
        assert_eq!(store.resolve("www").expect("new name"), web);
        assert_eq!(store.latest().expect("latest"), Some("a2".repeat(32)));
    }

    #[test]
    fn updates_are_stored() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("db");
        let mut store = Store::open(&path).expect("open");
        let id = "a".repeat(64);
        store.insert(&record(&id, "web")).expect("insert");
        store
            .update(&id, |r| {
                r.status = Status::Running;
                r.init = Some(ProcessId { pid: 7, start: u64::MAX });
            })
            .expect("update");
        drop(store);
        let mut store = Store::open(&path).expect("open again");
        let read = store.get(&id).expect("get").expect("there");
        assert_eq!(read.status, Status::Running);
        assert_eq!(read.init, Some(ProcessId { pid: 7, start: u64::MAX }));
        store.remove(&id).expect("remove");
        assert!(store.update(&id, |_| ()).expect("update").is_none());
    }

    #[test]
    fn a_newer_database_is_refused() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("db");
        drop(Store::open(&path).expect("open"));
        let db = Connection::open(&path).expect("raw");
        db.pragma_update(None, "user_version", VERSION + 1).expect("pragma");
        drop(db);
        assert!(matches!(Store::open(&path), Err(Error::DatabaseVersion { .. })));
    }
}
