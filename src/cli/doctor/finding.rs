//! Findings of the doctor in words, each with the line of configuration that mends it.

use crate::outbound::cause;
use reqwest::StatusCode;
use std::fmt;
use std::time::Duration;

/// Weight of a finding for whoever runs the site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    Good,
    /// Streams work, with a limit, or something could not be seen.
    Warning,
    /// Streams do not work, or not as they should.
    Problem,
}

/// One thing that was seen.
#[derive(Debug)]
pub enum Finding {
    Answers {
        job: String,
    },
    Http2,
    CorsAllowed {
        origin: String,
    },
    Heartbeat {
        silence: Duration,
    },
    NoAnswer {
        url: String,
        cause: String,
    },
    Tls {
        url: String,
        cause: String,
    },
    Refused {
        url: String,
        status: StatusCode,
        body: String,
    },
    NotJobcast {
        url: String,
    },
    NoJob,
    SixConnections {
        why: &'static str,
    },
    Cors {
        origin: String,
        seen: String,
    },
    CorsTwice {
        origin: String,
    },
    WrongHead {
        header: &'static str,
        seen: String,
        sent: &'static str,
    },
    Compressed {
        by: String,
    },
    /// The stream's first bytes came late, or not at all.
    Buffered {
        waited: Duration,
        came: Option<Duration>,
    },
    Cut {
        silence: Duration,
    },
    /// Events came in one piece that had been written over this time.
    Bunched {
        spread: Duration,
    },
    NoHeartbeat {
        silence: Duration,
    },
    Busy,
    Ended,
    Clock {
        apart: Duration,
    },
}

/// A kind of finding that configuration mends: its lines for nginx, Caddy, HAProxy, Traefik, Envoy and Cloudflare.
type Mends = [&'static str; PROXIES.len()];

const PROXIES: [&str; 6] = ["nginx", "Caddy", "HAProxy", "Traefik", "Envoy", "Cloudflare"];

const UPSTREAM: Mends = [
    "proxy_pass http://jobcast:8080/;",
    "reverse_proxy jobcast:8080",
    "server jobcast jobcast:8080 check port 9464, with option httpchk GET /readyz",
    "services.jobcast.loadBalancer.servers: [{ url: http://jobcast:8080 }]",
    "a cluster with jobcast:8080, health_checks on port 9464, path /readyz",
    "a proxied DNS record, or a tunnel with service: http://jobcast:8080",
];

const TLS: Mends = [
    "ssl_certificate with the whole chain, ssl_certificate_key",
    "the site's name as its address: Caddy then gets a certificate by itself",
    "bind :443 ssl crt /etc/haproxy/site.pem (certificate, chain and key in one file)",
    "tls: { certResolver: … } on the router",
    "transport_socket: tls with the whole chain in tls_certificates",
    "SSL/TLS mode Full (strict), and an edge certificate for this name",
];

const HTTP_2: Mends = [
    "listen 443 ssl http2;",
    "serve the site by its name, over TLS: HTTP/2 and HTTP/3 are on",
    "bind :443 ssl crt … alpn h2,http/1.1",
    "an entry point with TLS: HTTP/2 is on",
    "alpn_protocols: [h2, http/1.1] in the listener's common_tls_context",
    "Speed, Protocol optimization: HTTP/2 on",
];

const HEAD: Mends = [
    "no proxy_hide_header, add_header or error_page for the stream's location",
    "no header directive for the stream's path",
    "no http-response set-header or del-header for the stream's path",
    "no headers or errors middleware on the stream's router",
    "no response_headers_to_remove or local_reply_config for the stream's route",
    "no Transform Rule or Worker that changes the stream's answer",
];

const BUFFERING: Mends = [
    "proxy_buffering off; proxy_http_version 1.1;   and no proxy_ignore_headers X-Accel-Buffering;",
    "flush_interval -1   inside of reverse_proxy",
    "no option http-buffer-response; option http-no-delay",
    "responseForwarding: { flushInterval: -1ms }, and no buffering middleware",
    "no envoy.filters.http.buffer on the stream's route",
    "Response Buffering off, and no Worker that reads the whole body",
];

const COMPRESSION: Mends = [
    "gzip off;   in the stream's location; no text/event-stream in gzip_types or brotli_types",
    "no encode for the stream's path",
    "no text/event-stream in compression type",
    "compress: { excludedContentTypes: [text/event-stream] }",
    "no text/event-stream in the compressor's content_type",
    "a Compression Rule for the stream's path: disabled",
];

const IDLE: Mends = [
    "proxy_read_timeout 90s;",
    "no read_timeout in transport http, no write_timeout in servers timeouts",
    "timeout server 90s, timeout client 90s",
    "respondingTimeouts: { writeTimeout: 0s } on the entry point",
    "timeout: 0s on the route, stream_idle_timeout: 90s",
    "fixed at 100 s: keep stream.heartbeat below",
];

const CORS: Mends = [
    "no add_header Access-Control-…; proxy_pass OPTIONS as well",
    "no header Access-Control-…; no respond to OPTIONS",
    "no http-response set-header Access-Control-…",
    "no accessControl… in a headers middleware",
    "no envoy.filters.http.cors on the route",
    "no Transform Rule or Worker for Access-Control-…",
];

impl Finding {
    pub fn unreachable(url: &str, error: &reqwest::Error) -> Self {
        let cause = if error.is_timeout() { "it took too long".into() } else { cause(error) };
        Self::NoAnswer { url: url.into(), cause }
    }

    pub fn weight(&self) -> Weight {
        match self {
            Self::Answers { .. } | Self::Http2 | Self::CorsAllowed { .. } | Self::Heartbeat { .. } => Weight::Good,
            Self::NoJob | Self::SixConnections { .. } | Self::Busy | Self::Ended | Self::Clock { .. } => {
                Weight::Warning
            }
            Self::NoAnswer { .. }
            | Self::Tls { .. }
            | Self::Refused { .. }
            | Self::NotJobcast { .. }
            | Self::Cors { .. }
            | Self::CorsTwice { .. }
            | Self::WrongHead { .. }
            | Self::Compressed { .. }
            | Self::Buffered { .. }
            | Self::Bunched { .. }
            | Self::Cut { .. }
            | Self::NoHeartbeat { .. } => Weight::Problem,
        }
    }

    /// Name by which scripts may look for it.
    fn name(&self) -> &'static str {
        match self {
            Self::Answers { .. } | Self::NoAnswer { .. } | Self::NotJobcast { .. } => "answer",
            Self::Refused { .. } => "refused",
            Self::NoJob | Self::Ended => "job",
            Self::Tls { .. } => "tls",
            Self::Http2 | Self::SixConnections { .. } => "connections",
            Self::Cors { .. } | Self::CorsTwice { .. } | Self::CorsAllowed { .. } => "cors",
            Self::WrongHead { .. } => "head",
            Self::Compressed { .. } => "compression",
            Self::Buffered { .. } | Self::Bunched { .. } | Self::NoHeartbeat { .. } => "buffering",
            Self::Cut { .. } | Self::Heartbeat { .. } | Self::Busy => "idle",
            Self::Clock { .. } => "clock",
        }
    }

    /// Line of Jobcast's own settings, or a thing to do, that mends it where no proxy does.
    fn own_mend(&self) -> Option<String> {
        match self {
            Self::Refused { status, .. } if matches!(status.as_u16(), 401 | 403) => {
                Some("give --token, or --job with a job that this caller may watch".into())
            }
            Self::Refused { status, .. } if status.as_u16() == 404 => {
                Some("check --job, the path before /runner-jobs, and http.events_path".into())
            }
            Self::NoJob | Self::Ended => Some("start a job, or give --job with one that runs for a while".into()),
            Self::Cors { origin, .. } => Some(format!("http.cors.origins = [\"{origin}\"]")),
            Self::Cut { silence } => Some(format!(
                "or stream.heartbeat = \"{}s\", if the proxy is not yours",
                (silence.as_secs() / 2).max(1)
            )),
            Self::NoHeartbeat { .. } => Some("--watch longer than stream.heartbeat, to be sure".into()),
            Self::Clock { .. } => Some("run chrony or systemd-timesyncd on both machines".into()),
            _ => None,
        }
    }

    fn mends(&self) -> Option<&'static Mends> {
        match self {
            Self::NoAnswer { .. } | Self::NotJobcast { .. } => Some(&UPSTREAM),
            Self::Refused { status, .. } if status.is_server_error() => Some(&UPSTREAM),
            Self::Tls { .. } => Some(&TLS),
            Self::SixConnections { .. } => Some(&HTTP_2),
            Self::WrongHead { .. } => Some(&HEAD),
            Self::Compressed { .. } => Some(&COMPRESSION),
            Self::Buffered { .. } | Self::Bunched { .. } | Self::NoHeartbeat { .. } => Some(&BUFFERING),
            Self::Cut { .. } => Some(&IDLE),
            Self::Cors { .. } | Self::CorsTwice { .. } => Some(&CORS),
            _ => None,
        }
    }

    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |time: &Duration| format!("{:.1} s", time.as_secs_f64());
        match self {
            Self::Answers { job } => write!(f, "Jobcast answers for the job {job}"),
            Self::Http2 => write!(f, "browsers speak HTTP/2: any number of streams share a connection"),
            Self::CorsAllowed { origin } => write!(f, "pages of {origin} may watch"),
            Self::Heartbeat { silence } => {
                write!(f, "the stream begins at once, and its heartbeat came after {} of silence", seconds(silence))
            }
            Self::NoAnswer { url, cause } => write!(f, "{url} does not answer: {cause}"),
            Self::Tls { url, cause } => write!(f, "{url} cannot be trusted: {cause}"),
            Self::Refused { url, status, body } => {
                let body: String = body.chars().filter(|c| !c.is_control()).take(200).collect();
                write!(f, "{url} is answered with {status} {body}")
            }
            Self::NotJobcast { url } => write!(f, "{url} answers, but not as a Jobcast does"),
            Self::NoJob => write!(f, "no job is running, so no stream was watched"),
            Self::SixConnections { why } => write!(
                f,
                "browsers speak HTTP/1.1 here ({why}): six connections to a host, for all pages of a user together"
            ),
            Self::Cors { origin, seen } => {
                write!(f, "pages of {origin} may not watch: Access-Control-Allow-Origin must name it, and {seen}")
            }
            Self::CorsTwice { origin } => {
                write!(
                    f,
                    "pages of {origin} may not watch: Access-Control-Allow-Origin comes twice, as if a proxy added one"
                )
            }
            Self::WrongHead { header, seen, sent } => {
                let seen: String = seen.chars().take(100).collect();
                write!(f, "{header} is {seen:?}; Jobcast sends: {sent}")
            }
            Self::Compressed { by } => {
                write!(f, "the stream is compressed by a proxy ({by}), which holds events back until there are enough")
            }
            Self::Buffered { waited, came: None } => {
                write!(f, "nothing of the stream came in {}; Jobcast sends its first line at once", seconds(waited))
            }
            Self::Buffered { waited, .. } => {
                write!(f, "the stream's first line came after {}; Jobcast sends it at once", seconds(waited))
            }
            Self::Cut { silence } => {
                write!(f, "the stream was cut after {} of silence, before a heartbeat came", seconds(silence))
            }
            Self::Bunched { spread } => {
                write!(f, "events that were written over {} came in one piece", seconds(spread))
            }
            Self::NoHeartbeat { silence } => {
                write!(f, "the stream began, and then nothing came for {}, not even a heartbeat", seconds(silence))
            }
            Self::Busy => write!(f, "events came all the time, so no heartbeat was due: idle streams were not tried"),
            Self::Ended => write!(f, "the job ended, so idle streams were not tried"),
            Self::Clock { apart } => {
                write!(f, "this clock and the server's are {} apart: tokens run out too early or late", seconds(apart))
            }
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let weight = match self.weight() {
            Weight::Good => "ok",
            Weight::Warning => "warning",
            Weight::Problem => "problem",
        };
        write!(f, "{weight:8} {}: ", self.name())?;
        self.describe(f)?;
        if let Some(mend) = self.own_mend() {
            write!(f, "\n         Jobcast     {mend}")?;
        }
        for (proxy, line) in PROXIES.iter().zip(self.mends().into_iter().flatten()) {
            write!(f, "\n         {proxy:11} {line}")?;
        }
        Ok(())
    }
}
