//! What a topic's settings mean for a row: pure.
//!
//! Owns the names and the reading of a topic's configuration, and what of it an operator must know
//! before the first row is lost by it. Knows no connection.

use rdkafka::admin::ConfigResource;

/// A topic's settings, as far as the cluster gives them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct TopicSettings {
    /// `max.message.bytes`
    pub(super) limit_bytes: Option<usize>,
    /// `retention.ms`; `None` where time deletes nothing.
    pub(super) retention_millis: Option<i64>,
    /// `message.timestamp.type = CreateTime`: the record's own time counts.
    pub(super) keeps_row_time: bool,
    /// `cleanup.policy` has `compact`.
    pub(super) compacts: bool,
    /// `min.insync.replicas`
    pub(super) insync_min: Option<usize>,
}

/// What is short for an outbox: a weekend's outage of a relay is longer.
const RETENTION_SHORT_MILLIS: i64 = 86_400_000;

impl TopicSettings {
    pub(super) fn read(resource: &ConfigResource) -> Self {
        Self::from_values(|name| resource.get(name).and_then(|entry| entry.value.clone()))
    }

    fn from_values(value: impl Fn(&str) -> Option<String>) -> Self {
        let policy = value("cleanup.policy").unwrap_or_default();
        let has = |word: &str| policy.split(',').any(|policy| policy.trim() == word);
        let number = |name: &str| value(name).and_then(|value| value.parse().ok());
        let retention: Option<i64> = value("retention.ms").and_then(|value| value.parse().ok());
        Self {
            limit_bytes: number("max.message.bytes"),
            // Negative: for ever.
            retention_millis: retention.filter(|millis| *millis >= 0 && has("delete")),
            keeps_row_time: value("message.timestamp.type").as_deref() == Some("CreateTime"),
            compacts: has("compact"),
            insync_min: number("min.insync.replicas"),
        }
    }

    /// So old a record may be and still be kept, where its own time counts.
    pub(super) fn age_max_millis(&self) -> Option<i64> {
        self.retention_millis.filter(|_| self.keeps_row_time)
    }

    /// What an operator should know of a topic with so many replicas, one sentence each.
    pub(super) fn warnings(&self, topic: &str, replicas: usize) -> Vec<String> {
        let mut warnings = Vec::new();
        if replicas == 1 {
            warnings.push(format!(
                "topic \"{topic}\" has replication factor 1: a broker's disk lost is its rows lost"
            ));
        }
        match self.insync_min {
            Some(least) if least > replicas => warnings.push(format!(
                "topic \"{topic}\" confirms nothing: min.insync.replicas is {least}, and it has \
                 {replicas} replicas; lower the one or add to the other"
            )),
            Some(1) if replicas > 1 => warnings.push(format!(
                "topic \"{topic}\" has min.insync.replicas = 1: a row is confirmed that only one of \
                 its {replicas} replicas has; set it to 2"
            )),
            Some(_) | None => {}
        }
        if self.compacts {
            warnings.push(format!(
                "topic \"{topic}\" is compacted: it keeps the last event of each key, and takes \
                 none without a key"
            ));
        }
        if let Some(millis) = self.age_max_millis().filter(|age| *age < RETENTION_SHORT_MILLIS) {
            warnings.push(format!(
                "topic \"{topic}\" keeps a record for {} from the row's own time \
                 (retention.ms = {millis}, message.timestamp.type = CreateTime): rows that wait \
                 longer for walpost are deleted unread; raise retention.ms, or set sink.timestamp = \
                 \"now\"",
                span(millis)
            ));
        }
        warnings
    }
}

/// Milliseconds in the largest unit that leaves a whole number.
pub(super) fn span(millis: i64) -> String {
    const UNITS: [(i64, &str); 4] =
        [(86_400_000, "days"), (3_600_000, "h"), (60_000, "min"), (1000, "s")];
    for (unit, name) in UNITS {
        if millis >= unit && millis % unit == 0 {
            return format!("{} {name}", millis / unit);
        }
    }
    format!("{millis} ms")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(values: &[(&str, &str)]) -> TopicSettings {
        TopicSettings::from_values(|name| {
            let found = values.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_age_of_a_row_counts_only_where_time_deletes_and_the_record_brings_its_own() {
        let base = [
            ("cleanup.policy", "delete"),
            ("retention.ms", "3600000"),
            ("message.timestamp.type", "CreateTime"),
        ];
        assert_eq!(settings(&base).age_max_millis(), Some(3_600_000));
        for (index, other) in [
            (0, ("cleanup.policy", "compact")),
            (1, ("retention.ms", "-1")),
            (2, ("message.timestamp.type", "LogAppendTime")),
        ] {
            let mut values = base;
            values[index] = other;
            assert_eq!(settings(&values).age_max_millis(), None, "{other:?}");
        }
        let mut both = base;
        both[0] = ("cleanup.policy", "compact, delete");
        assert_eq!(settings(&both).age_max_millis(), Some(3_600_000));
    }

    #[test]
    fn what_costs_rows_is_named_with_topic_setting_and_remedy() {
        let warned =
            |values: &[(&str, &str)], replicas| settings(values).warnings("orders", replicas);
        assert!(warned(&[("min.insync.replicas", "2")], 3).is_empty());
        assert!(warned(&[("min.insync.replicas", "2")], 1)[1].contains("confirms nothing"));
        assert!(warned(&[("min.insync.replicas", "1")], 3)[0].contains("set it to 2"));
        assert!(warned(&[("cleanup.policy", "compact")], 3)[0].contains("compacted"));
        let short = [
            ("cleanup.policy", "delete"),
            ("retention.ms", "60000"),
            ("message.timestamp.type", "CreateTime"),
        ];
        let warning = &warned(&short, 3)[0];
        assert!(warning.contains("1 min") && warning.contains("sink.timestamp"), "{warning}");
    }

    #[test]
    fn spans_are_told_in_their_largest_whole_unit() {
        for (millis, text) in
            [(1, "1 ms"), (1500, "1500 ms"), (60_000, "1 min"), (604_800_000, "7 days")]
        {
            assert_eq!(span(millis), text);
        }
    }
}
