//! What is done to a cluster when an event says so. Whatever finds nobody to be done to is not done.

use std::sync::PoisonError;
use std::time::Duration;

use super::{AT_FIRST, Cluster, End, SLOTS, Slot};
use crate::schedule::{Event, Fault, Peer};

impl Cluster {
    /// Does what an event says, as far as there is somebody to do it to.
    pub(in super::super) fn inject(&mut self, event: &Event) {
        let done = match event.fault {
            Fault::KillHost => self.pick(event.slot, |_| true).map(|slot| self.kill_host(slot, event)),
            Fault::KillClickHouse => self.kill_clickhouse(event),
            Fault::KillBroker => self.kill_broker(event),
            Fault::Join => self.join(),
            Fault::Leave => self.leave(event),
            Fault::Swap => self.pick(event.slot, Slot::is_well).map(|slot| {
                self.slots[slot].revision = event.revision.unwrap_or_default();
                self.drain_host(slot, "swaps its modules");
            }),
            Fault::Freeze => self.pick(event.slot, Slot::is_well).map(|slot| {
                // The session lasts six seconds.
                let lasting = if event.length < 0.3 {
                    event.lasting(1_000, 6_000)
                } else {
                    event.lasting(7_000, 12_000)
                };
                self.folder.event(format_args!("host {slot} frozen for {lasting:.1?}"));
                let frozen = &mut self.slots[slot];
                frozen.host.as_ref().expect("it was picked").signal("-STOP");
                frozen.frozen = true;
                self.later(lasting, End::Continue(slot));
            }),
            Fault::FreezeBroker => self.freeze_broker(event),
            Fault::Cut | Fault::Delay | Fault::Stall | Fault::Refuse => self.network(event),
            Fault::SwallowCommit => self.swallow(event, Peer::Kafka),
            Fault::SwallowInsert => self.swallow(event, Peer::ClickHouse),
        };
        if done.is_some() {
            *self.faults.entry(event.fault).or_default() += 1;
        }
    }

    fn kill_host(&mut self, number: usize, event: &Event) {
        let slot = &mut self.slots[number];
        let state = match (slot.frozen, slot.draining) {
            (true, _) => " while frozen",
            (_, Some(_)) => " while draining",
            _ => "",
        };
        slot.host.take().expect("it was picked").kill();
        slot.draining = None;
        self.kills += 1;
        let away = event.lasting(100, 3_000);
        self.folder.event(format_args!("host {number} killed{state}"));
        if let Some(revision) = event.revision {
            self.slots[number].revision = revision;
        }
        if self.slots[number].wanted {
            self.later(away, End::StartHost(number));
        }
    }

    fn kill_clickhouse(&mut self, event: &Event) -> Option<()> {
        let away = |end: &End| matches!(end, End::StartClickHouse);
        if self.ends.iter().any(|(_, end)| away(end))
            || self.restarts.iter().any(|(what, _)| *what == "ClickHouse")
        {
            return None;
        }
        self.clickhouse.lock().unwrap_or_else(PoisonError::into_inner).kill();
        self.kills += 1;
        self.folder.event("ClickHouse killed");
        self.later(event.lasting(200, 5_000), End::StartClickHouse);
        Some(())
    }

    fn kill_broker(&mut self, event: &Event) -> Option<()> {
        if !self.has_broker() {
            return None;
        }
        self.broker.lock().unwrap_or_else(PoisonError::into_inner).kill();
        self.kills += 1;
        self.folder.event("the broker killed");
        self.later(event.lasting(200, 3_000), End::StartBroker);
        Some(())
    }

    fn freeze_broker(&mut self, event: &Event) -> Option<()> {
        if !self.has_broker() {
            return None;
        }
        // Its session lasts three seconds.
        let lasting = event.lasting(1_000, 8_000);
        self.folder.event(format_args!("the broker frozen for {lasting:.1?}"));
        self.broker.lock().unwrap_or_else(PoisonError::into_inner).signal("-STOP");
        self.later(lasting, End::ContinueBroker);
        Some(())
    }

    fn join(&mut self) -> Option<()> {
        let slot = self.slots.iter().position(|slot| !slot.wanted && slot.host.is_none())?;
        self.slots[slot].wanted = true;
        self.folder.event(format_args!("host {slot} is to join"));
        self.start_host(slot);
        Some(())
    }

    fn leave(&mut self, event: &Event) -> Option<()> {
        if self.slots.iter().filter(|slot| slot.wanted).count() < AT_FIRST {
            return self.join();
        }
        let slot = self.pick(event.slot, |slot| slot.wanted && slot.is_well())?;
        self.slots[slot].wanted = false;
        self.drain_host(slot, "leaves");
        Some(())
    }

    fn network(&mut self, event: &Event) -> Option<()> {
        let slot = self.pick(event.slot, |_| true)?;
        let proxy = match event.peer {
            Peer::Kafka => &self.slots[slot].kafka,
            Peer::ClickHouse => &self.slots[slot].clickhouse,
        };
        let lasting = match event.fault {
            Fault::Delay => {
                proxy.delay(event.lasting(20, 400));
                event.lasting(2_000, 8_000)
            }
            Fault::Stall => {
                proxy.stall(true);
                event.lasting(2_000, 10_000)
            }
            Fault::Refuse => {
                proxy.refuse(true);
                event.lasting(1_000, 9_000)
            }
            _ => {
                proxy.cut();
                Duration::ZERO
            }
        };
        let (fault, peer) = (event.fault, event.peer);
        self.folder.event(format_args!("host {slot} and {peer:?}: {fault:?} {lasting:.1?}"));
        if !lasting.is_zero() {
            self.later(lasting, End::Heal(slot, peer));
        }
        Some(())
    }

    fn swallow(&mut self, event: &Event, peer: Peer) -> Option<()> {
        let slot = self.pick(event.slot, Slot::is_well)?;
        let count = event.count;
        match peer {
            Peer::Kafka => self.slots[slot].kafka.swallow(count),
            Peer::ClickHouse => self.slots[slot].clickhouse.swallow(count),
        }
        self.folder.event(format_args!("host {slot}: the next {count} answers of {peer:?} are swallowed"));
        Some(())
    }

    /// The first slot from `first` on that has a host which fits.
    fn pick(&self, first: usize, fits: impl Fn(&Slot) -> bool) -> Option<usize> {
        let slots = (0..SLOTS).map(|step| (first + step) % SLOTS);
        slots.into_iter().find(|slot| self.slots[*slot].host.is_some() && fits(&self.slots[*slot]))
    }
}
