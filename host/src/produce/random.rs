//! Random numbers that never change: the same seed, index and lane give the same draws on every
//! machine and with every version of every library.
//!
//! The algorithm is SplitMix64 (Steele, Lea and Flood, *Fast splittable pseudorandom number
//! generators*, 2014), written out here because generated files are committed and compared byte
//! by byte, which no library promises across its versions. Only integer arithmetic is used, so
//! that no floating point unit has a say. Not for secrets.
//!
//! State: one `u64` a stream. Every (seed, index, lane) opens a stream of its own, so a record
//! can be made without those before it, and a field added to a description leaves the others as
//! they were.

/// Increment of SplitMix64: 2^64 divided by the golden ratio, made odd.
const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// One stream of draws.
#[derive(Clone, Debug)]
pub(super) struct Stream {
    state: u64,
}

impl Stream {
    /// The stream of one lane (see [`lane`]) of record `index` under `seed`.
    pub(super) fn new(seed: u64, index: u64, lane: u64) -> Self {
        let seeded = mix(seed.wrapping_add(GOLDEN_GAMMA));
        let indexed = mix(seeded ^ index.wrapping_mul(GOLDEN_GAMMA));
        Self { state: mix(indexed ^ lane) }
    }

    /// 64 random bits.
    pub(super) fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN_GAMMA);
        mix(self.state)
    }

    /// A number in `0..bound` (0 if `bound` is 0). The bias is under `bound / 2^64`.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        let product = u128::from(self.bits()) * u128::from(bound);
        u64::try_from(product >> 64).unwrap_or(u64::MAX)
    }

    /// A number in `from..=to`; `from` if the range is empty.
    pub(super) fn between(&mut self, from: i64, to: i64) -> i64 {
        if to <= from {
            return from;
        }
        let span = to.abs_diff(from);
        let drawn = if span == u64::MAX { self.bits() } else { self.below(span + 1) };
        from.wrapping_add_unsigned(drawn)
    }

    /// As [`Stream::below`], leaning to the small numbers: the smallest of `skew + 1` draws.
    pub(super) fn skewed_below(&mut self, bound: u64, skew: u32) -> u64 {
        (0..=skew).map(|_| self.below(bound)).min().unwrap_or(0)
    }

    /// True with the probability that `threshold` stands for (see [`threshold`]).
    pub(super) fn chance(&mut self, threshold: u64) -> bool {
        self.bits() < threshold || threshold == u64::MAX
    }
}

/// A share in `0.0..=1.0` as the bound that [`Stream::chance`] compares with.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a float cast saturates, and the share is clamped to 0..=1 first"
)]
pub(super) fn threshold(share: f64) -> u64 {
    // One multiplication by a power of two is exact in IEEE 754: the same bound everywhere.
    (share.clamp(0.0, 1.0) * 18_446_744_073_709_551_616.0) as u64
}

/// The lane named `name`: FNV-1a, 64 bits.
pub(super) fn lane(name: &str) -> u64 {
    name.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The finaliser of SplitMix64.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_algorithm_is_splitmix64() {
        // The published test vector for the state 1234567.
        let mut stream = Stream { state: 1_234_567 };
        let drawn: Vec<u64> = (0..3).map(|_| stream.bits()).collect();
        assert_eq!(drawn, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn streams_stay_as_they_were() {
        // Frozen: committed test data depends on these. Never change them, add a new scheme instead.
        let mut stream = Stream::new(1, 2, lane("user_id"));
        let drawn: Vec<u64> = (0..2).map(|_| stream.bits()).collect();
        assert_eq!(drawn, FROZEN);
    }

    const FROZEN: [u64; 2] = [13_901_055_999_838_844_865, 14_021_074_464_637_142_407];

    #[test]
    fn chance_keeps_its_share() {
        let mut stream = Stream::new(7, 0, 0);
        let hits = (0..100_000).filter(|_| stream.chance(threshold(0.02))).count();
        assert!((1_800..2_200).contains(&hits), "{hits} of 100,000 at a share of 2 %");
        assert!((0..1_000).all(|_| !stream.chance(threshold(0.0))));
        assert!((0..1_000).all(|_| stream.chance(threshold(1.0))));
    }

    #[test]
    fn skew_leans_to_the_small() {
        let mut stream = Stream::new(7, 0, 0);
        let mean = |stream: &mut Stream, skew| {
            (0..10_000).map(|_| stream.skewed_below(1_000, skew)).sum::<u64>() / 10_000
        };
        let (even, skewed) = (mean(&mut stream, 0), mean(&mut stream, 2));
        assert!((480..520).contains(&even) && (230..270).contains(&skewed), "{even} and {skewed}");
    }

    proptest! {
        #[test]
        fn draws_stay_in_range(seed: u64, index: u64, from: i64, to: i64, bound: u64) {
            let mut stream = Stream::new(seed, index, 3);
            let drawn = stream.between(from, to);
            let in_range = if from <= to { (from..=to).contains(&drawn) } else { drawn == from };
            prop_assert!(in_range, "{}", drawn);
            prop_assert!(stream.below(bound) < bound.max(1));
        }
    }
}
