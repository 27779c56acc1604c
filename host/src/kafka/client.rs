//! Client settings: what every Kafka client of Sluice is built from.
//!
//! Any librdkafka property passes through, except those that carry a guarantee: they belong to
//! Sluice ([`owner`] says why). Values of properties that hold secrets are never printed.

use std::collections::BTreeMap;
use std::fmt;

use rdkafka::ClientConfig;
use serde::{Serialize, Serializer};

use crate::domain::secret::Secret;

/// How to reach the brokers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KafkaSettings {
    /// `host:port`, several with commas between.
    pub brokers: String,
    /// Name of this process among those that share a consumer group; the machine's where there is none
    /// ([`KafkaSettings::instance`]).
    pub instance: Option<String>,
    /// More librdkafka properties.
    pub properties: Properties,
}

impl KafkaSettings {
    /// Name of this process among those that share a consumer group.
    pub fn instance(&self) -> String {
        self.instance.clone().unwrap_or_else(|| {
            let host = gethostname::gethostname().to_string_lossy().into_owned();
            let character = |character| if is_instance_character(character) { character } else { '-' };
            let name: String = host.chars().map(character).take(INSTANCE_LENGTH).collect();
            if name.is_empty() { "localhost".to_owned() } else { name }
        })
    }
}

/// Most characters of an instance's name: it is part of a transactional id.
const INSTANCE_LENGTH: usize = 200;

fn is_instance_character(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '.' | '_' | '-')
}

/// Whether `name` may be the name of an instance.
pub fn is_instance(name: &str) -> bool {
    (1..=INSTANCE_LENGTH).contains(&name.len()) && name.chars().all(is_instance_character)
}

/// What `partition.assignment.strategy` may be; never a mixture of cooperative and eager ones.
const STRATEGIES: [&str; 4] = ["cooperative-sticky", "range", "roundrobin", "range,roundrobin"];

/// librdkafka properties by name
/// (<https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md>). `Debug` and
/// `Serialize` redact the secret ones.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Properties(pub BTreeMap<String, String>);

impl Properties {
    fn redacted(&self) -> impl Iterator<Item = (&str, Secret, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), Secret::new(value), value.as_str()))
    }
}

impl fmt::Debug for Properties {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = formatter.debug_map();
        for (name, secret, value) in self.redacted() {
            if is_secret(name) {
                map.entry(&name, &secret);
            } else {
                map.entry(&name, &value);
            }
        }
        map.finish()
    }
}

impl Serialize for Properties {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.redacted().map(|(name, secret, value)| {
            (name, if is_secret(name) { secret.to_string() } else { value.to_owned() })
        }))
    }
}

/// Whether the value of a property has to stay out of logs.
pub fn is_secret(name: &str) -> bool {
    name.contains("password")
        || name.contains("secret")
        || matches!(
            name,
            "ssl.key.pem" | "sasl.oauthbearer.config" | "sasl.oauthbearer.assertion.private.key.pem"
        )
}

/// Why Sluice sets this property itself, and what to use instead; `None` for one that is free.
pub fn owner(name: &str) -> Option<(&'static str, &'static str)> {
    let remove = "remove it";
    Some(match name {
        "bootstrap.servers" | "metadata.broker.list" => {
            ("the brokers have a key of their own", "use kafka.brokers")
        }
        "group.id" => ("each pipeline has its own consumer group", "use pipelines.<name>.group"),
        "auto.offset.reset" => {
            ("each pipeline chooses where a new group starts", "use pipelines.<name>.start")
        }
        "enable.auto.commit" | "auto.commit.enable" | "auto.commit.interval.ms" => {
            ("Sluice commits an offset once its records are inserted, filtered or dead-lettered", remove)
        }
        "enable.auto.offset.store" => ("Sluice commits explicit offsets and stores none", remove),
        "enable.partition.eof" => ("Sluice looks for the end of a partition itself", remove),
        "enable.idempotence" | "acks" | "request.required.acks" | "delivery.report.only.error" => {
            ("a dead letter counts only when every in-sync replica has confirmed it", remove)
        }
        "transactional.id" => ("Sluice names its own transactions", "use kafka.instance"),
        "transaction.timeout.ms" => ("it bounds how long a host that died holds its partitions back", remove),
        "isolation.level" => ("offsets and records of open transactions are not read", remove),
        _ => return None,
    })
}

/// Asks librdkafka whether it knows the property and takes the value. Its answer names the value,
/// so the one for a secret is replaced.
pub fn check_property(name: &str, value: &str) -> Result<(), String> {
    if name == "partition.assignment.strategy" && !STRATEGIES.contains(&value) {
        return Err(format!("`{value}` is not one of {}", STRATEGIES.join("; ")));
    }
    match ClientConfig::new().set(name, value).create_native_config() {
        Ok(_) => Ok(()),
        Err(_) if is_secret(name) => Err("librdkafka does not accept the value".to_owned()),
        Err(rdkafka::error::KafkaError::ClientConfig(_, description, _, _)) => {
            Err(description.trim_end_matches('.').to_owned())
        }
        Err(error) => Err(error.to_string()),
    }
}

/// What every client starts from: the brokers and the properties that pass through. The consumer
/// and the producer add what they own *after* this, so that nothing overrides a guarantee.
pub fn client_config(settings: &KafkaSettings) -> ClientConfig {
    let mut config = ClientConfig::new();
    // Defaults of Sluice; a property of the same name overrides them.
    config.set("client.id", "sluice");
    for (name, value) in &settings.properties.0 {
        config.set(name, value);
    }
    config.set("bootstrap.servers", &settings.brokers);
    config
}

/// Takes away what only a member of a group may have, for a consumer that never joins one.
pub(super) fn outside_group(client: &mut ClientConfig) {
    for property in ["group.protocol", "group.instance.id", "partition.assignment.strategy"] {
        client.remove(property);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(properties: &[(&str, &str)]) -> KafkaSettings {
        let properties = properties.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        KafkaSettings {
            brokers: "one:9092,two:9092".into(),
            instance: None,
            properties: Properties(properties.collect()),
        }
    }

    #[test]
    fn properties_pass_through_and_brokers_stay_ours() {
        let config = client_config(&settings(&[("client.id", "mine"), ("fetch.min.bytes", "7")]));
        assert_eq!(config.get("client.id"), Some("mine"));
        assert_eq!(config.get("fetch.min.bytes"), Some("7"));
        assert_eq!(config.get("bootstrap.servers"), Some("one:9092,two:9092"));
    }

    #[test]
    fn secret_properties_are_not_printed() {
        let settings = settings(&[("sasl.password", "hunter2"), ("sasl.username", "me")]);
        let printed = format!("{settings:?} {}", serde_json::to_string(&settings.properties).expect("JSON"));
        assert!(!printed.contains("hunter2"), "{printed}");
        assert!(printed.contains("\"sasl.username\": \"me\""), "{printed}");
    }

    #[test]
    fn an_instance_without_a_name_has_that_of_the_machine() {
        let mut settings = settings(&[]);
        assert!(is_instance(&settings.instance()), "{}", settings.instance());
        settings.instance = Some("one".into());
        assert_eq!(settings.instance(), "one");
        for name in ["", "a b", "ü", &"x".repeat(201)] {
            assert!(!is_instance(name), "{name}");
        }
    }

    #[test]
    fn librdkafka_judges_names_and_values() {
        assert_eq!(check_property("fetch.min.bytes", "7"), Ok(()));
        assert!(check_property("fetch.min.byts", "7").is_err_and(|error| error.contains("fetch.min.byts")));
        assert!(check_property("fetch.min.bytes", "many").is_err());
        assert_eq!(check_property("partition.assignment.strategy", "range"), Ok(()));
        assert!(check_property("partition.assignment.strategy", "range,cooperative-sticky").is_err());
    }

    #[test]
    fn properties_that_carry_a_guarantee_are_ours() {
        for name in [
            "group.id",
            "enable.auto.commit",
            "acks",
            "transactional.id",
            "auto.offset.reset",
            "isolation.level",
        ] {
            assert!(owner(name).is_some(), "{name}");
        }
        assert!(owner("security.protocol").is_none());
    }
}
