//! What a PostgreSQL database is asked.

use walpost::Failure;
use walpost::config::{OutboxSettings, PostgresSettings};
use walpost::source::Finding;
use walpost::source::postgres::{inspect, memory, precondition, probe_replication};

/// Asks for every precondition.
pub(super) async fn ask(
    settings: &PostgresSettings,
    outbox: &OutboxSettings,
) -> Result<Vec<Finding>, Failure> {
    let client = inspect::sql_client(&settings.url).await?;
    let server = inspect::server(&client).await.map_err(Failure::transient)?;
    let mut findings = precondition::judge_server(&server);
    if server.version < 130_000 {
        // The catalog of an older server lacks what the other questions ask for.
        return Ok(findings);
    }
    let table = inspect::table(&client, &settings.table).await.map_err(Failure::transient)?;
    findings.extend(precondition::judge_table(settings, outbox, table.as_ref()));
    if let Some(table) = &table {
        let publication =
            inspect::publication(&client, server.version, &settings.publication, table.oid)
                .await
                .map_err(Failure::transient)?;
        let publication = publication.as_ref();
        findings.extend(precondition::judge_publication(settings, outbox, table, publication));
    }
    let slot = inspect::slot(&client, &settings.slot).await.map_err(Failure::transient)?;
    findings.extend(precondition::judge_slot(settings, &server, slot.as_ref()));
    // As `run` does: a connection pooler or pg_hba.conf may let the one kind pass and not the other.
    findings.push(match probe_replication(&settings.url).await {
        Ok(()) => Finding::ok("replication", "a replication connection can be made"),
        Err(failure) => {
            let fix = "correct source.url, or the server's settings, as the message says";
            Finding::fail("replication", failure.to_string(), fix)
        }
    });
    let slot_at = slot.and_then(|slot| slot.confirmed?.parse().ok());
    let memory = memory::look(settings, &client, server.version, slot_at).await;
    findings.extend(memory.map_err(Failure::transient)?);
    Ok(findings)
}
