//! `tctl tokens`: join tokens for machines.

use std::collections::HashMap;

use proto::resource::KIND_TOKEN;
use proto::rpc::{CreateTokenRequest, CreateTokenResponse};
use serde_json::{Value, json};

use crate::flags::{TokensAddArgs, TokensCommand};
use crate::join_line::{auth_or_blank, proxy_or_blank};
use crate::resources::{delete, fetch, word, words};
use crate::{Admin, call};
use cli::failure::Failure;
use cli::output::{Format, pairs, plain, print, rfc3339, structured, table};

/// # Errors
/// Auth's.
pub(crate) async fn run(admin: &mut Admin, command: &TokensCommand) -> Result<(), Failure> {
    match command {
        TokensCommand::Add(args) => {
            let request = CreateTokenRequest {
                roles: args.roles.iter().map(|role| role.to_lowercase()).collect(),
                ttl_seconds: args.ttl.0.as_secs(),
                value: args.value.clone(),
                labels: parse_labels(&args.labels)?,
            };
            let token = admin.create_token(call(request)).await?.into_inner();
            print(&show(&token, args)?)
        }
        TokensCommand::Ls { format } => {
            let tokens = fetch(admin, KIND_TOKEN, "").await?;
            match format {
                Format::Text => print(&list(&tokens)),
                Format::Json | Format::Yaml => print(&structured(&tokens, *format)?),
            }
        }
        TokensCommand::Rm { token } => {
            delete(admin, KIND_TOKEN, token).await?;
            print("the token has been removed\n")
        }
    }
}

fn parse_labels(list: &[String]) -> Result<HashMap<String, String>, Failure> {
    list.iter()
        .map(|pair| match pair.split_once('=') {
            Some((name, value)) => Ok((name.trim().to_owned(), value.trim().to_owned())),
            None => Err(Failure::usage(format!("{pair:?} is no label: write name=value"))),
        })
        .collect()
}

fn show(token: &CreateTokenResponse, args: &TokensAddArgs) -> Result<String, Failure> {
    let expires = rfc3339(token.expires);
    if args.format != Format::Text {
        let value = json!({
            "token": token.token,
            "roles": args.roles,
            "expires": expires,
            "ca_pin": token.ca_pin,
            "proxy_address": token.proxy_address,
            "auth_address": token.auth_address,
        });
        return structured(&value, args.format);
    }
    let roles = args.roles.join(",");
    // A proxy cannot join through itself.
    let way = if args.roles.iter().any(|role| role.eq_ignore_ascii_case("proxy")) {
        format!("--auth-server={}", auth_or_blank(&token.auth_address))
    } else {
        format!("--proxy={}", proxy_or_blank(&token.proxy_address))
    };
    Ok(format!(
        "The join token, good until {expires}:\n\n  {}\n\n\
         Put it into a file on the new machine (mode 0600) and run there, with the file's absolute path:\n\n  \
         postern start --roles={roles} --token=/PATH/TO/FILE {way} --ca-pin={}\n",
        plain(&token.token),
        plain(&token.ca_pin),
    ))
}

fn list(tokens: &[Value]) -> String {
    let row = |token: &Value| {
        let labels = token.pointer("/metadata/labels").and_then(Value::as_object);
        let labels: Vec<(String, String)> = labels
            .into_iter()
            .flatten()
            .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
            .collect();
        vec![
            word(token, "/metadata/name"),
            words(token, "/spec/roles"),
            pairs(labels.iter().map(|(name, value)| (name, value))),
            word(token, "/metadata/expires"),
        ]
    };
    let head = ["Token", "Type", "Labels", "Expiry Time (UTC)"];
    table(&head, &tokens.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(roles: &[&str], format: Format) -> String {
        let args = TokensAddArgs {
            roles: roles.iter().map(|role| (*role).to_owned()).collect(),
            ttl: "1h".parse().unwrap(),
            value: String::new(),
            labels: vec![],
            format,
        };
        let token = CreateTokenResponse {
            token: "0123abcd".into(),
            expires: 3600,
            ca_pin: "sha256:ab".into(),
            proxy_address: "proxy.example.com:3080".into(),
            auth_address: "auth.example.com:3025".into(),
        };
        show(&token, &args).unwrap()
    }

    #[test]
    fn the_next_command_is_printed() {
        insta::assert_snapshot!(check(&["node"], Format::Text));
        insta::assert_snapshot!(check(&["node"], Format::Json));
        assert!(check(&["node", "proxy"], Format::Text).contains("--auth-server=auth.example.com"));
    }

    #[test]
    fn one_line_per_token() {
        let tokens = [json!({"metadata": {"name": "abc", "expires": "1970-01-01T01:00:00Z",
            "labels": {"env": "prod"}}, "spec": {"roles": ["node"], "join_method": "token"}})];
        insta::assert_snapshot!(list(&tokens));
    }
}
