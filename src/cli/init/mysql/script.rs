//! The SQL of `init`, from the files in `sql/mysql/` with names put in.

use anyhow::bail;
use walpost::config::{MySqlSettings, OutboxSettings, PositionPlace, quote_mysql_identifier};
use walpost::source::mysql::Flavor;
use walpost::{Column, Role};

use crate::cli::init::InitFlags;
use crate::cli::init::template::{Dialect, Names};

const OUTBOX: &str = include_str!("../../../../sql/mysql/outbox.sql");
const POSITION: &str = include_str!("../../../../sql/mysql/position.sql");
const ROLE: &str = include_str!("../../../../sql/mysql/role.sql");

/// Statements that create what is missing; each may run again.
pub(super) struct Script {
    outbox: Vec<String>,
    /// None where the position is kept in a file.
    position: Vec<String>,
    /// Whether `position` is for another server.
    is_elsewhere: bool,
    role: Vec<String>,
}

/// An account, as MySQL has them: a user from a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) user: String,
    pub(super) host: String,
}

impl Account {
    /// Reads `walpost` (from any host) or `walpost@10.0.%`.
    pub(super) fn parse(text: &str) -> Self {
        let (user, host) = text.rsplit_once('@').unwrap_or((text, "%"));
        Self { user: user.to_owned(), host: host.to_owned() }
    }
}

impl Script {
    /// `flavor` is `None` where no server was asked.
    pub(super) fn new(
        settings: &MySqlSettings,
        outbox: &OutboxSettings,
        flags: &InitFlags,
        password: Option<&str>,
        flavor: Option<Flavor>,
    ) -> anyhow::Result<Self> {
        if flags.failover {
            bail!("--failover is about a slot, and {} has none", settings.table.plain_mysql());
        }
        let table = &settings.table;
        let mut names =
            Names::from([("schema", table.schema.clone()), ("table", table.name.clone())]);
        let mut position = Names::new();
        if let PositionPlace::Source { table } | PositionPlace::Server { table, .. } =
            &settings.position
        {
            position.insert("position_schema", table.schema.clone());
            position.insert("position_table", table.name.clone());
        }
        let is_elsewhere = !matches!(settings.position, PositionPlace::Source { .. });
        let mut role = names.clone();
        if !is_elsewhere {
            role.extend(position.clone());
        }
        if flavor != Some(Flavor::MariaDb) {
            role.insert("lock_schema", table.schema.clone());
        }
        if let Some(account) = flags.role.as_deref().map(Account::parse) {
            role.extend([("role", account.user), ("host", account.host)]);
        }
        role.extend(password.map(|password| ("password", password.to_owned())));
        names.extend(column_names(outbox));
        let create = Dialect::MySql.fill(OUTBOX, &names);
        Ok(Self {
            outbox: vec![with_extras(create, outbox)],
            position: match settings.position {
                PositionPlace::File(_) => Vec::new(),
                PositionPlace::Source { .. } | PositionPlace::Server { .. } => {
                    statements(POSITION, &position)
                }
            },
            is_elsewhere,
            role: statements(ROLE, &role),
        })
    }

    /// Creates the outbox.
    pub(super) fn outbox(&self) -> &[String] {
        &self.outbox
    }

    /// Creates the table of positions, in the server that keeps it.
    pub(super) fn position(&self) -> &[String] {
        &self.position
    }

    /// Creates the account, where a password was given, and gives it its rights.
    pub(super) fn role(&self) -> &[String] {
        &self.role
    }

    /// Everything, in its order, for the `mysql` or `mariadb` program.
    pub(super) fn whole(&self) -> String {
        let mut text = String::from(
            "-- What walpost needs in MySQL or MariaDB; the server needs log_bin, binlog_format = \
             ROW and\n-- binlog_row_metadata = FULL. Can run again: what is there stays as it is. \
             The position itself is\n-- made by `walpost init`, or else by the first `walpost \
             run`, as source.initial says.\nSET SESSION sql_mode = 'TRADITIONAL';\n",
        );
        for statement in &self.outbox {
            text.push('\n');
            text.push_str(statement);
        }
        if self.is_elsewhere && !self.position.is_empty() {
            text.push_str("\n-- In the server that source.position names, not in this one:\n");
        }
        for statement in &self.position {
            text.push('\n');
            match self.is_elsewhere {
                false => text.push_str(statement),
                true => text.extend(statement.lines().map(|line| format!("-- {line}\n"))),
            }
        }
        for statement in &self.role {
            text.push('\n');
            text.push_str(statement);
        }
        text
    }
}

/// What stands for each column that has a role of its own.
fn column_names(outbox: &OutboxSettings) -> Names {
    let placeholder = |role: Role| match role {
        Role::Id => Some("id"),
        Role::AggregateType => Some("aggregate_type"),
        Role::AggregateId => Some("aggregate_id"),
        Role::EventType => Some("type"),
        Role::Payload => Some("payload"),
        Role::Headers => Some("headers"),
        Role::Topic => Some("topic"),
        Role::CreatedAt => Some("created_at"),
        Role::Extra(_) => None,
    };
    let columns = outbox.columns.iter();
    columns.filter_map(|column| Some((placeholder(column.role)?, column.name.clone()))).collect()
}

/// Adds those columns to the outbox that the topic template, a header or the partition names.
fn with_extras(create: String, outbox: &OutboxSettings) -> String {
    const END: &str = "\n) ENGINE";
    let mut taken: Vec<&str> = Vec::new();
    let (extras, roles): (Vec<&Column>, Vec<&Column>) =
        outbox.columns.iter().partition(|column| matches!(column.role, Role::Extra(_)));
    taken.extend(roles.iter().map(|column| column.name.as_str()));
    let mut lines = String::new();
    for column in extras {
        if taken.contains(&column.name.as_str()) {
            continue;
        }
        taken.push(&column.name);
        let is_partition =
            matches!(column.role, Role::Extra(index) if Some(index) == outbox.partition);
        let type_name = if is_partition { "int" } else { "varchar(255)" };
        lines.push_str(&format!(",\n    {} {type_name}", quote_mysql_identifier(&column.name)));
    }
    match create.rsplit_once(END) {
        Some((columns, end)) => format!("{columns}{lines}{END}{end}"),
        None => create,
    }
}

/// The statements of a file, each with its comments, without those that lack a name.
fn statements(template: &str, names: &Names) -> Vec<String> {
    // Split before names are put in: what stands in a name ends no statement.
    let parts = template.split_inclusive(";\n").map(|part| Dialect::MySql.fill(part, names));
    let is_sql = |line: &str| !line.is_empty() && !line.starts_with("--");
    parts.filter(|part| part.lines().any(is_sql)).collect()
}

#[cfg(test)]
mod tests {
    use walpost::config::{Flag, SourceSettings, Values};

    use super::*;

    fn script(settings: &[(&str, &str)], role: Option<&str>, password: Option<&str>) -> Script {
        let url = ("source.url", "mysql://root@h/my shop");
        let flags: Vec<Flag> = [url]
            .iter()
            .chain(settings)
            .map(|(key, value)| Flag {
                name: "--set".into(),
                key: (*key).to_owned(),
                value: (*value).to_owned(),
            })
            .collect();
        let values = Values::load(None, [], &flags).unwrap();
        let SourceSettings::MySql(source) = values.source().unwrap() else { panic!("is MySQL") };
        let flags = InitFlags { role: role.map(str::to_owned), ..InitFlags::default() };
        Script::new(&source, &values.outbox().unwrap(), &flags, password, None).unwrap()
    }

    #[test]
    fn columns_that_only_a_template_names_are_in_the_table() {
        let settings = [
            ("outbox.topic", "{tenant}.{aggregatetype}"),
            ("outbox.partition", "shard"),
            ("outbox.columns.created_at", ""),
        ];
        let create = script(&settings, None, None).outbox.concat();
        let end =
            "    `topic` varchar(255),\n    `tenant` varchar(255),\n    `shard` int\n) ENGINE";
        assert!(create.contains(end), "{create}");
        assert!(create.contains("`my shop`.`outbox` ("), "{create}");
    }

    #[test]
    fn the_account_gets_each_right_once_it_has_a_name() {
        let role = script(&[], Some("relay@10.%"), Some("it's")).role;
        assert_eq!(role.len(), 6, "{role:?}");
        assert!(role.concat().contains("USER IF NOT EXISTS 'relay'@'10.%' IDENTIFIED BY 'it''s';"));
        assert_eq!(script(&[], Some("relay"), None).role.len(), 5, "it exists already");
        assert!(script(&[], None, Some("secret")).role.is_empty());
    }

    #[test]
    fn a_position_elsewhere_is_neither_made_nor_granted_here() {
        let elsewhere = [("source.position", "mysql://u@other/relays")];
        let script = script(&elsewhere, Some("relay"), Some("secret"));
        let whole = script.whole();
        assert!(whole.contains("-- CREATE TABLE IF NOT EXISTS `relays`.`walpost_position` ("));
        assert!(!script.role.concat().contains("walpost_position"), "{whole}");
    }

    #[test]
    fn a_position_in_a_file_needs_no_table() {
        let script = script(&[("source.position", "file:/at")], None, None);
        assert!(script.position.is_empty() && !script.whole().contains("walpost_position"));
    }
}
