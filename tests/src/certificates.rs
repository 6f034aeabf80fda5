//! Certificates for servers and clients on this machine, of a root made for one test.

use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

/// Files in PEM: a root, and for a server and a client a certificate of it with its key.
#[derive(Debug)]
pub struct Certificates {
    folder: TempDir,
}

impl Certificates {
    /// Makes them, for `localhost` and `127.0.0.1`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn make() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("lake-test-certificates-").tempdir()?;
        let mut root = CertificateParams::new(Vec::new())?;
        // With the same name as its leaves some clients would take these for their own roots.
        root.distinguished_name.push(DnType::CommonName, "lake test root");
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root_key = KeyPair::generate()?;
        std::fs::write(folder.path().join("ca.pem"), root.self_signed(&root_key)?.pem())?;
        let issuer = Issuer::new(root, root_key);
        for name in ["server", "client"] {
            let key = KeyPair::generate()?;
            let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
            let certificate = CertificateParams::new(names)?.signed_by(&key, &issuer)?;
            std::fs::write(folder.path().join(format!("{name}.pem")), certificate.pem())?;
            std::fs::write(folder.path().join(format!("{name}.key")), key.serialize_pem())?;
        }
        Ok(Self { folder })
    }

    /// One of the files: `ca.pem`, `server.pem`, `server.key`, `client.pem`, `client.key`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}
