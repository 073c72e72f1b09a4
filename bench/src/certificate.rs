//! One set of certificates for every peer, so that all do the same cryptography: ECDSA P-256, the leaves straight below
//! their authorities. The client's is a user's certificate of a Postern cluster, and the snapshot of that cluster lies
//! beside it, for our own check; to the other peers it is a certificate like any other. Made anew for each run.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use pki::authority::{AuthorityKind, TlsAuthority, Validity};
use pki::claims::UserClaims;
use pki::keys::KeyPairs;
use proto::id::ClusterName;
use proto::resource::Role;
use proto::snapshot::{Authorities, FORMAT, Snapshot};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite::TLS13_AES_128_GCM_SHA256, kx_group::X25519};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

/// What the certificate is for, and what clients ask for.
pub(crate) const SERVER_NAME: &str = "bench.example.com";
/// What every TLS peer is told to use, in OpenSSL's words.
pub(crate) const SUITE: &str = "TLS_AES_128_GCM_SHA256";
pub(crate) const GROUP: &str = "X25519";

/// Switching tickets off makes OpenSSL 3.0 send two of another kind; asking for none sends none.
const OPENSSL: &str = "openssl_conf = init
[init]
ssl_conf = ssl
[ssl]
system_default = defaults
[defaults]
NumTickets = 0
";

/// Files for the peers, settings for our clients.
#[derive(Debug)]
pub(crate) struct Certificates {
    pub(crate) server_chain: PathBuf,
    pub(crate) server_key: PathBuf,
    /// Key, then chain, in one file: HAProxy and hitch want it so.
    pub(crate) server_both: PathBuf,
    /// Settings of OpenSSL itself, for peers whose own cannot stop the tickets of TLS 1.3.
    pub(crate) openssl: PathBuf,
    /// What clients' certificates are signed with.
    pub(crate) client_authority: PathBuf,
    /// The policy that our own door decides by.
    pub(crate) snapshot: PathBuf,
    /// Clients without and with a certificate.
    pub(crate) client: Arc<ClientConfig>,
    pub(crate) client_with_certificate: Arc<ClientConfig>,
}

impl Certificates {
    pub(crate) fn make(dir: &Path) -> Result<Self> {
        let (server_authority, server_authority_pem) = authority("server authority")?;
        let server = leaf(SERVER_NAME, &server_authority)?;
        let User { authority_pem, snapshot, chain, key } = user()?;
        let write = |name: &str, text: &str| -> Result<PathBuf> {
            let path = dir.join(name);
            // Keys are among them; peers read them as who starts them.
            let mut options = fs::OpenOptions::new();
            options.write(true).create_new(true).mode(0o600);
            let written = options.open(&path).and_then(|mut file| file.write_all(text.as_bytes()));
            written.with_context(|| format!("cannot write {}", path.display()))?;
            Ok(path)
        };
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(server_authority_pem.as_bytes())?)?;
        Ok(Self {
            server_chain: write("server.pem", &server.0)?,
            server_key: write("server.key", &server.1)?,
            server_both: write("server-both.pem", &format!("{}{}", server.1, server.0))?,
            openssl: write("openssl.cnf", OPENSSL)?,
            client_authority: write("client-authority.pem", &authority_pem)?,
            snapshot: write("snapshot.json", &snapshot)?,
            client: settings(roots.clone(), None)?,
            client_with_certificate: settings(roots, Some(&(chain, key)))?,
        })
    }
}

/// TLS 1.3, one suite, one group, no resumption.
fn settings(
    roots: RootCertStore,
    certificate: Option<&(String, String)>,
) -> Result<Arc<ClientConfig>> {
    let provider = CryptoProvider {
        cipher_suites: vec![TLS13_AES_128_GCM_SHA256],
        kx_groups: vec![X25519],
        ..aws_lc_rs::default_provider()
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots);
    let mut settings = match certificate {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder.with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(chain.as_bytes())?],
            PrivateKeyDer::from_pem_slice(key.as_bytes())?,
        )?,
    };
    settings.resumption = Resumption::disabled();
    Ok(Arc::new(settings))
}

fn authority(name: &str) -> Result<(Issuer<'static, KeyPair>, String)> {
    let mut parameters = CertificateParams::new(Vec::new())?;
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let pem = parameters.self_signed(&key)?.pem();
    Ok((Issuer::new(parameters, key), pem))
}

/// Certificate and key of the server, as PEM.
fn leaf(name: &str, authority: &Issuer<'static, KeyPair>) -> Result<(String, String)> {
    let mut parameters = CertificateParams::new(vec![name.to_owned()])?;
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    Ok((parameters.signed_by(&key, authority)?.pem(), key.serialize_pem()))
}

/// A user of a cluster, all as text.
struct User {
    authority_pem: String,
    snapshot: String,
    chain: String,
    key: String,
}

/// Roles of the cluster; the user holds three of them, as in the micro-benchmarks.
const ROLES: usize = 50;
/// What the certificate says the user may log in as.
const LOGINS: [&str; 2] = ["alice", "root"];

fn user() -> Result<User> {
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    let cluster: ClusterName = "bench.example.com".parse()?;
    let (key, authority_pem) = TlsAuthority::generate(AuthorityKind::User, &cluster, now)?;
    let authority = TlsAuthority::load(AuthorityKind::User, &key, &authority_pem)?;
    let mut claims = UserClaims {
        cluster: cluster.clone(),
        user: "alice".parse()?,
        roles: Vec::new(),
        traits: [("logins".to_owned(), LOGINS.map(str::to_owned).to_vec())].into(),
        logins: Vec::new(),
    };
    for number in 0..3 {
        claims.roles.push(format!("role-{number}").parse()?);
    }
    for login in LOGINS {
        claims.logins.push(login.parse()?);
    }
    let keys = KeyPairs::generate()?;
    let validity = Validity { not_before: now - 60, not_after: now + 86_400 };
    let chain = authority.issue_user(&claims, &keys.tls_spki(), validity)?;
    let roles: Result<Vec<Role>> = (0..ROLES).map(role).collect();
    let snapshot = Snapshot {
        format: FORMAT,
        cluster,
        revision: 1,
        issued_at: now,
        authorities: Authorities {
            user_tls: vec![authority_pem.clone()],
            ..Authorities::default()
        },
        roles: roles?,
        locks: Vec::new(),
    };
    let snapshot = serde_json::to_string(&snapshot)?;
    Ok(User { authority_pem, snapshot, chain, key: keys.tls_pem().to_string() })
}

/// All of them allow machines with `env: dev`, which is what our door says it stands before.
fn role(number: usize) -> Result<Role> {
    Ok(serde_json::from_value(serde_json::json!({
        "kind": "role", "version": "v7", "metadata": { "name": format!("role-{number}") },
        "spec": {
            "allow": {
                "logins": ["{{internal.logins}}"],
                "node_labels": { "env": ["dev", format!("stage-{number}")] },
            },
            "deny": { "logins": ["nobody"] },
        },
    }))?)
}
