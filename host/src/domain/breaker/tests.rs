//! Tests of the breaker: what trips it, what must not, and its window against a naive one.

use proptest::prelude::*;

use super::*;

fn settings() -> BreakerSettings {
    BreakerSettings::default()
}

fn counts(seen: u64, rejected: u64, faulted: u64) -> Counts {
    Counts { seen, rejected, faulted }
}

fn before(seen: u64, rejected: u64, faulted: u64) -> Baseline {
    Baseline::Measured(counts(seen, rejected, faulted))
}

/// Says yes in this share of the times that it is asked: SplitMix64 (<https://prng.di.unimi.it/splitmix64.c>).
fn dice(mut state: u64) -> impl FnMut(f64) -> bool {
    move |share| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) as f64) < share * u64::MAX as f64
    }
}

fn is_grave(baseline: Baseline, fresh: Counts) -> Option<bool> {
    judge(&settings(), baseline, fresh).map(|finding| finding.is_grave)
}

#[test]
fn a_revision_that_rejects_everything_goes_with_the_first_records() {
    for baseline in [before(3_000, 60, 0), before(200, 0, 0), before(3_000, 1_200, 0), Baseline::NoRule] {
        assert_eq!(is_grave(baseline, counts(199, 199, 0)), None, "too few");
        assert_eq!(is_grave(baseline, counts(200, 200, 0)), Some(true), "{baseline:?}");
    }
    assert_eq!(is_grave(Baseline::Unknown, counts(200, 200, 0)), Some(true));
}

#[test]
fn one_that_fails_goes_whatever_is_known_of_the_one_before() {
    for baseline in [before(3_000, 60, 0), before(200, 0, 2), Baseline::Unknown, Baseline::NoRule] {
        assert_eq!(is_grave(baseline, counts(200, 0, 200)), Some(true), "{baseline:?}");
        assert_eq!(is_grave(baseline, counts(10_000, 0, 1_000)), Some(true), "{baseline:?}");
        assert_eq!(is_grave(baseline, counts(10_000, 0, 100)), None, "{baseline:?}");
    }
    // As bad as the one before is not worse.
    assert_eq!(is_grave(before(3_000, 0, 2_700), counts(3_000, 0, 2_700)), None);
}

#[test]
fn a_rule_that_rejects_somewhat_more_on_purpose_stays() {
    assert_eq!(is_grave(before(3_000, 60, 0), counts(3_000, 150, 0)), None, "3 % more");
    assert_eq!(is_grave(before(3_000, 60, 0), counts(3_000, 540, 0)), None, "16 % more");
    assert_eq!(is_grave(before(3_000, 60, 0), counts(3_000, 900, 0)), Some(true), "28 % more");
    // Of 40 % rejected, 60 % were let through; a fifth of these may go.
    assert_eq!(is_grave(before(3_000, 1_200, 0), counts(3_000, 1_500, 0)), None);
    assert_eq!(is_grave(before(3_000, 1_200, 0), counts(3_000, 1_800, 0)), Some(true));
}

#[test]
fn a_new_rule_may_reject_much_and_is_pointed_out() {
    assert_eq!(is_grave(Baseline::NoRule, counts(3_000, 300, 0)), None);
    assert_eq!(is_grave(Baseline::NoRule, counts(3_000, 1_500, 0)), Some(false));
    assert_eq!(is_grave(Baseline::NoRule, counts(3_000, 2_950, 0)), Some(true));
    // The one before may have rejected as many.
    assert_eq!(is_grave(Baseline::Unknown, counts(3_000, 1_500, 0)), None);
}

#[test]
fn the_reason_has_the_figures() {
    let reason = |baseline, fresh| {
        judge(&settings(), baseline, fresh).map(|finding| finding.reason).unwrap_or_default()
    };
    insta::assert_snapshot!(
        [
            reason(before(3_000, 61, 0), counts(420, 412, 0)),
            reason(Baseline::NoRule, counts(5_000, 4_999, 1)),
            reason(Baseline::Unknown, counts(200, 0, 200)),
        ]
        .join("\n"),
        @r"
    it rejected 412 of 420 records (98.1 %); the revision before rejected 61 of 3000 records (2.0 %)
    it rejected 4999 of 5000 records (99.9 %); it is a new rule
    it failed (trap, timeout, memory, bad answer) on 200 of 200 records (100.0 %); the revision before has seen too few to compare
    "
    );
}

#[test]
fn probation_lasts_until_enough_was_seen() {
    let probation = Probation { since: Duration::from_secs(5) };
    let is_over =
        |seconds, seen| probation.is_over(&settings(), Duration::from_secs(seconds), counts(seen, 0, 0));
    assert!(!is_over(604, 1_000));
    assert!(!is_over(5_000, 199));
    assert!(is_over(605, 200));
}

#[test]
fn a_window_stays_small() {
    let settings = BreakerSettings { window: Duration::from_secs(10), records: 50, ..settings() };
    let mut window = Window::new(&settings, Duration::ZERO, Counts::default());
    for step in 1..100_000u64 {
        window.note(Duration::from_millis(step * 7), counts(step, 0, 0));
        assert!(window.samples.len() <= SAMPLES as usize + 52, "{}", window.samples.len());
    }
}

#[test]
fn a_slow_stream_is_judged_by_its_last_records() {
    let settings = settings();
    let mut window = Window::new(&settings, Duration::ZERO, Counts::default());
    // One record a minute; the last 200 of them are rejected.
    for minute in 1..=1_000u64 {
        window.note(Duration::from_secs(minute * 60), counts(minute, minute.saturating_sub(800), 0));
    }
    assert_eq!(window.recent(), counts(200, 200, 0));
}

/// Steps of traffic: what passes between two looks, and what comes in it.
fn steps() -> impl Strategy<Value = Vec<(u64, u64)>> {
    proptest::collection::vec((1..3_000u64, 0..300u64), 1..200)
}

proptest! {
    /// The window holds at least what it must, and no more than one sample beyond.
    #[test]
    fn a_window_is_as_long_as_it_has_to_be(steps in steps()) {
        let settings = BreakerSettings { window: Duration::from_secs(10), ..settings() };
        let mut window = Window::new(&settings, Duration::ZERO, Counts::default());
        let (mut at, mut seen) = (0, 0);
        let mut all = vec![(0, 0)];
        for (passed, records) in steps {
            at += passed;
            seen += records;
            window.note(Duration::from_millis(at), counts(seen, 0, 0));
            all.push((at, seen));
            let recent = window.recent().seen;
            // Everything of the span, and `records` where there were as many.
            let at_span = all.iter().rev().find(|(then, _)| *then + 10_000 <= at).map_or(0, |(_, seen)| *seen);
            prop_assert!(recent >= (seen - at_span).min(seen));
            prop_assert!(recent >= settings.records.min(seen));
        }
    }

    /// Chance alone does not trip it: thousands of looks at a revision that is 3 % worse on purpose, the
    /// baseline being as small as it may be.
    #[test]
    fn a_slightly_worse_revision_never_trips_by_chance(
        seed in any::<u64>(), share in 0.0..0.5f64, baseline in 200..2_000u64,
    ) {
        let mut throw = dice(seed);
        let rejected = (0..baseline).filter(|_| throw(share)).count() as u64;
        let baseline = before(baseline, rejected, 0);
        let mut fresh = Counts::default();
        for _ in 0..3_000 {
            fresh.seen += 1;
            fresh.rejected += u64::from(throw(share + 0.03));
            prop_assert_eq!(judge(&settings(), baseline, fresh), None);
        }
    }

    /// More rejections or faults never make it better.
    #[test]
    fn worse_is_never_better(seen in 200..5_000u64, bad in 0..5_000u64, more in 0..500u64, base in 0..1_000u64) {
        let bad = bad.min(seen);
        let worse = (bad + more).min(seen);
        for baseline in [Baseline::NoRule, Baseline::Unknown, before(1_000, base, base / 2)] {
            let grave = |counts| judge(&settings(), baseline, counts).map_or(0, |found| 1 + u8::from(found.is_grave));
            prop_assert!(grave(counts(seen, worse, 0)) >= grave(counts(seen, bad, 0)));
            prop_assert!(grave(counts(seen, 0, worse)) >= grave(counts(seen, 0, bad)));
        }
    }

    /// The bounds hold the share between them, and close in on it.
    #[test]
    fn bounds_hold_the_share(seen in 1..100_000u64, part in 0.0..=1.0f64) {
        let count = (seen as f64 * part) as u64;
        let share = count as f64 / seen as f64;
        let (low, high) = (lower(count, seen, 4.0), upper(count, seen, 4.0));
        prop_assert!(low <= share + 1e-9 && share <= high + 1e-9);
        prop_assert!(high - low >= upper(count * 10, seen * 10, 4.0) - lower(count * 10, seen * 10, 4.0));
    }
}
