//! Names of a job's keys, and the slot of a Cluster that a key is in.

use crate::config;
use crate::event::JobId;

/// The name of a key, with a place for the job's id.
#[derive(Clone, Debug)]
pub struct KeyTemplate {
    before: String,
    /// `None`: there is no such place, and all jobs have the one key.
    after: Option<String>,
}

impl KeyTemplate {
    /// Returns `None` where the text has no such place: then no key is meant.
    pub fn new(text: &str) -> Option<Self> {
        let (before, after) = text.split_once(config::Redis::JOB_ID)?;
        Some(Self { before: before.into(), after: Some(after.into()) })
    }

    /// The one key of all jobs.
    pub fn one(key: &str) -> Self {
        Self { before: key.into(), after: None }
    }

    pub fn key(&self, job: &JobId) -> String {
        match &self.after {
            Some(after) => [&self.before, job.as_str(), after].concat(),
            None => self.before.clone(),
        }
    }

    /// Returns the job that a key belongs to.
    pub fn job(&self, key: &str) -> Option<JobId> {
        key.strip_prefix(&*self.before)?.strip_suffix(self.after.as_deref()?)?.parse().ok()
    }

    /// Returns the pattern for SCAN. It matches all such keys, and perhaps some others.
    pub fn pattern(&self) -> String {
        let literal = |text: &str| {
            let special = |c: char| matches!(c, '*' | '?' | '[' | ']' | '\\' | '^').then_some('\\');
            text.chars().flat_map(|c| special(c).into_iter().chain([c])).collect::<String>()
        };
        match &self.after {
            Some(after) => format!("{}*{}", literal(&self.before), literal(after)),
            None => literal(&self.before),
        }
    }
}

/// The number of slots in every Cluster.
pub const SLOTS: u16 = 16384;

/// Returns the slot of a key (Redis Cluster specification, "Key distribution model" and "Hash tags").
pub fn slot(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    let hashed = tag.filter(|tag| !tag.is_empty()).unwrap_or(key);
    hashed.bytes().fold(0, crc16) % SLOTS
}

/// Updates a CRC-16/XMODEM by one byte.
fn crc16(crc: u16, byte: u8) -> u16 {
    let [high, low] = crc.to_be_bytes();
    (u16::from(low) << 8) ^ CRC16[usize::from(high ^ byte)]
}

/// The CRC-16/XMODEM of each byte alone: every read computes slots.
const CRC16: [u16; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < table.len() {
        let (mut crc, mut bit) = ((byte as u16) << 8, 0);
        while bit < 8 {
            crc = (crc << 1) ^ if crc & 0x8000 != 0 { 0x1021 } else { 0 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!("123456789".bytes().fold(0, crc16), 0x31c3);
        assert_eq!(slot("foo"), 12182);
        assert_eq!(slot("{user1000}.following"), slot("user1000"));
        assert_eq!(slot("foo{}{bar}"), "foo{}{bar}".bytes().fold(0, crc16) % SLOTS);
        assert_eq!(slot("foo{{bar}}zap"), slot("{bar"));
    }

    #[test]
    fn a_key_is_taken_apart_into_the_job_that_it_was_made_of() {
        let template = KeyTemplate::new("a[b]:$job_id:events").expect("a template");
        let job: JobId = "7:*".parse().expect("a job");
        assert_eq!(template.key(&job), "a[b]:7:*:events");
        assert_eq!(template.job(&template.key(&job)), Some(job));
        assert_eq!(template.job("a[b]::events"), None);
        assert_eq!(template.job("a[b]:7"), None);
        assert_eq!(template.pattern(), "a\\[b\\]:*:events");
        assert!(KeyTemplate::new("events").is_none());
    }
}
