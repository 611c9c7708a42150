//! Addresses that nothing else on this machine can take, so that a server which is killed finds its own again.
//!
//! A port that the kernel chose is given to the next outgoing connection as soon as its server is dead. Linux has
//! 16 million loopback addresses: each process of the tests takes one for itself. Outgoing connections never come from
//! it, as the kernel sends those to any loopback address from 127.0.0.1.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A listener here holds an address for as long as the process lives, however that ends.
const GUARD_PORT: u16 = 9_999;
/// Below those of outgoing connections. The bus of a Redis Cluster has the port that is 10,000 higher.
const PORTS: std::ops::Range<u16> = 10_000..20_000;
pub const BUS_OFFSET: u16 = 10_000;

/// The loopback address that this process has for itself, and what holds it.
static OWN: LazyLock<(Ipv4Addr, TcpListener)> = LazyLock::new(|| {
    let first = std::process::id();
    let candidates = (first..first + 1_000).map(|number| {
        let [_, high, middle, low] = number.to_be_bytes();
        Ipv4Addr::new(127, 64 | (high & 63), middle, low)
    });
    let mut held = candidates.filter_map(|host| Some((host, TcpListener::bind((host, GUARD_PORT)).ok()?)));
    held.next().unwrap_or_else(|| panic!("port {GUARD_PORT} is taken on every loopback address"))
});

pub fn host() -> Ipv4Addr {
    OWN.0
}

/// A port of [`host`] that no other test of this process is given.
pub fn port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    for _ in PORTS {
        let port = PORTS.start + NEXT.fetch_add(1, Ordering::Relaxed) % (PORTS.end - PORTS.start);
        // some other program may listen on all addresses
        let is_free = |port: u16| TcpListener::bind((host(), port)).is_ok();
        if is_free(port) && is_free(port + BUS_OFFSET) {
            return port;
        }
    }
    panic!("no port of {} is free", host());
}

pub fn free() -> SocketAddr {
    (host(), port()).into()
}

/// Leads from a port of `localhost` to an address of ours: for certificates, which are made out to a name. Returns the
/// port, which is held until the test ends.
pub async fn localhost_to(server: SocketAddr) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            tokio::spawn(async move {
                if let Ok(mut to) = TcpStream::connect(server).await {
                    let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
                }
            });
        }
    });
    port
}

/// A firewall before a server. It can forget the connections that are open, of those whose client has said a word: from
/// then on their bytes go nowhere, and neither side is told.
pub struct Firewall {
    pub address: SocketAddr,
    word: &'static str,
    accepted: AtomicUsize,
    /// So many of the first connections are forgotten.
    forgotten: AtomicUsize,
}

impl Firewall {
    pub async fn before(server: SocketAddr, word: &'static str) -> Arc<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (accepted, forgotten) = Default::default();
        let firewall = Arc::new(Self { address, word, accepted, forgotten });
        let own = firewall.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let number = own.accepted.fetch_add(1, Ordering::Relaxed);
                let own = own.clone();
                tokio::spawn(async move { own.relay(number, client, server).await });
            }
        });
        firewall
    }

    pub fn forget(&self) {
        self.forgotten.store(self.accepted.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Passes bytes on until one side closes its connection.
    async fn relay(&self, number: usize, mut client: TcpStream, server: SocketAddr) {
        let Ok(mut server) = TcpStream::connect(server).await else { return };
        let ((mut from_client, mut to_client), (mut from_server, mut to_server)) = (client.split(), server.split());
        let has_said_it = AtomicBool::new(false);
        let is_forgotten = || has_said_it.load(Ordering::Relaxed) && number < self.forgotten.load(Ordering::Relaxed);
        let up = async {
            let mut bytes = [0; 8192];
            while let Ok(count @ 1..) = from_client.read(&mut bytes).await {
                let passes = &bytes[..count];
                if passes.windows(self.word.len()).any(|part| part == self.word.as_bytes()) {
                    has_said_it.store(true, Ordering::Relaxed);
                }
                if !is_forgotten() && to_server.write_all(passes).await.is_err() {
                    break;
                }
            }
        };
        let down = async {
            let mut bytes = [0; 8192];
            while let Ok(count @ 1..) = from_server.read(&mut bytes).await {
                if !is_forgotten() && to_client.write_all(&bytes[..count]).await.is_err() {
                    break;
                }
            }
        };
        tokio::select! {
            () = up => {}
            () = down => {}
        }
    }
}
