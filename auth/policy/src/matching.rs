//! Labels, logins, templates.
