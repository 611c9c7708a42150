//! The cryptography of tokens, by ring, which TLS uses as well. `jsonwebtoken` brings none of its own: it asks whatever
//! was installed.

use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind, new_error};
use jsonwebtoken::signature::{self, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use ring::hmac;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
    VerificationAlgorithm,
};

/// Verifies signatures, and makes none.
static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: |_, _| Err(new_error(ErrorKind::Provider("Jobcast signs nothing".into()))),
    verifier_factory: |algorithm, key| Ok(Box::new(RingVerifier::new(*algorithm, key)?)),
    key_utils: KeyUtils::new_unimplemented(),
};

/// Makes ring the cryptography of this process' tokens. Another call changes nothing.
pub fn install() {
    let _ = PROVIDER.install_default();
}

/// Checks signatures with one key by one algorithm.
struct RingVerifier {
    algorithm: Algorithm,
    key: Key,
}

enum Key {
    Hmac(hmac::Key),
    RsaComponents(RsaPublicKeyComponents<Vec<u8>>),
    Public(UnparsedPublicKey<Vec<u8>>),
}

impl RingVerifier {
    /// Fails where the algorithm is none of ours, or the key is one for another.
    fn new(algorithm: Algorithm, key: &DecodingKey) -> Result<Self, Error> {
        if key.family() != algorithm.family() {
            return Err(new_error(ErrorKind::InvalidKeyFormat));
        }
        let public = |by: &'static dyn VerificationAlgorithm| {
            key.try_get_as_bytes().map(|bytes| Key::Public(UnparsedPublicKey::new(by, bytes.to_vec())))
        };
        let key = match (algorithm, key.kind()) {
            (Algorithm::HS256, _) => Key::Hmac(hmac::Key::new(hmac::HMAC_SHA256, key.try_get_as_bytes()?)),
            (Algorithm::RS256, DecodingKeyKind::RsaModulusExponent { n, e }) => {
                Key::RsaComponents(RsaPublicKeyComponents { n: n.clone(), e: e.clone() })
            }
            (Algorithm::RS256, _) => public(&RSA_PKCS1_2048_8192_SHA256)?,
            (Algorithm::ES256, _) => public(&ECDSA_P256_SHA256_FIXED)?,
            (Algorithm::EdDSA, _) => public(&ED25519)?,
            _ => return Err(new_error(ErrorKind::UnsupportedAlgorithm)),
        };
        Ok(Self { algorithm, key })
    }
}

impl Verifier<Vec<u8>> for RingVerifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        let verified = match &self.key {
            Key::Hmac(key) => hmac::verify(key, message, signature),
            Key::RsaComponents(key) => key.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature),
            Key::Public(key) => key.verify(message, signature),
        };
        verified.map_err(|_| signature::Error::new())
    }
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}
