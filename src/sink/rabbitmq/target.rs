//! Where the broker is and who logs in: the URL and the options beside it, checked.
//!
//! Owns what is read again at each connect, so that a rotated secret or certificate is picked up:
//! the password's file, the URL's file, the authorities' file. Knows no socket.

use std::path::PathBuf;
use std::time::Duration;

use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use percent_encoding::percent_decode_str;

use crate::failure::Failure;
use crate::secret::Secret;
use crate::sink::OpenError;

/// Where to connect, and as whom. Never printed: it may hold the password.
pub(super) struct Target {
    url: Secret,
    login: Login,
    /// As the URL was at the start; its password is not used.
    uri: AMQPUri,
    ca_file: Option<PathBuf>,
    client_name: String,
}

/// User and password that were given beside the URL.
#[derive(Default)]
pub(super) struct Login {
    pub(super) user: Option<String>,
    pub(super) password: Option<Secret>,
}

/// What one connect needs, with the secrets as they are now.
pub(super) struct Access {
    pub(super) uri: AMQPUri,
    /// Certificates (PEM) to trust beside those of the system.
    pub(super) certificates: Option<String>,
}

impl Target {
    /// Reads the URL, here and not with the library, which takes an IPv6 address for localhost.
    pub(super) fn new(
        url: &Secret,
        login: Login,
        heartbeat: Duration,
        ca_file: Option<PathBuf>,
        client_name: &str,
    ) -> Result<Self, OpenError> {
        let seconds = u16::try_from(heartbeat.as_secs()).unwrap_or(u16::MAX);
        let query = AMQPQueryString { heartbeat: Some(seconds), ..Default::default() };
        let uri = parse(url.read()?.expose(), query)?;
        let target =
            Self { url: url.clone(), login, uri, ca_file, client_name: client_name.to_owned() };
        target.userinfo(target.uri.authority.userinfo.clone())?;
        Ok(target)
    }

    /// For the broker's list of clients.
    pub(super) fn client_name(&self) -> &str {
        &self.client_name
    }

    /// For people.
    pub(super) fn place(&self) -> String {
        let AMQPUri { authority, vhost, .. } = &self.uri;
        format!("RabbitMQ at {}:{}, vhost \"{vhost}\"", authority.host, authority.port)
    }

    /// Reads the files for one connect.
    ///
    /// # Errors
    /// Denied: one of them cannot be used now.
    pub(super) fn access(&self) -> Result<Access, Failure> {
        let mut uri = self.uri.clone();
        if self.url.path().is_some() {
            let text = self.url.read().map_err(Failure::denied)?;
            let now = parse(text.expose(), uri.query.clone()).map_err(Failure::denied)?;
            uri.authority.userinfo = now.authority.userinfo;
        }
        uri.authority.userinfo = self.userinfo(uri.authority.userinfo).map_err(Failure::denied)?;
        let certificates = match &self.ca_file {
            None => None,
            Some(path) => Some(std::fs::read_to_string(path).map_err(|error| {
                let path = path.display();
                Failure::denied(format!("ca_file: could not read {path}: {error}"))
            })?),
        };
        Ok(Access { uri, certificates })
    }

    /// The URL's user and password, with those of the options in their places.
    fn userinfo(&self, of_url: AMQPUserInfo) -> Result<AMQPUserInfo, OpenError> {
        let AMQPUserInfo { username, password } = of_url;
        let wrong = |problem: &str| OpenError::Option { problem: problem.to_owned() };
        let username = match (username, &self.login.user) {
            (of_url, Some(_)) if !of_url.is_empty() => {
                return Err(wrong("\"user\" is in the URL too; give it once"));
            }
            (_, Some(user)) => user.clone(),
            (of_url, None) => of_url,
        };
        let password = match (password, &self.login.password) {
            (of_url, Some(_)) if !of_url.is_empty() => {
                return Err(wrong("\"password\" is in the URL too; give it once"));
            }
            (_, Some(password)) => password.read()?.expose().to_owned(),
            (of_url, None) => of_url,
        };
        match (username.is_empty(), password.is_empty()) {
            (true, true) => Ok(AMQPUserInfo { username: "guest".into(), password: "guest".into() }),
            (true, false) => Err(wrong("a password has no \"user\"")),
            (false, _) => Ok(AMQPUserInfo { username, password }),
        }
    }
}

fn parse(url: &str, query: AMQPQueryString) -> Result<AMQPUri, OpenError> {
    let refused = |what: &str| OpenError::Url {
        problem: format!("{what}; one looks like amqp://user:password@host:5672/vhost"),
    };
    let url = url::Url::parse(url).map_err(|_| refused("cannot be read"))?;
    let scheme = match url.scheme() {
        "amqp" => AMQPScheme::AMQP,
        "amqps" => AMQPScheme::AMQPS,
        _ => return Err(refused("is neither amqp:// nor amqps://")),
    };
    let host = url.host_str().filter(|host| !host.is_empty());
    let host = host.ok_or_else(|| refused("has no host"))?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err(refused("takes no parameters: set options in [sink] instead"));
    }
    let decode = |text: &str| {
        let decoded = percent_decode_str(text).decode_utf8();
        decoded.map(|text| text.into_owned()).map_err(|_| refused("has a part that is not UTF-8"))
    };
    let userinfo = AMQPUserInfo {
        username: decode(url.username())?,
        password: decode(url.password().unwrap_or_default())?,
    };
    let vhost = match url.path().strip_prefix('/').unwrap_or_default() {
        "" => "/".to_owned(),
        vhost => decode(vhost)?,
    };
    let port = url.port().unwrap_or_else(|| scheme.default_port());
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok(AMQPUri { scheme, authority: AMQPAuthority { userinfo, host, port }, vhost, query })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str, login: Login) -> Result<AMQPUri, OpenError> {
        let target = Target::new(&url.into(), login, Duration::from_secs(20), None, "test")?;
        Ok(target.access().unwrap().uri)
    }

    fn of_url(url: &str) -> Result<AMQPUri, OpenError> {
        target(url, Login::default())
    }

    #[test]
    fn a_url_gives_user_host_and_vhost() {
        let uri = of_url("amqps://us%40er:p%2Fw@broker.example/my%2Fhost").unwrap();
        assert_eq!(uri.authority.userinfo.username, "us@er");
        assert_eq!(uri.authority.userinfo.password, "p/w");
        assert_eq!((uri.authority.host.as_str(), uri.authority.port), ("broker.example", 5671));
        assert_eq!(uri.vhost, "my/host");
        assert_eq!(of_url("amqp://broker").unwrap().vhost, "/");
        assert_eq!(of_url("amqp://broker/").unwrap().vhost, "/");
        assert_eq!(of_url("amqp://broker").unwrap().authority.userinfo.username, "guest");
    }

    #[test]
    fn an_ipv6_address_is_not_taken_for_localhost() {
        assert_eq!(of_url("amqp://[::1]:5673").unwrap().authority.host, "::1");
    }

    #[test]
    fn a_wrong_url_is_refused_without_being_repeated() {
        for url in ["amqp://", "amqp:secret", "amqp://u:secret@host/?heartbeat=5", "amqp://:x:y"] {
            let error = of_url(url).unwrap_err().to_string();
            assert!(error.contains("amqp://user:password@host:5672/vhost"), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn user_and_password_may_stand_beside_the_url_but_only_once() {
        let login = |user: Option<&str>| Login {
            user: user.map(str::to_owned),
            password: Some("s3cret".into()),
        };
        let uri = target("amqp://relay@h", login(None)).unwrap();
        assert_eq!(uri.authority.userinfo.username, "relay");
        assert_eq!(uri.authority.userinfo.password, "s3cret");
        let uri = target("amqp://h", login(Some("relay"))).unwrap();
        assert_eq!(uri.authority.userinfo.username, "relay");
        for (url, user) in
            [("amqp://relay:other@h", None), ("amqp://relay@h", Some("relay")), ("amqp://h", None)]
        {
            let error = target(url, login(user)).unwrap_err().to_string();
            assert!(!error.contains("s3cret") && !error.contains("other"), "{error}");
        }
    }
}
