//! The host file: what a database host needs to seal, and nothing that opens.
//!
//! ```text
//!  { "pitr": "host 1", cluster, seal_key, epoch, epochs: [{ epoch, created, recipient, wraps: [hex] }], recipients: [{ name, recipient }] }
//! ```
//! Who takes it can forge new objects of the cluster; he can read none and change none that is stored. The wraps in it are what lies in
//! every repository: `init` copies them from here, `check` compares. Invariants: the current epoch is listed, and every epoch has a wrap.
//! Pure.

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use super::epoch::Epoch;
use super::identity::Recipient;
use super::key::SealKey;
use super::wrap::{MAX_WRAPS, Wrap};
use super::{Opened, SealError};
use crate::codec::{hex, len_u64, unhex};

/// Largest host file: none is written that would not be read.
pub const MAX_HOST_FILE: u64 = 64 << 20;
const HEAD: &str = "host 1";

/// The content of a host file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFile {
    /// The cluster it belongs to.
    pub cluster: String,
    /// The cluster's seal key.
    pub seal: SealKey,
    /// The epoch that new objects are sealed with.
    pub epoch: Epoch,
    /// All epochs, the oldest first.
    pub epochs: Vec<HostEpoch>,
    /// Who the newest wraps are for.
    pub recipients: Vec<NamedRecipient>,
}

/// One epoch, as far as a host knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostEpoch {
    /// Its number.
    pub epoch: Epoch,
    /// When it was made.
    pub created: Timestamp,
    /// Its public key.
    pub recipient: Recipient,
    /// Its wraps; the first one has number 1.
    pub wraps: Vec<Wrap>,
}

/// Somebody who may read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedRecipient {
    /// What people call the key.
    pub name: String,
    /// Its public half.
    pub recipient: Recipient,
}

#[derive(Serialize, Deserialize)]
struct Raw {
    pitr: String,
    cluster: String,
    seal_key: String,
    epoch: Epoch,
    epochs: Vec<RawEpoch>,
    recipients: Vec<RawRecipient>,
}

#[derive(Serialize, Deserialize)]
struct RawEpoch {
    epoch: Epoch,
    created: Timestamp,
    recipient: String,
    wraps: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct RawRecipient {
    name: String,
    recipient: String,
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.seal_key.zeroize();
    }
}

impl HostFile {
    /// The file's text.
    pub fn render(&self) -> Zeroizing<String> {
        let epoch = |e: &HostEpoch| RawEpoch {
            epoch: e.epoch,
            created: e.created,
            recipient: e.recipient.to_string(),
            wraps: e.wraps.iter().map(|wrap| hex(&wrap.0)).collect(),
        };
        let recipient =
            |r: &NamedRecipient| RawRecipient { name: r.name.clone(), recipient: r.recipient.to_string() };
        let raw = Raw {
            pitr: HEAD.to_owned(),
            cluster: self.cluster.clone(),
            seal_key: self.seal.to_hex().to_string(),
            epoch: self.epoch,
            epochs: self.epochs.iter().map(epoch).collect(),
            recipients: self.recipients.iter().map(recipient).collect(),
        };
        // It holds the seal key: a text that grows leaves copies of itself behind.
        let room = usize::try_from(self.most_bytes()).unwrap_or(0);
        let mut text = Zeroizing::new(Vec::with_capacity(room));
        serde_json::to_writer_pretty(&mut *text, &raw).expect("text and numbers are JSON");
        text.push(b'\n');
        let text = String::from_utf8(std::mem::take(&mut *text)).map_err(drop).expect("JSON is UTF-8");
        Zeroizing::new(text)
    }

    /// Bytes that the file has at the most, a little more than it will have.
    pub fn most_bytes(&self) -> u64 {
        let wraps = self.wraps().map(|(.., wrap)| len_u64(&wrap.0).saturating_mul(2).saturating_add(32));
        let names = self.recipients.iter().map(|r| len_u64(r.name.as_bytes()).saturating_mul(6));
        let lines = self.epochs.len().saturating_add(self.recipients.len()).saturating_mul(512);
        let lines = u64::try_from(lines).unwrap_or(u64::MAX);
        let cluster = len_u64(self.cluster.as_bytes()).saturating_mul(6);
        wraps.chain(names).chain([lines, cluster]).fold(4096, u64::saturating_add)
    }

    /// Reads what [`Self::render`] wrote.
    ///
    /// # Errors
    /// [`SealError::KeyFile`], which quotes nothing of it.
    pub fn parse(text: &str) -> Result<Self, SealError> {
        let bad = |what: &str| SealError::KeyFile(format!("this is not a host file of pitr: {what}"));
        // What serde says may quote a value.
        let raw: Raw = serde_json::from_str(text).map_err(|e| {
            let place = format!("line {}, column {}", e.line(), e.column());
            bad(&place)
        })?;
        if raw.pitr != HEAD {
            return Err(bad("it is of another kind, or a newer pitr wrote it"));
        }
        let epoch = |raw: &RawEpoch| -> Result<HostEpoch, SealError> {
            let wrap = |text: &String| unhex(text).map(|bytes| Wrap(Bytes::from(bytes)));
            let wraps: Option<Vec<Wrap>> = raw.wraps.iter().map(wrap).collect();
            let wraps =
                wraps.filter(|w| !w.is_empty() && u32::try_from(w.len()).is_ok_and(|n| n <= MAX_WRAPS));
            Ok(HostEpoch {
                epoch: raw.epoch,
                created: raw.created,
                recipient: raw.recipient.parse()?,
                wraps: wraps.ok_or_else(|| bad("an epoch has no wraps"))?,
            })
        };
        let epochs = raw.epochs.iter().map(epoch).collect::<Result<Vec<_>, _>>()?;
        let ascend = epochs.windows(2).all(|pair| matches!(pair, [a, b] if a.epoch < b.epoch));
        if !ascend || !epochs.iter().any(|e| e.epoch == raw.epoch) {
            return Err(bad("its epochs are out of order"));
        }
        let recipient = |r: &RawRecipient| {
            r.recipient.parse().map(|recipient| NamedRecipient { name: r.name.clone(), recipient })
        };
        Ok(Self {
            cluster: raw.cluster.clone(),
            seal: SealKey::from_hex(&raw.seal_key)?,
            epoch: raw.epoch,
            epochs,
            recipients: raw.recipients.iter().map(recipient).collect::<Result<Vec<_>, _>>()?,
        })
    }

    /// The epoch that new objects are sealed with.
    pub fn current(&self) -> Option<&HostEpoch> {
        self.epochs.iter().find(|e| e.epoch == self.epoch)
    }

    /// Every wrap, by the epoch and number of its object.
    pub fn wraps(&self) -> impl Iterator<Item = (Epoch, u32, &Wrap)> {
        self.epochs.iter().flat_map(|e| (1_u32..).zip(&e.wraps).map(|(n, wrap)| (e.epoch, n, wrap)))
    }

    /// Adds an epoch with its first wrap, and makes it the current one.
    pub fn begin(&mut self, opened: &Opened, wrap: Wrap) {
        self.epoch = opened.key.epoch;
        self.epochs.push(HostEpoch {
            epoch: opened.key.epoch,
            created: opened.created,
            recipient: opened.key.recipient(),
            wraps: vec![wrap],
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::{EpochKey, Identity};

    fn file() -> HostFile {
        let daily = Identity::generate();
        let seal = SealKey::new([9; 32]);
        let recipients = vec![NamedRecipient { name: "daily".into(), recipient: daily.recipient() }];
        let mut file = HostFile {
            cluster: "main".into(),
            seal: seal.clone(),
            epoch: Epoch::FIRST,
            epochs: Vec::new(),
            recipients,
        };
        for n in 1..=2 {
            let key = EpochKey::generate(Epoch::new(n).unwrap());
            let (seal, created) = (seal.clone(), Timestamp::UNIX_EPOCH);
            let opened = Opened { key, seal, created, recipients: Vec::new() };
            file.begin(&opened, opened.wrap("main", &[&daily.recipient()]).unwrap());
        }
        file
    }

    #[test]
    fn a_host_file_comes_back_from_its_text() {
        let file = file();
        assert_eq!(HostFile::parse(&file.render()).unwrap(), file);
        let (has, most) = (len_u64(file.render().as_bytes()), file.most_bytes());
        assert!(has <= most && most < 2 * has + 8192, "{has} of {most}");
        assert_eq!(file.current().unwrap().epoch.get(), 2);
        assert_eq!(file.wraps().map(|(e, n, _)| (e.get(), n)).collect::<Vec<_>>(), [(1, 1), (2, 1)]);
    }

    #[test]
    fn a_wrong_host_file_is_refused_and_nothing_of_it_is_quoted() {
        let file = file();
        let (text, secret) = (file.render(), file.seal.to_hex());
        for (from, to) in [
            ("\"host 1\"", "\"host 2\""),
            ("\"epoch\": \"e0002\",", "\"epoch\": \"e0003\","),
            ("\"seal_key\": \"", "\"seal_key\": \"0"),
            ("\"seal_key\": \"", "\"seal_key\": [\""),
        ] {
            let bad = text.replacen(from, to, 1);
            assert_ne!(bad, *text, "{from}");
            let error = HostFile::parse(&bad).unwrap_err().to_string();
            let some: String = secret.chars().take(16).collect();
            assert!(!error.contains(&some), "{error}");
        }
        assert!(!format!("{file:?}").contains(secret.as_str()));
    }
}
