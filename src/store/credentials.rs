//! Who we are to a cloud: credentials files and the static profiles of `~/.aws`, as text.
//!
//! A credentials file may be written as `name = value` lines, as an AWS credentials file with sections, or be the
//! JSON key of a Google service account. Profiles that get their keys by signing in, by assuming a role or by running a
//! program are refused with words: at three in the morning, a cron job has nobody to sign in.
//! Invariants: pure, text in and settings out; an error never shows a value.
//! Source of truth: the AWS CLI guide, "Configuration and credential file settings".

use std::collections::BTreeMap;

use super::options::Settings;

/// Why a credentials file or a profile is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// A line that is no section, no setting and no comment.
    #[error("line {0} is neither `name = value` nor `[section]`")]
    Line(usize),
    /// Sections, but none called default.
    #[error("it has sections, but none called [default]")]
    NoDefault,
    /// The profile gets its keys in a way that pitr has not.
    #[error("profile {profile:?} gets its keys by {method}, which pitr does not do")]
    Method {
        /// The profile.
        profile: String,
        /// How it would get its keys.
        method: &'static str,
    },
    /// The profile was asked for and is not there.
    #[error("there is no profile {0:?}")]
    NoProfile(String),
    /// JSON, and no key of a Google service account.
    #[error(
        "it is JSON of type {0:?}, and pitr takes Google's keys of type \"service_account\"; on Google's machines leave \
         credentials_file out, and the metadata server gives tokens"
    )]
    KeyType(String),
    /// One half of a pair.
    #[error("profile {0:?} has only one of aws_access_key_id and aws_secret_access_key")]
    Half(String),
}

/// Settings of a profile that mean its keys are not static.
const METHODS: [(&str, &str); 6] = [
    ("sso_session", "signing in (SSO)"),
    ("sso_start_url", "signing in (SSO)"),
    ("login_session", "signing in"),
    ("role_arn", "assuming a role"),
    ("source_profile", "assuming a role"),
    ("credential_process", "running a program"),
];

/// Reads a `credentials_file`: names as the clouds' own variables have them, in any case, with or without `aws_`,
/// `google_` or `azure_` before them.
pub fn parse_credentials_file(text: &str) -> Result<Settings, CredentialsError> {
    if text.trim_start().starts_with('{') {
        return service_account_key(text);
    }
    let mut sections = parse_ini(text)?;
    let bare = sections.remove("").unwrap_or_default();
    if sections.is_empty() || !bare.is_empty() {
        return Ok(bare.into_iter().collect());
    }
    let default = sections.remove("default").ok_or(CredentialsError::NoDefault)?;
    Ok(default.into_iter().collect())
}

/// Other JSON of Google's is a person's sign-in (`authorized_user`) or names another issuer (`external_account`).
fn service_account_key(text: &str) -> Result<Settings, CredentialsError> {
    let json: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
    match json["type"].as_str() {
        Some("service_account") => Ok(Settings::from_iter([("google_service_account_key", text.trim())])),
        other => Err(CredentialsError::KeyType(other.unwrap_or("unknown").to_owned())),
    }
}

/// The static keys of a profile in the text of `~/.aws/credentials` and `~/.aws/config`. `None`: neither file knows
/// the default profile, and none was asked for by name.
pub fn static_profile_keys(
    credentials: Option<&str>,
    config: Option<&str>,
    profile: Option<&str>,
) -> Result<Option<Settings>, CredentialsError> {
    let name = profile.unwrap_or("default");
    let mut keys = BTreeMap::new();
    let mut known = false;
    // The credentials file wins; it is read last.
    for (text, section) in [(config, format!("profile {name}")), (credentials, name.to_owned())] {
        let mut sections = parse_ini(text.unwrap_or(""))?;
        let found = sections.remove(&section).or_else(|| sections.remove(name));
        known |= found.is_some();
        keys.extend(found.unwrap_or_default());
    }
    if !known {
        return profile.map_or(Ok(None), |name| Err(CredentialsError::NoProfile(name.to_owned())));
    }
    let wanted = ["aws_access_key_id", "aws_secret_access_key", "aws_session_token", "region"];
    let has = |key: &str| keys.contains_key(key);
    if let Some((_, method)) = METHODS.iter().find(|(setting, _)| has(setting)) {
        return Err(CredentialsError::Method { profile: name.to_owned(), method });
    }
    match (has("aws_access_key_id"), has("aws_secret_access_key")) {
        (true, true) => {}
        (false, false) => return Ok(None),
        _ => return Err(CredentialsError::Half(name.to_owned())),
    }
    Ok(Some(keys.into_iter().filter(|(key, _)| wanted.contains(&key.as_str())).collect()))
}

type Sections = BTreeMap<String, BTreeMap<String, String>>;

/// Sections of settings, names in lower case; what stands before the first section is in the section "".
fn parse_ini(text: &str) -> Result<Sections, CredentialsError> {
    let mut sections = Sections::new();
    let mut section = String::new();
    for (index, line) in text.lines().enumerate() {
        let bare = line.trim();
        if bare.is_empty() || bare.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = bare.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name.split_whitespace().collect::<Vec<_>>().join(" ");
            sections.entry(section.clone()).or_default();
        } else if line.starts_with([' ', '\t']) && !section.is_empty() {
            // A nested setting (`s3 =` and indented lines below it), which has no keys.
        } else {
            let (name, value) = bare.split_once('=').ok_or(CredentialsError::Line(index + 1))?;
            let value = value.trim();
            let value = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value);
            let name = name.trim().to_ascii_lowercase();
            sections.entry(section.clone()).or_default().insert(name, value.to_owned());
        }
    }
    Ok(sections)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Settings {
        pairs.iter().copied().collect()
    }

    #[test]
    fn a_credentials_file_may_be_lines_sections_or_a_json_key() {
        let lines = "# keys\nAWS_ACCESS_KEY_ID = AK\naws_secret_access_key=\"a=b\"\n";
        let expected = settings(&[("aws_access_key_id", "AK"), ("aws_secret_access_key", "a=b")]);
        assert_eq!(parse_credentials_file(lines), Ok(expected.clone()));
        assert_eq!(parse_credentials_file(&format!("[other]\nx=1\n[default]\n{lines}")), Ok(expected));
        let key = "{\"type\": \"service_account\"}";
        assert_eq!(
            parse_credentials_file(&format!(" {key}\n")),
            Ok(settings(&[("google_service_account_key", key)]))
        );
        for (json, kind) in [("{\"type\": \"authorized_user\"}", "authorized_user"), ("{\"typ", "unknown")] {
            assert_eq!(parse_credentials_file(json), Err(CredentialsError::KeyType(kind.to_owned())));
        }
        assert_eq!(parse_credentials_file("[other]\nx=1"), Err(CredentialsError::NoDefault));
        assert_eq!(parse_credentials_file("a=1\nsecret"), Err(CredentialsError::Line(2)));
    }

    #[test]
    fn a_static_profile_gives_its_keys_and_region() {
        let credentials = "[default]\naws_access_key_id=A\naws_secret_access_key=S\n[ops]\naws_access_key_id=OA\naws_secret_access_key=OS\naws_session_token=T\n";
        let config = "[default]\nregion = eu-west-1\noutput=json\n[profile ops]\nregion=us-west-2\ns3 =\n  max_concurrent_requests = 20\n";
        let keys = static_profile_keys(Some(credentials), Some(config), Some("ops"));
        let expected = [
            ("aws_access_key_id", "OA"),
            ("aws_secret_access_key", "OS"),
            ("aws_session_token", "T"),
            ("region", "us-west-2"),
        ];
        assert_eq!(keys, Ok(Some(settings(&expected))));
        let keys = static_profile_keys(Some(credentials), Some(config), None).unwrap().unwrap();
        assert_eq!(keys.get("region"), Some("eu-west-1"));
        assert_eq!(static_profile_keys(None, None, None), Ok(None));
    }

    #[test]
    fn profiles_without_static_keys_are_refused_with_words() {
        for (config, word) in [
            ("[profile p]\nsso_session = corp", "signing in"),
            ("[profile p]\nrole_arn = arn\nsource_profile = q", "assuming a role"),
            ("[profile p]\ncredential_process = /bin/x", "running a program"),
        ] {
            let error = static_profile_keys(None, Some(config), Some("p")).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
        let missing = static_profile_keys(None, Some("[profile p]\nregion=x"), Some("q"));
        assert_eq!(missing, Err(CredentialsError::NoProfile("q".into())));
        let half = static_profile_keys(Some("[default]\naws_access_key_id=A"), None, None);
        assert_eq!(half, Err(CredentialsError::Half("default".into())));
    }

    #[test]
    fn settings_print_names_and_no_values() {
        let shown = format!("{:?}", settings(&[("aws_secret_access_key", "hunter2")]));
        assert!(shown.contains("aws_secret_access_key") && !shown.contains("hunter2"), "{shown}");
    }
}
