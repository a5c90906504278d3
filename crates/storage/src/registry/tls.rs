//! Whom we trust: the certificates of the system, and those of `certs.d`.
//!
//! `certs.d/HOST[:PORT]/` holds `*.crt` with authorities of this registry alone, and pairs of
//! `X.cert` and `X.key` with which we identify ourselves.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};

use super::error::RegistryError;

/// Where the directories by registry are, in the order in which they count.
fn dirs(host: &str) -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let own = home.map(|home| home.join(".config/containers/certs.d"));
    let system = ["/etc/containers/certs.d", "/etc/docker/certs.d"].map(PathBuf::from);
    own.into_iter().chain(system).map(|dir| dir.join(host)).collect()
}

/// What the files of one directory hold.
#[derive(Default)]
struct Found {
    authorities: Vec<Certificate<'static>>,
    identity: Option<ClientCert>,
}

/// The settings for a registry. `cert_dir` takes the place of the usual directories.
pub fn config(
    host: &str,
    verify: bool,
    cert_dir: Option<&Path>,
) -> Result<TlsConfig, RegistryError> {
    let dirs = match cert_dir {
        Some(dir) => {
            if !dir.is_dir() {
                let reason = "it is no directory".to_owned();
                return Err(RegistryError::Config { path: dir.to_owned(), reason });
            }
            vec![dir.to_owned()]
        }
        None => dirs(host),
    };
    let mut found = Found::default();
    for dir in dirs {
        found.read(&dir)?;
    }
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::debug!("certificates of the system: {error}");
    }
    let system = system.certs.iter().map(|cert| Certificate::from_der(cert).to_owned());
    let roots: Vec<_> = system.chain(found.authorities).collect();
    Ok(TlsConfig::builder()
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .root_certs(RootCerts::new_with_certs(&roots))
        .client_cert(found.identity)
        .disable_verification(!verify)
        .build())
}

impl Found {
    fn read(&mut self, dir: &Path) -> Result<(), RegistryError> {
        let failed =
            |path: &Path, reason: String| RegistryError::Config { path: path.to_owned(), reason };
        let entries = match std::fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(failed(dir, e.to_string())),
        };
        let mut paths = Vec::new();
        for entry in entries {
            paths.push(entry.map_err(|e| failed(dir, e.to_string()))?.path());
        }
        paths.sort();
        for path in paths {
            let read = |path: &Path| std::fs::read(path).map_err(|e| failed(path, e.to_string()));
            match path.extension().and_then(|e| e.to_str()) {
                Some("crt") => {
                    let certificates = certificates(&read(&path)?);
                    if certificates.is_empty() {
                        return Err(failed(&path, "it holds no certificate in PEM".to_owned()));
                    }
                    self.authorities.extend(certificates);
                }
                Some("cert") => {
                    let key = path.with_extension("key");
                    let chain = certificates(&read(&path)?);
                    let key = PrivateKey::from_pem(&read(&key)?)
                        .map_err(|e| failed(&key, e.to_string()))?;
                    self.identity = Some(ClientCert::new_with_certs(&chain, key));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn certificates(pem: &[u8]) -> Vec<Certificate<'static>> {
    let items = parse_pem(pem).flatten();
    items
        .filter_map(|item| match item {
            PemItem::Certificate(certificate) => Some(certificate),
            _ => None,
        })
        .collect()
}
