//! From an entry to the event that it is, by the settings. No entry is refused: a part that cannot be read is named, and
//! hurts no other.

use super::entry::Entry;
use super::timestamp::TimeFormat;
use super::values::{Found, Place, Values, object, text_in};
use crate::config::{self, EntryFields, Field, FinalStatuses, PayloadColumns, PayloadKind};
use crate::event::{Event, JobId, JobStatus, Part, Payload, text_of};
use crate::telemetry;
use jiff::Timestamp;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};

/// The type of an entry that has none.
const NO_TYPE: &str = "event";

/// The settings about entries, ready for use.
pub struct Mapping {
    /// The field whose JSON is the event.
    envelope: Option<String>,
    job_id: Option<Place>,
    id: Origin,
    kind: Origin,
    timestamp: Origin,
    actor: Origin,
    step_id: Origin,
    payload: PayloadOrigin,
    payload_kind: PayloadKind,
    /// Fields that are parts of the event other than its payload.
    named: Vec<String>,
    time: TimeFormat,
    types: BTreeMap<String, String>,
    ending: Ending,
}

/// The origin of one part of an event.
enum Origin {
    Absent,
    At(Place),
    Constant(String),
}

impl From<&Field> for Origin {
    fn from(field: &Field) -> Self {
        match field {
            Field::Absent => Self::Absent,
            Field::Constant(text) if text.is_empty() => Self::Absent,
            Field::Constant(text) => Self::Constant(text.clone()),
            Field::Column(text) => Place::new(text).map_or(Self::Absent, Self::At),
        }
    }
}

impl Origin {
    fn text(&self, values: &Values, part: Part, unreadable: &mut Vec<Part>) -> Option<String> {
        match self {
            Self::Absent => None,
            Self::At(place) => values.find(place)?.text(part, unreadable),
            Self::Constant(text) => Some(text.clone()),
        }
    }

    fn place(&self) -> Option<&Place> {
        if let Self::At(place) = self { Some(place) } else { None }
    }
}

/// The origin of a payload.
enum PayloadOrigin {
    Absent,
    /// The field that the settings name by default. Where it is missing, so that nothing is left out: all that is in the
    /// entry besides the other parts.
    Usual(Place),
    At(Place),
    Object(Vec<Place>),
    All,
}

/// The signs by which entries say that their job has ended.
struct Ending {
    final_types: FinalStatuses,
    marker: Option<Marker>,
    outcome: Option<Place>,
    statuses: FinalStatuses,
}

/// A field that marks the end.
struct Marker {
    place: Place,
    /// The value that it has to have; `None`: any that does not say no.
    value: Option<String>,
}

/// The places in the settings, beside one entry.
pub struct Fit {
    /// Names of the entry's fields, or of the members of its envelope.
    pub names: Vec<String>,
    /// Parts of the event whose place is in the entry, each with that.
    pub found: Vec<(&'static str, String)>,
    /// Parts whose place is not in it.
    pub missing: Vec<(&'static str, String)>,
    /// There is an envelope in the settings, and no JSON in the entry's field.
    pub lacks_envelope: bool,
}

/// An entry as an event.
pub struct Mapped {
    pub event: Event,
    /// The job's final status, where the entry says that the job has ended.
    pub end: Option<JobStatus>,
}

impl Mapping {
    /// Fails where the time zone in the settings is not known.
    pub fn new(settings: &config::Redis) -> Result<Self, jiff::Error> {
        let fields = &settings.fields;
        let payload = match &fields.payload {
            PayloadColumns::Absent => PayloadOrigin::Absent,
            PayloadColumns::One(name) => match Place::new(name) {
                Some(place) if fields.payload == EntryFields::default().payload => PayloadOrigin::Usual(place),
                place => place.map_or(PayloadOrigin::Absent, PayloadOrigin::At),
            },
            PayloadColumns::Object(names) => {
                PayloadOrigin::Object(names.iter().filter_map(|name| Place::new(name)).collect())
            }
            PayloadColumns::Row => PayloadOrigin::All,
        };
        let mut mapping = Self {
            envelope: Some(settings.envelope.clone()).filter(|name| !name.is_empty()),
            job_id: Place::new(&settings.job_id_field),
            id: (&fields.id).into(),
            kind: (&fields.kind).into(),
            timestamp: (&fields.timestamp).into(),
            actor: (&fields.actor).into(),
            step_id: (&fields.step_id).into(),
            payload,
            payload_kind: settings.payload_kind,
            named: Vec::new(),
            time: TimeFormat::new(settings.timestamp_unit, &settings.timestamp_zone)?,
            types: settings.types.clone(),
            ending: Ending {
                final_types: settings.final_types.clone(),
                marker: Marker::new(&settings.end_marker),
                outcome: Place::new(&settings.outcome),
                statuses: settings.statuses.clone(),
            },
        };
        let parts = [&mapping.id, &mapping.kind, &mapping.timestamp, &mapping.actor, &mapping.step_id];
        let places = parts.into_iter().filter_map(Origin::place).chain(&mapping.job_id);
        mapping.named = places.filter_map(Place::whole).map(str::to_string).collect();
        Ok(mapping)
    }

    /// Tells if an entry may say that its job has ended.
    pub fn has_ends(&self) -> bool {
        self.ending.marker.is_some() || self.ending.final_types.all().next().is_some()
    }

    /// Returns the event that an entry of this job is, and the end that it may be.
    pub fn read(&self, entry: &Entry, job: &JobId) -> Mapped {
        let mut unreadable = Vec::new();
        let envelope = self.envelope_of(entry);
        let values = Values::new(entry, envelope.as_ref());
        let id = self.id.text(&values, Part::Id, &mut unreadable).unwrap_or_else(|| entry.id.to_string());
        let step_id = self.step_id.text(&values, Part::StepId, &mut unreadable);
        let stored = self.kind.text(&values, Part::Type, &mut unreadable);
        if stored.is_none() {
            telemetry::UNTYPED.counter(&[]).increment(1);
        }
        let stored = stored.unwrap_or_else(|| NO_TYPE.into());
        let kind = self.types.get(&stored).cloned().unwrap_or_else(|| stored.clone());
        let actor = self.actor.text(&values, Part::Actor, &mut unreadable);
        let end = self.ending.find(&values, &kind, &stored);
        let payload = match (&values.envelope, &envelope) {
            (None, Some(text)) => {
                // The mark of the end need not be an event.
                if end.is_none() || matches!(text, Cow::Owned(_)) {
                    note(Part::Payload, &mut unreadable);
                }
                Payload::text(text)
            }
            _ => self.payload(&values, &mut unreadable),
        };
        if values.envelope.is_some() && matches!(envelope, Some(Cow::Owned(_))) {
            let texts = [
                (Part::Id, Some(&*id)),
                (Part::StepId, step_id.as_deref()),
                (Part::Type, Some(&*stored)),
                (Part::Actor, actor.as_deref()),
                (Part::Payload, Some(payload.as_json())),
            ];
            texts
                .iter()
                .filter(|(_, text)| text.is_some_and(is_lossy))
                .for_each(|(part, _)| note(*part, &mut unreadable));
        }
        let timestamp = self.timestamp(&values);
        if timestamp.is_none() {
            unreadable.push(Part::Timestamp);
        }
        let event = Event { id, job_id: job.clone(), step_id, kind, timestamp, actor, payload, unreadable };
        Mapped { event, end }
    }

    /// Returns the event's id: that in its field, else the id of the entry.
    pub fn event_id(&self, entry: &Entry) -> String {
        let envelope = self.envelope_of(entry);
        let values = Values::new(entry, envelope.as_ref());
        self.id.text(&values, Part::Id, &mut Vec::new()).unwrap_or_else(|| entry.id.to_string())
    }

    /// Returns the job that an entry of a shared stream belongs to. `None` where it names none.
    pub fn job_of(&self, entry: &Entry) -> Option<JobId> {
        let place = self.job_id.as_ref()?;
        let envelope = self.envelope_of(entry);
        let values = Values::new(entry, envelope.as_ref());
        values.find(place)?.text(Part::Id, &mut Vec::new())?.parse().ok()
    }

    /// Returns the final status of the job, where this entry says that it has ended.
    pub fn end_of(&self, entry: &Entry, job: &JobId) -> Option<JobStatus> {
        if self.has_ends() { self.read(entry, job).end } else { None }
    }

    /// Compares the places in the settings with an entry.
    pub fn fit(&self, entry: &Entry) -> Fit {
        let envelope = self.envelope_of(entry);
        let values = Values::new(entry, envelope.as_ref());
        let payload: Vec<&Place> = match &self.payload {
            PayloadOrigin::Absent | PayloadOrigin::All => Vec::new(),
            PayloadOrigin::Usual(place) | PayloadOrigin::At(place) => vec![place],
            PayloadOrigin::Object(places) => places.iter().collect(),
        };
        let parts = [
            ("id", self.id.place()),
            ("type", self.kind.place()),
            ("timestamp", self.timestamp.place()),
            ("actor", self.actor.place()),
            ("step_id", self.step_id.place()),
        ];
        let parts = parts.into_iter().filter_map(|(part, place)| Some((part, place?)));
        let parts = parts.chain(payload.into_iter().map(|place| ("payload", place)));
        let (found, missing) = parts.partition::<Vec<_>, _>(|(_, place)| values.find(place).is_some());
        let named = |parts: Vec<(&'static str, &Place)>| {
            parts.into_iter().map(|(part, place)| (part, place.to_string())).collect::<Vec<_>>()
        };
        Fit {
            names: values.names(),
            found: named(found),
            missing: named(missing),
            lacks_envelope: self.envelope.is_some() && values.envelope.is_none(),
        }
    }

    fn envelope_of<'a>(&self, entry: &'a Entry) -> Option<Cow<'a, str>> {
        entry.field(self.envelope.as_ref()?).map(String::from_utf8_lossy)
    }

    /// Returns the event's time: that of its field, else that of the entry. `None` where it is no time, or beyond the
    /// calendar.
    fn timestamp(&self, values: &Values) -> Option<Timestamp> {
        let mut unreadable = Vec::new();
        match self.timestamp.text(values, Part::Timestamp, &mut unreadable) {
            Some(text) => self.time.parse(&text).filter(|_| unreadable.is_empty()),
            None => Timestamp::from_millisecond(i64::try_from(values.entry.id.ms).ok()?).ok(),
        }
    }

    fn payload(&self, values: &Values, unreadable: &mut Vec<Part>) -> Payload {
        let is_inside = values.envelope.is_some();
        match &self.payload {
            PayloadOrigin::Absent => Payload::null(),
            PayloadOrigin::Usual(place) => match values.find(place) {
                Some(Found::Bytes([])) if matches!(self.payload_kind, PayloadKind::Auto | PayloadKind::Json) => {
                    object([].into_iter())
                }
                Some(found) => self.value(found, !is_inside, unreadable),
                None => self.all(values, unreadable),
            },
            PayloadOrigin::At(place) => {
                values.find(place).map_or_else(Payload::null, |found| self.value(found, false, unreadable))
            }
            PayloadOrigin::Object(places) => {
                let found = places.iter().filter_map(|place| Some((place, values.find(place)?)));
                object(found.map(|(place, found)| (place.label().into(), self.value(found, false, unreadable))))
            }
            PayloadOrigin::All => self.all(values, unreadable),
        }
    }

    /// Returns the whole JSON of the envelope, or an object of all fields that are no other part of the event.
    fn all(&self, values: &Values, unreadable: &mut Vec<Part>) -> Payload {
        if let Some(json) = values.envelope.and_then(|json| Payload::json(json.get())) {
            return json;
        }
        let mut seen = HashSet::new();
        let fields = values.entry.fields().filter(|(name, _)| {
            let is_part = self.named.iter().any(|part| part.as_bytes() == *name);
            !is_part && seen.insert(*name)
        });
        object(fields.map(|(name, value)| {
            let name = String::from_utf8_lossy(name);
            if matches!(name, Cow::Owned(_)) {
                note(Part::Payload, unreadable);
            }
            (name, self.value(Found::Bytes(value), false, unreadable))
        }))
    }

    /// Reads a value as the settings say. `is_usual`: it is the field that is JSON unless they say otherwise.
    fn value(&self, found: Found, is_usual: bool, unreadable: &mut Vec<Part>) -> Payload {
        let text = match found {
            Found::Bytes(bytes) => {
                let mut own = Vec::new();
                let text = text_of(Part::Payload, bytes.to_vec(), &mut own);
                own.into_iter().for_each(|part| note(part, unreadable));
                text
            }
            Found::Json(raw) => match (self.payload_kind, text_in(raw)) {
                (PayloadKind::Json, Some(text)) => return Payload::json(&text).unwrap_or_else(|| json_of(raw)),
                (PayloadKind::Auto | PayloadKind::Json, _) => return json_of(raw),
                (PayloadKind::Text | PayloadKind::Bytes, text) => text.unwrap_or_else(|| raw.get().into()),
            },
        };
        let is_json = match self.payload_kind {
            PayloadKind::Auto => is_usual,
            PayloadKind::Json => true,
            PayloadKind::Text | PayloadKind::Bytes => false,
        };
        if !is_json {
            return Payload::text(&text);
        }
        Payload::json(&text).unwrap_or_else(|| {
            note(Part::Payload, unreadable);
            Payload::text(&text)
        })
    }
}

fn json_of(raw: &serde_json::value::RawValue) -> Payload {
    Payload::json(raw.get()).unwrap_or_else(Payload::null)
}

/// Tells a text of an envelope in which there were bytes that are no UTF-8: one has taken their place.
fn is_lossy(text: &str) -> bool {
    text.contains(char::REPLACEMENT_CHARACTER)
}

/// Names a part that cannot be read, once.
fn note(part: Part, unreadable: &mut Vec<Part>) {
    if !unreadable.contains(&part) {
        unreadable.push(part);
    }
}

impl Ending {
    fn find(&self, values: &Values, kind: &str, stored: &str) -> Option<JobStatus> {
        let by_type = || self.final_types.find(kind).or_else(|| self.final_types.find(stored));
        let is_marked = || self.marker.as_ref().is_some_and(|marker| marker.is_in(values));
        let usual = by_type().or_else(|| is_marked().then_some(JobStatus::Completed))?;
        let outcome = self.outcome.as_ref().and_then(|place| values.find(place));
        let outcome = outcome.and_then(|found| found.text(Part::Payload, &mut Vec::new()));
        Some(outcome.and_then(|text| self.statuses.find_outcome(&text)).unwrap_or(usual))
    }
}

impl Marker {
    /// Reads `done`, or `data = [DONE]`.
    fn new(text: &str) -> Option<Self> {
        let (place, value) = text.split_once('=').map_or((text, None), |(place, value)| (place, Some(value)));
        let value = value.map(|value| value.trim().to_string());
        Some(Self { place: Place::new(place.trim())?, value })
    }

    fn is_in(&self, values: &Values) -> bool {
        let found = values.find(&self.place).and_then(|found| found.text(Part::Payload, &mut Vec::new()));
        match (&self.value, found) {
            (_, None) => false,
            (Some(value), Some(text)) => text == *value,
            (None, Some(text)) => !["0", "false", "no", "null", "none"].iter().any(|no| text.eq_ignore_ascii_case(no)),
        }
    }
}

#[cfg(test)]
mod tests;
