//! SSH certificates.

use std::net::IpAddr;
use std::process::Command;

use russh::keys::ssh_key::certificate::{Builder, CertType};
use russh::keys::{Certificate, PrivateKey};

use super::{Cluster, FOR_AN_HOUR, HOUR, NOW, Ssh, alice, cluster, keys, web1};
use crate::authority::{AuthorityError, AuthorityKind, SshAuthority, Validity};
use crate::claims::SSH_CLAIMS;
use crate::verify::{IdentityError, Verifier};

fn user_line(ours: &Cluster, validity: Validity) -> String {
    let key = keys().ssh_public_line();
    ours.user_ssh.authority.issue_user(&alice(), &key, validity).unwrap()
}

fn user(ours: &Cluster) -> Certificate {
    Certificate::from_openssh(&user_line(ours, FOR_AN_HOUR)).unwrap()
}

fn host(ours: &Cluster, names: &[String]) -> Certificate {
    let key = keys().ssh_public_line();
    let line = ours.host_ssh.authority.issue_host(&web1(), names, &key, FOR_AN_HOUR).unwrap();
    Certificate::from_openssh(&line).unwrap()
}

fn login(text: &str) -> proto::id::Login {
    text.parse().unwrap()
}

/// A certificate that says what its maker likes. Starts as a good one of alice's.
struct Forgery {
    cert_type: CertType,
    key: PrivateKey,
    key_id: &'static str,
    principals: Vec<&'static str>,
    valid: (u64, u64),
    critical: Vec<(&'static str, &'static str)>,
    extensions: Vec<(&'static str, String)>,
}

impl Forgery {
    fn new() -> Self {
        Self {
            cert_type: CertType::User,
            key: keys().ssh().clone(),
            key_id: "alice",
            principals: vec!["root", "alice"],
            valid: (NOW as u64, (NOW + HOUR) as u64),
            critical: Vec::new(),
            extensions: vec![(SSH_CLAIMS, serde_json::to_string(&alice()).unwrap())],
        }
    }

    fn signed(self, by: &Ssh) -> Certificate {
        let authority = PrivateKey::from_openssh(&*by.key).unwrap();
        let public = self.key.public_key().key_data().clone();
        let mut builder = Builder::new([7; 16], public, self.valid.0, self.valid.1).unwrap();
        builder.cert_type(self.cert_type).unwrap().key_id(self.key_id).unwrap();
        builder.all_principals_valid().unwrap();
        for principal in self.principals {
            builder.valid_principal(principal).unwrap();
        }
        for (name, value) in self.critical {
            builder.critical_option(name, value).unwrap();
        }
        for (name, value) in self.extensions {
            builder.extension(name, value).unwrap();
        }
        builder.sign(&authority).unwrap()
    }
}

#[test]
fn users_round_trip() {
    let ours = Cluster::new();
    let certificate = user(&ours);
    for name in ["root", "alice"] {
        let identity = ours.verifier().ssh_user(&certificate, &login(name), None, NOW).unwrap();
        assert_eq!(identity.user().as_str(), "alice");
        assert_eq!(identity.roles(), alice().roles);
        assert_eq!(identity.traits(), &alice().traits);
        assert_eq!(identity.logins(), alice().logins);
        assert_eq!(identity.valid_until(), NOW + HOUR);
    }
    assert!(ours.verifier().ssh_user_any_login(&certificate, None, NOW).is_ok());
    let got = ours.verifier().ssh_user(&certificate, &login("bob"), None, NOW);
    assert_eq!(got, Err(IdentityError::Principal("bob".into())));
}

#[test]
fn hosts_round_trip() {
    let ours = Cluster::new();
    let certificate = host(&ours, &["10.0.0.9".into(), "web1.test".into()]);
    let verifier = ours.verifier();
    let id = web1().host_id.to_string();
    let id_in_cluster = format!("{id}.example.com");
    for name in [&id, &id_in_cluster, "web1", "web1.example.com", "10.0.0.9", "web1.test"] {
        let identity = verifier.ssh_host(&certificate, name, NOW).unwrap();
        assert_eq!(identity.host_id(), &web1().host_id);
        assert_eq!(identity.valid_until(), NOW + HOUR);
    }
    for name in ["web2", "", "*", "web", "web1.example.org"] {
        let got = verifier.ssh_host(&certificate, name, NOW);
        assert_eq!(got, Err(IdentityError::Principal(name.into())));
    }
    assert_eq!(verifier.ssh_host(&certificate, "web1", NOW + HOUR), Err(IdentityError::Expired));
}

#[test]
fn kinds_stay_apart() {
    let ours = Cluster::new();
    let verifier = ours.verifier();
    let error = verifier.ssh_host(&user(&ours), "root", NOW).unwrap_err();
    assert_eq!(error, IdentityError::WrongKind { expected: "host", found: "user" });
    let error = verifier.ssh_user(&host(&ours, &[]), &login("web1"), None, NOW).unwrap_err();
    assert_eq!(error, IdentityError::WrongKind { expected: "user", found: "host" });
    // The host authority makes a user's certificate, the user authority a host's.
    let stolen = Forgery::new().signed(&ours.host_ssh);
    let got = verifier.ssh_user(&stolen, &login("root"), None, NOW);
    assert_eq!(got, Err(IdentityError::UnknownAuthority));
    let stolen = Forgery { cert_type: CertType::Host, ..Forgery::new() }.signed(&ours.user_ssh);
    let got = verifier.ssh_host(&stolen, "root", NOW);
    assert_eq!(got, Err(IdentityError::UnknownAuthority));
}

#[test]
fn time_is_checked_at_both_ends() {
    let ours = Cluster::new();
    let (verifier, certificate) = (ours.verifier(), user(&ours));
    let check = |now: i64, expect: Option<IdentityError>| {
        let got = verifier.ssh_user(&certificate, &login("root"), None, now).err();
        assert_eq!(got, expect, "{}", now - NOW);
    };
    check(NOW - 61, Some(IdentityError::NotYetValid));
    check(NOW - 60, None);
    check(NOW + HOUR - 1, None);
    check(NOW + HOUR, Some(IdentityError::Expired));
    check(-1, Some(IdentityError::NotYetValid));
    check(i64::MAX, Some(IdentityError::Expired));
}

#[test]
fn what_our_authority_would_not_sign_is_refused_all_the_same() {
    let ours = Cluster::new();
    let check = |forgery: Forgery, expect: &str| {
        let certificate = forgery.signed(&ours.user_ssh);
        let got = match ours.verifier().ssh_user(&certificate, &login("root"), None, NOW) {
            Ok(_) => "identity".to_owned(),
            Err(error) => error.to_string(),
        };
        assert!(got.contains(expect), "{got:?} without {expect:?}");
    };
    let claims = |text: String| vec![(SSH_CLAIMS, text)];
    // The forgery itself is good: what follows fails for what it changes.
    check(Forgery::new(), "identity");
    check(Forgery { principals: vec![], ..Forgery::new() }, "no principals");
    check(Forgery { principals: vec!["alice"], ..Forgery::new() }, "not for root");
    check(Forgery { principals: vec!["*"], ..Forgery::new() }, "not for root");
    check(Forgery { key_id: "mallory", ..Forgery::new() }, "disagree");
    check(Forgery { valid: (NOW as u64, u64::MAX), ..Forgery::new() }, "no end");
    check(Forgery { valid: (0, u64::MAX - 1), ..Forgery::new() }, "no end");
    check(Forgery { extensions: vec![], ..Forgery::new() }, "no claims");
    check(Forgery { extensions: claims(String::new()), ..Forgery::new() }, "not readable");
    check(Forgery { extensions: claims("{}".into()), ..Forgery::new() }, "not readable");
    let host = serde_json::to_string(&web1()).unwrap();
    check(Forgery { extensions: claims(host), ..Forgery::new() }, "not readable");
    let long = format!("{}{}", serde_json::to_string(&alice()).unwrap(), " ".repeat(16 * 1024));
    check(Forgery { extensions: claims(long), ..Forgery::new() }, "too long");
    let mut fewer = alice();
    fewer.logins.remove(0);
    let fewer = serde_json::to_string(&fewer).unwrap();
    check(Forgery { extensions: claims(fewer), ..Forgery::new() }, "not for root");
    let mut elsewhere = alice();
    elsewhere.cluster = "example.org".parse().unwrap();
    let elsewhere = serde_json::to_string(&elsewhere).unwrap();
    check(Forgery { extensions: claims(elsewhere), ..Forgery::new() }, "cluster example.org");
    for option in ["force-command", "verify-required", "x@example.com"] {
        let critical = vec![(option, "yes")];
        check(Forgery { critical, ..Forgery::new() }, option);
    }
    let both = vec![("force-command", "true"), ("source-address", "0.0.0.0/0")];
    check(Forgery { critical: both, ..Forgery::new() }, "force-command");
    // Extensions are not critical: unknown ones don't matter.
    let mut extensions = Forgery::new().extensions;
    extensions.push(("x@example.com", "y".into()));
    check(Forgery { extensions, ..Forgery::new() }, "identity");
}

#[test]
fn source_addresses_are_honoured() {
    let ours = Cluster::new();
    let check = |list: &'static str, from: Option<&str>, expect: Result<(), &str>| {
        let critical = vec![("source-address", list)];
        let certificate = Forgery { critical, ..Forgery::new() }.signed(&ours.user_ssh);
        let from: Option<IpAddr> = from.map(|from| from.parse().unwrap());
        let got = ours.verifier().ssh_user(&certificate, &login("root"), from, NOW);
        let got = got.map(|_| ()).map_err(|error| error.kind());
        assert_eq!(got, expect, "{list} {from:?}");
        let got = ours.verifier().ssh_user_any_login(&certificate, from, NOW);
        assert_eq!(got.is_ok(), expect.is_ok(), "{list} {from:?}");
    };
    check("10.0.0.0/8,192.0.2.1", Some("10.1.1.1"), Ok(()));
    check("10.0.0.0/8,192.0.2.1", Some("192.0.2.1"), Ok(()));
    check("10.0.0.0/8,192.0.2.1", Some("192.0.2.2"), Err("source_address"));
    check("0.0.0.0/0,::/0", None, Err("source_address"));
    check("", Some("10.1.1.1"), Err("malformed"));
    check("10.0.0.0/8,oops", Some("10.1.1.1"), Err("malformed"));
}

#[test]
fn hosts_take_no_critical_option() {
    let ours = Cluster::new();
    let forgery = || Forgery {
        cert_type: CertType::Host,
        key_id: Box::leak(web1().host_id.to_string().into_boxed_str()),
        principals: vec!["web1"],
        extensions: vec![(SSH_CLAIMS, serde_json::to_string(&web1()).unwrap())],
        ..Forgery::new()
    };
    let check = |forgery: Forgery, expect: Result<(), &str>| {
        let certificate = forgery.signed(&ours.host_ssh);
        let got = ours.verifier().ssh_host(&certificate, "web1", NOW);
        assert_eq!(got.map(|_| ()).map_err(|error| error.kind()), expect);
    };
    check(forgery(), Ok(()));
    let critical = vec![("source-address", "0.0.0.0/0")];
    check(Forgery { critical, ..forgery() }, Err("unknown_critical_option"));
    check(Forgery { key_id: "web1", ..forgery() }, Err("malformed"));
    check(Forgery { principals: vec![], ..forgery() }, Err("malformed"));
    check(Forgery { valid: (0, u64::MAX), ..forgery() }, Err("malformed"));
}

#[test]
fn other_authorities_other_clusters_and_rotation() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let root = login("root");
    let got = ours.verifier().ssh_user(&user(&theirs), &root, None, NOW);
    assert_eq!(got, Err(IdentityError::UnknownAuthority));
    let other = Verifier::new(&"example.org".parse().unwrap(), &ours.authorities()).unwrap();
    let got = other.ssh_user(&user(&ours), &root, None, NOW);
    assert_eq!(got, Err(IdentityError::Cluster("example.com".into())));
    let mut authorities = ours.authorities();
    authorities.user_ssh.push(theirs.user_ssh.line());
    let both = Verifier::new(&cluster(), &authorities).unwrap();
    assert!(both.ssh_user(&user(&ours), &root, None, NOW).is_ok());
    assert!(both.ssh_user(&user(&theirs), &root, None, NOW).is_ok());
    let nobody = Verifier::new(&cluster(), &Default::default()).unwrap();
    let got = nobody.ssh_user(&user(&ours), &root, None, NOW);
    assert_eq!(got, Err(IdentityError::UnknownAuthority));
}

#[test]
fn requests_that_are_refused() {
    fn check(got: Result<String, AuthorityError>, expect: &str) {
        let error = got.unwrap_err().to_string();
        assert!(error.contains(expect), "{error:?} without {expect:?}");
    }
    let ours = Cluster::new();
    let (user, host) = (&ours.user_ssh.authority, &ours.host_ssh.authority);
    let good = keys().ssh_public_line();
    check(host.issue_user(&alice(), &good, FOR_AN_HOUR), "other kind");
    check(user.issue_host(&web1(), &[], &good, FOR_AN_HOUR), "other kind");
    check(user.issue_user(&alice(), "", FOR_AN_HOUR), "OpenSSH public key");
    check(user.issue_user(&alice(), &user_line(&ours, FOR_AN_HOUR), FOR_AN_HOUR), "public key");
    check(user.issue_user(&alice(), &ours.user_ssh.line(), FOR_AN_HOUR), "own key");
    let ecdsa = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBHwf2HM\
        M5TRXvo2SQJjsNkiDD5KqiiNjrGVv3UUh+mMT5RHxiRtOnlqvjhQtBq0VpmpCV/PwUdhOig4vkbqAcEc=";
    check(user.issue_user(&alice(), ecdsa, FOR_AN_HOUR), "not an Ed25519 key");
    let mut nobody = alice();
    nobody.logins.clear();
    check(user.issue_user(&nobody, &good, FOR_AN_HOUR), "no logins");
    let mut everybody = alice();
    everybody.logins = (0..257).map(|n| login(&format!("u{n}"))).collect();
    check(user.issue_user(&everybody, &good, FOR_AN_HOUR), "more logins than OpenSSH");
    let backwards = Validity { not_before: NOW, not_after: NOW - 1 };
    check(user.issue_user(&alice(), &good, backwards), "end before it begins");
    check(host.issue_host(&web1(), &["*".into()], &good, FOR_AN_HOUR), "DNS name");
}

#[test]
fn known_hosts_lines_cannot_be_broken_out_of() {
    let ours = Cluster::new();
    let key = ours.host_ssh.line();
    let check = |patterns: &[&str], expect: &str| {
        let patterns: Vec<_> = patterns.iter().map(|p| (*p).to_owned()).collect();
        assert_eq!(ours.verifier().known_hosts_line(&patterns), expect, "{patterns:?}");
    };
    check(&["*.example.com", "web1"], &format!("@cert-authority *.example.com,web1 {key}"));
    check(&["a\nb", "a b", "", "a,b", "web1"], &format!("@cert-authority web1 {key}"));
    check(&["a b"], "");
    let mut authorities = ours.authorities();
    authorities.host_ssh.push(format!("{} x\ty", Cluster::new().host_ssh.line()));
    let both = Verifier::new(&cluster(), &authorities).unwrap();
    let lines = both.known_hosts_line(&["*".into()]);
    assert_eq!(lines.lines().count(), 2);
    assert!(lines.lines().all(|line| line.split(' ').count() == 4), "{lines}");
}

#[test]
fn keys_come_back_from_their_text() {
    let key = SshAuthority::generate(AuthorityKind::User).unwrap();
    let one = SshAuthority::load(AuthorityKind::User, &key).unwrap();
    let two = SshAuthority::load(AuthorityKind::User, &key).unwrap();
    assert_eq!(one.public_key(), two.public_key());
    assert!(SshAuthority::load(AuthorityKind::User, "x").is_err());
}

/// Needs `ssh-keygen` (openssh-client), which `cargo xtask setup` installs.
#[test]
fn openssh_makes_what_we_read() {
    let folder = tempfile::tempdir().unwrap();
    let load = |name: &str, kind: &str, passphrase: &str| {
        let path = folder.path().join(name);
        let arguments = ["-q", "-t", kind, "-N", passphrase, "-C", "a comment", "-f"];
        let status = Command::new("ssh-keygen").args(arguments).arg(&path).status();
        assert!(status.expect("ssh-keygen is needed: install openssh-client").success());
        SshAuthority::load(AuthorityKind::User, &std::fs::read_to_string(&path).unwrap())
    };
    assert!(load("plain", "ed25519", "").is_ok());
    assert!(load("encrypted", "ed25519", "secret").is_err());
    assert!(load("ecdsa", "ecdsa", "").is_err());
}

/// Needs `ssh-keygen` (openssh-client), which `cargo xtask setup` installs.
#[test]
fn openssh_reads_what_we_sign() {
    let ours = Cluster::new();
    let folder = tempfile::tempdir().unwrap();
    let show = |line: &str| {
        let path = folder.path().join("cert.pub");
        std::fs::write(&path, line).unwrap();
        let output = Command::new("ssh-keygen").arg("-L").arg("-f").arg(&path).output();
        let output = output.expect("ssh-keygen is needed: install openssh-client");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let text = show(&user_line(&ours, FOR_AN_HOUR));
    let signer = ours.user_ssh.authority.public_key().fingerprint(Default::default());
    for part in [
        "Type: ssh-ed25519-cert-v01@openssh.com user certificate",
        &format!("Signing CA: ED25519 {signer} (using ssh-ed25519)"),
        "Key ID: \"alice\"",
        "Principals: \n                root\n                alice\n",
        "Critical Options: (none)",
        "permit-agent-forwarding\n",
        "permit-port-forwarding\n",
        "permit-pty\n",
        "claims@postern UNKNOWN OPTION",
    ] {
        assert!(text.contains(part), "{text} without {part:?}");
    }
    let text = show(&host(&ours, &["10.0.0.9".into()]).to_openssh().unwrap());
    for part in ["host certificate", "                web1.example.com\n", "10.0.0.9\n"] {
        assert!(text.contains(part), "{text} without {part:?}");
    }
}
