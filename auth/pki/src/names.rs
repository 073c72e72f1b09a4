//! The names that a machine's certificate may carry. A node chooses its own name when it joins, so the rules here keep
//! that name from passing for another machine's id (`<uuid>.<cluster>`) or for a role that the machine does not have
//! (`auth.<cluster>`). Whether a name is taken by another machine is auth's business. Used by [`crate::authority`].

use std::net::IpAddr;

use proto::id::HostId;
use proto::resource::HostRole;
use rustls::pki_types::DnsName;

use crate::claims::HostClaims;

/// A name that has passed the rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HostAddress {
    Dns(String),
    Ip(IpAddr),
}

impl HostAddress {
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Dns(name) => name.clone(),
            Self::Ip(address) => address.to_string(),
        }
    }
}

/// Subject alternative names: `<host_id>.<cluster>`, `<nodename>.<cluster>`, `<role>.<cluster>`, then `names`.
pub(crate) fn tls_names(
    claims: &HostClaims,
    names: &[String],
) -> Result<Vec<HostAddress>, &'static str> {
    let cluster = claims.cluster.as_str();
    let mut list = vec![
        own_dns(claims, format!("{}.{cluster}", claims.host_id))?,
        own_dns(claims, format!("{}.{cluster}", claims.nodename))?,
    ];
    for role in &claims.roles {
        list.push(own_dns(claims, format!("{}.{cluster}", role.as_str()))?);
    }
    extend(&mut list, claims, names)?;
    Ok(list)
}

/// SSH principals: host id and node name, both also with `.<cluster>`, then `names`.
pub(crate) fn ssh_names(
    claims: &HostClaims,
    names: &[String],
) -> Result<Vec<HostAddress>, &'static str> {
    let cluster = claims.cluster.as_str();
    let mut list = vec![
        own_dns(claims, claims.host_id.to_string())?,
        own_dns(claims, format!("{}.{cluster}", claims.host_id))?,
        own_dns(claims, claims.nodename.to_string())?,
        own_dns(claims, format!("{}.{cluster}", claims.nodename))?,
    ];
    extend(&mut list, claims, names)?;
    Ok(list)
}

fn extend(
    list: &mut Vec<HostAddress>,
    claims: &HostClaims,
    names: &[String],
) -> Result<(), &'static str> {
    if names.len() > NAMES_MAX {
        return Err("too many names for one machine");
    }
    for name in names {
        let address = match name.parse::<IpAddr>() {
            Ok(address) => HostAddress::Ip(address),
            Err(_) => own_dns(claims, name.clone())?,
        };
        if !list.contains(&address) {
            list.push(address);
        }
    }
    Ok(())
}

/// `name` as a DNS name that this machine may have. No wildcards: OpenSSH would match them as patterns.
fn own_dns(claims: &HostClaims, name: String) -> Result<HostAddress, &'static str> {
    if DnsName::try_from(name.as_str()).is_err() {
        return Err("a name that is neither a DNS name nor an IP address");
    }
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    for role in [HostRole::Auth, HostRole::Node, HostRole::Proxy] {
        let reserved = is(&format!("{}.{}", role.as_str(), claims.cluster));
        if reserved && !claims.roles.contains(&role) {
            return Err("a name that is reserved for a role which this machine does not have");
        }
    }
    let first_label = name.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let shaped_as_id = first_label.len() == HOST_ID_BYTES && HostId::parse(&*first_label).is_ok();
    if shaped_as_id && first_label != claims.host_id.as_str() {
        return Err("a name that is shaped like another machine's id");
    }
    Ok(HostAddress::Dns(name))
}

/// Names beyond the machine's own; a proxy has a handful of public addresses.
const NAMES_MAX: usize = 64;
/// Length of UUID text.
const HOST_ID_BYTES: usize = 36;

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(nodename: &str, roles: &[HostRole]) -> HostClaims {
        HostClaims {
            cluster: "example.com".parse().unwrap(),
            host_id: HostId::from_random([1; 16]),
            nodename: nodename.parse().unwrap(),
            roles: roles.to_vec(),
        }
    }

    #[test]
    fn a_node_cannot_take_the_name_of_a_role_or_of_another_id() {
        fn check(nodename: &str, extra: &str, roles: &[HostRole], expect: bool) {
            let claims = claims(nodename, roles);
            let names = [extra.to_owned()];
            assert_eq!(tls_names(&claims, &names).is_ok(), expect, "{nodename} {extra} {roles:?}");
        }
        let other = HostId::from_random([2; 16]);
        check("web1", "10.0.0.1", &[HostRole::Node], true);
        check("web1", "2001:db8::1", &[HostRole::Node], true);
        check("web1", "example.com", &[HostRole::Proxy], true);
        check("proxy", "proxy.example.com", &[HostRole::Proxy], true);
        check("auth", "x.org", &[HostRole::Node], false);
        check("AUTH", "x.org", &[HostRole::Node], false);
        check("proxy", "x.org", &[HostRole::Node], false);
        check("web1", "Auth.Example.com", &[HostRole::Node, HostRole::Proxy], false);
        check(other.as_str(), "x.org", &[HostRole::Node], false);
        check("web1", &format!("{other}.example.com"), &[HostRole::Node], false);
        check("web1", &other.as_str().to_uppercase(), &[HostRole::Node], false);
        check("web1", "*.example.com", &[HostRole::Node], false);
        check("web1", "a b", &[HostRole::Node], false);
        check("web1", "", &[HostRole::Node], false);
        check("web1", "a..b", &[HostRole::Node], false);
        check("a..b", "x.org", &[HostRole::Node], false);
    }

    #[test]
    fn the_list_is_bounded_and_without_repeats() {
        let claims = claims("web1", &[HostRole::Node]);
        let repeated = vec!["x.org".to_owned(), "x.org".to_owned(), "web1.example.com".to_owned()];
        let texts: Vec<_> =
            ssh_names(&claims, &repeated).unwrap().iter().map(HostAddress::text).collect();
        let id = claims.host_id.as_str();
        let expect = [id, &format!("{id}.example.com"), "web1", "web1.example.com", "x.org"];
        assert_eq!(texts, expect);
        let many: Vec<_> = (0..=NAMES_MAX).map(|n| format!("n{n}.org")).collect();
        assert!(ssh_names(&claims, &many).is_err());
    }
}
