//! Where log lines go: standard error, as text for people or JSON for collectors. Audit events are not log lines.

use std::io::IsTerminal;

use anyhow::Context;
use tracing_subscriber::EnvFilter;

use crate::config::LogConfig;

/// russh writes an error for whatever a stranger says wrong, as often as he says it; ours are counted and joined.
const NOT_RUSSH: &str = "russh=off";

/// Installs the subscriber. `RUST_LOG` wins over the configuration.
pub(crate) fn install(config: &LogConfig) -> anyhow::Result<()> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(filter) => EnvFilter::try_new(filter).context("RUST_LOG")?,
        Err(_) => EnvFilter::try_new(format!("{NOT_RUSSH},{}", config.severity))
            .context("log.severity")?,
    };
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if config.json {
        lines.json().flatten_event(true).init();
    } else {
        lines.with_ansi(std::io::stderr().is_terminal()).init();
    }
    Ok(())
}
