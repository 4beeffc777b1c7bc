//! From URL and options to a client of object_store.
//!
//! Where credentials come from, in this order: the credentials file; the cloud's own variables; for S3 the static keys
//! of a `~/.aws` profile; else the metadata service of the cloud (web identity included, as object_store does it).
//! Invariants: with a credentials file nothing else is looked at, so that a command run by the server and one run by
//! an operator use the same; object_store repeats nothing and has no deadline of its own.
//! Source of truth: INTERFACE.md "Credentials".

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::Read as _;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, Checksum};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::list::PaginatedListStore;
use object_store::{ClientOptions, HeaderValue, ObjectStore, RetryConfig};

use super::credentials::static_profile_keys;
use super::error::{Fault, StoreErrorKind};
use super::http::{Connector, Names};
use super::options::{Settings, StoreOptions};
use super::s3::Bucket;
use super::tls;
use super::url::StoreUrl;

/// What a connection may take to be there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// object_store's own, where nothing names one.
const DEFAULT_REGION: &str = "us-east-1";
/// Most of a key's file that is looked at.
const MAX_KEY: u64 = 1 << 16;
const USER_AGENT: &str = concat!("pitr/", env!("CARGO_PKG_VERSION"));

/// The faces of one client.
pub(super) struct Clients {
    pub(super) objects: Arc<dyn ObjectStore>,
    pub(super) pages: Arc<dyn PaginatedListStore>,
    /// What only S3 has.
    pub(super) bucket: Option<Bucket>,
}

/// The bucket is set last: a variable such as `AWS_BUCKET` or `AZURE_CONTAINER_NAME` must not lead elsewhere than the URL.
pub(super) fn build(url: &StoreUrl, options: &StoreOptions) -> Result<Clients, Fault> {
    tls::install_provider();
    match url {
        StoreUrl::S3 { bucket, prefix } => {
            let settings = s3_settings(options)?;
            let client = client_options(options)?;
            let (store, region) = s3(bucket, options, &settings, client.clone())?;
            let clients = pair(store.clone());
            let bucket = Bucket::new(Arc::new(store), region, bucket, client, prefix);
            Ok(Clients { bucket: Some(bucket), ..clients })
        }
        StoreUrl::Gcs { bucket, .. } => {
            let given = given(options, "google_", "GOOGLE_");
            let mut builder = GoogleCloudStorageBuilder::new()
                .with_client_options(client_options(options)?)
                .with_retry(no_repetition())
                .with_http_connector(Connector::new(bucket));
            for (key, value) in configure::<GoogleConfigKey>(options, &given)? {
                builder = builder.with_config(key, value);
            }
            if let Some(endpoint) = &options.endpoint {
                builder = builder.with_config(GoogleConfigKey::BaseUrl, endpoint);
            }
            Ok(pair(builder.with_bucket_name(bucket).build().map_err(|error| refused(&error))?))
        }
        StoreUrl::Azure { container, .. } => {
            let given = given(options, "azure_", "AZURE_");
            let mut builder = MicrosoftAzureBuilder::new()
                .with_client_options(client_options(options)?)
                .with_retry(no_repetition())
                .with_http_connector(Connector::new(container));
            for (key, value) in configure::<AzureConfigKey>(options, &given)? {
                builder = builder.with_config(key, value);
            }
            if let Some(endpoint) = &options.endpoint {
                builder = builder.with_endpoint(endpoint.clone()).with_allow_http(options.allow_http);
            }
            Ok(pair(builder.with_container_name(container).build().map_err(|error| refused(&error))?))
        }
        StoreUrl::File(_) | StoreUrl::Memory(_) => Err(Fault::usage("it is not in a cloud")),
    }
}

/// A mark of the credentials that [`build`] would take now: another one if they were renewed. What is fetched anew for each use (a cloud's
/// own tokens) is no part of it. 0 for what needs none.
pub(super) fn credentials(url: &StoreUrl, options: &StoreOptions) -> u64 {
    let mut settings = match url {
        StoreUrl::S3 { .. } => s3_settings(options).unwrap_or_default(),
        StoreUrl::Gcs { .. } => given(options, "google_", "GOOGLE_"),
        StoreUrl::Azure { .. } => given(options, "azure_", "AZURE_"),
        StoreUrl::File(_) | StoreUrl::Memory(_) => return 0,
    };
    // Where object_store looks for Google's when nothing else is set.
    if let Some(home) = options.environment.get("HOME").filter(|_| matches!(url, StoreUrl::Gcs { .. })) {
        settings.set("", format!("{home}/.config/gcloud/application_default_credentials.json"));
    }
    let mut mark = DefaultHasher::new();
    for (name, value) in settings.iter() {
        (name, value).hash(&mut mark);
        // A setting may name the file of a key.
        if let Some(file) = value.starts_with('/').then(|| std::fs::File::open(value).ok()).flatten() {
            let mut content = Vec::new();
            let read = file.take(MAX_KEY).read_to_end(&mut content);
            read.map(|_| content).ok().hash(&mut mark);
        }
    }
    mark.finish()
}

fn pair<S: ObjectStore + PaginatedListStore>(store: S) -> Clients {
    let store = Arc::new(store);
    let objects: Arc<dyn ObjectStore> = Arc::<S>::clone(&store);
    Clients { objects, pages: store, bucket: None }
}

/// The client, and the region that it signs for.
fn s3(
    bucket: &str,
    options: &StoreOptions,
    settings: &Settings,
    client: ClientOptions,
) -> Result<(AmazonS3, String), Fault> {
    let mut builder = AmazonS3Builder::new()
        .with_client_options(client)
        .with_retry(no_repetition())
        .with_http_connector(Connector::new(bucket))
        // The store then checks what it received; the digest is computed for the signature anyway. A bucket with object
        // lock requires it.
        .with_checksum_algorithm(Checksum::SHA256)
        // One object is deleted by one plain request, which every server knows.
        .with_config(AmazonS3ConfigKey::DisableBulkDelete, "true");
    for (key, value) in configure::<AmazonS3ConfigKey>(options, settings)? {
        builder = builder.with_config(key, value);
    }
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_endpoint(endpoint).with_allow_http(options.allow_http);
    }
    if let Some(region) = &options.region {
        builder = builder.with_region(region);
    }
    let region = builder.get_config_value(&AmazonS3ConfigKey::Region);
    let store = builder.with_bucket_name(bucket).build().map_err(|error| refused(&error))?;
    Ok((store, region.unwrap_or_else(|| DEFAULT_REGION.to_owned())))
}

/// Credentials file, else variables, else the static keys of a profile.
fn s3_settings(options: &StoreOptions) -> Result<Settings, Fault> {
    let mut settings = given(options, "aws_", "AWS_");
    let has_source = ["aws_access_key_id", "aws_web_identity_token_file"]
        .iter()
        .chain(["aws_container_credentials_relative_uri", "aws_container_credentials_full_uri"].iter())
        .any(|name| settings.get(name).is_some());
    if has_source || !options.credentials.is_empty() {
        return Ok(settings);
    }
    let home = options.environment.get("HOME").map(PathBuf::from);
    let read = |variable: &str, file: &str| {
        let named = options.environment.get(variable).map(PathBuf::from);
        let path = named.or_else(|| home.as_ref().map(|home| home.join(".aws").join(file)))?;
        std::fs::read_to_string(path).ok()
    };
    let credentials = read("AWS_SHARED_CREDENTIALS_FILE", "credentials");
    let config = read("AWS_CONFIG_FILE", "config");
    let profile = options.environment.get("AWS_PROFILE").filter(|name| !name.is_empty());
    let keys = static_profile_keys(credentials.as_deref(), config.as_deref(), profile);
    for (name, value) in keys.map_err(|error| Fault::usage(error.to_string()))?.unwrap_or_default().iter() {
        // A variable wins over the profile's region.
        let name = if name == "region" { "aws_region" } else { name };
        if settings.get(name).is_none() {
            settings.set(name, value);
        }
    }
    Ok(settings)
}

/// What the credentials file says; without one, the variables of this cloud. Names in lower case, with their prefix.
fn given(options: &StoreOptions, prefix: &str, variables: &str) -> Settings {
    if !options.credentials.is_empty() {
        let full =
            |name: &str| if name.starts_with(prefix) { name.to_owned() } else { format!("{prefix}{name}") };
        return options
            .credentials
            .iter()
            .map(|(name, value)| (full(&name.to_ascii_lowercase()), value))
            .collect();
    }
    let of_cloud = options.environment.iter().filter(|(name, _)| name.starts_with(variables));
    of_cloud.map(|(name, value)| (name.to_ascii_lowercase(), value)).collect()
}

/// Settings as object_store names them. A variable it does not know is another program's; a line of the credentials
/// file that it does not know is a mistake.
fn configure<K: FromStr>(options: &StoreOptions, settings: &Settings) -> Result<Vec<(K, String)>, Fault> {
    let mut known = Vec::new();
    for (name, value) in settings.iter() {
        // Some names have no prefix: azure_account_key is account_key.
        let bare = name.split_once('_').map_or(name, |(_, bare)| bare);
        match name.parse().or_else(|_| bare.parse()) {
            Ok(key) => known.push((key, value.to_owned())),
            Err(_) if options.credentials.is_empty() => {}
            Err(_) => {
                return Err(Fault::usage(format!("credentials_file: {name} is no setting of this store")));
            }
        }
    }
    Ok(known)
}

fn client_options(options: &StoreOptions) -> Result<ClientOptions, Fault> {
    let plain = options.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    if plain && !options.allow_http {
        return Err(Fault::usage("the endpoint is http://, which allow_http = true must permit"));
    }
    let mut client = ClientOptions::new()
        .with_user_agent(HeaderValue::from_static(USER_AGENT))
        .with_timeout_disabled()
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_no_system_certificates(true)
        .with_dns_resolver(Arc::new(Names))
        .with_allow_http(options.allow_http);
    // Hundreds of certificates are not parsed where none is looked at.
    if !plain || options.ca_file.is_some() {
        for authority in tls::trusted(options.ca_file.as_deref())? {
            client = client.with_root_certificate(authority);
        }
    }
    Ok(client)
}

/// Each attempt is ours, with a signature of its own.
fn no_repetition() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

/// What object_store will not build with; its text names the setting.
fn refused(error: &object_store::Error) -> Fault {
    let cause = error.to_string();
    let kind = if cause.contains("redential") || cause.contains("ccess") {
        StoreErrorKind::Credentials
    } else {
        StoreErrorKind::Usage
    };
    Fault::permanent(kind, cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(credentials: &[(&str, &str)], environment: &[(&str, &str)]) -> StoreOptions {
        StoreOptions {
            credentials: credentials.iter().copied().collect(),
            environment: environment.iter().copied().collect(),
            ..StoreOptions::default()
        }
    }

    #[test]
    fn a_credentials_file_shuts_out_the_environment() {
        let both =
            options(&[("ACCESS_KEY_ID", "file")], &[("AWS_ACCESS_KEY_ID", "env"), ("AWS_REGION", "r")]);
        let settings = s3_settings(&both).unwrap();
        assert_eq!(settings.iter().collect::<Vec<_>>(), [("aws_access_key_id", "file")]);
        let environment = options(&[], &[("AWS_ACCESS_KEY_ID", "env"), ("PATH", "/bin")]);
        assert_eq!(
            s3_settings(&environment).unwrap().iter().collect::<Vec<_>>(),
            [("aws_access_key_id", "env")]
        );
    }

    #[test]
    fn renewed_credentials_have_another_mark() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("keys");
        let put = |key: &str| {
            let text = format!("[default]\naws_access_key_id={key}\naws_secret_access_key=S");
            crate::durable::write_replace(&file, text.as_bytes(), 0o600, None).unwrap();
        };
        let (s3, gcs): (StoreUrl, StoreUrl) = ("s3://b".parse().unwrap(), "gs://b".parse().unwrap());
        let named = |variable: &'static str| options(&[], &[(variable, file.to_str().unwrap())]);
        let profile = named("AWS_SHARED_CREDENTIALS_FILE");
        let account = named("GOOGLE_SERVICE_ACCOUNT");
        let given = |key: &str| options(&[("aws_access_key_id", key)], &[]);
        let marks = || (credentials(&s3, &profile), credentials(&gcs, &account));
        put("A");
        let before = marks();
        assert_eq!(marks(), before);
        put("B");
        let after = marks();
        assert!(after.0 != before.0 && after.1 != before.1);
        assert_ne!(credentials(&s3, &given("A")), credentials(&s3, &given("B")));
        assert_eq!(credentials(&s3, &given("A")), credentials(&s3, &given("A")));
    }

    #[test]
    fn a_static_profile_is_found_below_home() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("keys");
        crate::durable::write_replace(
            &file,
            b"[default]\naws_access_key_id=A\naws_secret_access_key=S\nregion=x",
            0o600,
            None,
        )
        .unwrap();
        let shared = ("AWS_SHARED_CREDENTIALS_FILE", file.to_str().unwrap());
        let settings = s3_settings(&options(&[], &[shared, ("AWS_REGION", "y")])).unwrap();
        let expected = [("aws_access_key_id", "A"), ("aws_region", "y"), ("aws_secret_access_key", "S")];
        let found: Vec<_> =
            settings.iter().filter(|(name, _)| *name != "aws_shared_credentials_file").collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn plain_http_must_be_permitted_and_unknown_lines_of_the_file_are_named() {
        let url: StoreUrl = "s3://b/p".parse().unwrap();
        let endpoint = Some("http://127.0.0.1:1".to_owned());
        let plain =
            StoreOptions { endpoint, ..options(&[("access_key_id", "a"), ("secret_access_key", "s")], &[]) };
        let fault = build(&url, &plain).err().unwrap();
        assert!(fault.cause.contains("allow_http"), "{}", fault.cause);
        let fault = build(&url, &options(&[("acess_key", "a")], &[])).err().unwrap();
        assert!(fault.cause.contains("acess_key"), "{}", fault.cause);
    }

    #[test]
    fn every_cloud_can_be_built() {
        let s3 = options(&[("access_key_id", "a"), ("secret_access_key", "s")], &[]);
        assert!(build(&"s3://b/p".parse().unwrap(), &s3).is_ok());
        let azure =
            options(&[("azure_storage_account_name", "n"), ("azure_storage_account_key", "a2V5")], &[]);
        assert!(build(&"az://c/p".parse().unwrap(), &azure).is_ok());
        let gcs = options(&[("google_skip_signature", "true")], &[]);
        assert!(build(&"gs://b/p".parse().unwrap(), &gcs).is_ok());
    }
}
