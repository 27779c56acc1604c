//! Child: a compiler process, from its start to what its end means.
//!
//! State: one process and the threads that serve its pipes, all gone when [`Child::translate`] returns; and
//! which files have to wait ([`Pauses`]).
//! Invariant: what ends the compiler by itself is the module's doing and stays so; what ends it from
//! outside, or keeps it from starting, is this machine's, and is tried again.

use std::io::{self, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child as Process, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::Instant;

use rustix::process::Signal;
use sha2::{Digest, Sha256};

use super::pauses::{Content, Pauses};
use super::protocol::{Answer, read_answer, write_file};
use super::translate::Untranslatable;
use crate::domain::answer::clean;
use crate::wasm::limits::Limits;
use crate::wasm::module::ModuleFault;

/// How much longer than its processor time a compiler may take: so far the machine may be busy with other
/// things.
const PATIENCE: u32 = 4;
/// What is kept of what a compiler says as it ends.
const LAST_WORDS_BYTES: u64 = 16 << 10;

/// Starts compilers.
#[derive(Clone)]
pub(super) struct Child {
    /// The `sluice` program.
    program: PathBuf,
    pauses: Arc<Mutex<Pauses>>,
}

impl std::fmt::Debug for Child {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Child").field("program", &self.program).finish_non_exhaustive()
    }
}

/// How a compiler ended.
struct End {
    status: ExitStatus,
    /// The last that it said on standard error.
    words: String,
    is_in_time: bool,
}

impl Child {
    pub(super) fn new(program: PathBuf) -> Self {
        Self { program, pauses: Arc::default() }
    }

    /// Machine code of a file. Where this machine did not let it be made before, it may have to wait.
    pub(super) fn translate(&self, file: &[u8], limits: &Limits) -> Result<Vec<u8>, ModuleFault> {
        let content: Content = Sha256::digest(file).into();
        if let Some(reason) = self.pauses().pending(&content, Instant::now()) {
            return Err(ModuleFault::Compiler(reason.to_owned()));
        }
        let translated = self.translate_now(file, limits);
        match &translated {
            Err(ModuleFault::Compiler(reason)) => self.pauses().ended(content, reason, Instant::now()),
            _ => self.pauses().over(&content),
        }
        translated
    }

    fn pauses(&self) -> MutexGuard<'_, Pauses> {
        self.pauses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn translate_now(&self, file: &[u8], limits: &Limits) -> Result<Vec<u8>, ModuleFault> {
        let host = |doing: &str, error: &dyn std::fmt::Display| {
            ModuleFault::Compiler(format!("{doing} {}: {error}", self.program.display()))
        };
        let mut process = self.start(limits).map_err(|error| host("cannot start", &error))?;
        let talked = talk(&mut process, file, limits);
        if talked.is_err() {
            let _ = process.kill();
            let _ = process.wait();
        }
        let (answer, end) = talked.map_err(|error| host("cannot talk to", &error))?;
        match answer {
            Some(Ok(code)) => Ok(code),
            Some(Err(refused)) => Err(refused.fault(limits)),
            None => Err(end.fault(limits)),
        }
    }

    fn start(&self, limits: &Limits) -> io::Result<Process> {
        Command::new(&self.program)
            .arg0("sluice")
            .arg("compile-module")
            .arg(format!("--parent={}", std::process::id()))
            .arg(format!("--memory-bytes={}", limits.compile_memory_bytes))
            .arg(format!("--processor-time={}", humantime::format_duration(limits.compile_timeout)))
            // What reads unknown files has no business with the secrets of a host; where its libraries are
            // it has to know.
            .env_clear()
            .envs(std::env::var_os("LD_LIBRARY_PATH").map(|path| ("LD_LIBRARY_PATH", path)))
            // Ctrl-C on a terminal is for the host, which may go on compiling until it has drained.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
    }
}

/// Hands the file over and waits for the answer and the end.
fn talk(process: &mut Process, file: &[u8], limits: &Limits) -> io::Result<(Option<Answer>, End)> {
    let pipes = (process.stdin.take(), process.stdout.take(), process.stderr.take());
    let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
        return Err(io::Error::other("its pipes are gone"));
    };
    let patience = limits.compile_timeout.saturating_mul(PATIENCE);
    let (done, is_done) = mpsc::sync_channel(1);
    thread::scope(|scope| {
        let threads = serve(scope, (stdin, stdout, stderr), file, limits.compile_memory_bytes as u64, done);
        if threads.is_err() {
            // The scope waits for those that did start, and they for the process.
            process.kill()?;
        }
        let (words, answer) = threads?;
        // Nothing is sent: the channel closes.
        let is_in_time = is_done.recv_timeout(patience) != Err(mpsc::RecvTimeoutError::Timeout);
        if !is_in_time {
            process.kill()?;
        }
        let status = process.wait()?;
        let words = words.join().unwrap_or_default();
        let answer = answer.join().unwrap_or(Ok(None))?;
        Ok((answer, End { status, words, is_in_time }))
    })
}

/// What a compiler says last, and its answer.
type Heard<'scope> = (ScopedJoinHandle<'scope, String>, ScopedJoinHandle<'scope, io::Result<Option<Answer>>>);

/// Serves the pipes, a thread each: one that waited for another would hold the compiler up. `done` closes with
/// the end of the answer.
fn serve<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    (stdin, stdout, stderr): (ChildStdin, ChildStdout, ChildStderr),
    file: &'env [u8],
    most: u64,
    done: mpsc::SyncSender<()>,
) -> io::Result<Heard<'scope>> {
    let thread = |name: &str| thread::Builder::new().name(name.to_owned());
    // A compiler that ends before it has read everything says why in its own way.
    thread("compiler-input").spawn_scoped(scope, move || drop(write_file(stdin, file)))?;
    let words = thread("compiler-words").spawn_scoped(scope, move || last_words(stderr))?;
    let answer = thread("compiler-answer").spawn_scoped(scope, move || {
        let answer = read_answer(BufReader::new(stdout), most);
        drop(done);
        answer
    })?;
    Ok((words, answer))
}

/// The beginning of what it says; the rest is read and thrown away, so that it is not held up.
fn last_words(mut stderr: ChildStderr) -> String {
    let mut words = Vec::new();
    let _ = stderr.by_ref().take(LAST_WORDS_BYTES).read_to_end(&mut words);
    let _ = io::copy(&mut stderr, &mut io::sink());
    String::from_utf8_lossy(&words).into_owned()
}

impl Untranslatable {
    /// What the author of the module hears.
    pub(super) fn fault(self, limits: &Limits) -> ModuleFault {
        match self {
            Self::Compile(reason) => ModuleFault::Compile(reason),
            Self::Wrap(reason) => ModuleFault::Wrap(reason),
            Self::Imports(names) => ModuleFault::Imports { names },
            Self::Memory => ModuleFault::CompileMemory { limit: limits.compile_memory_bytes },
        }
    }
}

impl End {
    /// What it means that there is no answer.
    fn fault(&self, limits: &Limits) -> ModuleFault {
        let words = |fallback: String| {
            let words = self.words.trim();
            if words.is_empty() { fallback } else { clean(words.to_owned(), 512) }
        };
        if !self.is_in_time {
            return ModuleFault::Compiler(format!(
                "the compiler was not done after {:?}, in which it got less than {:?} of processor time; the \
                 machine is too busy",
                limits.compile_timeout.saturating_mul(PATIENCE),
                limits.compile_timeout
            ));
        }
        let Some(signal) = self.status.signal() else {
            return match self.status.code() {
                Some(PANIC) => ModuleFault::CompilerCrashed(words("it panics".to_owned())),
                code => ModuleFault::Compiler(words(format!("the compiler ended with code {code:?}"))),
            };
        };
        let is = |signals: &[Signal]| signals.iter().any(|other| other.as_raw() == signal);
        if is(&[Signal::XCPU]) {
            ModuleFault::CompileTime { limit: limits.compile_timeout }
        } else if is(&[Signal::ABORT]) && self.words.contains(OUT_OF_MEMORY) {
            ModuleFault::CompileMemory { limit: limits.compile_memory_bytes }
        } else if is(&[Signal::ABORT, Signal::SEGV]) && self.words.contains(OVERFLOW) {
            ModuleFault::CompilerCrashed("its stack overflows".to_owned())
        } else if is(&[Signal::ABORT, Signal::SEGV, Signal::BUS, Signal::ILL, Signal::FPE, Signal::SYS]) {
            ModuleFault::CompilerCrashed(words(self.status.to_string()))
        } else {
            // A compiler sends itself no other signal.
            ModuleFault::Compiler(format!(
                "something ended the compiler ({}); where that was for want of memory, give the machine more, or \
                 lower compile_memory",
                self.status
            ))
        }
    }
}

/// Exit code of a Rust program that panicked.
const PANIC: i32 = 101;
/// Words of Rust's standard library as it ends a process; tests hold them.
const OUT_OF_MEMORY: &str = "memory allocation of ";
const OVERFLOW: &str = "has overflowed its stack";

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(status: i32, words: &str, is_in_time: bool) -> String {
        let end = End { status: ExitStatus::from_raw(status), words: words.to_owned(), is_in_time };
        end.fault(&Limits::default()).to_string()
    }

    #[test]
    fn a_file_that_the_machine_did_not_let_be_compiled_waits() {
        let child = Child::new("/nowhere/sluice".into());
        let content: Content = Sha256::digest(b"wasm").into();
        let started = Instant::now();
        let fault = child.translate(b"wasm", &Limits::default()).unwrap_err().to_string();
        assert!(fault.contains("cannot start /nowhere/sluice"), "{fault}");
        let waits_for = child.pauses().pending(&content, started).map(str::to_owned);
        assert!(waits_for.is_some_and(|reason| fault.ends_with(&reason)));
        let much_later = started + std::time::Duration::from_secs(3600);
        child.pauses().ended(content, "something ended it", much_later);
        let fault = child.translate(b"wasm", &Limits::default()).unwrap_err().to_string();
        assert!(fault.ends_with("something ended it"), "no compiler is started: {fault}");
    }

    #[test]
    fn what_ends_it_by_itself_is_the_modules_doing_and_the_rest_the_machines() {
        let is_machines =
            |text: &str| text.starts_with("could not be compiled, which is this machine's doing");
        let (abort, xcpu, kill, panic, one) = (6, 24, 9, 101 << 8, 1 << 8);
        assert!(fault(abort, "memory allocation of 8 bytes failed", true).contains("raise compile_memory"));
        assert!(
            fault(abort, "\nthread 'compiler' has overflowed its stack", true).contains("its stack over")
        );
        assert!(fault(abort, "", true).starts_with("makes the compiler crash (signal: 6"));
        assert!(fault(11, "", true).starts_with("makes the compiler crash (signal: 11"));
        assert!(fault(xcpu, "", true).contains("raise compile_timeout"));
        assert!(
            fault(panic, "thread 'compiler' panicked at x", true).contains("crash (thread 'compiler' pan")
        );
        assert!(is_machines(&fault(kill, "", true)));
        assert!(is_machines(&fault(15, "", true)));
        assert!(is_machines(&fault(kill, "", false)), "the host killed it");
        assert!(is_machines(&fault(one, "error: /proc/self/status", true)));
    }
}
