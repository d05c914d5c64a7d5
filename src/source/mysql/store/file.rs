//! A position in a local file, for a source that takes no writes and a single relay.
//!
//! A new position never overwrites the old one: it is written beside it, made durable, and renamed
//! over it, so that a crash at any moment leaves one of the two. The lock is a file of its own,
//! since a lock on the position's file would go with the file that is renamed over.
//!
//! ```text
//!  /var/lib/walpost/position        {"position":{…},"crc32":"1c291ca3"}
//!  /var/lib/walpost/position.new    the next one, until it is renamed
//!  /var/lib/walpost/position.lock   who holds it; locked as long as that process lives
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Attempt, Backend, Busy, StoreError, StoredPosition, flavor_of, flavor_word};

/// A file above it was written by something else. GTID sets are kilobytes, rarely more.
const BYTES_MAX: u64 = 64 << 20;

/// Longest wait for a disk.
const DISK_TIMEOUT: Duration = Duration::from_secs(10);

/// See the module.
pub(crate) struct FileStore {
    /// Work goes on in a thread for blocking calls, even when its call here was dropped: the next
    /// one waits for its end.
    files: Arc<Mutex<Files>>,
    path: PathBuf,
    /// Counts the calls of `save`, so that one that was dropped and comes late is left out.
    saves: u64,
}

struct Files {
    /// Of the relay.
    name: String,
    path: PathBuf,
    lock: Option<File>,
    /// The last call of `save` that was carried out.
    saved: u64,
}

/// The file's content. The checksum is of the position's very bytes.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    #[serde(borrow)]
    position: &'a RawValue,
    crc32: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    /// Of the relay.
    name: String,
    flavor: String,
    server_uuid: String,
    gtid_set: String,
    file: String,
    position: u64,
    #[serde(default)]
    initial_pending: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    initial_after: Option<String>,
}

impl FileStore {
    /// Touches nothing yet.
    pub(crate) fn new(path: &Path, name: &str) -> Self {
        // A link to the file is followed once: a rename would replace the link.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let files = Files { name: name.to_owned(), path: path.clone(), lock: None, saved: 0 };
        Self { files: Arc::new(Mutex::new(files)), path, saves: 0 }
    }

    /// Runs `work` where it may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Files) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let files = Arc::clone(&self.files);
        let work = move || work(&mut files.lock().unwrap_or_else(PoisonError::into_inner));
        let done = tokio::task::spawn_blocking(work);
        match tokio::time::timeout(DISK_TIMEOUT, done).await {
            Ok(outcome) => outcome.unwrap_or(Err(StoreError::KeeperGone)),
            Err(elapsed) => Err(file_error("wait for", &self.path, elapsed.into())),
        }
    }
}

impl Backend for FileStore {
    /// The lock lasts as long as the process, whatever `lease` says.
    async fn acquire(&mut self, holder: &str, _lease: Duration) -> Result<Attempt, StoreError> {
        let holder = holder.to_owned();
        self.blocking(move |files| files.acquire(&holder)).await
    }

    async fn load(&mut self) -> Result<Option<StoredPosition>, StoreError> {
        self.blocking(|files| files.load()).await
    }

    async fn save(&mut self, position: &StoredPosition) -> Result<(), StoreError> {
        self.saves += 1;
        let (number, position) = (self.saves, position.clone());
        self.blocking(move |files| files.save(number, &position)).await
    }

    async fn renew(&mut self) -> Result<(), StoreError> {
        self.blocking(|files| files.check_lock()).await
    }

    async fn release(&mut self) -> Result<(), StoreError> {
        self.blocking(|files| files.release()).await
    }
}

impl Files {
    fn beside(&self, suffix: &str) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(suffix);
        path.into()
    }

    fn lock_path(&self) -> PathBuf {
        self.beside(".lock")
    }

    fn acquire(&mut self, holder: &str) -> Result<Attempt, StoreError> {
        if self.lock.is_none() {
            let path = self.lock_path();
            let failed = |verb| move |source| file_error(verb, &path, source);
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            let mut lock = options.open(self.lock_path()).map_err(failed("open"))?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Ok(Attempt::Busy(Busy { holder: first_line(&lock), left: None }));
                }
                Err(TryLockError::Error(source)) => {
                    return Err(file_error("lock", &self.lock_path(), source));
                }
            }
            // Only for people; a holder that cannot be written down holds it all the same.
            drop(lock.set_len(0).and_then(|()| writeln!(lock, "{holder}")));
            self.lock = Some(lock);
        }
        self.check_lock()?;
        Ok(Attempt::Held { epoch: 0 })
    }

    /// Whether the lock that is held is still the one that others would find: where somebody
    /// removed its file, another relay locks a new one.
    fn check_lock(&mut self) -> Result<(), StoreError> {
        let path = self.lock_path();
        let Some(lock) = &self.lock else {
            return Err(StoreError::NotHeld { name: self.name.clone(), place: place(&self.path) });
        };
        let ours = lock.metadata().map_err(|source| file_error("read", &path, source))?;
        let is_ours = |found: &fs::Metadata| (found.dev(), found.ino()) == (ours.dev(), ours.ino());
        match fs::metadata(&path) {
            Ok(found) if is_ours(&found) => Ok(()),
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(file_error("read", &path, source))
            }
            Ok(_) | Err(_) => {
                self.lock = None;
                Err(StoreError::Gone { name: self.name.clone(), place: place(&path) })
            }
        }
    }

    fn load(&mut self) -> Result<Option<StoredPosition>, StoreError> {
        self.check_lock()?;
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(file_error("open", &self.path, source)),
        };
        let mut bytes = Vec::new();
        let read = file.take(BYTES_MAX + 1).read_to_end(&mut bytes);
        read.map_err(|source| file_error("read", &self.path, source))?;
        let (name, position) = decode(&bytes)
            .map_err(|problem| StoreError::Corrupt { path: self.path.clone(), problem })?;
        if name != self.name {
            let (path, found) = (self.path.clone(), name);
            return Err(StoreError::OtherRelay { path, found, name: self.name.clone() });
        }
        Ok(Some(position))
    }

    fn save(&mut self, number: u64, position: &StoredPosition) -> Result<(), StoreError> {
        self.check_lock()?;
        if number <= self.saved {
            return Ok(());
        }
        let new = self.beside(".new");
        let bytes = encode(&self.name, position)
            .map_err(|source| file_error("write", &new, source.into()))?;
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(&bytes)?;
            file.sync_all()
        };
        write().map_err(|source| file_error("write", &new, source))?;
        fs::rename(&new, &self.path).map_err(|source| file_error("replace", &self.path, source))?;
        // The name is in the folder, and is durable only with it.
        let folder = match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(|source| file_error("sync the folder of", &self.path, source))?;
        self.saved = number;
        Ok(())
    }

    /// The lock's file stays: removed, it could be another relay's by now.
    fn release(&mut self) -> Result<(), StoreError> {
        self.check_lock()?;
        self.lock = None;
        Ok(())
    }
}

fn encode(name: &str, position: &StoredPosition) -> Result<Vec<u8>, serde_json::Error> {
    let body = serde_json::to_string(&Body {
        name: name.to_owned(),
        flavor: flavor_word(position.flavor).to_owned(),
        server_uuid: position.server_uuid.clone(),
        gtid_set: position.gtids.clone(),
        file: position.file.clone(),
        position: position.position,
        initial_pending: position.initial_pending,
        initial_after: position.initial_after.clone(),
    })?;
    let crc32 = checksum(&body);
    let body = RawValue::from_string(body)?;
    let mut bytes = serde_json::to_vec(&Envelope { position: &body, crc32 })?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// The relay's name and its position, or what is wrong.
fn decode(bytes: &[u8]) -> Result<(String, StoredPosition), String> {
    if bytes.is_empty() {
        return Err("it is empty".to_owned());
    }
    let envelope: Envelope<'_> =
        serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let text = envelope.position.get();
    let (expected, found) = (&envelope.crc32, checksum(text));
    if *expected != found {
        return Err(format!("its checksum is {found} and not {expected}, as it says"));
    }
    let body: Body = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let flavor = flavor_of(&body.flavor)
        .ok_or_else(|| format!("its flavor is \"{}\", not mysql or mariadb", body.flavor))?;
    let position = StoredPosition {
        flavor,
        server_uuid: body.server_uuid,
        gtids: body.gtid_set,
        file: body.file,
        position: body.position,
        initial_pending: body.initial_pending,
        initial_after: body.initial_after,
    };
    Ok((body.name, position))
}

fn checksum(text: &str) -> String {
    format!("{:08x}", crc32fast::hash(text.as_bytes()))
}

fn file_error(verb: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::File { verb, path: path.to_owned(), source }
}

fn place(path: &Path) -> String {
    path.display().to_string()
}

/// Who holds a lock, as far as that can be read.
fn first_line(lock: &File) -> String {
    let mut text = String::new();
    let read = lock.take(256).read_to_string(&mut text);
    match (read, text.lines().next()) {
        (Ok(_), Some(line)) if !line.is_empty() => line.to_owned(),
        _ => "another process".to_owned(),
    }
}

#[cfg(test)]
mod tests;
