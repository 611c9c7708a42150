//! Keys that signatures are verified with. The kind of key fixes the algorithm, before any token is seen: what a token says
//! of its own algorithm is only compared.

use super::SetupError;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject;
use std::path::Path;

/// Bytes of an RSA modulus, at least: ring takes no key below 2048 bits.
const MIN_RSA_BYTES: usize = 256;
/// Bytes of a point of P-256 that is not compressed, with the mark before it (SEC 1, section 2.3.3).
const P256_BYTES: usize = 65;
/// The object identifier of P-256 in DER (RFC 5480, section 2.1.1.1).
const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

/// A key with the one algorithm that it is for. It is never printed.
pub struct Key {
    pub key: DecodingKey,
    pub algorithm: Algorithm,
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        use DecodingKeyKind::{RsaModulusExponent, SecretOrDer};
        let is_same = match (self.key.kind(), other.key.kind()) {
            (SecretOrDer(one), SecretOrDer(other)) => one == other,
            (RsaModulusExponent { n, e }, RsaModulusExponent { n: other_n, e: other_e }) => {
                (n, e) == (other_n, other_e)
            }
            _ => false,
        };
        is_same && self.algorithm == other.algorithm
    }
}

impl Key {
    /// A secret that both sides have, for HS256.
    pub fn from_secret(secret: &str) -> Self {
        Self { key: DecodingKey::from_secret(secret.as_bytes()), algorithm: Algorithm::HS256 }
    }

    /// Reads the file of `auth.jwt.key_file`.
    pub fn from_file(file: &Path) -> Result<Self, SetupError> {
        let pem = std::fs::read(file).map_err(|cause| SetupError::KeyFile { file: file.into(), cause })?;
        Self::from_pem(&pem).map_err(|problem| SetupError::NoKey { file: file.into(), problem })
    }

    /// Reads one public key. The error says what there is instead, and what to do.
    fn from_pem(pem: &[u8]) -> Result<Self, &'static str> {
        let text = String::from_utf8_lossy(pem);
        let labels: Vec<&str> =
            text.lines().filter_map(|line| line.trim().strip_prefix("-----BEGIN ")?.strip_suffix("-----")).collect();
        match labels[..] {
            ["PUBLIC KEY" | "RSA PUBLIC KEY"] => {}
            ["CERTIFICATE"] => {
                return Err("is a certificate; take its key out: openssl x509 -pubkey -noout -in FILE");
            }
            [label] if label.ends_with("PRIVATE KEY") => {
                return Err(
                    "is a private key, which Jobcast must not have; make the public one: openssl pkey -pubout -in FILE",
                );
            }
            [] => return Err("is no PEM; it must hold a public key, from \"-----BEGIN PUBLIC KEY-----\" on"),
            [_] => return Err("holds no public key: it must begin with \"-----BEGIN PUBLIC KEY-----\""),
            _ => return Err("holds more than one PEM; keep only the public key"),
        }
        let bytes = |key: &DecodingKey| key.try_get_as_bytes().map_or(0, <[u8]>::len);
        if let Ok(key) = DecodingKey::from_ed_pem(pem) {
            return Ok(Self { key, algorithm: Algorithm::EdDSA });
        }
        if let Ok(key) = DecodingKey::from_ec_pem(pem) {
            let is_p256 = SubjectPublicKeyInfoDer::from_pem_slice(pem)
                .is_ok_and(|der| der.as_ref().windows(P256.len()).any(|part| part == P256));
            if !is_p256 || bytes(&key) != P256_BYTES {
                return Err("is on another curve than P-256, or compressed; tokens may be signed by ES256 only");
            }
            return Ok(Self { key, algorithm: Algorithm::ES256 });
        }
        match DecodingKey::from_rsa_pem(pem) {
            Ok(key) if bytes(&key) >= MIN_RSA_BYTES => Ok(Self { key, algorithm: Algorithm::RS256 }),
            Ok(_) => Err("is an RSA key of fewer than 2048 bits; make a longer one"),
            Err(_) => Err("is no key that can be read; it must be of RSA, P-256 or Ed25519"),
        }
    }

    /// Takes a key of a key set. `None` for one that is not for signatures by RS256, ES256 or EdDSA; a secret is never taken
    /// from a set that anybody may read.
    pub fn from_jwk(jwk: &Jwk) -> Option<Self> {
        let common = &jwk.common;
        let is_for_signatures =
            common.public_key_use.as_ref().is_none_or(|purpose| *purpose == PublicKeyUse::Signature)
                && common.key_operations.as_ref().is_none_or(|operations| operations.contains(&KeyOperations::Verify));
        let (key, algorithm) = match &jwk.algorithm {
            AlgorithmParameters::RSA(rsa) => {
                let number = |text: &str| Some(without_zeros(URL_SAFE_NO_PAD.decode(text).ok()?));
                let (modulus, exponent) = (number(&rsa.n)?, number(&rsa.e)?);
                (modulus.len() >= MIN_RSA_BYTES)
                    .then(|| (DecodingKey::from_rsa_raw_components(&modulus, &exponent), Algorithm::RS256))?
            }
            AlgorithmParameters::EllipticCurve(point) if point.curve == EllipticCurve::P256 => {
                (DecodingKey::from_jwk(jwk).ok()?, Algorithm::ES256)
            }
            AlgorithmParameters::OctetKeyPair(point) if point.curve == EllipticCurve::Ed25519 => {
                (DecodingKey::from_jwk(jwk).ok()?, Algorithm::EdDSA)
            }
            _ => return None,
        };
        let is_named = common.key_algorithm.is_none_or(|named| named == KeyAlgorithm::from(algorithm));
        (is_for_signatures && is_named).then_some(Self { key, algorithm })
    }
}

/// Returns a number without the zeros that some sets begin it with, which ring does not take.
fn without_zeros(number: Vec<u8>) -> Vec<u8> {
    number.into_iter().skip_while(|byte| *byte == 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const ED: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n";
    const EC: &str = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEMKBCTNIcKUSDii11ySs3526iDZ8A\niTo7Tu6KPAqv7D7gS2XpJFbZiItSs3m9+9Ue6GnvHw/GW2ZZaVtszggXIw==\n-----END PUBLIC KEY-----\n";

    #[test]
    fn a_file_that_holds_anything_but_one_public_key_is_refused_with_what_to_do() {
        let algorithm = |pem: &str| Key::from_pem(pem.as_bytes()).map(|key| key.algorithm);
        assert_eq!(algorithm(ED), Ok(Algorithm::EdDSA));
        assert_eq!(algorithm(EC), Ok(Algorithm::ES256));
        let labelled = |label: &str| ED.replace("PUBLIC KEY", label);
        for (pem, part) in [
            (labelled("PRIVATE KEY"), "-pubout"),
            (labelled("EC PRIVATE KEY"), "-pubout"),
            (labelled("CERTIFICATE"), "openssl x509"),
            (labelled("X509 CRL"), "no public key"),
            (format!("{ED}{EC}"), "more than one"),
            ("hunter2".into(), "no PEM"),
            (String::new(), "no PEM"),
            (ED.replace("MCow", "MCox"), "no key that can be read"),
            // secp256k1 beside P-256: only the object identifier differs
            (EC.replace("MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE", "MFYwEAYHKoZIzj0CAQYFK4EEAAoDQgAE"), "another curve"),
        ] {
            let problem = algorithm(&pem).expect_err(&pem);
            assert!(problem.contains(part), "{part:?}: {problem}");
        }
    }

    #[test]
    fn a_key_set_gives_only_keys_for_our_signatures() {
        let algorithm = |jwk: Value| {
            serde_json::from_value::<Jwk>(jwk).ok().and_then(|jwk| Key::from_jwk(&jwk)).map(|key| key.algorithm)
        };
        let modulus = URL_SAFE_NO_PAD.encode([&[0, 0][..], &[0xc5; 256]].concat());
        let with = |base: Value, more: Value| {
            let mut base = base;
            base.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            base
        };
        let rsa = json!({ "kty": "RSA", "n": modulus, "e": "AQAB" });
        let ed = json!({ "kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" });
        assert_eq!(algorithm(rsa.clone()), Some(Algorithm::RS256));
        assert_eq!(algorithm(ed.clone()), Some(Algorithm::EdDSA));
        assert_eq!(algorithm(with(rsa.clone(), json!({ "alg": "RS256", "use": "sig" }))), Some(Algorithm::RS256));
        for more in [
            json!({ "use": "enc" }),
            json!({ "alg": "RS512" }),
            json!({ "alg": "HS256" }),
            json!({ "alg": "RSA-OAEP" }),
            json!({ "key_ops": ["encrypt"] }),
            json!({ "n": URL_SAFE_NO_PAD.encode([0xc5; 128]) }),
            json!({ "n": "?" }),
        ] {
            assert_eq!(algorithm(with(rsa.clone(), more.clone())), None, "{more}");
        }
        assert_eq!(algorithm(json!({ "kty": "oct", "k": "aHVudGVyMg" })), None);
        assert_eq!(algorithm(with(ed, json!({ "crv": "X25519" }))), None);
    }
}
