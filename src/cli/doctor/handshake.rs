//! A TLS handshake as a browser begins it, to see whether the certificate is good and which version of HTTP is chosen.

use reqwest::Url;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

pub enum HandshakeError {
    /// There is no connection.
    NoAnswer(io::Error),
    /// There is one, and the two sides do not agree.
    Tls(String),
}

/// Returns the protocol that was chosen by ALPN (RFC 7301), such as `h2`; empty if none was.
pub fn protocol(url: &Url, roots: RootCertStore, patience: Duration) -> Result<Vec<u8>, HandshakeError> {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let port = url.port_or_known_default().unwrap_or(443);
    let mut socket = connect(host, port, patience).map_err(HandshakeError::NoAnswer)?;
    let mut connection = client(host, roots).map_err(|error| HandshakeError::Tls(error.to_string()))?;
    match connection.complete_io(&mut socket) {
        Ok(_) => Ok(connection.alpn_protocol().unwrap_or_default().to_vec()),
        // rustls puts its own errors into those of the input and output.
        Err(error) => Err(HandshakeError::Tls(error.to_string())),
    }
}

fn client(host: &str, roots: RootCertStore) -> Result<ClientConnection, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let name = ServerName::try_from(host.to_string()).map_err(|error| rustls::Error::General(error.to_string()))?;
    ClientConnection::new(Arc::new(config), name)
}

fn connect(host: &str, port: u16, patience: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, patience) {
            Ok(socket) => {
                socket.set_read_timeout(Some(patience))?;
                socket.set_write_timeout(Some(patience))?;
                return Ok(socket);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}
