//! The claims of a token that Jobcast reads, and the jobs that they name.

use super::Wanted;
use serde::Deserialize;

/// Claims of a token (RFC 7519, section 4.1). Those of another type make it invalid.
#[derive(Deserialize)]
pub struct Claims {
    /// Seconds since 1970, perhaps with a fraction.
    pub exp: f64,
    pub sub: Option<String>,
    /// Read only to insist on one issuer: the library compares it, and would take a list as well.
    #[serde(rename = "iss")]
    _iss: Option<String>,
    /// Read only to insist on its type, also where no audience is asked for.
    #[serde(rename = "aud")]
    _aud: Option<Audience>,
    #[serde(rename = "jobcast.jobs")]
    jobs: Option<Vec<String>>,
    jobcast: Option<Namespace>,
}

/// One name or a list of names (RFC 7519, section 4.1.3).
#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(#[expect(dead_code, reason = "only its type matters")] String),
    Several(#[expect(dead_code, reason = "only its type matters")] Vec<String>),
}

/// The other form of the claim: `{"jobcast": {"jobs": […]}}`.
#[derive(Deserialize)]
struct Namespace {
    jobs: Option<Vec<String>>,
}

impl Claims {
    /// Tells if the token lets its bearer see this: `*` allows everything, a pattern that ends in `*` every job that begins
    /// with what is before it, and any other pattern the job of that name.
    pub fn allow(&self, wanted: &Wanted) -> bool {
        let nested = self.jobcast.as_ref().and_then(|namespace| namespace.jobs.as_ref());
        // Of two lists nobody knows which one the issuer meant.
        let patterns = match (&self.jobs, nested) {
            (Some(patterns), None) | (None, Some(patterns)) => patterns,
            (None, None) | (Some(_), Some(_)) => return false,
        };
        patterns.iter().any(|pattern| match (wanted, pattern.strip_suffix('*')) {
            (Wanted::AllJobs, prefix) => prefix == Some(""),
            (Wanted::Job(job), Some(prefix)) => job.as_str().starts_with(prefix),
            (Wanted::Job(job), None) => job.as_str() == pattern,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn allows(claims: Value, job: &str) -> bool {
        let claims: Claims = serde_json::from_value(claims).expect("claims");
        claims.allow(&Wanted::Job(job.parse().expect("an id")))
    }

    #[test]
    fn a_token_allows_the_jobs_that_it_names_and_no_others() {
        let allows = |patterns: &[&str], job: &str| {
            let flat = allows(json!({ "exp": 1, "jobcast.jobs": patterns }), job);
            assert_eq!(flat, allows(json!({ "exp": 1, "jobcast": { "jobs": patterns } }), job));
            flat
        };
        for (patterns, job) in [
            (&["build-7"][..], "build-7"),
            (&["x", "build-7"], "build-7"),
            (&["team-1/*"], "team-1/a"),
            (&["team-1/*"], "team-1/a/b"),
            (&["build-*"], "build-7"),
            (&["*"], "anything"),
        ] {
            assert!(allows(patterns, job), "{patterns:?} {job}");
        }
        for (patterns, job) in [
            (&[][..], "build-7"),
            (&["build-7"], "build-70"),
            (&["build-70"], "build-7"),
            (&["Build-7"], "build-7"),
            (&["team-1/*"], "team-1"),
            (&["team-1/*"], "team-10/a"),
            (&["team-1/*"], "team-2/a"),
            (&["*-7"], "build-7"),
            (&[""], "build-7"),
            (&["b?ild-7"], "build-7"),
        ] {
            assert!(!allows(patterns, job), "{patterns:?} {job}");
        }
    }

    #[test]
    fn only_a_lone_star_allows_the_list_and_two_claims_or_none_allow_nothing() {
        let list = |claims: Value| serde_json::from_value::<Claims>(claims).expect("claims").allow(&Wanted::AllJobs);
        assert!(list(json!({ "exp": 1, "jobcast.jobs": ["a", "*"] })));
        assert!(!list(json!({ "exp": 1, "jobcast.jobs": ["a*", "**", "/*"] })));
        assert!(!list(json!({ "exp": 1 })));
        assert!(!list(json!({ "exp": 1, "jobcast.jobs": ["*"], "jobcast": { "jobs": ["*"] } })));
        for wrong in [
            json!({}),
            json!({ "exp": "1" }),
            json!({ "exp": 1, "iss": ["a"] }),
            json!({ "exp": 1, "aud": 7 }),
            json!({ "exp": 1, "aud": [7] }),
            json!({ "exp": 1, "aud": { "a": "b" } }),
            json!({ "exp": 1, "sub": 7 }),
            json!({ "exp": 1, "jobcast.jobs": "*" }),
            json!({ "exp": 1, "jobcast": { "jobs": { "*": true } } }),
        ] {
            assert!(serde_json::from_value::<Claims>(wrong.clone()).is_err(), "{wrong}");
        }
        let twice = r#"{"exp":1,"jobcast.jobs":[],"jobcast.jobs":["*"]}"#;
        assert!(serde_json::from_str::<Claims>(twice).is_err());
    }
}
