//! `sluice migrate`: applies the migrations that are not applied yet.

use std::path::PathBuf;

use anyhow::Context;

use crate::clickhouse::migrations::{Migration, Migrations, Migrator};
use crate::clickhouse::settings::ClickHouseSettings;
use crate::config::Config;

/// Apply the migrations of clickhouse.migrations that are not applied yet.
///
/// Safe to run at any time and on several hosts at once. A file that was changed after it was applied
/// is refused.
#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// Configuration file.
    #[arg(long, default_value = "config/sluice.yaml")]
    config: PathBuf,
    /// Print what would be executed, and change nothing.
    #[arg(long)]
    dry_run: bool,
}

/// Runs the command.
pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = Config::load_without_modules(&arguments.config)?;
    let migrations = Migrations::load(&config.clickhouse.migrations)?;
    let settings = ClickHouseSettings::from(&config.clickhouse);
    let migrator = Migrator::new(&settings);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let address = format!("{}, database {}", settings.url, settings.database);
        if arguments.dry_run {
            let pending = migrator.pending(&migrations).await.with_context(|| address.clone())?;
            print!("{}", plan(&pending));
        } else {
            let applied = migrator.apply(&migrations).await.with_context(|| address.clone())?;
            for migration in &applied {
                println!("applied {}", migration.file);
            }
            println!("{address}: {} of {} migrations were due", applied.len(), migrations.all().len());
        }
        Ok(())
    })
}

fn plan(pending: &[&Migration]) -> String {
    if pending.is_empty() {
        return "nothing to apply\n".into();
    }
    let mut text = String::new();
    for migration in pending {
        text.push_str(&format!("-- {}\n", migration.file));
        for statement in &migration.statements {
            text.push_str(&format!("{};\n", statement.sql));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_shows_every_statement() {
        let files = [("0001_a.sql", "SELECT 1; SELECT 2"), ("0002_b.sql", "-- b\nSELECT 3;")];
        let files = files.map(|(name, content)| (name.to_owned(), content.to_owned()));
        let migrations = Migrations::from_files(files).expect("they are migrations");
        let pending: Vec<&Migration> = migrations.all().iter().collect();
        let expected = "-- 0001_a.sql\nSELECT 1;\nSELECT 2;\n-- 0002_b.sql\n-- b\nSELECT 3;\n";
        assert_eq!(plan(&pending), expected);
        assert_eq!(plan(&[]), "nothing to apply\n");
    }
}
