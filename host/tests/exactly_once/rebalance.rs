//! Hosts that join, leave and die under load, by each way in which a group shares its partitions out.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::stage::{Stage, partitions};
use crate::support::sluice::{Configuration, Sluice};

const PARTITIONS: i32 = 6;

/// Sends records to every partition until it is enough, a few at a time.
fn keep_sending(stage: &Stage, enough: &AtomicBool) {
    let everywhere: Vec<_> = (0..PARTITIONS).map(|partition| (partition, "abxab")).collect();
    while !enough.load(Ordering::Relaxed) {
        stage.send(&everywhere);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

fn join_leave_and_die(name: &str, properties: &[(&str, &str)]) {
    let stage = Stage::new(name, PARTITIONS, "");
    let all = PARTITIONS as usize;
    let configure = |instance: &str| -> Configuration {
        let configuration = stage.member(instance).set(&stage.key("BATCH__LINGER"), "50ms");
        properties.iter().fold(configuration, |configuration, (name, value)| {
            configuration.set(&format!("KAFKA__PROPERTIES__{name}"), value)
        })
    };
    let settles_more = |host: &Sluice| {
        let before = host.settled();
        host.wait_until("it settles more", |host| host.settled() > before);
    };
    let first = stage.start(&configure("first"));
    let enough = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| keep_sending(&stage, &enough));
        // A panic here must end the sender, too.
        let _ended = SetWhenDropped(&enough);
        settles_more(&first);
        let second = Sluice::start(&configure("second"));
        second.wait_until("it has some partitions", |host| (1..all).contains(&partitions(host)));
        first.wait_until("the first gave some up", |host| partitions(host) < all);
        settles_more(&second);
        let third = Sluice::start(&configure("third"));
        third.wait_until("it has some partitions", |host| partitions(host) > 0);
        settles_more(&third);
        assert_eq!(first.stop(), Some(0));
        second.wait_until("two are left", |second| partitions(second) + partitions(&third) == all);
        settles_more(&third);
        second.kill();
        third.wait_until("it has every partition", |host| partitions(host) == all);
        settles_more(&third);
        enough.store(true, Ordering::Relaxed);
        sending.join().expect("records are sent");
        stage.finish(third);
    });
    let endings = stage.endings();
    for ((partition, offset), ending) in &endings {
        match offset % 5 {
            2 => assert_eq!(ending.letter(), ("rejected", "no_thanks", Some("x"))),
            0 | 3 => assert!(ending.is_row("a"), "{partition} {offset} {ending:?}"),
            _ => assert!(ending.is_row("b"), "{partition} {offset} {ending:?}"),
        }
    }
}

struct SetWhenDropped<'a>(&'a AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

const SHORT_SESSION: [(&str, &str); 2] = [("SESSION_TIMEOUT_MS", "6000"), ("HEARTBEAT_INTERVAL_MS", "500")];

#[test]
fn cooperatively() {
    join_leave_and_die("cooperative", &SHORT_SESSION);
}

#[test]
fn eagerly() {
    let [session, heartbeat] = SHORT_SESSION;
    join_leave_and_die("eager", &[("PARTITION_ASSIGNMENT_STRATEGY", "range"), session, heartbeat]);
}

#[test]
fn by_the_newer_protocol() {
    join_leave_and_die("kip_848", &[("GROUP_PROTOCOL", "consumer")]);
}
