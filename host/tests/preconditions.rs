//! What exactly-once delivery asks of chains and tables.

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use sluice::app::preconditions::{chain_fault, pending_inserts};
use sluice::config::{BatchConfig, BreakerSettings, Delivery, PipelineConfig, StartOffset};
use sluice::pipeline::ports::Chain;
use support::guests::{ModuleFolder, tight};

fn pipeline(topics: &[&str], table: &str) -> PipelineConfig {
    PipelineConfig {
        name: "tests".into(),
        topics: topics.iter().map(|topic| (*topic).to_owned()).collect(),
        group: "tests".into(),
        delivery: Delivery::ExactlyOnce,
        allow_replay: false,
        dead_letter_topic: "dead".into(),
        start: StartOffset::Earliest,
        validators: None,
        mapper: "mapper.wasm".into(),
        settings: BTreeMap::new(),
        limits: BTreeMap::new(),
        tables: BTreeMap::from([("texts".to_owned(), table.to_owned())]),
        batch: BatchConfig { rows: 1, bytes: 1, linger: Duration::ZERO, concurrent_inserts: 1 },
        breaker: BreakerSettings::default(),
    }
}

#[test]
fn every_partition_of_every_pipeline_may_have_four_inserts_under_way() {
    let chain = ModuleFolder::new(tight()).load().unwrap_or_else(|error| panic!("{error}"));
    let partitions: BTreeMap<_, _> =
        [("a", 12), ("b", 3), ("dead", 100)].map(|(topic, count)| (topic.to_owned(), count)).into();
    let (one, both) = (pipeline(&["a"], "t"), pipeline(&["a", "b"], "t"));
    let (elsewhere, unknown) = (pipeline(&["a"], "other"), pipeline(&["unknown"], "t"));
    let pending = |pipelines: &[&PipelineConfig]| {
        let chained: Vec<_> = pipelines.iter().map(|pipeline| (*pipeline, chain.outputs())).collect();
        pending_inserts("t", &chained, &partitions)
    };
    assert_eq!(pending(&[&one]), 48);
    assert_eq!(pending(&[&both]), 60);
    assert_eq!(pending(&[&one, &elsewhere, &both]), 108);
    assert_eq!(pending(&[&unknown, &elsewhere]), 0);
}

#[test]
fn a_chain_whose_revisions_do_not_fit_into_an_intent_is_refused() {
    let pipeline = pipeline(&["a"], "t");
    assert_eq!(chain_fault(&pipeline, 15), None);
    let fault = chain_fault(&pipeline, 16).expect("it is one too many");
    assert!(fault.contains("16 validators") && fault.contains("at most 15"), "{fault}");
    assert!(fault.contains("pipelines.tests.delivery to at-least-once"), "{fault}");
}
