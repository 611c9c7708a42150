//! The section `auth`: who may watch, how callers are asked for it, and which of these settings weaken it.

use super::Http;
use super::validate::Problems;
use super::values::{Secret, SecretUrl, duration, one_of};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// A shorter secret is none, but a slip: half of a file, say.
const MIN_SECRET_BYTES: usize = 16;
/// Bytes of a secret for HS256, at least (RFC 7518, section 3.2).
const SECRET_BYTES: usize = 32;
/// Longest difference between two clocks that is forgiven.
const MAX_LEEWAY: Duration = Duration::from_secs(600);

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Auth {
    /// none: everybody who reaches http.listen may watch every job. jwt: callers bring a token that lists jobs. forward:
    /// your API is asked for each caller and job.
    #[serde(deserialize_with = "one_of")]
    pub mode: AuthMode,
    /// Must be true for mode "none" on an address that is not loopback.
    pub allow_anonymous: bool,
    /// Time by which an open stream outlives its permission, at most.
    #[serde(with = "duration")]
    pub recheck: Duration,
    /// PEM file with the authorities that jwt.jwks_url and forward.url are trusted by; "": the public ones.
    pub root_cert: PathBuf,
    /// Tokens, for mode "jwt". One of secret, key_file and jwks_url must be given.
    pub jwt: Jwt,
    /// Questions to your API, for mode "forward".
    pub forward: Forward,
}

/// Check of a caller's permission to watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuthMode {
    None,
    Jwt,
    Forward,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Jwt {
    /// Secret of tokens signed by HS256, 32 bytes or more; "": none. Also by JOBCAST_AUTH__JWT__SECRET_FILE.
    pub secret: Secret,
    /// PEM file with the public key of tokens signed by RS256, ES256 or EdDSA; the kind of key decides which; "": none.
    pub key_file: PathBuf,
    /// Address of a JSON Web Key Set with the public keys; "": none. The keys are read again after half of auth.recheck, or
    /// five minutes, and when a token names one that is not known. Also by JOBCAST_AUTH__JWT__JWKS_URL_FILE.
    pub jwks_url: SecretUrl,
    /// Names of this service: a token must be made out to one of them (`aud`). []: tokens must be made out to nobody.
    pub audience: Vec<String>,
    /// Issuer that a token must name (`iss`); "": any.
    pub issuer: String,
    /// Cookie that may hold the token; "": none.
    pub cookie: String,
    /// Difference between the clocks of issuer and Jobcast that is forgiven; never more than half of auth.recheck.
    #[serde(with = "duration")]
    pub leeway: Duration,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Forward {
    /// Address that is asked with the caller's cookies, Authorization, X-Job-Id and X-Original-URI; 2xx lets the caller
    /// watch, 401 and 403 are passed on. Also by JOBCAST_AUTH__FORWARD__URL_FILE.
    pub url: SecretUrl,
    /// Time in which it must answer; after that the caller is told to come back.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// Time for which an answer counts for the same credentials and job; never more than half of auth.recheck.
    #[serde(with = "duration")]
    pub cache: Duration,
}

impl Default for Auth {
    fn default() -> Self {
        Self {
            mode: AuthMode::None,
            allow_anonymous: false,
            recheck: Duration::from_secs(60),
            root_cert: PathBuf::new(),
            jwt: Jwt::default(),
            forward: Forward::default(),
        }
    }
}

impl Default for Jwt {
    fn default() -> Self {
        Self {
            secret: Secret::default(),
            key_file: PathBuf::new(),
            jwks_url: SecretUrl::default(),
            audience: Vec::new(),
            issuer: String::new(),
            cookie: String::new(),
            leeway: Duration::from_secs(10),
        }
    }
}

impl Default for Forward {
    fn default() -> Self {
        Self { url: SecretUrl::default(), timeout: Duration::from_secs(5), cache: Duration::from_secs(10) }
    }
}

impl Auth {
    pub(super) fn validate(&self, problems: &mut Problems) {
        let Self { mode, allow_anonymous: _, root_cert: _, recheck, jwt, forward } = self;
        problems.require_longer_than_zero(*recheck, "auth.recheck");
        jwt.validate(problems);
        forward.validate(problems);
        let keys = jwt.given_keys();
        match mode {
            // A key without its mode would be a daemon that lets everybody in, and looks as if it did not.
            AuthMode::None => problems.require(
                keys == 0 && forward.url.get().is_none(),
                "auth.mode",
                "is none, so that everybody may watch, but auth.jwt or auth.forward is filled in; set it to jwt or forward",
            ),
            AuthMode::Jwt => problems.require(
                keys == 1,
                "auth.mode",
                "jwt needs exactly one of auth.jwt.secret, auth.jwt.key_file and auth.jwt.jwks_url",
            ),
            AuthMode::Forward => {
                problems.require(forward.url.get().is_some(), "auth.mode", "forward needs auth.forward.url");
            }
        }
    }

    /// Returns the settings that weaken who may watch, each with what follows from it.
    pub(super) fn weaknesses(&self, http: &Http) -> Vec<(&'static str, &'static str)> {
        let Self { mode, jwt, forward, .. } = self;
        let is_plain = |url: &SecretUrl| url.get().is_some_and(|url| !is_private(&url));
        let (is_jwt, is_forward) = (*mode == AuthMode::Jwt, *mode == AuthMode::Forward);
        let all = [
            (
                *mode == AuthMode::None && !http.listen.ip().is_loopback(),
                "auth.mode",
                "everybody who reaches http.listen may watch every job",
            ),
            (
                is_jwt && jwt.secret.get().is_some_and(|secret| secret.len() < SECRET_BYTES),
                "auth.jwt.secret",
                "it has fewer than 32 bytes, and can be guessed from any token",
            ),
            (
                is_jwt && jwt.jwks_url.get().is_some() && jwt.issuer.is_empty(),
                "auth.jwt.issuer",
                "a token may name any issuer, as long as a key of auth.jwt.jwks_url has signed it",
            ),
            (
                is_jwt && is_plain(&jwt.jwks_url),
                "auth.jwt.jwks_url",
                "it is no https, so whoever is on the way can put keys of their own into the answer",
            ),
            (
                is_forward
                    && forward.url.get().is_some_and(|url| !url.username().is_empty() || url.password().is_some()),
                "auth.forward.url",
                "its user and password are not sent, since they would look like credentials of the caller's",
            ),
            (
                is_forward && is_plain(&forward.url),
                "auth.forward.url",
                "it is no https, so whoever is on the way can read cookies and allow everything",
            ),
        ];
        all.into_iter().filter(|(is_weak, ..)| *is_weak).map(|(_, key, meaning)| (key, meaning)).collect()
    }
}

impl Jwt {
    /// Number of the settings that give a key.
    fn given_keys(&self) -> usize {
        let given = [self.secret.get().is_some(), !self.key_file.as_os_str().is_empty(), self.jwks_url.get().is_some()];
        given.into_iter().filter(|is_given| *is_given).count()
    }

    fn validate(&self, problems: &mut Problems) {
        problems.require(
            self.secret.get().is_none_or(|secret| secret.len() >= MIN_SECRET_BYTES),
            "auth.jwt.secret",
            "is so short that tokens can be forged by trying: it needs 32 bytes at random",
        );
        problems.require(
            !self.secret.get().is_some_and(is_public_key),
            "auth.jwt.secret",
            "is a key, not a secret: anybody who has the public key could sign tokens with it; name its PEM file in \
             auth.jwt.key_file",
        );
        problems.require(self.jwks_url.is_valid(), "auth.jwt.jwks_url", SecretUrl::WANTED);
        problems.require(self.leeway <= MAX_LEEWAY, "auth.jwt.leeway", "at most 10m");
        problems.require(
            self.audience.iter().all(|name| !name.is_empty()),
            "auth.jwt.audience",
            "a name must not be empty",
        );
        let is_name = |c: char| c.is_ascii_graphic() && !"()<>@,;:\\\"/[]?={}".contains(c);
        problems.require(
            self.cookie.chars().all(is_name),
            "auth.jwt.cookie",
            "must be the name of a cookie, such as session (RFC 6265)",
        );
    }
}

impl Forward {
    fn validate(&self, problems: &mut Problems) {
        problems.require(self.url.is_valid(), "auth.forward.url", SecretUrl::WANTED);
        problems.require_longer_than_zero(self.timeout, "auth.forward.timeout");
    }
}

/// Returns true if nobody else is on the way to this address.
fn is_private(url: &url::Url) -> bool {
    let is_loopback = match url.host() {
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    };
    is_loopback || url.scheme() == "https"
}

/// Returns true for a text that is a key of public-key cryptography in one of its usual forms: PEM, OpenSSH, JSON Web Key,
/// or DER in base64.
fn is_public_key(text: &str) -> bool {
    /// Object identifiers in DER: rsaEncryption, id-ecPublicKey (RFC 3279), id-Ed25519 as a whole AlgorithmIdentifier
    /// (RFC 8410).
    const ALGORITHMS: [&[u8]; 3] = [
        &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01],
        &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01],
        &[0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70],
    ];
    let text = text.trim();
    let is_jwk = || serde_json::from_str::<serde_json::Value>(text).is_ok_and(|json| json.is_object());
    let is_der = || {
        let plain: String = text.split_whitespace().collect();
        let der = STANDARD.decode(&plain).or_else(|_| URL_SAFE_NO_PAD.decode(&plain)).unwrap_or_default();
        ALGORITHMS.iter().any(|algorithm| der.windows(algorithm.len()).any(|part| part == *algorithm))
    };
    let is_openssh = ["ssh-", "ecdsa-sha2-", "sk-ssh-"].iter().any(|kind| text.starts_with(kind));
    text.contains("-----BEGIN") || is_openssh || is_jwk() || is_der()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_in_any_of_its_usual_forms_is_no_secret() {
        let pem = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n";
        let ec = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEMKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D7gS2XpJFbZiItSs3m9+9Ue6GnvHw/GW2ZZaVtszggXIw==";
        let ssh = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIN aa@bb";
        let jwk = "{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"x\":\"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo\"}";
        for key in [pem, &pem.replace('\n', "\\n"), pem.lines().nth(1).expect("base64"), ec, ssh, jwk] {
            assert!(is_public_key(key), "{key}");
        }
        for secret in ["hunter2", "6Jk9d0c8+e1u0oT2Vq4m1w7yq3sX5nZb8kLpRtYvUeA=", "1234567890", "MIIsecretMII"] {
            assert!(!is_public_key(secret), "{secret}");
        }
    }

    #[test]
    fn only_a_way_that_others_can_stand_on_is_a_weakness() {
        let weak = |url: &str| is_private(&url.parse().expect("an address"));
        for private in ["https://api.example.org/", "http://127.0.0.1:3000/", "http://[::1]/", "http://localhost/"] {
            assert!(weak(private), "{private}");
        }
        assert!(!weak("http://api.example.org/") && !weak("http://10.0.0.1/"));
    }
}
