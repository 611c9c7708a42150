//! Answers with events as JSON, and the memory that all of them may hold together until their callers have taken them.

use super::problem::Problem;
use actix_web::body::{BodySize, MessageBody};
use actix_web::http::header;
use actix_web::{HttpResponse, HttpResponseBuilder};
use bytes::Bytes;
use serde::Serialize;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of payloads in one answer, at most.
const LARGE: usize = 1 << 20;
/// Large answers that are held at a time, at most.
const MAX_LARGE: usize = 64;
/// Bytes of payloads in an answer while so many large ones are held.
const SMALL: usize = 16 * 1024;
/// Bytes that the connection is given at a time: what it holds it copies.
const PIECE: usize = 16 * 1024;

/// Room for the answers of the process; cheap to clone.
#[derive(Clone)]
pub struct Answers(Arc<Semaphore>);

impl Default for Answers {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_LARGE)))
    }
}

/// Room for one answer, until its last byte is taken.
pub struct Room(Option<OwnedSemaphorePermit>);

impl Answers {
    /// Returns room for an answer: for a large one where there is any, else for a small one. Its caller asks again for the
    /// rest.
    pub fn room(&self) -> Room {
        Room(self.0.clone().try_acquire_owned().ok())
    }
}

impl Room {
    /// Bytes of payloads that the answer may have.
    pub fn bytes(&self) -> usize {
        if self.0.is_some() { LARGE } else { SMALL }
    }

    /// Answers with JSON.
    pub fn json(self, mut response: HttpResponseBuilder, body: &impl Serialize) -> Result<HttpResponse, Problem> {
        let bytes = serde_json::to_vec(body).map_err(|error| Problem::internal(error.to_string()))?;
        let body = Pieces { rest: bytes.into(), room: self };
        Ok(response.insert_header(header::ContentType::json()).body(body))
    }
}

/// The bytes of an answer that the connection has not taken yet.
struct Pieces {
    rest: Bytes,
    /// Held until the body is dropped, which is when all of it was taken, or its caller is gone.
    room: Room,
}

impl MessageBody for Pieces {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Sized(self.rest.len() as u64)
    }

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, Infallible>>> {
        if self.rest.is_empty() {
            self.room = Room(None);
            return Poll::Ready(None);
        }
        let piece = self.rest.len().min(PIECE);
        Poll::Ready(Some(Ok(self.rest.split_to(piece))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_that_nobody_reads_make_the_next_ones_small_until_they_are_gone() {
        let answers = Answers::default();
        let held: Vec<Room> = (0..MAX_LARGE).map(|_| answers.room()).collect();
        assert!(held.iter().all(|room| room.bytes() == LARGE));
        assert_eq!(answers.room().bytes(), SMALL);
        drop(held);
        assert_eq!(answers.room().bytes(), LARGE);
    }
}
