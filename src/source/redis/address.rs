//! The setting `source.redis.url`: where the servers are, and how to log in. No text of it is ever shown, since it may
//! hold a password.

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
use url::{Host, Url};

/// Time to connect and to log in.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Idle time after which TCP probes the connection, and the time between two probes.
const KEEPALIVE: Duration = Duration::from_secs(5);

const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// The address of one server.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    pub host: Arc<str>,
    pub port: u16,
}

impl Address {
    /// Parses `host:port` as servers write it: an IPv6 address may stand without brackets, and the host may be empty.
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        Some(Self { host: host.into(), port: port.parse().ok()? })
    }

    /// Fills in the host of the node that was queried, where that node does not know its own name.
    pub fn or_host_of(mut self, queried_node: &Self) -> Self {
        if self.host.is_empty() || &*self.host == "?" {
            self.host = queried_node.host.clone();
        }
        self
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// The servers, and how they belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deployment {
    Single(Address),
    Sentinel {
        sentinels: Vec<Address>,
        service: String,
    },
    /// Any nodes of a Cluster; the others are found through them.
    Cluster {
        seeds: Vec<Address>,
    },
}

impl fmt::Display for Deployment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |all: &[Address]| all.iter().map(Address::to_string).collect::<Vec<_>>().join(",");
        match self {
            Self::Single(address) => write!(f, "{address}"),
            Self::Sentinel { sentinels, service } => write!(f, "{service} of Sentinel {}", list(sentinels)),
            Self::Cluster { seeds } => write!(f, "Cluster {}", list(seeds)),
        }
    }
}

/// User, password, database and TLS; the same for all servers. It has no `Debug`, so that nothing prints the password.
pub struct Login {
    user: Option<String>,
    password: Option<String>,
    db: i64,
    /// `None`: the connection is not encrypted.
    tls: Option<TlsCertificates>,
    /// Time for a reply; a connection that takes longer is given up.
    read_timeout: Duration,
}

/// Reads the address and the certificate that the settings name.
pub fn from_settings(settings: &config::Source) -> Result<(Deployment, Login), SourceError> {
    let (settings, read_timeout) = (&settings.redis, settings.read_timeout);
    let url = settings.url.get().unwrap_or_default();
    let ServerUrl { deployment, is_tls, user, password, db } = ServerUrl::parse(url).ok_or_else(|| {
        let cause = "it is no address such as redis://user:password@host:6379/0, \
                     redis://host:7000,redis://host:7001 or redis+sentinel://host:26379,host:26379/service";
        let help = "correct it; what has a special meaning in an address is written as %40 in user and password";
        SourceError::new(SourceCode::CannotOpen, "reading source.redis.url", cause, help)
    })?;
    let tls = if is_tls {
        let root_cert = root_certificate("source.redis.root_cert", &settings.root_cert)?;
        Some(TlsCertificates { client_tls: None, root_cert })
    } else {
        None
    };
    Ok((deployment, Login { user, password, db, tls, read_timeout }))
}

/// The parts of `source.redis.url`. Its form is `scheme://address,address…/path`.
struct ServerUrl {
    deployment: Deployment,
    is_tls: bool,
    user: Option<String>,
    password: Option<String>,
    db: i64,
}

impl ServerUrl {
    /// Returns nothing but `None` for a text that is no address: an error must not quote it.
    fn parse(url: &str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://")?;
        let (is_tls, is_sentinel) = match scheme {
            "redis" => (false, false),
            "rediss" => (true, false),
            "redis+sentinel" => (false, true),
            "rediss+sentinel" => (true, true),
            _ => return None,
        };
        let mut items: Vec<&str> = rest.split(',').map(str::trim).collect();
        for item in items.iter_mut().skip(1) {
            // The later addresses may be written with their scheme, too.
            *item = item.strip_prefix(scheme).and_then(|rest| rest.strip_prefix("://")).unwrap_or(item);
        }
        let path = items.last()?.split_once('/').map(|(_, path)| path.trim_end_matches('/')).unwrap_or_default();
        let is_cluster = !is_sentinel && items.len() > 1;
        let mut servers = Vec::new();
        for item in &items {
            let authority = item.split('/').next().unwrap_or_default();
            // The address "redis://host:7000," is a Cluster, of which one node is named.
            if !(authority.is_empty() && is_cluster) {
                servers.push(Server::parse(authority, if is_sentinel { SENTINEL_PORT } else { PORT })?);
            }
        }
        // All servers have one user and password: those of the first.
        let first = servers.first()?;
        let (user, password) = (first.user.clone(), first.password.clone());
        let addresses = servers.into_iter().map(|server| server.address);
        let (deployment, db) = if is_sentinel {
            let (service, db) = path.split_once('/').unwrap_or((path, ""));
            (Deployment::Sentinel { sentinels: addresses.collect(), service: decode(service)?? }, parse_db(db)?)
        } else if is_cluster {
            // A Cluster has only database 0.
            (Deployment::Cluster { seeds: addresses.collect() }, parse_db(path).filter(|db| *db == 0)?)
        } else {
            (Deployment::Single(addresses.last()?), parse_db(path)?)
        };
        Some(Self { deployment, is_tls, user, password, db })
    }
}

/// One comma-separated item of the address, up to its path.
struct Server {
    address: Address,
    user: Option<String>,
    password: Option<String>,
}

impl Server {
    fn parse(authority: &str, default_port: u16) -> Option<Self> {
        if authority.contains(char::is_control) {
            return None;
        }
        // A password may hold these two as they are; in a URL they end the authority.
        let escaped = authority.replace('#', "%23").replace('?', "%3F");
        let url = Url::parse(&format!("redis://{escaped}")).ok()?;
        let host = match url.host()? {
            Host::Ipv4(ip) => ip.to_string(),
            Host::Ipv6(ip) => ip.to_string(),
            Host::Domain(name) => name.to_string(),
        };
        let is_host = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._:".contains(c));
        let port = url.port().unwrap_or(default_port);
        (is_host && port > 0).then_some(Self {
            address: Address { host: host.into(), port },
            user: decode(url.username())?,
            password: decode(url.password().unwrap_or_default())?,
        })
    }
}

/// Decodes percent-encoded text. Outer `None`: it is not UTF-8. Inner `None`: it is empty.
fn decode(text: &str) -> Option<Option<String>> {
    let text = percent_decode_str(text).decode_utf8().ok()?.into_owned();
    Some((!text.is_empty()).then_some(text))
}

fn parse_db(text: &str) -> Option<i64> {
    if text.is_empty() { Some(0) } else { text.parse().ok().filter(|db| *db >= 0) }
}

impl Login {
    /// Connects to a server, and calls `push_handler` with everything that it pushes.
    pub async fn connect(
        &self,
        to: &Address,
        push_handler: Option<impl redis::aio::AsyncPushSender>,
    ) -> Result<MultiplexedConnection, RedisError> {
        let user = RedisConnectionInfo::default().set_db(self.db).set_protocol(ProtocolVersion::RESP3);
        let mut config = self.config();
        if let Some(push_handler) = push_handler {
            config = config.set_push_sender(push_handler);
        }
        self.open(to, self.with_password(user), &config).await
    }

    /// Connects to a Sentinel. Many Sentinels have no password, and refuse a connection that gives one.
    pub async fn connect_to_sentinel(
        &self,
        to: &Address,
        is_password_given: bool,
    ) -> Result<MultiplexedConnection, RedisError> {
        let user = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP2);
        let user = if is_password_given { self.with_password(user) } else { user };
        self.open(to, user, &self.config()).await
    }

    fn config(&self) -> AsyncConnectionConfig {
        let config = AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT_TIMEOUT));
        config.set_response_timeout(Some(self.read_timeout))
    }

    fn with_password(&self, mut user: RedisConnectionInfo) -> RedisConnectionInfo {
        if let Some(password) = &self.password {
            user = user.set_password(password);
            if let Some(name) = &self.user {
                user = user.set_username(name);
            }
        }
        user
    }

    async fn open(
        &self,
        to: &Address,
        user: RedisConnectionInfo,
        config: &AsyncConnectionConfig,
    ) -> Result<MultiplexedConnection, RedisError> {
        let (host, port) = (to.host.to_string(), to.port);
        let address = match self.tls {
            None => ConnectionAddr::Tcp(host, port),
            Some(_) => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
        };
        let tcp = TcpSettings::default()
            .set_nodelay(true)
            .set_keepalive(socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE));
        // CLIENT SETINFO is not sent: an old server does not know it, and a user may lack the right to it.
        let info =
            address.into_connection_info()?.set_redis_settings(user.set_skip_set_lib_name()).set_tcp_settings(tcp);
        let client = match &self.tls {
            None => Client::open(info)?,
            Some(certificates) => Client::build_with_tls(info, certificates.clone())?,
        };
        client.get_multiplexed_async_connection_with_config(config).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(url: &str) -> String {
        ServerUrl::parse(url).map_or("none".into(), |url| {
            let ServerUrl { deployment, is_tls, user, password, db } = url;
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
            ("redis://u:a#b?c@d%25@Host_1", "Host_1:6379 tls=false Some(\"u\") Some(\"a#b?c@d%\") 0"),
            ("redis://10.0.0.1, redis://[2001:db8::1]:7", "Cluster 10.0.0.1:6379,2001:db8::1:7 tls=false None None 0"),
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
            "redis://redis://host",
            "redis://ho\tst",
            "redis://host#b",
            "redis://host:70000",
            "redis://[::1",
        ] {
            assert_eq!(shown(url), "none", "{url}");
        }
    }
}
