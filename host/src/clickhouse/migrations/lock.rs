//! Lock: one host migrates, the others wait.
//!
//! ClickHouse has no locks, but `CREATE TABLE` of one name succeeds once. So the lock is an empty table,
//! and its comment says who holds it and when, by the server's clock, it was last renewed. Three moves
//! make it safe:
//!
//! - *Take*: `CREATE TABLE lock` without `IF NOT EXISTS`. Of several hosts one succeeds. (Where the answer
//!   is lost, the comment tells the host that it was the one.)
//! - *Renew*: the holder rewrites the comment every [`RENEWAL`] while it works. A lock that was not
//!   renewed for [`LEASE`] belongs to a host that died.
//! - *Break*: `RENAME TABLE lock TO lock_{owner}`. The new name has the *dead owner's* name in it, so of
//!   several hosts that saw the same dead lock one succeeds, and one that comes late, when the lock is
//!   already another's, fails because that name is taken. For that the renamed table stays for a day.
//!
//! What is left: a holder that is frozen for longer than a lease, and wakes up in the middle of a
//! statement, runs that statement beside the next holder. It stops before the next one. Statements that
//! say `IF NOT EXISTS` make even that harmless.

use std::time::Duration;

use clickhouse::{Client, Row};
use rand::Rng;
use serde::Deserialize;

use super::MigrationError;
use crate::clickhouse::exception::ServerError;

/// Name of the table.
const LOCK: &str = "sluice_migrations_lock";
/// A lock not renewed for this long is broken.
pub(super) const LEASE: Duration = Duration::from_secs(60);
/// How often a holder renews.
const RENEWAL: Duration = Duration::from_secs(10);
/// Pause before looking again at a lock that another holds.
const POLL: Duration = Duration::from_millis(250);
/// Pauses between two messages that say who is waited for.
const POLLS_BETWEEN_MESSAGES: u32 = 40;
/// How long a broken lock keeps its new name.
const KEPT_SECONDS: u64 = 86_400;
const TABLE_ALREADY_EXISTS: i32 = 57;
const UNKNOWN_TABLE: i32 = 60;

/// The lock, held. [`Lock::release`] gives it back; dropped without, it expires.
pub(super) struct Lock {
    client: Client,
    owner: String,
}

/// What the comment of a lock says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Holder {
    owner: String,
    renewed: u64,
}

impl Holder {
    fn comment(&self) -> String {
        format!("held by {} since {}", self.owner, self.renewed)
    }

    /// A comment that nobody here wrote counts as a dead host's.
    fn parse(comment: &str) -> Self {
        let parsed = comment
            .strip_prefix("held by ")
            .and_then(|rest| rest.split_once(" since "))
            .and_then(|(owner, renewed)| Some((owner.to_owned(), renewed.parse().ok()?)));
        let (owner, renewed) = parsed.unwrap_or_else(|| ("nobody".into(), 0));
        Self { owner, renewed }
    }

    fn expired(&self, now: u64) -> bool {
        now.saturating_sub(self.renewed) > LEASE.as_secs()
    }
}

#[derive(Row, Deserialize)]
struct LockRow {
    name: String,
    comment: String,
}

#[derive(Row, Deserialize)]
struct ClockRow {
    now: u64,
}

impl Lock {
    /// Waits for the lock as long as a live host holds it.
    pub(super) async fn acquire(client: &Client) -> Result<Self, MigrationError> {
        let lock = Self { client: client.clone(), owner: format!("{:016x}", rand::rng().random::<u64>()) };
        for attempt in 0u32.. {
            let (holder, now) = lock.look().await?;
            match holder {
                Some(holder) if holder.owner == lock.owner => return Ok(lock),
                None => lock.take(now).await?,
                Some(holder) if holder.expired(now) => {
                    tracing::warn!(
                        owner = holder.owner,
                        "the host that was migrating is gone; going on for it"
                    );
                    lock.break_open(&holder).await?;
                }
                Some(holder) => {
                    if attempt % POLLS_BETWEEN_MESSAGES == 0 {
                        tracing::info!(owner = holder.owner, "another host is migrating; waiting for it");
                    }
                    tokio::time::sleep(POLL).await;
                }
            }
        }
        unreachable!("the loop above ends only by returning")
    }

    /// Runs a piece of work, renewing the lock meanwhile.
    pub(super) async fn hold<T>(
        &self,
        work: impl Future<Output = Result<T, MigrationError>>,
    ) -> Result<T, MigrationError> {
        self.renew().await?;
        let mut work = std::pin::pin!(work);
        loop {
            // Both are cancel-safe here: `work` is kept across rounds, and the sleep is started anew.
            tokio::select! {
                outcome = &mut work => return outcome,
                () = tokio::time::sleep(RENEWAL) => self.renew().await?,
            }
        }
    }

    /// Gives the lock back, and clears away what broken ones left.
    pub(super) async fn release(self) {
        let outcome: Result<(), MigrationError> = async {
            let (holder, now) = self.look().await?;
            for LockRow { name, comment } in self.rows().await? {
                if name != LOCK && Holder::parse(&comment).renewed + KEPT_SECONDS < now {
                    self.run(&format!("DROP TABLE IF EXISTS `{name}`"), &[]).await?;
                }
            }
            if holder.is_some_and(|holder| holder.owner == self.owner) {
                self.run(&format!("DROP TABLE {LOCK} SYNC"), &[UNKNOWN_TABLE]).await?;
            }
            Ok(())
        }
        .await;
        if let Err(error) = outcome {
            tracing::warn!(%error, "the migration lock was not given back; it expires in {LEASE:?}");
        }
    }

    async fn renew(&self) -> Result<(), MigrationError> {
        let (holder, now) = self.look().await?;
        if holder.is_none_or(|holder| holder.owner != self.owner) {
            return Err(MigrationError::LockLost);
        }
        let comment = Holder { owner: self.owner.clone(), renewed: now }.comment();
        self.run(&format!("ALTER TABLE {LOCK} MODIFY COMMENT '{comment}'"), &[]).await
    }

    async fn take(&self, now: u64) -> Result<(), MigrationError> {
        let comment = Holder { owner: self.owner.clone(), renewed: now }.comment();
        let sql = format!("CREATE TABLE {LOCK} (nothing UInt8) ENGINE = Memory COMMENT '{comment}'");
        self.run(&sql, &[TABLE_ALREADY_EXISTS]).await
    }

    async fn break_open(&self, holder: &Holder) -> Result<(), MigrationError> {
        let sql = format!("RENAME TABLE {LOCK} TO `{LOCK}_{}`", holder.owner);
        self.run(&sql, &[TABLE_ALREADY_EXISTS, UNKNOWN_TABLE]).await
    }

    /// Who holds the lock, and the server's time.
    async fn look(&self) -> Result<(Option<Holder>, u64), MigrationError> {
        let clock = self.client.query("SELECT toUInt64(toUnixTimestamp(now())) AS now");
        let ClockRow { now } = clock.fetch_one::<ClockRow>().await.map_err(failed)?;
        let rows = self.rows().await?;
        Ok((rows.iter().find(|row| row.name == LOCK).map(|row| Holder::parse(&row.comment)), now))
    }

    async fn rows(&self) -> Result<Vec<LockRow>, MigrationError> {
        let sql = "SELECT name, comment FROM system.tables WHERE database = currentDatabase() \
                   AND startsWith(name, 'sluice_migrations_lock')";
        self.client.query(sql).fetch_all::<LockRow>().await.map_err(failed)
    }

    async fn run(&self, sql: &str, expected: &[i32]) -> Result<(), MigrationError> {
        match self.client.query_raw(sql).execute().await.map_err(ServerError::from) {
            Err(error) if !error.code.is_some_and(|code| expected.contains(&code)) => {
                Err(MigrationError::Server { doing: "keep the migration lock", error })
            }
            _ => Ok(()),
        }
    }
}

fn failed(error: clickhouse::error::Error) -> MigrationError {
    MigrationError::Server { doing: "look at the migration lock", error: error.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_comment_says_who_and_when() {
        let holder = Holder { owner: "ab12".into(), renewed: 1000 };
        assert_eq!(Holder::parse(&holder.comment()), holder);
        assert!(!holder.expired(1000) && !holder.expired(1060) && !holder.expired(900));
        assert!(holder.expired(1061));
        for strange in ["", "held by x", "held by x since yesterday"] {
            assert!(Holder::parse(strange).expired(1_700_000_000));
        }
    }
}
