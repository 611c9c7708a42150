//! The address that a request comes from: the peer's, or behind trusted proxies the one that they name in `Forwarded` (RFC
//! 7239) or `X-Forwarded-For`. The limits for one address count it.

use super::App;
use super::problem::Problem;
use actix_web::HttpRequest;
use actix_web::http::header::{FORWARDED, HeaderMap, HeaderName, X_FORWARDED_FOR};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bits of an IPv6 address that stand for one subscriber of a provider, who is free to choose the others.
const COUNTED_V6_BITS: u32 = 64;

/// The address of a client, if its connection still has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddress(pub Option<IpAddr>);

super::extract::from_head!(ClientAddress, |request: &HttpRequest| {
    Ok(ClientAddress::of(request, App::of(request)?))
});

impl ClientAddress {
    /// Finds the client of a request.
    pub fn of(request: &HttpRequest, app: &App) -> Self {
        let trusted = &app.settings.trusted_proxies;
        let is_trusted = |ip| trusted.iter().any(|network| network.contains(ip));
        Self(request.peer_addr().map(|peer| find(peer.ip(), request.headers(), is_trusted)))
    }

    /// The address as limits count it.
    pub fn counted(self) -> Option<IpAddr> {
        self.0.map(counted)
    }
}

/// Returns the address that stands for all addresses of one subscriber: IPv6 by its /64, and IPv4 as it is, also where it
/// is mapped into IPv6.
pub fn counted(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << (128 - COUNTED_V6_BITS))).into(),
        v4 => v4,
    }
}

/// Finds the client of a request that `peer` sent. Where both headers stand and name different clients, one of them was
/// written by the client and passed on as it came, and nobody can say which: then it is the peer.
fn find(peer: IpAddr, headers: &HeaderMap, is_trusted: impl Fn(IpAddr) -> bool) -> IpAddr {
    let peer = peer.to_canonical();
    if !is_trusted(peer) {
        return peer;
    }
    let by = |hops: Vec<Hop>| (!hops.is_empty()).then(|| walk(peer, &hops, &is_trusted));
    let x_forwarded_for = lines(headers, X_FORWARDED_FOR).flat_map(|line| line.map_or(vec![None], x_forwarded_for));
    let forwarded = lines(headers, FORWARDED).flat_map(|line| line.map_or(vec![None], forwarded));
    match (by(x_forwarded_for.collect()), by(forwarded.collect())) {
        (Some(one), Some(other)) if one == other => one,
        (Some(_), Some(_)) | (None, None) => peer,
        (Some(client), None) | (None, Some(client)) => client,
    }
}

/// A hop of a request, as the proxy after it wrote it down; `None` if it cannot be understood or is not an address.
type Hop = Option<IpAddr>;

/// Values of a header, one for each line; `None` for a line that is no text.
fn lines(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = Option<&str>> {
    headers.get_all(name).map(|value| value.to_str().ok())
}

/// Goes back along the hops while they are trusted proxies, whose word counts for the hop before. It ends at a hop that
/// cannot be understood: the last trusted one that was understood is the client then.
fn walk(peer: IpAddr, hops: &[Hop], is_trusted: impl Fn(IpAddr) -> bool) -> IpAddr {
    let mut client = peer;
    for hop in hops.iter().rev() {
        match hop {
            Some(before) if is_trusted(client) => client = *before,
            _ => break,
        }
    }
    client
}

/// Reads one line of `X-Forwarded-For`, the client first.
pub fn x_forwarded_for(line: &str) -> Vec<Hop> {
    line.split(',').map(str::trim).filter(|hop| !hop.is_empty()).map(|hop| read_hop(unquote(hop)?.as_str())).collect()
}

/// Reads one line of `Forwarded` (RFC 7239, section 4), the client first. A line whose quotes do not match is one hop that
/// cannot be understood, since nobody can say where its elements end.
pub fn forwarded(line: &str) -> Vec<Hop> {
    let Some(elements) = split(line, ',') else { return vec![None] };
    let elements = elements.into_iter().map(str::trim).filter(|element| !element.is_empty());
    elements.map(|element| read_element(element).and_then(|node| read_hop(&node))).collect()
}

/// Returns the `for` of one element. An element has it once, or says nothing of the hop.
fn read_element(element: &str) -> Option<String> {
    let mut node = None;
    for pair in split(element, ';')?.into_iter().map(str::trim).filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=')?;
        if name.trim_end().eq_ignore_ascii_case("for") && node.replace(unquote(value.trim_start())?).is_some() {
            return None;
        }
    }
    node
}

/// Splits a text at a mark that stands in no quoted string; `None` if a quoted string does not end.
fn split(text: &str, mark: char) -> Option<Vec<&str>> {
    let (mut is_quoted, mut is_escaped, mut begin, mut parts) = (false, false, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' if is_quoted => is_escaped = true,
            '"' => is_quoted = !is_quoted,
            _ if c == mark && !is_quoted => {
                parts.push(&text[begin..at]);
                begin = at + c.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(&text[begin..]);
    (!is_quoted).then_some(parts)
}

/// Reads a token or a quoted string (RFC 9110, section 5.6.4).
fn unquote(text: &str) -> Option<String> {
    let Some(rest) = text.strip_prefix('"') else { return (!text.contains('"')).then(|| text.to_string()) };
    let (mut plain, mut chars) = (String::new(), rest.chars());
    loop {
        match chars.next()? {
            '"' => return chars.as_str().is_empty().then_some(plain),
            '\\' => plain.push(chars.next()?),
            c => plain.push(c),
        }
    }
}

/// Reads `192.0.2.1`, `192.0.2.1:4711`, `2001:db8::1`, `[2001:db8::1]` and `[2001:db8::1]:4711`. Not an address are
/// `unknown` and obfuscated names such as `_hidden` (RFC 7239, section 6).
fn read_hop(hop: &str) -> Hop {
    let (ip, port): (IpAddr, &str) = if let Ok(ip) = hop.parse() {
        (ip, "")
    } else if let Some(rest) = hop.strip_prefix('[') {
        let (ip, port) = rest.split_once(']')?;
        (ip.parse::<Ipv6Addr>().ok()?.into(), port)
    } else {
        let at = hop.find(':')?;
        (hop[..at].parse::<Ipv4Addr>().ok()?.into(), &hop[at..])
    };
    let is_port = match port.strip_prefix(':') {
        Some(port) => port.starts_with('_') || port.parse::<u16>().is_ok(),
        None => port.is_empty(),
    };
    is_port.then(|| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::test::TestRequest;

    const PROXY: [u8; 4] = [10, 0, 0, 1];

    /// The client of a request that a proxy sent with these headers; 10.0.0.0/8 is trusted.
    fn client(headers: &[(&str, &[u8])]) -> String {
        let request = headers.iter().fold(TestRequest::get(), |request, (name, value)| {
            let value = actix_web::http::header::HeaderValue::from_bytes(value).expect("a header");
            request.append_header((*name, value))
        });
        let is_trusted = |ip| matches!(ip, IpAddr::V4(ip) if ip.octets()[0] == 10);
        find(PROXY.into(), request.to_http_request().headers(), is_trusted).to_string()
    }

    #[test]
    fn the_walk_ends_at_the_first_hop_that_is_not_trusted_or_at_the_last_that_was_understood() {
        for (line, expected) in [
            ("203.0.113.9, 192.0.2.1, 10.0.0.2", "192.0.2.1"),
            ("192.0.2.1:4711", "192.0.2.1"),
            ("1.1.1.1:5000", "1.1.1.1"),
            ("[2001:db8::1]:443", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("2001:db8::1", "2001:db8::1"),
            ("\"192.0.2.1\"", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("192.0.2.1,,", "192.0.2.1"),
            ("203.0.113.9, unknown, 10.0.0.2", "10.0.0.2"),
            ("203.0.113.9, _hidden", "10.0.0.1"),
            ("203.0.113.9, 192.0.2.1:port", "10.0.0.1"),
            ("203.0.113.9, 192.0.2.1:99999", "10.0.0.1"),
            ("203.0.113.9, fe80::1%eth0", "10.0.0.1"),
            ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
            ("", "10.0.0.1"),
        ] {
            assert_eq!(client(&[("X-Forwarded-For", line.as_bytes())]), expected, "{line}");
        }
        for (line, expected) in [
            ("for=203.0.113.9, for=\"192.0.2.1:80\";proto=https, FOR=10.0.0.2", "192.0.2.1"),
            ("for=\"[2001:db8::1]:4711\"", "2001:db8::1"),
            ("For=\"[2001:db8::1]\" ; by=_x", "2001:db8::1"),
            ("for=192.0.2.1:_port", "192.0.2.1"),
            ("for=\"192.0.2.1:_port\"", "192.0.2.1"),
            ("for=\"192.0.2\\.1\"", "192.0.2.1"),
            ("for=203.0.113.9, proto=https", "10.0.0.1"),
            ("for=203.0.113.9, for=10.0.0.2;for=192.0.2.1", "10.0.0.1"),
            ("for=203.0.113.9, for=unknown", "10.0.0.1"),
            ("by=\"a, for=203.0.113.9\";for=192.0.2.1", "192.0.2.1"),
            ("by=\", for=192.0.2.1", "10.0.0.1"),
        ] {
            assert_eq!(client(&[("Forwarded", line.as_bytes())]), expected, "{line}");
        }
    }

    #[test]
    fn several_headers_are_one_list_and_a_line_that_is_no_text_is_not_skipped() {
        let x = "X-Forwarded-For";
        assert_eq!(client(&[(x, b"203.0.113.9"), (x, b"192.0.2.1"), (x, b"10.0.0.2")]), "192.0.2.1");
        assert_eq!(client(&[(x, b"203.0.113.9"), (x, b"\xff"), (x, b"10.0.0.2")]), "10.0.0.2");
        assert_eq!(client(&[("Forwarded", b"for=203.0.113.9"), ("Forwarded", b"for=192.0.2.1")]), "192.0.2.1");
    }

    #[test]
    fn two_headers_that_contradict_each_other_name_nobody() {
        let both = |one: &[u8], other: &[u8]| client(&[("Forwarded", one), ("X-Forwarded-For", other)]);
        assert_eq!(both(b"for=192.0.2.1", b"192.0.2.1"), "192.0.2.1");
        assert_eq!(both(b"for=203.0.113.9", b"192.0.2.1"), "10.0.0.1");
    }

    #[test]
    fn the_same_address_is_the_same_address() {
        let trusted = |ip: IpAddr| ip == IpAddr::from([127, 0, 0, 1]);
        let request = TestRequest::get().insert_header(("X-Forwarded-For", "192.0.2.1")).to_http_request();
        let mapped: IpAddr = "::ffff:127.0.0.1".parse().expect("an address");
        assert_eq!(find(mapped, request.headers(), trusted), IpAddr::from([192, 0, 2, 1]));
        let key = |text: &str| counted(text.parse().expect(text));
        assert_eq!(key("2001:db8:1:2::1"), key("2001:db8:1:2:ffff::9"), "one /64");
        assert_ne!(key("2001:db8:1:2::1"), key("2001:db8:1:3::1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
        assert_eq!(key("192.0.2.1"), key("::ffff:192.0.2.1"));
    }
}
