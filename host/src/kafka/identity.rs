//! Identity: whether a topic is still the one whose records were read.
//!
//! A topic that is deleted and made again under its name begins at offset 0. A consumer that has read further than the
//! new log goes sees its offsets go back ([`domain::reading`](crate::domain::reading)); where the new log is longer by
//! then, it reads on in the middle of it as if nothing had happened, and commits past what it never saw.
//! But brokers give every topic an id (KIP-516). It is asked for when partitions are assigned, and before every
//! commit: if it has changed since, nothing is committed, nor sent to ClickHouse. Kafka deletes a topic's committed
//! offsets with it, so whoever starts again begins with the new topic.
//!
//! Brokers before Apache Kafka 2.8 have no ids; nothing is checked there. `rdkafka` does not wrap this call, so this
//! file is where it is made safe.

#![expect(unsafe_code, reason = "the rdkafka crate does not describe topics")]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString, c_char};
use std::ptr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::client::{Client, ClientContext};
use rdkafka_sys as sys;

use crate::pipeline::ports::CommitError;

/// Longest wait for an answer, after which another broker is asked.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct TopicIdentities {
    /// The id of every topic, as it was first told.
    known: Mutex<BTreeMap<String, String>>,
    /// The broker that is asked, while it answers. Not the controller, whom nothing else needs here.
    broker: Mutex<Option<i32>>,
}

/// What the brokers say of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Description {
    topic: String,
    /// In base64, as Kafka's tools print it; or why there is none.
    id: Result<Option<String>, String>,
}

/// Why it is not known that topics are those that were read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Doubt {
    /// The brokers do not say.
    Unknown(String),
    /// One is another.
    MadeAgain(String),
}

impl From<Doubt> for CommitError {
    fn from(doubt: Doubt) -> Self {
        match doubt {
            Doubt::Unknown(reason) => Self::Refused(reason),
            Doubt::MadeAgain(reason) => Self::Broken(reason),
        }
    }
}

impl TopicIdentities {
    /// Asks the brokers whether `topics` are still those that were there when they were asked first. Blocking.
    pub(super) fn confirm<'t, C: ClientContext>(
        &self,
        client: &Client<C>,
        topics: impl IntoIterator<Item = &'t str>,
    ) -> Result<(), Doubt> {
        let topics: BTreeSet<&str> = topics.into_iter().collect();
        let topics: Vec<&str> = topics.into_iter().collect();
        if topics.is_empty() {
            return Ok(());
        }
        self.compare(self.ask(client, &topics).map_err(Doubt::Unknown)?)
    }

    fn ask<C: ClientContext>(&self, client: &Client<C>, topics: &[&str]) -> Result<Vec<Description>, String> {
        let told = |error: &dyn std::fmt::Display| {
            format!("kafka does not say whether the topics are still the same: {error}")
        };
        let broker = *self.broker.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = match broker {
            Some(broker) => broker,
            None => {
                let metadata = client.fetch_metadata(topics.first().copied(), ANSWER_TIMEOUT);
                let metadata = metadata.map_err(|error| told(&error))?;
                // Whoever answered, if librdkafka knows its number by now.
                match metadata.orig_broker_id() {
                    ..0 => metadata.brokers().first().map_or(-1, |broker| broker.id()),
                    broker => broker,
                }
            }
        };
        let answer = describe(client, asked, topics).map_err(|error| told(&error));
        let answers = answer.is_ok().then_some(asked);
        *self.broker.lock().unwrap_or_else(PoisonError::into_inner) = answers;
        answer
    }

    fn compare(&self, descriptions: Vec<Description>) -> Result<(), Doubt> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for Description { topic, id } in descriptions {
            let id = id.map_err(|reason| Doubt::Unknown(format!("kafka: topic {topic}: {reason}")))?;
            let Some(id) = id else { continue };
            match known.get(&topic) {
                None => {
                    known.insert(topic, id);
                }
                Some(before) if *before == id => {}
                Some(before) => {
                    return Err(Doubt::MadeAgain(format!(
                        "topic {topic} was made again while it was read: its id was {before} and is {id}; start again, \
                         to go on at the group's offset, or with the first record of the new topic where there is none"
                    )));
                }
            }
        }
        Ok(())
    }
}

/// Something of librdkafka's that is ours to destroy.
struct Owned<T>(*mut T, unsafe extern "C" fn(*mut T));

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: made and destroyed in `describe` only, by the function that belongs to it.
        unsafe { self.1(self.0) };
    }
}

/// Asks a broker for the ids of topics.
fn describe<C: ClientContext>(
    client: &Client<C>,
    broker: i32,
    topics: &[&str],
) -> Result<Vec<Description>, String> {
    let names: Vec<CString> = topics
        .iter()
        .map(|topic| CString::new(*topic))
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())?;
    let mut names: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    let timeout = ANSWER_TIMEOUT.as_millis() as i32;
    let handle = client.native_ptr();
    // SAFETY: the client is alive for the whole call. librdkafka copies the names; everything that it makes is
    // destroyed by `Owned`, the event, which lends the result and all in it, before the queue.
    unsafe {
        let operation = sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
        let options = sys::rd_kafka_AdminOptions_new(handle, operation);
        let options = Owned(options, sys::rd_kafka_AdminOptions_destroy);
        sys::rd_kafka_AdminOptions_set_request_timeout(options.0, timeout, ptr::null_mut(), 0);
        sys::rd_kafka_AdminOptions_set_broker(options.0, broker, ptr::null_mut(), 0);
        let queue = Owned(sys::rd_kafka_queue_new(handle), sys::rd_kafka_queue_destroy);
        let topics = sys::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len());
        let topics = Owned(topics, sys::rd_kafka_TopicCollection_destroy);
        sys::rd_kafka_DescribeTopics(handle, topics.0, options.0, queue.0);
        // The request ends by itself; the rest is for the way back.
        let event = sys::rd_kafka_queue_poll(queue.0, 2 * timeout);
        if event.is_null() {
            return Err("no answer".into());
        }
        let event = Owned(event, sys::rd_kafka_event_destroy);
        if sys::rd_kafka_event_error(event.0) != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(text(sys::rd_kafka_event_error_string(event.0)));
        }
        let result = sys::rd_kafka_event_DescribeTopics_result(event.0);
        let mut count = 0;
        let described = sys::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        Ok((0..count).map(|index| description(*described.add(index))).collect())
    }
}

/// # Safety
/// `described` must be valid.
unsafe fn description(described: *const sys::rd_kafka_TopicDescription_t) -> Description {
    // SAFETY: what librdkafka answers lives as long as the description.
    unsafe {
        let topic = text(sys::rd_kafka_TopicDescription_name(described));
        let error = sys::rd_kafka_TopicDescription_error(described);
        let no_error = sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;
        if !error.is_null() && sys::rd_kafka_error_code(error) != no_error {
            return Description { topic, id: Err(text(sys::rd_kafka_error_string(error))) };
        }
        let id = sys::rd_kafka_TopicDescription_topic_id(described);
        let bits =
            [sys::rd_kafka_Uuid_most_significant_bits(id), sys::rd_kafka_Uuid_least_significant_bits(id)];
        let id = (bits != [0, 0]).then(|| text(sys::rd_kafka_Uuid_base64str(id)));
        Description { topic, id: Ok(id) }
    }
}

/// # Safety
/// `string` must be a valid C string.
unsafe fn text(string: *const c_char) -> String {
    // SAFETY: by this function's contract.
    unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compare(identities: &TopicIdentities, topics: &[(&str, Option<&str>)]) -> Result<(), Doubt> {
        let described = topics
            .iter()
            .map(|(topic, id)| Description { topic: (*topic).to_owned(), id: Ok(id.map(str::to_owned)) });
        identities.compare(described.collect())
    }

    #[test]
    fn a_topic_is_the_same_while_its_id_is() {
        let identities = TopicIdentities::default();
        assert_eq!(compare(&identities, &[("a", Some("1")), ("b", Some("2"))]), Ok(()));
        assert_eq!(compare(&identities, &[("b", Some("2")), ("c", Some("3"))]), Ok(()));
        let again = compare(&identities, &[("a", Some("1")), ("b", Some("4"))]);
        assert!(
            matches!(&again, Err(Doubt::MadeAgain(reason)) if reason.contains("topic b was made again")
            && reason.contains("its id was 2 and is 4")),
            "{again:?}"
        );
        // It stays so: this process has read the other one.
        assert_eq!(compare(&identities, &[("b", Some("4"))]), again);
    }

    #[test]
    fn a_broker_without_ids_says_nothing_of_a_change() {
        let identities = TopicIdentities::default();
        for id in [None, Some("1"), None, Some("1")] {
            assert_eq!(compare(&identities, &[("a", id)]), Ok(()));
        }
        assert!(matches!(compare(&identities, &[("a", Some("2"))]), Err(Doubt::MadeAgain(_))));
    }

    #[test]
    fn a_topic_that_is_not_there_is_not_known() {
        let gone = Description { topic: "a".into(), id: Err("Unknown topic".into()) };
        let doubt = TopicIdentities::default().compare(vec![gone]);
        assert_eq!(doubt, Err(Doubt::Unknown("kafka: topic a: Unknown topic".into())));
    }
}
