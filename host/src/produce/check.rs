//! Checks a generator description against itself, so that making records cannot fail.
//!
//! Everything that is wrong is reported, each with the path of the field or the name of the
//! fault. What holds afterwards: every reference leads to an earlier field, every cell to a value
//! in every row, ranges and weights are not empty, faults have unique names and known kinds.

use std::collections::BTreeSet;

use super::description::{Alteration, Description, Expectation, Maker, ObjectMaker};
use super::message::FieldPath;
use crate::domain::verdict::RejectionKind;

/// Everything that is wrong with `description`; empty if it can be used.
pub(super) fn problems(description: &Description) -> Vec<String> {
    let mut check = Check { description, known: BTreeSet::new(), problems: Vec::new() };
    check.tables();
    check.object(&FieldPath::root(), &description.record);
    if let Some(key) = &description.key
        && !check.known.contains(key)
    {
        check.problems.push(format!("key: the record has no field `{key}`"));
    }
    check.faults();
    check.problems
}

struct Check<'a> {
    description: &'a Description,
    /// Fields seen so far, which later ones may refer to.
    known: BTreeSet<FieldPath>,
    problems: Vec<String>,
}

impl Check<'_> {
    fn report(&mut self, place: &str, problem: impl std::fmt::Display) {
        self.problems.push(format!("{place}: {problem}"));
    }

    fn tables(&mut self) {
        for (name, table) in &self.description.tables {
            if table.rows.is_empty() {
                self.report(&format!("tables.{name}"), "has no rows");
            }
        }
    }

    fn object(&mut self, at: &FieldPath, object: &ObjectMaker) {
        for (name, maker) in &object.fields {
            let path = at.join(name);
            if name.is_empty() || name.contains('.') {
                self.report(&format!("record.{path}"), "a field's name must not be empty or have a dot");
            }
            if let Maker::Object(inner) = maker {
                self.object(&path, inner);
            } else {
                self.maker(&format!("record.{path}"), maker);
            }
            self.known.insert(path);
        }
    }

    fn reference(&mut self, place: &str, path: &FieldPath) {
        if !self.known.contains(path) {
            self.report(place, format!("there is no field `{path}` before it"));
        }
    }

    fn maker(&mut self, place: &str, maker: &Maker) {
        match maker {
            Maker::Literal(_) | Maker::Uuid | Maker::Text(_) => {}
            Maker::Integer(range) => {
                if range.from > range.to {
                    self.report(place, format!("from {} is above to {}", range.from, range.to));
                }
                if range.step == 0 {
                    self.report(place, "step must be at least 1");
                }
            }
            Maker::Choice(alternatives) => {
                let weights = alternatives.iter().map(super::description::Alternative::weight);
                if weights.fold(0, u64::saturating_add) == 0 {
                    self.report(place, "nothing to choose from: no value has a weight above 0");
                }
            }
            Maker::Timestamp(span) => {
                if span.from > span.to {
                    self.report(place, "from is later than to");
                }
                if span.every.milliseconds <= 0 {
                    self.report(place, "every must be above 0");
                }
                if span.offsets.is_empty() {
                    self.report(place, "offsets must not be empty");
                }
                if let Some(after) = &span.after {
                    self.reference(place, after);
                }
            }
            Maker::Difference(fields) => fields.iter().for_each(|field| self.reference(place, field)),
            Maker::Percentage(percentage) => {
                self.reference(place, &percentage.of);
                self.maker(place, &percentage.percent);
            }
            Maker::Same(field) => self.reference(place, field),
            Maker::Cell(cell) => match self.description.tables.get(&cell.table) {
                None => self.report(place, format!("there is no table `{}`", cell.table)),
                Some(table) => {
                    if let Some(row) = table.rows.iter().position(|row| !row.contains_key(&cell.column)) {
                        let row = row + 1;
                        self.report(place, format!("row {row} of `{}` has no `{}`", cell.table, cell.column));
                    }
                }
            },
            Maker::Optional(optional) => {
                if !(0.0..=1.0).contains(&optional.share) {
                    self.report(place, format!("share {} is not between 0 and 1", optional.share));
                }
                self.maker(place, &optional.make);
            }
            // Inside another maker: its fields cannot be referred to, they may be absent.
            Maker::Object(inner) => {
                for (name, maker) in &inner.fields {
                    self.maker(&format!("{place}.{name}"), maker);
                }
            }
        }
    }

    fn faults(&mut self) {
        let mut names = BTreeSet::new();
        for fault in &self.description.faults {
            let place = format!("faults.{}", fault.name);
            if !names.insert(fault.name.as_str()) {
                self.report(&place, "another fault has this name");
            }
            if let Expectation::Rejected(rejection) = &fault.expect
                && !RejectionKind::ALL.iter().any(|kind| kind.as_str() == rejection.kind)
            {
                let known: Vec<&str> = RejectionKind::ALL.iter().map(|kind| kind.as_str()).collect();
                self.report(&place, format!("kind `{}` is none of {}", rejection.kind, known.join(", ")));
            }
            let before = self.known.clone();
            for alteration in &fault.alter {
                match alteration {
                    Alteration::Set(set) => {
                        self.maker(&place, &set.to);
                        self.known.insert(set.field.clone());
                    }
                    Alteration::Remove(field)
                    | Alteration::Repeat(field)
                    | Alteration::InvalidUtf8(field) => self.reference(&place, field),
                    Alteration::Raw(_)
                    | Alteration::Nest(_)
                    | Alteration::Fill(_)
                    | Alteration::Array
                    | Alteration::Truncate
                    | Alteration::Payload(_)
                    | Alteration::Empty
                    | Alteration::Tombstone
                    | Alteration::NullKey
                    | Alteration::Header(_) => {}
                }
            }
            // What one fault adds, the next one does not have.
            self.known = before;
        }
    }
}
