//! Tokens, well-formed or not, signed by real keys.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
    RsaPublicKeyComponents,
};
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

/// ring makes no RSA keys, so the tests have one.
const RSA_KEY: &str = include_str!("rsa-key.pem");

/// Whoever signs tokens.
pub enum Signer {
    Secret(String),
    Rsa(Box<RsaKeyPair>),
    Ec(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
}

impl Signer {
    pub fn secret(secret: &str) -> Self {
        Self::Secret(secret.to_string())
    }

    pub fn rsa() -> Self {
        let base64: String = RSA_KEY.lines().filter(|line| !line.starts_with('-')).collect();
        let der = STANDARD.decode(base64).expect("base64");
        Self::Rsa(Box::new(RsaKeyPair::from_pkcs8(&der).expect("an RSA key")))
    }

    /// A new key on P-256.
    pub fn ec() -> Self {
        let (random, kind) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(kind, &random).expect("a key");
        Self::Ec(EcdsaKeyPair::from_pkcs8(kind, pkcs8.as_ref(), &random).expect("a key"))
    }

    /// A new key on Ed25519.
    pub fn ed() -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("a key");
        Self::Ed(Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).expect("a key"))
    }

    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Secret(_) => "HS256",
            Self::Rsa(_) => "RS256",
            Self::Ec(_) => "ES256",
            Self::Ed(_) => "EdDSA",
        }
    }

    /// The public key as PEM.
    pub fn pem(&self) -> String {
        let info = |prefix: &[u8], key: &[u8]| [prefix, key].concat();
        let (label, der) = match self {
            Self::Secret(_) => panic!("a secret has no public key"),
            Self::Rsa(key) => ("RSA PUBLIC KEY", key.public_key().as_ref().to_vec()),
            Self::Ec(key) => {
                let prefix = b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00";
                ("PUBLIC KEY", info(prefix, key.public_key().as_ref()))
            }
            Self::Ed(key) => {
                ("PUBLIC KEY", info(b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00", key.public_key().as_ref()))
            }
        };
        let base64 = STANDARD.encode(der);
        let lines: Vec<&str> = base64.as_bytes().chunks(64).map(|line| str::from_utf8(line).expect("ASCII")).collect();
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
    }

    /// The public key as JSON Web Key.
    pub fn jwk(&self, kid: &str) -> Value {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let mut key = match self {
            Self::Secret(secret) => json!({ "kty": "oct", "k": text(secret.as_bytes()) }),
            Self::Rsa(key) => {
                let public: RsaPublicKeyComponents<Vec<u8>> = key.public().into();
                json!({ "kty": "RSA", "n": text(&public.n), "e": text(&public.e) })
            }
            Self::Ec(key) => {
                let (x, y) = key.public_key().as_ref()[1..].split_at(32);
                json!({ "kty": "EC", "crv": "P-256", "x": text(x), "y": text(y) })
            }
            Self::Ed(key) => json!({ "kty": "OKP", "crv": "Ed25519", "x": text(key.public_key().as_ref()) }),
        };
        key["kid"] = kid.into();
        key["alg"] = self.algorithm().into();
        key
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Secret(secret) => {
                hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), message).as_ref().to_vec()
            }
            Self::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).expect("a signature");
                signature
            }
            Self::Ec(key) => key.sign(&random, message).expect("a signature").as_ref().to_vec(),
            Self::Ed(key) => key.sign(message).as_ref().to_vec(),
        }
    }

    /// A token with these claims.
    pub fn token(&self, claims: &Value) -> String {
        self.token_with(json!({}), claims)
    }

    /// A token with more in its header, or something else.
    pub fn token_with(&self, header: Value, claims: &Value) -> String {
        let mut whole = json!({ "typ": "JWT", "alg": self.algorithm() });
        whole.as_object_mut().expect("an object").extend(header.as_object().expect("an object").clone());
        self.sign_text(&whole.to_string(), &claims.to_string())
    }

    /// A token of any two texts.
    pub fn sign_text(&self, header: &str, claims: &str) -> String {
        let message = unsigned(header, claims);
        let signature = URL_SAFE_NO_PAD.encode(self.sign(message.as_bytes()));
        format!("{message}.{signature}")
    }
}

/// Header and claims of a token, without its last dot and its signature.
pub fn unsigned(header: &str, claims: &str) -> String {
    format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims))
}

/// Seconds since 1970, so many seconds from now.
pub fn seconds_from_now(seconds: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs();
    now as i64 + seconds
}

/// Claims that allow these jobs for an hour.
pub fn claims(jobs: &[&str]) -> Value {
    json!({ "sub": "ann", "exp": seconds_from_now(3600), "jobcast.jobs": jobs })
}

/// Claims with something else in them; `null` takes a claim away.
pub fn claims_with(jobs: &[&str], more: Value) -> Value {
    let mut claims = claims(jobs);
    for (name, value) in more.as_object().expect("an object") {
        if value.is_null() {
            claims.as_object_mut().expect("an object").remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    claims
}

pub fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}
