//! Audit: where the records of a partition ended, counted from what the table and the dead-letter topic
//! hold, offset by offset.
//!
//! State: a [`PartitionAudit`] with its counts, and one [`Window`] of offsets at a time, so that what is
//! held does not grow with the partition. Invariants: offsets come in increasing order, each record is
//! counted once, and so `consumed = inserted + filtered + dead-lettered + missing`.

use std::collections::BTreeMap;

/// Offsets that somebody has to look at: all of them counted, the first ones kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    /// How many there are.
    pub count: u64,
    /// The first of them, as ranges `[start, end)`.
    pub ranges: Vec<(i64, i64)>,
    /// Whether some of them are in no range.
    pub more: bool,
}

impl Offsets {
    /// Adds an offset behind those that are there; no more than `most` ranges are kept.
    fn push(&mut self, offset: i64, most: usize) {
        self.count += 1;
        let room = self.ranges.len() < most;
        match self.ranges.last_mut() {
            // What follows an offset that is in no range is behind a gap.
            Some((_, end)) if *end == offset => *end += 1,
            _ if room => self.ranges.push((offset, offset + 1)),
            _ => self.more = true,
        }
    }
}

/// What became of the records of one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartitionAudit {
    /// Records with a row in a table.
    pub inserted: u64,
    /// Records of which the chain makes no rows.
    pub filtered: u64,
    /// Records in the dead-letter topic and in no table.
    pub dead_lettered: u64,
    /// Records that are nowhere, although the chain does not filter them.
    pub missing: Offsets,
    /// Records of which a table has more rows than the chain makes.
    pub repeated_rows: Offsets,
    /// Records with more than one dead letter.
    pub repeated_letters: Offsets,
    /// Records in a table and in the dead-letter topic.
    pub both: Offsets,
    /// Most ranges that each of the lists keeps.
    most: usize,
}

impl PartitionAudit {
    /// Nothing counted yet; each list keeps `most` ranges.
    pub fn new(most: usize) -> Self {
        Self { most, ..Self::default() }
    }

    /// Records that the group has passed.
    pub fn consumed(&self) -> u64 {
        self.inserted + self.filtered + self.dead_lettered + self.missing.count
    }

    /// Whether every record is where it has to be, once.
    pub fn is_clean(&self) -> bool {
        [&self.missing, &self.repeated_rows, &self.repeated_letters, &self.both]
            .iter()
            .all(|offsets| offsets.count == 0)
    }
}

/// What a second run of the chain says of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Again {
    /// So many rows for each table, in the order of [`Window::row`].
    Rows(Vec<u64>),
    /// Some module rejects it.
    Rejected,
}

/// Offsets `[start, end)` of a partition, of which some have yet to be looked at in the topic.
#[derive(Debug)]
pub struct Window<'a> {
    audit: &'a mut PartitionAudit,
    /// Offsets of dead letters from the next one on, by offset, one for each dead letter.
    letters: &'a [i64],
    next: i64,
    end: i64,
    /// Offsets that are nowhere: filtered, missing, or no record at all.
    nowhere: Vec<(i64, i64)>,
    /// Rows by table where a table has several, and what the chain would make.
    several: BTreeMap<i64, (Vec<u64>, Option<Again>)>,
}

impl<'a> Window<'a> {
    /// A window with the dead letters of its partition, by offset; those outside do not count.
    pub fn new(audit: &'a mut PartitionAudit, letters: &'a [i64], start: i64, end: i64) -> Self {
        let within =
            &letters[letters.partition_point(|at| *at < start)..letters.partition_point(|at| *at < end)];
        Self { audit, letters: within, next: start, end, nowhere: Vec::new(), several: BTreeMap::new() }
    }

    /// A record of which the tables hold these numbers of rows, at least one; by increasing offset.
    pub fn row(&mut self, offset: i64, rows: &[u64]) {
        self.letters_before(offset);
        self.pass(offset);
        self.audit.inserted += 1;
        if rows.iter().any(|rows| *rows > 1) {
            self.several.insert(offset, (rows.to_vec(), None));
        }
        let letters = self.take_letters(offset);
        if letters > 0 {
            self.audit.both.push(offset, self.audit.most);
        }
    }

    /// Ends the rows; returns the ranges whose records have to be read and run again, in order.
    pub fn doubtful(&mut self) -> Vec<(i64, i64)> {
        self.letters_before(self.end);
        self.gap(self.end);
        let several = self.several.keys().map(|offset| (*offset, offset + 1));
        let mut ranges: Vec<_> = self.nowhere.iter().copied().chain(several).collect();
        ranges.sort_unstable();
        ranges
    }

    /// What the chain says of a record in a doubtful range; by increasing offset.
    pub fn again(&mut self, offset: i64, again: Again) {
        if let Some((_, said)) = self.several.get_mut(&offset) {
            *said = Some(again);
            return;
        }
        match again {
            Again::Rows(rows) if rows.iter().all(|rows| *rows == 0) => self.audit.filtered += 1,
            Again::Rows(_) | Again::Rejected => self.audit.missing.push(offset, self.audit.most),
        }
    }

    /// Ends the window.
    pub fn finish(self) {
        for (offset, (held, again)) in self.several {
            let due = |table: usize| match &again {
                Some(Again::Rows(rows)) => rows.get(table).copied().unwrap_or(0).max(1),
                // What it would give is not known, and one row is what most records give.
                Some(Again::Rejected) | None => 1,
            };
            if held.iter().enumerate().any(|(table, rows)| *rows > due(table)) {
                self.audit.repeated_rows.push(offset, self.audit.most);
            }
        }
    }

    fn letters_before(&mut self, offset: i64) {
        while let Some(at) = self.letters.first().copied().filter(|at| *at < offset) {
            self.pass(at);
            self.audit.dead_lettered += 1;
            self.take_letters(at);
        }
    }

    /// Takes the dead letters at `offset`, of which more than one is too many.
    fn take_letters(&mut self, offset: i64) -> usize {
        let count = self.letters.iter().take_while(|at| **at == offset).count();
        self.letters = &self.letters[count..];
        if count > 1 {
            self.audit.repeated_letters.push(offset, self.audit.most);
        }
        count
    }

    fn pass(&mut self, offset: i64) {
        self.gap(offset);
        self.next = offset + 1;
    }

    fn gap(&mut self, until: i64) {
        if self.next < until {
            self.nowhere.push((self.next, until));
        }
        self.next = until;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_is_counted_once_and_what_is_wrong_is_named() {
        let mut audit = PartitionAudit::new(8);
        // 5 twice dead-lettered, 7 and 9 once; 9 has a row too; 30 is outside.
        let letters = [5, 5, 7, 9, 30];
        let mut window = Window::new(&mut audit, &letters, 2, 14);
        for (offset, rows) in [(2, 1), (3, 2), (9, 1), (10, 3)] {
            window.row(offset, &[rows]);
        }
        assert_eq!(window.doubtful(), [(3, 4), (4, 5), (6, 7), (8, 9), (10, 11), (11, 14)]);
        window.again(3, Again::Rows(vec![1]));
        window.again(4, Again::Rows(vec![0]));
        window.again(6, Again::Rows(vec![1]));
        // 8 and 13 are no records.
        window.again(10, Again::Rows(vec![3]));
        window.again(11, Again::Rejected);
        window.again(12, Again::Rejected);
        window.finish();
        assert!(!audit.is_clean());
        assert_eq!((audit.inserted, audit.filtered, audit.dead_lettered), (4, 1, 2));
        assert_eq!(audit.missing.ranges, [(6, 7), (11, 13)]);
        assert_eq!(audit.repeated_rows.ranges, [(3, 4)]);
        assert_eq!(audit.repeated_letters.ranges, [(5, 6)]);
        assert_eq!(audit.both.ranges, [(9, 10)]);
        assert_eq!(audit.consumed(), 10);
    }

    #[test]
    fn a_partition_is_the_same_in_one_window_and_in_many() {
        let letters: Vec<i64> = (0..100).filter(|offset| offset % 7 == 3).collect();
        let audit = |windows: &[(i64, i64)]| {
            let mut audit = PartitionAudit::new(100);
            for (start, end) in windows {
                let mut window = Window::new(&mut audit, &letters, *start, *end);
                (*start..*end)
                    .filter(|offset| offset % 5 == 0)
                    .for_each(|offset| window.row(offset, &[1, 0]));
                for (from, to) in window.doubtful() {
                    let rows = |offset: i64| Again::Rows(vec![0, u64::from(offset % 2 == 0)]);
                    (from..to).for_each(|offset| window.again(offset, rows(offset)));
                }
                window.finish();
            }
            audit
        };
        let whole = audit(&[(0, 100)]);
        assert_eq!(whole.consumed(), 100);
        assert_eq!(audit(&[(0, 3), (3, 4), (4, 50), (50, 100)]), whole);
    }

    #[test]
    fn the_lists_keep_their_first_ranges_and_count_all() {
        let mut offsets = Offsets::default();
        for offset in [1, 2, 5, 8, 9, 10] {
            offsets.push(offset, 2);
        }
        assert_eq!(offsets, Offsets { count: 6, ranges: vec![(1, 3), (5, 6)], more: true });
    }
}
