//! `tsh login`: keys are made here, auth signs them for a password and a one-time code, the result is kept under
//! `~/.tsh` and given to the ssh-agent. Trust before that is [`crate::first_contact`]'s, files are [`crate::home`]'s.

use std::collections::BTreeMap;

use pki::keys::KeyPairs;
use proto::id::{ClusterName, UserName};
use proto::rpc::{LoginRequest, LoginResponse};
use russh::keys::Certificate;

use crate::address::ProxyAddress;
use crate::agent::{self, AddKeys, Agent};
use crate::first_contact::{FirstContact, call};
use crate::flags::{Global, LoginArgs};
use crate::home::{Home, Login};
use crate::profile::Profile;
use crate::prompt::Prompt;
use crate::signed_in::SignedIn;
use crate::status;
use cli::failure::{Failure, Fallible as _};
use cli::output::plain;

/// The map: whom, trust, ask, sign, keep, agent, status.
///
/// # Errors
/// See the steps.
pub(crate) async fn run(home: &Home, global: &Global, args: &LoginArgs) -> Result<(), Failure> {
    let (proxy, user) = whom(home, global)?;
    if still_good(home, &proxy, &user, args)? {
        return status::print_active(home);
    }
    let contact = FirstContact::make(home, proxy, &args.trust).await?;
    check_cluster(&contact.cluster, args.cluster.as_deref())?;
    let keys = KeyPairs::generate()?;
    let answer = ask_and_sign(&contact, &user, &keys, args.ttl).await?;
    let certificate = check_answer(&contact, &user, &keys, &answer)?;
    keep(home, &contact, &keys, &answer)?;
    add_to_agent(&contact, &user, &keys, &certificate, args.add_keys_to_agent)?;
    status::print_active(home)
}

/// The proxy from flags or the active profile, the user from flags, that proxy's profile, or the local account.
fn whom(home: &Home, global: &Global) -> Result<(ProxyAddress, UserName), Failure> {
    let saved = |host: &str| home.profile(host);
    let proxy = match (&global.proxy, home.current()) {
        (Some(proxy), _) => proxy.clone(),
        (None, Some(host)) => {
            let profile = saved(&host)?.ok_or_else(no_proxy)?;
            profile.web_proxy_addr.parse().map_err(Failure::new)?
        }
        (None, None) => return Err(no_proxy()),
    };
    let local = || std::env::var("USER").unwrap_or_default();
    let user = match &global.user {
        Some(user) => user.clone(),
        None => saved(proxy.host())?.map_or_else(local, |profile| profile.user),
    };
    let user = user
        .parse::<UserName>()
        .doing("--user")
        .map_err(|failure| failure.hint("Pass --user=NAME."))?;
    Ok((proxy, user))
}

fn no_proxy() -> Failure {
    Failure::usage("which proxy?").hint("Pass --proxy=HOST[:PORT] or set TELEPORT_PROXY.")
}

/// Signed in as this user there, and nothing new was asked for.
fn still_good(
    home: &Home,
    proxy: &ProxyAddress,
    user: &UserName,
    args: &LoginArgs,
) -> Result<bool, Failure> {
    let new_flags = args.ttl.is_some() || args.trust.ca_pin.is_some() || args.trust.insecure;
    if new_flags || home.current().as_deref() != Some(proxy.host()) {
        return Ok(false);
    }
    // Damaged files are what a login repairs.
    let Ok(Some(held)) = SignedIn::load_any(home, proxy.host()) else { return Ok(false) };
    let same = held.proxy == *proxy && held.user == *user;
    let cluster = args.cluster.as_deref().is_none_or(|name| name == held.cluster.as_str());
    Ok(same && cluster && !held.has_expired(net::unix_now()))
}

fn check_cluster(cluster: &ClusterName, wanted: Option<&str>) -> Result<(), Failure> {
    match wanted {
        Some(name) if name != cluster.as_str() => {
            Err(Failure::new(format!("the proxy serves cluster {cluster}, not {}", plain(name))))
        }
        Some(_) | None => Ok(()),
    }
}

async fn ask_and_sign(
    contact: &FirstContact,
    user: &UserName,
    keys: &KeyPairs,
    ttl_minutes: Option<u32>,
) -> Result<LoginResponse, Failure> {
    let prompt = Prompt::new();
    let password = prompt.secret(&format!("Password of {user} at {}", contact.cluster))?;
    let code = prompt.code("One-time code")?;
    let request = LoginRequest {
        user: user.to_string(),
        password: password.to_string(),
        otp: code.to_string(),
        ssh_public_key: keys.ssh_public_line(),
        tls_public_key: keys.tls_spki(),
        ttl_seconds: ttl_minutes.map_or(0, |minutes| u64::from(minutes) * 60),
    };
    let answer = contact.sign_in()?.login(call(request)).await;
    Ok(answer.map_err(refused)?.into_inner())
}

/// The same words whatever was wrong: they must not tell which users there are.
fn refused(status: tonic::Status) -> Failure {
    let wrong = status.code() == tonic::Code::Unauthenticated;
    let failure = Failure::from(status);
    if wrong {
        failure.hint("A one-time code works once: wait for the next one if you have just used it.")
    } else {
        failure
    }
}

/// The answer is for what was asked: this user, this cluster, our key, with authorities to believe.
fn check_answer(
    contact: &FirstContact,
    user: &UserName,
    keys: &KeyPairs,
    answer: &LoginResponse,
) -> Result<Certificate, Failure> {
    let wrong = |what: &str| Failure::new(format!("auth's answer {what}"));
    if answer.ssh_certificate.is_empty() {
        return Err(Failure::new(
            "your roles give you no logins, so there is nothing to sign in to",
        )
        .hint("Ask an administrator for a role with logins."));
    }
    let certificate = Certificate::from_openssh(answer.ssh_certificate.trim())
        .map_err(|_| wrong("holds no SSH certificate"))?;
    if answer.cluster != contact.cluster.as_str() || answer.user != user.as_str() {
        return Err(wrong("is for another user or cluster"));
    }
    if certificate.public_key() != keys.ssh_public().key_data() {
        return Err(wrong("is for another key"));
    }
    let trust = answer.trust.as_ref().ok_or_else(|| wrong("names no authorities"))?;
    if trust.host_ssh_ca.is_empty() || trust.host_tls_ca_pem.is_empty() {
        return Err(wrong("names no authorities"));
    }
    Ok(certificate)
}

fn keep(
    home: &Home,
    contact: &FirstContact,
    keys: &KeyPairs,
    answer: &LoginResponse,
) -> Result<(), Failure> {
    let profile = Profile {
        web_proxy_addr: contact.proxy.to_string(),
        ssh_proxy_addr: contact.ping.ssh_jump_addr.clone(),
        user: answer.user.clone(),
        cluster: answer.cluster.clone(),
        tls_routing_enabled: true,
        auth_connector: "local".into(),
        proxy_trust: contact.proxy_trust,
        roles: answer.roles.clone(),
        traits: answer
            .traits
            .iter()
            .map(|(name, list)| (name.clone(), list.values.clone()))
            .collect::<BTreeMap<_, _>>(),
    };
    let trust = answer.trust.clone().unwrap_or_default();
    let login = Login {
        proxy_host: contact.proxy.host(),
        profile: &profile,
        keys,
        ssh_certificate: &answer.ssh_certificate,
        tls_certificate_pem: &answer.tls_certificate_pem,
        trust: &trust,
    };
    home.save(&home.lock()?, &login)
}

fn add_to_agent(
    contact: &FirstContact,
    user: &UserName,
    keys: &KeyPairs,
    certificate: &Certificate,
    add: AddKeys,
) -> Result<(), Failure> {
    if add == AddKeys::No {
        return Ok(());
    }
    let comment = agent::comment(contact.proxy.host(), contact.cluster.as_str(), user.as_str());
    let left = i64::try_from(certificate.valid_before()).unwrap_or(i64::MAX) - net::unix_now();
    let lifetime_seconds = u32::try_from(left.max(1)).unwrap_or(u32::MAX);
    let added = match Agent::connect() {
        Ok(Some(mut agent)) => agent
            .remove(&comment)
            .and_then(|_| agent.add(keys, certificate, &comment, lifetime_seconds)),
        Ok(None) if add == AddKeys::Auto => return Ok(()),
        Ok(None) => return Err(Failure::new("no ssh-agent runs (SSH_AUTH_SOCK is not set)")),
        Err(error) => Err(error),
    };
    match (added, add) {
        (Ok(()), _) => Ok(()),
        (Err(error), AddKeys::Auto) => {
            eprintln!("WARNING: the keys were not added: {}", Failure::from(error).message());
            Ok(())
        }
        (Err(error), _) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_used_code_is_thought_of() {
        let told = refused(tonic::Status::unauthenticated("wrong")).text();
        assert!(told.starts_with("ERROR: wrong\n") && told.contains("next one"), "{told}");
        assert_eq!(refused(tonic::Status::internal("x")).text(), "ERROR: x");
    }

    #[test]
    fn the_cluster_must_be_the_proxys() {
        let cluster = ClusterName::parse("demo").unwrap();
        assert!(check_cluster(&cluster, None).is_ok());
        assert!(check_cluster(&cluster, Some("demo")).is_ok());
        assert!(check_cluster(&cluster, Some("other")).is_err());
    }

    #[test]
    fn without_a_proxy_the_next_step_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path());
        let global = Global { proxy: None, user: Some("alice".into()), login: None };
        let failure = whom(&home, &global).unwrap_err();
        assert!(failure.text().contains("--proxy="), "{}", failure.text());
        let global =
            Global { proxy: Some("p".parse().unwrap()), user: Some("../x".into()), login: None };
        assert!(whom(&home, &global).is_err());
    }
}
