use proptest::prelude::*;

use super::*;
use crate::domain::intent::{IntentSlice, VerdictDigest};
use crate::domain::verdict::Revision;

fn partition(number: i32) -> PartitionId {
    PartitionId { topic: "topic".into(), partition: number }
}

fn slice(number: i32, epoch: Epoch, start: i64, end: i64) -> Slice {
    Slice { partition: partition(number), epoch, start, end }
}

fn inserted(records: u64) -> Outcome {
    Outcome { inserted: records, ..Outcome::default() }
}

fn intent(id: u128, slices: &[Slice]) -> Intent {
    let slices = slices.iter().map(|slice| IntentSlice {
        partition: slice.partition.clone(),
        start: slice.start,
        end: slice.end,
    });
    let chain = [Revision([7; 32])];
    Intent::new(BatchId(id), slices.collect(), chain.into(), vec![], VerdictDigest(id as u64)).unwrap()
}

fn assign(ledger: &mut Ledger, number: i32, epoch: Epoch) {
    let unknown = ledger.assign(partition(number), epoch, Some(0), &PendingBatches::default());
    assert_eq!(unknown, []);
}

/// Takes in and seals one batch.
fn seal(ledger: &mut Ledger, id: u128, slices: &[Slice]) {
    for slice in slices {
        assert!(ledger.consume(&slice.partition, slice.epoch, (slice.end - slice.start) as u64, slice.end));
    }
    let intent = (ledger.delivery == Delivery::ExactlyOnce).then(|| intent(id, slices));
    ledger.seal(BatchId(id), slices, intent);
}

fn plan(ledger: &mut Ledger) -> Option<Plan> {
    ledger.plan(|_, _| 0, 1)
}

/// Offsets of a plan, by partition.
fn offsets(plan: &Plan) -> Vec<(i32, i64)> {
    plan.points.iter().map(|point| (point.partition.partition, point.offset)).collect()
}

/// What the metadata of each point lists.
fn listed(plan: &Plan) -> Vec<Vec<u128>> {
    let ids = |point: &Point| {
        let pending = PendingBatches::decode(&point.metadata).unwrap().unwrap_or_default();
        pending.intents().iter().map(|intent| intent.id().0).collect()
    };
    plan.points.iter().map(ids).collect()
}

#[test]
fn a_batch_that_has_not_ended_holds_the_position_back() {
    let mut ledger = Ledger::new(Delivery::AtLeastOnce);
    assign(&mut ledger, 0, 1);
    seal(&mut ledger, 1, &[slice(0, 1, 0, 10)]);
    seal(&mut ledger, 2, &[slice(0, 1, 10, 20)]);
    ledger.end(BatchId(2), &partition(0), &inserted(10));
    assert_eq!(plan(&mut ledger), None);
    ledger.end(BatchId(1), &partition(0), &inserted(10));
    let plan = plan(&mut ledger).unwrap();
    assert_eq!((offsets(&plan), listed(&plan)), (vec![(0, 20)], vec![vec![]]));
    assert!(!ledger.is_drained(&partition(0)));
    let committed = ledger.committed(&plan);
    assert_eq!(committed.settled, [(partition(0), inserted(20))]);
    assert_eq!(committed.done, [BatchId(1), BatchId(2)]);
    assert!(ledger.all_drained());
}

#[test]
fn an_earlier_assignment_changes_nothing() {
    let mut ledger = Ledger::new(Delivery::AtLeastOnce);
    assign(&mut ledger, 0, 1);
    seal(&mut ledger, 1, &[slice(0, 1, 0, 5)]);
    assert_eq!(ledger.revoke(&partition(0)).unwrap().done, [BatchId(1)]);
    assign(&mut ledger, 0, 2);
    assert_eq!(ledger.end(BatchId(1), &partition(0), &inserted(5)), None);
    assert!(!ledger.consume(&partition(0), 1, 5, 10));
    assert_eq!(plan(&mut ledger), None);
    let fresh = Standing { resumed: Some(0), ..Standing::default() };
    assert_eq!(ledger.standings().next(), Some((&partition(0), &fresh)));
}

#[test]
fn an_intent_stands_with_all_partitions_of_its_batch_until_each_has_settled() {
    let mut ledger = Ledger::new(Delivery::ExactlyOnce);
    assign(&mut ledger, 0, 1);
    assign(&mut ledger, 1, 1);
    seal(&mut ledger, 1, &[slice(0, 1, 0, 5), slice(1, 1, 3, 4)]);
    let first = plan(&mut ledger).unwrap();
    assert_eq!((offsets(&first), listed(&first)), (vec![(0, 0), (1, 0)], vec![vec![1], vec![1]]));
    // Refused: it is not there, and is offered again.
    ledger.refused(&first);
    let again = plan(&mut ledger).unwrap();
    assert_eq!(again, first);
    assert_eq!(ledger.committed(&again).intended, [BatchId(1)]);
    seal(&mut ledger, 2, &[slice(0, 1, 5, 9)]);
    ledger.end(BatchId(1), &partition(0), &inserted(5));
    // What settles one batch intends the next.
    let second = plan(&mut ledger).unwrap();
    assert_eq!((offsets(&second), listed(&second)), (vec![(0, 5)], vec![vec![2]]));
    assert_eq!(second.points[0].settles, [BatchId(1)]);
    assert_eq!(ledger.committed(&second).done, []);
    ledger.end(BatchId(1), &partition(1), &inserted(1));
    let third = plan(&mut ledger).unwrap();
    assert_eq!((offsets(&third), listed(&third)), (vec![(1, 4)], vec![vec![]]));
    assert_eq!(ledger.committed(&third).done, [BatchId(1)]);
}

#[test]
fn no_more_batches_are_intended_than_the_metadata_holds() {
    let mut ledger = Ledger::new(Delivery::ExactlyOnce);
    assign(&mut ledger, 0, 1);
    for number in 0..6 {
        seal(&mut ledger, number as u128, &[slice(0, 1, number, number + 1)]);
    }
    let first = plan(&mut ledger).unwrap();
    assert_eq!(listed(&first), [[0, 1, 2, 3]]);
    ledger.committed(&first);
    assert_eq!(plan(&mut ledger), None);
    ledger.end(BatchId(0), &partition(0), &inserted(1));
    let second = plan(&mut ledger).unwrap();
    assert_eq!((offsets(&second), listed(&second)), (vec![(0, 1)], vec![vec![1, 2, 3, 4]]));
}

#[test]
fn recovered_batches_settle_before_anything_new_is_intended() {
    let slices = [slice(0, 1, 5, 9), slice(1, 1, 0, 2)];
    let listed_before = PendingBatches::new(vec![intent(1, &slices)]);
    let mut ledger = Ledger::new(Delivery::ExactlyOnce);
    assert_eq!(ledger.assign(partition(0), 1, Some(5), &listed_before), [BatchId(1)]);
    seal(&mut ledger, 2, &[slice(0, 1, 9, 12)]);
    assert_eq!(plan(&mut ledger), None);
    // Another partition of the same batch comes: it is being recovered already.
    assert_eq!(ledger.assign(partition(1), 2, Some(0), &listed_before), []);
    assert_eq!(ledger.end(BatchId(1), &partition(0), &inserted(4)), Some(4));
    let settling = plan(&mut ledger).unwrap();
    assert_eq!((offsets(&settling), listed(&settling)), (vec![(0, 9)], vec![vec![2]]));
    assert_eq!(ledger.committed(&settling).done, []);
    assert_eq!(ledger.end(BatchId(1), &partition(1), &inserted(2)), Some(2));
    let last = plan(&mut ledger).unwrap();
    assert_eq!(ledger.committed(&last).done, [BatchId(1)]);
    let standing = ledger.standings().next().unwrap().1;
    assert_eq!((standing.consumed, standing.in_flight()), (4 + 3, 3));
}

#[test]
fn a_batch_without_intent_is_dissolved_when_a_partition_goes_and_one_with_stays() {
    let mut ledger = Ledger::new(Delivery::ExactlyOnce);
    assign(&mut ledger, 0, 1);
    assign(&mut ledger, 1, 1);
    seal(&mut ledger, 1, &[slice(0, 1, 0, 5), slice(1, 1, 0, 5)]);
    let intending = plan(&mut ledger).unwrap();
    ledger.committed(&intending);
    seal(&mut ledger, 2, &[slice(0, 1, 5, 6), slice(1, 1, 5, 6)]);
    seal(&mut ledger, 3, &[slice(0, 1, 6, 7)]);
    let revoked = ledger.revoke(&partition(1)).unwrap();
    assert_eq!((revoked.dissolved, revoked.done), (vec![BatchId(2)], vec![]));
    let rest = [slice(0, 1, 5, 6)];
    ledger.replace(BatchId(2), BatchId(4), &rest, Some(intent(4, &rest)));
    assert!(!ledger.knows(BatchId(2)));
    let next = plan(&mut ledger).unwrap();
    assert_eq!((listed(&next), next.intends), (vec![vec![1, 4, 3]], vec![BatchId(4), BatchId(3)]));
}

#[test]
fn dead_letters_beyond_the_limit_wait_for_the_next_commit() {
    let mut ledger = Ledger::new(Delivery::ExactlyOnce);
    assign(&mut ledger, 0, 1);
    for number in 0..3 {
        seal(&mut ledger, number as u128, &[slice(0, 1, number, number + 1)]);
    }
    let intending = plan(&mut ledger).unwrap();
    ledger.committed(&intending);
    for number in 0..3 {
        ledger.end(BatchId(number), &partition(0), &inserted(1));
    }
    let mut settled = Vec::new();
    while let Some(plan) = ledger.plan(|_, _| 10, 15) {
        settled.extend(offsets(&plan));
        ledger.committed(&plan);
    }
    assert_eq!(settled, [(0, 1), (0, 2), (0, 3)]);
}

/// One thing that happens to a ledger.
#[derive(Clone, Debug)]
enum Step {
    /// A batch over these lengths, one a partition; 0 for none.
    Seal([i64; 3]),
    Plan,
    Commit(bool),
    End(prop::sample::Index),
    /// A partition goes and comes again, with what its metadata lists.
    Move(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => [0i64..4, 0i64..4, 0i64..4].prop_map(Step::Seal),
        3 => Just(Step::Plan),
        3 => prop::bool::weighted(0.8).prop_map(Step::Commit),
        5 => any::<prop::sample::Index>().prop_map(Step::End),
        1 => (0usize..3).prop_map(Step::Move),
    ]
}

/// What must hold, from first principles: every record with its own flags, and the metadata as Kafka has it.
#[derive(Default)]
struct Model {
    ended: [Vec<bool>; 3],
    committed: [i64; 3],
    listed: [Vec<BatchId>; 3],
    slices: BTreeMap<BatchId, Vec<Slice>>,
    open: Vec<(BatchId, Slice)>,
    under_way: Option<Plan>,
    next: u128,
    epoch: Epoch,
}

impl Model {
    fn seal(&mut self, ledger: &mut Ledger, lengths: &[i64; 3]) {
        let mut slices = Vec::new();
        for (number, length) in lengths.iter().enumerate().filter(|(_, length)| **length > 0) {
            let start = self.ended[number].len() as i64;
            self.ended[number].resize((start + length) as usize, false);
            let epoch = ledger.partitions[&partition(number as i32)].epoch;
            slices.push(slice(number as i32, epoch, start, start + length));
        }
        if !slices.is_empty() {
            self.next += 1;
            seal(ledger, self.next, &slices);
            self.slices.insert(BatchId(self.next), slices);
        }
    }

    /// Kafka has the commit.
    fn apply(&mut self, plan: &Plan) {
        for point in &plan.points {
            let number = point.partition.partition as usize;
            assert!(point.offset >= self.committed[number], "an offset goes back");
            let prefix = self.ended[number].iter().take_while(|ended| **ended).count() as i64;
            assert!(point.offset <= prefix, "a record is passed that has not ended");
            self.committed[number] = point.offset;
            let pending = PendingBatches::decode(&point.metadata).unwrap().unwrap_or_default();
            self.listed[number] = pending.intents().iter().map(Intent::id).collect();
        }
        for (batch, slices) in &self.slices {
            let listing =
                slices.iter().filter(|slice| self.listed[slice.partition.partition as usize].contains(batch));
            let unsettled =
                slices.iter().filter(|slice| self.committed[slice.partition.partition as usize] < slice.end);
            let listing = listing.count();
            assert!(listing == 0 || listing == unsettled.count(), "a batch is listed with a part of its own");
        }
    }
}

proptest! {
    #[test]
    fn what_is_committed_is_true_whatever_happens(steps in prop::collection::vec(step(), 1..60)) {
        let mut ledger = Ledger::new(Delivery::ExactlyOnce);
        let mut model = Model { epoch: 1, ..Model::default() };
        for number in 0..3 {
            assign(&mut ledger, number, 1);
        }
        for step in steps {
            match step {
                Step::Seal(lengths) => model.seal(&mut ledger, &lengths),
                Step::Plan if model.under_way.is_none() => model.under_way = plan(&mut ledger),
                Step::Commit(happens) => {
                    let Some(plan) = model.under_way.take() else { continue };
                    if !happens {
                        ledger.refused(&plan);
                        continue;
                    }
                    model.apply(&plan);
                    for batch in ledger.committed(&plan).intended {
                        for slice in &model.slices[&batch] {
                            model.open.push((batch, slice.clone()));
                        }
                    }
                }
                Step::End(pick) if !model.open.is_empty() => {
                    let (batch, slice) = model.open.swap_remove(pick.index(model.open.len()));
                    let records = (slice.end - slice.start) as u64;
                    ledger.end(batch, &slice.partition, &inserted(records));
                    let number = slice.partition.partition as usize;
                    model.ended[number][slice.start as usize..slice.end as usize].fill(true);
                }
                Step::Move(number) if model.under_way.is_none() => {
                    let id = partition(number as i32);
                    let revoked = ledger.revoke(&id).unwrap();
                    for old in revoked.dissolved {
                        let mut rest = model.slices.remove(&old).unwrap();
                        rest.retain(|slice| slice.partition != id);
                        model.next += 1;
                        let new = BatchId(model.next);
                        ledger.replace(old, new, &rest, Some(intent(new.0, &rest)));
                        model.slices.insert(new, rest);
                    }
                    model.epoch += 1;
                    let pending = model.listed[number].iter().map(|batch| {
                        intent(batch.0, &model.slices[batch])
                    });
                    let pending = PendingBatches::new(pending.collect());
                    let position = model.committed[number];
                    for batch in ledger.assign(id.clone(), model.epoch, Some(position), &pending) {
                        // Recovered whole.
                        model.open.retain(|(open, _)| *open != batch);
                        for slice in &model.slices[&batch] {
                            model.open.push((batch, slice.clone()));
                        }
                    }
                    // What was not listed is read again.
                    let end = model.listed[number].last().map_or(position, |batch| {
                        let slices = &model.slices[batch];
                        slices.iter().find(|slice| slice.partition == id).unwrap().end
                    });
                    model.ended[number].truncate(end as usize);
                    let (listed, slices) = (&model.listed[number], &mut model.slices);
                    slices.retain(|batch, slices| {
                        listed.contains(batch) || slices.iter().any(|slice| slice.partition != id)
                    });
                    // A batch that has ended before, but for this assignment of the partition.
                    let ended: Vec<_> = listed.iter().filter(|batch| {
                        !model.open.iter().any(|(open, slice)| open == *batch && slice.partition == id)
                    }).copied().collect();
                    for batch in ended {
                        let slice = slices[&batch].iter().find(|slice| slice.partition == id).unwrap();
                        ledger.end(batch, &id, &inserted((slice.end - slice.start) as u64));
                    }
                }
                _ => {}
            }
            for (_, standing) in ledger.standings() {
                prop_assert_eq!(standing.consumed, standing.outcome.records() + standing.in_flight());
            }
        }
        // Everything comes to its end.
        if let Some(plan) = model.under_way.take() {
            ledger.refused(&plan);
        }
        for _ in 0..200 {
            for (batch, slice) in std::mem::take(&mut model.open) {
                ledger.end(batch, &slice.partition, &inserted((slice.end - slice.start) as u64));
                let number = slice.partition.partition as usize;
                model.ended[number][slice.start as usize..slice.end as usize].fill(true);
            }
            let Some(plan) = plan(&mut ledger) else { break };
            model.apply(&plan);
            for batch in ledger.committed(&plan).intended {
                model.open.extend(model.slices[&batch].iter().map(|slice| (batch, slice.clone())));
            }
        }
        prop_assert!(ledger.all_drained(), "{:?}", ledger);
        for number in 0..3 {
            prop_assert_eq!(model.committed[number], model.ended[number].len() as i64);
            prop_assert_eq!(model.listed[number].len(), 0);
        }
    }
}
