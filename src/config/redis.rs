//! The section of Redis: keys, the fields of an entry, and the signs by which a job ends.

use super::mapping::{Field, PayloadColumns, PayloadKind, TimestampUnit};
use super::source::FinalStatuses;
use super::validate::Problems;
use super::values::Secret;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Redis {
    /// redis://user:password@host:6379/0, rediss:// for TLS; several, comma-separated: a Cluster;
    /// redis+sentinel://host:26379,host:26379/service: the primary that Sentinel names. Also by
    /// JOBCAST_SOURCE__REDIS__URL_FILE.
    pub url: Secret,
    /// PEM file with the authority that rediss:// trusts; "": the public ones.
    pub root_cert: PathBuf,
    /// Key of a job's stream; with job_id_field, the key of the one stream of all jobs.
    pub events_key: String,
    /// Field of an entry that names its job, where one stream holds many jobs. Then events_key holds no $job_id.
    pub job_id_field: String,
    /// Field of an entry whose JSON is the event; "": the entry's fields are. The names in fields are members of that JSON
    /// then, "/a/b" one further inside.
    pub envelope: String,
    /// Way in which the payload is read: auto (the field payload is JSON, members of an envelope are what they are, all
    /// other fields are texts), json, text or bytes.
    pub payload_kind: PayloadKind,
    /// Unit of a timestamp that is a number: auto (by its size), s, ms, us or ns.
    pub timestamp_unit: TimestampUnit,
    /// Zone of a timestamp that is written without one, such as Europe/Paris.
    pub timestamp_zone: String,
    /// Key of what says how a job is: a hash, or a text; "": there is none.
    pub job_key: String,
    /// Field of that hash with the job's status. "/status" where the key holds a text that is JSON, "" where the text is
    /// the status itself.
    pub job_status_field: String,
    /// Field of that hash whose presence says that the job has ended, such as finishedOn.
    pub job_ended_field: String,
    /// Field of an entry that marks the end, such as done; "data = [DONE]" where it has to have this value. Without one, 0,
    /// false, no, null and none are no marks.
    pub end_marker: String,
    /// Value that says how a job ended, in the last entry or the hash, such as /data/reason. The lists in statuses say
    /// what it means; "*" in one of them is any other value.
    pub outcome: String,
    /// Names for stored types: { "20" = "info" }. A type that is not among them keeps its own.
    pub types: BTreeMap<String, String>,
    /// Fields of an entry that an event is made of. "" is none, "= text" a constant.
    pub fields: EntryFields,
    /// Texts that say, as a status or an outcome, that a job has ended.
    pub statuses: FinalStatuses,
    /// Types of events that end a job, wherever they stand in its stream.
    pub final_types: FinalStatuses,
}

/// Names of an entry's fields; "/a/b" is inside of the JSON in the field a, or in the envelope.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryFields {
    /// Id of the event. Where it is missing, the id of the entry.
    pub id: Field,
    /// Type of the event, or "= text" for the same type always. Where it is missing, the type is event.
    #[serde(rename = "type")]
    pub kind: Field,
    /// Time of the event. Where it is missing, the time in the entry's id.
    pub timestamp: Field,
    /// Writer of the event, or "= text".
    pub actor: Field,
    /// Id of the step.
    pub step_id: Field,
    /// Content of the event: a field, a list of fields for an object of them, or "*" for all fields that are not named
    /// above. With an envelope, "*" is all of its JSON.
    pub payload: PayloadColumns,
}

impl Default for EntryFields {
    fn default() -> Self {
        Self {
            id: "id".into(),
            kind: "type".into(),
            timestamp: "timestamp".into(),
            actor: "actor".into(),
            step_id: "stepId".into(),
            payload: "payload".into(),
        }
    }
}

impl Default for Redis {
    fn default() -> Self {
        Self {
            url: Secret::default(),
            root_cert: PathBuf::new(),
            events_key: "runner-jobs:$job_id:events".into(),
            job_id_field: String::new(),
            envelope: String::new(),
            payload_kind: PayloadKind::default(),
            timestamp_unit: TimestampUnit::default(),
            timestamp_zone: "UTC".into(),
            job_key: "runner-jobs:$job_id".into(),
            job_status_field: "status".into(),
            job_ended_field: String::new(),
            end_marker: String::new(),
            outcome: String::new(),
            types: BTreeMap::new(),
            fields: EntryFields::default(),
            statuses: FinalStatuses::usual_statuses(),
            final_types: FinalStatuses::default(),
        }
    }
}

impl Redis {
    /// Placeholder for the job's id in a key.
    pub const JOB_ID: &str = "$job_id";

    pub(super) fn validate(&self, is_used: bool, problems: &mut Problems) {
        let names_job = |key: &str| key.matches(Self::JOB_ID).count() == 1;
        problems.require(
            !is_used || self.url.get().is_some(),
            "source.redis.url",
            "must be given for source.kind = \"redis\", such as redis://user:password@host:6379/0",
        );
        if self.is_shared() {
            let is_one_key = !self.events_key.is_empty() && !self.events_key.contains(Self::JOB_ID);
            let help = "must be the key of one stream, without $job_id, where source.redis.job_id_field is given";
            problems.require(is_one_key, "source.redis.events_key", help);
        } else {
            problems.require(names_job(&self.events_key), "source.redis.events_key", "must hold $job_id once");
        }
        problems.require(
            self.job_key.is_empty() || names_job(&self.job_key),
            "source.redis.job_key",
            "must hold $job_id once, or be \"\" where there is none",
        );
        problems.require(
            self.job_key != self.events_key,
            "source.redis.job_key",
            "must not be source.redis.events_key",
        );
        let reads_hash = !self.job_status_field.starts_with('/');
        let help = "needs a hash: source.redis.job_status_field must be a field's name, or \"\"";
        problems.require(self.job_ended_field.is_empty() || reads_hash, "source.redis.job_ended_field", help);
        problems.require(!self.timestamp_zone.is_empty(), "source.redis.timestamp_zone", "must name a zone");
    }

    /// Tells if one stream holds many jobs.
    pub fn is_shared(&self) -> bool {
        !self.job_id_field.is_empty()
    }

    /// Tells if entries have the shape that Jobcast itself writes, so that it may append to them.
    pub fn has_own_shape(&self) -> bool {
        let reads_json = matches!(self.payload_kind, PayloadKind::Auto | PayloadKind::Json);
        !self.is_shared() && self.envelope.is_empty() && reads_json && self.fields == EntryFields::default()
    }
}
