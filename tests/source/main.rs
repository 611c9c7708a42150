//! A source that Jobcast does not know, served by the real hub, tail, replay and HTTP in this process: whatever implements
//! `Source` and `Tail` gets the promises.

mod endings;
mod faults;
mod forgers;
mod fuzzed;
mod memory;
mod position;
mod promises;
mod sets;

use jobcast::cli::serve::serve_source;
use jobcast::config::Settings;
use jobcast::event::{JobId, JobStatus, Payload};
use jobcast::source::{NewEvent, Source};
use jobcast::telemetry::MetricsExporter;
use memory::Memory;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Longer than anything that is waited for should ever take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Metrics are counted per process, and so for all tests together.
static METRICS: LazyLock<MetricsExporter> = LazyLock::new(|| MetricsExporter::install().expect("metrics"));

/// Serves a new store on a thread of its own, to the end of the process.
async fn serve() -> (Memory, SocketAddr) {
    let store = Memory::default();
    let source = Arc::new(store.clone());
    let (started, address) = oneshot::channel();
    std::thread::spawn(move || {
        let mut settings = Settings::default();
        settings.http.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        settings.admin.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        settings.http.workers = 2;
        let serving = move |address, _| started.send(address).expect("a test that waits");
        actix_rt::System::new().block_on(async move {
            serve_source(settings, source, METRICS.clone(), serving).await.expect("served");
        });
    });
    (store, timeout(PATIENCE, address).await.expect("in time").expect("an address"))
}

fn job() -> JobId {
    "job-7".parse().expect("an id")
}

async fn append(store: &Memory, numbers: Range<usize>) {
    append_to(store, &job(), numbers).await;
}

async fn append_to(store: &Memory, job: &JobId, numbers: Range<usize>) {
    let event = |number: usize| NewEvent {
        id: format!("e-{number}"),
        step_id: None,
        kind: "step.output".into(),
        timestamp: jiff::Timestamp::now(),
        actor: None,
        payload: Payload::from_text(number.to_string()),
    };
    store.append(job, numbers.map(event).collect()).await.expect("appended");
}

/// One block of a stream that has data.
#[derive(Debug, Default)]
struct Message {
    id: Option<String>,
    event: Option<String>,
    data: String,
}

impl Message {
    fn number(&self) -> usize {
        let data: serde_json::Value = serde_json::from_str(&self.data).expect("JSON");
        data["payload"].as_u64().unwrap_or_else(|| panic!("no number: {self:?}")) as usize
    }

    fn cursor(&self) -> &str {
        self.id.as_deref().expect("a cursor")
    }
}

struct Stream(BufReader<TcpStream>);

impl Stream {
    async fn open(address: SocketAddr, after: Option<&str>) -> Self {
        Self::of(address, &job(), after).await
    }

    async fn of(address: SocketAddr, job: &JobId, after: Option<&str>) -> Self {
        let mut socket = TcpStream::connect(address).await.expect("a connection");
        let after = after.map(|cursor| format!("Last-Event-ID: {cursor}\r\n")).unwrap_or_default();
        let request = format!(
            "GET /runner-jobs/{}/events/stream HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n{after}\r\n",
            job.as_str()
        );
        socket.write_all(request.as_bytes()).await.expect("a request");
        Self(BufReader::new(socket))
    }

    /// Returns the next block that has data and is no status. Whatever is no field of a block, such as the head, is skipped.
    async fn next(&mut self) -> Message {
        loop {
            let next = self.next_or_status().await;
            if next.event.as_deref() != Some("stream.status") {
                return next;
            }
        }
    }

    async fn next_or_status(&mut self) -> Message {
        let mut message = Message::default();
        loop {
            let mut line = String::new();
            let read = timeout(PATIENCE, self.0.read_line(&mut line)).await.expect("a line in time").expect("a line");
            assert!(read > 0, "the stream ended");
            match line.trim_end().split_once(": ") {
                Some(("id", id)) => message.id = Some(id.into()),
                Some(("event", event)) => message.event = Some(event.into()),
                Some(("data", data)) => message.data = data.into(),
                _ if line == "\n" && !message.data.is_empty() => return message,
                _ => {}
            }
        }
    }

    async fn take(&mut self, count: usize) -> Vec<Message> {
        let mut taken = Vec::new();
        while taken.len() < count {
            taken.push(self.next().await);
        }
        taken
    }
}

fn numbers(messages: &[Message]) -> Vec<usize> {
    messages.iter().map(Message::number).collect()
}

#[tokio::test]
async fn an_unknown_source_is_streamed_from_its_history_to_live_events_to_its_end() {
    let (store, address) = serve().await;
    append(&store, 0..50).await;
    let mut stream = Stream::open(address, None).await;
    assert_eq!(numbers(&stream.take(50).await), Vec::from_iter(0..50));
    append(&store, 50..100).await;
    assert_eq!(numbers(&stream.take(50).await), Vec::from_iter(50..100));
    append(&store, 100..103).await;
    store.set_status(&job(), JobStatus::Completed).await.expect("a status");
    assert_eq!(numbers(&stream.take(3).await), [100, 101, 102]);
    let end = stream.next().await;
    assert_eq!(end.event.as_deref(), Some("stream.complete"), "{end:?}");
    assert!(end.data.contains("COMPLETED"), "{end:?}");
}

#[tokio::test]
async fn a_reader_of_an_unknown_source_resumes_by_cursor_and_by_event_id_beside_a_live_one() {
    let (store, address) = serve().await;
    append(&store, 0..40).await;
    let mut first = Stream::open(address, None).await;
    let seen = first.take(40).await;
    for after in [seen[9].cursor(), "e-9"] {
        let mut resumed = Stream::open(address, Some(after)).await;
        assert_eq!(numbers(&resumed.take(30).await), Vec::from_iter(10..40));
    }
    let mut resumed = Stream::open(address, Some(seen[39].cursor())).await;
    append(&store, 40..45).await;
    assert_eq!(numbers(&resumed.take(5).await), Vec::from_iter(40..45));
    assert_eq!(numbers(&first.take(5).await), Vec::from_iter(40..45));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_join_an_unknown_source_at_any_moment_get_every_event_once_and_in_order() {
    const EVENTS: usize = 1000;
    let (store, address) = serve().await;
    append(&store, 0..1).await;
    let readers: Vec<_> = (0..40)
        .map(|reader: u64| {
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(5 * reader)).await;
                let mut stream = Stream::open(address, None).await;
                let seen = stream.take(EVENTS).await;
                (numbers(&seen), stream.next().await.event)
            })
        })
        .collect();
    for number in (1..EVENTS).step_by(9) {
        append(&store, number..(number + 9).min(EVENTS)).await;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    store.set_status(&job(), JobStatus::Failed).await.expect("a status");
    for reader in readers {
        let (numbers, end) = reader.await.expect("a reader");
        assert_eq!(numbers, Vec::from_iter(0..EVENTS));
        assert_eq!(end.as_deref(), Some("stream.complete"));
    }
}
