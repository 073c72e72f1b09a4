//! `tctl auth`: certificates for keys made here, and the public halves of the authorities. `tctl status` as well.

use std::path::PathBuf;

use net::file;
use pki::keys::KeyPairs;
use proto::rpc::{SignHostRequest, SignUserRequest, StatusRequest, StatusResponse, TrustBundle};
use serde_json::json;
use zeroize::Zeroizing;

use crate::flags::{ExportArgs, ExportKind, SignArgs, SignFormat};
use crate::{Admin, call};
use cli::failure::{Failure, Fallible as _};
use cli::output::{Format, plain, print, rfc3339, structured, table};

/// What auth signed.
struct Signed {
    keys: KeyPairs,
    ssh_certificate: String,
    tls_certificate_pem: String,
    trust: TrustBundle,
    cluster: String,
}

/// # Errors
/// Auth's, or a file that exists or cannot be written.
pub(crate) async fn sign(admin: &mut Admin, args: &SignArgs) -> Result<(), Failure> {
    let files = file_names(args);
    // Before anything is signed.
    if let Some(path) = files.iter().find(|path| path.exists()).filter(|_| !args.overwrite) {
        return Err(Failure::new(format!("{} exists", path.display())).hint("Pass --overwrite."));
    }
    let keys = KeyPairs::generate()?;
    let (ssh_public_key, tls_public_key) = (keys.ssh_public_line(), keys.tls_spki());
    let ttl_seconds = args.ttl.0.as_secs();
    let signed = match &args.user {
        Some(user) => {
            let user = user.clone();
            let request = SignUserRequest { user, ssh_public_key, tls_public_key, ttl_seconds };
            let answer = admin.sign_user(call(request)).await?.into_inner();
            Signed {
                keys,
                ssh_certificate: answer.ssh_certificate,
                tls_certificate_pem: answer.tls_certificate_pem,
                trust: answer.trust.unwrap_or_default(),
                cluster: answer.cluster,
            }
        }
        None => {
            let principals = args.host.clone();
            let request =
                SignHostRequest { principals, ssh_public_key, tls_public_key, ttl_seconds };
            let answer = admin.sign_host(call(request)).await?.into_inner();
            Signed {
                keys,
                ssh_certificate: answer.ssh_certificate,
                tls_certificate_pem: answer.tls_certificate_pem,
                trust: answer.trust.unwrap_or_default(),
                cluster: answer.cluster,
            }
        }
    };
    check_use(&signed, args)?;
    for (path, text) in files.iter().zip(contents(&signed, args)) {
        file::write_private(path, text.as_bytes()).doing(path.display())?;
    }
    let names: Vec<String> = files.iter().map(|path| path.display().to_string()).collect();
    print(&format!("The certificates have been written to {}\n", names.join(", ")))
}

/// A user whose roles grant no logins gets a TLS certificate alone, which is nothing to an SSH client.
fn check_use(signed: &Signed, args: &SignArgs) -> Result<(), Failure> {
    if args.format != SignFormat::Openssh || !signed.ssh_certificate.trim().is_empty() {
        return Ok(());
    }
    let whom = args.user.as_deref().unwrap_or("the host");
    Err(Failure::new(format!("{} has no logins: no SSH certificate", plain(whom)))
        .hint("Give the user logins, or a role with logins, and sign again."))
}

fn file_names(args: &SignArgs) -> Vec<PathBuf> {
    let with = |suffix: &str| {
        let mut name = args.out.clone().into_os_string();
        name.push(suffix);
        PathBuf::from(name)
    };
    match args.format {
        SignFormat::File => vec![args.out.clone()],
        SignFormat::Openssh => vec![args.out.clone(), with("-cert.pub")],
        SignFormat::Tls => vec![with(".key"), with(".crt"), with(".cas")],
    }
}

/// As many as [`file_names`], in its order.
fn contents(signed: &Signed, args: &SignArgs) -> Vec<Zeroizing<String>> {
    let certificate = format!("{}\n", signed.ssh_certificate.trim_end());
    // A user is shown to hosts' authorities and a host to users': whom each has to believe.
    let peers = match args.user {
        Some(_) => &signed.trust.host_tls_ca_pem,
        None => &signed.trust.user_tls_ca_pem,
    };
    match args.format {
        SignFormat::File => {
            let known = known_hosts(&signed.trust, &signed.cluster);
            vec![Zeroizing::new(
                [
                    signed.keys.ssh_pem().as_str(),
                    &certificate,
                    &signed.keys.tls_pem(),
                    &signed.tls_certificate_pem,
                    &known,
                    &lines(peers),
                ]
                .map(|part| format!("{}\n", part.trim_end()))
                .concat(),
            )]
        }
        SignFormat::Openssh => vec![signed.keys.ssh_pem(), Zeroizing::new(certificate)],
        SignFormat::Tls => vec![
            signed.keys.tls_pem(),
            Zeroizing::new(signed.tls_certificate_pem.clone()),
            Zeroizing::new(lines(peers)),
        ],
    }
}

/// # Errors
/// Auth's, or no authority has the fingerprint.
pub(crate) async fn export(admin: &mut Admin, args: &ExportArgs) -> Result<(), Failure> {
    let status = admin.status(call(StatusRequest {})).await?.into_inner();
    if let Some(wanted) = &args.fingerprint {
        let (kind, protocol) = match args.kind {
            ExportKind::Host => ("host", "ssh"),
            ExportKind::TlsHost => ("host", "tls"),
            ExportKind::TlsUser => ("user", "tls"),
            ExportKind::User => ("user", "ssh"),
        };
        let known = status.authorities.iter().any(|authority| {
            authority.fingerprint == *wanted
                && authority.kind == kind
                && authority.protocol.eq_ignore_ascii_case(protocol)
        });
        if !known {
            return Err(Failure::new(format!("no {kind} authority has the fingerprint {wanted}")));
        }
    }
    let trust = status.trust.unwrap_or_default();
    print(&match args.kind {
        ExportKind::Host => known_hosts(&trust, &status.cluster),
        ExportKind::TlsHost => lines(&trust.host_tls_ca_pem),
        ExportKind::TlsUser => lines(&trust.user_tls_ca_pem),
        ExportKind::User => lines(&trust.user_ssh_ca),
    })
}

fn known_hosts(trust: &TrustBundle, cluster: &str) -> String {
    let bare = |key: &String| key.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
    let line = |key| format!("@cert-authority {cluster},*.{cluster} {} type=host\n", bare(key));
    trust.host_ssh_ca.iter().map(line).collect()
}

fn lines(texts: &[String]) -> String {
    texts.iter().map(|text| format!("{}\n", text.trim_end())).collect()
}

/// # Errors
/// Auth's.
pub(crate) async fn status(admin: &mut Admin, format: Format) -> Result<(), Failure> {
    let status = admin.status(call(StatusRequest {})).await?.into_inner();
    print(&show_status(&status, format)?)
}

fn show_status(status: &StatusResponse, format: Format) -> Result<String, Failure> {
    if format != Format::Text {
        let authorities: Vec<_> = status
            .authorities
            .iter()
            .map(|authority| {
                json!({
                    "kind": authority.kind,
                    "protocol": authority.protocol,
                    "algorithm": authority.algorithm,
                    "fingerprint": authority.fingerprint,
                    "valid_until": rfc3339(authority.valid_until),
                })
            })
            .collect();
        let value = json!({
            "cluster": status.cluster,
            "version": status.version,
            "ca_pins": status.ca_pins,
            "proxy_address": status.proxy_address,
            "policy_revision": status.policy_revision,
            "authorities": authorities,
        });
        return structured(&value, format);
    }
    let mut text = String::new();
    let revision = status.policy_revision.to_string();
    let fields = [
        ("Cluster:", status.cluster.as_str()),
        ("Version:", &status.version),
        ("Proxy:", &status.proxy_address),
        ("Policy revision:", &revision),
    ];
    for (label, value) in fields {
        text.push_str(format!("{label:<16} {}", plain(value)).trim_end());
        text.push('\n');
    }
    for pin in &status.ca_pins {
        text.push_str(&format!("{:<16} {}\n", "CA pins:", plain(pin)));
    }
    let rows: Vec<Vec<String>> = status
        .authorities
        .iter()
        .map(|authority| {
            vec![
                authority.kind.clone(),
                authority.protocol.clone(),
                authority.algorithm.clone(),
                authority.fingerprint.clone(),
                rfc3339(authority.valid_until),
            ]
        })
        .collect();
    text.push('\n');
    let head = ["authority", "protocol", "algorithm", "fingerprint", "valid until"];
    text.push_str(&table(&head, &rows));
    Ok(text)
}

#[cfg(test)]
mod tests {
    use proto::rpc::Authority;

    use super::*;

    fn args(format: SignFormat, user: bool) -> SignArgs {
        SignArgs {
            user: user.then(|| "alice".to_owned()),
            host: vec![],
            out: "id".into(),
            format,
            ttl: "1h".parse().unwrap(),
            overwrite: false,
        }
    }

    #[test]
    fn without_logins_there_is_nothing_for_an_ssh_client() {
        let mut signed = Signed {
            keys: KeyPairs::generate().unwrap(),
            ssh_certificate: "\n".into(),
            tls_certificate_pem: "TLS CERT\n".into(),
            trust: TrustBundle::default(),
            cluster: "demo".into(),
        };
        let failure = check_use(&signed, &args(SignFormat::Openssh, true)).unwrap_err();
        assert_eq!(failure.message(), "alice has no logins: no SSH certificate");
        assert!(check_use(&signed, &args(SignFormat::Tls, true)).is_ok());
        signed.ssh_certificate = "ssh-cert".into();
        assert!(check_use(&signed, &args(SignFormat::Openssh, true)).is_ok());
    }

    #[test]
    fn every_file_has_its_content() {
        let signed = Signed {
            keys: KeyPairs::generate().unwrap(),
            ssh_certificate: "ssh-cert".into(),
            tls_certificate_pem: "TLS CERT\n".into(),
            trust: TrustBundle {
                host_tls_ca_pem: vec!["HOST CA".into()],
                user_tls_ca_pem: vec!["USER CA".into()],
                host_ssh_ca: vec!["ssh-ed25519 AAAA x".into()],
                user_ssh_ca: vec![],
            },
            cluster: "demo".into(),
        };
        for (format, names) in [
            (SignFormat::File, vec!["id"]),
            (SignFormat::Openssh, vec!["id", "id-cert.pub"]),
            (SignFormat::Tls, vec!["id.key", "id.crt", "id.cas"]),
        ] {
            let paths = file_names(&args(format, true));
            assert_eq!(paths, names.iter().map(PathBuf::from).collect::<Vec<_>>());
            assert_eq!(contents(&signed, &args(format, true)).len(), names.len());
        }
        let user = contents(&signed, &args(SignFormat::Tls, true));
        let host = contents(&signed, &args(SignFormat::Tls, false));
        assert_eq!((user[2].as_str(), host[2].as_str()), ("HOST CA\n", "USER CA\n"));
        let all = &contents(&signed, &args(SignFormat::File, true))[0];
        for part in ["OPENSSH PRIVATE KEY", "ssh-cert", "TLS CERT", "HOST CA", "@cert-authority"] {
            assert!(all.contains(part), "{part}");
        }
    }

    #[test]
    fn status_for_people_and_programs() {
        let status = StatusResponse {
            cluster: "demo".into(),
            version: "0.1.0".into(),
            ca_pins: vec!["sha256:ab".into()],
            authorities: vec![Authority {
                kind: "host".into(),
                protocol: "tls".into(),
                algorithm: "ECDSA P-256".into(),
                fingerprint: "SHA256:x".into(),
                valid_until: 60,
            }],
            policy_revision: 7,
            trust: None,
            proxy_address: "p:3080".into(),
        };
        insta::assert_snapshot!(show_status(&status, Format::Text).unwrap());
        insta::assert_snapshot!(show_status(&status, Format::Json).unwrap());
    }
}
