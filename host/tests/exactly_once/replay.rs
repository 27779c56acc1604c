//! Offsets that went back, as where brokers lost commits: what the table holds is not inserted again.

use crate::refusals::commit;
use crate::stage::Stage;
use crate::support::sluice::{Configuration, Sluice};

fn is_held(host: &Sluice, offsets: &str) -> bool {
    let (code, body) = host.get("/ready");
    code == 503 && body.contains("partition 0 is not read") && body.contains(offsets)
}

/// Partitions that are held, by the metric.
fn held(stage: &Stage, host: &Sluice) -> f64 {
    stage.metric(host, "sluice_partitions_held", "")
}

#[test]
fn a_partition_whose_offset_went_back_is_not_read_until_that_is_mended_and_the_others_are() {
    let stage = Stage::new("went_back", 2, "");
    let configuration = stage.host("only");
    stage.send(&[(0, "aaxaa"), (1, "b")]);
    let host = stage.start(&configuration);
    stage.finish(host);
    commit(&stage, 1, "");

    let host = Sluice::start(&configuration);
    host.wait_until("the partition is held", |host| is_held(host, "3 rows of offsets 1 to 4"));
    assert_eq!(held(&stage, &host), 1.0);
    stage.send(&[(0, "a"), (1, "bx")]);
    host.wait_until("the other one is read", |_| stage.committed(1) == Some((3, String::new())));
    assert_eq!(stage.committed(0), Some((1, String::new())));
    assert_eq!(held(&stage, &host), 1.0, "the other one is not");
    assert_eq!(host.stop(), Some(0));
    assert_eq!((stage.rows(), stage.letters()), (6, 2));

    commit(&stage, 5, "");
    let host = stage.start(&configuration);
    stage.finish(host);
    let endings = stage.endings();
    assert_eq!(endings.len(), 9);
    assert!(endings[&(0, 5)].is_row("a"));
}

/// The pending batch that the metadata lists is of hours ago: to recover it would settle it a second time.
#[test]
fn what_is_pending_at_an_offset_that_went_back_stays_untouched() {
    let stage = Stage::new("went_far_back", 1, "");
    let configuration = stage.host("only");
    stage.leave_pending(configuration, crate::stage::Insert::Unsent, 0, |_| stage.send(&[(0, "ax")]));
    let (offset, metadata) = stage.committed(0).expect("an intent");
    let configuration = stage.host("only");
    let host = stage.start(&configuration);
    host.wait_until("it is recovered", |_| stage.is_settled());
    stage.send(&[(0, "aa")]);
    stage.finish(host);
    assert_eq!((stage.rows(), stage.letters()), (3, 1));
    commit(&stage, offset, &metadata);

    let host = Sluice::start(&configuration);
    host.wait_until("the partition is held", |host| is_held(host, "2 rows of offsets 2 to 3"));
    assert_eq!(stage.committed(0), Some((offset, metadata)));
    assert_eq!(host.stop(), Some(0));
    assert_eq!((stage.rows(), stage.letters()), (3, 1));
}

/// As whoever moved the offset back on purpose is told to do.
#[test]
fn a_partition_is_read_once_the_rows_behind_its_offset_are_deleted() {
    let stage = Stage::new("deleted", 1, "");
    let configuration = stage.host("only");
    stage.send(&[(0, "aax")]);
    let host = stage.start(&configuration);
    stage.finish(host);
    commit(&stage, 1, "");
    let host = Sluice::start(&configuration);
    host.wait_until("the partition is held", |host| is_held(host, "1 rows of offsets 1 to 1"));
    assert_eq!(held(&stage, &host), 1.0);
    stage.execute("DELETE FROM deleted.texts WHERE _offset >= 1");
    host.wait_until("it is held no more", |host| held(&stage, host) == 0.0);
    stage.finish(host);
    assert_eq!((stage.rows(), stage.letters()), (2, 2));
}

#[test]
fn a_replay_that_is_allowed_is_one() {
    let stage = Stage::new("replayed", 1, "");
    let configuration = stage.host("only").set(&stage.key("ALLOW_REPLAY"), "true");
    stage.send(&[(0, "aax")]);
    let host = stage.start(&configuration);
    stage.finish(host);
    commit(&stage, 1, "");
    let host = stage.start(&configuration);
    stage.finish(host);
    assert_eq!((stage.rows(), stage.letters()), (3, 2));
}

/// Has a host settle five records, makes its topic again with these, and waits until that has ended the host.
fn make_the_topic_again(stage: &Stage, configuration: &Configuration, letters: &str, reason: &str) {
    let host = stage.start(configuration);
    stage.send(&[(0, "aaxaa")]);
    host.wait_until("everything is settled", |_| stage.is_settled());
    stage.make_again();
    stage.send(&[(0, letters)]);
    let (code, log) = host.wait_for_end();
    assert_eq!(code, Some(1));
    assert!(log.contains(reason), "{log}");
}

/// Offsets of the topic before mean nothing in the one after. Kafka has forgotten the group's; the table has not.
fn is_not_taken_for_the_one_before(name: &str, letters: &str, reason: &str) {
    let stage = Stage::new(name, 1, "");
    let configuration = stage.host("only");
    make_the_topic_again(&stage, &configuration, letters, reason);
    assert_eq!((stage.committed(0), stage.rows(), stage.letters()), (None, 4, 1));

    let host = Sluice::start(&configuration);
    host.wait_until("the partition is held", |host| is_held(host, "4 rows of offsets 0 to 4"));
    stage.execute(&format!("TRUNCATE TABLE {name}.texts"));
    stage.finish(host);
    assert_eq!((stage.rows(), stage.letters()), (letters.len() as u64 - 1, 2));
}

/// The host reads on at offset 5, where there is a record.
const LONGER: &str = "bbxbbbbb";
const ANOTHER_ID: &str = "was made again while it was read: its id was";

#[test]
fn a_topic_that_is_made_again_is_not_taken_for_the_one_before() {
    let reason = "offsets went back from 5 to 0: the topic was made again";
    is_not_taken_for_the_one_before("made_again", "bxb", reason);
}

#[test]
fn a_topic_that_is_made_again_and_is_longer_by_now_is_not_taken_for_the_one_before() {
    is_not_taken_for_the_one_before("made_longer", LONGER, ANOTHER_ID);
}

/// Nothing is held at-least-once: the records that were read before the host noticed have two rows.
#[test]
fn at_least_once_every_record_of_a_topic_that_is_made_again_is_read() {
    let stage = Stage::new("made_at_least", 1, "");
    let configuration = stage.host("only").set(&stage.key("DELIVERY"), "at-least-once");
    make_the_topic_again(&stage, &configuration, LONGER, ANOTHER_ID);
    assert_eq!((stage.committed(0), stage.rows(), stage.letters()), (None, 7, 1));

    let host = stage.start(&configuration);
    stage.finish(host);
    assert_eq!((stage.rows(), stage.letters()), (7 + 7, 2));
}
