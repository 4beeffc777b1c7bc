//! What integration tests share. Each test binary takes what it needs with `mod support;`.
//!
//! Nothing here checks anything but `audit` and `promise`: a helper returns what it saw, and the test says what that must be.
//! The real servers come from `tests/setup.sh`; without them a test prints SKIPPED and why.

#[cfg(feature = "testing")]
pub mod actors;
pub mod agent;
pub mod audit;
pub mod azurite;
pub mod clock;
pub mod cluster;
pub mod gcs_double;
pub mod keys;
pub mod log;
pub mod meter;
pub mod moto;
pub mod mounted;
pub mod office;
pub mod promise;
pub mod recovering;
pub mod restored;
pub mod s3;
pub mod site;
pub mod store_rules;
pub mod tls;
pub mod tree;
