//! Planted bugs: each breaks the protocol in one way, outside of the product's code, and each must be found.

/// See the module documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Planted {
    /// Batches are inserted whose intents are not in the metadata.
    NoIntent,
    /// ClickHouse does not deduplicate.
    NoToken,
    /// Rejections that a second run might not repeat are not in the intent, nor in its digest.
    NoForced,
    /// An intent reaches the metadata of some partitions of its batch only.
    Partial,
    /// A batch is recovered for a partition that no longer lists it.
    Stale,
    /// Whoever settles a batch publishes the dead letters of all of its partitions.
    AllLetters,
    /// Batches are settled whose INSERT is still under way.
    CommitBeforeInsert,
    /// Commits without dead letters are made plainly, and given up while they are under way.
    Overlapping,
    /// The pieces of a batch that was cut go under tokens that nobody else can know.
    RandomPieces,
    /// Tables are said to have all that they are asked for.
    BelievedTokens,
    /// A record that comes again begins its partition anew, as if it were of another log.
    TakenForOtherLog,
    /// A host that was thrown out of the group inserts without a token.
    InsertAfterRevocation,
}
