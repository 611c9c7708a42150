//! One request of an HTTP/2 connection, and its answer by the actix app. The request becomes what the same request over
//! HTTP/1.1 would be, so that no handler can tell them apart: the authority is in `Host`, the address is a path, and the
//! cookies are in one line (RFC 9113, sections 8.2.3 and 8.3.1).

use super::frames::Frames;
use crate::delivery::socket::Stalled;
use actix_http::body::{BodySize, BoxBody, MessageBody};
use actix_http::error::PayloadError;
use actix_http::header::{self, HeaderMap, HeaderName, HeaderValue, TryIntoHeaderValue};
use actix_http::{
    BoxedPayloadStream, HttpMessage, Method, Payload, Request, Response, ResponseHead, StatusCode, Uri, Version,
};
use actix_service::Service;
use actix_web::dev::ServiceResponse;
use bytes::Bytes;
use futures_util::stream;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::{Duration, SystemTime};
use tokio::time::timeout;

/// Header lines of a request, at most; actix takes as many of HTTP/1.1.
const MAX_HEADERS: usize = 96;
/// Bytes of an answer that are offered to the connection at a time: one DATA frame.
const PIECE_BYTES: usize = 16 * 1024;
/// Header lines that belong to a connection of HTTP/1.1 and not to an answer (RFC 9113, section 8.2.2).
const OF_HTTP_1: [&str; 5] = ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"];

/// A request, and the way back to who made it.
pub struct Exchange {
    pub(super) request: ::http::Request<RecvStream>,
    pub(super) respond: SendResponse<Bytes>,
    pub(super) frames: Frames,
    pub(super) write_timeout: Duration,
}

/// A request that cannot be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// It breaks the protocol: its stream is reset.
    Malformed,
    Answer(StatusCode),
}

/// The end of a stream before its answer was complete. Nobody is left to be told.
struct Broken;

impl From<h2::Error> for Broken {
    fn from(_: h2::Error) -> Self {
        Self
    }
}

impl Exchange {
    /// Has `app` answer the request, and sends the answer to its end.
    pub async fn answer<S, B>(self, app: &S, peer: Option<SocketAddr>, connection: &Stalled)
    where
        S: Service<Request, Response = ServiceResponse<B>>,
        S::Error: Into<Response<BoxBody>>,
        B: MessageBody,
    {
        let Self { request, mut respond, frames, write_timeout } = self;
        let stalled = connection.of_stream();
        let is_head = request.method() == ::http::Method::HEAD;
        let waits_to_send = expects_continue(&request);
        let request = match translate(request, peer) {
            Ok(request) => request,
            Err(Refusal::Malformed) => return respond.send_reset(Reason::PROTOCOL_ERROR),
            Err(Refusal::Answer(status)) => {
                let _ = respond.send_response(head(Response::new(status).head(), BodySize::Sized(0)), true);
                return;
            }
        };
        if waits_to_send {
            let mut go_on = ::http::Response::new(());
            *go_on.status_mut() = ::http::StatusCode::CONTINUE;
            // A client that has gone is noticed below.
            let _ = respond.send_informational(go_on);
        }
        request.extensions_mut().insert(stalled.clone());
        let Some(answered) = unless_reset(&mut respond, app.call(request)).await else { return };
        let sender = Sender { frames, write_timeout, stalled, is_head };
        let sent = match answered {
            Ok(response) => sender.send::<B>(respond, response.into()).await,
            Err(error) => sender.send(respond, error.into()).await,
        };
        if sent.is_err() {
            tracing::trace!("a stream of HTTP/2 ended before its answer");
        }
    }
}

/// Waits for the app, unless the client takes its request back.
async fn unless_reset<T>(respond: &mut SendResponse<Bytes>, answer: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        answered = answer => Some(answered),
        _ = poll_fn(|cx| respond.poll_reset(cx)) => None,
    }
}

// ---- the request

/// Tells if the client sends its content only once it is told to (RFC 9110, section 10.1.1). It is told at once, as actix
/// tells one of HTTP/1.1.
fn expects_continue(request: &::http::Request<RecvStream>) -> bool {
    let expected = request.headers().get(::http::header::EXPECT);
    expected.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
        && !request.body().is_end_stream()
}

fn translate(request: ::http::Request<RecvStream>, peer: Option<SocketAddr>) -> Result<Request, Refusal> {
    let (parts, content) = request.into_parts();
    if parts.headers.len() > MAX_HEADERS {
        return Err(Refusal::Answer(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE));
    }
    let mut translated = Request::with_payload(payload(content));
    let head = translated.head_mut();
    head.version = Version::HTTP_2;
    head.peer_addr = peer;
    head.method = Method::from_bytes(parts.method.as_str().as_bytes()).map_err(|_| Refusal::Malformed)?;
    // CONNECT has no path, and nothing here that it could mean.
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    head.uri = path.parse::<Uri>().map_err(|_| Refusal::Answer(StatusCode::BAD_REQUEST))?;
    head.headers = headers(&parts.headers)?;
    if let Some(authority) = parts.uri.authority() {
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| Refusal::Malformed)?;
        let is_other =
            head.headers.get_all(header::HOST).any(|named| !named.as_bytes().eq_ignore_ascii_case(host.as_bytes()));
        if is_other || authority.as_str().contains('@') {
            return Err(Refusal::Malformed);
        }
        head.headers.insert(header::HOST, host);
    }
    Ok(translated)
}

/// Translates header lines from one version of the `http` crate to the other.
fn headers(from: &::http::HeaderMap) -> Result<HeaderMap, Refusal> {
    let mut headers = HeaderMap::with_capacity(from.len());
    let mut cookies: Vec<u8> = Vec::new();
    for (name, value) in from {
        if name == ::http::header::COOKIE {
            if !cookies.is_empty() {
                cookies.extend_from_slice(b"; ");
            }
            cookies.extend_from_slice(value.as_bytes());
            continue;
        }
        let name = HeaderName::from_bytes(name.as_str().as_bytes()).map_err(|_| Refusal::Malformed)?;
        headers.append(name, HeaderValue::from_bytes(value.as_bytes()).map_err(|_| Refusal::Malformed)?);
    }
    if !cookies.is_empty() {
        headers.insert(header::COOKIE, HeaderValue::from_bytes(&cookies).map_err(|_| Refusal::Malformed)?);
    }
    Ok(headers)
}

fn payload(content: RecvStream) -> Payload<BoxedPayloadStream> {
    if content.is_end_stream() {
        return Payload::None;
    }
    let pieces = stream::unfold(content, |mut content| async move {
        let piece = content.data().await?;
        let piece = piece.and_then(|bytes| {
            content.flow_control().release_capacity(bytes.len())?;
            Ok(bytes)
        });
        Some((piece.map_err(|error| PayloadError::Io(io::Error::other(error))), content))
    });
    Payload::Stream { payload: Box::pin(pieces) }
}

// ---- the answer

/// Translates the head of an answer, and adds the lines that actix adds to one of HTTP/1.1.
fn head(from: &ResponseHead, size: BodySize) -> ::http::Response<()> {
    let mut head = ::http::Response::new(());
    *head.version_mut() = ::http::Version::HTTP_2;
    // Both versions of the `http` crate know the same statuses, names and values.
    *head.status_mut() = ::http::StatusCode::from_u16(from.status.as_u16()).unwrap_or_default();
    let mut put = |name: &HeaderName, value: &HeaderValue| {
        let name = ::http::HeaderName::from_bytes(name.as_str().as_bytes());
        let value = ::http::HeaderValue::from_bytes(value.as_bytes());
        if let (Ok(name), Ok(value)) = (name, value) {
            head.headers_mut().append(name, value);
        }
    };
    for (name, value) in from.headers.iter() {
        if !OF_HTTP_1.contains(&name.as_str()) && *name != header::CONTENT_LENGTH {
            put(name, value);
        }
    }
    if let BodySize::Sized(bytes) = size {
        put(&header::CONTENT_LENGTH, &HeaderValue::from(bytes));
    }
    if !from.headers.contains_key(header::DATE)
        && let Ok(date) = header::HttpDate::from(SystemTime::now()).try_into_value()
    {
        put(&header::DATE, &date);
    }
    head
}

/// The sending of one answer.
struct Sender {
    frames: Frames,
    write_timeout: Duration,
    stalled: Stalled,
    /// The head is all of the answer.
    is_head: bool,
}

impl Sender {
    async fn send<B: MessageBody>(
        &self,
        mut respond: SendResponse<Bytes>,
        response: Response<B>,
    ) -> Result<(), Broken> {
        let size = match response.status() {
            StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED => BodySize::None,
            _ => response.body().size(),
        };
        let is_whole = self.is_head || size.is_eof();
        let mut stream = respond.send_response(head(response.head(), size), is_whole)?;
        if is_whole {
            return Ok(());
        }
        let mut body = pin!(response.into_body());
        while let Some(piece) = next(&mut stream, body.as_mut()).await? {
            self.send_piece(&mut stream, piece).await?;
        }
        stream.send_data(Bytes::new(), true)?;
        Ok(())
    }

    /// Sends bytes as the client's windows and the socket take them.
    async fn send_piece(&self, stream: &mut SendStream<Bytes>, mut piece: Bytes) -> Result<(), Broken> {
        while !piece.is_empty() {
            stream.reserve_capacity(piece.len().min(PIECE_BYTES));
            if stream.capacity() == 0 {
                let taken = timeout(self.write_timeout, poll_fn(|cx| stream.poll_capacity(cx))).await;
                let Ok(capacity) = taken else {
                    self.stalled.set();
                    stream.send_reset(Reason::CANCEL);
                    return Err(Broken);
                };
                capacity.ok_or(Broken)??;
            }
            let part = piece.split_to(piece.len().min(stream.capacity()).min(PIECE_BYTES));
            if part.is_empty() {
                continue; // A window that was opened and shut again.
            }
            self.frames.sent_data(part.len());
            stream.send_data(part, false)?;
        }
        Ok(())
    }
}

/// Returns the next bytes of an answer. Fails if the client has gone, or the body has.
async fn next<B: MessageBody>(stream: &mut SendStream<Bytes>, mut body: Pin<&mut B>) -> Result<Option<Bytes>, Broken> {
    let next = poll_fn(|cx| match body.as_mut().poll_next(cx) {
        Poll::Ready(next) => Poll::Ready(Ok(next)),
        Poll::Pending => stream.poll_reset(cx).map(|_| Err(Broken)),
    });
    match next.await? {
        None => Ok(None),
        Some(Ok(bytes)) => Ok(Some(bytes)),
        Some(Err(error)) => {
            let error: Box<dyn std::error::Error> = error.into();
            tracing::debug!(%error, "an answer broke off");
            stream.send_reset(Reason::INTERNAL_ERROR);
            Err(Broken)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_that_come_in_pieces_are_one_line_and_other_lines_stay_apart() {
        let mut from = ::http::HeaderMap::new();
        for (name, value) in
            [("cookie", "a=1"), ("forwarded", "for=192.0.2.1"), ("cookie", "b=2"), ("forwarded", "for=_x")]
        {
            from.append(name, value.parse().expect("a value"));
        }
        let headers = headers(&from).expect("a translation");
        let all = |name: &str| headers.get_all(name).map(|value| value.to_str().expect("text")).collect::<Vec<_>>();
        assert_eq!(all("cookie"), ["a=1; b=2"]);
        assert_eq!(all("forwarded"), ["for=192.0.2.1", "for=_x"]);
    }

    #[test]
    fn an_answer_has_no_lines_of_a_connection_and_says_its_length_once() {
        let mut response = Response::new(StatusCode::OK);
        for (name, value) in [("connection", "close"), ("transfer-encoding", "chunked"), ("content-length", "9")] {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            response.headers_mut().append(name, HeaderValue::from_static(value));
        }
        let head = head(response.head(), BodySize::Sized(5));
        assert_eq!(head.headers().get_all("content-length").iter().collect::<Vec<_>>(), ["5"]);
        assert!(head.headers().contains_key("date"));
        assert_eq!(head.headers().len(), 2);
    }
}
