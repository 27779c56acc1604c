//! The flow exactly-once: intents, recovery, dissolved and cut batches.

use super::*;

fn exactly_once() -> Harness {
    Harness::deliver(
        Delivery::ExactlyOnce,
        BatchLimits { linger: Duration::from_millis(100), ..BatchLimits::default() },
    )
}

/// Batches that the metadata of a partition lists after its last commit.
fn pending(world: &World, number: i32) -> PendingBatches {
    let commits = world.commits.lock().unwrap();
    let last = commits.iter().rev().find(|point| point.partition == number);
    last.and_then(|point| PendingBatches::decode(&point.metadata).unwrap()).unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn exactly_once_nothing_is_sent_before_its_intent_stands_everywhere() {
    let mut harness = exactly_once();
    *harness.world.commit_failures.lock().unwrap() = 3;
    harness.assign_at(0, 1, Some(0), PendingBatches::default()).await;
    harness.assign_at(1, 2, Some(0), PendingBatches::default()).await;
    harness.feed(0, 1, 0, b"axb").await;
    harness.feed(1, 2, 0, b"xc").await;
    while harness.world.commits.lock().unwrap().is_empty() {
        sleep(Duration::from_millis(1)).await;
        assert_eq!(harness.world.rows(), b"");
    }
    let (first, second) = (pending(&harness.world, 0), pending(&harness.world, 1));
    assert_eq!((first.intents().len(), &first), (1, &second));
    assert_eq!((harness.world.committed(0), harness.world.letters.lock().unwrap().len()), (Some(0), 0));
    let token = format!("sluice:test:{}", first.intents()[0].id());
    let (world, result) = harness.finish().await;
    result.unwrap();
    assert_eq!((world.rows(), &world.inserts.lock().unwrap()[0].token), (b"abc".to_vec(), &token));
    // The dead letters came with the commit that passed their records.
    assert_eq!(world.letters.lock().unwrap().len(), 2);
    assert_eq!((world.committed(0), world.committed(1)), (Some(3), Some(2)));
    assert_eq!(pending(&world, 0), PendingBatches::default());
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_pending_is_formed_again_and_settled_where_it_is_listed() {
    let mut harness = exactly_once();
    harness.world.insert_answers.lock().unwrap().extend([Retryability::Retry; 1000]);
    harness.assign_at(0, 1, Some(0), PendingBatches::default()).await;
    harness.assign_at(1, 2, Some(0), PendingBatches::default()).await;
    harness.feed(0, 1, 0, b"axb").await;
    harness.feed(1, 2, 0, b"xc").await;
    sleep(seconds(2)).await;
    let left = pending(&harness.world, 1);
    assert_eq!(left.intents().len(), 1);
    harness.flow.abort();

    // The next owner has one of the partitions, and consumes behind what is pending.
    let mut next = exactly_once();
    next.world.log.lock().unwrap().extend([(0, b"axb".to_vec()), (1, b"xcd".to_vec())]);
    next.assign_at(1, 1, Some(0), left.clone()).await;
    next.feed(1, 1, 2, b"d").await;
    sleep(seconds(2)).await;
    let status = next.status.borrow().clone();
    let partition = &status.partitions[0];
    assert_eq!((partition.consumed, partition.inserted, partition.dead_lettered), (3, 2, 1));
    let (world, result) = next.finish().await;
    result.unwrap();
    assert_eq!((world.rows(), world.committed(1), world.committed(0)), (b"abcd".to_vec(), Some(3), None));
    let letters = world.letters.lock().unwrap();
    assert_eq!(letters.iter().map(|letter| letter.chunk.partition).collect::<Vec<_>>(), [1]);
    assert_eq!(world.inserts.lock().unwrap()[0].token, format!("sluice:test:{}", left.intents()[0].id()));
}

#[tokio::test(start_paused = true)]
async fn a_batch_without_intent_is_sealed_anew_without_the_partition_that_went() {
    let mut harness = exactly_once();
    *harness.world.commit_failures.lock().unwrap() = 6;
    harness.assign_at(0, 1, Some(0), PendingBatches::default()).await;
    harness.assign_at(1, 2, Some(0), PendingBatches::default()).await;
    harness.feed(0, 1, 0, b"ab").await;
    harness.feed(1, 2, 0, b"cd").await;
    sleep(Duration::from_millis(150)).await;
    let released = harness.revoke(0, 1, true).await;
    sleep(seconds(1)).await;
    released.try_recv().unwrap();
    let (world, result) = harness.finish().await;
    result.unwrap();
    assert_eq!((world.rows(), world.committed(0), world.committed(1)), (b"cd".to_vec(), None, Some(2)));
}

#[tokio::test(start_paused = true)]
async fn pieces_of_a_refused_batch_are_named_by_it() {
    let mut harness = exactly_once();
    *harness.world.refused_byte.lock().unwrap() = Some(b'q');
    harness.assign_at(0, 1, Some(0), PendingBatches::default()).await;
    harness.feed(0, 1, 0, b"abqd").await;
    sleep(Duration::from_millis(120)).await;
    let token = format!("sluice:test:{}", pending(&harness.world, 0).intents()[0].id());
    let (world, result) = harness.finish().await;
    result.unwrap();
    let tokens: Vec<_> = world.inserts.lock().unwrap().iter().map(|insert| insert.token.clone()).collect();
    assert_eq!(tokens, [format!("{token}.0"), format!("{token}.1.1")]);
    assert_eq!((world.rows(), world.letters.lock().unwrap().len()), (b"abd".to_vec(), 1));
    assert_eq!(world.committed(0), Some(4));
}
