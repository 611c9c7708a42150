//! A proxy before two Jobcasts, run from its file in `deploy/proxies/`.

use super::address::{self, host};
use super::tls::Authority;
use super::{Daemon, eventually, http};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;
use tokio::net::TcpStream;

/// The programs that Debian has, and two that it has not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Nginx,
    Caddy,
    Haproxy,
    Varnish,
    Envoy,
    Traefik,
}

/// A program that Debian does not have: the one that a variable names (`ENVOY` for `envoy`), else the one on `PATH`.
pub fn program(name: &str) -> Option<PathBuf> {
    let named = std::env::var_os(name.to_uppercase()).filter(|file| !file.is_empty()).map(PathBuf::from);
    let on_path = || {
        let folders = std::env::var_os("PATH")?;
        std::env::split_paths(&folders).map(|folder| folder.join(name)).find(|file| file.is_file())
    };
    named.or_else(on_path)
}

pub struct Proxy {
    child: Child,
    _folder: TempDir,
    pub http: SocketAddr,
    /// Listener with TLS and HTTP/2; only nginx's and Traefik's files have one.
    pub https: SocketAddr,
    /// The authority that has certified it as `localhost`.
    pub authority: Authority,
}

impl Proxy {
    /// Starts one from its own file, with the addresses of this test in place of the file's.
    pub async fn start(kind: Kind, to: [&Daemon; 2]) -> Self {
        Self::start_changed(kind, to, &[]).await
    }

    /// Starts one whose file has been changed: each first text, which must occur, to its second.
    pub async fn start_changed(kind: Kind, to: [&Daemon; 2], changes: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a directory");
        // the file that the program is given first, and those that it names
        let names: &[&str] = match kind {
            Kind::Nginx => &["nginx.conf"],
            Kind::Caddy => &["Caddyfile"],
            Kind::Haproxy => &["haproxy.cfg"],
            Kind::Varnish => &["varnish.vcl"],
            Kind::Envoy => &["envoy.yaml"],
            Kind::Traefik => &["traefik.yaml", "traefik-routes.yaml"],
        };
        let (http, https) = (address::free(), address::free());
        let ports = [
            ("8000", http),
            ("8443", https),
            ("8080", to[0].http),
            ("8081", to[1].http),
            ("9464", to[0].admin),
            ("9465", to[1].admin),
        ];
        let own = folder.path().display().to_string();
        let places = [
            ("127.0.0.1", host().to_string()),
            ("/etc/jobcast", own.clone()),
            ("/run", own.clone()),
            ("/tmp/nginx", format!("{own}/nginx")),
        ];
        for name in names {
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/proxies").join(name);
            let mut text = std::fs::read_to_string(file).expect("the proxy's file");
            for (from, to) in changes {
                assert!(text.contains(from), "{name} has no {from:?}");
                text = text.replace(from, to);
            }
            text = with_ports(&text, &ports);
            for (written, real) in &places {
                text = text.replace(written, real);
            }
            std::fs::write(folder.path().join(name), text).expect("the proxy's file");
        }
        let authority = Authority::new("proxies");
        let (certificate, key) = authority.certify("localhost");
        std::fs::write(folder.path().join("tls.crt"), certificate.pem()).expect("a certificate");
        std::fs::write(folder.path().join("tls.key"), key.serialize_pem()).expect("a key");
        let mut command = command(kind, &folder.path().join(names[0]), http, folder.path());
        let child = command.stdout(Stdio::null()).spawn().unwrap_or_else(|error| panic!("{kind:?}: {error}"));
        let proxy = Self { child, _folder: folder, http, https, authority };
        eventually("the proxy to listen", async || TcpStream::connect(http).await.ok()).await;
        // Traefik listens before it has read its routes, and answers 404 until then.
        let has_routes = async || http::request(http, "GET", "/live/", &[], b"").await.status != 404;
        eventually("the proxy's routes", async || has_routes().await.then_some(())).await;
        proxy
    }

    pub fn url(&self) -> String {
        format!("http://{}/live", self.http)
    }
}

/// The text with each port that it names in place of another, none of which is taken for part of a longer number.
fn with_ports(text: &str, ports: &[(&str, SocketAddr)]) -> String {
    let is_digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit());
    let mut parts: Vec<String> = Vec::new();
    for c in text.chars() {
        match parts.last_mut() {
            Some(part) if is_digit(part.chars().last()) == c.is_ascii_digit() => part.push(c),
            _ => parts.push(c.into()),
        }
    }
    let real =
        |part: &String| ports.iter().find(|(written, _)| written == part).map(|(_, real)| real.port().to_string());
    parts.iter().map(|part| real(part).unwrap_or_else(|| part.clone())).collect()
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One process that stays in the foreground, so that its end is the end of the proxy.
fn command(kind: Kind, config: &Path, listen: SocketAddr, folder: &Path) -> Command {
    let found = |name: &str| {
        let path = Path::new("/usr/sbin").join(name);
        Command::new(if path.exists() { path } else { name.into() })
    };
    let mut command = match kind {
        Kind::Nginx => {
            let mut nginx = found("nginx");
            nginx.arg("-c").arg(config).args(["-e", "stderr", "-g", "daemon off; master_process off;"]);
            nginx
        }
        Kind::Caddy => {
            let mut caddy = found("caddy");
            caddy.args(["run", "--adapter", "caddyfile", "--config"]).arg(config);
            caddy
        }
        Kind::Haproxy => {
            let mut haproxy = found("haproxy");
            haproxy.args(["-db", "-q", "-f"]).arg(config);
            haproxy
        }
        Kind::Varnish => {
            let mut varnish = found("varnishd");
            varnish.args(["-F", "-j", "none", "-T", "none", "-p", "pipe_timeout=90", "-a", &listen.to_string()]);
            varnish.arg("-f").arg(config).arg("-n").arg(folder.join("varnish"));
            varnish
        }
        Kind::Envoy => {
            let mut envoy = Command::new(program("envoy").expect("Envoy, which the test has looked for"));
            // Several on one machine would share memory for handing connections over to each other.
            envoy.args(["--disable-hot-restart", "--concurrency", "1", "-c"]).arg(config);
            envoy
        }
        Kind::Traefik => {
            let mut traefik = Command::new(program("traefik").expect("Traefik, which the test has looked for"));
            // It looks for the file of its routes in the folder that it runs in.
            traefik.arg("--configFile").arg(config).current_dir(folder);
            traefik
        }
    };
    // What a proxy logs is of no interest while it works.
    command.env("HOME", folder).env("XDG_DATA_HOME", folder).env("XDG_CONFIG_HOME", folder).stderr(Stdio::null());
    command
}
