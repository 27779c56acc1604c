//! Inside: what the compiler process does, from its first instruction to its answer.
//!
//! It binds itself before it reads a byte of the file: it dies with its parent, yields to the workers, is
//! the first that the system ends where memory runs out, and may take no more memory and processor time
//! than it was told. Its state is the file and what becomes of it; nobody calls it twice.

use std::io::{self, BufWriter};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal};
use wasmtime::Engine;

use super::protocol::{read_file, write_answer};
use super::translate::{Encoding, Untranslatable, translate};
use crate::wasm::engine;
use crate::wasm::limits::LARGEST_FILE;

/// Stack of the thread that compiles: twice that of a main thread, and the same whatever `ulimit -s` says,
/// so that what compiles on one host compiles on all.
const STACK_BYTES: usize = 16 << 20;
/// With so much niceness it gets about a tenth of a core that workers want as well, so that a busy host
/// goes on compiling, slowly.
const NICENESS: i32 = 10;

/// Limits of a compiler process, as its parent gives them to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompilerProcess {
    /// Process that started it; without it, it ends.
    pub parent: u32,
    /// Bytes that compiling may take, beyond what the process has already.
    pub memory_bytes: u64,
    /// Processor time of the process, in whole seconds.
    pub processor_time: Duration,
}

impl CompilerProcess {
    /// Reads a file from standard input and answers on standard output.
    ///
    /// # Errors
    /// When the machine does not let it; the file's faults go into the answer.
    pub fn run(self) -> io::Result<()> {
        self.follow_parent()?;
        // A thread, for its stack; made before memory is limited, for its stack counts.
        let thread = thread::Builder::new().name("compiler".into()).stack_size(STACK_BYTES);
        let ended = thread.spawn(move || {
            self.bind()?;
            let file = read_file(io::stdin().lock(), LARGEST_FILE as u64)?;
            write_answer(BufWriter::new(io::stdout().lock()), compile(&file))
        })?;
        // A panic has said why; the exit code says that it was one.
        ended.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn follow_parent(self) -> io::Result<()> {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // It may have ended before that.
        if rustix::process::getppid().map(Pid::as_raw_pid).map(i32::cast_unsigned) == Some(self.parent) {
            Ok(())
        } else {
            Err(io::Error::other("the process that started this compiler has ended"))
        }
    }

    fn bind(self) -> io::Result<()> {
        // Where the system does not have these, compiling goes on all the same.
        let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
        let _ = rustix::process::nice(NICENESS);
        let limit = |resource, soft: u64, hard: u64| {
            // Whoever started the host may have been stricter.
            let most = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
            let limit = Rlimit { current: Some(soft.min(most)), maximum: Some(hard.min(most)) };
            rustix::process::setrlimit(resource, limit).map_err(io::Error::from)
        };
        // A crash is an answer here, not something to be examined.
        limit(Resource::Core, 0, 0)?;
        limit(Resource::Fsize, 0, 0)?;
        let seconds = self.processor_time.as_secs() + u64::from(self.processor_time.subsec_nanos() > 0);
        // At the first it is told, at the second killed: a signal of its own says why.
        limit(Resource::Cpu, seconds, seconds + 1)?;
        let memory = taken()? + self.memory_bytes;
        limit(Resource::Data, memory, memory)
    }
}

/// Bytes that this process has of the kind that [`Resource::Data`] limits: private and writable.
fn taken() -> io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let kibibytes = status.lines().find_map(|line| {
        line.strip_prefix("VmData:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
    });
    kibibytes
        .map(|kibibytes| kibibytes << 10)
        .ok_or_else(|| io::Error::other("/proc/self/status has no VmData; mount /proc"))
}

fn compile(file: &[u8]) -> Result<Vec<u8>, Untranslatable> {
    let encoding = Encoding::of(file).map_err(|fault| Untranslatable::Compile(fault.to_string()))?;
    let engine = Engine::new(&engine::compile_settings())
        .map_err(|error| Untranslatable::Compile(format!("the engine does not start: {error:#}")))?;
    translate(&engine, file, encoding)
}
