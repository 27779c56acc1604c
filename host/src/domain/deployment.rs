//! Deployment: what happened to a module on the hosts of a pipeline, as events, and how it stands after them.
//!
//! Events are only ever added; [`Standing`] is a fold over them. The same event twice, one after the other,
//! changes nothing: so hosts that see the same file go live may all say so, and one that does not know
//! whether its event arrived sends it again.

use std::collections::BTreeMap;

use super::verdict::Revision;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// The revision of the file went live.
    Live,
    /// The file is gone, and with it the module.
    Removed,
    /// A person has a revision held in place of the file's, until the file's content changes.
    RolledBack,
    /// The breaker has.
    Tripped,
    /// A revision is held whatever the file's content, until it is released.
    Pinned,
    /// Nothing is held any more: the file counts.
    Released,
}

impl EventKind {
    /// Every kind.
    pub const ALL: [Self; 6] =
        [Self::Live, Self::Removed, Self::RolledBack, Self::Tripped, Self::Pinned, Self::Released];

    /// The word by which it is kept.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Removed => "removed",
            Self::RolledBack => "rolled-back",
            Self::Tripped => "tripped",
            Self::Pinned => "pinned",
            Self::Released => "released",
        }
    }

    /// The kind that `word` stands for.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

/// An event that is to be kept. When it was is for the table to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEvent {
    /// What happened.
    pub event: EventKind,
    /// Revision that went live or is to be held, or that was rolled back and is released; `None` where none is.
    pub revision: Option<Revision>,
    /// Revision of the file that a rollback stands in for.
    pub instead_of: Option<Revision>,
    /// Host or person that did it.
    pub by: String,
    /// Why, in a sentence.
    pub reason: String,
}

/// How long a hold lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HoldKind {
    /// Until the file's content is another than the one that it stands in for.
    RolledBack,
    /// Until it is released.
    Pinned,
}

/// A revision that runs in place of the file's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// How long it lasts.
    pub kind: HoldKind,
    /// Revision to run; `None` for no module at all.
    pub run: Option<Revision>,
    /// Revision of the file that it stands in for.
    pub instead_of: Option<Revision>,
    /// Host or person that ordered it.
    pub by: String,
    /// Why, in a sentence.
    pub reason: String,
    /// Since when: RFC 3339, UTC.
    pub since: String,
    /// Whether the breaker of some host decided it.
    pub is_of_breaker: bool,
}

/// What was decided last about a revision that was rolled back once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Doubt {
    /// A person rolled it back.
    ByPerson,
    /// The breaker did, whatever a person did since.
    ByBreaker,
    /// A person released it: its figures were seen, and it is wanted.
    Released,
}

/// How a module stands, by all that happened to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Revision that went live last; `None` where the file was removed since, or none ever did.
    pub live: Option<Revision>,
    /// The one before it: the last that went live and is not `live`, nor was rolled back by the breaker. That
    /// is where a rollback leads.
    pub previous: Option<Revision>,
    /// What is held, unless it was released.
    pub hold: Option<Hold>,
    /// Revisions that were ever rolled back.
    pub doubts: BTreeMap<Revision, Doubt>,
}

impl Standing {
    /// What comes of events with their times (RFC 3339, UTC), in the order in which they happened.
    pub fn of(events: impl IntoIterator<Item = (NewEvent, String)>) -> Self {
        let (mut live, mut hold): (_, Option<Hold>) = (None, None);
        let mut doubts = BTreeMap::new();
        // Each revision that ever went live, by when it last did.
        let mut order: Vec<Revision> = Vec::new();
        for (NewEvent { event, revision, instead_of, by, reason }, since) in events {
            match event {
                EventKind::Live => {
                    live = revision;
                    order.retain(|known| Some(*known) != revision);
                    order.extend(revision);
                }
                EventKind::Removed => live = None,
                EventKind::RolledBack | EventKind::Tripped | EventKind::Pinned => {
                    let is_of_breaker = event == EventKind::Tripped;
                    let kind = match event {
                        EventKind::Pinned => HoldKind::Pinned,
                        _ => HoldKind::RolledBack,
                    };
                    if let Some(bad) = instead_of.filter(|_| kind == HoldKind::RolledBack) {
                        let is_broken = is_of_breaker || doubts.get(&bad) == Some(&Doubt::ByBreaker);
                        doubts.insert(bad, if is_broken { Doubt::ByBreaker } else { Doubt::ByPerson });
                    }
                    hold = Some(Hold { kind, run: revision, instead_of, by, reason, since, is_of_breaker });
                }
                EventKind::Released => {
                    // Where it does not say of what, what is held says it.
                    let released = revision.or(hold.and_then(|hold| hold.instead_of));
                    if let Some(doubt) = released.and_then(|released| doubts.get_mut(&released)) {
                        *doubt = Doubt::Released;
                    }
                    hold = None;
                }
            }
        }
        let is_next =
            |revision: &Revision| Some(*revision) != live && doubts.get(revision) != Some(&Doubt::ByBreaker);
        let previous = order.into_iter().rev().find(is_next);
        Self { live, previous, hold, doubts }
    }

    /// Whether the breaker of some host rolled a revision back, and nobody released it since.
    pub fn is_broken(&self, revision: Revision) -> bool {
        self.doubts.get(&revision) == Some(&Doubt::ByBreaker)
    }

    /// Whether a revision was rolled back and a person wanted it all the same.
    pub fn is_released(&self, revision: Revision) -> bool {
        self.doubts.get(&revision) == Some(&Doubt::Released)
    }

    /// What is held in place of a file that holds `found` (`None`: it cannot be read).
    pub fn hold_against(&self, found: Option<Revision>) -> Option<&Hold> {
        self.hold.as_ref().filter(|hold| match (hold.kind, found) {
            (HoldKind::Pinned, _) => true,
            (HoldKind::RolledBack, Some(_)) => hold.instead_of == found,
            // A file that cannot be read is not another one; but where another was live since, that goes on.
            (HoldKind::RolledBack, None) => hold.instead_of.is_none() || self.live == hold.run,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Revision = Revision([0xa; 32]);
    const B: Revision = Revision([0xb; 32]);
    const C: Revision = Revision([0xc; 32]);

    fn event(event: EventKind, revision: Option<Revision>) -> NewEvent {
        let instead_of = (event == EventKind::RolledBack).then_some(C);
        NewEvent { event, revision, instead_of, by: "host-1".into(), reason: "because".into() }
    }

    fn live(revision: Revision) -> NewEvent {
        event(EventKind::Live, Some(revision))
    }

    fn removed() -> NewEvent {
        event(EventKind::Removed, None)
    }

    fn after(events: &[NewEvent]) -> Standing {
        Standing::of(events.iter().cloned().zip((0..).map(|index| format!("t{index}"))))
    }

    fn lives(events: &[NewEvent]) -> (Option<Revision>, Option<Revision>) {
        let standing = after(events);
        assert_eq!(standing.hold, None);
        (standing.live, standing.previous)
    }

    #[test]
    fn a_rollback_leads_to_the_last_other_revision_that_was_live() {
        assert_eq!(lives(&[]), (None, None));
        assert_eq!(lives(&[live(A)]), (Some(A), None));
        assert_eq!(lives(&[live(A), live(A)]), (Some(A), None));
        assert_eq!(lives(&[live(A), live(B), live(B)]), (Some(B), Some(A)));
        assert_eq!(lives(&[live(A), live(B), live(A)]), (Some(A), Some(B)));
        assert_eq!(lives(&[live(A), live(B), live(C), live(A)]), (Some(A), Some(C)));
    }

    /// The breaker went from `bad` to `good`.
    fn broke(bad: Revision, good: Option<Revision>) -> NewEvent {
        NewEvent {
            instead_of: Some(bad),
            reason: "the breaker saw that it rejected all".into(),
            ..event(EventKind::Tripped, good)
        }
    }

    #[test]
    fn what_the_breaker_rolled_back_is_no_way_back_until_somebody_releases_it() {
        let rolled_back = [live(A), live(B), broke(B, Some(A)), live(A), live(C)];
        assert_eq!(after(&rolled_back).previous, Some(A));
        assert!(after(&rolled_back).hold.is_some_and(|hold| hold.is_of_breaker));
        assert!(after(&rolled_back).is_broken(B) && !after(&rolled_back).is_released(B));
        let rolled_back = [live(A), live(B), broke(B, Some(A)), live(A)];
        assert_eq!(after(&rolled_back).previous, None);

        // Neither a pin nor another rollback makes it good; a release does, of it and of no other.
        let pinned = |released| {
            let mut events = rolled_back.to_vec();
            events.extend([event(EventKind::Pinned, Some(B)), event(EventKind::Released, released), live(A)]);
            after(&events)
        };
        for (released, is_broken) in [(None, true), (Some(C), true), (Some(B), false)] {
            let standing = pinned(released);
            assert_eq!((standing.is_broken(B), standing.is_released(B)), (is_broken, !is_broken));
            assert_eq!(standing.previous, (!is_broken).then_some(B));
        }
        let again =
            [broke(B, Some(A)), NewEvent { instead_of: Some(B), ..event(EventKind::RolledBack, None) }];
        assert!(after(&again).is_broken(B));
        let released = [broke(C, Some(A)), broke(B, Some(A)), event(EventKind::Released, None)];
        assert!(after(&released).is_broken(C) && after(&released).is_released(B));

        // A person's rollback says nothing of records, in whatever words; but who releases it has seen them.
        let by_person = NewEvent {
            reason: "the breaker saw that it rejects".into(),
            ..event(EventKind::RolledBack, Some(A))
        };
        let by_person = [live(A), live(C), by_person, live(A)];
        assert_eq!((after(&by_person).is_broken(C), after(&by_person).previous), (false, Some(C)));
        let mut released = by_person.to_vec();
        released.push(event(EventKind::Released, Some(C)));
        assert!(after(&released).is_released(C));
    }

    #[test]
    fn a_module_that_was_removed_had_revisions_before() {
        assert_eq!(lives(&[removed()]), (None, None));
        assert_eq!(lives(&[live(A), live(B), removed()]), (None, Some(B)));
        assert_eq!(lives(&[live(A), live(B), removed(), live(B)]), (Some(B), Some(A)));
        assert_eq!(lives(&[live(A), removed(), live(B)]), (Some(B), Some(A)));
    }

    #[test]
    fn the_last_hold_counts_until_it_is_released() {
        let rolled_back = event(EventKind::RolledBack, Some(A));
        let pinned = event(EventKind::Pinned, Some(B));
        let released = event(EventKind::Released, None);
        let hold = |kind, run, instead_of, since: &str| {
            let (by, reason) = ("host-1".to_owned(), "because".to_owned());
            let (run, since, is_of_breaker) = (Some(run), since.to_owned(), false);
            Some(Hold { kind, run, instead_of, by, reason, since, is_of_breaker })
        };
        let standing = after(&[live(A), live(C), rolled_back.clone()]);
        assert_eq!(standing.hold, hold(HoldKind::RolledBack, A, Some(C), "t2"));
        assert_eq!((standing.live, standing.previous), (Some(C), Some(A)));

        let standing = after(&[rolled_back.clone(), pinned.clone(), live(C)]);
        assert_eq!(standing.hold, hold(HoldKind::Pinned, B, None, "t1"));
        assert_eq!(after(&[pinned, released.clone(), live(C)]).hold, None);
        assert_eq!(after(&[released, rolled_back]).hold, hold(HoldKind::RolledBack, A, Some(C), "t1"));
    }

    #[test]
    fn a_rollback_ends_with_its_file_and_a_pin_does_not() {
        let rolled_back = event(EventKind::RolledBack, Some(A));
        let runs = |events: &[NewEvent], found| {
            after(events).hold_against(found).map(|hold| hold.run.expect("a revision"))
        };
        let held = [live(A), live(C), rolled_back.clone(), live(A)];
        assert_eq!(runs(&held, Some(C)), Some(A));
        assert_eq!(runs(&held, Some(B)), None, "another file is another try");
        assert_eq!(runs(&held, None), Some(A), "a file that cannot be read is not another one");
        let replaced = [live(A), live(C), rolled_back, live(A), live(B)];
        assert_eq!(runs(&replaced, Some(C)), Some(A), "what was bad is not good because it came back");
        assert_eq!(runs(&replaced, None), None, "a bad copy does not take the newer revision away");

        let pinned = [live(A), live(C), event(EventKind::Pinned, Some(A))];
        assert_eq!([Some(A), Some(B), Some(C), None].map(|found| runs(&pinned, found)), [Some(A); 4]);
        assert_eq!(runs(&[live(A)], Some(B)), None);
    }

    #[test]
    fn words_are_read_back_and_others_are_not() {
        for kind in EventKind::ALL {
            assert_eq!(EventKind::parse(kind.as_str()), Some(kind));
        }
        assert_eq!(EventKind::parse("Live"), None);
    }
}
