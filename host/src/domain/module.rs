//! Module: what is kept of one by its content, so that any host can run it again.

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::verdict::{Revision, Stage};

/// A module as the archive keeps it: all that its verdicts depend on, and its name.
#[derive(Clone, PartialEq, Eq)]
pub struct ArchivedModule {
    /// [`module_revision`] of the bytes and the settings.
    pub revision: Revision,
    /// `Validate` or `Map`.
    pub stage: Stage,
    /// File name without `.wasm`. A label: no part of the revision.
    pub name: String,
    /// The file, as it was read.
    pub bytes: Bytes,
    /// Its settings as canonical JSON, which is what `init` is given.
    pub settings: String,
}

impl ArchivedModule {
    /// Whether the bytes and settings are those that the revision stands for.
    pub fn is_intact(&self) -> bool {
        module_revision(&self.bytes, &self.settings) == self.revision
    }
}

impl std::fmt::Debug for ArchivedModule {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "ArchivedModule({} {} {})", self.stage.as_str(), self.name, self.revision)
    }
}

/// Identity of a module: SHA-256 over its bytes and its canonical settings.
pub fn module_revision(bytes: &[u8], canonical_settings: &str) -> Revision {
    let mut hash = Sha256::new();
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
    hash.update(canonical_settings);
    Revision(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_depends_on_bytes_and_settings_and_on_where_one_ends() {
        let base = module_revision(b"ab", "{}");
        assert_eq!(base, module_revision(b"ab", "{}"));
        assert_ne!(base, module_revision(b"ac", "{}"));
        assert_ne!(base, module_revision(b"ab", "{ }"));
        assert_ne!(base, module_revision(b"ab{", "}"));
        // It stands in archives and in commit metadata: another value is another format.
        let hex: String = base.0.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "b8d3174295c4e25561a96f92854e7e496347f017a826e606b1a139670566b4cd");
    }

    #[test]
    fn a_module_is_intact_whatever_its_name_and_only_with_its_bytes_and_settings() {
        let module = ArchivedModule {
            revision: module_revision(b"ab", "{}"),
            stage: Stage::Map,
            name: "rows".into(),
            bytes: Bytes::from_static(b"ab"),
            settings: "{}".into(),
        };
        assert!(module.is_intact());
        assert!(ArchivedModule { name: "other".into(), ..module.clone() }.is_intact());
        assert!(!ArchivedModule { bytes: Bytes::from_static(b"abc"), ..module.clone() }.is_intact());
        assert!(!ArchivedModule { settings: r#"{"a":1}"#.into(), ..module }.is_intact());
    }
}
