//! Group: the coordinator of the consumer group: members, generations, sessions, rebalances.
//!
//! As Kafka's classic protocol has it, JoinGroup and SyncGroup in one step: a rebalance waits for
//! every member to join, or throws those out that have not when its time is up. A cooperative one
//! withholds a partition that its owner is to give up until that owner joins without it.

use std::collections::BTreeMap;

use tokio::sync::oneshot;

use crate::process::Membership;
use crate::world::World;

/// What a member is told when a rebalance is over.
#[derive(Clone, Debug)]
pub(crate) enum Joined {
    Assigned {
        membership: Membership,
        partitions: Vec<usize>,
    },
    /// The group does not know this member: it must join as a new one.
    Unknown,
}

/// What a heartbeat is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heartbeat {
    Alive,
    Rejoin,
    /// Not a member, or of another generation.
    Unknown,
}

struct Waiting {
    owned: Vec<usize>,
    answer: oneshot::Sender<Joined>,
}

struct Member {
    seen: u64,
    waiting: Option<Waiting>,
}

/// See the module documentation.
#[derive(Default)]
pub(crate) struct Group {
    members: BTreeMap<u64, Member>,
    generation: i32,
    last_member: u64,
    /// Number of the rebalance that waits for members; they are counted through.
    rebalance: Option<u64>,
    rebalances: u64,
}

impl Group {
    /// Whether requests of this membership are let through.
    pub(crate) fn knows(&self, membership: Membership) -> bool {
        self.members.contains_key(&membership.member) && self.generation == membership.generation
    }
}

/// JoinGroup: `answer` comes when the rebalance is over.
pub(crate) fn join(
    world: &mut World,
    member: Option<u64>,
    owned: Vec<usize>,
    answer: oneshot::Sender<Joined>,
) {
    let group = &mut world.kafka.group;
    let member = match member {
        Some(member) if !group.members.contains_key(&member) => {
            reply(world, answer, Joined::Unknown);
            return;
        }
        Some(member) => member,
        None => {
            group.last_member += 1;
            group.last_member
        }
    };
    let waiting = Some(Waiting { owned, answer });
    let seen = world.now();
    if world.kafka.group.members.insert(member, Member { seen, waiting }).is_none() {
        expire(world, member);
    }
    begin(world);
    complete_if_all_joined(world);
}

/// Heartbeat of a member.
pub(crate) fn heartbeat(world: &mut World, membership: Membership) -> Heartbeat {
    let now = world.now();
    let group = &mut world.kafka.group;
    if !group.knows(membership) {
        return Heartbeat::Unknown;
    }
    if let Some(member) = group.members.get_mut(&membership.member) {
        member.seen = now;
    }
    if group.rebalance.is_some() { Heartbeat::Rejoin } else { Heartbeat::Alive }
}

/// LeaveGroup, or the coordinator's decision that a member is gone.
pub(crate) fn leave(world: &mut World, member: u64) {
    if world.kafka.group.members.remove(&member).is_some() {
        world.note(|| format!("kafka: member {member} is out"));
        begin(world);
        complete_if_all_joined(world);
    }
}

/// Looks at the session of a member until it has ended.
fn expire(world: &mut World, member: u64) {
    let timeout = world.plan.session_timeout;
    let now = world.now();
    let Some(found) = world.kafka.group.members.get(&member) else { return };
    if found.waiting.is_none() && found.seen + timeout <= now {
        leave(world, member);
        return;
    }
    let wait = (found.seen + timeout).saturating_sub(now).max(timeout / 4);
    world.after(wait, move |world| expire(world, member));
}

fn begin(world: &mut World) {
    let timeout = world.plan.rebalance_timeout;
    let group = &mut world.kafka.group;
    if group.rebalance.is_some() {
        return;
    }
    group.rebalances += 1;
    let number = group.rebalances;
    group.rebalance = Some(number);
    world.after(timeout, move |world| {
        if world.kafka.group.rebalance == Some(number) {
            complete(world);
        }
    });
}

fn complete_if_all_joined(world: &mut World) {
    let group = &world.kafka.group;
    if group.rebalance.is_some() && group.members.values().all(|member| member.waiting.is_some()) {
        complete(world);
    }
}

fn complete(world: &mut World) {
    let now = world.now();
    let cooperative = world.plan.cooperative;
    let group = &mut world.kafka.group;
    group.rebalance = None;
    group.generation += 1;
    group.members.retain(|_, member| member.waiting.is_some());
    let generation = group.generation;
    let mut assigned: BTreeMap<u64, Vec<usize>> =
        group.members.keys().map(|member| (*member, Vec::new())).collect();
    let mut withheld = false;
    let members: Vec<u64> = group.members.keys().copied().collect();
    for partition in 0..world.plan.partitions {
        if members.is_empty() {
            break;
        }
        let claims = |member: &Member| {
            member.waiting.as_ref().is_some_and(|waiting| waiting.owned.contains(&partition))
        };
        let owner = world.kafka.group.members.iter().find(|(_, member)| claims(member)).map(|(id, _)| *id);
        let wanted = *world.random.pick(&members);
        match owner {
            Some(owner) if cooperative && world.random.chance(0.7) => {
                assigned.entry(owner).or_default().push(partition);
            }
            Some(owner) if cooperative && owner != wanted => withheld = true,
            _ => assigned.entry(wanted).or_default().push(partition),
        }
    }
    world.note(|| {
        format!(
            "kafka: generation {generation}: {assigned:?}{}",
            if withheld { ", some withheld" } else { "" }
        )
    });
    let mut answers = Vec::new();
    for (id, member) in &mut world.kafka.group.members {
        member.seen = now;
        let partitions = assigned.remove(id).unwrap_or_default();
        let membership = Membership { member: *id, generation };
        answers.extend(member.waiting.take().map(|waiting| (waiting.answer, membership, partitions)));
    }
    for (answer, membership, partitions) in answers {
        reply(world, answer, Joined::Assigned { membership, partitions });
    }
}

fn reply(world: &mut World, answer: oneshot::Sender<Joined>, joined: Joined) {
    let delay = world.random.below(world.plan.kafka.latency + 1);
    // A member that no longer waits is no failure.
    world.after(delay, move |_| drop(answer.send(joined)));
}
