//! Tests of intents and of the lists of them: round trips, damage, stability.

mod bounds;

use proptest::prelude::*;
use proptest::sample::Index;

use super::bounds::PARTITION_NUMBER;
use super::*;
use crate::domain::chunk::ChunkBuilder;
use crate::domain::verdict::{ChunkVerdicts, OutputRows};

fn partition(topic: &str, partition: i32) -> PartitionId {
    PartitionId { topic: topic.into(), partition }
}

fn slice(topic: &str, number: i32, start: i64, end: i64) -> IntentSlice {
    IntentSlice { partition: partition(topic, number), start, end }
}

fn chain(modules: impl IntoIterator<Item = u8>) -> Arc<[Revision]> {
    modules.into_iter().map(|module| Revision([module; 32])).collect()
}

fn run(slice: usize, start: i64, end: i64, module: usize, kind: ForcedKind) -> ForcedRun {
    ForcedRun { slice, start, end, module, kind }
}

fn two_batches() -> PendingBatches {
    let first = Intent::new(
        BatchId(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef),
        vec![slice("purchases", 0, 1000, 1500), slice("purchases", 7, 20, 30), slice("refunds", 7, 0, 1)],
        chain([1, 2, 3]),
        vec![run(0, 1001, 1002, 0, ForcedKind::Timeout), run(1, 25, 30, 2, ForcedKind::Memory)],
        VerdictDigest(0xfeed_0000_0000_beef),
    );
    let second = Intent::new(
        BatchId(7),
        vec![slice("purchases", 0, 1500, 1600), slice("refunds", 7, 3, 5)],
        chain([1, 4, 3]),
        vec![],
        VerdictDigest(1),
    );
    PendingBatches::new(vec![first.unwrap(), second.unwrap()])
}

#[test]
fn the_text_is_frozen() {
    // Hosts of another release read it: another text is another version.
    let text = two_batches().encode();
    insta::assert_snapshot!(text);
    assert_eq!(PendingBatches::decode(&text), Ok(Some(two_batches())));
    let newer = text.replacen("sluice1:", "sluice2:", 1);
    assert_eq!(PendingBatches::decode(&newer), Err(IntentError::NewerVersion { version: 2 }));
}

#[test]
fn nothing_pending_is_the_empty_text() {
    assert_eq!(PendingBatches::default().encode(), "");
    assert_eq!(PendingBatches::default().encoded_len(), 0);
    assert_eq!(PendingBatches::decode(""), Ok(None));
    assert!(matches!(PendingBatches::decode("{\"lag\":3}"), Err(IntentError::Foreign { .. })));
}

#[test]
fn an_intent_keeps_its_invariants() {
    let digest = VerdictDigest(0);
    let new = |slices: &[IntentSlice], forced: &[ForcedRun]| {
        Intent::new(BatchId(1), slices.to_vec(), chain([1]), forced.to_vec(), digest).map(|_| ())
    };
    let (a, b) = (slice("t", 0, 0, 10), slice("t", 1, 5, 6));
    let timeout = |slice, start, end| run(slice, start, end, 0, ForcedKind::Timeout);
    assert_eq!(
        new(&[a.clone(), b.clone()], &[timeout(0, 0, 3), timeout(0, 3, 10), timeout(1, 5, 6)]),
        Ok(())
    );
    assert_eq!(new(&[], &[]), Err(IntentFault::NoSlice));
    for slices in [
        [b.clone(), a.clone()],
        [a.clone(), a.clone()],
        [a.clone(), slice("t", 1, 5, 5)],
        [slice("t", -1, 0, 1), b.clone()],
        [slice("t", 0, -1, 1), b.clone()],
    ] {
        assert_eq!(new(&slices, &[]), Err(IntentFault::Slices), "{slices:?}");
    }
    for forced in [
        [timeout(0, 3, 4), timeout(0, 2, 3)],
        [timeout(0, 3, 5), timeout(0, 4, 6)],
        [timeout(1, 5, 6), timeout(0, 2, 3)],
        [timeout(0, 9, 11), timeout(1, 5, 6)],
        [timeout(0, 9, 10), timeout(1, 4, 6)],
        [timeout(0, 9, 10), timeout(2, 5, 6)],
        [timeout(0, 9, 9), timeout(1, 5, 6)],
    ] {
        assert_eq!(new(&[a.clone(), b.clone()], &forced), Err(IntentFault::Forced), "{forced:?}");
    }
    assert_eq!(
        new(std::slice::from_ref(&a), &[run(0, 1, 2, 1, ForcedKind::Timeout)]),
        Err(IntentFault::Module)
    );
    let empty = Intent::new(BatchId(1), vec![a], chain([]), vec![], digest);
    assert_eq!(empty.map(|_| ()), Err(IntentFault::Module));
}

/// A part whose offsets are every second one from `base`; `forced` are the indexes, modules
/// (0 a validator, 1 the mapper) and kinds of its rejections.
fn part(number: i32, base: i64, records: usize, rejected: &[(u32, usize, RejectionKind)]) -> Part {
    let mut builder = ChunkBuilder::new("t".into(), number, base);
    (0..records).for_each(|index| builder.push(base + 2 * index as i64, 0, None, None, []));
    let rejection = |(index, module, kind): &(u32, usize, RejectionKind)| {
        let rejection = Rejection {
            stage: [Stage::Validate, Stage::Map][*module],
            module: "module".into(),
            revision: Some(Revision([*module as u8; 32])),
            kind: *kind,
            code: "code".into(),
            field: None,
            reason: String::new(),
        };
        (*index, rejection)
    };
    let verdicts = ChunkVerdicts {
        chain: Revision([9; 32]),
        outputs: vec![OutputRows { rows_per_record: vec![0; records], ..OutputRows::default() }],
        rejections: rejected.iter().map(rejection).collect(),
    };
    Part { chunk: Arc::new(builder.build()), verdicts: Arc::new(verdicts), epoch: 1 }
}

#[test]
fn the_intent_of_a_batch_has_its_slices_and_runs_of_forced_rejections() {
    use RejectionKind::{Memory, Rejected, Timeout};
    let parts = vec![
        part(5, 100, 4, &[(0, 0, Timeout), (1, 0, Rejected), (2, 1, Timeout), (3, 1, Timeout)]),
        part(2, 0, 3, &[(0, 0, Memory), (1, 0, Timeout), (2, 0, Timeout)]),
        // The records between 106 and 120 do not exist, so the run of timeouts goes on.
        part(5, 120, 2, &[(0, 1, Timeout), (1, 1, Memory)]),
    ];
    assert_eq!(parts.iter().map(forced_runs).collect::<Vec<_>>(), [2, 2, 2]);
    let batch = Batch::seal(BatchId(3), parts);
    let intent = Intent::of(&batch, chain([0, 1])).unwrap();
    assert_eq!(intent.slices(), [slice("t", 2, 0, 5), slice("t", 5, 100, 123)]);
    assert_eq!(
        intent.forced(),
        [
            run(0, 0, 1, 0, ForcedKind::Memory),
            run(0, 2, 5, 0, ForcedKind::Timeout),
            run(1, 100, 101, 0, ForcedKind::Timeout),
            run(1, 104, 121, 1, ForcedKind::Timeout),
            run(1, 122, 123, 1, ForcedKind::Memory),
        ]
    );
    assert_eq!(intent.digest(), digest(&batch.parts));
    let at = |number, offset| intent.forced_at(&partition("t", number), offset);
    assert_eq!(at(2, 0), Some((0, ForcedKind::Memory)));
    assert_eq!(at(5, 120), Some((1, ForcedKind::Timeout)));
    assert_eq!([at(5, 102), at(5, 123), at(2, 100), at(3, 0)], [None; 4]);
    assert_eq!(Intent::of(&batch, chain([0, 2])), Err(IntentFault::Module));
}

// --- Lists as they come: slices of a partition touch or leave a gap -------------------------------

/// One batch: for each partition of the lane, whether it takes part, the gap before and the length.
type Shape = (Vec<(bool, i64, i64)>, u8, Vec<(Index, Index, Index, u8, bool)>, (u128, u64));

fn lane() -> impl Strategy<Value = Vec<PartitionId>> {
    let number = prop_oneof![0..10i32, 0..=PARTITION_NUMBER, 0..=i32::MAX];
    prop::collection::btree_set(("[a-c]{1,2}", number), 1..12)
        .prop_map(|lane| lane.into_iter().map(|(topic, number)| partition(&topic, number)).collect())
}

fn length(exponents: std::ops::Range<u32>) -> impl Strategy<Value = i64> {
    (exponents, any::<u64>())
        .prop_map(|(exponent, bits)| (1 << exponent) + (bits & ((1 << exponent) - 1)) as i64)
}

fn shape() -> impl Strategy<Value = Shape> {
    let gap = prop_oneof![4 => Just(0), 1 => length(0..40)];
    let of_partition = (any::<bool>(), gap, length(0..40));
    let forced = (any::<Index>(), any::<Index>(), any::<Index>(), 0..16u8, any::<bool>());
    (
        prop::collection::vec(of_partition, 12),
        0..4u8,
        prop::collection::vec(forced, 0..6),
        (any::<u128>(), any::<u64>()),
    )
}

fn forced_of(
    slices: &[IntentSlice],
    drawn: &[(Index, Index, Index, u8, bool)],
    modules: usize,
) -> Vec<ForcedRun> {
    let mut forced: Vec<ForcedRun> = drawn
        .iter()
        .map(|(index, start, length, module, memory)| {
            let slice = index.index(slices.len());
            let IntentSlice { start: first, end, .. } = slices[slice];
            let start = first + start.index((end - first) as usize) as i64;
            let end = start + 1 + length.index((end - start) as usize) as i64;
            let kind = if *memory { ForcedKind::Memory } else { ForcedKind::Timeout };
            run(slice, start, end, usize::from(*module) % modules, kind)
        })
        .collect();
    forced.sort_by_key(|run| (run.slice, run.start));
    let mut apart: Vec<ForcedRun> = Vec::new();
    for run in forced {
        if apart.last().is_none_or(|last| (last.slice, last.end) <= (run.slice, run.start)) {
            apart.push(run);
        }
    }
    apart
}

fn list(lane: &[PartitionId], starts: &[i64], shapes: &[Shape]) -> PendingBatches {
    let mut positions = starts.to_vec();
    let mut intents = Vec::new();
    for (of_partition, first_module, forced, (id, digest)) in shapes {
        let mut slices = Vec::new();
        for (index, (part_of, gap, length)) in of_partition.iter().enumerate().take(lane.len()) {
            if *part_of || (index == 0 && lane.len() == 1) {
                let start = positions[index] + gap;
                positions[index] = start + length;
                slices.push(IntentSlice { partition: lane[index].clone(), start, end: positions[index] });
            }
        }
        let chain = chain(*first_module..*first_module + 3);
        let forced = forced_of(&slices, if slices.is_empty() { &[] } else { forced }, chain.len());
        intents.extend(Intent::new(BatchId(*id), slices, chain, forced, VerdictDigest(*digest)).ok());
    }
    PendingBatches::new(intents)
}

fn lists() -> impl Strategy<Value = PendingBatches> {
    let start = prop_oneof![0..1000i64, length(0..62)];
    (lane(), prop::collection::vec(start, 12), prop::collection::vec(shape(), 1..6))
        .prop_map(|(lane, starts, shapes)| list(&lane, &starts, &shapes))
        .prop_filter("has a batch", |list| !list.intents().is_empty())
}

proptest! {
    #[test]
    fn any_list_comes_back(list in lists()) {
        let text = list.encode();
        prop_assert_eq!(text.len(), list.encoded_len());
        prop_assert_eq!(PendingBatches::decode(&text), Ok(Some(list)));
    }

    /// An operator who resets offsets, or a topic made anew, can put slices in any order.
    #[test]
    fn slices_that_overlap_or_go_back_come_back(
        ranges in prop::collection::vec((any::<Index>(), any::<Index>()), 1..5),
    ) {
        let intent = |(start, length): &(Index, Index)| {
            let start = start.index(i64::MAX as usize) as i64;
            let end = start + 1 + length.index((i64::MAX - start) as usize) as i64;
            Intent::new(BatchId(1), vec![slice("t", 0, start, end)], chain([1]), vec![], VerdictDigest(0)).unwrap()
        };
        let list = PendingBatches::new(ranges.iter().map(intent).collect());
        prop_assert_eq!(PendingBatches::decode(&list.encode()), Ok(Some(list)));
    }

    #[test]
    fn damage_is_recognised(list in lists(), at in any::<Index>(), by in 0x20u8..0x7f) {
        let text = list.encode();
        let at = at.index(text.len());
        prop_assert!(at == 0 || PendingBatches::decode(&text[..at]).is_err());
        prop_assert!(at == 0 || PendingBatches::decode(&text[at..]).is_err());
        let mut changed = text.clone().into_bytes();
        changed.remove(at);
        prop_assert!(PendingBatches::decode(std::str::from_utf8(&changed).unwrap()).is_err());
        changed.insert(at, by);
        if changed != text.as_bytes() {
            prop_assert!(PendingBatches::decode(std::str::from_utf8(&changed).unwrap()).is_err());
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in prop_oneof![any::<String>(), "sluice1:[A-Za-z0-9_-]{0,200}"]) {
        prop_assert!(text.is_empty() || PendingBatches::decode(&text).is_err());
    }

    /// Payloads with a right checksum, near to real ones: what is read is written as something
    /// that reads the same.
    #[test]
    fn no_payload_makes_it_panic(
        list in lists(),
        changes in prop::collection::vec((any::<Index>(), any::<u8>()), 1..4),
        random in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut payload = wire::write(list.intents());
        for (at, byte) in changes {
            let at = at.index(payload.len());
            payload[at] = byte;
        }
        for payload in [payload, random] {
            if let Ok(intents) = wire::read(&payload) {
                prop_assert_eq!(wire::read(&wire::write(&intents)), Ok(intents));
            }
        }
    }

    /// So a lane measures the list of all its batches, and not that of every partition.
    #[test]
    fn a_partition_never_has_a_longer_text_than_its_lane(list in lists(), at in any::<Index>()) {
        let whole = list.encoded_len();
        let mut rest = list.intents().to_vec();
        let removed = rest.remove(at.index(rest.len()));
        prop_assert!(PendingBatches::new(rest).encoded_len() <= whole);
        for slice in removed.slices() {
            let of_partition = list.of_partition(&slice.partition);
            prop_assert!(of_partition.encoded_len() <= whole);
            prop_assert!(of_partition.intents().contains(&removed));
            let texts = list.texts([&slice.partition, &partition("other", 0), &slice.partition]);
            prop_assert_eq!(texts, [of_partition.encode(), String::new(), of_partition.encode()]);
        }
    }
}
