//! `docker-compose.yml` leaves nothing of the configuration out: every key of `config/sluice.yaml`
//! is a variable there. (That `.env.example` lists them with the same defaults, CI checks with
//! docker-compose itself.)

use std::path::Path;

use config::{File, FileFormat, Value, ValueKind};

/// Keys that the compose file does not offer, each for its reason.
const LEFT_OUT: [&str; 4] = [
    // Maps whose keys are free: they belong into the file.
    "SLUICE__KAFKA__PROPERTIES",
    "SLUICE__CLICKHOUSE__SETTINGS",
    "SLUICE__PIPELINES__PURCHASES__LIMITS",
    // Comes with the mounted folder of the configuration.
    "SLUICE__CLICKHOUSE__MIGRATIONS",
];

/// The variable of every leaf below `value`, whose own variable is `name`.
fn variables(name: &str, value: &Value, found: &mut Vec<String>) {
    match &value.kind {
        ValueKind::Table(table) if !table.is_empty() => {
            for (key, value) in table {
                let part: String = key.to_uppercase().replace(['-', '.'], "_");
                variables(&format!("{name}__{part}"), value, found);
            }
        }
        _ => found.push(name.to_owned()),
    }
}

#[test]
fn every_key_of_the_configuration_is_a_variable_of_the_compose_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("host/ has a parent");
    let file = config::Config::builder()
        .add_source(File::from(root.join("config/sluice.yaml")).format(FileFormat::Yaml))
        .build()
        .expect("the shipped configuration is YAML");
    let mut wanted = Vec::new();
    variables("SLUICE", &file.cache, &mut wanted);
    assert!(wanted.len() > 20, "the file was read: {wanted:?}");

    let compose = std::fs::read_to_string(root.join("docker-compose.yml")).expect("text");
    let missing: Vec<_> = wanted
        .iter()
        .filter(|name| !LEFT_OUT.contains(&name.as_str()) && !compose.contains(&format!(" {name}: ")))
        .collect();
    assert!(missing.is_empty(), "docker-compose.yml (and .env.example) lack {missing:?}");
}

/// What is run by `exec` gets the environment of the image, and not the arguments of its command.
#[test]
fn commands_in_the_container_find_the_configuration_that_it_runs_with() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read = |path: &str| std::fs::read_to_string(root.join(path)).expect("text");
    let (image, compose) = (read("Dockerfile"), read("docker-compose.yml"));
    let file = image.lines().find_map(|line| line.strip_prefix("ENV SLUICE_CONFIG="));
    let (folder, name) = file.and_then(|file| file.rsplit_once('/')).expect("the image names a file");
    assert!(root.join("config").join(name).is_file(), "{name} is shipped");
    assert!(
        image.contains(&format!("COPY --from=builder /result/etc {folder}\n")),
        "{folder} is in the image"
    );
    assert!(compose.contains(&format!("- ./config:{folder}:ro")), "{folder} can be replaced");
    assert!(!image.contains("--config"), "one place says which file it is");
}
