//! A web server of the tests' own, whose answers can be changed while it runs: a key set, or an API that is asked.

use super::address;
use super::tls::Authority;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Asked {
    pub path: String,
    /// In lower case, in the order of their arrival.
    pub headers: Vec<(String, String)>,
    /// As its Content-Length says.
    pub body: Vec<u8>,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// An answer, or none.
#[derive(Clone, Debug)]
pub enum Reply {
    Answer {
        status: u16,
        headers: String,
        body: String,
    },
    /// This answer after a while.
    Late(Duration, Box<Reply>),
    /// The connection stays open, and nothing comes.
    Silence,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self::Answer { status, headers: String::new(), body: String::new() }
    }

    pub fn body(body: impl ToString) -> Self {
        Self::Answer { status: 200, headers: String::new(), body: body.to_string() }
    }

    pub fn with_header(status: u16, header: &str) -> Self {
        Self::Answer { status, headers: format!("{header}\r\n"), body: String::new() }
    }
}

type Handler = Arc<dyn Fn(&Asked) -> Reply + Send + Sync>;

pub struct Web {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    handler: Arc<Mutex<Handler>>,
}

impl Web {
    pub async fn start(handler: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        Self::serve(|_| None, handler).await
    }

    /// One that speaks TLS, and has a certificate for its address.
    pub async fn start_tls(authority: &Authority, handler: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        Self::serve(|ip| Some(authority.acceptor(&ip.to_string())), handler).await
    }

    async fn serve(
        tls: impl FnOnce(IpAddr) -> Option<TlsAcceptor>,
        handler: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address::free()).await.expect("a listener");
        let web = Self {
            address: listener.local_addr().expect("an address"),
            asked: Arc::default(),
            handler: Arc::new(Mutex::new(Arc::new(handler))),
        };
        let (tls, asked, handler) = (tls(web.address.ip()), web.asked.clone(), web.handler.clone());
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (tls, asked, handler) = (tls.clone(), asked.clone(), handler.clone());
                tokio::spawn(async move {
                    let _ = match tls {
                        None => serve(socket, &asked, &handler).await,
                        Some(tls) => serve(tls.accept(socket).await?, &asked, &handler).await,
                    };
                    std::io::Result::Ok(())
                });
            }
        });
        web
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Answers otherwise from now on.
    pub fn set(&self, handler: impl Fn(&Asked) -> Reply + Send + Sync + 'static) {
        *self.handler.lock().expect("a handler") = Arc::new(handler);
    }

    /// All requests so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("the requests").clone()
    }
}

async fn serve(
    mut socket: impl AsyncRead + AsyncWrite + Unpin,
    asked: &Mutex<Vec<Asked>>,
    handler: &Mutex<Handler>,
) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            if socket.read_buf(&mut bytes).await? == 0 {
                return Ok(());
            }
        };
        let mut body = bytes.split_off(end);
        let head = String::from_utf8_lossy(&std::mem::take(&mut bytes)).into_owned();
        let mut lines = head.lines();
        let path = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default().to_string();
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_lowercase(), value.to_string())).collect();
        let mut request = Asked { path, headers, body: Vec::new() };
        let length = request.header("content-length").map_or(0, |length| length.parse().expect("a length"));
        while body.len() < length {
            if socket.read_buf(&mut body).await? == 0 {
                return Ok(());
            }
        }
        request.body = body;
        let handler = handler.lock().expect("a handler").clone();
        let mut reply = handler(&request);
        asked.lock().expect("the requests").push(request);
        loop {
            match reply {
                Reply::Late(after, then) => {
                    tokio::time::sleep(after).await;
                    reply = *then;
                }
                Reply::Silence => {
                    std::future::pending::<()>().await;
                    return Ok(());
                }
                Reply::Answer { status, headers, body } => {
                    let length = body.len();
                    let answer = format!("HTTP/1.1 {status} X\r\n{headers}Content-Length: {length}\r\n\r\n{body}");
                    socket.write_all(answer.as_bytes()).await?;
                    break;
                }
            }
        }
    }
}
