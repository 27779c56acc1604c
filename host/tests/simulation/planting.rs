//! Planting: what the planted bugs do to commits on their way, and to what a partition is said to list.

use std::sync::Arc;

use sluice::domain::intent::{Intent, PendingBatches, VerdictDigest};

use crate::chain::is_forced;
use crate::kafka::partition_id;
use crate::offsets::{Letter, Point};
use crate::planted::Planted;
use crate::world::{Shared, World};

/// Spoils a commit as the plan says.
pub(crate) fn into_commit(world: &Shared, points: &mut [Point], letters: &mut Vec<Letter>) {
    let world = &mut *world.lock();
    match world.plan.planted {
        Some(Planted::NoIntent) => points.iter_mut().for_each(|(_, _, metadata)| metadata.clear()),
        Some(Planted::Partial) => {
            if let Some((partition, _, metadata)) = points.last_mut() {
                let stays = |intent: &&Intent| {
                    world.kafka.offsets.committed[*partition]
                        .pending
                        .intents()
                        .iter()
                        .any(|old| old.id() == intent.id())
                };
                *metadata = rewrite(metadata, |intents| intents.iter().filter(stays).cloned().collect());
            }
        }
        Some(Planted::NoForced) => {
            for (_, _, metadata) in points {
                let forget =
                    |intents: &[Intent]| intents.iter().map(|intent| forget(world, intent)).collect();
                *metadata = rewrite(metadata, forget);
            }
        }
        Some(Planted::AllLetters) => {
            for point in &*points {
                letters.extend(letters_of_others(world, point, points));
            }
            letters.sort_unstable();
            letters.dedup();
        }
        _ => {}
    }
}

fn rewrite(metadata: &str, change: impl FnOnce(&[Intent]) -> Vec<Intent>) -> String {
    match PendingBatches::decode(metadata) {
        Ok(Some(pending)) => PendingBatches::new(change(pending.intents())).encode(),
        _ => metadata.to_owned(),
    }
}

/// The intent as it would be had nothing been forced.
fn forget(world: &World, intent: &Intent) -> Intent {
    let Some(chain) = world.chains.iter().find(|chain| chain.revisions() == **intent.chain()) else {
        return intent.clone();
    };
    let mut digest = VerdictDigest::default();
    for slice in intent.slices() {
        let partition = slice.partition.partition as usize;
        let chunk = world.kafka.logs[partition].chunk(partition, slice.start, slice.end, usize::MAX);
        if let Some(chunk) = chunk {
            let verdicts = chain.judge(&chunk, &[], false);
            digest = digest + VerdictDigest::of(&chunk, &verdicts, 0..chunk.len() as u32);
        }
    }
    let (slices, chain) = (intent.slices().to_vec(), Arc::clone(intent.chain()));
    Intent::new(intent.id(), slices, chain, Vec::new(), digest).unwrap_or_else(|_| intent.clone())
}

/// Dead letters of the other partitions of the batches that this point passes.
fn letters_of_others(world: &World, (partition, offset, _): &Point, points: &[Point]) -> Vec<Letter> {
    let mut letters = Vec::new();
    for intent in world.kafka.offsets.committed[*partition].pending.intents() {
        if intent.slice(&partition_id(*partition)).is_none_or(|slice| slice.end > *offset) {
            continue;
        }
        let Some(chain) = world.chains.iter().find(|chain| chain.revisions() == **intent.chain()) else {
            continue;
        };
        for slice in intent.slices() {
            let other = slice.partition.partition as usize;
            if points.iter().any(|(partition, ..)| *partition == other) {
                continue;
            }
            let chunk = world.kafka.logs[other].chunk(other, slice.start, slice.end, usize::MAX);
            let Some(chunk) = chunk else { continue };
            let verdicts = chain.judge(&chunk, &[], false);
            let rejected = verdicts.rejections.iter().filter(|(_, rejection)| !is_forced(rejection));
            letters.extend(rejected.map(|(index, _)| (other, chunk.offset(*index as usize))));
        }
    }
    letters
}

/// What a partition is said to list.
pub(crate) fn into_pending(world: &World, partition: usize, pending: PendingBatches) -> PendingBatches {
    if world.plan.planted != Some(Planted::Stale) {
        return pending;
    }
    let mut intents = Vec::new();
    for intent in world.kafka.offsets.committed.iter().flat_map(|committed| committed.pending.intents()) {
        let known = |intents: &[Intent]| intents.iter().any(|known| known.id() == intent.id());
        if intent.slice(&partition_id(partition)).is_some() && !known(&intents) && !known(pending.intents()) {
            intents.push(intent.clone());
        }
    }
    intents.extend(pending.intents().iter().cloned());
    PendingBatches::new(intents)
}
