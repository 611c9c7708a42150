//! Traces: spans of requests and of reads, sent to an OpenTelemetry collector where `traces.endpoint` names one.
//!
//! A span stands for one request until its answer begins, for one page of history, or for one read of the tail; never for an
//! event or a delivery, so that what is traced does not grow with the number of those who watch. Without a collector the
//! spans are not made at all. They are no part of the log, and the log's span is no part of them.

use crate::config;
use crate::logging::{self, TRACES};
use crate::outbound;
use async_trait::async_trait;
use bytes::Bytes;
use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tracing::Span;
use tracing::field::Empty;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;

/// Longest time for one request to the collector.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time for the last spans, when the process leaves.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// The spans on their way to the collector. The last of them are sent by [`Traces::end`].
pub struct Traces(SdkTracerProvider);

/// Starts to send spans, if the settings name a collector. Must be called within the runtime. Fails, with the cause, where
/// the client cannot be set up.
pub fn start(settings: &config::Traces) -> Result<Option<(Traces, logging::Traces)>, String> {
    let Some(endpoint) = settings.endpoint.get() else { return Ok(None) };
    let client = outbound::client(outbound::public_authorities())?
        .redirect(reqwest::redirect::Policy::none())
        .timeout(SEND_TIMEOUT)
        .build()
        .map_err(|error| outbound::cause(&error.without_url()))?;
    let sender = Sender { client, runtime: Handle::current(), is_failing: AtomicBool::new(false) };
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_http_client(sender)
        .with_protocol(Protocol::HttpJson)
        .with_endpoint(endpoint.as_str())
        .with_timeout(SEND_TIMEOUT)
        .build()
        .map_err(|error| error.to_string())?;
    let version = opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    // A caller's decision counts for all that is done for its request.
    let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(settings.sample)));
    let provider = SdkTracerProvider::builder()
        .with_resource(Resource::builder().with_service_name("jobcast").with_attribute(version).build())
        .with_sampler(sampler)
        .with_batch_exporter(exporter)
        .build();
    let layer = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("jobcast"))
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_filter(filter_fn(|of| of.is_span() && of.target() == TRACES));
    Ok(Some((Traces(provider), layer.boxed())))
}

impl Traces {
    /// Sends the spans that are left, for a second at most.
    pub async fn end(self) {
        // It waits for the client, which needs this runtime.
        let _ = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(END_TIMEOUT)).await;
    }
}

/// Sends spans with a client of this process's runtime, since the thread that gathers them is none of its threads.
#[derive(Debug)]
struct Sender {
    client: reqwest::Client,
    runtime: Handle,
    /// Set while the collector does not take them, which is logged once.
    is_failing: AtomicBool,
}

#[async_trait]
impl HttpClient for Sender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let sent = self.runtime.spawn(async move { client.send_bytes(request).await }).await;
        let answer = sent.map_err(HttpError::from).and_then(|sent| sent);
        let problem = match &answer {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(answer.status().to_string()),
            Err(error) => {
                Some(error.downcast_ref::<reqwest::Error>().map_or_else(|| error.to_string(), outbound::cause))
            }
        };
        let was_failing = self.is_failing.swap(problem.is_some(), Ordering::Relaxed);
        match problem {
            Some(problem) if !was_failing => tracing::warn!(problem, "traces.endpoint does not take traces"),
            None if was_failing => tracing::info!("traces.endpoint takes traces again"),
            _ => {}
        }
        answer
    }
}

/// The headers by which a trace goes on from one service to the next (W3C, "Trace Context").
pub struct TraceHeaders<'a> {
    pub traceparent: Option<&'a str>,
    pub tracestate: Option<&'a str>,
}

impl Extractor for TraceHeaders<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            "traceparent" => self.traceparent,
            "tracestate" => self.tracestate,
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

/// Begins the span of a request, within the trace that its headers name.
pub fn request(method: &str, route: Option<&str>, path: &str, headers: &TraceHeaders<'_>) -> Span {
    let span = tracing::error_span!(
        target: TRACES,
        parent: None,
        "request",
        otel.name = Empty,
        otel.kind = "server",
        otel.status_code = Empty,
        http.request.method = method,
        http.route = route,
        http.response.status_code = Empty,
        url.path = path,
    );
    if !span.is_disabled() {
        span.record("otel.name", route.map_or_else(|| method.to_string(), |route| format!("{method} {route}")));
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), headers);
        // It fails only for a span that has begun already.
        let _ = span.set_parent(parent);
    }
    span
}

/// Notes the answer to a request.
pub fn note_answer(span: &Span, status: u16) {
    // The layer knows no unsigned numbers, and would write them as text.
    span.record("http.response.status_code", i64::from(status));
    if status >= 500 {
        span.record("otel.status_code", "ERROR");
    }
}

/// Begins the span of one page of history.
pub fn history_read() -> Span {
    tracing::error_span!(target: TRACES, "history read", otel.kind = "client", otel.status_code = Empty, error.type = Empty, jobcast.events = Empty)
}

/// Begins the span of one read of the tail; `by` is its cause, as the metric names it.
pub fn tail_read(source: &'static str, by: &'static str) -> Span {
    tracing::error_span!(target: TRACES, parent: None, "tail read", otel.kind = "client", otel.status_code = Empty, error.type = Empty, jobcast.source = source, jobcast.by = by, jobcast.events = Empty)
}

/// Notes the result of a read: the number of its events, or the code of its failure.
pub fn note_read(span: &Span, result: Result<usize, &'static str>) {
    match result {
        Ok(events) => span.record("jobcast.events", i64::try_from(events).unwrap_or(i64::MAX)),
        Err(code) => span.record("otel.status_code", "ERROR").record("error.type", code),
    };
}
