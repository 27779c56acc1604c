//! ClickHouse as a library: the few functions of libchdb's C interface that the front uses, behind
//! safe types.
//!
//! State: the loaded library (never unloaded, since its threads run until the process ends) and the
//! engine, of which a process has one, on one data path. The keeper connection holds it open: closing
//! the last connection shuts the engine down.
//!
//! Invariants: every `unsafe` block of the embedded ClickHouse is in this file; a [`Connection`] runs
//! one statement at a time (its methods take `&mut self`); every result and stream is freed exactly
//! once; the engine outlives its connections.
//!
//! The signatures follow `chdb.h` of chDB 26.7; the npm package carries the library without a header.

use std::ffi::{CStr, CString, OsString, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use libloading::Library;

/// Where [`find_library`] looks first.
pub(super) const LIBRARY_VARIABLE: &str = "SLUICE_LIBCHDB";
/// The cache folder that `deploy/libchdb/fetch.sh` fills, instead of `.cache` in the repository.
pub(super) const CACHE_VARIABLE: &str = "SLUICE_CACHE";
const LIBRARY_IN_CACHE: &str = "libchdb/libchdb.so";

/// ClickHouse's code for an exception that carries none.
const UNKNOWN_EXCEPTION: i32 = 1002;
/// Bytes handed to the engine at a time; it queues at most 16 of them.
const APPEND_BYTES: usize = 1 << 20;

/// Why the engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum LibchdbError {
    /// No library in any of the places where it may be.
    #[error(
        "libchdb.so was not found; run `make libchdb` (it downloads the library into .cache/), \
         or name the file with --library or SLUICE_LIBCHDB; looked at: {looked_at}"
    )]
    NotFound {
        /// The places, joined by commas.
        looked_at: String,
    },
    /// The file is there, but it is no library that this program can use.
    #[error("cannot load {}: {source}; run `make libchdb` to fetch the right one", path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// What the loader said.
        source: libloading::Error,
    },
    /// A second engine in one process.
    #[error(
        "the embedded ClickHouse runs already: a process has one, on one data path; start another process"
    )]
    AlreadyStarted,
    /// The engine refused the data path; its reason is on standard error.
    #[error(
        "ClickHouse did not open its data folder {}: see its message on standard error; \
         most often another process has the folder open", path.display()
    )]
    Connect {
        /// The data folder.
        path: PathBuf,
    },
    /// The data path cannot be passed on.
    #[error("the data folder {} has a zero byte in its name", path.display())]
    BadPath {
        /// The data folder.
        path: PathBuf,
    },
}

/// What ClickHouse says when a statement fails.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Exception {
    /// ClickHouse's error code.
    pub code: i32,
    /// Its text, which starts with `Code: N. DB::Exception:`.
    pub message: String,
}

impl Exception {
    /// An exception in ClickHouse's own wording, raised by the front.
    pub(super) fn new(code: i32, name: &str, description: impl AsRef<str>) -> Self {
        let description = description.as_ref();
        Self { code, message: format!("Code: {code}. DB::Exception: {description}. ({name})") }
    }

    /// Takes the code out of the engine's text.
    fn from_text(text: String) -> Self {
        let code = text
            .strip_prefix("Code: ")
            .and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next())
            .and_then(|digits| digits.parse().ok())
            .unwrap_or(UNKNOWN_EXCEPTION);
        Self { code, message: text }
    }
}

/// The library file: `explicit`, else `SLUICE_LIBCHDB`, else `libchdb/libchdb.so` in the folder
/// `SLUICE_CACHE`, or in a `.cache` at or above the current directory or this program.
pub fn find_library(explicit: Option<&Path>) -> Result<PathBuf, LibchdbError> {
    let variable =
        |name| std::env::var_os(name).filter(|value: &OsString| !value.is_empty()).map(PathBuf::from);
    let named = explicit.map(Path::to_path_buf).or_else(|| variable(LIBRARY_VARIABLE));
    let candidates = match named {
        // A file that was named is meant: no other takes its place.
        Some(file) => vec![file],
        None => {
            let cache = variable(CACHE_VARIABLE);
            let current = std::env::current_dir().ok();
            let program = std::env::current_exe().ok();
            // A relative cache folder is meant from the project's root, where `make` runs; tests run
            // below it.
            let above = |start: &Option<PathBuf>, cache: PathBuf| -> Vec<PathBuf> {
                let folders = start.iter().flat_map(|start| start.ancestors());
                folders.map(|folder| folder.join(&cache).join(LIBRARY_IN_CACHE)).collect()
            };
            let mut candidates = match cache {
                Some(cache) => above(&current, cache),
                None => [above(&current, ".cache".into()), above(&program, ".cache".into())].concat(),
            };
            let mut seen = std::collections::HashSet::new();
            candidates.retain(|candidate| seen.insert(candidate.clone()));
            candidates
        }
    };
    match candidates.iter().find(|candidate| candidate.is_file()) {
        Some(found) => Ok(found.clone()),
        None => {
            let looked_at = candidates.iter().map(|candidate| candidate.display().to_string());
            Err(LibchdbError::NotFound { looked_at: looked_at.collect::<Vec<_>>().join(", ") })
        }
    }
}

type ConnectionHandle = *mut c_void;
type ResultHandle = *mut c_void;
type StreamHandle = *mut c_void;

/// Declares the functions that are used, as one struct of pointers that is filled from the library.
macro_rules! functions {
    ($($name:ident: fn($($argument:ty),*) $(-> $answer:ty)?;)*) => {
        struct Functions { $($name: unsafe extern "C" fn($($argument),*) $(-> $answer)?,)* }

        impl Functions {
            #[expect(unsafe_code, reason = "symbols of a C library carry no types")]
            fn load(library: &'static Library) -> Result<Self, libloading::Error> {
                Ok(Self {
                    // SAFETY: the types are those of chdb.h for the pinned version, and the
                    // library is never unloaded, so the pointers stay valid.
                    $($name: unsafe { *library.get(concat!(stringify!($name), "\0").as_bytes())? },)*
                })
            }
        }
    };
}

functions! {
    chdb_set_signal_handlers_enabled: fn(c_int);
    chdb_connect: fn(c_int, *mut *mut c_char) -> *mut ConnectionHandle;
    chdb_close_conn: fn(*mut ConnectionHandle);
    chdb_query_with_params_n: fn(
        ConnectionHandle, *const c_char, usize, *const c_char, usize,
        *const *const c_char, *const usize, *const *const c_char, *const usize, usize
    ) -> ResultHandle;
    chdb_destroy_query_result: fn(ResultHandle);
    chdb_result_buffer: fn(ResultHandle) -> *mut c_char;
    chdb_result_length: fn(ResultHandle) -> usize;
    chdb_result_error: fn(ResultHandle) -> *const c_char;
    chdb_result_rows_read: fn(ResultHandle) -> u64;
    chdb_result_storage_rows_read: fn(ResultHandle) -> u64;
    chdb_result_storage_bytes_read: fn(ResultHandle) -> u64;
    chdb_result_rows_written: fn(ResultHandle) -> u64;
    chdb_result_bytes_written: fn(ResultHandle) -> u64;
    chdb_stream_insert_with_params_n: fn(
        ConnectionHandle, *const c_char, usize, *const c_char, usize,
        *const *const c_char, *const usize, *const *const c_char, *const usize, usize
    ) -> StreamHandle;
    chdb_stream_append: fn(StreamHandle, *const c_void, usize) -> c_int;
    chdb_stream_done: fn(StreamHandle) -> ResultHandle;
    chdb_stream_insert_error: fn(StreamHandle) -> *const c_char;
    chdb_destroy_insert_stream: fn(StreamHandle);
}

static STARTED: AtomicBool = AtomicBool::new(false);

/// The engine. It stops when the last clone and the last connection are gone.
#[derive(Clone)]
pub(super) struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    functions: &'static Functions,
    arguments: Vec<CString>,
    data: PathBuf,
    /// Held, not used: see the module's invariants. Declared for its drop.
    keeper: Option<RawConnection>,
}

impl Engine {
    /// Loads `library` and opens, or makes, the data folder `data`.
    ///
    /// Blocks for about a fifth of a second, longer where there are many tables.
    #[expect(unsafe_code, reason = "loads a C library and calls it")]
    pub(super) fn start(library: &Path, data: &Path) -> Result<Self, LibchdbError> {
        let argument = [b"--path=", data.as_os_str().as_bytes()].concat();
        let argument =
            CString::new(argument).map_err(|_| LibchdbError::BadPath { path: data.to_path_buf() })?;
        let load_error = |source| LibchdbError::Load { path: library.to_path_buf(), source };
        if STARTED.swap(true, Ordering::SeqCst) {
            return Err(LibchdbError::AlreadyStarted);
        }
        // SAFETY: the initialisers of libchdb run here, once a process; they need nothing of us.
        let loaded = unsafe { Library::new(library) }.map_err(load_error)?;
        // Leaked on purpose: the engine's threads run code of the library until the process ends.
        let functions = Functions::load(Box::leak(Box::new(loaded))).map_err(load_error)?;
        let functions: &'static Functions = Box::leak(Box::new(functions));
        // SAFETY: takes a number. Must come before the first connect, or the engine would take
        // over the handlers of SIGSEGV and others.
        unsafe { (functions.chdb_set_signal_handlers_enabled)(0) };
        let mut shared = Shared {
            functions,
            arguments: vec![c"chdb".to_owned(), argument],
            data: data.to_path_buf(),
            keeper: None,
        };
        shared.keeper = Some(shared.connect()?);
        Ok(Self { shared: Arc::new(shared) })
    }

    /// A connection of its own settings, current database and temporary tables (half a millisecond).
    pub(super) fn connect(&self) -> Result<Connection, LibchdbError> {
        Ok(Connection { raw: self.shared.connect()?, shared: Arc::clone(&self.shared) })
    }
}

impl Shared {
    #[expect(unsafe_code, reason = "calls a C library")]
    fn connect(&self) -> Result<RawConnection, LibchdbError> {
        let mut arguments: Vec<*mut c_char> =
            self.arguments.iter().map(|argument| argument.as_ptr().cast_mut()).collect();
        let count = c_int::try_from(arguments.len()).expect("two arguments");
        arguments.push(ptr::null_mut());
        // SAFETY: `count` strings that live through the call; the engine only reads them.
        let pointer = unsafe { (self.functions.chdb_connect)(count, arguments.as_mut_ptr()) };
        match NonNull::new(pointer) {
            Some(pointer) => Ok(RawConnection { functions: self.functions, pointer }),
            None => Err(LibchdbError::Connect { path: self.data.clone() }),
        }
    }
}

/// What `chdb_connect` answered; closed on drop.
struct RawConnection {
    functions: &'static Functions,
    pointer: NonNull<ConnectionHandle>,
}

// SAFETY: chDB lets a connection be used and closed from any thread, one call at a time; `Connection`
// takes `&mut self` for each call, and the keeper is only ever closed.
#[expect(unsafe_code, reason = "a raw pointer is not Send by itself")]
unsafe impl Send for RawConnection {}
// SAFETY: nothing can be done through a shared reference to it, except reading the pointer.
#[expect(unsafe_code, reason = "a raw pointer is not Sync by itself")]
unsafe impl Sync for RawConnection {}

impl RawConnection {
    #[expect(unsafe_code, reason = "reads a pointer of a C library")]
    fn handle(&self) -> ConnectionHandle {
        // SAFETY: not null, and valid until `chdb_close_conn`, which only `drop` calls.
        unsafe { *self.pointer.as_ptr() }
    }
}

impl Drop for RawConnection {
    #[expect(unsafe_code, reason = "calls a C library")]
    fn drop(&mut self) {
        // SAFETY: came from `chdb_connect` and is closed here only.
        unsafe { (self.functions.chdb_close_conn)(self.pointer.as_ptr()) }
    }
}

/// A server-side parameter: `{name:Type}` in a statement. The value is text as in a field of
/// TabSeparated, escapes included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parameter {
    /// Name without `param_`.
    pub(super) name: String,
    /// Value.
    pub(super) value: Vec<u8>,
}

/// The parameters in the form in which the C interface takes them.
struct ParameterArrays {
    names: Vec<*const c_char>,
    name_lengths: Vec<usize>,
    values: Vec<*const c_char>,
    value_lengths: Vec<usize>,
}

impl ParameterArrays {
    /// Points into `parameters`, which must outlive it.
    fn of(parameters: &[Parameter]) -> Self {
        Self {
            names: parameters.iter().map(|parameter| parameter.name.as_ptr().cast()).collect(),
            name_lengths: parameters.iter().map(|parameter| parameter.name.len()).collect(),
            values: parameters.iter().map(|parameter| parameter.value.as_ptr().cast()).collect(),
            value_lengths: parameters.iter().map(|parameter| parameter.value.len()).collect(),
        }
    }
}

/// One connection to the engine, closed on drop.
pub(super) struct Connection {
    // Before `shared`: fields drop in order, and the engine outlives its connections.
    raw: RawConnection,
    shared: Arc<Shared>,
}

impl Connection {
    /// Runs one statement to its end; the whole answer is in memory. `format` is used where the
    /// statement names none. Blocks.
    #[expect(unsafe_code, reason = "calls a C library")]
    pub(super) fn query(
        &mut self,
        sql: &[u8],
        format: &str,
        parameters: &[Parameter],
    ) -> Result<Answer, Exception> {
        let arrays = ParameterArrays::of(parameters);
        // SAFETY: an open connection, used by nobody else; every pointer comes with its length, and
        // what it points to lives through the call.
        let handle = unsafe {
            (self.shared.functions.chdb_query_with_params_n)(
                self.raw.handle(),
                sql.as_ptr().cast(),
                sql.len(),
                format.as_ptr().cast(),
                format.len(),
                arrays.names.as_ptr(),
                arrays.name_lengths.as_ptr(),
                arrays.values.as_ptr(),
                arrays.value_lengths.as_ptr(),
                parameters.len(),
            )
        };
        Answer::from_handle(self.shared.functions, handle)
    }

    /// Runs an INSERT without FORMAT and without data, then feeds it `pieces` of `format`.
    ///
    /// Nothing is inserted where an exception comes before the first block is full (1,048,449 rows or
    /// 256 MiB), as in a ClickHouse server. Blocks.
    #[expect(unsafe_code, reason = "calls a C library")]
    pub(super) fn insert<'a>(
        &mut self,
        sql: &[u8],
        format: &str,
        parameters: &[Parameter],
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Answer, Exception> {
        let functions = self.shared.functions;
        let arrays = ParameterArrays::of(parameters);
        // SAFETY: as for `query`. The stream is destroyed by `Stream::drop`, before this method gives
        // the connection back.
        let handle = unsafe {
            (functions.chdb_stream_insert_with_params_n)(
                self.raw.handle(),
                sql.as_ptr().cast(),
                sql.len(),
                format.as_ptr().cast(),
                format.len(),
                arrays.names.as_ptr(),
                arrays.name_lengths.as_ptr(),
                arrays.values.as_ptr(),
                arrays.value_lengths.as_ptr(),
                parameters.len(),
            )
        };
        let stream = Stream { functions, handle };
        if let Some(exception) = stream.exception() {
            return Err(exception);
        }
        for piece in pieces.into_iter().flat_map(|piece| piece.chunks(APPEND_BYTES)) {
            // SAFETY: an open stream; the bytes are copied before the call returns.
            let state = unsafe { (functions.chdb_stream_append)(handle, piece.as_ptr().cast(), piece.len()) };
            if state != 0 {
                // The stream has failed; finishing it brings the exception.
                break;
            }
        }
        // SAFETY: an open stream, finished once.
        let result = unsafe { (functions.chdb_stream_done)(handle) };
        Answer::from_handle(functions, result)
    }
}

/// An INSERT under way; destroyed on drop, which cancels it if it was not finished.
struct Stream {
    functions: &'static Functions,
    handle: StreamHandle,
}

impl Stream {
    #[expect(unsafe_code, reason = "calls a C library")]
    fn exception(&self) -> Option<Exception> {
        // SAFETY: a stream not destroyed yet; the text lives as long as the stream.
        unsafe { text((self.functions.chdb_stream_insert_error)(self.handle)) }.map(Exception::from_text)
    }
}

impl Drop for Stream {
    #[expect(unsafe_code, reason = "calls a C library")]
    fn drop(&mut self) {
        // SAFETY: came from `chdb_stream_insert_with_params_n` and is destroyed here only.
        unsafe { (self.functions.chdb_destroy_insert_stream)(self.handle) }
    }
}

/// A finished statement: its bytes and its counts. The bytes stay in the engine's memory until drop.
pub(super) struct Answer {
    functions: &'static Functions,
    handle: ResultHandle,
}

// SAFETY: a result is finished, immutable memory that belongs to no thread and no connection.
#[expect(unsafe_code, reason = "a raw pointer is not Send by itself")]
unsafe impl Send for Answer {}
// SAFETY: as above; the accessors only read.
#[expect(unsafe_code, reason = "a raw pointer is not Sync by itself")]
unsafe impl Sync for Answer {}

impl Answer {
    #[expect(unsafe_code, reason = "calls a C library")]
    fn from_handle(functions: &'static Functions, handle: ResultHandle) -> Result<Self, Exception> {
        if handle.is_null() {
            return Err(Exception::new(
                UNKNOWN_EXCEPTION,
                "UNKNOWN_EXCEPTION",
                "libchdb answered nothing at all",
            ));
        }
        let answer = Self { functions, handle };
        // SAFETY: a result not destroyed yet; the text lives as long as the result.
        match unsafe { text((functions.chdb_result_error)(handle)) } {
            Some(error) => Err(Exception::from_text(error)),
            None => Ok(answer),
        }
    }

    /// Rows of the answer.
    #[expect(unsafe_code, reason = "calls a C library")]
    pub(super) fn result_rows(&self) -> u64 {
        // SAFETY: a result not destroyed yet.
        unsafe { (self.functions.chdb_result_rows_read)(self.handle) }
    }

    /// Rows read from tables.
    #[expect(unsafe_code, reason = "calls a C library")]
    pub(super) fn read_rows(&self) -> u64 {
        // SAFETY: a result not destroyed yet.
        unsafe { (self.functions.chdb_result_storage_rows_read)(self.handle) }
    }

    /// Bytes read from tables.
    #[expect(unsafe_code, reason = "calls a C library")]
    pub(super) fn read_bytes(&self) -> u64 {
        // SAFETY: a result not destroyed yet.
        unsafe { (self.functions.chdb_result_storage_bytes_read)(self.handle) }
    }

    /// Rows written, those that were dropped as duplicates included, as ClickHouse counts them.
    #[expect(unsafe_code, reason = "calls a C library")]
    pub(super) fn written_rows(&self) -> u64 {
        // SAFETY: a result not destroyed yet.
        unsafe { (self.functions.chdb_result_rows_written)(self.handle) }
    }

    /// Bytes written.
    #[expect(unsafe_code, reason = "calls a C library")]
    pub(super) fn written_bytes(&self) -> u64 {
        // SAFETY: a result not destroyed yet.
        unsafe { (self.functions.chdb_result_bytes_written)(self.handle) }
    }
}

impl AsRef<[u8]> for Answer {
    #[expect(unsafe_code, reason = "reads memory of a C library")]
    fn as_ref(&self) -> &[u8] {
        // SAFETY: a result not destroyed yet.
        let (buffer, length) = unsafe {
            (
                (self.functions.chdb_result_buffer)(self.handle),
                (self.functions.chdb_result_length)(self.handle),
            )
        };
        if buffer.is_null() || length == 0 {
            return &[];
        }
        // SAFETY: `length` bytes at `buffer` stay as they are until the result is destroyed, which
        // `drop` does, and `drop` needs the only reference.
        unsafe { std::slice::from_raw_parts(buffer.cast(), length) }
    }
}

impl Drop for Answer {
    #[expect(unsafe_code, reason = "calls a C library")]
    fn drop(&mut self) {
        // SAFETY: came from the engine and is destroyed here only.
        unsafe { (self.functions.chdb_destroy_query_result)(self.handle) }
    }
}

/// Copies a C string; none where the pointer is null.
///
/// # Safety
/// `pointer` is null or points to a string that ends with a zero byte and lives through the call.
#[expect(unsafe_code, reason = "reads a string of a C library")]
unsafe fn text(pointer: *const c_char) -> Option<String> {
    // SAFETY: the caller's promise.
    (!pointer.is_null()).then(|| unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_comes_out_of_the_text() {
        let exception =
            Exception::from_text("Code: 60. DB::Exception: no such table. (UNKNOWN_TABLE)".into());
        assert_eq!(exception.code, 60);
        assert_eq!(Exception::from_text("Another stream is open".into()).code, UNKNOWN_EXCEPTION);
        assert_eq!(
            Exception::new(48, "NOT_IMPLEMENTED", "Not here").message,
            "Code: 48. DB::Exception: Not here. (NOT_IMPLEMENTED)"
        );
    }

    #[test]
    fn a_named_library_that_is_not_there_is_not_replaced_by_another() {
        let error = find_library(Some(Path::new("/nowhere/libchdb.so"))).unwrap_err().to_string();
        assert!(error.contains("make libchdb"), "{error}");
        assert!(error.contains("looked at: /nowhere/libchdb.so"), "{error}");
        assert!(!error.contains(".cache/libchdb"), "{error}");
    }
}
