//! Times as runners write them: numbers of some unit, RFC 3339, or a date and time without a zone.

use crate::config::TimestampUnit;
use crate::source::times::{parse_time, zone_of};
use jiff::Timestamp;
use jiff::tz::TimeZone;

const NANOS_PER_SECOND: i128 = 1_000_000_000;

/// The meaning of times that do not say it themselves.
#[derive(Clone, Debug)]
pub struct TimeFormat {
    /// The unit of a number.
    unit: TimestampUnit,
    /// The zone of a time without one.
    zone: TimeZone,
}

impl TimeFormat {
    /// Fails where there is no such zone ([`zone_of`]).
    pub fn new(unit: TimestampUnit, zone: &str) -> Result<Self, jiff::Error> {
        Ok(Self { unit, zone: zone_of(zone)? })
    }

    /// Reads a time. `None` for a text that is none, and for a time beyond the calendar.
    pub fn parse(&self, text: &str) -> Option<Timestamp> {
        let text = text.trim();
        match self.nanoseconds(text) {
            Some(nanoseconds) => Timestamp::from_nanosecond(nanoseconds).ok(),
            None => parse_time(text, &self.zone),
        }
    }

    /// Returns a decimal number of the unit as nanoseconds; `None` for a text that is no number.
    fn nanoseconds(&self, text: &str) -> Option<i128> {
        let (sign, digits) = match text.strip_prefix('-') {
            Some(digits) => (-1, digits),
            None => (1, text.strip_prefix('+').unwrap_or(text)),
        };
        if digits.contains(['e', 'E']) {
            let number: f64 = digits.parse().ok().filter(|number: &f64| number.is_finite())?;
            return self.nanoseconds(&format!("{number:.9}")).map(|nanoseconds| sign * nanoseconds);
        }
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !is_number(whole) || !is_number(fraction) {
            return None;
        }
        // A number with more digits than fit is beyond the calendar as well.
        let whole: i128 = whole.parse().unwrap_or(i128::MAX);
        let unit = nanoseconds_per(self.unit, whole);
        let fraction = &fraction[..fraction.len().min(9)];
        let part = fraction.parse::<i128>().unwrap_or(0) * unit / 10_i128.pow(fraction.len() as u32);
        Some(sign * whole.saturating_mul(unit).saturating_add(part))
    }
}

/// Returns the nanoseconds in a unit, which may depend on the number itself.
fn nanoseconds_per(unit: TimestampUnit, number: i128) -> i128 {
    match unit {
        TimestampUnit::S => NANOS_PER_SECOND,
        TimestampUnit::Ms => NANOS_PER_SECOND / 1_000,
        TimestampUnit::Us => NANOS_PER_SECOND / 1_000_000,
        TimestampUnit::Ns => 1,
        TimestampUnit::Auto if number < 100_000_000_000 => NANOS_PER_SECOND,
        TimestampUnit::Auto if number < 100_000_000_000_000 => NANOS_PER_SECOND / 1_000,
        TimestampUnit::Auto if number < 100_000_000_000_000_000 => NANOS_PER_SECOND / 1_000_000,
        TimestampUnit::Auto => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(unit: TimestampUnit, text: &str) -> Option<String> {
        let format = TimeFormat::new(unit, "Europe/Paris").expect("a zone");
        format.parse(text).map(|time| time.to_string())
    }

    #[test]
    fn a_time_is_a_number_of_some_unit_or_a_date_with_or_without_a_zone() {
        let noon = Some("2026-11-26T12:00:00Z".to_string());
        for text in ["1795694400", "1795694400000", "1795694400000000", "1795694400000000000", "1.7956944e9"] {
            assert_eq!(read(TimestampUnit::Auto, text), noon, "{text}");
        }
        for text in ["2026-11-26T12:00:00Z", "2026-11-26T13:00:00+01:00", "2026-11-26 13:00:00", "2026-11-26T13:00"] {
            assert_eq!(read(TimestampUnit::Auto, text), noon, "{text}");
        }
        assert_eq!(read(TimestampUnit::Auto, "1795694400.25").as_deref(), Some("2026-11-26T12:00:00.25Z"));
        assert_eq!(read(TimestampUnit::Ms, "1500").as_deref(), Some("1970-01-01T00:00:01.5Z"));
        assert_eq!(read(TimestampUnit::S, "-1").as_deref(), Some("1969-12-31T23:59:59Z"));
        let beyond = "9".repeat(60);
        for text in ["", ".", "soon", "1e999", "1.2.3", "NaN", "inf", "12026-11-26T14:00:00Z", &beyond] {
            assert_eq!(read(TimestampUnit::Auto, text), None, "{text}");
        }
        assert!(TimeFormat::new(TimestampUnit::Auto, "Mars/Olympus").is_err());
    }
}
