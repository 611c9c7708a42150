//! The credentials of a caller, taken out of a request.

use super::Refusal;
use crate::event::JobId;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use reqwest::header::HeaderValue;
use sha2::{Digest, Sha256};
use std::fmt;
use std::net::IpAddr;
use url::form_urlencoded;

/// Parameter of an address that holds a token, for clients that can set no header (RFC 6750, section 2.3).
const TOKEN_PARAMETER: &str = "access_token";
/// The scheme of `Authorization` that holds a token. Its case does not matter (RFC 9110, section 11.1).
const BEARER: &str = "Bearer";
/// Characters that `X-Job-Id` does not hold as they are: a header loses spaces at its ends, `%` begins an escape, and `*`
/// alone means all jobs. What is not ASCII is escaped as well.
const NOT_IN_HEADER: &AsciiSet = &CONTROLS.add(b' ').add(b'%').add(b'*');

/// The right that a caller asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// To see one job and its events.
    Job(JobId),
    /// To see every job, and so the list of jobs.
    AllJobs,
}

impl Wanted {
    /// The value of `X-Job-Id`: the job, percent-encoded, or `*`. No job is encoded as `*`.
    pub(super) fn header(&self) -> String {
        match self {
            Self::Job(job) => utf8_percent_encode(job.as_str(), NOT_IN_HEADER).to_string(),
            Self::AllJobs => "*".into(),
        }
    }
}

/// A request's credentials. They are never printed.
#[derive(Clone)]
pub struct Caller {
    /// `Authorization`, if the request has one.
    authorization: Option<String>,
    /// All cookies, as one header.
    cookies: Vec<u8>,
    /// The token in the address.
    address_token: Option<String>,
    /// Path and query that were asked for, without the token and without parameters that Jobcast does not know.
    uri: String,
    /// The address that the request comes from, as limits count it.
    address: Option<IpAddr>,
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Caller(********)")
    }
}

impl Caller {
    /// Takes the credentials of a request: the values of its headers `Authorization` and `Cookie`, its path, and its query.
    ///
    /// `known` says which parameters are Jobcast's own; others go nowhere, since one of them could be a credential that no
    /// answer is kept apart by. Fails where credentials are given twice, so that two readers of one request cannot take it
    /// for that of two callers.
    pub fn new<'a>(
        authorization: impl IntoIterator<Item = &'a [u8]>,
        cookies: impl IntoIterator<Item = &'a [u8]>,
        (path, query): (&str, &str),
        known: impl Fn(&str) -> bool,
    ) -> Result<Self, Refusal> {
        let mut authorization = authorization.into_iter();
        let (first, second) = (authorization.next(), authorization.next());
        let mut tokens = form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == TOKEN_PARAMETER);
        let (address_token, another) = (tokens.next(), tokens.next());
        if second.is_some() || another.is_some() {
            return Err(Refusal::Invalid);
        }
        let authorization = match first.map(str::from_utf8) {
            None => None,
            Some(Ok(text)) if text.chars().all(|c| c == ' ' || c.is_ascii_graphic()) => Some(text.to_string()),
            Some(_) => return Err(Refusal::Invalid),
        };
        Ok(Self {
            authorization,
            cookies: cookies.into_iter().collect::<Vec<_>>().join(&b"; "[..]),
            address_token: address_token.map(|(_, token)| token.into_owned()),
            uri: [path, &known_parameters(query, known)].concat(),
            address: None,
        })
    }

    /// Returns the token: that of the header, else that of the address, else that of this cookie. Somebody chose to send
    /// the former two with this very request, even if they are empty; a browser sends the cookie by itself.
    pub(super) fn token(&self, cookie: &str) -> Option<&str> {
        let bearer = self.authorization.as_deref().and_then(|text| {
            let (scheme, token) = text.split_once(' ').unwrap_or((text, ""));
            scheme.eq_ignore_ascii_case(BEARER).then_some(token.trim())
        });
        bearer.or(self.address_token.as_deref()).or_else(|| self.cookie(cookie)).filter(|token| !token.is_empty())
    }

    /// Returns the value of the first cookie of this name.
    fn cookie(&self, name: &str) -> Option<&str> {
        let mut pairs = str::from_utf8(&self.cookies).ok()?.split(';').filter_map(|pair| pair.trim().split_once('='));
        let (_, value) = pairs.find(|(key, _)| !name.is_empty() && *key == name)?;
        Some(value.trim_matches('"'))
    }

    /// Returns the headers that another service is asked with; a token of the address goes into `Authorization`.
    /// Names the address that the request comes from.
    pub fn at(self, address: Option<IpAddr>) -> Self {
        Self { address, ..self }
    }

    pub(super) fn address(&self) -> Option<IpAddr> {
        self.address
    }

    pub(super) fn into_headers(self) -> ForwardedHeaders {
        let Self { authorization, cookies, address_token, uri, address: _ } = self;
        let authorization = authorization.or_else(|| address_token.map(|token| format!("{BEARER} {token}")));
        ForwardedHeaders { authorization, cookies, uri }
    }
}

/// Headers of a question to another service. They are never printed.
pub(super) struct ForwardedHeaders {
    pub authorization: Option<String>,
    pub cookies: Vec<u8>,
    pub uri: String,
}

impl ForwardedHeaders {
    /// Tells if the credentials are values that a header may have. Others are nobody's, and no question is asked for them.
    pub fn can_be_sent(&self) -> bool {
        let is_value = |bytes: &[u8]| HeaderValue::from_bytes(bytes).is_ok();
        is_value(&self.cookies) && self.authorization.as_deref().is_none_or(|value| is_value(value.as_bytes()))
    }

    /// Identifies the credentials and what they are to allow. Each part has its length before it, so that no separator in
    /// one of them can make two questions look like one.
    pub fn fingerprint(&self, wanted: &Wanted) -> Fingerprint {
        let job: &[&[u8]] = match wanted {
            Wanted::Job(job) => &[b"job", job.as_str().as_bytes()],
            Wanted::AllJobs => &[b"all jobs"],
        };
        let authorization: &[&[u8]] = match &self.authorization {
            Some(text) => &[b"authorization", text.as_bytes()],
            None => &[b"no authorization"],
        };
        Fingerprint::of([authorization, &[&self.cookies], job].concat())
    }
}

/// A hash of credentials, to look them up by without keeping them.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Fingerprint([u8; 32]);

impl Fingerprint {
    pub fn of<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }
}

/// Returns `?` and the parameters of a query that Jobcast knows, as they are written; nothing where there are none.
fn known_parameters(query: &str, known: impl Fn(&str) -> bool) -> String {
    let name = |pair: &str| form_urlencoded::parse(pair.as_bytes()).next().map(|(name, _)| name.into_owned());
    let pairs = query.split('&').filter(|pair| name(pair).is_some_and(|name| name != TOKEN_PARAMETER && known(&name)));
    let pairs: Vec<&str> = pairs.collect();
    if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Texts = &'static [&'static str];

    fn caller(authorization: Texts, cookies: Texts, query: &str) -> Result<Caller, Refusal> {
        let bytes = |texts: &'static [&'static str]| texts.iter().map(|text| text.as_bytes());
        Caller::new(bytes(authorization), bytes(cookies), ("/path", query), |name| name == "wait")
    }

    #[test]
    fn the_header_comes_before_the_address_and_both_before_the_cookie() {
        let token = |authorization: Texts, cookies: Texts, query: &str| {
            caller(authorization, cookies, query).expect("a caller").token("session").map(str::to_string)
        };
        let all: (Texts, Texts, &str) = (&["Bearer a"], &["x=1; session=c"], "access_token=b");
        assert_eq!(token(all.0, all.1, all.2).as_deref(), Some("a"));
        assert_eq!(token(&["bearer  a"], all.1, all.2).as_deref(), Some("a"));
        assert_eq!(token(&["Basic dTpw"], all.1, all.2).as_deref(), Some("b"));
        assert_eq!(token(&[], all.1, "").as_deref(), Some("c"));
        assert_eq!(token(&[], &["x=1", "session=\"c\"; session=d"], "").as_deref(), Some("c"));
        for cookies in [&["xsession=c"] as Texts, &["session="], &["Session=c"], &["=c"]] {
            assert_eq!(token(&[], cookies, ""), None, "{cookies:?}");
        }
        for empty in [&["Bearer"] as Texts, &["Bearer "]] {
            assert_eq!(token(empty, all.1, all.2), None, "an empty one was chosen, too");
        }
        assert_eq!(token(&[], all.1, "access_token="), None);
    }

    #[test]
    fn credentials_that_two_readers_could_understand_differently_count_for_nobody() {
        assert!(caller(&["Bearer a", "Bearer b"], &[], "").is_err());
        assert!(caller(&[], &[], "access_token=a&access_token=b").is_err());
        assert!(caller(&["Bearer \u{e4}"], &[], "").is_err());
    }

    #[test]
    fn another_service_is_asked_for_the_address_without_what_could_be_a_credential() {
        let uri = |query: &str| caller(&[], &[], query).expect("a caller").into_headers().uri;
        assert_eq!(uri("wait=5&access_token=x&key=y&wait=%20"), "/path?wait=5&wait=%20");
        assert_eq!(uri("access%5Ftoken=x"), "/path");
        let asked = caller(&[], &[], "access_token=x").expect("a caller").into_headers();
        assert_eq!(asked.authorization.as_deref(), Some("Bearer x"));
    }

    #[test]
    fn no_two_questions_share_a_fingerprint_or_a_header() {
        let job = |id: &str| Wanted::Job(id.parse().expect("an id"));
        let print = |authorization: Texts, cookies: Texts, wanted: &Wanted| {
            caller(authorization, cookies, "").expect("a caller").into_headers().fingerprint(wanted)
        };
        let all = [
            print(&[], &[], &Wanted::AllJobs),
            print(&[], &[], &job("*")),
            print(&[], &[], &job("all jobs")),
            print(&["a"], &["b"], &job("c")),
            print(&["b"], &["a"], &job("c")),
            print(&[], &["ab"], &job("c")),
            print(&["ab"], &[], &job("c")),
            print(&["a"], &["bc"], &job("d")),
            print(&["a"], &["b"], &job("cd")),
            print(&["a:b"], &["c"], &job("d")),
            print(&["a"], &["b:c"], &job("d")),
            print(&[""], &["c"], &job("d")),
            print(&[], &["c"], &job("d")),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(!all[index + 1..].contains(one), "number {index} has a twin");
        }
        for (id, header) in [
            ("build-7", "build-7"),
            ("*", "%2A"),
            (" x", "%20x"),
            ("a%20b", "a%2520b"),
            ("a b", "a%20b"),
            ("ü/x", "%C3%BC/x"),
        ] {
            assert_eq!(job(id).header(), header);
        }
        assert_eq!(Wanted::AllJobs.header(), "*");
        assert!(!format!("{:?}", caller(&["Bearer hunter2"], &[], "")).contains("hunter2"));
    }
}
