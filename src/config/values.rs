//! Types of single values, and how they are written: durations, sizes, networks, secrets.

use bytesize::ByteSize;
use ipnet::{IpNet, Ipv4Net};
use serde::de::IntoDeserializer;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;
use url::Url;

/// On, off, or as the rest of the settings suggest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AutoBool {
    #[default]
    Auto,
    On,
    Off,
}

impl Serialize for AutoBool {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => to.serialize_str("auto"),
            Self::On => to.serialize_bool(true),
            Self::Off => to.serialize_bool(false),
        }
    }
}

impl<'de> Deserialize<'de> for AutoBool {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match String::deserialize(from)?.as_str() {
            "auto" => Ok(Self::Auto),
            "true" => Ok(Self::On),
            "false" => Ok(Self::Off),
            other => Err(serde::de::Error::custom(format!("{other:?} is neither true, false nor \"auto\""))),
        }
    }
}

/// A string that is never printed or logged; empty if it is not set.
#[derive(Clone, Default, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    pub fn get(&self) -> Option<&str> {
        (!self.0.is_empty()).then_some(&*self.0)
    }

    fn masked(&self) -> &'static str {
        self.get().map_or("", |_| "********")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.masked())
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.masked())
    }
}

/// An http address that is printed without anything that could be a secret; empty if it is not set.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct SecretUrl(String);

impl SecretUrl {
    /// The form that it must have.
    pub(super) const WANTED: &str = "must begin with http:// or https:// and name a host";

    /// Returns the address; `None` if there is none, or none that is valid.
    pub fn get(&self) -> Option<Url> {
        let url = Url::parse(&self.0).ok()?;
        (matches!(url.scheme(), "http" | "https") && url.has_host()).then_some(url)
    }

    pub(super) fn is_valid(&self) -> bool {
        self.0.is_empty() || self.get().is_some()
    }
}

/// Scheme and host, since user, password, path and query may each be a secret.
impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.get() {
            Some(url) => write!(f, "{}/********", url.origin().ascii_serialization()),
            None => f.write_str(if self.0.is_empty() { "" } else { "********" }),
        }
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

impl Serialize for SecretUrl {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Reads an enum by way of its text: `config` does not say which values there are.
pub fn one_of<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    T::deserialize(String::deserialize(from)?.into_deserializer())
}

/// A network such as `10.0.0.0/8`, or a single address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(IpNet);

impl Network {
    /// Tells if it holds an address, which may be IPv4 mapped into IPv6 (RFC 4291, section 2.5.5.2).
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.0.contains(&ip.to_canonical())
    }

    /// The network of IPv4 that one of mapped addresses stands for; any other network as it is.
    fn unmapped(network: IpNet) -> IpNet {
        match (network.addr().to_canonical(), network.prefix_len()) {
            (IpAddr::V4(v4), prefix @ 96..) if network.addr().is_ipv6() => {
                Ipv4Net::new(v4, prefix - 96).map_or(network, IpNet::V4)
            }
            _ => network,
        }
    }
}

/// A text is neither an address nor a network.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no address or network such as 10.0.0.1 or 10.0.0.0/8")]
pub struct BadNetwork(String);

impl FromStr for Network {
    type Err = BadNetwork;

    fn from_str(text: &str) -> Result<Self, BadNetwork> {
        let network = text.parse::<IpAddr>().map(IpNet::from).or_else(|_| text.parse());
        network.map(Self::unmapped).map(Self).map_err(|_| BadNetwork(text.to_string()))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix_len() == self.0.max_prefix_len() { self.0.addr().fmt(f) } else { self.0.fmt(f) }
    }
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Addresses to listen on: `127.0.0.1:8080`, `[::1]:8080`, `localhost:8080` for loopback, `:8080` for all of IPv4.
pub mod listen {
    use super::*;

    pub fn serialize<S: Serializer>(address: &SocketAddr, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(address)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SocketAddr, D::Error> {
        let text = String::deserialize(from)?;
        parse(&text).ok_or_else(|| {
            serde::de::Error::custom(format!(
                "{text:?} is no address to listen on; give one with its port, such as 127.0.0.1:8080, [::1]:8080, \
                 localhost:8080, or :8080 for all addresses"
            ))
        })
    }

    fn parse(text: &str) -> Option<SocketAddr> {
        if let Ok(address) = text.parse() {
            return Some(address);
        }
        let (host, port) = text.rsplit_once(':')?;
        let ip = match host {
            "" | "*" => Ipv4Addr::UNSPECIFIED,
            _ if host.eq_ignore_ascii_case("localhost") => Ipv4Addr::LOCALHOST,
            _ => return None,
        };
        Some(SocketAddr::from((ip, port.parse().ok()?)))
    }
}

/// Durations as `500ms`, `15s`, `5m`; `0` or `0s` for none.
pub mod duration {
    use super::*;
    use jiff::fmt::friendly::{SpanParser, SpanPrinter};

    pub fn serialize<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&SpanPrinter::new().unsigned_duration_to_string(duration))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(from)?;
        parse(&text).map_err(|error| {
            serde::de::Error::custom(format!("{text:?} is no duration such as 500ms, 15s or 5m ({error})"))
        })
    }

    fn parse(text: &str) -> Result<Duration, jiff::Error> {
        if text == "0" {
            return Ok(Duration::ZERO);
        }
        // By way of a span, because a plain duration takes no days and no weeks.
        SpanParser::new().parse_span(text)?.to_duration(jiff::SpanRelativeTo::days_are_24_hours())?.try_into()
    }
}

/// Sizes as `64KiB`, `1MiB`; a bare number is bytes.
pub mod size {
    use super::*;

    pub fn serialize<S: Serializer>(size: &ByteSize, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&print(size.as_u64()))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<ByteSize, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(|_| serde::de::Error::custom(format!("{text:?} is no size such as 64KiB or 1MiB")))
    }

    /// Prints a size exactly, in the largest unit that it is a whole number of.
    fn print(bytes: u64) -> String {
        let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
        match units.into_iter().find(|(bits, _)| bytes > 0 && bytes.is_multiple_of(1 << bits)) {
            Some((bits, unit)) => format!("{}{unit}", bytes >> bits),
            None => bytes.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_printed_as_they_are_written() {
        #[derive(Deserialize, Serialize)]
        struct Held(#[serde(with = "duration")] Duration);
        let read = |text: &str| serde_json::from_value::<Held>(text.into()).map(|held| held.0);
        for (text, duration, printed) in [
            ("500ms", Duration::from_millis(500), "500ms"),
            ("15s", Duration::from_secs(15), "15s"),
            ("5m", Duration::from_secs(300), "5m"),
            ("5min", Duration::from_secs(300), "5m"),
            ("1m 30s", Duration::from_secs(90), "1m 30s"),
            ("1h30m", Duration::from_secs(5400), "1h 30m"),
            ("1d", Duration::from_secs(86_400), "24h"),
            ("0", Duration::ZERO, "0s"),
            ("0s", Duration::ZERO, "0s"),
        ] {
            let value = read(text).expect(text);
            assert_eq!(value, duration, "{text}");
            assert_eq!(serde_json::to_value(Held(value)).expect("JSON"), printed);
        }
        for text in ["", "5", "soon", "-1s", "1s ago", "1 month"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_address_to_listen_on_may_be_written_as_people_write_it() {
        #[derive(Debug, Deserialize)]
        struct Held(#[serde(with = "listen")] SocketAddr);
        let read = |text: &str| serde_json::from_value::<Held>(text.into()).map(|held| held.0.to_string());
        for (text, address) in [
            ("127.0.0.1:8080", "127.0.0.1:8080"),
            ("[::1]:8080", "[::1]:8080"),
            ("localhost:8080", "127.0.0.1:8080"),
            (":8080", "0.0.0.0:8080"),
            ("*:8080", "0.0.0.0:8080"),
        ] {
            assert_eq!(read(text).expect(text), address);
        }
        for text in ["8080", "localhost", "jobs.example.org:80", ":", ":99999", "::1:8080:x", ""] {
            let why = read(text).expect_err(text).to_string();
            assert!(why.contains("such as 127.0.0.1:8080"), "{why}");
        }
    }

    #[test]
    fn sizes_are_printed_as_they_are_written() {
        #[derive(Deserialize, Serialize)]
        struct Held(#[serde(with = "size")] ByteSize);
        for (text, printed) in [
            ("64KiB", "64KiB"),
            ("1MiB", "1MiB"),
            ("1024 MiB", "1GiB"),
            ("1.5MiB", "1536KiB"),
            ("1kb", "1000"),
            ("0", "0"),
        ] {
            let held: Held = serde_json::from_value(text.into()).expect(text);
            assert_eq!(serde_json::to_value(held).expect("JSON"), printed);
        }
    }

    #[test]
    fn a_network_is_an_address_or_a_prefix() {
        let network = |text: &str| text.parse::<Network>();
        let ten: Network = network("10.0.0.0/8").expect("a network");
        assert!(ten.contains(IpAddr::from([10, 1, 2, 3])) && !ten.contains(IpAddr::from([11, 1, 2, 3])));
        let one = network("10.0.0.1").expect("an address");
        assert!(one.contains(IpAddr::from([10, 0, 0, 1])) && !one.contains(IpAddr::from([10, 0, 0, 2])));
        for text in ["10.0.0.0/8", "10.0.0.1", "2001:db8::/32", "::1"] {
            assert_eq!(network(text).expect(text).to_string(), text);
        }
        let mapped = network("::ffff:10.0.0.0/104").expect("mapped");
        assert_eq!(mapped, ten, "the same network is the same network");
        assert!(ten.contains("::ffff:10.1.2.3".parse().expect("an address")));
        assert!(network("10.0.0.0/33").is_err() && network("example.org").is_err());
    }
}
