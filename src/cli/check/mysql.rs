//! What a MySQL or MariaDB database is asked, and the place of the position beside it.

use std::path::Path;

use mysql_async::Conn;
use walpost::Failure;
use walpost::config::{MySqlSettings, OutboxSettings, PositionPlace, QualifiedName};
use walpost::source::Finding;
use walpost::source::mysql::inspect::{self, LogState, PositionTable, ServerState};
use walpost::source::mysql::precondition::{self, PositionFacts};

/// Asks for every precondition.
pub(super) async fn ask(
    settings: &MySqlSettings,
    outbox: &OutboxSettings,
) -> Result<Vec<Finding>, Failure> {
    let mut source = inspect::sql_client(&settings.url).await?;
    let server = inspect::server(&mut source).await.map_err(Failure::transient)?;
    let mut findings = precondition::judge_server(&server);
    if !server.logs {
        // Nothing else matters, and the questions about the binlog are errors.
        return Ok(findings);
    }
    findings.extend(precondition::judge_read_only(settings, &server));
    let log = inspect::log(&mut source, &server).await.map_err(Failure::transient)?;
    findings.extend(precondition::judge_log(settings, log.as_ref()));
    findings.extend(ask_table(settings, outbox, &server, &mut source).await?);
    let keeper = match &settings.position {
        PositionPlace::Source { table } => Some((None, table)),
        PositionPlace::Server { url, table } => {
            Some((Some(inspect::sql_client(url).await?), table))
        }
        PositionPlace::File(_) => None,
    };
    let (table, position) = match keeper {
        Some((keeper, table)) => {
            let log = log.as_ref();
            ask_position(settings, &server, log, &mut source, keeper, table).await?
        }
        None => (PositionTable::Empty, judge_file(settings)),
    };
    findings.extend(position);
    let is_first =
        !matches!(&table, PositionTable::Row(row) if row.place.is_some() || row.holder.is_some());
    let is_held = matches!(&table, PositionTable::Row(row) if row.holder.is_some());
    let database = &settings.table.schema;
    let grants = inspect::grants(&mut source, database).await.map_err(Failure::transient)?;
    findings.extend(precondition::judge_grants(settings, &server, grants, is_first));
    let replicas = inspect::replicas(&mut source, &server).await.map_err(Failure::transient)?;
    let replicas = replicas.as_deref();
    findings.push(precondition::judge_server_id(settings, &server, replicas, is_held));
    Ok(findings)
}

async fn ask_table(
    settings: &MySqlSettings,
    outbox: &OutboxSettings,
    server: &ServerState,
    source: &mut Conn,
) -> Result<Vec<Finding>, Failure> {
    let name = &settings.table;
    let table = inspect::table(source, name).await.map_err(Failure::transient)?;
    let has = |column: &str| {
        table.iter().any(|table| table.columns.iter().any(|found| found.name == column))
    };
    let mapped: Vec<&str> =
        outbox.columns.iter().map(|column| column.name.as_str()).filter(|name| has(name)).collect();
    let may_read = match mapped.is_empty() {
        true => None,
        false => Some(inspect::may_read(source, name, &mapped).await.map_err(Failure::transient)?),
    };
    Ok(precondition::judge_table(settings, outbox, server, table.as_ref(), may_read))
}

/// `keeper` is the connection to the server that keeps the position, where that is another one.
async fn ask_position(
    settings: &MySqlSettings,
    server: &ServerState,
    log: Option<&LogState>,
    source: &mut Conn,
    mut keeper: Option<Conn>,
    name: &QualifiedName,
) -> Result<(PositionTable, Vec<Finding>), Failure> {
    let at = keeper.as_mut().unwrap_or(source);
    let table = inspect::position(at, name, &settings.name).await.map_err(Failure::transient)?;
    let may_write = match &table {
        PositionTable::Missing | PositionTable::Denied => None,
        PositionTable::Empty | PositionTable::Row(_) => {
            Some(inspect::may_write(at, name).await.map_err(Failure::transient)?)
        }
    };
    let keeper = match &mut keeper {
        Some(keeper) => Some(inspect::server(keeper).await.map_err(Failure::transient)?),
        None => None,
    };
    let place = match &table {
        PositionTable::Row(row) => row.place.as_ref(),
        PositionTable::Missing | PositionTable::Denied | PositionTable::Empty => None,
    };
    let gtids = match place.filter(|place| !place.gtid_set.is_empty()) {
        Some(place) => {
            let asked = inspect::gtids(source, server, log, &place.flavor, &place.gtid_set).await;
            asked.map_err(Failure::transient)?
        }
        None => None,
    };
    let facts = PositionFacts {
        server,
        log,
        table: &table,
        may_write,
        gtids: gtids.as_ref(),
        keeper: keeper.as_ref().unwrap_or(server),
    };
    let findings = precondition::judge_position(settings, &facts);
    Ok((table, findings))
}

/// A file that cannot be written is found at start; a folder that is missing, already here.
fn judge_file(settings: &MySqlSettings) -> Vec<Finding> {
    const NAME: &str = "position";
    let PositionPlace::File(path) = &settings.position else { return Vec::new() };
    let folder = path.parent().unwrap_or(Path::new("/"));
    if !folder.is_dir() {
        let detail = format!("there is no folder {}", folder.display());
        let fix = format!("make it, for the user that runs walpost: mkdir -p {}", folder.display());
        return vec![Finding::fail(NAME, detail, fix)];
    }
    let what = if path.exists() { "is in" } else { "will be in" };
    let detail = format!("{what} {}, which is right for a single relay only", path.display());
    vec![Finding::ok(NAME, detail)]
}
