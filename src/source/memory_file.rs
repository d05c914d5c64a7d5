//! What a relay has acknowledged, in a local file (`source.memory_file`): exact after a `kill -9`,
//! and outside of what a restore of the database takes back. Never used to skip a row.
//!
//! A record goes into the file before the acknowledgement that it tells of goes out. Two areas are
//! written in turn, each with a number and a checksum: a write that a kill or a full disk cuts
//! short leaves the record before it, whose acknowledgement was the last that went out.
//!
//! ```text
//!  0         64 KiB      128 KiB
//!  ├─ area 0 ─┼─ area 1 ─┤   a line each: walpost-memory NUMBER CRC32 {"log":…,"position":…}
//! ```
//!
//! A killed process needs no `fsync`, since the system keeps what was written. A machine that loses
//! its power does, so the file is synced seldom, and says by which boot of the machine it was
//! written: what an earlier boot wrote may be older than what was acknowledged.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

const MAGIC: &str = "walpost-memory";
const AREA_BYTES: usize = 64 << 10;

/// What was acknowledged, of which log, by whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Whose log: PostgreSQL's system identifier, or the UUID of a MySQL server.
    pub(crate) log: String,
    /// PostgreSQL's timeline; 0 where there is none.
    pub(crate) timeline: u32,
    /// The slot, or the name of the relay.
    pub(crate) name: String,
    /// The last position that may have been acknowledged, as its database writes it.
    pub(crate) position: String,
    /// How often the memory in the database had been written, as far as this relay knows.
    pub(crate) writes: i64,
    /// Who wrote the memory in the database last, as far as this relay knows.
    pub(crate) holder: String,
    /// Whether it was written at a clean stop, and is durable.
    pub(crate) is_clean: bool,
    /// The boot of the machine in which it was written.
    pub(crate) boot: String,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryFileError {
    /// Missing folder, missing right, broken disk.
    #[error(
        "source.memory_file {path} cannot be used; its folder must exist and be writable for \
             the user that runs walpost"
    )]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// Another process has it.
    #[error(
        "source.memory_file {path} is in use by another walpost: give each relay a file of its own"
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Not one of ours.
    #[error(
        "source.memory_file {path} holds something else and is left as it is: name another file"
    )]
    Foreign {
        /// The file.
        path: PathBuf,
    },
}

/// An open file, locked for this process.
#[derive(Debug)]
pub(crate) struct MemoryFile {
    path: PathBuf,
    file: File,
    /// Of the last record.
    number: u64,
}

impl MemoryFile {
    /// Opens or creates it, and reads the last record.
    ///
    /// # Errors
    /// All but [`MemoryFileError::InUse`] need a person.
    pub(crate) fn open(path: &Path) -> Result<(Self, Option<Record>), MemoryFileError> {
        let unusable = |cause| MemoryFileError::Unusable { path: path.to_owned(), cause };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(path).map_err(unusable)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(MemoryFileError::InUse { path: path.to_owned() });
            }
            Err(TryLockError::Error(cause)) => return Err(unusable(cause)),
        }
        let (number, record) = read_last(&file, path)?;
        Ok((Self { path: path.to_owned(), file, number }, record))
    }

    /// Reads the last record of a file that another process may be writing.
    ///
    /// # Errors
    /// As [`MemoryFile::open`]; a file that is not there is no error.
    pub(crate) fn peek(path: &Path) -> Result<Option<Record>, MemoryFileError> {
        match File::open(path) {
            Ok(file) => Ok(read_last(&file, path)?.1),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(MemoryFileError::Unusable { path: path.to_owned(), cause }),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces the record. Does not wait for the disk.
    ///
    /// # Errors
    /// No room, a broken disk, or a record of more than 64 KiB: the one before it stands.
    pub(crate) fn write(&mut self, record: &Record) -> io::Result<()> {
        let number = self.number + 1;
        let mut area = line(number, record)?.into_bytes();
        if area.len() > AREA_BYTES {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "a record above 64 KiB"));
        }
        // Within a page where it fits, and no rest of a longer one behind it.
        area.resize(area.len().next_multiple_of(4096).min(AREA_BYTES), b'\n');
        self.file.write_all_at(&area, area_start(number))?;
        self.number = number;
        Ok(())
    }

    /// A handle by which the file can be made durable elsewhere, since that takes a while.
    ///
    /// # Errors
    /// No more file descriptors.
    pub(crate) fn handle(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Removes a file that could not be written: it tells less than what was acknowledged, and the
    /// next start would take that for another's doing.
    pub(crate) fn discard(self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), "could not remove the memory file: {error}");
        }
    }
}

/// By which boot of this machine this process runs; empty where the system does not say.
pub(crate) fn boot() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    text.unwrap_or_default().trim().to_owned()
}

fn area_start(number: u64) -> u64 {
    number % 2 * AREA_BYTES as u64
}

fn line(number: u64, record: &Record) -> io::Result<String> {
    let json = serde_json::to_string(record)?;
    let crc = checksum(number, &json);
    Ok(format!("{MAGIC} {number} {crc:08x} {json}\n"))
}

fn checksum(number: u64, json: &str) -> u32 {
    crc32fast::hash(format!("{number} {json}").as_bytes())
}

fn read_last(file: &File, path: &Path) -> Result<(u64, Option<Record>), MemoryFileError> {
    let mut last: (u64, Option<Record>) = (0, None);
    let mut is_ours = true;
    for area in 0..2 {
        let mut bytes = vec![0; AREA_BYTES];
        let mut length = 0;
        while length < AREA_BYTES {
            let rest = bytes.get_mut(length..).unwrap_or_default();
            match file.read_at(rest, area_start(area) + length as u64) {
                Ok(0) => break,
                Ok(read) => length += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => {
                    return Err(MemoryFileError::Unusable { path: path.to_owned(), cause });
                }
            }
        }
        bytes.truncate(length);
        // A hole is an area that was never written, or never reached the disk.
        is_ours &= bytes.starts_with(MAGIC.as_bytes()) || bytes.iter().all(|byte| *byte == 0);
        if let Some((number, record)) = parse(&bytes)
            && number > last.0
        {
            last = (number, Some(record));
        }
    }
    if !is_ours && last.1.is_none() {
        return Err(MemoryFileError::Foreign { path: path.to_owned() });
    }
    Ok(last)
}

fn parse(area: &[u8]) -> Option<(u64, Record)> {
    let end = area.iter().position(|byte| *byte == b'\n')?;
    let text = std::str::from_utf8(area.get(..end)?).ok()?;
    let (number, rest) = text.strip_prefix(MAGIC)?.strip_prefix(' ')?.split_once(' ')?;
    let (crc, json) = rest.split_once(' ')?;
    let number = number.parse().ok()?;
    let is_whole = u32::from_str_radix(crc, 16).ok()? == checksum(number, json);
    is_whole.then(|| serde_json::from_str(json).ok().map(|record| (number, record)))?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(position: &str) -> Record {
        Record {
            log: "7".into(),
            timeline: 1,
            name: "walpost".into(),
            position: position.into(),
            writes: 3,
            holder: "a".into(),
            is_clean: false,
            boot: boot(),
        }
    }

    fn scratch(name: &str) -> PathBuf {
        let path =
            std::env::temp_dir().join(format!("walpost-memory-{}-{name}", std::process::id()));
        drop(std::fs::remove_file(&path));
        path
    }

    #[test]
    fn the_last_record_is_read_back_and_a_shorter_one_leaves_no_rest() {
        let path = scratch("last");
        let (mut file, none) = MemoryFile::open(&path).unwrap();
        assert_eq!(none, None);
        for position in ["0/1", &"x".repeat(9000), "0/3", "0/4", "0/5"] {
            file.write(&record(position)).unwrap();
            assert_eq!(MemoryFile::peek(&path).unwrap(), Some(record(position)));
        }
        assert!(file.write(&record(&"x".repeat(AREA_BYTES))).is_err());
        drop(file);
        let (mut file, last) = MemoryFile::open(&path).unwrap();
        assert_eq!(last, Some(record("0/5")));
        file.write(&record("0/6")).unwrap();
        assert_eq!(MemoryFile::peek(&path).unwrap(), Some(record("0/6")));
        file.discard();
        assert_eq!(MemoryFile::peek(&path).unwrap(), None);
    }

    #[test]
    fn a_write_that_was_cut_short_anywhere_leaves_the_record_before_it() {
        let path = scratch("cut");
        let (mut file, _) = MemoryFile::open(&path).unwrap();
        file.write(&record("0/1")).unwrap();
        let next = line(2, &record("0/2")).unwrap();
        for length in 0..next.len() {
            file.file.write_all_at(&vec![0; 4096], area_start(2)).unwrap();
            file.file.write_all_at(&next.as_bytes()[..length], area_start(2)).unwrap();
            assert_eq!(MemoryFile::peek(&path).unwrap(), Some(record("0/1")), "{length} bytes");
        }
        file.file.write_all_at(next.as_bytes(), area_start(2)).unwrap();
        assert_eq!(MemoryFile::peek(&path).unwrap(), Some(record("0/2")));
        file.discard();
    }

    #[test]
    fn what_is_not_ours_is_left_alone_and_a_file_has_one_user() {
        let path = scratch("foreign");
        std::fs::write(&path, "important").unwrap();
        assert!(matches!(MemoryFile::open(&path), Err(MemoryFileError::Foreign { .. })));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "important");
        std::fs::remove_file(&path).unwrap();
        let (file, _) = MemoryFile::open(&path).unwrap();
        assert!(matches!(MemoryFile::open(&path), Err(MemoryFileError::InUse { .. })));
        file.discard();
        let missing = path.join("none");
        assert!(matches!(MemoryFile::open(&missing), Err(MemoryFileError::Unusable { .. })));
    }
}
