//! The server's address as the settings give it, read so that no part of it that could be a secret is taken for a name.

use crate::config;
use crate::error::{SourceCode, SourceError};
use crate::source::tls::root_certificate;
use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;
use std::borrow::Cow;

/// A reason why a text is no address of a server. It quotes nothing of the text, which may hold a password anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum NoAddress {
    #[error("it is no address such as postgres://user:password@host:5432/database")]
    Unknown,
    #[error("it begins with jdbc:, as an address for Java does")]
    Jdbc,
    #[error("its user or password has one of the characters / ? # @, which mean something in an address")]
    Unescaped,
    #[error("it names several hosts, and Jobcast connects to one")]
    SeveralHosts,
}

impl NoAddress {
    fn help(self) -> &'static str {
        match self {
            Self::Unknown => "correct it",
            Self::Jdbc => "write postgres://user:password@host:5432/database instead",
            Self::Unescaped => "write / as %2F, ? as %3F, # as %23, @ as %40 and % as %25 there",
            Self::SeveralHosts => {
                "name one that leads to a server that answers, primary or standby: that of a proxy such as HAProxy or \
                 PgBouncer, or a name in DNS that moves with the primary"
            }
        }
    }
}

/// Host or socket, port and database; never a password.
pub fn describe(options: &PgConnectOptions) -> String {
    let host = match options.get_socket() {
        Some(folder) => folder.to_string_lossy(),
        None => Cow::Borrowed(options.get_host()),
    };
    format!("{host}:{}/{}", options.get_port(), options.get_database().unwrap_or_default())
}

/// Reads the address and the certificate that the settings name.
pub fn connect_options(settings: &config::Postgres) -> Result<PgConnectOptions, SourceError> {
    let options = parse(settings.url.get().unwrap_or_default()).map_err(|problem| {
        let operation = "reading source.postgres.url";
        SourceError::new(SourceCode::CannotOpen, operation, problem.to_string(), problem.help())
    })?;
    // The driver reads the file again for each connection, so that a renewed certificate needs no restart.
    let options = match root_certificate("source.postgres.root_cert", &settings.root_cert)? {
        Some(_) => options.ssl_root_cert(&settings.root_cert),
        None => options,
    };
    Ok(options
        .application_name("jobcast")
        .statement_cache_capacity(0)
        // Poolers refuse start-up parameters that they do not know.
        .extra_float_digits(None)
        .disable_statement_logging())
}

fn parse(url: &str) -> Result<PgConnectOptions, NoAddress> {
    let (scheme, rest) = url.split_once("://").ok_or(NoAddress::Unknown)?;
    match scheme {
        "postgres" | "postgresql" => {}
        _ if scheme.starts_with("jdbc:") => return Err(NoAddress::Jdbc),
        _ => return Err(NoAddress::Unknown),
    }
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = place.split_once('/').unwrap_or((place, ""));
    let parameters = || query.split('&').map(|parameter| parameter.split_once('=').unwrap_or((parameter, "")));
    // The text before such a character would be taken for user, host and port.
    if rest.contains('#') || database.contains('@') || parameters().any(|(name, _)| name.contains('@')) {
        return Err(NoAddress::Unescaped);
    }
    let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
    let names_host = |name: &str| matches!(name, "host" | "hostaddr");
    if host.contains(',') || parameters().any(|(name, value)| names_host(name) && is_list(value)) {
        return Err(NoAddress::SeveralHosts);
    }
    // The driver wants a host behind a user also where a parameter names the socket or the host.
    let is_bare = host.is_empty() || host.starts_with(':');
    let with_host = match user.filter(|_| is_bare) {
        Some(user) => Cow::Owned(format!("{scheme}://{user}@localhost{}", &rest[user.len() + 1..])),
        None => Cow::Borrowed(url),
    };
    with_host.parse().map_err(|_| NoAddress::Unknown)
}

/// Returns true for several hosts, percent-encoded or not.
fn is_list(value: &str) -> bool {
    value.contains(',') || value.to_ascii_uppercase().contains("%2C")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_described_without_user_and_password() {
        for (url, described) in [
            ("postgres://reader:s3cret@db.internal:6543/app?sslmode=require", "db.internal:6543/app"),
            ("postgresql://reader:s3cret%2Fpart@10.0.0.1/app", "10.0.0.1:5432/app"),
            ("postgres://reader:s3c@ret@db.internal:6543/app", "db.internal:6543/app"),
            ("postgres://reader@/app?host=/run/postgresql&port=6543", "/run/postgresql:6543/app"),
            ("postgres://reader:s3cret@:6543/app?host=%2Frun%2Fpostgresql", "/run/postgresql:6543/app"),
            ("postgres://reader@%2Frun%2Fpostgresql:6543/app", "/run/postgresql:6543/app"),
            ("postgres://reader@:6543/app", "localhost:6543/app"),
        ] {
            assert_eq!(describe(&parse(url).expect(url)), described, "{url}");
        }
    }

    #[test]
    fn what_is_no_address_is_said_to_be_none_for_its_own_reason() {
        for (url, problem) in [
            ("", NoAddress::Unknown),
            ("s3cret", NoAddress::Unknown),
            ("mysql://reader:s3cret@db/app", NoAddress::Unknown),
            ("postgres://reader:s3cret@db:port/app", NoAddress::Unknown),
            ("jdbc:postgresql://reader:s3cret@db/app", NoAddress::Jdbc),
            ("jdbc:postgresql://db/app?user=reader&password=s3cret", NoAddress::Jdbc),
            ("postgres://reader:s3@cr#et/x@db:6543/app", NoAddress::Unescaped),
            ("postgres://reader:s3cr#et@db:6543/app", NoAddress::Unescaped),
            ("postgres://reader:s3@cr/et@db:6543/app", NoAddress::Unescaped),
            ("postgres://reader:1?et@db:6543/app", NoAddress::Unescaped),
            ("postgres://reader@h1:1,h2:2/app", NoAddress::SeveralHosts),
            ("postgres://reader@h1,h2/app?target_session_attrs=any", NoAddress::SeveralHosts),
            ("postgres://reader@/app?host=h1,h2", NoAddress::SeveralHosts),
            ("postgres:///app?host=h1%2ch2", NoAddress::SeveralHosts),
        ] {
            assert_eq!(parse(url).map(|options| describe(&options)).expect_err(url), problem, "{url}");
        }
    }
}
