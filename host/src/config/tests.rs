//! Tests of the configuration: what is accepted, and what each fault says.

use super::*;

/// A directory with the files that a pipeline names.
fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("temporary directory");
    std::fs::create_dir(directory.path().join("migrations")).expect("create");
    std::fs::create_dir(directory.path().join("rules")).expect("create");
    std::fs::write(directory.path().join("rows.wasm"), "").expect("write");
    std::fs::write(directory.path().join("password"), "00123\n").expect("write");
    directory
}

const SMALLEST: &str = "pipelines: {card-payments: {topics: payments, mapper: rows.wasm}}";

fn read(yaml: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    let directory = directory();
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::from_parts(yaml, directory.path(), variables)
}

/// What the errors say, without the directory that the test happened to use.
fn complaints(yaml: &str, variables: &[(&str, &str)]) -> String {
    let directory = directory();
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let errors =
        Config::from_parts(yaml, directory.path(), variables).expect_err("the configuration is faulty");
    errors.to_string().replace(&directory.path().display().to_string(), "<base>")
}

#[test]
fn the_smallest_configuration_has_all_defaults() {
    let directory = directory();
    let config = Config::from_parts(SMALLEST, directory.path(), []).expect("valid");
    let shown = format!("{config:#?}").replace(&directory.path().display().to_string(), "<base>");
    insta::assert_snapshot!(shown);
}

#[test]
fn every_fault_is_reported_at_once_with_its_key_its_origin_and_the_cure() {
    let yaml = r#"
kafka:
  brokrs: localhost:9092
  instance: on this host
  properties: {group.id: mine, acks: 1, fetch.min.byts: 1, fetch.min.bytes: many, sasl.password: 123,
               ssl.key.password_file: nowhere, security: {protocol: ssl}}
clickhouse:
  url: http://me:secret@localhost:8123
  password: 123
  password_file: nowhere
  request_timeout: 30
  compression: gzip
  settings: {async_insert: 1, insert_quorum: [1]}
  migrations: elsewhere
  migrate_at_start: "yes"
admin: {listen: 'localhost:9464'}
logging: {level: inof, format: pretty}
resources: {workers: -1, in_flight_bytes: 1MB, drain_timeout: 0s}
modules: {memory: 64 megabytes, call_timeout: 1ms, output_bytes_per_record: 5MiB, compile_timeout: 1ms,
          compile_memory: 1MiB, cache: '', cache_bytes: 1B, cache_key_file: nowhere}
pipelines:
  purchases:
    topics: [purchases, "^pur.*", purchases, purchases.dead-letters]
    delivery: at-most-once
    start: earlier
    validators: nowhere
    settings: {purchase-rules: EUR}
    limits: {purchase-rules: {memory: 1B, rows: 5}, rows: 64MiB}
    tables: {rows: "a.b.c"}
    batch: {rows: 0, bytes: 1GiB, linger: soon, concurrent_inserts: 2.5}
    breaker: {mode: rollback, records: 1, faults: 0.02, rejections: 120%}
    batches: {}
  "a b": {topics: [], group: sluice-purchases, mapper: rows.wasm}
plugins: {}
"#;
    insta::assert_snapshot!(complaints(
        yaml,
        &[
            ("SLUICE__CLICKHOUSE__REQUEST_TIMEOUT", "soon"),
            ("SLUICE__CLICKHOUSE__USR", "me"),
            ("SLUICE__ADMIN", "localhost:9464"),
            ("SLUICE__PIPELINES__PURCHASE__GROUP", "mine"),
        ],
    ));
}

#[test]
fn a_file_that_is_no_configuration_is_named() {
    insta::assert_snapshot!(
        [
            complaints("kafka: [", &[]),
            complaints("kafka: {}\nkafka: {}", &[]),
            complaints("just text", &[]),
            complaints("", &[]),
            Config::load(Path::new("nowhere/sluice.yaml")).expect_err("no such file").to_string(),
        ]
        .join("\n")
    );
}

#[test]
fn variables_override_the_file_and_find_names_they_cannot_spell() {
    let config = read(
        SMALLEST,
        &[
            ("SLUICE__PIPELINES__CARD_PAYMENTS__GROUP", "other"),
            ("SLUICE__PIPELINES__CARD_PAYMENTS__TOPICS", "one,two"),
            ("SLUICE__PIPELINES__CARD_PAYMENTS__BATCH__ROWS", "7"),
            ("SLUICE__PIPELINES__CARD_PAYMENTS__TABLES__ROWS", "payments"),
            ("SLUICE__KAFKA__PROPERTIES__SECURITY_PROTOCOL", "ssl"),
            ("SLUICE__KAFKA__PROPERTIES__SASL_PASSWORD_FILE", "password"),
            ("SLUICE__CLICKHOUSE__PASSWORD", "00123"),
            ("SLUICE__CLICKHOUSE__USER", ""),
            ("SLUICE__CLICKHOUSE__MIGRATE_AT_START", "false"),
            ("SLUICE__MODULES__MEMORY", "1048576"),
            ("SLUICE_CONFIG", "not a key"),
            ("HOME", "/root"),
        ],
    )
    .expect("valid");
    let pipeline = &config.pipelines[0];
    assert_eq!(pipeline.name, "card-payments");
    assert_eq!(pipeline.group, "other");
    assert_eq!(pipeline.topics, ["one", "two"]);
    assert_eq!(pipeline.batch.rows, 7);
    assert_eq!((pipeline.table("rows"), pipeline.table("lines")), ("payments", "lines"));
    assert_eq!(config.kafka.properties.0["security.protocol"], "ssl");
    assert_eq!(config.kafka.properties.0["sasl.password"], "00123");
    assert_eq!(config.clickhouse.password.reveal(), "00123");
    assert_eq!(config.clickhouse.user, "default", "an empty variable is not set");
    assert!(!config.clickhouse.migrate_at_start);
    assert_eq!(config.modules.memory_bytes, 1 << 20);
}

#[test]
fn module_settings_keep_their_types_and_a_variable_may_be_json() {
    let yaml = "pipelines: {p: {topics: t, mapper: rows.wasm, settings: {purchase-rules: \
                {currencies: [EUR, USD], tolerance_seconds: 300, strict: true, code: '00123'}}}}";
    let prefix = "SLUICE__PIPELINES__P__SETTINGS__PURCHASE_RULES__";
    let settings = |variables: &[(&str, &str)]| {
        let variables: Vec<_> =
            variables.iter().map(|(key, value)| (format!("{prefix}{key}"), *value)).collect();
        let variables: Vec<_> = variables.iter().map(|(key, value)| (key.as_str(), *value)).collect();
        read(yaml, &variables).expect("valid").pipelines[0].settings["purchase-rules"].to_string()
    };
    assert_eq!(
        settings(&[]),
        r#"{"code":"00123","currencies":["EUR","USD"],"strict":true,"tolerance_seconds":300}"#
    );
    assert_eq!(
        settings(&[("CURRENCIES", r#"["GBP"]"#), ("TOLERANCE_SECONDS", "60"), ("CODE", "00124")]),
        r#"{"code":"00124","currencies":["GBP"],"strict":true,"tolerance_seconds":60}"#
    );
}

#[test]
fn a_module_has_its_own_limits_and_for_the_rest_those_of_all() {
    let yaml = "modules: {memory: 32MiB, call_timeout: 250ms, compile_memory: 2GiB}\n\
                pipelines: {p: {topics: t, mapper: rows.wasm, limits: {\
                purchase-rules: {memory: 1MiB, compile_timeout: 1s}, rows: {}}}}";
    let variable = "SLUICE__PIPELINES__P__LIMITS__PURCHASE_RULES__ROWS_PER_RECORD";
    let config = read(yaml, &[(variable, "7")]).expect("valid");
    let all = Limits {
        memory_bytes: 32 << 20,
        call_timeout: Duration::from_millis(250),
        compile_memory_bytes: 2 << 30,
        ..Limits::default()
    };
    assert_eq!(config.modules, all);
    let compile_timeout = Duration::from_secs(1);
    let own = Limits { memory_bytes: 1 << 20, compile_timeout, rows_per_record: 7, ..all.clone() };
    let expected = [("purchase-rules".to_owned(), own), ("rows".to_owned(), all)];
    assert_eq!(config.pipelines[0].limits, expected.into());
}

#[test]
fn the_cache_of_modules_is_none_unless_it_is_named() {
    assert_eq!(read(SMALLEST, &[]).expect("valid").module_cache, None);
    let directory = directory();
    let yaml = format!("{SMALLEST}\nmodules: {{cache: compiled, cache_key_file: password}}");
    let config = Config::from_parts(&yaml, directory.path(), []).expect("valid");
    let expected = ModuleCacheConfig {
        folder: directory.path().join("compiled"),
        bytes: 1 << 30,
        key: Some(Secret::new("00123")),
    };
    assert_eq!(config.module_cache, Some(expected));
}

#[test]
fn a_secret_comes_from_its_file_and_is_never_shown() {
    let yaml = format!(
        "{SMALLEST}\nclickhouse: {{password: '', password_file: password}}\n\
         kafka: {{properties: {{sasl.password: hunter2, sasl.username: me}}}}"
    );
    let config = read(&yaml, &[]).expect("valid");
    assert_eq!(config.clickhouse.password.reveal(), "00123", "without the line end of the file");
    let shown = format!("{config:?}");
    assert!(!shown.contains("00123") && !shown.contains("hunter2"), "{shown}");
    assert!(shown.contains("[redacted]"), "{shown}");
    let both = complaints(&yaml, &[("SLUICE__CLICKHOUSE__PASSWORD", "hunter2")]);
    assert!(both.contains("keep one of the two") && !both.contains("hunter2"), "{both}");
    let refused = complaints(&yaml, &[("SLUICE__KAFKA__PROPERTIES__SSL_KEY_PEM", "hunter3\0")]);
    assert!(!refused.contains("hunter3"), "{refused}");
}

#[test]
fn a_token_that_can_be_guessed_or_sent_by_nobody_is_refused_without_being_shown() {
    let of = |token: &str| read(SMALLEST, &[("SLUICE__ADMIN__TOKEN", token)]);
    assert_eq!(of("0123456789abcdef").expect("valid").admin.token.reveal(), "0123456789abcdef");
    assert!(of("").expect("valid").admin.token.is_empty());
    for (token, why) in [
        ("0123456789abcde", "shorter than 16 bytes"),
        ("0123 456789 abcdef", "cannot carry"),
        ("0123456789abcdé", "carry"),
    ] {
        let refused = of(token).expect_err("refused").to_string();
        assert!(refused.contains("admin.token") && refused.contains(why), "{refused}");
        assert!(refused.contains("openssl rand") && !refused.contains(token), "{refused}");
    }
}

#[test]
fn a_batch_has_to_fit_its_pipelines_share_of_what_is_in_flight() {
    let two = "resources: {in_flight_bytes: 60MiB}\n\
               pipelines: {a: {topics: a, mapper: rows.wasm}, b: {topics: b, mapper: rows.wasm}}";
    let refused = complaints(two, &[]);
    assert!(
        refused.contains("pipelines.a.batch.bytes") && refused.contains("pipelines.b.batch.bytes"),
        "{refused}"
    );
    assert!(refused.contains("32MiB is more than the 30MiB"), "{refused}");
    read(two, &[("SLUICE__RESOURCES__IN_FLIGHT_BYTES", "64MiB")]).expect("enough for both");
}

#[test]
fn paths_start_at_the_configuration_file() {
    let directory = directory();
    let path = directory.path().join("sluice.yaml");
    std::fs::write(&path, SMALLEST).expect("write");
    let config = Config::load(&path).expect("valid");
    assert_eq!(config.pipelines[0].mapper, directory.path().join("rows.wasm"));
    assert_eq!(config.clickhouse.migrations, directory.path().join("migrations"));
}

#[test]
fn modules_may_be_missing_only_for_commands_that_run_none() {
    let directory = directory();
    let path = directory.path().join("sluice.yaml");
    std::fs::write(&path, SMALLEST).expect("write");
    std::fs::remove_file(directory.path().join("rows.wasm")).expect("remove");
    assert!(Config::load(&path).is_err());
    assert!(Config::load_without_modules(&path).is_ok());
}

#[test]
fn the_shipped_file_says_what_the_defaults_are() {
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/sluice.yaml");
    let base = Path::new(shipped).parent().expect("a directory");
    let read = |yaml: &str| {
        // Set for both: this test is about values, not about whether the migrations are there.
        let variables = [("SLUICE__CLICKHOUSE__MIGRATE_AT_START".to_owned(), "false".to_owned())];
        let read = Config::parse(yaml, shipped, base, variables, ModuleFiles::NotNeeded);
        read.unwrap_or_else(|errors| panic!("{errors}")).0
    };
    let yaml = std::fs::read_to_string(shipped).expect("config/sluice.yaml");
    assert!(yaml.contains("migrate_at_start: true"));
    let config = read(&yaml);
    let defaults = read("pipelines: {purchases: {topics: [purchases], mapper: mapper.wasm}}");
    assert_eq!(config.kafka, defaults.kafka);
    assert_eq!(config.admin, defaults.admin);
    assert_eq!(config.logging, defaults.logging);
    assert_eq!(config.resources, defaults.resources);
    assert_eq!(config.modules, defaults.modules);
    assert_eq!(config.modules, Limits::default(), "the wasm host has the same defaults");
    assert_eq!(
        ClickHouseSettings::from(&config.clickhouse),
        ClickHouseSettings::default(),
        "and ClickHouse's"
    );
    assert_eq!(config.clickhouse, defaults.clickhouse);
    let (shipped, default) = (&config.pipelines[0], &defaults.pipelines[0]);
    assert_eq!(shipped.batch, default.batch);
    assert_eq!(shipped.breaker, default.breaker);
    assert_eq!(shipped.breaker, BreakerSettings::default(), "the breaker has the same defaults");
    assert_eq!(shipped.group, default.group);
    assert_eq!(shipped.dead_letter_topic, default.dead_letter_topic);
}

#[test]
fn the_documentation_lists_every_key_with_its_type_and_default() {
    let text = include_str!("../../../docs/CONFIGURATION.md");
    let (_, keys) =
        Config::parse(SMALLEST, "smallest", directory().path(), [], ModuleFiles::Required).expect("valid");
    let mut missing = Vec::new();
    for key in &keys {
        let path = key.path.replace("card-payments", "<name>");
        let default = key.default.as_deref().map_or_else(
            || "| none |".to_owned(),
            |default| format!("| `{}` |", default.replace("card-payments", "<name>")),
        );
        let variable = environment::variable_name(&key.path).replace("CARD_PAYMENTS", "<NAME>");
        let line = text.lines().find(|line| line.starts_with(&format!("| `{path}` |"))).unwrap_or_default();
        for part in [format!("| {} |", key.kind), default, format!("`{variable}`")] {
            if !line.contains(&part) {
                missing.push(format!("`{path}`: {part}"));
            }
        }
    }
    let documented = text.lines().filter(|line| line.starts_with("| `")).count();
    assert!(missing.is_empty(), "docs/CONFIGURATION.md lacks:\n{}", missing.join("\n"));
    assert_eq!(documented, keys.len(), "docs/CONFIGURATION.md lists a key that is not read");
}
