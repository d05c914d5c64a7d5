//! Which database is the source, by the scheme of its URL, and what both kinds share: the URL and
//! the password that goes into it.

use std::path::PathBuf;

use super::keys::Database;
use super::{ConfigError, MySqlSettings, PostgresSettings, Secret, Values};

const HOW: &str = "give --source postgres://USER@HOST/DATABASE or mysql://USER@HOST/DATABASE, \
                   WALPOST_SOURCE_URL, or url in [source] of the configuration file";

/// `[source]`: a database and what is read of it.
#[derive(Debug, Clone)]
pub enum SourceSettings {
    /// `postgres://` and `postgresql://`.
    Postgres(PostgresSettings),
    /// `mysql://` and `mariadb://`.
    MySql(MySqlSettings),
}

impl SourceSettings {
    /// The URL, with the password in it where one was given.
    pub fn url(&self) -> &Secret {
        match self {
            Self::Postgres(settings) => &settings.url,
            Self::MySql(settings) => &settings.url,
        }
    }
}

impl Values {
    /// Checks `[source]` alone, for a verb that needs no sink.
    ///
    /// # Errors
    /// As [`Values::settings`].
    pub fn source(&self) -> Result<SourceSettings, ConfigError> {
        let url = self.source_url()?;
        Ok(match self.source_without_url()? {
            SourceSettings::Postgres(settings) => {
                SourceSettings::Postgres(PostgresSettings { url, ..settings })
            }
            SourceSettings::MySql(settings) => {
                SourceSettings::MySql(MySqlSettings { url, ..settings })
            }
        })
    }

    /// As [`Values::source`], for a verb that does not connect: the URL may be missing, and is
    /// left empty. Without one the database is PostgreSQL.
    ///
    /// # Errors
    /// As [`Values::settings`].
    pub fn source_without_url(&self) -> Result<SourceSettings, ConfigError> {
        let database = self.database();
        if let Some(key) = self.misplaced() {
            let other = match database {
                Database::Postgres => Database::MySql,
                Database::MySql => Database::Postgres,
            };
            let problem = format!(
                "belongs to a {} source, and this one is {}; leave it out",
                other.name(),
                database.name()
            );
            return Err(self.refuse(key, problem));
        }
        Ok(match database {
            Database::Postgres => SourceSettings::Postgres(self.postgres()?),
            Database::MySql => SourceSettings::MySql(self.mysql()?),
        })
    }

    /// A relative path would depend on the folder in which walpost happens to be started.
    pub(super) fn memory_file(&self) -> Result<Option<PathBuf>, ConfigError> {
        match self.text("source.memory_file")? {
            Some(path) if path.starts_with('/') && !path.ends_with('/') => Ok(Some(path.into())),
            Some(_) => {
                let problem = "must be the whole path of a file, from / on";
                Err(self.refuse("source.memory_file", problem))
            }
            None => Ok(None),
        }
    }

    /// The URL as it was written.
    pub(super) fn written_url(&self) -> Result<String, ConfigError> {
        self.required_text("source.url", HOW)
    }

    /// The URL with `source.password` in it, or the name of its file: whoever logs in reads that.
    fn source_url(&self) -> Result<Secret, ConfigError> {
        let url = self.written_url()?;
        let parts = url.split_once("://").filter(|(scheme, _)| {
            matches!(*scheme, "postgres" | "postgresql" | "mysql" | "mariadb")
        });
        let Some((scheme, rest)) = parts else {
            let problem =
                "must be a URL such as postgres://USER@HOST/DATABASE or mysql://USER@HOST/DATABASE";
            return Err(self.refuse("source.url", problem));
        };
        let encode = |text: &str| {
            percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC)
                .to_string()
        };
        let Some(password) = self.secret("source.password")? else {
            return self.required_secret("source.url", HOW);
        };
        let Some((user, host)) = rest.split_once('@').filter(|(user, _)| !user.contains(':'))
        else {
            let problem = format!(
                "needs a user and no password in source.url: {scheme}://USER@HOST/DATABASE"
            );
            return Err(self.refuse("source.password", problem));
        };
        Ok(Secret::new(match &password {
            Secret::Text(text) => {
                format!("{scheme}://{user}:{}@{host}", encode(text.expose()))
            }
            Secret::File(path) => {
                let path = encode(&path.to_string_lossy());
                let mark = if host.contains('?') { '&' } else { '?' };
                format!("{scheme}://{user}@{host}{mark}password_file={path}")
            }
        }))
    }
}
