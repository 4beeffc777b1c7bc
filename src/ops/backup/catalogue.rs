//! `catalogue.json.zst`: what the files of a cluster do not say by themselves, kept with each backup.
//!
//! ```text
//!  databases, tablespaces, extensions      names behind OIDs: `--database`, plans, people
//!  settings                                what a copy must not set lower, and which libraries it preloads (RECOVERY.md 23, 25)
//!  files                                   postgresql.conf, pg_hba.conf, ... wherever they are (RECOVERY.md 24)
//! ```
//! It informs: a backup without it restores. Whatever could not be read is absent and named in `missing`. One zstd frame of a JSON
//! object; unknown members are skipped by readers. Source of truth: `pg_settings`, `pg_database`, `pg_tablespace`.

use serde::{Deserialize, Serialize};

use crate::codec::{self, CodecError, Compression};
use crate::repo::objects::{self, Document, DocumentError, MAX_DOCUMENT};

/// What the server says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Catalogue {
    /// `version()`.
    pub version: String,
    /// `server_version_num`.
    pub version_num: u32,
    /// The server's data directory, if it says.
    pub data_directory: Option<String>,
    /// `TimeZone`.
    pub timezone: String,
    /// `log_timezone`, in which `backup_label` writes its time.
    pub log_timezone: String,
    /// The role that initdb made (OID 10), whatever its name. Absent in backups of before it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub superuser: Option<String>,
    /// Databases by OID.
    pub databases: Vec<Database>,
    /// Tablespaces by OID, without the two built in.
    pub tablespaces: Vec<TablespaceName>,
    /// The database whose extensions are listed: the one connected to.
    pub connected_to: String,
    /// Its extensions.
    pub extensions: Vec<Extension>,
    /// Settings that are not at their default.
    pub settings: Vec<Setting>,
    /// Configuration files.
    pub files: Vec<ConfigFile>,
    /// What could not be read, and why.
    pub missing: Vec<String>,
}

impl Document for Catalogue {
    const KIND: &'static str = "catalogue";
}

/// A database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Database {
    /// Its OID: the name of its directories.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// Encoding.
    pub encoding: String,
    /// `LC_COLLATE`.
    pub collate: String,
    /// `LC_CTYPE`.
    pub ctype: String,
    /// `c` libc, `i` ICU, `b` builtin; `c` before 15.
    pub provider: String,
    /// ICU or builtin locale.
    pub locale: Option<String>,
    /// Version of the collation the indexes were built with.
    pub collation_version: Option<String>,
    /// Whether it accepts connections.
    pub connectable: bool,
    /// OID of its default tablespace.
    pub tablespace: u32,
}

/// A tablespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TablespaceName {
    /// Its OID: the name of its link.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// Where it is.
    pub location: String,
}

/// An extension.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extension {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// A setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Its name.
    pub name: String,
    /// Its value, as `pg_settings` shows it.
    pub value: String,
    /// The unit of the value.
    pub unit: Option<String>,
    /// Where it came from, such as `configuration file`.
    pub source: String,
    /// The file, if the server says.
    pub file: Option<String>,
    /// The line in it.
    pub line: Option<u32>,
}

/// What a configuration file is to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConfigRole {
    /// `config_file`.
    Config,
    /// A file from which settings of `config_file` were included.
    Included,
    /// `hba_file`.
    Hba,
    /// `ident_file`.
    Ident,
}

/// A configuration file as it was when the backup began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigFile {
    /// What it is.
    pub role: ConfigRole,
    /// Its path on the server.
    pub path: String,
    /// It lies in the data directory, so the backup holds it as a file too.
    pub in_data_directory: bool,
    /// Its text; absent if it could not be read. Bytes that are not UTF-8 are replaced.
    pub text: Option<String>,
}

/// A catalogue that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatalogueError {
    /// Not an intact frame.
    #[error("the catalogue of the backup: {0}")]
    Codec(#[from] CodecError),
    /// Not the object.
    #[error("the catalogue of the backup: {0}")]
    Document(#[from] DocumentError),
}

impl Catalogue {
    /// The object's bytes.
    ///
    /// # Errors
    /// [`CatalogueError::Codec`] if zstd has no memory.
    pub fn encode(&self) -> Result<Vec<u8>, CatalogueError> {
        Ok(codec::compress(&objects::encode(self), Compression::Zstd { level: 3 })?)
    }

    /// Reads what [`Catalogue::encode`] wrote, here or in another version.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, CatalogueError> {
        Ok(objects::decode(&codec::decompress(bytes, MAX_DOCUMENT)?)?)
    }

    /// The value of a setting, if it is not at its default.
    pub fn setting(&self, name: &str) -> Option<&str> {
        self.settings.iter().find(|s| s.name == name).map(|s| s.value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_catalogue_comes_back_from_its_object() {
        let catalogue = Catalogue {
            version: "PostgreSQL 15.18".into(),
            version_num: 150_018,
            settings: vec![Setting {
                name: "max_connections".into(),
                value: "200".into(),
                unit: None,
                source: "configuration file".into(),
                file: None,
                line: Some(3),
            }],
            files: vec![ConfigFile {
                role: ConfigRole::Hba,
                path: "/etc/postgresql/pg_hba.conf".into(),
                in_data_directory: false,
                text: Some("local all all peer\n".into()),
            }],
            missing: vec!["pg_ident.conf: permission denied".into()],
            ..Catalogue::default()
        };
        let back = Catalogue::decode(&catalogue.encode().unwrap()).unwrap();
        assert_eq!(back, catalogue);
        assert_eq!((back.setting("max_connections"), back.setting("port")), (Some("200"), None));
    }
}
