//! A look at all module files of a pipeline: what each holds now.
//!
//! A file with which nothing is left to do is not read again while its [`Stamp`] stays the same. That can
//! be wrong on network mounts, whose metadata may be old, so now and then all are read whatever they look like.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::domain::module::ArchivedModule;
use crate::wasm::{CasesFault, ChainSettings, GoldenCases, ModuleFault, ModuleFile, cases_path};

/// SHA-256 of a file of golden cases, or of why it cannot be read; `None` where there is none.
pub(super) type CasesContent = Option<[u8; 32]>;

/// The golden cases beside a module's file, as they were when the module was read: what is tried is what
/// was found, whoever writes to the file meanwhile.
pub(super) struct CasesFile {
    bytes: Result<Option<Vec<u8>>, CasesFault>,
}

impl CasesFile {
    /// Of a module that brings none, such as an archived one.
    pub(super) fn none() -> Self {
        Self { bytes: Ok(None) }
    }

    pub(super) fn content(&self) -> CasesContent {
        match &self.bytes {
            Ok(None) => None,
            Ok(Some(bytes)) => Some(Sha256::digest(bytes).into()),
            Err(fault) => Some(Sha256::digest(fault.to_string()).into()),
        }
    }

    /// The cases; `None` where there is no file.
    pub(super) fn parse(self) -> Result<Option<GoldenCases>, CasesFault> {
        self.bytes?.map(|bytes| GoldenCases::parse(&bytes)).transpose()
    }
}

/// A file that was written to within this time may be written to again without another stamp: clocks of file
/// systems tick slowly, some in whole seconds.
const RACY: Duration = Duration::from_secs(5);

/// What the system says of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStamp {
    device: u64,
    inode: u64,
    bytes: u64,
    /// Seconds and nanoseconds, as all times here.
    modified: (i64, i64),
    /// No tool sets it: `cp -p` and `touch` leave their trace here.
    changed: (i64, i64),
}

impl FileStamp {
    fn of(metadata: &Metadata) -> Option<Self> {
        // One of the future has no age.
        let age = metadata.modified().ok()?.elapsed().ok()?;
        (age >= RACY).then(|| Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// What a module's file, and the golden cases beside it, look like from outside. While that is the same, so is
/// what they hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    module: FileStamp,
    cases: Option<FileStamp>,
}

impl Stamp {
    /// None where it would prove nothing.
    fn of(path: &Path) -> Option<Self> {
        let module = FileStamp::of(&std::fs::metadata(path).ok()?)?;
        let cases = match std::fs::metadata(cases_path(path)) {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            metadata => Some(FileStamp::of(&metadata.ok()?)?),
        };
        Some(Self { module, cases })
    }
}

/// One file and what it holds.
pub(super) struct Found {
    pub(super) file: ModuleFile,
    /// None where it is as it was.
    pub(super) content: Option<Result<ArchivedModule, ModuleFault>>,
    pub(super) cases: CasesFile,
    /// As it was before it was read.
    pub(super) stamp: Option<Stamp>,
}

/// All files at one moment.
pub(super) struct Scan {
    /// In the order in which records meet the modules.
    pub(super) found: Vec<Found>,
    /// Why the folder of validators could not be listed; nothing is known of them then.
    pub(super) missing: Option<(PathBuf, std::io::Error)>,
}

impl Scan {
    /// Reads everything but what looks as in `known`. Blocking.
    pub(super) fn take(settings: &ChainSettings, known: &BTreeMap<PathBuf, Stamp>) -> Self {
        let folder = settings.folder();
        let found = folder.files.into_iter().map(|file| {
            let stamp = Stamp::of(&file.path);
            if stamp.is_some() && stamp == known.get(&file.path).copied() {
                return Found { file, content: None, cases: CasesFile::none(), stamp };
            }
            let content = Some(settings.read(&file.path, file.stage));
            let cases = CasesFile { bytes: GoldenCases::read(&cases_path(&file.path)) };
            Found { file, content, cases, stamp }
        });
        Self { found: found.collect(), missing: folder.missing }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::SystemTime;

    use super::*;
    use crate::wasm::Limits;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        /// Writes a file, and sets its time of writing so many seconds back.
        fn write(&self, name: &str, text: &str, age: u64) {
            std::fs::write(self.path(name), text).unwrap();
            let modified = SystemTime::now() - Duration::from_secs(age);
            File::open(self.path(name)).unwrap().set_modified(modified).unwrap();
        }

        /// What is read of the mapper by a host that knows it like this, and what it looks like.
        fn take(&self, known: Option<Stamp>) -> (Option<String>, Option<Stamp>) {
            let settings = ChainSettings {
                pipeline: "tests".to_owned(),
                validators: None,
                mapper: self.path("rows.wasm"),
                settings: BTreeMap::new(),
                limits: Limits::default().into(),
            };
            let known = known.map(|stamp| (self.path("rows.wasm"), stamp)).into_iter().collect();
            let mut scan = Scan::take(&settings, &known);
            let Found { content, cases, stamp, .. } = scan.found.pop().unwrap();
            let text = content.map(|content| String::from_utf8(content.unwrap().bytes.to_vec()).unwrap());
            assert!(text.is_some() || cases.content().is_none());
            (text, stamp)
        }
    }

    #[test]
    fn a_file_is_read_again_when_it_or_its_cases_look_different() {
        let folder = Folder(tempfile::tempdir().unwrap());
        folder.write("rows.wasm", "one", 3600);
        let (text, stamp) = folder.take(None);
        assert_eq!(text.as_deref(), Some("one"));
        assert!(stamp.is_some());
        assert_eq!(folder.take(stamp), (None, stamp));

        // Another file as large and as old, as rsync and `cp -p` leave it.
        let modified = std::fs::metadata(folder.path("rows.wasm")).unwrap().modified().unwrap();
        std::fs::write(folder.path("new"), "two").unwrap();
        File::open(folder.path("new")).unwrap().set_modified(modified).unwrap();
        std::fs::rename(folder.path("new"), folder.path("rows.wasm")).unwrap();
        let (text, stamp) = folder.take(stamp);
        assert_eq!(text.as_deref(), Some("two"));
        assert_eq!(folder.take(stamp).0, None);

        folder.write("rows.cases.jsonl", "{}", 3600);
        let (text, stamp) = folder.take(stamp);
        assert_eq!(text.as_deref(), Some("two"), "cases came");
        assert_eq!(folder.take(stamp).0, None);
        folder.write("rows.cases.jsonl", "{ }", 3600);
        let (text, stamp) = folder.take(stamp);
        assert_eq!(text.as_deref(), Some("two"), "cases changed");
        std::fs::remove_file(folder.path("rows.cases.jsonl")).unwrap();
        assert!(folder.take(stamp).0.is_some(), "cases went");
    }

    #[test]
    fn a_file_that_was_just_written_or_is_of_the_future_is_read_always() {
        let folder = Folder(tempfile::tempdir().unwrap());
        std::fs::write(folder.path("rows.wasm"), "one").unwrap();
        let ahead = SystemTime::now() + Duration::from_secs(3600);
        File::open(folder.path("rows.wasm")).unwrap().set_modified(ahead).unwrap();
        assert_eq!(folder.take(None).1, None);
        folder.write("rows.wasm", "one", 3600);
        assert!(folder.take(None).1.is_some());
        folder.write("rows.cases.jsonl", "{}", 0);
        File::open(folder.path("rows.cases.jsonl")).unwrap().set_modified(ahead).unwrap();
        assert_eq!(folder.take(None).1, None);
    }
}
