//! A group that a member holds up which is there and does not answer, on Apache Kafka: the others say so, and
//! go on when it is put out.

mod support;

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use sluice::domain::ledger::Delivery;
use sluice::pipeline::event::Event;
use support::kafka::ApacheKafka;
use support::member::{Member, PATIENCE};

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_does_not_answer_is_told_of_and_put_out() {
    let kafka = ApacheKafka::start();
    kafka.create_topic("held", 2);
    // It goes on sending heartbeats, but nobody looks at what it hears after it has its partitions, and with
    // this strategy it has to give them back before it joins again.
    let strategy = ("partition.assignment.strategy", "range");
    let silent: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", kafka.bootstrap())
        .set("group.id", "held")
        .set(strategy.0, strategy.1)
        .set("session.timeout.ms", "6000")
        .set("max.poll.interval.ms", "45000")
        .create()
        .expect("a consumer");
    silent.subscribe(&["held"]).expect("subscribed");
    let deadline = Instant::now() + PATIENCE;
    while silent.assignment().expect("known").count() < 2 {
        assert!(Instant::now() < deadline, "no partitions");
        silent.poll(Duration::from_millis(100));
    }

    let mut member = Member::join(kafka.bootstrap(), "held", "held", Delivery::ExactlyOnce, &[strategy]);
    let told = member.next("what holds the group up", |event| match event {
        Event::IntakeTrouble(reasons) => reasons.into_iter().find(|reason| reason.contains("holds it up")),
        _ => None,
    });
    let told = told.await;
    assert!(told.contains("consumer group held") && told.contains("--group held"), "{told}");
    member.assigned(2).await;
    let well = |event| matches!(event, Event::IntakeTrouble(reasons) if reasons.is_empty()).then_some(());
    member.next("no trouble", well).await;
    member.leave().await;
}
