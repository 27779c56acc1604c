//! Metrics of the process, read from `/proc/self` whenever they are asked for.
//!
//! Where `/proc` is missing (another system than Linux) there are none, rather than zeros.

use std::fs;
use std::sync::Mutex;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Gauge, IntGauge};

/// Ticks a second in `/proc/self/stat`: fixed for programs on Linux, whatever the kernel uses inside.
const TICKS_PER_SECOND: f64 = 100.0;

/// Reads `/proc/self` at each collection.
#[derive(Debug)]
pub(super) struct ProcessMetrics {
    processor_seconds: Counter,
    /// A counter only takes differences, so collections take turns.
    turn: Mutex<()>,
    resident_memory: IntGauge,
    open_files: IntGauge,
    most_files: IntGauge,
    threads: IntGauge,
    started: Gauge,
}

/// What `/proc/self` says at one moment.
#[derive(Debug, Default, PartialEq)]
struct Reading {
    processor_seconds: f64,
    resident_bytes: i64,
    threads: i64,
    open_files: i64,
    most_files: i64,
    /// Since 1970.
    started_seconds: f64,
}

impl ProcessMetrics {
    pub(super) fn new() -> Self {
        let gauge = |name, help| IntGauge::new(name, help).expect("the name is valid");
        Self {
            processor_seconds: Counter::new(
                "process_cpu_seconds_total",
                "User and system processor time, in seconds.",
            )
            .expect("the name is valid"),
            turn: Mutex::new(()),
            resident_memory: gauge("process_resident_memory_bytes", "Resident memory, in bytes."),
            open_files: gauge("process_open_fds", "Open file descriptors."),
            most_files: gauge("process_max_fds", "Most file descriptors that may be open."),
            threads: gauge("process_threads", "Threads."),
            started: Gauge::new("process_start_time_seconds", "Start, in seconds since 1970-01-01 UTC.")
                .expect("the name is valid"),
        }
    }
}

impl Collector for ProcessMetrics {
    fn desc(&self) -> Vec<&Desc> {
        [&self.resident_memory, &self.open_files, &self.most_files, &self.threads]
            .into_iter()
            .flat_map(Collector::desc)
            .chain(self.started.desc())
            .chain(self.processor_seconds.desc())
            .collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Some(reading) = Reading::take() else { return Vec::new() };
        self.resident_memory.set(reading.resident_bytes);
        self.open_files.set(reading.open_files);
        self.most_files.set(reading.most_files);
        self.threads.set(reading.threads);
        self.started.set(reading.started_seconds);
        let _turn = self.turn.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.processor_seconds.inc_by((reading.processor_seconds - self.processor_seconds.get()).max(0.0));
        let mut families = self.processor_seconds.collect();
        for gauge in [&self.resident_memory, &self.open_files, &self.most_files, &self.threads] {
            families.extend(gauge.collect());
        }
        families.extend(self.started.collect());
        families
    }
}

impl Reading {
    fn take() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let limits = fs::read_to_string("/proc/self/limits").ok()?;
        let system = fs::read_to_string("/proc/stat").ok()?;
        let open_files = fs::read_dir("/proc/self/fd").ok()?.count();
        Self::parse(&stat, &status, &limits, &system, open_files)
    }

    /// Formats: proc_pid_stat(5), proc_pid_status(5), proc_pid_limits(5), proc_stat(5).
    fn parse(stat: &str, status: &str, limits: &str, system: &str, open_files: usize) -> Option<Self> {
        // The second field is the program's name in parentheses and may hold anything, so count
        // from the last one; what follows is the third field.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = |field: usize| Some(fields.get(field - 3)?.parse::<f64>().ok()? / TICKS_PER_SECOND);
        let word = |text: &str, name: &str, index: usize| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().nth(index)?.parse::<i64>().ok()
        };
        Some(Self {
            processor_seconds: ticks(14)? + ticks(15)?,
            resident_bytes: word(status, "VmRSS:", 0)? * 1024,
            threads: word(status, "Threads:", 0)?,
            open_files: open_files.try_into().ok()?,
            // "unlimited" is not a number.
            most_files: word(limits, "Max open files", 0).unwrap_or(i64::MAX),
            started_seconds: word(system, "btime", 0)? as f64 + ticks(22)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_is_parsed_whatever_the_program_is_called() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194304 98 0 0 0 250 50 0 0 20 0 3 0 12000 1 2 3";
        let status = "Name:\ta ) b\nVmRSS:\t    2048 kB\nThreads:\t3\n";
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024                 4096  files\n";
        let reading = Reading::parse(stat, status, limits, "cpu 1 2\nbtime 1700000000\n", 9).expect("parsed");
        let expected = Reading {
            processor_seconds: 3.0,
            resident_bytes: 2 << 20,
            threads: 3,
            open_files: 9,
            most_files: 1024,
            started_seconds: 1_700_000_120.0,
        };
        assert_eq!(reading, expected);
    }

    #[test]
    fn this_process_has_used_some_of_everything() {
        let reading = Reading::take().expect("/proc");
        assert!(reading.resident_bytes > 1 << 20 && reading.threads >= 1 && reading.open_files >= 3);
        assert!(reading.most_files >= reading.open_files);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        assert!((0.0..86_400.0).contains(&(now.as_secs_f64() - reading.started_seconds)), "{reading:?}");
    }
}
