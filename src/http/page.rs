//! The live page, the client for any page (built from `client/`), and the description of the addresses. All of it is in
//! the binary; nothing is loaded from elsewhere.

use super::App;
use actix_web::http::header;
use actix_web::{HttpResponse, web};

/// A file of the page.
pub struct Asset {
    pub path: &'static str,
    kind: &'static str,
    text: &'static str,
}

macro_rules! script {
    ($file:literal) => {
        Asset { path: concat!("/page/", $file), kind: JAVASCRIPT, text: include_str!(concat!("page/", $file)) }
    };
}

const CLIENT: &str = "/jobcast.js";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

pub const ASSETS: &[Asset] = &[
    Asset { path: "/", kind: "text/html; charset=utf-8", text: include_str!("page/index.html") },
    Asset { path: "/page.css", kind: "text/css; charset=utf-8", text: include_str!("page/page.css") },
    Asset { path: "/page.js", kind: JAVASCRIPT, text: include_str!("page/page.js") },
    Asset { path: CLIENT, kind: JAVASCRIPT, text: include_str!("page/jobcast.js") },
    script!("describe.js"),
    script!("dom.js"),
    script!("job.js"),
    script!("jobs.js"),
    script!("output.js"),
    script!("payload.js"),
    script!("steps.js"),
    script!("time.js"),
    script!("timeline.js"),
    script!("watched.js"),
];

const POLICY: &str =
    "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'";
const OPENAPI: &str = include_str!("openapi.json");

impl Asset {
    /// Pages of others load it, too: it is there without the live page.
    pub fn is_client(&self) -> bool {
        self.path == CLIENT
    }

    pub fn answer(&self, app: &App) -> HttpResponse {
        HttpResponse::Ok()
            .insert_header((header::CONTENT_TYPE, self.kind))
            .insert_header((header::CACHE_CONTROL, "no-cache"))
            .insert_header((header::CONTENT_SECURITY_POLICY, POLICY))
            .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
            .insert_header((header::REFERRER_POLICY, "no-referrer"))
            .body(with_paths(self.text, app))
    }
}

pub async fn openapi(app: web::Data<App>) -> HttpResponse {
    HttpResponse::Ok().insert_header((header::CONTENT_TYPE, "application/json")).body(with_paths(OPENAPI, &app))
}

/// The files are written with the default paths; `http.stream_path` and `http.events_path` take their place.
fn with_paths(text: &str, app: &App) -> String {
    let defaults = crate::config::Http::default();
    let quoted = |path: &str| format!("\"{path}\"");
    text.replace(&quoted(&defaults.stream_path), &quoted(&app.settings.stream_path))
        .replace(&quoted(&defaults.events_path), &quoted(&app.settings.events_path))
}
