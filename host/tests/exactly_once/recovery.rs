//! What a killed host leaves pending, and another one, of another name, makes of it.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::stage::{Insert, Stage};
use crate::support::sluice::Sluice;

/// Pending batches that `host` has formed again: the same, and different ones.
fn recoveries(stage: &Stage, host: &Sluice) -> (f64, f64) {
    let count =
        |result: &str| stage.metric(host, "sluice_recoveries_total", &format!(",result=\"{result}\""));
    (count("same"), count("different"))
}

fn assert_recovered_as_it_was(stage: &Stage, host: &Sluice) {
    let (same, different) = recoveries(stage, host);
    assert!(same > 0.0 && different == 0.0, "{same} the same, {different} different");
}

fn assert_recovered_differently(stage: &Stage, host: &Sluice) {
    let (same, different) = recoveries(stage, host);
    assert!(same == 0.0 && different > 0.0, "{same} the same, {different} different");
}

#[test]
fn another_process_brings_to_an_end_what_is_pending() {
    for (name, insert) in [("pending", Insert::Unsent), ("pending_twice", Insert::Unanswered)] {
        let stage = Stage::new(name, 3, "");
        let feed = |_: &Sluice| stage.send(&[(0, "abx"), (1, "xab"), (2, "ab")]);
        stage.leave_pending(stage.host("first"), insert, 6, feed);
        let second = stage.start(&stage.host("second"));
        second.wait_until("everything is settled", |_| stage.is_settled());
        assert_recovered_as_it_was(&stage, &second);
        stage.finish(second);
        let endings = stage.endings();
        for (partition, text) in [(0, "abx"), (1, "xab"), (2, "ab")] {
            for (offset, letter) in (0..).zip(text.chars().map(String::from)) {
                let ending = &endings[&(partition, offset)];
                if letter == "x" {
                    assert_eq!(ending.letter(), ("rejected", "no_thanks", Some("x")));
                } else {
                    assert!(ending.is_row(&letter), "{ending:?}");
                }
            }
        }
    }
}

/// How often rows went in under another token.
fn reinserts(stage: &Stage, host: &Sluice) -> f64 {
    host.metric(&format!("sluice_retries_total{{operation=\"reinsert\",pipeline=\"{}\"}}", stage.name()))
}

#[test]
fn rows_whose_token_is_remembered_and_that_are_not_there_go_in_by_recovery() {
    let stage = Stage::new("lost_rows", 2, "");
    stage.leave_pending(stage.host("first"), Insert::Unanswered, 3, |_| stage.send(&[(0, "axb"), (1, "c")]));
    stage.lose_rows("true");
    let second = stage.start(&stage.host("second"));
    second.wait_until("everything is settled", |_| stage.is_settled());
    assert_recovered_as_it_was(&stage, &second);
    assert_eq!(reinserts(&stage, &second), 1.0);
    stage.finish(second);
    stage.remove_lost_rows();
    let endings = stage.endings();
    for (place, text) in [((0, 0), "a"), ((0, 2), "b"), ((1, 0), "c")] {
        assert!(endings[&place].is_row(text), "{endings:?}");
    }
    assert_eq!(endings[&(0, 1)].letter(), ("rejected", "no_thanks", Some("x")));
}

#[test]
fn rows_whose_token_is_remembered_and_that_are_not_there_go_in_once_their_host_is_answered() {
    for (name, lost) in [("lost_all", "true"), ("lost_some", "text = 'b'")] {
        let stage = Stage::new(name, 2, "");
        let proxy = stage.proxy();
        let behind = stage
            .host("only")
            .set("CLICKHOUSE__URL", &format!("http://{}", proxy.address()))
            .set("CLICKHOUSE__REQUEST_TIMEOUT", "2s");
        let host = stage.start(&behind);
        proxy.swallow(u64::MAX);
        stage.send(&[(0, "axb"), (1, "c")]);
        host.wait_until("the rows are there", |_| stage.rows() == 3);
        stage.lose_rows(lost);
        assert!(!stage.is_settled(), "nobody has told the host yet");
        proxy.heal();
        host.wait_until("everything is settled", |_| stage.is_settled());
        let reinserts = reinserts(&stage, &host);
        stage.finish(host);
        stage.remove_lost_rows();
        let endings = stage.endings();
        assert!(endings[&(0, 0)].is_row("a") && endings[&(1, 0)].is_row("c"), "{endings:?}");
        assert_eq!(endings[&(0, 1)].letter(), ("rejected", "no_thanks", Some("x")));
        if lost == "true" {
            assert!(endings[&(0, 2)].is_row("b"), "{endings:?}");
            assert_eq!(reinserts, 1.0);
        } else {
            // Whatever is sent under whichever token, some of it would be there twice.
            assert_eq!(endings[&(0, 2)].letter(), ("insert", "rows_missing", Some("b")));
            assert_eq!(reinserts, 0.0);
        }
    }
}

#[test]
fn pending_records_keep_the_rules_that_judged_them_first() {
    for (name, insert) in [("rules", Insert::Unsent), ("rules_twice", Insert::Unanswered)] {
        let stage = Stage::new(name, 1, "");
        stage.leave_pending(stage.host("first"), insert, 2, |_| stage.send(&[(0, "axy")]));
        stage.send(&[(0, "axy")]);
        let others = stage.host("second").set(&stage.key("SETTINGS__CHOOSY__REJECT"), "y");
        let second = stage.start(&others);
        second.wait_until("everything is settled", |_| stage.is_settled());
        assert_recovered_as_it_was(&stage, &second);
        stage.finish(second);
        let endings = stage.endings();
        let ending = |offset| &endings[&(0, offset)];
        for (offset, text) in [(0, "a"), (2, "y"), (3, "a"), (4, "x")] {
            assert!(ending(offset).is_row(text), "{:?}", ending(offset));
        }
        for (offset, payload) in [(1, "x"), (5, "y")] {
            assert_eq!(ending(offset).letter(), ("rejected", "no_thanks", Some(payload)));
        }
        let revisions = [0, 2, 3, 4].map(|offset| ending(offset).revision());
        assert_eq!((revisions[0], revisions[2]), (revisions[1], revisions[3]));
        assert_ne!(revisions[0], revisions[2], "each row leads to the rules that passed it");
    }
}

#[test]
fn a_revision_that_is_gone_loses_and_repeats_nothing() {
    for (name, insert) in [("gone", Insert::Unsent), ("gone_twice", Insert::Unanswered)] {
        let stage = Stage::new(name, 1, "");
        stage.leave_pending(stage.host("first"), insert, 2, |_| stage.send(&[(0, "axy")]));
        stage.execute(&format!("TRUNCATE TABLE {name}.sluice_revisions"));
        let others = stage.host("second").set(&stage.key("SETTINGS__CHOOSY__REJECT"), "y");
        let second = stage.start(&others);
        second.wait_until("everything is settled", |_| stage.is_settled());
        assert_recovered_differently(&stage, &second);
        stage.finish(second);
        let endings = stage.endings();
        let ending = |offset| &endings[&(0, offset)];
        assert!(ending(0).is_row("a"));
        match insert {
            // Nothing of the first host is anywhere, so the rules of the second hold.
            Insert::Unsent => {
                assert!(ending(1).is_row("x"), "{:?}", ending(1));
                assert_eq!(ending(2).letter(), ("rejected", "no_thanks", Some("y")));
            }
            // The rows of the first host are there and stay; what they lack is told.
            Insert::Unanswered => {
                assert_eq!(ending(1).letter(), ("unrecovered", "revision_gone", Some("x")));
                assert!(ending(2).is_row("y"), "{:?}", ending(2));
            }
        }
    }
}

#[test]
fn records_that_retention_took_while_they_were_pending_are_told_of() {
    for (name, insert) in [("retention", Insert::Unsent), ("retention_twice", Insert::Unanswered)] {
        let stage = Stage::new(name, 2, "");
        stage.leave_pending(stage.host("first"), insert, 8, |_| stage.send(&[(0, "aaaaaa"), (1, "aax")]));
        delete_before(&stage, 0, 4);
        let second = stage.start(&stage.host("second"));
        second.wait_until("everything is settled", |_| stage.is_settled());
        assert_recovered_differently(&stage, &second);
        stage.finish(second);
        let endings = stage.endings();
        for offset in 0..6 {
            let ending = &endings[&(0, offset)];
            if insert == Insert::Unsent && offset < 4 {
                // Nothing of the record is left but its place.
                assert_eq!(ending.letter(), ("unrecovered", "retention", None));
            } else {
                assert!(ending.is_row("a"), "{ending:?}");
            }
        }
        assert!(endings[&(1, 0)].is_row("a") && endings[&(1, 1)].is_row("a"));
        assert_eq!(endings[&(1, 2)].letter(), ("rejected", "no_thanks", Some("x")));
    }
}

fn delete_before(stage: &Stage, partition: i32, offset: i64) {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", stage.servers.kafka.bootstrap())
        .create()
        .expect("an admin client can be made");
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(stage.name(), partition, Offset::Offset(offset)).expect("an offset");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(admin.delete_records(&list, &AdminOptions::new())).expect("deleted");
}

/// The guest rejects `x` only where it is the first record of a call. Read one by one each is; read
/// again they are one chunk.
#[test]
fn a_guest_whose_verdicts_do_not_repeat_loses_and_repeats_nothing() {
    for (name, insert) in [("counting", Insert::Unsent), ("counting_twice", Insert::Unanswered)] {
        let stage = Stage::new(name, 1, "");
        let configure =
            |instance: &str| stage.host(instance).set(&stage.key("SETTINGS__CHOOSY__OPENER"), "x");
        // The third row ends the batch, and nothing else does.
        let first =
            configure("first").set(&stage.key("BATCH__ROWS"), "3").set(&stage.key("BATCH__LINGER"), "1h");
        stage.leave_pending(first, insert, 3, |host| stage.send_singly(host, 0, "axaxa"));
        let second = stage.start(&configure("second"));
        second.wait_until("everything is settled", |_| stage.is_settled());
        assert_recovered_differently(&stage, &second);
        stage.send_singly(&second, 0, "xa");
        stage.finish(second);
        let endings = stage.endings();
        for offset in [0, 2, 4, 6] {
            assert!(endings[&(0, offset)].is_row("a"), "{:?}", endings[&(0, offset)]);
        }
        for offset in [1, 3] {
            match insert {
                Insert::Unsent => assert!(endings[&(0, offset)].is_row("x")),
                Insert::Unanswered => {
                    let letter = endings[&(0, offset)].letter();
                    assert_eq!(letter, ("unrecovered", "verdicts_differ", Some("x")));
                }
            }
        }
        assert_eq!(endings[&(0, 5)].letter(), ("rejected", "no_thanks", Some("x")));
    }
}

#[test]
fn a_batch_whose_host_dies_while_it_is_cut_is_cut_the_same_way_by_the_next() {
    let stage = Stage::new("cutting", 2, ", CONSTRAINT no_z CHECK text != 'z'");
    let proxy = stage.proxy();
    let behind = stage.host("first").set("CLICKHOUSE__URL", &format!("http://{}", proxy.address()));
    let first = stage.start(&behind);
    proxy.delay(Duration::from_millis(250));
    let good = "a".repeat(32);
    stage.send(&[(0, &good), (1, &good[1..]), (1, "z")]);
    first.wait_until("the half without the bad record is in", |first| {
        stage.metric(first, "sluice_recuts_total", "") >= 2.0
    });
    first.kill();
    assert!(stage.all_is_pending(), "the kill came too late to prove anything");
    assert!(stage.rows() >= 32 && stage.letters() == 0);
    // An INSERT that was under way when its sender died may still arrive.
    proxy.heal();
    let second = stage.start(&stage.host("second"));
    second.wait_until("everything is settled", |_| stage.is_settled());
    assert_recovered_as_it_was(&stage, &second);
    assert!(stage.metric(&second, "sluice_recuts_total", "") >= 6.0);
    stage.finish(second);
    let mut endings = stage.endings();
    let bad = endings.remove(&(1, 31)).expect("it has ended");
    assert_eq!(bad.letter(), ("insert", "insert", Some("z")));
    assert!(endings.values().all(|ending| ending.is_row("a")));
}
