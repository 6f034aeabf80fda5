//! Rules for subjects, patterns and consumer groups, the same in both adapters. They are those of NATS, so that what works in one
//! process works on a server too.

use super::{ConsumerOptions, QueueError, Stream};

/// Longest subject in bytes; the server's limit for a line is 4 kB.
pub(super) const SUBJECT_LENGTH_MAX: usize = 2_000;

fn has_sound_tokens(subject: &str) -> bool {
    subject.len() <= SUBJECT_LENGTH_MAX
        && subject.split('.').all(|token| !token.is_empty())
        && !subject.chars().any(|c| c.is_whitespace() || c.is_control())
}

/// Whether something can be sent on the subject: no empty token, no wildcard, no blank.
pub(super) fn is_subject(subject: &str) -> bool {
    has_sound_tokens(subject) && subject.split('.').all(|token| token != "*" && token != ">")
}

/// Whether one can listen to the pattern: `>` only at the end.
pub(super) fn is_pattern(pattern: &str) -> bool {
    let before_last = pattern.rsplit_once('.').map_or("", |(before, _)| before);
    has_sound_tokens(pattern) && before_last.split('.').all(|token| token != ">")
}

/// The stream of a subject, or why it cannot be queued.
pub(super) fn queued_in(subject: &str) -> Result<Stream, &'static str> {
    if !is_subject(subject) {
        return Err("it is not a valid subject");
    }
    Stream::of_subject(subject).ok_or("no stream takes this subject")
}

/// Refuses subjects that cannot be broadcast on: a stream would store it and hand it to a worker.
pub(super) fn check_broadcast(subject: &str) -> Result<(), QueueError> {
    let refuse =
        |reason: &str| Err(QueueError { action: format!("broadcast on {subject}"), reason: reason.to_owned() });
    if !is_subject(subject) {
        return refuse("it is not a valid subject");
    }
    match Stream::of_subject(subject) {
        Some(stream) => refuse(&format!("the subject belongs to the stream {}", stream.name())),
        None => Ok(()),
    }
}

/// Refuses patterns that are not valid.
pub(super) fn check_pattern(pattern: &str) -> Result<(), QueueError> {
    if is_pattern(pattern) {
        return Ok(());
    }
    Err(QueueError { action: format!("listen to {pattern}"), reason: "it is not a valid pattern".into() })
}

/// Refuses groups that a server would refuse or, worse, take differently than meant.
pub(super) fn check_group(stream: Stream, options: &ConsumerOptions) -> Result<(), QueueError> {
    let name = &options.durable_name;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let reason = if name.is_empty() || name.len() > 200 || !name.chars().all(plain) {
        "its name must be 1 to 200 of A-Z a-z 0-9 _ -"
    } else if options.in_flight_max == 0 {
        "in_flight_max must be at least 1"
    } else if options.acknowledge_within.is_zero() {
        "acknowledge_within must be longer than nothing"
    } else {
        return Ok(());
    };
    Err(QueueError { action: group_action(stream, name), reason: reason.into() })
}

/// The action of an error that occurs while a consumer is created.
pub(super) fn group_action(stream: Stream, durable_name: &str) -> String {
    format!("create consumer {durable_name} on {}", stream.name())
}

/// Whether a subject matches a pattern: `*` is one token, a last `>` one or more.
pub(super) fn matches(pattern: &str, subject: &str) -> bool {
    let mut tokens = subject.split('.');
    for wanted in pattern.split('.') {
        match (wanted, tokens.next()) {
            (">", Some(_)) => return true,
            ("*", Some(_)) => {}
            (wanted, Some(token)) if wanted == token => {}
            _ => return false,
        }
    }
    tokens.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_nats() {
        for (pattern, subject, matched) in [
            ("a.b", "a.b", true),
            ("a.b", "a.b.c", false),
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.*.c", "a.b.c", true),
            ("a.*.c", "a.b.d", false),
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            (">", "a", true),
            ("*", "a.b", false),
            ("a.*.>", "a.b.c.d", true),
            ("a.*.>", "a.b", false),
        ] {
            assert_eq!(matches(pattern, subject), matched, "{pattern} and {subject}");
        }
    }

    #[test]
    fn unsound_subjects_and_patterns_are_refused() {
        for bad in ["", ".", "a..b", "a b", "a.", ".a", "a\r\nPUB x", "a.>", "*", &"a".repeat(SUBJECT_LENGTH_MAX + 1)] {
            assert!(!is_subject(bad), "{bad}");
        }
        assert!(is_subject("lake.rows.a~2Fb.case._"));
        assert!(is_pattern(">") && is_pattern("a.*.>") && is_pattern("a.b"));
        assert!(!is_pattern(">.a") && !is_pattern("a.>.b") && !is_pattern("a. .b") && !is_pattern(""));
    }

    #[test]
    fn streams_and_broadcasts_keep_apart() {
        assert_eq!(queued_in("lake.rows.a.case.b"), Ok(Stream::Rows));
        assert!(
            queued_in("lake.rows").is_err() && queued_in("lake.told.a").is_err() && queued_in("lake.rows.").is_err()
        );
        assert!(check_broadcast("lake.told.a").is_ok() && check_broadcast("lake.rows.a").is_err());
    }
}
