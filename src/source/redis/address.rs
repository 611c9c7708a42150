//! `source.redis.url`, taken apart: where to ask, and who asks. Nothing in here prints a password.

use crate::config;
use crate::error::{SourceCode, SourceError};
use crate::source::tls::root_certificate;
use percent_encoding::percent_decode_str;
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo,
    RedisError, TlsCertificates,
};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// To connect, and to be let in.
const CONNECT: Duration = Duration::from_secs(3);
/// An answer takes no longer, or the connection is given up.
const PATIENCE: Duration = Duration::from_secs(5);
/// A connection on which nothing passes is asked after so long whether it lives.
const KEEPALIVE: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    pub host: Arc<str>,
    pub port: u16,
}

impl Address {
    /// `host:port` as servers write it; an IPv6 address has colons of its own.
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        Some(Self { host: host.into(), port: port.parse().ok()? })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// How the servers belong together.
#[derive(Clone, Debug)]
pub enum Deployment {
    One(Address),
    Sentinel { sentinels: Vec<Address>, service: String },
    Cluster { seeds: Vec<Address> },
}

impl fmt::Display for Deployment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |all: &[Address]| all.iter().map(Address::to_string).collect::<Vec<_>>().join(",");
        match self {
            Self::One(address) => write!(f, "{address}"),
            Self::Sentinel { sentinels, service } => write!(f, "{service} of Sentinel {}", list(sentinels)),
            Self::Cluster { seeds } => write!(f, "Cluster {}", list(seeds)),
        }
    }
}

/// Who asks, and how.
pub struct Login {
    user: Option<String>,
    password: Option<String>,
    db: i64,
    /// None: in clear.
    tls: Option<TlsCertificates>,
}

pub fn read(settings: &config::Redis) -> Result<(Deployment, Login), SourceError> {
    let url = settings.url.get().unwrap_or_default();
    let parts = parse(url).ok_or_else(|| {
        // not its text: there may be a password in it
        let cause = "it is no address such as redis://user:password@host:6379/0, \
                     redis://host:7000,redis://host:7001 or redis+sentinel://host:26379,host:26379/service";
        let help = "correct it; what has a special meaning in an address is written as %40 in user and password";
        SourceError::new(SourceCode::CannotOpen, "reading source.redis.url", cause, help)
    })?;
    let certificates = |root_cert| TlsCertificates { client_tls: None, root_cert };
    let tls = if parts.is_tls {
        Some(certificates(root_certificate("source.redis.root_cert", &settings.root_cert)?))
    } else {
        None
    };
    Ok((parts.deployment, Login { user: parts.user, password: parts.password, db: parts.db, tls }))
}

struct Parts {
    deployment: Deployment,
    is_tls: bool,
    user: Option<String>,
    password: Option<String>,
    db: i64,
}

fn parse(url: &str) -> Option<Parts> {
    let (scheme, rest) = url.split_once("://")?;
    let (is_tls, is_sentinel) = match scheme {
        "redis" => (false, false),
        "rediss" => (true, false),
        "redis+sentinel" => (false, true),
        "rediss+sentinel" => (true, true),
        _ => return None,
    };
    // of several addresses each may be written in full; the first one's user and password count for all
    let rest: Vec<&str> = rest
        .split(',')
        .enumerate()
        .map(|(index, one)| if index == 0 { one } else { one.strip_prefix(scheme).map_or(one, strip_slashes) })
        .map(str::trim)
        .collect();
    let is_cluster = !is_sentinel && rest.len() > 1;
    let last = rest.last()?;
    let path = last.split_once('/').map(|(_, path)| path.trim_end_matches('/')).unwrap_or_default();
    let (mut user, mut password) = (None, None);
    let mut addresses = Vec::new();
    for (index, one) in rest.iter().enumerate() {
        let authority = one.split('/').next().unwrap_or_default();
        let (login, host) = authority.rsplit_once('@').map_or((None, authority), |(login, host)| (Some(login), host));
        if let Some(login) = login.filter(|_| index == 0) {
            let (name, secret) = login.split_once(':').map_or((login, None), |(name, secret)| (name, Some(secret)));
            user = decoded(name)?;
            password = decoded(secret.unwrap_or_default())?;
        }
        if host.is_empty() && is_cluster {
            // "redis://host:7000," is a Cluster of which one node is named
            continue;
        }
        addresses.push(authority_of(host, if is_sentinel { 26379 } else { 6379 })?);
    }
    let number = |text: &str| if text.is_empty() { Some(0) } else { text.parse().ok().filter(|db| *db >= 0) };
    let (deployment, db) = if is_sentinel {
        let (service, db) = path.split_once('/').unwrap_or((path, ""));
        let service = decoded(service)??;
        (Deployment::Sentinel { sentinels: addresses, service }, number(db)?)
    } else if is_cluster {
        // a Cluster has no other
        (Deployment::Cluster { seeds: addresses }, number(path).filter(|db| *db == 0)?)
    } else {
        (Deployment::One(addresses.pop()?), number(path)?)
    };
    Some(Parts { deployment, is_tls, user, password, db })
}

fn strip_slashes(text: &str) -> &str {
    text.strip_prefix("://").unwrap_or(text)
}

/// Outer `None`: no text. Inner: an empty one.
fn decoded(text: &str) -> Option<Option<String>> {
    let text = percent_decode_str(text).decode_utf8().ok()?.into_owned();
    Some((!text.is_empty()).then_some(text))
}

fn authority_of(text: &str, port: u16) -> Option<Address> {
    let has_port = match text.rsplit_once(']') {
        Some((_, rest)) => rest.starts_with(':'),
        None => text.contains(':'),
    };
    let address = match has_port {
        true => Address::parse(text)?,
        false => Address { host: text.trim_start_matches('[').trim_end_matches(']').into(), port },
    };
    let is_host =
        !address.host.is_empty() && address.host.chars().all(|c| c.is_ascii_alphanumeric() || "-._:".contains(c));
    (is_host && address.port > 0).then_some(address)
}

impl Login {
    /// A connection that hands what the server says by itself to `heard`.
    pub async fn connect(
        &self,
        to: &Address,
        heard: Option<impl redis::aio::AsyncPushSender>,
    ) -> Result<MultiplexedConnection, RedisError> {
        let mut who = RedisConnectionInfo::default().set_db(self.db).set_protocol(ProtocolVersion::RESP3);
        if let Some(password) = &self.password {
            who = who.set_password(password);
            if let Some(user) = &self.user {
                who = who.set_username(user);
            }
        }
        let config = config();
        self.open(to, who, &heard.into_iter().fold(config, AsyncConnectionConfig::set_push_sender)).await
    }

    /// A connection to a Sentinel, which often lets in whoever comes.
    pub async fn connect_to_sentinel(
        &self,
        to: &Address,
        shows_password: bool,
    ) -> Result<MultiplexedConnection, RedisError> {
        let mut who = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP2);
        if let Some(password) = self.password.as_ref().filter(|_| shows_password) {
            who = who.set_password(password);
            if let Some(user) = &self.user {
                who = who.set_username(user);
            }
        }
        self.open(to, who, &config()).await
    }

    async fn open(
        &self,
        to: &Address,
        who: RedisConnectionInfo,
        config: &AsyncConnectionConfig,
    ) -> Result<MultiplexedConnection, RedisError> {
        let (host, port) = (to.host.to_string(), to.port);
        let address = match self.tls {
            None => ConnectionAddr::Tcp(host, port),
            Some(_) => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
        };
        // an old server does not know the name that a library gives itself, and a user may not be let give it
        let tcp = TcpSettings::default()
            .set_nodelay(true)
            .set_keepalive(socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE));
        let info =
            address.into_connection_info()?.set_redis_settings(who.set_skip_set_lib_name()).set_tcp_settings(tcp);
        let client = match &self.tls {
            None => Client::open(info)?,
            Some(certificates) => Client::build_with_tls(info, certificates.clone())?,
        };
        client.get_multiplexed_async_connection_with_config(config).await
    }
}

fn config() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT)).set_response_timeout(Some(PATIENCE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(url: &str) -> String {
        parse(url).map_or("none".into(), |parts| {
            let Parts { deployment, is_tls, user, password, db } = parts;
            format!("{deployment} tls={is_tls} {user:?} {password:?} {db}")
        })
    }

    #[test]
    fn an_address_is_taken_apart() {
        for (url, parts) in [
            ("redis://localhost", "localhost:6379 tls=false None None 0"),
            ("rediss://me:p%40ss%2C@[::1]:7000/3", "::1:7000 tls=true Some(\"me\") Some(\"p@ss,\") 3"),
            ("redis://:secret@host", "host:6379 tls=false None Some(\"secret\") 0"),
            ("redis://u:p@a:1,redis://b:2,c", "Cluster a:1,b:2,c:6379 tls=false Some(\"u\") Some(\"p\") 0"),
            ("redis://a:1,", "Cluster a:1 tls=false None None 0"),
            ("redis+sentinel://a,b:2/main", "main of Sentinel a:26379,b:2 tls=false None None 0"),
            ("rediss+sentinel://u:p@a/main/4", "main of Sentinel a:26379 tls=true Some(\"u\") Some(\"p\") 4"),
        ] {
            assert_eq!(shown(url), parts, "{url}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for url in [
            "hunter2",
            "http://host",
            "redis://",
            "redis://host:port",
            "redis://host/zero",
            "redis://a,b/1",
            "redis+sentinel://a,b",
            "redis://host:0",
            "redis://ho st",
        ] {
            assert_eq!(shown(url), "none", "{url}");
        }
    }
}
