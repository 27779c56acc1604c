//! Every way in which an output fits its table or not, without a server.

use super::*;

fn schema(columns: &[(&str, &str, DefaultKind)]) -> TableSchema {
    let column = |(name, type_name, default): &(&str, &str, DefaultKind)| TableColumn {
        name: (*name).into(),
        type_name: (*type_name).into(),
        default: default.clone(),
    };
    TableSchema {
        table: "shop.purchases".into(),
        engine: "MergeTree".into(),
        deduplication_window: Some(1_000),
        deduplication_seconds: None,
        partitioned: false,
        columns: columns.iter().map(column).collect(),
    }
}

fn output(columns: &[(&str, &str)]) -> Output {
    let definition = |(name, type_name): &(&str, &str)| ColumnDefinition {
        name: (*name).into(),
        column_type: ColumnType::parse(type_name).unwrap(),
    };
    Output { name: "purchases".into(), columns: columns.iter().map(definition).collect() }
}

fn names(bound: &BoundTable) -> Vec<&str> {
    bound.columns.iter().map(|column| &*column.name).collect()
}

fn plain(columns: &[(&'static str, &'static str)]) -> TableSchema {
    let columns: Vec<_> = columns.iter().map(|(name, of)| (*name, *of, DefaultKind::None)).collect();
    schema(&columns)
}

#[test]
fn an_output_that_fits_is_bound_with_provenance_behind_it() {
    let table = schema(&[
        ("_offset", "UInt64", DefaultKind::None),
        ("price", "UInt32", DefaultKind::None),
        ("name", "LowCardinality(String)", DefaultKind::None),
        ("created", "DateTime", DefaultKind::Default),
        ("year", "UInt16", DefaultKind::Materialized),
        ("note", "JSON", DefaultKind::None),
        ("_topic", "String", DefaultKind::None),
    ]);
    let bound = table.bind(&output(&[("name", "String"), ("price", "UInt32")])).unwrap();
    assert_eq!(names(&bound), ["name", "price", "_topic", "_offset"]);
    assert_eq!(bound.columns[0].column_type, ColumnType::String);
    assert_eq!(bound.unfilled, ["note"]);
    assert_eq!(bound.table.as_ref(), "shop.purchases");
    assert_eq!(bound.provenance.columns().count(), 2);
    assert_eq!(bound.binding().columns, bound.columns);
    assert_eq!(table.check(&bound.columns), Ok(()));
}

#[test]
fn every_fault_is_told_with_its_cure() {
    let table = schema(&[
        ("price", "UInt64", DefaultKind::None),
        ("year", "UInt16", DefaultKind::Materialized),
        ("month", "UInt16", DefaultKind::Alias),
        ("note", "JSON", DefaultKind::None),
        ("twice", "String", DefaultKind::None),
        ("optional", "Nullable(String)", DefaultKind::None),
        ("_offset", "String", DefaultKind::None),
    ]);
    let columns = [
        ("price", "UInt32"),
        ("year", "UInt16"),
        ("month", "UInt16"),
        ("note", "String"),
        ("lost", "Date"),
        ("twice", "String"),
        ("twice", "String"),
        ("optional", "String"),
        ("_topic", "String"),
    ];
    let message = table.bind(&output(&columns)).unwrap_err().to_string();
    for expected in [
        "table `shop.purchases` does not fit\n",
        "column `price` is UInt64 in the table but UInt32 in the mapper's output (UInt32 is not UInt64): declare \
         UInt64 in the mapper, or ALTER TABLE `shop`.`purchases` MODIFY COLUMN `price` UInt32\n",
        "column `year` is MATERIALIZED",
        "column `month` is ALIAS",
        "column `note` is JSON in the table but String in the mapper's output (JSON cannot be filled from a module",
        "column `lost` is not in the table: ALTER TABLE `shop`.`purchases` ADD COLUMN `lost` Date, or",
        "column `twice` stands twice",
        "MODIFY COLUMN `optional` String DEFAULT (what a null becomes)\n",
        "column `_topic` is filled by the host",
        "provenance column `_offset` is String in the table but must be Int64 or UInt64: \
         ALTER TABLE `shop`.`purchases` MODIFY COLUMN `_offset` Int64",
    ] {
        assert!(message.contains(expected), "{expected}\nis not in\n{message}");
    }
    assert_eq!(message.lines().count(), 10);
}

#[test]
fn a_computed_provenance_column_is_told() {
    let table = schema(&[("_offset", "Int64", DefaultKind::Materialized)]);
    assert!(table.bind(&output(&[])).unwrap_err().to_string().contains("column `_offset` is MATERIALIZED"));
    let ephemeral = schema(&[("raw", "String", DefaultKind::Ephemeral)]);
    assert_eq!(names(&ephemeral.bind(&output(&[("raw", "String")])).unwrap()), ["raw"]);
}

#[test]
fn exactly_once_needs_a_window() {
    let mut table = plain(&[("price", "UInt32")]);
    assert_eq!(table.require_deduplication(1_000), Ok(()));
    let message = table.require_deduplication(1_001).unwrap_err().to_string();
    let cure =
        "ALTER TABLE `shop`.`purchases` MODIFY SETTING non_replicated_deduplication_window = 10000, or";
    assert!(message.contains("remembers 1000 INSERTs, and exactly-once needs at least 1001"), "{message}");
    assert!(message.contains(cure), "{message}");
    // The cure suffices for what was asked.
    let message = table.require_deduplication(10_001).unwrap_err().to_string();
    assert!(message.contains("_window = 20000,"), "{message}");
    table.deduplication_window = Some(0);
    let message = table.require_deduplication(1).unwrap_err().to_string();
    assert!(message.contains("remembers 0 INSERTs, and exactly-once needs at least 1000 "), "{message}");
    for engine in ["Distributed", "Null", "MaterializedView", "Log"] {
        (table.engine, table.deduplication_window) = (engine.into(), None);
        let message = table.require_deduplication(1).unwrap_err().to_string();
        assert!(
            message.contains(&format!("engine {engine} does not recognise repeated INSERTs")),
            "{message}"
        );
    }
}

#[test]
fn a_partitioned_table_needs_a_place_for_every_partition_of_an_insert() {
    let mut table = plain(&[("price", "UInt32")]);
    (table.partitioned, table.deduplication_window) = (true, Some(4_800));
    assert_eq!(table.require_deduplication(48), Ok(()));
    let message = table.require_deduplication(49).unwrap_err().to_string();
    assert!(message.contains("(an INSERT counts once for each table partition"), "{message}");
    assert!(message.contains("at least 4900"), "{message}");
}

#[test]
fn a_replicated_table_must_remember_for_a_week() {
    let mut table = plain(&[("price", "UInt32")]);
    table.engine = "ReplicatedReplacingMergeTree".into();
    (table.deduplication_window, table.deduplication_seconds) = (Some(1_000), Some(3_600));
    let message = table.require_deduplication(1_001).unwrap_err().to_string();
    assert!(message.contains("MODIFY SETTING replicated_deduplication_window = 10000"), "{message}");
    let cure =
        "ALTER TABLE `shop`.`purchases` MODIFY SETTING replicated_deduplication_window_seconds = 604800,";
    assert!(message.contains("forgets INSERTs after 3600 seconds") && message.contains(cure), "{message}");
    for (seconds, fits) in [(604_799, false), (604_800, true), (0, false)] {
        table.deduplication_seconds = Some(seconds);
        assert_eq!(table.require_deduplication(1_000).is_ok(), fits, "{seconds}");
    }
}

#[test]
fn settings_are_read_out_of_the_engine() {
    let full = "MergeTree PARTITION BY d ORDER BY a SETTINGS non_replicated_deduplication_window = 100, \
                index_granularity = 8192";
    assert_eq!(table_setting(full, "non_replicated_deduplication_window"), Some(100));
    assert_eq!(table_setting(full, "index_granularity"), Some(8192));
    assert_eq!(table_setting(full, "replicated_deduplication_window"), None);
    assert_eq!(table_setting("Null", "index_granularity"), None);
    assert_eq!(window_setting("View"), None);
    assert_eq!(window_setting("SharedMergeTree").unwrap().0, "replicated_deduplication_window");
}
