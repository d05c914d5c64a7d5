//! `walpost init` and `check` against MySQL 9.7 and MariaDB 10.11.

use super::{Run, walpost};
use crate::support::mysql::{Client, MySql, Version};

mod check;
mod init;

/// The versions that these tests run on, without those that this run does without.
fn versions() -> impl Iterator<Item = Version> {
    [Version::MySql97, Version::MariaDb1011].into_iter().filter(|version| !version.is_left_out())
}

/// A database of its own in a server.
struct Case<'a> {
    server: &'a MySql,
    database: String,
    client: Client,
}

impl<'a> Case<'a> {
    fn new(server: &'a MySql) -> Self {
        let database = server.fresh_database("cli");
        let client = server.client_for(&database);
        Case { server, database, client }
    }

    fn shared(version: Version) -> Case<'static> {
        Case::new(MySql::shared(version))
    }

    /// Creates everything by `init`, for a test that then breaks one thing.
    fn ready(self) -> Self {
        self.walpost(&["init"]).exits(0);
        self
    }

    fn walpost(&self, arguments: &[&str]) -> Run {
        walpost(arguments, &[("WALPOST_SOURCE", &self.server.url_for(&self.database))])
    }

    fn walpost_as(&self, user: &str, arguments: &[&str]) -> Run {
        let url = format!("mysql://{user}@{}/{}", self.server.address(), self.database);
        let variables = [("WALPOST_SOURCE", url.as_str()), ("WALPOST_SOURCE_PASSWORD", "hunter2")];
        walpost(arguments, &variables)
    }

    fn check(&self, arguments: &[&str]) -> Run {
        self.walpost(&[&["check", "--sink", "null://"], arguments].concat())
    }

    /// One row for the outbox.
    fn insert(&self, key: &str) {
        self.client.run(&insert(key));
    }

    /// The stored position of the relay `walpost`.
    fn position(&self) -> Vec<Vec<Option<String>>> {
        self.client.rows(
            "SELECT flavor, gtid_set, file, position, epoch, holder FROM walpost_position \
             WHERE name = 'walpost'",
        )
    }
}

fn insert(key: &str) -> String {
    format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) \
         VALUES (UUID(), 'order', '{key}', 'OrderPaid', '{{}}')"
    )
}

/// The detail of the finding `name` that stands as `standing`; empty where there is none.
fn finding<'a>(run: &'a Run, standing: &str, name: &str) -> &'a str {
    let named = |line: &&str| {
        let mut words = line.split_whitespace();
        words.next() == Some(standing) && words.next() == Some(name)
    };
    let line = run.stdout.lines().find(named).unwrap_or_default();
    line.split_once(name).map_or("", |(_, detail)| detail.trim())
}

/// The statements of the fix that contains `part`: what a person pastes.
#[track_caller]
fn fix<'a>(run: &'a Run, part: &str) -> &'a str {
    let lines = run.stdout.lines().filter_map(|line| line.trim().strip_prefix("fix: "));
    let fix = lines.rev().find(|fix| fix.contains(part));
    let fix = fix.unwrap_or_else(|| panic!("no fix with {part:?} in:\n{}", run.stdout));
    let from = ["ALTER ", "GRANT ", "SET "].iter().filter_map(|verb| fix.find(verb)).min();
    let statements = fix.get(from.unwrap_or(0)..).unwrap();
    statements.rsplit_once(';').map_or(statements, |(statements, _)| statements)
}
