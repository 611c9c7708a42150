//! The live page, the client for any page (built from `client/`), and the description of the addresses. All of it is part
//! of the binary; nothing is loaded from elsewhere.

use super::App;
use actix_web::http::header;
use actix_web::middleware::DefaultHeaders;
use actix_web::{HttpResponse, web};

/// A file of the page, compiled into the binary.
pub struct Asset {
    pub path: &'static str,
    /// Media type.
    kind: &'static str,
    text: &'static str,
}

macro_rules! script {
    ($file:literal) => {
        Asset { path: concat!("/page/", $file), kind: JAVASCRIPT, text: include_str!(concat!("page/", $file)) }
    };
}

const CLIENT: &str = "/jobcast.js";
/// The element `<jobcast-log>`, which loads the client.
const ELEMENT: &str = "/jobcast-log.js";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

pub const ASSETS: &[Asset] = &[
    Asset { path: "/", kind: "text/html; charset=utf-8", text: include_str!("page/index.html") },
    Asset { path: "/page.css", kind: "text/css; charset=utf-8", text: include_str!("page/page.css") },
    Asset { path: "/page.js", kind: JAVASCRIPT, text: include_str!("page/page.js") },
    Asset { path: CLIENT, kind: JAVASCRIPT, text: include_str!("page/jobcast.js") },
    Asset { path: ELEMENT, kind: JAVASCRIPT, text: include_str!("page/jobcast-log.js") },
    script!("address.js"),
    script!("describe.js"),
    script!("dom.js"),
    script!("ended.js"),
    script!("history.js"),
    script!("job.js"),
    script!("jobs.js"),
    script!("lines.js"),
    script!("live.js"),
    script!("marker.js"),
    script!("names.js"),
    script!("output.js"),
    script!("payload.js"),
    script!("row.js"),
    script!("save.js"),
    script!("search.js"),
    script!("steps.js"),
    script!("terminal.js"),
    script!("time.js"),
    script!("timeline.js"),
    script!("token.js"),
    script!("tools.js"),
    script!("watched.js"),
];

/// The policy of the page: scripts, styles and requests of its own, and no other thing at all.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'self'";
/// Mark by which the page shows what is there for trying things out.
const NO_DEMO: &str = r#"<meta name="jobcast-demo" content="no">"#;
const DEMO: &str = r#"<meta name="jobcast-demo" content="yes">"#;
const OPENAPI: &str = include_str!("openapi.json");

impl Asset {
    /// Returns true for the client and its element, which pages of others load too: they are served without the live page.
    pub fn is_client(&self) -> bool {
        matches!(self.path, CLIENT | ELEMENT)
    }

    pub fn answer(&self, app: &App) -> HttpResponse {
        let mut text = with_paths(self.text, app);
        if app.settings.is_demo {
            text = text.replace(NO_DEMO, DEMO);
        }
        HttpResponse::Ok().insert_header((header::CONTENT_TYPE, self.kind)).body(text)
    }
}

/// Headers of every file: it is asked for again before it is used again, and may load nothing from elsewhere.
pub fn headers() -> DefaultHeaders {
    DefaultHeaders::new()
        .add((header::CACHE_CONTROL, "no-cache"))
        .add((header::CONTENT_SECURITY_POLICY, POLICY))
        .add((header::REFERRER_POLICY, "no-referrer"))
}

pub async fn openapi(app: web::Data<App>) -> HttpResponse {
    HttpResponse::Ok().insert_header((header::CONTENT_TYPE, "application/json")).body(with_paths(OPENAPI, &app))
}

/// Replaces the default paths, which the files are written with, by `http.stream_path` and `http.events_path`.
fn with_paths(text: &str, app: &App) -> String {
    let defaults = crate::config::Http::default();
    let quoted = |path: &str| format!("\"{path}\"");
    text.replace(&quoted(&defaults.stream_path), &quoted(&app.settings.stream_path))
        .replace(&quoted(&defaults.events_path), &quoted(&app.settings.events_path))
}
