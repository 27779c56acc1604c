//! What to try while the demo stays: addresses and commands, as they can be copied into a terminal.

use std::net::SocketAddr;
use std::path::Path;

use crate::config::Config;

use super::{TOKEN, summary};

/// Where everything is.
pub(super) struct Places<'a> {
    pub(super) admin: SocketAddr,
    pub(super) broker: &'a str,
    pub(super) clickhouse: &'a str,
    /// The rule that was changed, in the folder of rules.
    pub(super) rule: &'a Path,
}

impl Places<'_> {
    pub(super) fn suggestions(&self, config: &Config) -> String {
        let pipeline = &config.pipelines[0];
        self.lines(&summary::tables(config)[0], &pipeline.topics[0], &pipeline.dead_letter_topic)
    }

    fn lines(&self, table: &str, topic: &str, dead_letters: &str) -> String {
        let Self { admin, broker, clickhouse, rule } = self;
        let folder = rule.parent().unwrap_or(rule).display();
        let name = rule.file_stem().unwrap_or_default().to_string_lossy();
        let rule = rule.display();
        format!(
            "Everything goes on until Ctrl-C. Try, in another terminal:\n\
             \x20 curl http://{admin}/status                      what the pipeline is doing\n\
             \x20 curl http://{admin}/metrics                     the same for Prometheus\n\
             \x20 curl '{clickhouse}/?query=SELECT+count()+FROM+{table}'\n\
             \x20 target/release/sluice produce --brokers {broker} --topic {topic} \\\n\
             \x20     --generate testdata/purchases.generator.yaml --count 1000 --fault-share 0.1 --seed 7\n\
             \x20 kcat -b {broker} -t {dead_letters} -C -e -f '%h\\n%s\\n'    the dead letters (Debian's kcat)\n\
             \n\
             Rules are the files in {folder}; http://{admin}/modules shows them in a browser:\n\
             \x20 export SLUICE_ADMIN_URL=http://{admin} SLUICE_ADMIN_TOKEN={TOKEN}\n\
             \x20 target/release/sluice module status\n\
             \x20 target/release/sluice module rollback {name} --reason a-try\n\
             \x20 target/release/sluice module history {name}\n\
             \x20 target/release/sluice module release {name}\n\
             \x20 cp README.md {rule}    and what `module status` says then\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn every_suggested_command_is_one() {
        let places = Places {
            admin: ([127, 0, 0, 1], 9464).into(),
            broker: "127.0.0.1:9092",
            clickhouse: "http://127.0.0.1:8123",
            rule: Path::new("/tmp/rules/purchase-rules.wasm"),
        };
        let text = places.lines("purchases", "purchases", "purchases.dead-letters").replace("\\\n", "");
        let commands: Vec<_> =
            text.lines().filter_map(|line| line.trim().strip_prefix("target/release/")).collect();
        assert_eq!(commands.len(), 5, "{text}");
        for command in commands {
            let parsed = crate::cli::Arguments::try_parse_from(command.split_whitespace());
            assert!(parsed.is_ok(), "{command}: {}", parsed.expect_err("refused"));
        }
        assert!(text.contains("Rules are the files in /tmp/rules; "), "{text}");
    }
}
