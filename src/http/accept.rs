//! The way of a TCP connection to the protocol that it speaks: HTTP/1.1 in the clear; or TLS, and then HTTP/2 or HTTP/1.1 as
//! the handshake agrees (ALPN). All of it ends in the same actix app.

use super::bounded::{Bounded, ConnectionPermit, OpenConnections};
use super::h2::{self, Exchange, Times};
use super::limits::Refusal;
use super::server::{KEEP_ALIVE, tune};
use crate::config::Network;
use crate::delivery::StreamContext;
use crate::delivery::admission::{Admission, CountedConnection};
use crate::delivery::handoff::Connection;
use crate::delivery::socket::{Socket, Transport};
use crate::delivery::threads::Threads;
use crate::shutdown::ShutdownWatch;
use crate::telemetry;
use actix_http::Request;
use actix_http::body::{BoxBody, MessageBody};
use actix_http::{Response, error::DispatchError};
use actix_service::Service;
use actix_web::dev::ServiceResponse;
use rustls::ServerConfig;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Handshakes at work on one worker, at most. Further ones wait for their turn, for as long as a handshake may take.
const MAX_HANDSHAKES: usize = 1024;
/// Plaintext and ciphertext that one connection holds until its socket takes them, at most.
const TLS_BUFFER: usize = 16 * 1024;
/// First byte of every TLS connection: the record type of a handshake (RFC 8446, section 5.1).
const HANDSHAKE_RECORD: u8 = 22;
/// The answer to a browser that speaks HTTP where HTTPS is spoken.
const SPEAKS_HTTPS: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 44\r\n\r\nThis port speaks HTTPS: write https:// here.\n";
/// Time for a client to take that answer, and bytes that are read from it meanwhile.
const FAREWELL: (Duration, usize) = (Duration::from_secs(1), 64 * 1024);

/// The settings of connections.
#[derive(Clone)]
pub struct Rules {
    /// The rules of TLS; None for HTTP in the clear.
    pub tls: Option<Arc<ServerConfig>>,
    pub header_timeout: Duration,
    pub write_timeout: Duration,
    pub trusted_proxies: Arc<[Network]>,
    /// The connections of all workers that actix or HTTP/2 has.
    pub connections: OpenConnections,
}

/// The public listener's side of one actix worker.
pub struct Acceptor<H, A> {
    /// Serves HTTP/1.1.
    http1: H,
    app: Rc<A>,
    tls: Option<Tls>,
    rules: Rules,
    threads: Threads,
    admission: Admission,
    shutdown: ShutdownWatch,
}

struct Tls {
    acceptor: TlsAcceptor,
    handshakes: Semaphore,
}

impl<H, A, B> Acceptor<H, A>
where
    H: Service<(Bounded<Connection>, Option<SocketAddr>), Response = (), Error = DispatchError>,
    A: Service<Request, Response = ServiceResponse<B>>,
    A::Error: Into<Response<BoxBody>>,
    B: MessageBody,
{
    pub fn new(http1: H, app: Rc<A>, rules: Rules, threads: Threads, streams: StreamContext) -> Self {
        let StreamContext { admission, shutdown, .. } = streams;
        let tls = rules
            .tls
            .clone()
            .map(|config| Tls { acceptor: TlsAcceptor::from(config), handshakes: Semaphore::new(MAX_HANDSHAKES) });
        Self { http1, app, tls, rules, threads, admission, shutdown }
    }

    /// Serves a connection to its end, or until its socket has left for a delivery thread.
    pub async fn serve(&self, tcp: TcpStream) {
        let peer = tcp.peer_addr().ok();
        // Without room the socket is closed: an answer would need what there is no more of.
        let Some(held) = self.admit(peer.map(|peer| peer.ip().to_canonical())) else { return };
        tune(&tcp, self.rules.write_timeout);
        let socket = Socket::new(tcp, self.rules.write_timeout);
        let Some(tls) = &self.tls else { return self.serve_http1(Transport::Plain(socket), peer, held).await };
        let outcome = match timeout(self.rules.header_timeout, tls.shake_hands(socket)).await {
            Err(_) => "timed_out",
            Ok(Err(error)) => {
                tracing::debug!(%error, "a TLS handshake failed");
                "failed"
            }
            Ok(Ok(Greeting::PlainHttp(socket))) => {
                let _ = timeout(FAREWELL.0, answer_plain(socket)).await;
                "plain_http"
            }
            Ok(Ok(Greeting::Tls(stream))) => {
                telemetry::TLS_HANDSHAKES.increment(&[("outcome", "completed")], 1);
                return self.serve_tls(stream, peer, held).await;
            }
        };
        telemetry::TLS_HANDSHAKES.increment(&[("outcome", outcome)], 1);
    }

    /// Counts the connection, in all and for its address. None where there are too many, which is noted.
    fn admit(&self, ip: Option<IpAddr>) -> Option<Held> {
        // A trusted proxy has the connections of all of its clients.
        let is_trusted = |ip: &IpAddr| self.rules.trusted_proxies.iter().any(|network| network.contains(*ip));
        let counted = self.admission.connect().ok_or(Refusal::Connections);
        let admitted = counted.and_then(|counted| {
            let permit = self.rules.connections.admit(ip.filter(|ip| !is_trusted(ip)))?;
            Ok(Held { counted, permit })
        });
        admitted.map_err(|refusal| refusal.note(ip)).ok()
    }

    async fn serve_tls(&self, stream: Box<TlsStream<Socket>>, peer: Option<SocketAddr>, held: Held) {
        let (socket, session) = stream.get_ref();
        if session.alpn_protocol() != Some(b"h2") {
            return self.serve_http1(Transport::Tls(stream), peer, held).await;
        }
        let stalled = socket.stalled();
        let times =
            Times { header: self.rules.header_timeout, keep_alive: KEEP_ALIVE, write: self.rules.write_timeout };
        let answer = |exchange: Exchange| exchange.answer(&*self.app, peer, &stalled);
        h2::serve(stream, times, self.shutdown.clone(), answer).await;
    }

    async fn serve_http1(&self, transport: Transport, peer: Option<SocketAddr>, held: Held) {
        let Held { counted, permit } = held;
        let connection = Connection::new(transport, counted, self.threads.clone());
        let ip = peer.map(|peer| peer.ip().to_canonical());
        let connection = Bounded::new(connection, permit, self.rules.header_timeout, ip);
        if let Err(error) = self.http1.call((connection, peer)).await {
            tracing::trace!(%error, "a connection of HTTP/1.1 ended with an error");
        }
    }
}

/// The counts that a connection is part of.
struct Held {
    counted: CountedConnection,
    permit: ConnectionPermit,
}

/// A connection, by the first byte that its peer sent.
enum Greeting {
    Tls(Box<TlsStream<Socket>>),
    PlainHttp(Socket),
}

impl Tls {
    async fn shake_hands(&self, socket: Socket) -> io::Result<Greeting> {
        let _turn = self.handshakes.acquire().await.map_err(io::Error::other)?;
        let mut first = [0];
        socket.tcp().peek(&mut first).await?;
        if first[0] != HANDSHAKE_RECORD && first[0].is_ascii_uppercase() {
            return Ok(Greeting::PlainHttp(socket));
        }
        let stream = self.acceptor.accept_with(socket, |session| session.set_buffer_limit(Some(TLS_BUFFER))).await?;
        Ok(Greeting::Tls(Box::new(stream)))
    }
}

/// Tells a client that it needs HTTPS here. It reads what the client still sends, since closing before would take the
/// answer back.
async fn answer_plain(mut socket: Socket) -> io::Result<()> {
    socket.write_all(SPEAKS_HTTPS).await?;
    socket.shutdown().await?;
    let mut rest = socket.take(FAREWELL.1 as u64);
    tokio::io::copy(&mut rest, &mut tokio::io::sink()).await?;
    Ok(())
}
