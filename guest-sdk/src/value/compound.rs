//! Values made of values: `Nullable`, `LowCardinality`, `Array`, `Map`, `Tuple`.

use std::collections::{BTreeMap, HashMap};

use super::{Scalar, Value, encode_length};

impl<T: Scalar> Value for Option<T> {
    fn type_name() -> String {
        format!("Nullable({})", T::type_name())
    }

    #[inline]
    fn encode(&self, bytes: &mut Vec<u8>) {
        match self {
            Some(value) => {
                bytes.push(0);
                value.encode(bytes);
            }
            None => bytes.push(1),
        }
    }
}

/// A column with few distinct values, which ClickHouse keeps in a dictionary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LowCardinality<T>(pub T);

/// A value that may stand in a [`LowCardinality`]: a scalar, or an `Option` of one. (ClickHouse
/// itself narrows this to strings, dates and, where a setting allows it, numbers.)
pub trait Dictionary: Value {}

impl<T: Scalar> Dictionary for T {}
impl<T: Scalar> Dictionary for Option<T> {}

impl<T> From<T> for LowCardinality<T> {
    fn from(value: T) -> Self {
        Self(value)
    }
}

impl<T: Dictionary> Value for LowCardinality<T> {
    fn type_name() -> String {
        format!("LowCardinality({})", T::type_name())
    }

    #[inline]
    fn encode(&self, bytes: &mut Vec<u8>) {
        self.0.encode(bytes);
    }
}

impl<T: Value> Value for [T] {
    fn type_name() -> String {
        T::sequence_type_name()
    }

    #[inline]
    fn encode(&self, bytes: &mut Vec<u8>) {
        T::encode_sequence(self, bytes);
    }
}

impl<T: Value> Value for Vec<T> {
    fn type_name() -> String {
        T::sequence_type_name()
    }

    #[inline]
    fn encode(&self, bytes: &mut Vec<u8>) {
        T::encode_sequence(self, bytes);
    }
}

fn map_type_name<K: Value, V: Value>() -> String {
    format!("Map({}, {})", K::type_name(), V::type_name())
}

fn encode_pairs<'a, K: Value + 'a, V: Value + 'a>(
    pairs: impl ExactSizeIterator<Item = (&'a K, &'a V)>,
    bytes: &mut Vec<u8>,
) {
    encode_length(pairs.len(), bytes);
    for (key, value) in pairs {
        key.encode(bytes);
        value.encode(bytes);
    }
}

/// A `Map` column from pairs in the order given, without a tree or a table. (A plain vector of
/// pairs is an `Array(Tuple(...))`.)
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Map<K, V>(pub Vec<(K, V)>);

impl<K, V> FromIterator<(K, V)> for Map<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().collect())
    }
}

impl<K: Value, V: Value> Value for Map<K, V> {
    fn type_name() -> String {
        map_type_name::<K, V>()
    }

    #[inline]
    fn encode(&self, bytes: &mut Vec<u8>) {
        encode_pairs(self.0.iter().map(|(key, value)| (key, value)), bytes);
    }
}

impl<K: Value, V: Value> Value for BTreeMap<K, V> {
    fn type_name() -> String {
        map_type_name::<K, V>()
    }

    #[inline]
    fn encode(&self, bytes: &mut Vec<u8>) {
        encode_pairs(self.iter(), bytes);
    }
}

// A hash map has no order of its own, but the same record must give the same bytes every time:
// the pairs go out by key. `BTreeMap` and `Map` spare the sorting.
impl<K: Value + Ord, V: Value, S> Value for HashMap<K, V, S> {
    fn type_name() -> String {
        map_type_name::<K, V>()
    }

    fn encode(&self, bytes: &mut Vec<u8>) {
        let mut pairs: Vec<(&K, &V)> = self.iter().collect();
        pairs.sort_unstable_by(|left, right| left.0.cmp(right.0));
        encode_pairs(pairs.into_iter(), bytes);
    }
}

macro_rules! tuples {
    ($(($($element:ident $index:tt),+))*) => {$(
        impl<$($element: Value),+> Value for ($($element,)+) {
            fn type_name() -> String {
                format!("Tuple({})", [$($element::type_name()),+].join(", "))
            }

            #[inline]
            fn encode(&self, bytes: &mut Vec<u8>) {
                $(self.$index.encode(bytes);)+
            }
        }
    )*};
}

tuples! {
    (A 0)
    (A 0, B 1)
    (A 0, B 1, C 2)
    (A 0, B 1, C 2, D 3)
    (A 0, B 1, C 2, D 3, E 4)
    (A 0, B 1, C 2, D 3, E 4, F 5)
    (A 0, B 1, C 2, D 3, E 4, F 5, G 6)
    (A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7)
}

#[cfg(test)]
mod tests {
    use super::super::encoded;
    use super::*;

    #[test]
    fn nullable_and_low_cardinality() {
        assert_eq!(encoded(Some(7u8)), [0, 7]);
        assert_eq!(encoded(None::<u8>), [1]);
        assert_eq!(encoded(LowCardinality("a")), [1, b'a']);
        assert_eq!(<LowCardinality<Option<&str>>>::type_name(), "LowCardinality(Nullable(String))");
        assert_eq!(encoded(LowCardinality(None::<&str>)), [1]);
    }

    #[test]
    fn arrays_nest() {
        assert_eq!(<Vec<Vec<u16>>>::type_name(), "Array(Array(UInt16))");
        assert_eq!(encoded(vec![vec![1u16], vec![]]), [2, 1, 1, 0, 0]);
        assert_eq!(<Vec<Option<&str>>>::type_name(), "Array(Nullable(String))");
        assert_eq!(<Vec<Vec<u8>>>::type_name(), "Array(String)");
    }

    #[test]
    fn maps_are_the_same_whatever_holds_them() {
        let pairs = [("b", 2u8), ("a", 1), ("c", 3)];
        let sorted = [3, 1, b'a', 1, 1, b'b', 2, 1, b'c', 3];
        assert_eq!(encoded(HashMap::from(pairs)), sorted);
        assert_eq!(encoded(BTreeMap::from(pairs)), sorted);
        assert_eq!(encoded(Map::from_iter(pairs)), [3, 1, b'b', 2, 1, b'a', 1, 1, b'c', 3]);
        assert_eq!(<Map<&str, Vec<u32>>>::type_name(), "Map(String, Array(UInt32))");
        assert_eq!(<HashMap<String, u8>>::type_name(), <BTreeMap<String, u8>>::type_name());
        assert_eq!(<Vec<(&str, u8)>>::type_name(), "Array(Tuple(String, UInt8))");
    }

    #[test]
    fn tuples_are_their_elements() {
        assert_eq!(<(u8, Option<&str>, Vec<i8>)>::type_name(), "Tuple(UInt8, Nullable(String), Array(Int8))");
        assert_eq!(encoded((1u8, Some("x"), vec![-1i8])), [1, 0, 1, b'x', 1, 0xff]);
    }
}
