//! Reader: walks the merged values section by section, so that every fault is found in one pass.
//!
//! Reading never fails: a fault is noted and an accepted stand-in is returned; the caller throws
//! the result away if anything was noted. A section that is finished reports the keys that nobody
//! asked for. Defaults are given as the text a person would write, so what `docs/CONFIGURATION.md`
//! says and what the program does are one string, compared by a test.

use std::cell::RefCell;
use std::path::Path;

use config::{Map, Value, ValueKind};

use super::environment::{is_variable, variable_name};
use super::error::ConfigFault;
use super::values::{Leaf, Scalar};
use crate::domain::secret::Secret;
use crate::domain::spelling::one_of;

/// A key that some section asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyDescription {
    /// Path, with the pipeline's own name.
    pub(super) path: String,
    /// What it holds, such as `duration`.
    pub(super) kind: &'static str,
    /// As it would be written; `None` where the key is required or has no default.
    pub(super) default: Option<String>,
}

/// What is shared by all sections of one reading.
#[derive(Debug)]
pub(super) struct Reader {
    /// The file, as messages name it.
    file: String,
    faults: RefCell<Vec<ConfigFault>>,
    keys: RefCell<Vec<KeyDescription>>,
}

impl Reader {
    pub(super) fn new(file: &str) -> Self {
        Self { file: file.to_owned(), faults: RefCell::default(), keys: RefCell::default() }
    }

    /// The outermost section.
    pub(super) fn root(&self, value: Value) -> Section<'_> {
        Section::open(self, String::new(), Some(value))
    }

    /// Notes a fault. Without an origin it is the file's.
    pub(super) fn fault(&self, key: &str, origin: Option<&str>, problem: String, cure: String) {
        let origin = origin.unwrap_or(&self.file).to_owned();
        self.faults.borrow_mut().push(ConfigFault { key: key.to_owned(), origin, problem, cure });
    }

    /// Everything noted.
    pub(super) fn finish(self) -> (Vec<ConfigFault>, Vec<KeyDescription>) {
        (self.faults.into_inner(), self.keys.into_inner())
    }
}

/// One table of the configuration, emptied key by key.
#[derive(Debug)]
pub(super) struct Section<'r> {
    reader: &'r Reader,
    path: String,
    entries: Map<String, Value>,
    /// Keys asked for so far, and where their values came from.
    asked: Vec<(&'static str, Option<String>)>,
}

impl<'r> Section<'r> {
    fn open(reader: &'r Reader, path: String, value: Option<Value>) -> Self {
        let mut section = Self { reader, path, entries: Map::new(), asked: Vec::new() };
        match value.map(|value| (value.origin().map(str::to_owned), value.kind)) {
            None | Some((_, ValueKind::Nil)) => {}
            Some((_, ValueKind::Table(entries))) => section.entries = entries,
            Some((origin, _)) => reader.fault(
                &section.path,
                origin.as_deref(),
                "a section with keys of its own is expected here".to_owned(),
                if origin.as_deref().is_some_and(is_variable) {
                    format!("name one of its keys: {}", variable_name(&format!("{}.<key>", section.path)))
                } else {
                    "write its keys below it, indented".to_owned()
                },
            ),
        }
        section
    }

    fn child(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        let value = self.entries.remove(key);
        self.asked.push((key, value.as_ref().and_then(|value| value.origin().map(str::to_owned))));
        value.filter(|value| !matches!(value.kind, ValueKind::Nil))
    }

    /// The section under `key`; empty where there is none.
    pub(super) fn section(&mut self, key: &'static str) -> Section<'r> {
        let value = self.take(key);
        Section::open(self.reader, self.child(key), value)
    }

    /// Every entry below `key`, a table whose keys are names that the user chose; by name.
    pub(super) fn named(&mut self, key: &'static str, kind: &'static str) -> Vec<(String, Value)> {
        let section = self.section(key);
        self.describe(key, kind, Some("{}"));
        let mut entries: Vec<_> = section.entries.into_iter().collect();
        entries.sort_by(|(left, _), (right, _)| left.cmp(right));
        entries
    }

    /// A section below this one whose name the user chose.
    pub(super) fn below(&self, names: &[&str], value: Value) -> Section<'r> {
        let path = names.iter().fold(self.path.clone(), |path, name| {
            if path.is_empty() { (*name).to_owned() } else { format!("{path}.{name}") }
        });
        Section::open(self.reader, path, Some(value))
    }

    fn describe(&self, key: &str, kind: &'static str, default: Option<&str>) {
        let default = default.map(str::to_owned);
        self.reader.keys.borrow_mut().push(KeyDescription { path: self.child(key), kind, default });
    }

    /// What a default says; it stands in for a value that was refused, too.
    pub(super) fn stand_in<T: Leaf>(default: &str) -> T {
        T::read(&Scalar::Text(default)).expect("defaults in the code can be read")
    }

    fn convert<T: Leaf>(&self, key: &'static str, value: &Value) -> Option<T> {
        match T::read(&Scalar::of(&value.kind)) {
            Ok(read) => Some(read),
            Err(refusal) => {
                self.reader.fault(&self.child(key), value.origin(), refusal.problem, refusal.cure);
                None
            }
        }
    }

    /// The value of `key`, or `default` as if it had been written.
    pub(super) fn read<T: Leaf>(&mut self, key: &'static str, default: &str) -> T {
        self.describe(key, T::KIND, Some(default));
        let value = self.take(key);
        value.and_then(|value| self.convert(key, &value)).unwrap_or_else(|| Self::stand_in(default))
    }

    /// The value of `key`, which has no default.
    pub(super) fn optional<T: Leaf>(&mut self, key: &'static str) -> Option<T> {
        self.describe(key, T::KIND, None);
        let value = self.take(key)?;
        self.convert(key, &value)
    }

    /// The value of `key`, which has to be there; `example` shows what one looks like. `None` is
    /// a fault that has been noted.
    pub(super) fn required<T: Leaf>(&mut self, key: &'static str, example: &str) -> Option<T> {
        self.describe(key, T::KIND, None);
        if let Some(value) = self.take(key) {
            return self.convert(key, &value);
        }
        let path = self.child(key);
        let variable = variable_name(&path);
        let cure = format!("add it, such as `{key}: {example}`, or set the environment variable {variable}");
        self.reader.fault(&path, None, "missing".to_owned(), cure);
        None
    }

    /// A secret, written in place (`key`) or in a file of its own (`file_key`).
    pub(super) fn secret(&mut self, key: &'static str, file_key: &'static str, base: &Path) -> Secret {
        let given: Option<Secret> = self.optional(key);
        match self.optional::<String>(file_key) {
            None => given.unwrap_or_default(),
            Some(file) => {
                // Empty is what the shipped file says; it does not compete with a secret's file.
                if given.is_some_and(|given| !given.is_empty()) {
                    self.refuse(
                        file_key,
                        format!("`{key}` is set as well"),
                        "keep one of the two".to_owned(),
                    );
                }
                match read_secret(&base.join(file)) {
                    Ok(secret) => secret,
                    Err(problem) => {
                        self.refuse(
                            file_key,
                            problem,
                            "name a file that holds the secret and that Sluice may read".to_owned(),
                        );
                        Secret::default()
                    }
                }
            }
        }
    }

    /// Notes a fault of a key that was read already.
    pub(super) fn refuse(&self, key: &'static str, problem: String, cure: String) {
        let origin =
            self.asked.iter().find(|(asked, _)| *asked == key).and_then(|(_, origin)| origin.as_deref());
        self.reader.fault(&self.child(key), origin, problem, cure);
    }

    /// Notes a fault of an entry whose name the user chose.
    pub(super) fn refuse_entry(&self, path: &str, origin: Option<&str>, problem: String, cure: String) {
        self.reader.fault(&self.child(path), origin, problem, cure);
    }

    /// Reports what nobody asked for.
    pub(super) fn finish(self) {
        let mut unknown: Vec<_> = self.entries.iter().collect();
        unknown.sort_by_key(|(key, _)| *key);
        for (key, value) in unknown {
            let cure = one_of(key, self.asked.iter().map(|(asked, _)| *asked));
            self.reader.fault(&self.child(key), value.origin(), "unknown key".to_owned(), cure);
        }
    }
}

/// Reads a secret from its file. One line end at the end is the editor's, not the secret's.
pub(super) fn read_secret(path: &Path) -> Result<Secret, String> {
    let text =
        std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(Secret::new(text.strip_suffix('\r').unwrap_or(text)))
}
