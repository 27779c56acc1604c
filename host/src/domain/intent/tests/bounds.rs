//! Tests of the bounds: the worst case is built, and drawn at random.

use proptest::prelude::*;
use proptest::sample::Index;

use super::super::bounds::{
    CHAINS, FORCED_RUNS, METADATA_LIMIT, PARTITION_NUMBER, PARTITIONS, PENDING_BATCHES, REVISIONS, SPAN,
    TOPIC_BYTES, TOPIC_OVERHEAD, lane_holds,
};
use super::super::*;
use super::{chain, forced_of, partition, run, slice};

/// A lane that takes the most bytes: topic names up to the bound, numbers far apart.
fn widest_lane(topics: &[String], highest: i32) -> Vec<PartitionId> {
    let mut lane = Vec::new();
    let rounds = PARTITIONS.div_ceil(topics.len()) as i32;
    for round in 0..rounds {
        let number = highest - (rounds - 1 - round) * (highest / rounds);
        lane.extend(topics.iter().map(|topic| partition(topic, number)));
    }
    lane.truncate(PARTITIONS);
    lane.sort();
    assert!(lane_holds(&lane));
    lane
}

/// Lanes at the bounds: one long topic and what fits beside it.
fn widest_lanes() -> Vec<Vec<PartitionId>> {
    let long = "t".repeat(249);
    let left = TOPIC_BYTES - long.len() - TOPIC_OVERHEAD;
    let other = "o".repeat(left - TOPIC_OVERHEAD);
    let short = |count: usize| (0..count).map(|index| char::from(b'A' + index as u8).to_string());
    let lanes = [
        vec![long.clone()],
        vec![long.clone(), other],
        std::iter::once(long).chain(short(left / (1 + TOPIC_OVERHEAD))).collect(),
        short(50).collect(),
        (0..TOPIC_BYTES / (4 + TOPIC_OVERHEAD)).map(|index| format!("{index:04}")).collect(),
    ];
    lanes.iter().map(|topics| widest_lane(topics, PARTITION_NUMBER)).collect()
}

/// Lengths of the slices of a batch that take the most bytes within [`SPAN`]: as many as can be
/// above a million, the others above 8,192.
fn longest_slices() -> Vec<i64> {
    let (large, small) = ((1 << 20) + (1 << 14) + 2, (1 << 13) + 1);
    let count = (SPAN - PARTITIONS as i64 * small) / (large - small);
    let lengths: Vec<i64> =
        (0..PARTITIONS as i64).map(|index| if index < count { large } else { small }).collect();
    assert!(lengths.iter().sum::<i64>() <= SPAN);
    lengths
}

/// A batch that takes the most bytes: every partition, forced rejections far into its slices.
fn widest_batch(
    lane: &[PartitionId],
    starts: &[i64],
    lengths: &[i64],
    chain: Arc<[Revision]>,
    id: u128,
) -> Intent {
    let slices: Vec<_> = lane
        .iter()
        .zip(starts.iter().zip(lengths))
        .map(|(partition, (start, length))| IntentSlice {
            partition: partition.clone(),
            start: *start,
            end: start + length,
        })
        .collect();
    let mut forced: Vec<_> = slices
        .iter()
        .enumerate()
        .filter(|(_, slice)| slice.end - slice.start > 1 << 20)
        .take(FORCED_RUNS)
        .map(|(index, slice)| {
            run(index, slice.start + (1 << 20), slice.end, index % chain.len(), ForcedKind::Memory)
        })
        .collect();
    assert_eq!(forced.len(), FORCED_RUNS);
    forced.sort_by_key(|run| run.slice);
    Intent::new(BatchId(u128::MAX - id), slices, chain, forced, VerdictDigest(u64::MAX)).unwrap()
}

/// Every bound reached at once.
fn widest_list(lane: &[PartitionId]) -> PendingBatches {
    let lengths = longest_slices();
    let mut starts = vec![i64::MAX - PENDING_BATCHES as i64 * SPAN; PARTITIONS];
    let mut intents = Vec::new();
    for batch in 0..PENDING_BATCHES {
        // The same modules in another order are another chain.
        let chain = chain((0..REVISIONS).map(|module| ((module + batch) % REVISIONS) as u8));
        intents.push(widest_batch(lane, &starts, &lengths, chain, batch as u128));
        starts.iter_mut().zip(&lengths).for_each(|(start, length)| *start += length);
    }
    PendingBatches::new(intents)
}

/// Most bytes of a payload within the bounds, summed by hand from the format. All of them cannot be
/// reached at once, so what the tests build stays a little below.
const PAYLOAD_BOUND: usize = {
    let partitions = PARTITIONS * (3 + 9);
    let tables = 1 + TOPIC_BYTES + partitions + 1 + 32 * REVISIONS + 1 + CHAINS * (1 + REVISIONS);
    // More than a million offsets take four bytes, and that fits 16 times into the span.
    let slices = 16 * 4 + (PARTITIONS - 16) * 3;
    let forced = 1 + FORCED_RUNS * (3 + 4 + 4);
    let members = 2 + PARTITIONS / 8;
    tables + 1 + PENDING_BATCHES * (16 + 8 + 1 + members + slices + forced)
};

#[test]
fn the_worst_case_within_the_bounds_fits() {
    assert!(text::length(PAYLOAD_BOUND) <= METADATA_LIMIT, "{PAYLOAD_BOUND}");
    let mut largest = 0;
    for lane in widest_lanes() {
        let list = widest_list(&lane);
        assert!(list.fits(), "{} bytes", list.encoded_len());
        assert_eq!(PendingBatches::decode(&list.encode()), Ok(Some(list.clone())));
        largest = largest.max(wire::write(list.intents()).len());
    }
    assert!((PAYLOAD_BOUND - 64..=PAYLOAD_BOUND).contains(&largest), "{largest} of {PAYLOAD_BOUND}");

    // The bounds are needed: one batch more does not fit.
    let list = widest_list(&widest_lanes()[2]);
    let more = [list.intents(), &list.intents()[..1]].concat();
    assert!(!PendingBatches::new(more).fits());
}

/// However large its numbers are, a batch that is pending alone can be written down: a
/// lane never waits for something that does not come.
#[test]
fn one_batch_alone_always_fits() {
    for lane in widest_lanes() {
        let lane: Vec<_> = lane
            .iter()
            .map(|of| PartitionId { partition: of.partition.saturating_mul(21_474), ..of.clone() })
            .collect();
        assert!(lane_holds(&lane));
        let (starts, lengths) = ([i64::MAX / 2; PARTITIONS], [i64::MAX / 2; PARTITIONS]);
        let batch = widest_batch(&lane, &starts, &lengths, chain(0..REVISIONS as u8), 0);
        let alone = PendingBatches::new(vec![batch]);
        assert!(alone.fits());
    }
}

/// A batch that is missing from a list leaves a gap in every partition; 64 are the longest slices
/// that take one byte, and a gap of 64 must take no more.
#[test]
fn a_missing_batch_never_makes_the_text_longer() {
    let lane = widest_lane(&["t".to_owned()], PARTITION_NUMBER);
    let batch = |number: i64| {
        let slices = lane.iter().map(|partition| IntentSlice {
            partition: partition.clone(),
            start: 64 * number,
            end: 64 * (number + 1),
        });
        Intent::new(BatchId(0), slices.collect(), chain([1]), vec![], VerdictDigest(0)).unwrap()
    };
    let length = |numbers: &[i64]| wire::write(&numbers.iter().copied().map(batch).collect::<Vec<_>>()).len();
    assert!(length(&[0, 2]) < length(&[0, 1, 2]));
    assert!(length(&[1, 2]) < length(&[0, 1, 2]));
}

/// A lane cannot cut a chunk, so one whose records fail each in another way than its neighbours
/// must fit, alone.
#[test]
fn one_chunk_with_any_forced_rejections_fits() {
    for (distance, modules) in [(1, 16), (4000, 2)] {
        let start = 1 << 62;
        let slices = vec![slice(&"t".repeat(249), i32::MAX, start, start + 1024 * distance)];
        let forced = (0..1024i64).map(|index| {
            let offset = start + index * distance;
            run(0, offset, offset + 1, index as usize % modules, ForcedKind::Timeout)
        });
        let intent =
            Intent::new(BatchId(0), slices, chain(0..16), forced.collect(), VerdictDigest(0)).unwrap();
        let list = PendingBatches::new(vec![intent]);
        assert!(list.fits(), "{}", list.encoded_len());
    }
}

/// A lane and its batches, anywhere within the bounds.
fn within_bounds() -> impl Strategy<Value = PendingBatches> {
    let weight = prop_oneof![4 => 1..100i64, 1 => 1..1_000_000i64];
    let forced = (any::<Index>(), any::<Index>(), any::<Index>(), 0..16u8, any::<bool>());
    let batch = (
        prop::collection::vec((any::<Index>(), weight), PARTITIONS),
        1..=SPAN,
        0..REVISIONS,
        prop::collection::vec(forced, 0..=FORCED_RUNS),
        any::<(u128, u64)>(),
    );
    let lane = prop::collection::btree_set(("[a-zA-Z]{1,60}|[a-z]", 0..=PARTITION_NUMBER), 1..=PARTITIONS);
    let lane = lane.prop_map(|drawn| {
        let mut lane: Vec<PartitionId> = Vec::new();
        for (topic, number) in drawn {
            let joins = partition(&topic, number);
            // Where no other topic has room, more partitions of the first.
            match lane.first().filter(|_| !lane_holds(lane.iter().chain([&joins]))) {
                Some(first) => lane.push(PartitionId { partition: number, ..first.clone() }),
                None => lane.push(joins),
            }
        }
        lane.sort();
        lane.dedup();
        lane
    });
    let start = prop_oneof![0..i64::MAX / 2, 0..1_000_000_000i64];
    let starts = prop::collection::vec(start, PARTITIONS);
    (lane, starts, prop::collection::vec(batch, 1..=PENDING_BATCHES)).prop_map(
        |(lane, mut positions, batches)| {
            let intent =
                |(drawn, span, rotation, forced, (id, digest)): (Vec<(Index, i64)>, _, usize, Vec<_>, _)| {
                    let members: BTreeMap<usize, i64> =
                        drawn.iter().map(|(index, weight)| (index.index(lane.len()), *weight)).collect();
                    let total: i64 = members.values().sum();
                    let slices: Vec<_> = members
                        .iter()
                        .map(|(member, weight)| {
                            let start = positions[*member];
                            positions[*member] +=
                                ((span as i128 * *weight as i128 / total as i128) as i64).max(1);
                            IntentSlice { partition: lane[*member].clone(), start, end: positions[*member] }
                        })
                        .collect();
                    let chain = chain((0..REVISIONS).map(|module| ((module + rotation) % REVISIONS) as u8));
                    let forced = forced_of(&slices, &forced, chain.len());
                    Intent::new(BatchId(id), slices, chain, forced, VerdictDigest(digest)).unwrap()
                };
            PendingBatches::new(batches.into_iter().map(intent).collect())
        },
    )
}

proptest! {
    #[test]
    fn what_keeps_to_the_bounds_fits(list in within_bounds()) {
        prop_assert!(list.fits(), "{}", list.encoded_len());
        prop_assert!(wire::write(list.intents()).len() <= PAYLOAD_BOUND);
        prop_assert_eq!(PendingBatches::decode(&list.encode()), Ok(Some(list)));
    }
}
