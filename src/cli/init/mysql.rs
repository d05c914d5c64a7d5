//! What a MySQL or MariaDB database needs.
//!
//! Order: tables, account, position. The position goes last: from it on the binlog must be kept.
//! It is taken at one moment with the outbox, so that each row is either in the table then or
//! comes from the binlog, and a row that is there already is the first run's to publish.

use std::time::Duration;

use anyhow::{Context, bail};
use mysql_async::Conn;
use mysql_async::prelude::Queryable;
use walpost::config::{Initial, MySqlSettings, OutboxSettings, PositionPlace, QualifiedName};
use walpost::source::Standing;
use walpost::source::mysql::inspect::{self, PositionTable, ServerState};
use walpost::source::mysql::snapshot::{self, BinlogPoint, SnapshotError};
use walpost::source::mysql::{Flavor, known_cluster, precondition};

use super::{InitFlags, ROWS_COUNTED_MAX, count, print, refuse, refuse_mapped_table, say};

mod script;

use script::{Account, Script};

/// How long others wait for the outbox while the lock on it waits for their end (MySQL only), how
/// often that is tried, and the first pause between two tries, which grows by itself each time.
const LOCK_WAIT: Duration = Duration::from_secs(1);
const LOCK_TRIES: u32 = 4;
const LOCK_PAUSE: Duration = Duration::from_secs(2);

/// Prints the SQL and connects nowhere.
pub(super) fn print_script(
    settings: &MySqlSettings,
    outbox: &OutboxSettings,
    flags: &InitFlags,
    password: Option<&str>,
) -> anyhow::Result<()> {
    if flags.skip_existing {
        bail!(
            "--skip-existing needs the server, since only it knows where its binlog ends; leave \
             --print out, or set source.initial = \"skip\" for the first run"
        );
    }
    print(&Script::new(settings, outbox, flags, password, None)?.whole())
}

/// Creates what the database needs.
pub(super) async fn create(
    settings: MySqlSettings,
    outbox: OutboxSettings,
    flags: &InitFlags,
    password: Option<&str>,
) -> anyhow::Result<()> {
    let mut source = inspect::sql_client(&settings.url).await?;
    let server = inspect::server(&mut source).await?;
    let script = Script::new(&settings, &outbox, flags, password, Some(server.flavor))?;
    refuse(precondition::judge_server(&server), Standing::Fail)?;
    refuse(precondition::judge_read_only(&settings, &server), Standing::Fail)?;
    let mut keeper = match &settings.position {
        PositionPlace::Server { url, .. } => Some(inspect::sql_client(url).await?),
        PositionPlace::Source { .. } | PositionPlace::File(_) => None,
    };
    let init = Init { settings, outbox, server, script, flags, has_password: password.is_some() };
    init.outbox(&mut source).await?;
    init.position_table(keeper.as_mut().unwrap_or(&mut source)).await?;
    init.account(&mut source).await?;
    init.position(&mut source, keeper).await
}

struct Init<'a> {
    settings: MySqlSettings,
    outbox: OutboxSettings,
    server: ServerState,
    script: Script,
    flags: &'a InitFlags,
    has_password: bool,
}

impl Init<'_> {
    async fn outbox(&self, source: &mut Conn) -> anyhow::Result<()> {
        let name = &self.settings.table;
        let plain = name.plain_mysql();
        let found = inspect::table(source, name).await?;
        if found.is_none() {
            refuse_mapped_table(&self.outbox, &plain)?;
            execute(source, self.script.outbox(), &format!("create table {plain}")).await?;
            return say(&format!("created  table {plain}"));
        }
        let (settings, outbox) = (&self.settings, &self.outbox);
        let findings =
            precondition::judge_table(settings, outbox, &self.server, found.as_ref(), None);
        refuse(findings, Standing::Fail)?;
        say(&format!("exists   table {plain}"))
    }

    async fn position_table(&self, keeper: &mut Conn) -> anyhow::Result<()> {
        let (PositionPlace::Source { table } | PositionPlace::Server { table, .. }) =
            &self.settings.position
        else {
            return Ok(());
        };
        let plain = table.plain_mysql();
        if inspect::table(keeper, table).await?.is_some() {
            return say(&format!("exists   table {plain}"));
        }
        execute(keeper, self.script.position(), &format!("create table {plain}")).await?;
        say(&format!("created  table {plain}"))
    }

    async fn account(&self, source: &mut Conn) -> anyhow::Result<()> {
        let Some(account) = self.flags.role.as_deref().map(Account::parse) else {
            return Ok(());
        };
        let shown = format!("user {}@{}", account.user, account.host);
        let mut statements = self.script.role();
        let mut exists = true;
        if self.has_password
            && let Some((create, grants)) = statements.split_first()
        {
            let what = format!("could not create {shown}");
            source.query_drop(create).await.context(what)?;
            // IF NOT EXISTS says so by a note.
            exists = source.get_warnings() > 0;
            statements = grants;
        }
        let granted = execute(source, statements, &format!("grant rights to {shown}")).await;
        if let Err(error) = granted {
            // Neither server makes an account by GRANT.
            let hint = "give a password in WALPOST_ROLE_PASSWORD if the user is to be created";
            return Err(if self.has_password { error } else { error.context(hint) });
        }
        match exists {
            true => say(&format!("exists   {shown}, which may now read the binlog and the table")),
            false => say(&format!("created  {shown}")),
        }
    }

    async fn position(&self, source: &mut Conn, mut keeper: Option<Conn>) -> anyhow::Result<()> {
        let name = &self.settings.name;
        let (PositionPlace::Source { table } | PositionPlace::Server { table, .. }) =
            &self.settings.position
        else {
            if self.flags.skip_existing {
                bail!(
                    "--skip-existing needs a table of positions; with a file, set source.initial = \
                     \"skip\" for the first run"
                );
            }
            return say(&format!("pending  position {name}, which the first run makes"));
        };
        match inspect::position(keeper.as_mut().unwrap_or(source), table, name).await? {
            PositionTable::Row(row) => match row.place {
                Some(place) => {
                    let (file, position) = (place.file, place.position);
                    return say(&format!("exists   position {name} at {file}:{position}"));
                }
                None => return say(&format!("exists   position {name}, which a relay now makes")),
            },
            PositionTable::Missing | PositionTable::Denied => {
                bail!("may not read {}", table.plain_mysql())
            }
            PositionTable::Empty => {}
        }
        let (point, rows) = self.snapshot(source).await?;
        let skips = self.flags.skip_existing || self.settings.initial == Initial::Skip;
        let outbox = self.settings.table.plain_mysql();
        if rows > 0 && !skips {
            return say(&format!(
                "pending  position {name}: {outbox} has {}, which the first run publishes; \
                 walpost init --skip-existing leaves them out",
                count(rows)
            ));
        }
        self.write(keeper.as_mut().unwrap_or(source), table, &point).await?;
        say(&format!("created  position {name} at {}:{}", point.file, point.position))?;
        if rows > 0 {
            say(&format!("skipped  {} that the table had before the position", count(rows)))?;
        }
        Ok(())
    }

    /// Where the binlog ends, and how many rows the outbox has at that moment.
    async fn snapshot(&self, reader: &mut Conn) -> anyhow::Result<(BinlogPoint, i64)> {
        let table = &self.settings.table;
        let mut tries = 1;
        let point = loop {
            let mut locker = inspect::sql_client(&self.settings.url).await?;
            match snapshot::open(&self.server, table, LOCK_WAIT, reader, &mut locker).await {
                // It fails before the reader is asked for anything.
                Err(SnapshotError::Busy { .. }) if tries < LOCK_TRIES => {}
                Err(SnapshotError::Busy { table, waited, pause, .. }) => {
                    return Err(SnapshotError::Busy { table, waited, tries, pause }.into());
                }
                outcome => break outcome?,
            }
            drop(locker);
            tokio::time::sleep(LOCK_PAUSE * tries).await;
            tries += 1;
        };
        let most = ROWS_COUNTED_MAX.unsigned_abs();
        let rows = inspect::row_count(reader, table, most).await?;
        reader.query_drop("COMMIT").await?;
        Ok((point, i64::try_from(rows).unwrap_or(ROWS_COUNTED_MAX)))
    }

    async fn write(
        &self,
        keeper: &mut Conn,
        table: &QualifiedName,
        point: &BinlogPoint,
    ) -> anyhow::Result<()> {
        let flavor = match self.server.flavor {
            Flavor::MySql => "mysql",
            Flavor::MariaDb => "mariadb",
        };
        let uuid = match self.server.flavor {
            Flavor::MySql => self.server.server_uuid.clone().unwrap_or_default(),
            // MariaDB has none, so the relays of one table share one that is made here.
            Flavor::MariaDb => {
                let known = known_cluster(&table.quoted_mysql());
                let sql = format!("SELECT COALESCE(({known}), UUID())");
                let uuid: Option<String> = keeper.query_first(sql).await?;
                uuid.context("the server makes no UUID")?
            }
        };
        let insert = format!(
            "INSERT INTO {} (name, flavor, server_uuid, gtid_set, file, position, epoch, holder, \
             lease_until, updated_at) \
             VALUES (?, ?, ?, ?, ?, ?, 0, '', UTC_TIMESTAMP(6), UTC_TIMESTAMP(6))",
            table.quoted_mysql()
        );
        let (name, gtids) = (&self.settings.name, &point.gtid_set);
        let place = (name, flavor, uuid, gtids, &point.file, point.position);
        // A relay that began meanwhile has its row there already: then this fails, and it is right.
        keeper.exec_drop(insert, place).await.context("could not write the position")
    }
}

async fn execute(conn: &mut Conn, statements: &[String], what: &str) -> anyhow::Result<()> {
    for statement in statements {
        conn.query_drop(statement).await.with_context(|| format!("could not {what}"))?;
    }
    Ok(())
}
