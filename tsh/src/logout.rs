//! `tsh logout`: keys, certificates, profiles and the agent's copies are gone afterwards; all proxies' unless one is named.

use crate::agent::{self, Agent};
use crate::flags::Global;
use crate::home::Home;
use cli::failure::{Failure, Fallible as _};
use cli::output::print;

/// # Errors
/// A file cannot be removed.
pub(crate) fn run(home: &Home, global: &Global) -> Result<(), Failure> {
    let hosts = match &global.proxy {
        Some(proxy) => vec![proxy.host().to_owned()],
        None => home.proxy_hosts(),
    };
    let hosts: Vec<String> =
        hosts.into_iter().filter(|host| home.proxy_hosts().contains(host)).collect();
    if hosts.is_empty() {
        return print("Not logged in.\n");
    }
    let lock = home.lock()?;
    for host in &hosts {
        remove_from_agent(home, host);
        home.forget(&lock, host).doing(format!("logging out of {host}"))?;
        print(&format!("Logged out of {host}.\n"))?;
    }
    Ok(())
}

/// An agent that is gone or locked must not keep the files here; its copies expire with the certificate.
fn remove_from_agent(home: &Home, host: &str) {
    let Ok(Some(profile)) = home.profile(host) else { return };
    let comment = agent::comment(host, &profile.cluster, &profile.user);
    let removed = match Agent::connect() {
        Ok(Some(mut agent)) => agent.remove(&comment),
        Ok(None) => return,
        Err(error) => Err(error),
    };
    if let Err(error) = removed {
        let why = Failure::from(error);
        eprintln!("WARNING: the ssh-agent may still hold your keys: {}", why.message());
    }
}
