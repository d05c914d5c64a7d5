//! The file, its lock and what may happen to both.

use super::*;
use crate::failure::FailureKind;
use crate::source::mysql::gtid::Flavor;

const LEASE: Duration = Duration::from_secs(10);

/// A folder of its own, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("walpost-{:016x}", super::super::nonce()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("position")
    }

    fn store(&self, name: &str) -> FileStore {
        FileStore::new(&self.file(), name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn position(position: u64) -> StoredPosition {
    StoredPosition {
        flavor: Flavor::MySql,
        server_uuid: "3e11fa47-71ca-11e1-9e33-c80aa9429562".into(),
        gtids: "3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5:tag\\\":1".into(),
        file: "binlog.000003".into(),
        position,
        initial_pending: position % 2 == 1,
        initial_after: (position % 2 == 1).then(|| "[]".to_owned()),
    }
}

async fn held(folder: &Folder, name: &str) -> FileStore {
    let mut store = folder.store(name);
    assert_eq!(store.acquire("here", LEASE).await.unwrap(), Attempt::Held { epoch: 0 });
    store
}

#[tokio::test]
async fn what_was_saved_last_is_what_is_loaded() {
    let folder = Folder::new();
    let mut store = held(&folder, "orders").await;
    assert_eq!(store.load().await.unwrap(), None);
    store.save(&position(4)).await.unwrap();
    store.save(&position(900)).await.unwrap();
    store.release().await.unwrap();
    // given another relay of that name, later
    let mut store = held(&folder, "orders").await;
    assert_eq!(store.load().await.unwrap(), Some(position(900)));
    assert!(!folder.0.join("position.new").exists());
}

#[tokio::test]
async fn a_second_relay_stands_by_and_hears_who_holds_it() {
    let folder = Folder::new();
    let mut first = folder.store("orders");
    first.acquire("host-a process 7", LEASE).await.unwrap();
    let mut second = folder.store("orders");
    let busy = Busy { holder: "host-a process 7".into(), left: None };
    assert_eq!(second.acquire("host-b", LEASE).await.unwrap(), Attempt::Busy(busy));
    assert!(matches!(second.save(&position(4)).await, Err(StoreError::NotHeld { .. })));
    // when the first one gives it back
    first.release().await.unwrap();
    assert_eq!(second.acquire("host-b", LEASE).await.unwrap(), Attempt::Held { epoch: 0 });
    // then it can write no more
    let refused = first.save(&position(4)).await.unwrap_err();
    assert!(matches!(refused, StoreError::NotHeld { .. }), "{refused}");
}

#[tokio::test]
async fn a_relay_whose_lock_was_removed_writes_nothing_more() {
    let folder = Folder::new();
    let mut first = held(&folder, "orders").await;
    first.save(&position(4)).await.unwrap();
    // when somebody removes the lock's file, and another relay locks a new one
    fs::remove_file(folder.0.join("position.lock")).unwrap();
    let mut second = held(&folder, "orders").await;
    second.save(&position(8)).await.unwrap();
    // then the first one stops
    let error = first.save(&position(6)).await.unwrap_err();
    assert!(matches!(error, StoreError::Gone { .. }), "{error}");
    assert_eq!(error.kind(), FailureKind::Definite);
    assert_eq!(second.load().await.unwrap(), Some(position(8)));
}

#[tokio::test]
async fn every_torn_or_changed_file_is_refused_by_name() {
    let folder = Folder::new();
    let mut store = held(&folder, "orders").await;
    store.save(&position(77)).await.unwrap();
    let whole = fs::read(folder.file()).unwrap();
    // Its last byte ends the line, and nothing else.
    for length in 0..whole.len() - 1 {
        fs::write(folder.file(), &whole[..length]).unwrap();
        let error = store.load().await.unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{length}: {error}");
        assert!(error.to_string().contains("/position is not a position"), "{error}");
    }
    for index in 0..whole.len() - 1 {
        let mut changed = whole.clone();
        changed[index] ^= 1;
        fs::write(folder.file(), &changed).unwrap();
        assert!(store.load().await.is_err(), "byte {index}");
    }
    fs::write(folder.file(), b"{\"lsn\":\"0/1\"}").unwrap();
    assert_eq!(store.load().await.unwrap_err().kind(), FailureKind::Definite);
    fs::write(folder.file(), &whole).unwrap();
    assert_eq!(store.load().await.unwrap(), Some(position(77)));
}

#[tokio::test]
async fn the_file_of_another_relay_is_refused() {
    let folder = Folder::new();
    let mut store = held(&folder, "orders").await;
    store.save(&position(4)).await.unwrap();
    store.release().await.unwrap();
    let mut other = held(&folder, "invoices").await;
    let error = other.load().await.unwrap_err();
    assert!(matches!(error, StoreError::OtherRelay { .. }), "{error}");
}

#[tokio::test]
async fn a_crash_while_the_next_position_is_written_leaves_the_last_one() {
    let folder = Folder::new();
    let mut store = held(&folder, "orders").await;
    store.save(&position(4)).await.unwrap();
    // given what such a crash leaves behind
    fs::write(folder.0.join("position.new"), b"{\"position\":{\"na").unwrap();
    assert_eq!(store.load().await.unwrap(), Some(position(4)));
    store.save(&position(8)).await.unwrap();
    assert_eq!(store.load().await.unwrap(), Some(position(8)));
}

#[tokio::test]
async fn a_save_that_comes_late_overwrites_no_newer_one() {
    let folder = Folder::new();
    let store = held(&folder, "orders").await;
    let mut files = store.files.lock().unwrap();
    files.save(2, &position(8)).unwrap();
    files.save(1, &position(4)).unwrap();
    assert_eq!(files.load().unwrap(), Some(position(8)));
}

#[tokio::test]
async fn a_folder_that_is_missing_is_named() {
    let folder = Folder::new();
    let path = folder.0.join("absent/position");
    let error = FileStore::new(&path, "orders").acquire("here", LEASE).await.unwrap_err();
    assert_eq!(error.kind(), FailureKind::Denied);
    assert!(error.to_string().contains("absent/position.lock"), "{error}");
}

#[cfg(unix)]
#[tokio::test]
async fn a_link_to_the_file_stays_a_link() {
    let folder = Folder::new();
    let mut store = held(&folder, "orders").await;
    store.save(&position(4)).await.unwrap();
    store.release().await.unwrap();
    let link = folder.0.join("link");
    std::os::unix::fs::symlink(folder.file(), &link).unwrap();
    let mut linked = FileStore::new(&link, "orders");
    linked.acquire("here", LEASE).await.unwrap();
    linked.save(&position(8)).await.unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(linked.load().await.unwrap(), Some(position(8)));
}
