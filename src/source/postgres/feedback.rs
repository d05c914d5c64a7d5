//! When the server hears from us, and what its silence and its questions mean. Pure: whoever asks
//! says what time it is.
//!
//! ```text
//!  we are silent   ── silence_max ──▶ a status update, whether anything is new or not
//!  it is silent    ── silence_max ──▶ asked for an answer ── … ── silent_after ──▶ given up
//!  it asks         ── answered at once; with nothing new at most once in ANSWER_PAUSE
//!  it asks again and again, right after each answer: it is shutting down and waits for us
//! ```

use std::time::Duration;

use tokio::time::Instant;

use super::lsn::Lsn;

/// Longest silence of ours towards a server that sets no limit.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// However short `wal_sender_timeout` is: a busy server may take so long to answer.
const SILENT_AFTER_MIN: Duration = Duration::from_secs(10);

/// How often the limit doubles at most: 16 minutes by default. See [`Feedback::new`].
const DOUBLED_MAX: u32 = 5;

/// Between two answers that say nothing new. A server that shuts down asks again as soon as it was
/// answered, and both would keep a processor busy.
const ANSWER_PAUSE: Duration = Duration::from_millis(250);

/// A question so soon after an answer comes from no clock: a live server asks after half of
/// `wal_sender_timeout` without one.
const EARLY: Duration = Duration::from_millis(200);

/// So many of them in a row are no chance.
const EARLY_QUESTIONS_MAX: u32 = 4;

/// See the module.
#[derive(Debug)]
pub(super) struct Feedback {
    ack_interval: Duration,
    silence_max: Duration,
    silent_after: Duration,
    /// What the server was last told, and when.
    told: Lsn,
    told_at: Instant,
    /// Whether the server waits for an answer.
    is_asked: bool,
    /// Whether it was told anything since its last question.
    is_answered: bool,
    early_questions: u32,
    /// When the server was last heard, or when listening began.
    heard_at: Instant,
    /// When it was asked for an answer, since it was last heard.
    questioned_at: Option<Instant>,
}

impl Feedback {
    /// `sender_timeout` is the session's `wal_sender_timeout`, `None` for no limit. `gave_up` is
    /// how often the server was given up in a row: PostgreSQL up to 14 neither sends nor answers
    /// while it decodes a large transaction of other tables, and must get through some time.
    pub(super) fn new(
        ack_interval: Duration,
        sender_timeout: Option<Duration>,
        gave_up: u32,
        now: Instant,
    ) -> Self {
        let silence_max =
            sender_timeout.map_or(SILENCE_MAX, |timeout| (timeout / 3).min(SILENCE_MAX));
        let silent_after = (silence_max * 3).max(SILENT_AFTER_MIN);
        Self {
            ack_interval,
            silence_max,
            silent_after: silent_after * (1 << gave_up.min(DOUBLED_MAX)),
            told: Lsn(0),
            told_at: now,
            is_asked: false,
            is_answered: true,
            early_questions: 0,
            heard_at: now,
            questioned_at: None,
        }
    }

    /// How often the clock has to tick.
    pub(super) fn period(&self) -> Duration {
        self.ack_interval.min(self.silence_max).min(ANSWER_PAUSE)
    }

    /// Whether a status update should be sent.
    pub(super) fn is_due(&self, acknowledged: Lsn, now: Instant) -> bool {
        let silence = now - self.told_at;
        let is_new = acknowledged > self.told;
        silence >= self.silence_max
            || self.wants_question(now)
            // The clock's ticks are not exact: half a one too early is in time.
            || (is_new && silence + self.period() / 2 >= self.ack_interval)
            || (self.is_asked && (is_new || silence >= ANSWER_PAUSE))
    }

    /// Whether the status update should ask the server for an answer.
    pub(super) fn wants_question(&self, now: Instant) -> bool {
        let since = self.questioned_at.unwrap_or(self.heard_at);
        now - since >= self.silence_max
    }

    /// A status update was sent.
    pub(super) fn sent(&mut self, position: Lsn, asks: bool, now: Instant) {
        if position > self.told {
            self.early_questions = 0;
        }
        (self.told, self.told_at) = (position, now);
        self.is_asked = false;
        self.is_answered = true;
        if asks {
            self.questioned_at = Some(now);
        }
    }

    /// Something was received; says whether it answers a question of ours.
    pub(super) fn heard(&mut self, now: Instant) -> bool {
        self.heard_at = now;
        self.questioned_at.take().is_some()
    }

    /// Nobody was listening until now, so nothing could be heard.
    pub(super) fn listens(&mut self, now: Instant) {
        (self.heard_at, self.questioned_at) = (now, None);
    }

    /// The server asks for an answer.
    pub(super) fn asked(&mut self, now: Instant) {
        if self.is_answered {
            let is_early = now - self.told_at < EARLY;
            self.early_questions = if is_early { self.early_questions + 1 } else { 0 };
        }
        (self.is_asked, self.is_answered) = (true, false);
    }

    /// How long the server has been silent, if that is too long.
    pub(super) fn silent(&self, now: Instant) -> Option<Duration> {
        let silence = now - self.heard_at;
        (silence >= self.silent_after).then_some(silence)
    }

    /// Whether the server only waits for us: it asks again right after each answer.
    pub(super) fn is_waited_for(&self) -> bool {
        self.early_questions >= EARLY_QUESTIONS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACK: Duration = Duration::from_millis(100);

    fn feedback(sender_timeout: u64, now: Instant) -> Feedback {
        Feedback::new(ACK, Some(Duration::from_secs(sender_timeout)), 0, now)
    }

    /// Ticks through `time` as the reader does; says when an update was sent and whether it asked.
    fn run(feedback: &mut Feedback, from: Instant, time: Duration) -> Vec<(Duration, bool)> {
        let mut sent = Vec::new();
        let mut now = from;
        while now - from < time && feedback.silent(now).is_none() {
            if feedback.is_due(Lsn(7), now) {
                let asks = feedback.wants_question(now);
                feedback.sent(Lsn(7), asks, now);
                sent.push((now - from, asks));
            }
            now += feedback.period();
        }
        sent
    }

    #[test]
    fn a_silent_server_is_asked_and_then_given_up() {
        // given a server that says nothing at all
        let start = Instant::now();
        let mut feedback = feedback(60, start);
        // when time passes
        let sent = run(&mut feedback, start, Duration::from_secs(100));
        // then it was asked, more than once, and given up after half a minute
        let asked = sent.iter().filter(|(_, asks)| *asks).count();
        assert!(asked >= 2, "{sent:?}");
        assert!(feedback.silent(start + Duration::from_secs(29)).is_none());
        assert!(feedback.silent(start + Duration::from_secs(31)).is_some());
    }

    #[test]
    fn a_server_that_answers_is_never_given_up() {
        let start = Instant::now();
        let mut feedback = feedback(60, start);
        for second in 0..600 {
            let now = start + Duration::from_secs(second);
            assert!(feedback.silent(now).is_none());
            if feedback.is_due(Lsn(0), now) {
                let asks = feedback.wants_question(now);
                feedback.sent(Lsn(0), asks, now);
                assert_eq!(feedback.heard(now), asks);
            }
        }
    }

    #[test]
    fn a_server_that_is_silent_again_gets_more_time() {
        let start = Instant::now();
        let limit = |gave_up| {
            let feedback = Feedback::new(ACK, None, gave_up, start);
            (1..).find(|s| feedback.silent(start + Duration::from_secs(*s)).is_some()).unwrap()
        };
        assert_eq!((limit(0), limit(1), limit(9)), (30, 60, 960));
    }

    #[test]
    fn our_silence_does_not_depend_on_the_interval_of_acknowledgements() {
        let start = Instant::now();
        let timeout = Some(Duration::from_secs(6));
        let mut feedback = Feedback::new(Duration::from_secs(3600), timeout, 0, start);
        feedback.heard(start);
        let sent = run(&mut feedback, start, Duration::from_secs(9));
        assert!(sent.len() >= 4, "{sent:?}");
    }

    #[test]
    fn what_is_new_goes_out_once_an_interval() {
        let start = Instant::now();
        let mut feedback = feedback(60, start);
        let (mut now, mut sent) = (start, 0);
        for position in 1..=100 {
            now += ACK / 10;
            if feedback.is_due(Lsn(position), now) {
                feedback.sent(Lsn(position), false, now);
                sent += 1;
            }
        }
        assert!((9..=20).contains(&sent), "{sent}");
    }

    #[test]
    fn a_server_that_shuts_down_is_answered_a_few_times_a_second() {
        // given a server that asks again as soon as it was answered
        let start = Instant::now();
        let mut feedback = feedback(60, start);
        feedback.sent(Lsn(7), false, start);
        let (mut now, mut answers) = (start, 0);
        feedback.asked(now);
        while now - start < Duration::from_secs(2) {
            if feedback.is_due(Lsn(7), now) {
                feedback.sent(Lsn(7), false, now);
                answers += 1;
                feedback.asked(now + Duration::from_micros(100));
            }
            now += Duration::from_millis(1);
        }
        // then
        assert!((4..=9).contains(&answers), "{answers}");
        assert!(feedback.is_waited_for());
        // and an answer that is new changes that
        feedback.sent(Lsn(8), false, now);
        assert!(!feedback.is_waited_for());
    }

    #[test]
    fn a_question_now_and_then_is_no_shutdown() {
        let start = Instant::now();
        let mut feedback = feedback(1, start);
        for round in 1..50 {
            let now = start + Duration::from_millis(500) * round;
            feedback.asked(now);
            assert!(feedback.is_due(Lsn(0), now), "{round}");
            feedback.sent(Lsn(0), false, now);
        }
        assert!(!feedback.is_waited_for());
    }
}
