//! Cache: compiled code in a folder, so that a start or a rollback does not compile again what was compiled.
//!
//! Compiled code is machine code: whoever can have the host load other code owns the host. So an entry is
//! sealed: HMAC-SHA256 over its name, which says of which file and for which engine it is, and its content.
//! What that holds against:
//!
//! - Damage (a full disk, a crash half-way, bad storage) and entries swapped among each other: always.
//! - Others on the machine: the folder must be of this user and writable by nobody else, or it is not used.
//! - Others who can write the storage whatever its modes say (a share, a volume that another container
//!   mounts, a restored backup): where the key is kept elsewhere (`modules.cache_key_file`). The key that is
//!   made by itself is in the folder, and is no help there.
//!
//! Nothing holds against who runs as this user: who may write to its memory needs no cache.
//!
//! State: the folder. Entries are written whole under another name and then renamed; several hosts may
//! share the folder. An entry is read once, and what was checked is what is loaded, not a file that may be
//! another by then.

use std::fs::{self, DirBuilder, File};
use std::hash::{Hash, Hasher};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hmac::{Hmac, Mac};
use rand::RngCore;
use sha2::{Digest, Sha256};
use wasmtime::Engine;

use crate::domain::secret::Secret;

/// What every entry begins with.
const MARK: &[u8] = b"sluice compiled 1\n";
const SEAL_BYTES: usize = 32;
/// End of an entry's file name.
const ENTRY: &str = ".code";
/// Start of the name of a file that is still being written.
const UNFINISHED: &str = ".unfinished-";
/// After so long, whoever wrote it has ended.
const UNFINISHED_AGE: Duration = Duration::from_secs(3600);
/// The key that is made by itself.
const KEY: &str = "key";
/// Fewest bytes of a key.
const LEAST_KEY_BYTES: usize = 16;

/// Why there is no cache.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Something about the folder cannot be done.
    #[error("cannot {doing} {}: {error}", path.display())]
    Io {
        /// What cannot be done.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Others could put code there.
    #[error(
        "{} {what}, and whoever can write there could have this host run code of theirs: name a folder that is \
         not there yet (it is made), or `chown` it to user {user} and `chmod 700` it",
        folder.display()
    )]
    Open {
        /// The folder.
        folder: PathBuf,
        /// What is wrong with it.
        what: String,
        /// This user.
        user: u32,
    },
    /// The key is none.
    #[error("the key {origin} has fewer than {LEAST_KEY_BYTES} bytes; {cure}")]
    Key {
        /// Where it is from.
        origin: String,
        /// What to do.
        cure: &'static str,
    },
}

/// Compiled code by what it was compiled of.
#[derive(Clone)]
pub struct CodeCache {
    folder: PathBuf,
    key: Hmac<Sha256>,
    most_bytes: u64,
}

impl std::fmt::Debug for CodeCache {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("CodeCache").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// What an entry is of: the file's content, and everything about the engine that its code depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CodeName(String);

impl CodeName {
    pub(super) fn new(engine: &Engine, file: &[u8]) -> Self {
        struct Digesting(Sha256);
        impl Hasher for Digesting {
            fn write(&mut self, bytes: &[u8]) {
                self.0.update(bytes);
            }

            fn finish(&self) -> u64 {
                0
            }
        }
        let mut digest = Digesting(Sha256::new());
        digest.write(&Sha256::digest(file));
        engine.precompile_compatibility_hash().hash(&mut digest);
        Self(hex::encode(digest.0.finalize()))
    }
}

impl CodeCache {
    /// The cache in `folder`, which is made if it is not there, of at most `most_bytes`. Its key is `key`, or
    /// one that is made and kept in the folder.
    ///
    /// # Errors
    /// When the folder or the key cannot be used, or others can write there.
    pub fn open(folder: &Path, key: Option<&Secret>, most_bytes: u64) -> Result<Self, CacheError> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed("make", folder))?;
        check_owner(folder)?;
        let key = match key {
            Some(key) if key.reveal().len() < LEAST_KEY_BYTES => {
                let cure = "write a longer one, such as that of `openssl rand -hex 32`";
                return Err(CacheError::Key { origin: "of modules.cache_key_file".to_owned(), cure });
            }
            Some(key) => key.reveal().as_bytes().to_vec(),
            None => own_key(folder)?,
        };
        let key = Hmac::new_from_slice(&key).expect("HMAC takes keys of any length");
        Ok(Self { folder: folder.to_owned(), key, most_bytes })
    }

    /// What keeps this user from using the cache in `folder`; nothing where it is yet to be made.
    pub fn problem(folder: &Path) -> Option<CacheError> {
        if folder.exists() { check_owner(folder).err() } else { None }
    }

    /// The code of this name, if it is there and whole.
    pub(super) fn get(&self, name: &CodeName) -> Option<Vec<u8>> {
        let path = self.path(name);
        let read = File::open(&path).and_then(|file| {
            let mut bytes = Vec::new();
            (&file).take(self.most_bytes).read_to_end(&mut bytes)?;
            Ok((file, bytes))
        });
        let (file, bytes) = match read {
            Ok(read) => read,
            Err(error) => {
                if error.kind() != ErrorKind::NotFound {
                    tracing::warn!(file = %path.display(), %error, "cannot read compiled code; compiling again");
                }
                return None;
            }
        };
        let code = self.unseal(name, bytes);
        if code.is_none() {
            self.remove(name, "its seal is broken: it is damaged, or was not written with this key");
        }
        // The oldest go first, and this one is of use.
        let _ = file.set_modified(SystemTime::now());
        code
    }

    /// Keeps code; where that fails, it is compiled again another time.
    pub(super) fn put(&self, name: &CodeName, code: &[u8]) {
        let size = (MARK.len() + SEAL_BYTES + code.len()) as u64;
        if size > self.most_bytes {
            return;
        }
        let path = self.path(name);
        let written =
            tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(&self.folder).and_then(|mut file| {
                file.write_all(MARK)?;
                file.write_all(&self.seal(name, code).finalize().into_bytes())?;
                file.write_all(code)?;
                file.persist(&path).map_err(|error| error.error)
            });
        match written.and_then(|_| self.prune()) {
            Ok(()) => {}
            Err(error) => tracing::warn!(file = %path.display(), %error, "compiled code is not kept"),
        }
    }

    /// Takes away an entry that is of no use.
    pub(super) fn remove(&self, name: &CodeName, reason: &str) {
        let path = self.path(name);
        tracing::warn!(file = %path.display(), reason, "compiled code is thrown away and made again");
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!(file = %path.display(), %error, "compiled code cannot be removed");
        }
    }

    fn path(&self, name: &CodeName) -> PathBuf {
        self.folder.join(format!("{}{ENTRY}", name.0))
    }

    fn seal(&self, name: &CodeName, code: &[u8]) -> Hmac<Sha256> {
        let mut seal = self.key.clone();
        // Names are of one length, so nothing of one can be taken for the other.
        seal.update(name.0.as_bytes());
        seal.update(code);
        seal
    }

    fn unseal(&self, name: &CodeName, mut bytes: Vec<u8>) -> Option<Vec<u8>> {
        let sealed = bytes.strip_prefix(MARK)?;
        let (seal, code) = sealed.split_at_checked(SEAL_BYTES)?;
        self.seal(name, code).verify_slice(seal).ok()?;
        bytes.drain(..MARK.len() + SEAL_BYTES);
        Some(bytes)
    }

    /// Removes the oldest until what is left fits, and what others left unfinished.
    fn prune(&self) -> io::Result<()> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            // Another host may have removed it meanwhile.
            let Ok(metadata) = entry.metadata() else { continue };
            let modified = metadata.modified()?;
            if name.starts_with(UNFINISHED) {
                if modified.elapsed().is_ok_and(|age| age > UNFINISHED_AGE) {
                    let _ = fs::remove_file(entry.path());
                }
            } else if name.ends_with(ENTRY) {
                entries.push((modified, metadata.len(), entry.path()));
            }
        }
        entries.sort();
        let mut total: u64 = entries.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, bytes, path) in entries {
            if total <= self.most_bytes {
                break;
            }
            match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => total -= bytes,
            }
        }
        Ok(())
    }
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CacheError {
    let path = path.to_owned();
    move |error| CacheError::Io { doing, path, error }
}

/// That nobody else can put an entry there.
fn check_owner(folder: &Path) -> Result<(), CacheError> {
    let metadata = fs::metadata(folder).map_err(failed("look at", folder))?;
    let user = rustix::process::geteuid().as_raw();
    let mode = metadata.mode() & 0o7777;
    let what = if !metadata.is_dir() {
        "is not a folder".to_owned()
    } else if metadata.uid() != user {
        format!("belongs to user {}", metadata.uid())
    } else if mode & 0o022 != 0 {
        format!("can be written by others (mode {mode:o})")
    } else {
        return Ok(());
    };
    Err(CacheError::Open { folder: folder.to_owned(), what, user })
}

/// The key in the folder; the first who looks for it makes it.
fn own_key(folder: &Path) -> Result<Vec<u8>, CacheError> {
    let path = folder.join(KEY);
    let make = || {
        let mut key = [0; SEAL_BYTES];
        rand::rng().fill_bytes(&mut key);
        // Mode 600 from the start.
        let mut file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(folder)?;
        file.write_all(&key)?;
        file.as_file().sync_all()?;
        match file.persist_noclobber(&path) {
            Err(error) if error.error.kind() != ErrorKind::AlreadyExists => Err(error.error),
            // Another host was faster: its key it is.
            _ => Ok(()),
        }
    };
    if !path.exists() {
        make().map_err(failed("write", &path))?;
    }
    let key = fs::read(&path).map_err(failed("read", &path))?;
    if key.len() < LEAST_KEY_BYTES {
        let cure = "remove it, and another is made";
        return Err(CacheError::Key { origin: path.display().to_string(), cure });
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn name(letter: char) -> CodeName {
        CodeName(letter.to_string().repeat(64))
    }

    fn cache(folder: &Path, most_bytes: u64) -> CodeCache {
        CodeCache::open(&folder.join("cache"), None, most_bytes).unwrap()
    }

    fn entries(cache: &CodeCache) -> Vec<String> {
        let files = fs::read_dir(&cache.folder).unwrap();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name != KEY).map(|name| name[..1].to_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_was_put_is_there_also_for_the_next_process() {
        let folder = tempfile::tempdir().unwrap();
        cache(folder.path(), 1000).put(&name('a'), b"code");
        let next = cache(folder.path(), 1000);
        assert_eq!(next.get(&name('a')).as_deref(), Some(&b"code"[..]));
        assert_eq!(next.get(&name('b')), None);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&next.folder), mode(&next.folder.join(KEY))), (0o700, 0o600));
    }

    #[test]
    fn any_byte_that_is_another_breaks_the_seal_and_the_entry_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path(), 1000);
        let path = cache.path(&name('a'));
        cache.put(&name('a'), b"code");
        let whole = fs::read(&path).unwrap();
        let mut broken: Vec<Vec<u8>> = (0..whole.len()).map(|end| whole[..end].to_vec()).collect();
        broken.extend((0..whole.len()).map(|index| {
            let mut other = whole.clone();
            other[index] ^= 0x10;
            other
        }));
        broken.push([&whole[..], b"!"].concat());
        for bytes in broken {
            fs::write(&path, bytes).unwrap();
            assert_eq!(cache.get(&name('a')), None);
            assert!(!path.exists());
        }
        fs::write(&path, whole).unwrap();
        assert!(cache.get(&name('a')).is_some());
    }

    #[test]
    fn an_entry_is_good_under_its_own_name_and_key_alone() {
        let folder = tempfile::tempdir().unwrap();
        let first = cache(folder.path(), 1000);
        first.put(&name('a'), b"code");
        fs::copy(first.path(&name('a')), first.path(&name('b'))).unwrap();
        assert_eq!(first.get(&name('b')), None, "swapped");
        let elsewhere = folder.path().join("cache");
        let other =
            CodeCache::open(&elsewhere, Some(&Secret::new("another key, kept elsewhere")), 1000).unwrap();
        assert_eq!(other.get(&name('a')), None, "of another installation");
    }

    #[test]
    fn the_oldest_make_room() {
        let folder = tempfile::tempdir().unwrap();
        // Room for two.
        let cache = cache(folder.path(), 2 * (MARK.len() + SEAL_BYTES + 4) as u64 + 1);
        let age = |letter, seconds| {
            let file = File::open(cache.path(&name(letter))).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
        };
        cache.put(&name('a'), b"code");
        age('a', 100);
        cache.put(&name('b'), b"code");
        age('b', 50);
        assert!(cache.get(&name('a')).is_some(), "now it is of use again");
        cache.put(&name('c'), b"code");
        assert_eq!(entries(&cache), ["a", "c"]);
        cache.put(&name('d'), &[0; 1000]);
        assert_eq!(entries(&cache), ["a", "c"], "larger than everything");
    }

    #[test]
    fn what_a_process_left_unfinished_goes_after_a_while() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path(), 1000);
        let file = |name: &str, age| {
            let file = File::create(cache.folder.join(format!("{UNFINISHED}{name}"))).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
        };
        file("old", UNFINISHED_AGE * 2);
        file("new", Duration::ZERO);
        cache.put(&name('a'), b"code");
        assert_eq!(entries(&cache), [".", "a"]);
        assert!(cache.folder.join(format!("{UNFINISHED}new")).exists());
    }

    #[test]
    fn a_folder_that_others_can_write_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let error = CodeCache::open(folder.path(), None, 1000).unwrap_err().to_string();
        assert!(
            error.contains("can be written by others (mode 777)") && error.contains("chmod 700"),
            "{error}"
        );
        assert_eq!(CodeCache::problem(folder.path()).map(|problem| problem.to_string()), Some(error));
        assert!(CodeCache::problem(&folder.path().join("not there yet")).is_none());
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(CodeCache::open(&file, None, 1000).is_err());
    }

    #[test]
    fn a_key_that_is_none_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let short = CodeCache::open(folder.path(), Some(&Secret::new("short")), 1000).unwrap_err();
        assert!(short.to_string().contains("modules.cache_key_file"), "{short}");
        fs::write(folder.path().join(KEY), "").unwrap();
        let empty = CodeCache::open(folder.path(), None, 1000).unwrap_err().to_string();
        assert!(empty.contains("remove it, and another is made"), "{empty}");
    }
}
