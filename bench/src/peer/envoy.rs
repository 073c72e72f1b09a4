//! Envoy, from the wheel that its project publishes on PyPI: the TCP proxy filter, one worker beside its main thread.
//! Its suites of TLS 1.3 cannot be configured; ours is the only one that our clients offer.

use std::process::Command;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{Job, Places, Work};
use crate::certificate::GROUP;
use crate::program::{self, version_line};

pub(super) fn command(job: &Job<'_>) -> Result<Command> {
    let envoy = &job.places.envoy;
    ensure!(envoy.is_file(), "{} is missing; `cargo xtask bench` installs it", envoy.display());
    let mut chain = json!({
        "filters": [{
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "stat_prefix": "bench", "cluster": "upstream", "idle_timeout": "3600s",
            },
        }],
    });
    if job.work != Work::Plain
        && let Some(chain) = chain.as_object_mut()
    {
        chain.insert("transport_socket".to_owned(), tls(job));
    }
    let config = json!({
        "static_resources": {
            "listeners": [{ "name": "front", "address": address(job.listen), "filter_chains": [chain] }],
            "clusters": [{
                "name": "upstream", "type": "STATIC", "connect_timeout": "10s",
                "circuit_breakers": { "thresholds": [{ "max_connections": 20000, "max_pending_requests": 20000 }] },
                "load_assignment": { "cluster_name": "upstream", "endpoints": [{
                    "lb_endpoints": [{ "endpoint": { "address": address(job.upstream) } }],
                }] },
            }],
        },
    });
    let file = job.write("envoy.json", &config.to_string())?;
    let words = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"];
    let mut command = program::command(envoy, words);
    command.arg("--config-path").arg(file);
    Ok(command)
}

pub(super) fn version(places: &Places) -> Option<String> {
    let said = version_line(&places.envoy, &["--version"])?;
    // It begins with its own path.
    Some(
        said.split_once("version: ")
            .map_or(said.clone(), |(_, version)| format!("envoy {version}")),
    )
}

fn address(addr: std::net::SocketAddr) -> Value {
    json!({ "socket_address": { "address": addr.ip().to_string(), "port_value": addr.port() } })
}

fn tls(job: &Job<'_>) -> Value {
    let certificates = job.certificates;
    let file = |path: &std::path::Path| json!({ "filename": path.display().to_string() });
    let insist = job.work == Work::TlsWithClients;
    let mut common = json!({
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3",
            "ecdh_curves": [GROUP],
        },
        "tls_certificates": [{
            "certificate_chain": file(&certificates.server_chain),
            "private_key": file(&certificates.server_key),
        }],
    });
    if insist && let Some(common) = common.as_object_mut() {
        let authority = file(&certificates.client_authority);
        common.insert("validation_context".to_owned(), json!({ "trusted_ca": authority }));
    }
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "disable_stateless_session_resumption": true,
            "disable_stateful_session_resumption": true,
            "require_client_certificate": insist,
            "common_tls_context": common,
        },
    })
}
